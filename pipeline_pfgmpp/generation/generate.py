"""
Many images, one a seed: the same for a seed whatever the number of processes, and continued where
they were interrupted.
"""

from collections.abc import Iterator

import torch
from diffusers import DiffusionPipeline
from tqdm.auto import tqdm

from .disturbances import inject_noise


def generate(
    pipeline: DiffusionPipeline,
    seeds: list[int],
    batch_size: int,
    desc: str | None = "Sampling",
    noise: float = 0.0,
    **settings,
) -> Iterator[tuple[list[int], torch.Tensor]]:
    """
    Images for seeds, a batch at a time; each depends on its seed alone.

    Args:
        pipeline ([`PFGMPPPipeline`]): What generates.
        seeds (`list[int]`): One an image.
        batch_size (`int`): Images at a time.
        desc (`str`, *optional*, defaults to `"Sampling"`): What stands before the progress bar;
            with None there is none.
        noise (`float`, defaults to 0): alpha of the noise that [`inject_noise`] disturbs the
            sampling with.
        settings: Further arguments of the pipeline's call, such as `num_inference_steps`.

    Yields:
        `tuple[list[int], torch.Tensor]`: The seeds of a batch, and its images of shape `(batch, C,
            H, W)` as uint8 on the CPU.

    Raises:
        ValueError: `batch_size` is not positive, or an argument does not fit the pipeline.
    """
    batches = split_batches(seeds, batch_size)
    pipeline.set_progress_bar_config(disable=True)
    with tqdm(total=len(seeds), desc=desc, unit="image", disable=desc is None) as progress:
        for batch in batches:
            generators = [torch.Generator().manual_seed(seed) for seed in batch]
            disturbed = inject_noise(pipeline, batch, generators, noise, settings.get("D")) if noise else {}
            images = pipeline(
                len(batch), generator=generators, output_type="pt", **disturbed, **settings
            ).images
            yield batch, (images * 255).round().to("cpu", torch.uint8)
            progress.update(len(batch))


def split_batches(seeds, batch_size):
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be positive, but is {batch_size}.")
    return [seeds[i : i + batch_size] for i in range(0, len(seeds), batch_size)]
