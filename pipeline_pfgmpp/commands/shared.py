"""What several commands share: arguments for drawing and measuring, and what is loaded for them."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .parsing import (
    LARGEST_SEED,
    make_integer_parser,
    make_list_parser,
    make_number_parser,
    parse_positive,
)


if TYPE_CHECKING:
    import torch

    from ..evaluation import ImageMetrics
    from ..pipeline_pfgmpp import PFGMPPPipeline
MAX_LISTED = 100  # classes that an error message lists


def add_drawing_arguments(parser: argparse.ArgumentParser) -> None:
    """
    Add the arguments that say how images are drawn.

    Args:
        parser (`argparse.ArgumentParser`): The parser of a command that draws images.
    """
    add_solver_arguments(parser)
    add_guidance_argument(parser)
    add_seed_argument(parser, "the first image")
    add_batch_size_argument(parser, 64)


def add_solver_arguments(parser: argparse.ArgumentParser) -> None:
    """
    Add the arguments that choose the weights, the steps and the class.

    Args:
        parser (`argparse.ArgumentParser`): The parser of a command that draws or restores images.
    """
    add_variant_argument(parser)
    parser.add_argument(
        "--num-inference-steps",
        type=make_integer_parser(1, 100_000),
        help="steps of the solver (default: the model's)",
    )
    parser.add_argument(
        "--solver-type",
        help="heun, euler, dpmpp_2m, dpmpp_3m, dpmpp_2m_sde or, for consistency models, consistency (default:"
        " the model's)",
    )
    parser.add_argument(
        "--rho",
        type=make_number_parser("a number from 0.1 to 1000", lambda rho: 0.1 <= rho <= 1000),
        help="exponent of the step spacing (default: the model's)",
    )
    parser.add_argument(
        "--sigma-schedule", help="spacing of the steps: karras or exponential (default: the model's)"
    )
    parser.add_argument(
        "--sigma-min",
        type=parse_positive,
        help="smallest noise level of the steps (default: the model's)",
    )
    parser.add_argument(
        "--class-label",
        metavar="CLASS",
        help="class of all images, by its name, such as 'Ankle boot', or by its number"
        " (default: drawn at random for each image)",
    )


def add_variant_argument(parser: argparse.ArgumentParser) -> None:
    """
    Add the argument that chooses the variant of the weights.

    Args:
        parser (`argparse.ArgumentParser`): The parser of a command that loads a model.
    """
    parser.add_argument(
        "--variant", help="variant of the weights, such as fp16 or ema500 (default: the weights without one)"
    )


def add_guidance_argument(parser: argparse.ArgumentParser) -> None:
    """
    Add the argument that says how strongly the network is guided.

    Args:
        parser (`argparse.ArgumentParser`): The parser of a command that calls the network.
    """
    parser.add_argument(
        "--guidance-scale",
        type=make_number_parser("a number from 0 to 100", lambda scale: 0 <= scale <= 100),
        default=1.0,
        help="scale of guidance; 1 means no guidance (default: %(default)s)",
    )


def add_entry_arguments(parser: argparse.ArgumentParser) -> None:
    """
    Add the arguments that say where a degraded image enters the field lines, and how much of it stays.

    Args:
        parser (`argparse.ArgumentParser`): The parser of a command that restores images.
    """
    parser.add_argument(
        "--start-sigma",
        type=parse_positive,
        help="noise level at which to enter the field lines at the degraded image itself (default: start from"
        " the prior, which gives samples of the posterior)",
    )
    parser.add_argument(
        "--blend",
        type=make_number_parser("a number from 0 to 1", lambda blend: 0 <= blend <= 1),
        default=1.0,
        help="weight of the restored image after each step; the rest is the degraded one"
        " (default: %(default)s)",
    )


def add_seed_argument(parser: argparse.ArgumentParser, owner: str) -> None:
    """
    Add the argument that chooses the random numbers.

    Args:
        parser (`argparse.ArgumentParser`): The parser of a command that draws at random.
        owner (`str`): What the seed belongs to, for the help.
    """
    parser.add_argument(
        "--seed",
        type=make_integer_parser(0, LARGEST_SEED),
        default=0,
        help=f"seed of {owner} (default: %(default)s)",
    )


def add_batch_size_argument(parser: argparse.ArgumentParser, default: int) -> None:
    """
    Add the argument that says how many images the network sees at a time.

    Args:
        parser (`argparse.ArgumentParser`): The parser of a command that draws images.
        default (`int`): The default.
    """
    parser.add_argument(
        "--batch-size",
        type=make_integer_parser(1),
        default=default,
        help="images per batch and process (default: %(default)s)",
    )


def add_noise_argument(
    parser: argparse.ArgumentParser, default: str, description: str, may_be_empty: bool = False
) -> None:
    """
    Add the argument that says how strong the injected noise is.

    Args:
        parser (`argparse.ArgumentParser`): The parser of a command that disturbs sampling.
        default (`str`): The default.
        description (`str`): The description in `--help`.
        may_be_empty (`bool`, defaults to `False`): Whether no strength may be given.
    """
    parser.add_argument(
        "--noise",
        type=make_list_parser(
            "numbers from 0 to 100 separated by commas, such as 0,0.2",
            lambda noise: 0 <= noise <= 100,
            may_be_empty,
        ),
        default=default,
        help=description,
    )


def add_features_arguments(parser: argparse.ArgumentParser) -> None:
    """
    Add the arguments that say which features images are compared by.

    Args:
        parser (`argparse.ArgumentParser`): The parser of a command that measures images.
    """
    parser.add_argument(
        "--features",
        default="fashion-mnist",
        help="fashion-mnist, emoji, inception, a file with Inception's weights or a TorchScript program (a"
        " path, or org/name/file on the Hub), or a vision model of transformers such as facebook/dinov2-large"
        " (default: %(default)s)",
    )
    add_trust_argument(parser)


def add_trust_argument(parser: argparse.ArgumentParser) -> None:
    """
    Add the argument that lets a program from elsewhere run.

    Args:
        parser (`argparse.ArgumentParser`): The parser of a command that loads features.
    """
    parser.add_argument("--trust-remote-code", action="store_true", help="allow a TorchScript program to run")


def add_measuring_arguments(
    parser: argparse.ArgumentParser, num_images: int, groups: int, may_write: bool = True
) -> None:
    """
    Add the arguments that say what images are measured against, how many there are and what is written.

    Args:
        parser (`argparse.ArgumentParser`): The parser of a command that measures images.
        num_images (`int`): Default number of images per value.
        groups (`int`): Default number of values per figure.
        may_write (`bool`, defaults to `True`): Whether the model's card has a place for the results.
    """
    parser.add_argument("--data", required=True, help="data set of real images: a folder or a Hub id")
    parser.add_argument(
        "--split", default="test", help="split of the data set to measure against (default: %(default)s)"
    )
    add_features_arguments(parser)
    parser.add_argument(
        "--num-images",
        type=make_integer_parser(2),
        default=num_images,
        help="images per value (default: %(default)s)",
    )
    parser.add_argument(
        "--groups",
        type=make_integer_parser(1, 10_000),
        default=groups,
        help="values per figure, each from images of its own, for its error (default: %(default)s)",
    )
    if may_write:
        parser.add_argument(
            "--write", action="store_true", help="also store the results in the model's folder and card"
        )


def get_call_settings(args: argparse.Namespace, pipeline: PFGMPPPipeline) -> dict[str, Any]:
    """
    Return the command line's arguments for the call of the pipeline.

    Args:
        args (`argparse.Namespace`): Arguments that include those of [`add_drawing_arguments`].
        pipeline ([`PFGMPPPipeline`]): The pipeline.

    Returns:
        `dict`: Arguments of [`PFGMPPPipeline.__call__`].

    Raises:
        ValueError: The pipeline does not have this class.
    """
    from ..scheduler_config import get_default_steps

    settings: dict[str, Any] = {
        "num_inference_steps": args.num_inference_steps or get_default_steps(pipeline.scheduler),
        "guidance_scale": args.guidance_scale,
    }
    if args.class_label is not None:
        settings["class_labels"] = choose_class(pipeline, args.class_label)
    return settings


def choose_class(pipeline: PFGMPPPipeline, text: str) -> int:
    """
    Find a class by its name or its number. A name counts before a number.

    Args:
        pipeline ([`PFGMPPPipeline`]): The model.
        text (`str`): The name, of which the case counts only where it must, or the number.

    Returns:
        `int`: The number of the class.

    Raises:
        ValueError: There is no such class, or several have this name.
    """
    from ..conditioning import find_classes
    from ..generation import list_classes

    classes = list_classes(pipeline)
    if not classes:
        raise ValueError(f"--class-label is {text!r}, but this model is unconditional: leave it out.")
    found = find_classes(text, classes)
    if not found and text.isdecimal() and int(text) in classes:
        found = [int(text)]
    if len(found) == 1:
        return found[0]
    listed = [
        name if name == str(number) else f"{number} ({name})"
        for number, name in list(classes.items())[:MAX_LISTED]
    ]
    more = ", ..." if len(classes) > MAX_LISTED else ""
    raise ValueError(f"--class-label must be one of {', '.join(listed)}{more}, but is {text!r}.")


def get_scheduler_settings(args: argparse.Namespace) -> dict[str, Any]:
    """
    Return the entries of the scheduler's configuration that the command line replaces.

    Args:
        args (`argparse.Namespace`): Arguments that include those of [`add_drawing_arguments`].

    Returns:
        `dict`: Arguments of [`PFGMPPScheduler`]; without those that were not given.
    """
    spacing = ("sigma_schedule", "rho", "sigma_min")
    names = ("solver_type", *spacing)
    settings = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if not settings.keys().isdisjoint(spacing):
        settings["sigmas"] = None  # a spacing that is asked for comes before levels that the model lists
    return settings


def load_pipeline(
    model: str, variant: str | None = None, restores: bool = False, **scheduler_settings: Any
) -> Any:
    """
    Load a pipeline onto the GPU of this process, or onto the CPU if there is none.

    Args:
        model (`str`): A Hub id or a pipeline folder.
        variant (`str`, *optional*): Variant of its weights.
        restores (`bool`, defaults to `False`): Whether it must restore images, instead of generating them.
        scheduler_settings: Entries of the scheduler's configuration to replace.

    Returns:
        [`PFGMPPPipeline`] or [`PFGMPPRestorationPipeline`]: The pipeline.

    Raises:
        OSError: There is no such model.
        ValueError: The model is damaged, has no such weights, is another kind of pipeline or has weights
            that are not finite, or a setting is out of range.
    """
    import torch
    from diffusers import DiffusionPipeline

    from ..hub.reading import check_model_name
    from ..records.weights import check_finite, list_folder_variants
    from ..scheduling_pfgmpp import PFGMPPScheduler

    check_model_name(model)
    if Path(model).is_dir():
        _check_variant(model, variant, list_folder_variants(model))
    try:
        pipeline = DiffusionPipeline.from_pretrained(model, variant=variant)
    except (OSError, ValueError) as error:
        if not Path(model).is_dir():
            _check_variant(model, variant, _list_remote_variants(model))
        if "stacktrace" in str(error):  # diffusers has logged it where the Hub gives no answer
            raise OSError(
                f"{model} cannot be loaded: there is no such folder, and the Hub has no such model or does"
                " not answer."
            ) from None
        if isinstance(error, OSError) or model in str(error):
            raise
        raise ValueError(f"{model} cannot be loaded: {error}") from None
    except Exception as error:  # damaged weights, or a configuration that its class does not accept
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"{model} cannot be loaded: {reason}") from None
    _check_kind(pipeline, model, restores)
    check_finite(pipeline, model)
    own = pipeline.scheduler.config.get("solver_type")
    asked = scheduler_settings.get("solver_type", own)
    if asked != own and "consistency" in (asked, own):
        raise ValueError(
            f"--solver-type must be that of {model}, {own}, but is {asked}: consistency models and denoisers"
            " are networks of different kinds."
        )
    pipeline.scheduler = PFGMPPScheduler.from_config(pipeline.scheduler.config, **scheduler_settings)
    if "rho" in scheduler_settings and pipeline.scheduler.config.sigma_schedule != "karras":
        raise ValueError(
            f"--rho has no effect on the {pipeline.scheduler.config.sigma_schedule} spacing of the steps:"
            " leave it out, or add --sigma-schedule karras."
        )
    if torch.cuda.is_available():
        pipeline.to(f"cuda:{os.environ.get('LOCAL_RANK', 0)}")
    return pipeline


def _check_kind(pipeline: Any, model: str, restores: bool) -> None:
    """Refuse a pipeline that does something else than generate images, or than restore them."""
    from ..pipeline_pfgmpp import PFGMPPPipeline
    from ..pipeline_pfgmpp_restoration import PFGMPPRestorationPipeline

    kind: Any = PFGMPPRestorationPipeline if restores else PFGMPPPipeline
    if not isinstance(pipeline, (PFGMPPPipeline, PFGMPPRestorationPipeline)):
        raise ValueError(f"{model} is a {type(pipeline).__name__}, but must be a {kind.__name__}.")
    is_conditioned = bool(pipeline.unet.config.get("condition_channels"))
    if not restores and (is_conditioned or not isinstance(pipeline, kind)):
        raise ValueError(
            f"{model} restores images and generates none: use `pfgmpp restore` or"
            " `pfgmpp evaluate-restoration`."
        )
    if restores and not isinstance(pipeline, kind):
        raise ValueError(f"{model} generates images and restores none: use `pfgmpp sample`.")


def _list_remote_variants(model: str) -> list[str | None]:
    """List the variants of a model on the Hub; none if the Hub does not answer."""
    from huggingface_hub import HfApi

    from ..records.weights import list_variants

    try:
        names = HfApi().list_repo_files(model)
    except Exception:  # the reason why the model could not be loaded is reported instead
        return []
    return list_variants(name.removeprefix("unet/") for name in names if name.startswith("unet/"))


def _check_variant(model: str, variant: str | None, variants: Sequence[str | None]) -> None:
    """Refuse a variant that a model does not have, or no variant where it has nothing else."""
    if not variants or variant in variants:
        return
    named = [name for name in variants if name is not None]
    if variant is None:
        raise ValueError(
            f"{model} holds weights only as the variant {' or '.join(named)}: add --variant {named[0]}."
        )
    if not named:
        raise ValueError(f"{model} has no variants of its weights, so leave out --variant {variant}.")
    raise ValueError(f"--variant must be {' or '.join(named)} for {model}, but is {variant!r}.")


def load_real_images(data: str, split: str, pipeline: PFGMPPPipeline) -> torch.Tensor:
    """
    Load real images with the size, the channels and the range of a model's images, in 8 bits.

    Classes are not read.

    Args:
        data (`str`): The data set: a folder or a Hub id.
        split (`str`): Its split.
        pipeline ([`PFGMPPPipeline`]): The model.

    Returns:
        `torch.Tensor` of shape `(M, C, H, W)`, uint8: The images.

    Raises:
        OSError: There is no such data set.
        ValueError: It has no such split, or no images that can be read as the model's.
    """
    from accelerate import PartialState

    from ..data import convert_to_bytes, load_images, open_dataset

    channels = pipeline.image_channels
    state = PartialState(cpu=pipeline.device.type == "cpu")
    with state.main_process_first():  # it fills the cache that the others read
        dataset = open_dataset(data, split=split)
        value_range = choose_value_range(dataset, pipeline, channels=channels)
        real = load_images(
            dataset, pipeline.image_size, labels=False, channels=channels, value_range=value_range
        )
    return convert_to_bytes(real.images, real.value_range)


def choose_value_range(dataset: Any, pipeline: Any, **options: Any) -> tuple[float, float] | None:
    """
    Choose the values of black and white in images that are compared with those of a model.

    Args:
        dataset (`datasets.Dataset`): The data set.
        pipeline ([`PFGMPPPipeline`] or [`PFGMPPRestorationPipeline`]): The model.
        options: How the data set is read, as for [`ImageDecoder`].

    Returns:
        `tuple[float, float]` or `None`: The model's range; None where integers have that of their depth.
    """
    from ..data import ImageDecoder
    from ..pixels import EIGHT_BITS, SIXTEEN_BITS

    value_range = pipeline.config.get("value_range")
    depth = ImageDecoder(dataset, pipeline.image_size, **options).value_range
    if value_range is not None and depth is not None:
        is_depth = tuple(value_range) in (EIGHT_BITS, SIXTEEN_BITS)
        if is_depth or value_range[1] > depth[1]:
            return None
    return value_range


def load_metrics(
    pipeline: PFGMPPPipeline,
    features: str,
    data: str,
    split: str,
    metrics: Sequence[str] = ("fid",),
    trust_remote_code: bool = False,
) -> ImageMetrics:
    """
    Load metrics for the samples of a model, which the processes measure together.

    Args:
        pipeline ([`PFGMPPPipeline`]): The model, on its device.
        features (`str`): The features, see [`~pipeline_pfgmpp.evaluation.load_features`].
        data (`str`): The data set of real images: a folder or a Hub id.
        split (`str`): Its split.
        metrics (`Sequence[str]`, defaults to `("fid",)`): Names of the metrics.
        trust_remote_code (`bool`, defaults to `False`): Whether a TorchScript program may run.

    Returns:
        [`~pipeline_pfgmpp.evaluation.ImageMetrics`]: The metrics.

    Raises:
        OSError: There are no such features or data.
        ValueError: The features, the data or the metrics do not fit the model.
    """
    from accelerate import PartialState

    from ..evaluation import ImageMetrics, load_features
    from ..evaluation.evaluate import gather_features

    if pipeline.makes_fields:
        raise ValueError("Features compare pictures, but this model makes fields of values without clipping.")
    check_image_size(features, pipeline)
    real_images = load_real_images(data, split, pipeline)
    state = PartialState(cpu=pipeline.device.type == "cpu")
    with state.main_process_first():  # it fills the cache that the others read
        extractor = load_features(features, pipeline.device, trust_remote_code)
        return ImageMetrics(extractor, real_images, metrics, gather_features)


def check_image_size(features: str, pipeline: PFGMPPPipeline) -> None:
    """
    Refuse a classifier of this package for images that it was not made for.

    Args:
        features (`str`): The value of `--features`.
        pipeline ([`PFGMPPPipeline`]): The model.

    Raises:
        ValueError: The model's images are of another size, or have another number of channels.
    """
    from ..evaluation.classifier import CLASSIFIERS, get_image_shape

    if features not in CLASSIFIERS:
        return
    expected = get_image_shape(features)
    shape = (pipeline.image_channels, *pipeline.image_size)
    if shape != expected:
        raise ValueError(
            "--features must be inception or another model that takes images of any size, because"
            f" {features} compares images of shape {expected} (channels, height, width), but these are of"
            f" shape {shape}."
        )


def check_card(model: str) -> None:
    """
    Refuse to write results into a model that is not a local folder with a card.

    Args:
        model (`str`): The model.

    Raises:
        ValueError: It has no `README.md` to write to.
    """
    if not Path(model, "README.md").is_file():
        raise ValueError(
            f"--write needs a local model folder with a README.md, but {model} is not such a folder."
        )


def check_dimensions(pipelines: Sequence[PFGMPPPipeline], dimensions: Sequence[float] | None) -> None:
    """
    Refuse `--D` for networks of which none is conditioned on D, and which therefore cannot follow it.

    Args:
        pipelines (`Sequence[PFGMPPPipeline]`): The models.
        dimensions (`Sequence[float]`, *optional*): The values of `--D`.

    Raises:
        ValueError: A network was trained at a single D, and other values were given.
    """
    if dimensions is None or any(pipeline.unet.config.get("d_conditioning") for pipeline in pipelines):
        return
    for pipeline in pipelines:
        own = pipeline.scheduler.config.D
        trained = math.inf if own is None else own
        if list(dimensions) != [trained]:
            asked = ",".join(f"{D:g}" for D in dimensions)
            raise ValueError(
                f"--D is {asked}, but this network was trained at D = {trained:g} only: leave it out, or use"
                " a network that is conditioned on D."
            )
