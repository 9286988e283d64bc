"""What sampling can be disturbed by: noise before each step, and weights rounded to few bits."""

import contextlib
from collections.abc import Iterator

import torch
from diffusers import DiffusionPipeline

from ..noise import sample_noise
from ..records.digests import derive_seed


def inject_noise(
    pipeline: DiffusionPipeline,
    seeds: list[int],
    generators: list[torch.Generator],
    noise: float,
    D: float | None = None,
) -> dict:
    r"""
    Disturbs the sampling as the PFGM++ paper does (https://huggingface.co/papers/2302.04265, sec. 6): before each step
    $x \leftarrow x + \alpha\,\sigma_i\,g$ with $g \sim \mathcal{N}(0, I)$. All else stays that of the seeds.

    Args:
        pipeline ([`PFGMPPPipeline`]): What generates.
        seeds (`list[int]`): One an image.
        generators (`list[torch.Generator]`): Those of the seeds, as the pipeline is given them.
        noise (`float`): alpha.
        D (`float`, *optional*): The augmented dimension, `inf` for infinity; by default the scheduler's.

    Returns:
        `dict`: Arguments of the pipeline's call.
    """
    config, device = pipeline.unet.config, pipeline.device
    height, width = (config.sample_size,) * 2 if isinstance(config.sample_size, int) else config.sample_size
    shape = (len(seeds), config.in_channels, height, width)
    others = [torch.Generator().manual_seed(derive_seed(seed, "injected noise")) for seed in seeds]

    def gaussian():
        return noise * sample_noise(shape, None, others, device)

    def before_the_next_step(pipe, index, timestep, tensors):
        if (index + 1) % pipe.scheduler.order == 0 and index + 1 < len(pipe.scheduler.timesteps):
            return {"latents": tensors["latents"] + pipe.scheduler.sigmas[index + 1] * gaussian()}
        return tensors

    prior = pipeline.scheduler.sample_noise(
        shape, generators, device, D=pipeline.scheduler.config.D if D is None else D
    )
    return {"latents": prior + gaussian(), "callback_on_step_end": before_the_next_step}


def quantize(module: torch.nn.Module, bits: int) -> None:
    """
    Rounds weights in place: uniform affine quantisation of each parameter tensor.

    Args:
        module (`torch.nn.Module`): The network.
        bits (`int`): Bits a weight.
    """
    for parameter in module.parameters():
        low, high = parameter.data.float().aminmax()
        step = ((high - low) / (2**bits - 1)).clamp_min(torch.finfo(torch.float32).tiny)
        rounded = ((parameter.data.float() - low) / step).round() * step + low
        parameter.data = rounded.to(parameter.dtype)


@contextlib.contextmanager
def quantize_temporarily(module: torch.nn.Module, bits: int | None) -> Iterator[None]:
    """
    Rounds weights as [`quantize`] does while the block runs.

    Args:
        module (`torch.nn.Module`): The network.
        bits (`int` or `None`): Bits a weight; None leaves them as they are.
    """
    kept = [parameter.data for parameter in module.parameters()]
    try:
        if bits is not None:
            quantize(module, bits)
        yield
    finally:
        for parameter, data in zip(module.parameters(), kept):
            parameter.data = data
