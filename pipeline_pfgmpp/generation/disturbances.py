r"""
Two ways to disturb sampling, from the PFGM++ paper (https://huggingface.co/papers/2302.04265,
sec. 6):

- noise: before each step $x \leftarrow x + \alpha\,\sigma_i\,g$ with $g \sim \mathcal{N}(0, I)$;
- rounding: each parameter tensor of the network takes $2^k$ evenly spaced values.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from diffusers import DiffusionPipeline

from ..conditioning import draw_classes, get_sample_size
from ..noise import sample_noise
from ..records.digests import derive_seed


def inject_noise(
    pipeline: DiffusionPipeline,
    seeds: list[int],
    generators: list[torch.Generator],
    noise: float,
    D: float | None = None,
    has_classes: bool = True,
) -> dict[str, Any]:
    r"""
    Prepare a call of the pipeline in which Gaussian noise disturbs every step.

    Before each step $x \leftarrow x + \alpha\,\sigma_i\,g$ with $g \sim \mathcal{N}(0, I)$
    (https://huggingface.co/papers/2302.04265, sec. 6). The noise has generators of its own, derived
    from the seeds, so that everything else is drawn as it would be without it.

    Args:
        pipeline ([`PFGMPPPipeline`]): The pipeline.
        seeds (`list[int]`): One seed per image.
        generators (`list[torch.Generator]`): The generators of these seeds that the pipeline is
            called with.
        noise (`float`): The factor alpha.
        D (`float`, *optional*): The augmented dimension, `inf` for infinity; by default the
            scheduler's.
        has_classes (`bool`, defaults to `True`): Whether the call is given its classes. If not, those of
            a conditional network are drawn here, since they come before the noise.

    Returns:
        `dict`: Arguments for the call of the pipeline, to be passed along with `generators`.
    """
    device = pipeline._execution_device
    config = pipeline.scheduler.config
    if D is None:
        D = config.get("D")
    shape = (len(seeds), pipeline.unet.config.in_channels, *get_sample_size(pipeline.unet))
    own_generators = [torch.Generator().manual_seed(derive_seed(seed, "injected noise")) for seed in seeds]

    def draw_noise() -> torch.Tensor:
        return noise * sample_noise(shape, None, own_generators, device)

    def disturb_next_step(pipe: DiffusionPipeline, index: int, timestep: Any, tensors: dict) -> dict:
        calls = index + 1
        completes_step = calls % pipe.scheduler.order == 0
        if not completes_step or calls == len(pipe.scheduler.timesteps):
            return tensors
        return {"latents": tensors["latents"] + pipe.scheduler.sigmas[calls] * draw_noise()}

    arguments: dict[str, Any] = {"callback_on_step_end": disturb_next_step}
    if pipeline.num_classes and not has_classes:
        names = pipeline.config.id2label
        arguments["class_labels"] = draw_classes(pipeline.unet, names, len(seeds), generators, device)
    limit = config.get("max_noise_norm")
    arguments["latents"] = sample_noise(shape, D, generators, device, max_norm=limit) + draw_noise()
    return arguments


def quantize(module: torch.nn.Module, bits: int, generator: torch.Generator | None = None) -> None:
    r"""
    Round weights in place.

    Each parameter tensor is rounded to $2^k$ evenly spaced values between its least and its largest.

    Args:
        module (`torch.nn.Module`): The network.
        bits (`int`): Bits per weight, k.
        generator (`torch.Generator`, *optional*): Source of randomness on the CPU. With it each weight is
            rounded up or down at random, so that its mean is the weight itself; by default to the nearest.
    """
    for parameter in module.parameters():
        weights = parameter.data.float()
        low, high = weights.aminmax()
        step = ((high - low) / (2**bits - 1)).clamp_min(torch.finfo(torch.float32).tiny)
        levels = (weights - low) / step
        if generator is None:
            levels = levels.round()
        else:
            chances = torch.rand(levels.shape, generator=generator).to(levels.device)
            levels = (levels + chances).floor().clamp_max(2**bits - 1)
        parameter.data = (levels * step + low).to(parameter.dtype)


@contextlib.contextmanager
def quantize_temporarily(
    module: torch.nn.Module, bits: int | None, generator: torch.Generator | None = None
) -> Iterator[None]:
    """
    Round weights as [`quantize`] does, and restore them at the end of the block.

    Args:
        module (`torch.nn.Module`): The network.
        bits (`int` or `None`): Bits per weight; with None the weights are not rounded.
        generator (`torch.Generator`, *optional*): As for [`quantize`].
    """
    originals = [parameter.data for parameter in module.parameters()]
    try:
        if bits is not None:
            quantize(module, bits, generator)
        yield
    finally:
        for parameter, original in zip(module.parameters(), originals):
            parameter.data = original
