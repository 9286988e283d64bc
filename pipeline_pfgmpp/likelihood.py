# Copyright 2026 The pipeline_pfgmpp authors. Licensed under the Apache License, Version 2.0.
r"""
Likelihood by the change of volume along field lines (https://huggingface.co/papers/1810.01367).

Along $\frac{dx}{d\sigma} = (x - F(x, \sigma))/\sigma$ the log-density changes by minus the divergence,
and at $\sigma_{max}$ it is the Student-t prior's, at every D:

$$\log p(x_{\sigma_{min}}) = \log p_{prior}(x_{\sigma_{max}})
  + \int_{\sigma_{min}}^{\sigma_{max}} \frac{N - \mathrm{tr}\,\partial F / \partial x}{\sigma}\, d\sigma.$$

The trace is $\sum_k v_k^T \frac{\partial F}{\partial x} v_k$ over the unit vectors $v_k$, or, without
bias, the same for a single $v$ of random signs.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.utils import BaseOutput


EIGHT_BIT_LEVELS = 256


@dataclass
class PFGMPPLikelihoodOutput(BaseOutput):
    """
    Output of [`PFGMPPPipeline.log_likelihood`].

    Args:
        log_likelihood (`torch.Tensor` of shape `(batch,)`): Log-density of the images in [-1, 1]^N,
            in nats; that of their latents if the pipeline has an autoencoder.
        bits_per_dim (`torch.Tensor` of shape `(batch,)`): Bits per dimension of the images at the levels of
            their data, see [`count_levels`]; at 256 levels of their range for data without levels. Of fields
            and, with an autoencoder, of latents, bits per value by their density as the network sees them.
        standard_error (`torch.Tensor` of shape `(batch,)`): Standard error of `log_likelihood` over
            the repeats, in nats; NaN if there is only one.
    """

    log_likelihood: torch.Tensor
    bits_per_dim: torch.Tensor
    standard_error: torch.Tensor


def count_levels(value_range: Any, dequantize: bool) -> int:
    """
    Count the levels of the data that a pipeline is for.

    Args:
        value_range (`tuple[float, float]`, *optional*): The pipeline's.
        dequantize (`bool`): Whether there must be levels.

    Returns:
        `int`: 256 without a range; the number of integers in it, such as 65536 in (0, 65535), if it lies
            between integers and holds at least 256. Other data are floats without levels: 256.

    Raises:
        ValueError: There must be levels, but there are none.
    """
    if value_range is None:
        return EIGHT_BIT_LEVELS
    low, high = map(float, value_range)
    if low.is_integer() and high.is_integer() and high - low + 1 >= EIGHT_BIT_LEVELS:
        return int(high - low) + 1
    if dequantize:
        raise ValueError(
            f"`dequantize` must be False for data with values from {low:g} to {high:g}, which have no levels."
        )
    return EIGHT_BIT_LEVELS


def spread_levels(
    x: torch.Tensor, generator: torch.Generator | None, levels: int = EIGHT_BIT_LEVELS
) -> torch.Tensor:
    """
    Spread each of the n levels of images uniformly over its width, 2 / (n - 1).

    Args:
        x (`torch.Tensor` of shape `(batch, channels, height, width)`): Images in [-1, 1].
        generator (`torch.Generator`, *optional*): Source of randomness.
        levels (`int`, defaults to 256): The number n.

    Returns:
        `torch.Tensor`: The images with uniform noise, of the same shape and type.
    """
    device = x.device if generator is None else generator.device
    uniform = torch.rand(x.shape, generator=generator, device=device, dtype=x.dtype)
    return x + ((uniform - 0.5) / ((levels - 1) / 2)).to(x.device)


def make_probes(x: torch.Tensor, trace: str, generator: torch.Generator | None) -> torch.Tensor:
    """
    Make the vectors v with which the trace is computed.

    Args:
        x (`torch.Tensor` of shape `(batch, channels, height, width)`): The images.
        trace (`str`): `"exact"` for all unit vectors, `"hutchinson"` for one vector of random signs.
        generator (`torch.Generator`, *optional*): Source of randomness.

    Returns:
        `torch.Tensor`: The vectors, each in a shape that broadcasts over the images.
    """
    if trace == "exact":
        return torch.eye(x[0].numel(), device=x.device, dtype=x.dtype).view(-1, 1, *x.shape[1:])
    device = x.device if generator is None else generator.device
    bits = torch.randint(2, (1, *x.shape), generator=generator, device=device, dtype=x.dtype)
    return (bits * 2 - 1).to(x.device)


def integrate_divergence(
    predict: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    scheduler: Any,
    x: torch.Tensor,
    probes: torch.Tensor,
    timesteps: Iterable[torch.Tensor],
    D: float | torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Follow field lines up to the prior, and integrate the divergence along them.

    Args:
        predict (`Callable`): Returns the network's raw output for a state x and a timestep.
        scheduler ([`PFGMPPScheduler`]): The scheduler, set to Heun's method in reverse.
        x (`torch.Tensor` of shape `(batch, channels, height, width)`): States at the smallest noise
            level.
        probes (`torch.Tensor`): The vectors for the trace, as from [`make_probes`].
        timesteps (`Iterable[torch.Tensor]`): The scheduler's timesteps.
        D (`float`, `torch.Tensor` or `None`): The augmented dimension of the states.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: The states at the largest noise level, and the integral
            of shape `(batch,)`.
    """
    dtype = torch.float32 if x.device.type == "mps" else torch.float64  # Metal has no float64
    volume = torch.zeros(len(x), device=x.device, dtype=dtype)
    first = None
    for index, t in enumerate(timesteps):
        sigma = scheduler.sigmas[index]
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            model_output = predict(x, t)
            denoised = scheduler.precondition_outputs(x, model_output, sigma, D)
            divergence = x.new_full((len(x),), x[0].numel())
            for number, probe in enumerate(probes, 1):
                product = (denoised * probe).sum()
                (gradient,) = torch.autograd.grad(product, x, retain_graph=number < len(probes))
                divergence = divergence - (gradient * probe).flatten(1).sum(1)
        if first is None:
            first = divergence
        else:
            # The trapezoid that matches Heun's step; in ln(sigma) the integrand is bounded.
            volume += (sigma / scheduler.sigmas[index - 1]).log() * (first + divergence) / 2
            first = None
        x = scheduler.step(model_output.detach(), t, x.detach(), return_dict=False, D=D)[0]
    return x, volume


def summarize_estimates(
    estimates: torch.Tensor, dims: int, levels: int | None = EIGHT_BIT_LEVELS
) -> PFGMPPLikelihoodOutput:
    """
    Average repeated estimates of the log-likelihood.

    Args:
        estimates (`torch.Tensor` of shape `(repeats, batch)`): The estimates, in nats.
        dims (`int`): The N of the images.
        levels (`int` or `None`, defaults to 256): Levels of their data; None for latents, whose density is
            what it is.

    Returns:
        [`PFGMPPLikelihoodOutput`]: Nats, bits per dimension and the standard error.
    """
    mean = estimates.mean(0)
    standard_error = torch.full_like(mean, math.nan)
    if len(estimates) > 1:
        standard_error = estimates.std(0) / math.sqrt(len(estimates))
    level_bits = 0.0 if levels is None else math.log2((levels - 1) / 2)
    return PFGMPPLikelihoodOutput(
        log_likelihood=mean,
        bits_per_dim=level_bits - mean / (dims * math.log(2)),
        standard_error=standard_error,
    )
