"""What several commands share: arguments for drawing and measuring, and what is loaded for them."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    import torch

    from ..evaluation import ImageMetrics
    from ..pipeline_pfgmpp import PFGMPPPipeline


def parse_numbers(text: str) -> list[float]:
    """
    Parse numbers separated by commas.

    Args:
        text (`str`): Such as `"16,128,inf"`.

    Returns:
        `list[float]`: The numbers; none if the text is empty.

    Raises:
        argparse.ArgumentTypeError: A part is not a number.
    """
    numbers = []
    for part in filter(None, text.split(",")):
        try:
            number = float(part)
        except ValueError:
            number = math.nan
        if math.isnan(number):
            raise argparse.ArgumentTypeError(
                f"expected numbers separated by commas, such as 16,128,inf, but got {text!r}"
            )
        numbers.append(number)
    return numbers


def add_drawing_arguments(parser: argparse.ArgumentParser) -> None:
    """
    Add the arguments that say how images are drawn.

    Args:
        parser (`argparse.ArgumentParser`): The parser of a command that draws images.
    """
    parser.add_argument(
        "--num-inference-steps", type=int, default=18, help="steps of the solver (default: %(default)s)"
    )
    parser.add_argument(
        "--solver-type", help="heun, euler, dpmpp_2m, dpmpp_3m or dpmpp_2m_sde (default: the model's)"
    )
    parser.add_argument("--rho", type=float, help="exponent of the step spacing (default: the model's)")
    parser.add_argument(
        "--sigma-schedule", help="spacing of the steps: karras or exponential (default: the model's)"
    )
    parser.add_argument(
        "--sigma-min", type=float, help="smallest noise level of the steps (default: the model's)"
    )
    parser.add_argument(
        "--class-label", type=int, help="class of all images (default: drawn at random for each image)"
    )
    parser.add_argument(
        "--guidance-scale",
        type=float,
        default=1.0,
        help="scale of guidance; 1 means no guidance (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the first image (default: %(default)s)")
    parser.add_argument(
        "--batch-size", type=int, default=64, help="images per batch and process (default: %(default)s)"
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
        help="fashion-mnist, inception, a file with Inception's weights or a TorchScript program (a path,"
        " or org/name/file on the Hub), or a vision model of transformers such as facebook/dinov2-large"
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


def add_measuring_arguments(parser: argparse.ArgumentParser) -> None:
    """
    Add the arguments that say what images are measured against.

    Args:
        parser (`argparse.ArgumentParser`): The parser of a command that measures images.
    """
    parser.add_argument("--data", required=True, help="data set of real images: a folder or a Hub id")
    parser.add_argument(
        "--split", default="test", help="split of the data set to measure against (default: %(default)s)"
    )
    add_features_arguments(parser)


def get_call_settings(args: argparse.Namespace) -> dict[str, Any]:
    """
    Return the command line's arguments for the call of the pipeline.

    Args:
        args (`argparse.Namespace`): Arguments that include those of [`add_drawing_arguments`].

    Returns:
        `dict`: Arguments of [`PFGMPPPipeline.__call__`].
    """
    settings = {"num_inference_steps": args.num_inference_steps, "guidance_scale": args.guidance_scale}
    if args.class_label is not None:
        settings["class_labels"] = args.class_label
    return settings


def get_scheduler_settings(args: argparse.Namespace) -> dict[str, Any]:
    """
    Return the entries of the scheduler's configuration that the command line replaces.

    Args:
        args (`argparse.Namespace`): Arguments that include those of [`add_drawing_arguments`].

    Returns:
        `dict`: Arguments of [`PFGMPPScheduler`]; without those that were not given.
    """
    names = ("solver_type", "sigma_schedule", "rho", "sigma_min")
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


def load_pipeline(model: str, **scheduler_settings: Any) -> PFGMPPPipeline:
    """
    Load a pipeline onto the GPU of this process, or onto the CPU if there is none.

    Args:
        model (`str`): A Hub id or a pipeline folder.
        scheduler_settings: Entries of the scheduler's configuration to replace.

    Returns:
        [`PFGMPPPipeline`]: The pipeline.

    Raises:
        OSError: There is no such model.
        ValueError: A setting is out of range.
    """
    import torch
    from diffusers import DiffusionPipeline

    from ..scheduling_pfgmpp import PFGMPPScheduler

    pipeline = DiffusionPipeline.from_pretrained(model)
    pipeline.scheduler = PFGMPPScheduler.from_config(pipeline.scheduler.config, **scheduler_settings)
    if torch.cuda.is_available():
        pipeline.to(f"cuda:{os.environ.get('LOCAL_RANK', 0)}")
    return pipeline


def load_real_images(data: str, split: str, pipeline: PFGMPPPipeline) -> torch.Tensor:
    """
    Load real images with the size and the channels of a model's images.

    Args:
        data (`str`): The data set: a folder or a Hub id.
        split (`str`): Its split.
        pipeline ([`PFGMPPPipeline`]): The model.

    Returns:
        `torch.Tensor` of shape `(M, C, H, W)`, uint8: The images.

    Raises:
        OSError: There is no such data set.
        ValueError: It has no such split, or no images.
    """
    from accelerate import PartialState
    from datasets import load_dataset

    from ..data import load_images

    config = pipeline.unet.config
    state = PartialState(cpu=pipeline.device.type == "cpu")
    with state.main_process_first():  # it fills the cache that the others read
        dataset = load_dataset(data, split=split)
        return load_images(dataset, config.sample_size, channels=config.in_channels).images


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

    real_images = load_real_images(data, split, pipeline)
    state = PartialState(cpu=pipeline.device.type == "cpu")
    with state.main_process_first():  # it fills the cache that the others read
        extractor = load_features(features, pipeline.device, trust_remote_code)
        return ImageMetrics(extractor, real_images, metrics, gather_features)


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


def check_counts(args: argparse.Namespace) -> None:
    """
    Refuse to measure too few images.

    Args:
        args (`argparse.Namespace`): Arguments that include `--num-images` and `--groups`.

    Raises:
        ValueError: A distance would have fewer than two images, or there would be no value.
    """
    if args.num_images < 2 or args.groups < 1:
        raise ValueError("--num-images must be at least 2 and --groups at least 1.")
