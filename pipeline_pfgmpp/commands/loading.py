"""What several commands load, and the checks that it fits."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    import datasets
    import torch

    from ..evaluation import ImageMetrics
    from ..pipeline_pfgmpp import PFGMPPPipeline


# The D at which a network for any D is looked at, as far as it was trained there
DIMENSIONS = (16.0, 128.0, 2048.0, math.inf)


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
    from ..records.errors import get_first_line
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
        reason = get_first_line(error)
        raise ValueError(f"{model} cannot be loaded: {reason}") from None
    _check_kind(pipeline, model, restores)
    check_finite(pipeline, model)
    own = pipeline.scheduler.config.get("solver_type")
    asked = scheduler_settings.get("solver_type", own)
    if asked != own and "consistency" in (asked, own):
        raise ValueError(
            f"--solver-type must be that of {model}, {own}, but is {asked}: models of few calls and denoisers"
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


def load_real_images(
    data: str,
    split: str,
    pipeline: PFGMPPPipeline,
    dataset_config_name: str | None = None,
    class_name: str | None = None,
    label_column: str | None = None,
    crop: bool = False,
    **options: Any,
) -> torch.Tensor:
    """
    Load real images with the size, the channels and the range of a model's images, in 8 bits.

    Args:
        data (`str`): The data set: a folder or a Hub id.
        split (`str`): Its split.
        pipeline ([`PFGMPPPipeline`]): The model.
        dataset_config_name (`str`, *optional*): Configuration of the data set.
        class_name (`str`, *optional*): The class to which the images belong; by default classes are not read.
        label_column (`str`, *optional*): Column of the classes.
        crop (`bool`, defaults to `False`): Whether to cut a random place, always the same, out of each image,
            instead of shrinking it.
        options: Further options of [`~pipeline_pfgmpp.data.ImageDecoder`], such as `background`.

    Returns:
        `torch.Tensor` of shape `(M, C, H, W)`, uint8: The images.

    Raises:
        OSError: There is no such data set.
        ValueError: It has no such split or class, or no images that can be read as the model's.
    """
    from accelerate import PartialState

    from ..data import convert_to_bytes, load_images, open_dataset

    options = {"channels": pipeline.image_channels, "crop": crop, **options}
    state = PartialState(cpu=pipeline.device.type == "cpu")
    with state.main_process_first():  # it fills the cache that the others read
        dataset = open_dataset(data, dataset_config_name, split)
        value_range = choose_value_range(dataset, pipeline, **options)
        if class_name is not None:
            dataset = _select_class(dataset, class_name, label_column)
        real = load_images(dataset, pipeline.image_size, labels=False, value_range=value_range, **options)
    images = next(real.batches(len(real)))[0]["images"] if crop else real.images
    return convert_to_bytes(images, real.value_range)


def _select_class(dataset: datasets.Dataset, name: str, label_column: str | None) -> datasets.Dataset:
    """Return the rows of one class, which may be spelt otherwise in the data."""
    import torch

    from ..data.labels import find_label_column, match_class, read_labels

    column = find_label_column(dataset, label_column)
    if column is None:
        raise ValueError(
            f"--class-label compares images of {name!r} with those of the data, which name none."
        )
    labels = read_labels(dataset, column)
    classes = torch.tensor(match_class(name, labels.names), dtype=torch.int64)
    rows = torch.isin(labels.indices, classes).nonzero().flatten()
    if not len(rows):
        raise ValueError(f"--class-label: the data hold no image of the class {name!r}.")
    return dataset.select(rows.tolist())


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
    **reading: Any,
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
        reading: How the images are read, as for [`load_real_images`].

    Returns:
        [`~pipeline_pfgmpp.evaluation.ImageMetrics`]: The metrics.

    Raises:
        OSError: There are no such features or data.
        ValueError: The features, the data or the metrics do not fit the model.
    """
    from accelerate import PartialState

    from ..evaluation import ImageMetrics, load_features
    from ..evaluation.classifier import check_image_shape
    from ..evaluation.evaluate import gather_features
    from ..records.errors import get_first_line, is_out_of_memory

    if pipeline.makes_fields:
        raise ValueError("Features compare pictures, but this model makes fields of values without clipping.")
    try:
        check_image_shape(features, (pipeline.image_channels, *pipeline.image_size))
    except ValueError as error:
        raise ValueError(f"--features: {error}") from None
    real_images = load_real_images(data, split, pipeline, **reading)
    state = PartialState(cpu=pipeline.device.type == "cpu")
    try:
        with state.main_process_first():  # it fills the cache that the others read
            extractor = load_features(features, pipeline.device, trust_remote_code)
            return ImageMetrics(extractor, real_images, metrics, gather_features)
    except (ImportError, RuntimeError) as error:  # another version's program, or one for other images
        if is_out_of_memory(error):
            raise
        raise ValueError(f"--features {features} cannot be used: {get_first_line(error)}") from None


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


def list_trained_dimensions(
    pipelines: Sequence[PFGMPPPipeline], dimensions: Sequence[float] = DIMENSIONS
) -> list[float]:
    """
    List the augmented dimensions that all networks were trained for.

    Args:
        pipelines (`Sequence[PFGMPPPipeline]`): The models.
        dimensions (`Sequence[float]`, defaults to 16, 128, 2048 and infinity): Which of them to list.

    Returns:
        `list[float]`: Those between the smallest and the largest D of each network that is conditioned on D.
    """
    from ..conditioning import get_trained_range

    ranges = [get_trained_range(pipeline.unet, pipeline.scheduler) for pipeline in pipelines]
    return [D for D in dimensions if all(low <= D <= high for low, high in ranges)]


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
