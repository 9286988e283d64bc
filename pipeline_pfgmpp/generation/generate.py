"""Images for a list of seeds, each of which depends on its own seed alone."""

from collections.abc import Iterator
from typing import Any

import torch
from diffusers import DiffusionPipeline
from tqdm.auto import tqdm

from ..images import Standardization, find_deep_range, read_scale
from ..records.digests import derive_seed
from .disturbances import inject_noise


def generate(
    pipeline: DiffusionPipeline,
    seeds: list[int],
    batch_size: int,
    desc: str | None = "Sampling",
    noise: float = 0.0,
    class_weights: list[float] | None = None,
    **settings: Any,
) -> Iterator[tuple[list[int], torch.Tensor]]:
    """
    Generate one image per seed, a batch at a time.

    An image depends on its own seed, not on the batch that it is in.

    Args:
        pipeline ([`PFGMPPPipeline`]): The pipeline.
        seeds (`list[int]`): One seed per image.
        batch_size (`int`): Images per batch.
        desc (`str`, *optional*, defaults to `"Sampling"`): Label of the progress bar; with None no
            bar is shown.
        noise (`float`, defaults to 0): The factor alpha of the noise that disturbs each step, see
            [`inject_noise`].
        class_weights (`list[float]`, *optional*): How often each class is drawn, relative to the others; by
            default the pipeline draws all equally often.
        settings: Further arguments of the pipeline's call, such as `num_inference_steps`. A list of
            `class_labels` holds one class per seed.

    Yields:
        `tuple[list[int], torch.Tensor]`: The seeds of a batch, and its images of shape
            `(batch, C, H, W)` as uint8 on the CPU.

    Raises:
        ValueError: `batch_size` is not positive, an argument does not fit the pipeline, or an image has
            values that are not finite.
    """
    values = generate_values(pipeline, seeds, batch_size, desc, noise, class_weights, **settings)
    for batch, images in values:
        yield batch, round_to_bytes(images, pipeline.config.get("value_range"))


def generate_values(
    pipeline: DiffusionPipeline,
    seeds: list[int],
    batch_size: int,
    desc: str | None = "Sampling",
    noise: float = 0.0,
    class_weights: list[float] | None = None,
    **settings: Any,
) -> Iterator[tuple[list[int], torch.Tensor]]:
    """
    Generate images as [`generate`] does, without rounding them.

    Args:
        pipeline, seeds, batch_size, desc, noise, class_weights, settings: As for [`generate`].

    Yields:
        `tuple[list[int], torch.Tensor]`: The seeds of a batch, and its images of shape
            `(batch, C, H, W)` as the pipeline returns them for `output_type="pt"`.

    Raises:
        ValueError: As for [`generate`].
    """
    batches = split_batches(seeds, batch_size)
    pipeline.set_progress_bar_config(disable=True)
    labels = settings.get("class_labels")
    if isinstance(labels, list):
        check_class_count(labels, seeds)
    start = 0
    with tqdm(total=len(seeds), desc=desc, unit="image", disable=desc is None) as progress:
        for batch in batches:
            generators = [torch.Generator().manual_seed(seed) for seed in batch]
            if class_weights is not None:
                settings["class_labels"] = [draw_class(class_weights, seed) for seed in batch]
            elif isinstance(labels, list):
                settings["class_labels"] = labels[start : start + len(batch)]
            disturbance = {}
            if noise:
                has_classes = settings.get("class_labels") is not None
                D = settings.get("D")
                disturbance = inject_noise(pipeline, batch, generators, noise, D, has_classes)
            options = {**settings, **disturbance}
            output = pipeline(len(batch), generator=generators, output_type="pt", **options)
            check_finite_images(output.images, batch)
            yield batch, output.images
            start += len(batch)
            progress.update(len(batch))


def check_class_count(class_labels: list, seeds: list[int]) -> None:
    """
    Refuse a list of classes that does not hold one per image.

    Args:
        class_labels (`list`): The classes.
        seeds (`list[int]`): The seeds of the images.

    Raises:
        ValueError: There are more or fewer.
    """
    if len(class_labels) != len(seeds):
        raise ValueError(
            f"`class_labels` must hold one class for each of {len(seeds)} seeds, but holds"
            f" {len(class_labels)}."
        )


def draw_class(class_weights: list[float], seed: int) -> int:
    """
    Draw the class of an image.

    Args:
        class_weights (`list[float]`): How often each class is drawn, relative to the others.
        seed (`int`): The seed of the image, whose class does not depend on how its noise is drawn.

    Returns:
        `int`: The number of the class.
    """
    rng = torch.Generator().manual_seed(derive_seed(seed, "class"))
    return int(torch.multinomial(torch.tensor(class_weights, dtype=torch.float64), 1, generator=rng))


SHOWN_DEVIATIONS = 3.0  # from the mean of fields to black and white in their pictures


def round_to_bytes(images: torch.Tensor, value_range: Any) -> torch.Tensor:
    """
    Convert images of a pipeline to uint8 on the CPU.

    Args:
        images (`torch.Tensor`): Finite images in [0, 1], or in the range of the data's values.
        value_range (`list[float]` or `dict`, *optional*): That range, or the standardisation of fields, of
            which black and white are three standard deviations from the mean.

    Returns:
        `torch.Tensor`, uint8: The images.
    """
    scale = read_scale(value_range)
    if isinstance(scale, Standardization):
        images = (scale.standardize(images) / SHOWN_DEVIATIONS / 2 + 0.5).clamp(0, 1)
    elif scale is not None:
        low, high = scale
        images = (images - low) / (high - low)
    return (images * 255).round().to("cpu", torch.uint8)


def round_to_sixteen_bits(images: torch.Tensor, value_range: tuple[float, float]) -> torch.Tensor:
    """
    Convert images of a pipeline for deep data to uint16 on the CPU, as its PIL images are.

    Args:
        images (`torch.Tensor`): Finite images in the range of the data's values.
        value_range (`tuple[float, float]`): That range.

    Returns:
        `torch.Tensor`, uint16: The images, in the units of the data if these fit 16 bits.
    """
    low, high = value_range
    first, last = find_deep_range(value_range)
    levels = (images - low) / (high - low) * (last - first) + first
    return levels.round().cpu().to(torch.uint16)


def check_finite_images(images: torch.Tensor, seeds: list[int]) -> None:
    """
    Refuse images with values that are not finite.

    Args:
        images (`torch.Tensor`): The images.
        seeds (`list[int]`): Their seeds, which the error names.

    Raises:
        ValueError: A value is NaN or infinite.
    """
    if not bool(images.isfinite().all()):
        raise ValueError(
            f"The images of seeds {seeds[0]} to {seeds[-1]} hold NaN or infinity, so they are not stored:"
            " with these settings the network does not denoise."
        )


def split_batches(seeds: list[int], batch_size: int) -> list[list[int]]:
    """
    Split seeds into batches, of which the last may be smaller.

    Args:
        seeds (`list[int]`): The seeds.
        batch_size (`int`): Seeds per batch.

    Returns:
        `list[list[int]]`: The batches, in the order of the seeds.

    Raises:
        ValueError: `batch_size` is not positive.
    """
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be positive, but is {batch_size}.")
    return [seeds[start : start + batch_size] for start in range(0, len(seeds), batch_size)]
