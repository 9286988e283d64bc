"""Grids of samples that a run draws while it trains."""

import os
from pathlib import Path

import torch
from diffusers.utils import make_image_grid
from PIL import Image

from ..data import ImageDataset, ImageStream, convert_to_bytes, split_pairs
from ..generation import list_classes, split_batches
from ..generation.generate import check_finite_images, round_to_bytes
from ..pictures.grid import PICTURE_MODES, draw_grid, to_pil
from ..pipeline_pfgmpp import PFGMPPPipeline
from ..pixels import EIGHT_BITS
from .config import TrainingConfig


ROWS = 4
COLUMNS = 8  # of a network without classes
MOST_CLASSES = 10
LARGEST_BATCH = 64


def locate_grid(output_dir: str | os.PathLike, step: int) -> Path:
    """
    Return the path of the sample grid of a step.

    Args:
        output_dir (`str` or `os.PathLike`): The run's folder.
        step (`int`): Number of optimisation steps done.

    Returns:
        `Path`: The PNG file.
    """
    return Path(output_dir) / "samples" / f"step-{step:07d}.png"


def choose_shown_pairs(
    data: ImageDataset | ImageStream, config: TrainingConfig
) -> dict[str, torch.Tensor] | None:
    """
    Choose the pairs that all grids of a run show.

    Args:
        data ([`ImageDataset`] or [`ImageStream`]): The data for validation or, if there are none, those that
            are trained on.
        config ([`TrainingConfig`]): The settings.

    Returns:
        `dict[str, torch.Tensor]` or `None`: `images` and their `condition`, in the range of the data, and
            their `class_labels`, if there are any; None if the data are no pairs or there are no grids.
    """
    if not data.condition_channels or not config.sample_steps:
        return None
    pixels = data.pixels
    batch, _ = next(pixels.batches(ROWS, config.seed))
    images, condition = split_pairs(batch["images"], pixels.condition_channels)
    return {**batch, "images": images, **condition}


def draw_grid_of_samples(
    pipeline: PFGMPPPipeline, batch_size: int, pairs: dict[str, torch.Tensor] | None = None
) -> Image.Image:
    """
    Draw four rows of samples, from the same noise each time.

    There is one column per class, of at most ten classes that are spread evenly over all of them, or
    eight columns without classes. Channels that make no picture are shown side by side in grey. Of a
    network that restores images, each row shows a degraded image, the restored one and the truth.

    Args:
        pipeline ([`PFGMPPPipeline`]): The pipeline.
        batch_size (`int`): Images per call of the pipeline; more than 64 count as 64.
        pairs (`dict[str, torch.Tensor]`, *optional*): From [`choose_shown_pairs`].

    Returns:
        `PIL.Image.Image`: The grid.

    Raises:
        ValueError: A sample is NaN or infinite.
    """
    if pairs is not None:
        return _draw_restored(pipeline, batch_size, pairs)
    classes = choose_columns(pipeline)
    columns = len(classes) or COLUMNS
    tensors = []
    for seeds in split_batches(list(range(ROWS * columns)), min(batch_size, LARGEST_BATCH)):
        output = pipeline(
            batch_size=len(seeds),
            class_labels=[classes[seed % columns] for seed in seeds] if classes else None,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            output_type="pt",
        )
        check_finite_images(output.images, seeds)
        tensors.append(round_to_bytes(output.images, pipeline.config.get("value_range")))
    return make_image_grid(to_pil(_arrange_channels(torch.cat(tensors))), rows=ROWS, cols=columns)


def _draw_restored(pipeline: PFGMPPPipeline, batch_size: int, pairs: dict[str, torch.Tensor]) -> Image.Image:
    """Draw a row per pair: the degraded image, the restored one and the truth."""
    value_range = pipeline.config.get("value_range")
    parts = []
    rows = list(range(len(pairs["images"])))
    for chosen in split_batches(rows, batch_size):
        options = {"class_labels": pairs["class_labels"][chosen]} if pipeline.num_classes else {}
        degraded = pairs["condition"][chosen]
        output = pipeline(
            image=degraded if value_range is None else degraded.float(),
            generator=[torch.Generator().manual_seed(row) for row in chosen],
            output_type="pt",
            **options,
        )
        check_finite_images(output.images, chosen)
        parts.append(round_to_bytes(output.images, value_range))
    known = value_range or EIGHT_BITS
    columns = [
        convert_to_bytes(pairs["condition"], known),
        torch.cat(parts),
        convert_to_bytes(pairs["images"], known),
    ]
    pictures = [to_pil(_arrange_channels(images)) for images in columns]
    if len({each[0].mode for each in pictures}) > 1:
        pictures = [[image.convert("RGB") for image in each] for each in pictures]
    in_rows = [image for row in zip(*pictures) for image in row]
    return draw_grid(in_rows, columns=len(pictures))


def _arrange_channels(images: torch.Tensor) -> torch.Tensor:
    """Put channels that make no picture side by side."""
    if images.shape[1] in PICTURE_MODES:
        return images
    return torch.cat(images.split(1, dim=1), dim=-1)


def choose_columns(pipeline: PFGMPPPipeline) -> list[int]:
    """
    Choose the classes that a grid shows.

    Args:
        pipeline ([`PFGMPPPipeline`]): The pipeline.

    Returns:
        `list[int]`: All classes if there are at most ten, else ten of them; none without classes.
    """
    if not pipeline.num_classes:
        return []
    classes = list(list_classes(pipeline))
    count = min(len(classes), MOST_CLASSES)
    return [classes[index * len(classes) // count] for index in range(count)]
