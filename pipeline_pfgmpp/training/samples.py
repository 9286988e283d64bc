"""Grids of samples that a run draws while it trains."""

import os
from pathlib import Path

import torch
from diffusers.utils import make_image_grid
from PIL import Image

from ..generation import list_classes, split_batches
from ..generation.generate import check_finite_images, round_to_bytes
from ..pictures.grid import PICTURE_MODES, to_pil
from ..pipeline_pfgmpp import PFGMPPPipeline


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


def draw_grid_of_samples(pipeline: PFGMPPPipeline, batch_size: int) -> Image.Image:
    """
    Draw four rows of samples, from the same noise each time.

    There is one column per class, of at most ten classes that are spread evenly over all of them, or
    eight columns without classes. Channels that make no picture are shown side by side in grey.

    Args:
        pipeline ([`PFGMPPPipeline`]): The pipeline.
        batch_size (`int`): Images per call of the pipeline; more than 64 count as 64.

    Returns:
        `PIL.Image.Image`: The grid.

    Raises:
        ValueError: A sample is NaN or infinite.
    """
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
    images = torch.cat(tensors)
    if images.shape[1] not in PICTURE_MODES:
        images = torch.cat(images.split(1, dim=1), dim=-1)
    return make_image_grid(to_pil(images), rows=ROWS, cols=columns)


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
