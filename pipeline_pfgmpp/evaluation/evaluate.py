"""Metrics of a model's samples at each augmented dimension D, and of other real images."""

import math
import os
from pathlib import Path
from typing import Any

import torch

from ..data import convert_to_bytes
from ..generation import load_samples, sample_to_files
from ..images import find_deep_range
from ..pipeline_pfgmpp import PFGMPPPipeline
from ..records.dimensions import format_dimension
from .metrics import ImageMetrics
from .reports import round_figure


def choose_dimensions(pipeline: PFGMPPPipeline, dimensions: list[float] | None = None) -> list[float]:
    """
    Choose the augmented dimensions to measure a model at.

    Args:
        pipeline ([`PFGMPPPipeline`]): The model.
        dimensions (`list[float]`, *optional*): The dimensions asked for; `inf` is infinity.

    Returns:
        `list[float]`: The dimensions asked for if the network is conditioned on D; otherwise, and by
            default, only the D of its scheduler.
    """
    if dimensions and pipeline.unet.config.get("d_conditioning"):
        return dimensions
    D = pipeline.scheduler.config.D
    return [math.inf if D is None else D]


def check_num_images(num_images: int, num_processes: int) -> None:
    """
    Refuse to share fewer images than there are processes.

    Args:
        num_images (`int`): Images to share.
        num_processes (`int`): Number of processes.

    Raises:
        ValueError: A process would have no image.
    """
    if num_images < num_processes:
        raise ValueError(
            f"`num_images` must be at least {num_processes}, one image per process, but is {num_images}."
        )


def evaluate(
    pipeline: PFGMPPPipeline,
    metrics: ImageMetrics,
    dimensions: list[float] | None,
    output: str | os.PathLike,
    num_images: int = 10_000,
    num_groups: int = 1,
    first_seed: int = 0,
    batch_size: int = 64,
    command: str | None = None,
    **settings: Any,
) -> list[dict[str, Any]]:
    """
    Generate images at each D and measure them.

    The processes share the work. Interrupted runs resume: images that are on disk are not generated
    again.

    Args:
        pipeline ([`PFGMPPPipeline`]): The model, on its device.
        metrics ([`ImageMetrics`]): The metrics.
        dimensions (`list[float]`, *optional*): Augmented dimensions, `inf` for infinity, for a
            network that is conditioned on D; any other network is measured at the D of its scheduler.
        output (`str` or `os.PathLike`): Folder for the images, with one folder per D.
        num_images (`int`, defaults to 10,000): Images per value.
        num_groups (`int`, defaults to 1): Values per metric, each from images of its own.
        first_seed (`int`, defaults to 0): Seed of the first image.
        batch_size (`int`, defaults to 64): Images per batch and process.
        command (`str`, *optional*): The command that generates the images, recorded with them.
        settings: Further arguments of the pipeline's call.

    Returns:
        `list[dict]`: One entry per D: `D` as text, and by name of the metric its list of values.

    Raises:
        ValueError: The folder holds images of other settings, there are fewer images than processes,
            or an argument does not fit the pipeline.
    """
    from accelerate import PartialState

    state = PartialState(cpu=pipeline.device.type == "cpu")
    check_num_images(num_images, state.num_processes)
    entries = []
    for D in choose_dimensions(pipeline, dimensions):
        folder = Path(output) / f"D-{format_dimension(D)}"
        seeds = list(range(first_seed, first_seed + num_groups * num_images))
        sample_to_files(pipeline, seeds, folder, batch_size, command, D=D, **settings)
        entry: dict[str, Any] = {"D": format_dimension(D)}
        for start in range(0, len(seeds), num_images):
            group = seeds[start : start + num_images]
            with state.split_between_processes(group) as own:  # in order, so that gathering keeps it
                images, _ = load_samples(folder, own)
            if images.dtype == torch.uint16:
                images = convert_to_bytes(images, find_deep_range(pipeline.config.value_range))
            for name, value in metrics(images).items():
                entry.setdefault(name, []).append(round_figure(value))
        entries.append(entry)
    return entries


def evaluate_real(images: torch.Tensor, metrics: ImageMetrics, num_images: int, split: str) -> dict[str, Any]:
    """
    Measure other real images, for comparison.

    The processes share the work.

    Args:
        images (`torch.Tensor` of shape `(M, C, H, W)`, uint8): Real images.
        metrics ([`ImageMetrics`]): The metrics.
        num_images (`int`): Number of images to choose at random, always the same ones.
        split (`str`): Name of the split that the images belong to.

    Returns:
        `dict`: What was measured, as `images`, and by name of the metric a list of its value.

    Raises:
        ValueError: There are fewer images than processes.
    """
    from accelerate import PartialState

    state = PartialState()
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:num_images]
    check_num_images(len(chosen), state.num_processes)
    with state.split_between_processes(chosen) as own:
        values = metrics(images[own])
    entry: dict[str, Any] = {"images": f"{len(chosen):,} real images, {split} split"}
    return entry | {name: [round_figure(value)] for name, value in values.items()}


def gather_features(features: torch.Tensor) -> torch.Tensor:
    """
    Gather the features that all processes computed, for [`ImageMetrics`].

    Args:
        features (`torch.Tensor` of shape `(M, K)`): The features of this process.

    Returns:
        `torch.Tensor`: The features of all processes, on each of them.
    """
    from accelerate.utils import gather_object

    return torch.cat(gather_object([features]))
