# Copyright 2026 The pipeline_pfgmpp authors. Licensed under the Apache License, Version 2.0.
r"""
The parts that DDPM++, NCSN++ and ADM are made of.

A block computes $y = s\,\bigl(\mathrm{skip}(x) + f(x, e)\bigr)$ from features $x$ and an embedding
$e$ of the noise level, the class and D, with $s = \sqrt{1/2}$ in DDPM++ and NCSN++
(https://huggingface.co/papers/2011.13456) and $s = 1$ in ADM
(https://huggingface.co/papers/2105.05233). Scalars enter $e$ by their sines and cosines at fixed
frequencies.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


# How the blocks of the two families differ.
FAMILIES: dict[str, dict[str, Any]] = {
    "SongUNet": {"adaptive_scale": False, "skip_scale": math.sqrt(0.5), "eps": 1e-6, "resample_proj": True},
    "DhariwalUNet": {"adaptive_scale": True, "skip_scale": 1.0, "eps": 1e-5, "resample_proj": False},
}


def make_group_norm(channels: int, eps: float) -> nn.GroupNorm:
    """
    Build a group normalisation with the published number of groups.

    Args:
        channels (`int`): Channels to normalise, in at most 32 groups of at least 4.
        eps (`float`): Added to the variance.

    Returns:
        `nn.GroupNorm`: The module.
    """
    return nn.GroupNorm(num_groups=min(32, channels // 4), num_channels=channels, eps=eps)


class ResampleConv2d(nn.Module):
    """
    A convolution that may double or halve the resolution.

    Args:
        in_channels (`int`): Channels of the input.
        out_channels (`int`): Channels of the output.
        kernel (`int`): Size of the convolution's kernel; with 0 the module only resamples.
        up (`bool`, defaults to `False`): Whether to double the resolution.
        down (`bool`, defaults to `False`): Whether to halve the resolution.
        resample_filter (`tuple[int, ...]`, defaults to `(1, 1)`): Taps of the resampling filter.
        fused (`bool`, defaults to `False`): Whether to convolve first and to resample its padded
            output.
        gain (`float`, defaults to 1): Factor on the initial weights.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        up: bool = False,
        down: bool = False,
        resample_filter: tuple[int, ...] = (1, 1),
        fused: bool = False,
        gain: float = 1.0,
    ):
        super().__init__()
        self.up = up
        self.down = down
        self.fused = fused
        self.kernel = kernel
        self.filter_padding = (len(resample_filter) - 1) // 2
        if kernel:
            self.weight = nn.Parameter(torch.empty(out_channels, in_channels, kernel, kernel))
            self.bias = nn.Parameter(torch.zeros(out_channels))
            nn.init.xavier_uniform_(self.weight, gain)
        if up or down:
            taps = torch.tensor(resample_filter, dtype=torch.float32)
            kernel2d = taps.outer(taps) / taps.sum() ** 2
            self.register_buffer("resample_filter", kernel2d[None, None])

    def _resample(self, x: torch.Tensor, padding: int) -> torch.Tensor:
        channels = x.shape[1]
        kernel = self.resample_filter.to(x.dtype).expand(channels, -1, -1, -1)
        if self.up:
            return F.conv_transpose2d(x, 4 * kernel, stride=2, padding=padding, groups=channels)
        return F.conv2d(x, kernel, stride=2, padding=padding, groups=channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Convolve and resample images of shape `(batch, in_channels, height, width)`."""
        if self.fused:
            x = F.conv2d(x, self.weight, self.bias, padding=self.kernel // 2 + self.filter_padding)
            return self._resample(x, padding=0)
        if self.up or self.down:
            x = self._resample(x, self.filter_padding)
        if not self.kernel:
            return x
        return F.conv2d(x, self.weight, self.bias, padding=self.kernel // 2)


class UNetBlock(nn.Module):
    """
    A residual block with noise-level conditioning, optional resampling and optional self-attention.

    Args:
        in_channels (`int`): Channels of the input.
        out_channels (`int`): Channels of the output.
        emb_channels (`int`): Width of the embedding that conditions the block.
        num_heads (`int`, defaults to 0): Heads of the self-attention; 0 leaves it out.
        up, down, resample_filter: As for [`ResampleConv2d`].
        dropout (`float`, defaults to 0): Dropout probability.
        adaptive_scale, skip_scale, eps, resample_proj: What `FAMILIES` says of the family.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        emb_channels: int,
        num_heads: int = 0,
        up: bool = False,
        down: bool = False,
        dropout: float = 0.0,
        resample_filter: tuple[int, ...] = (1, 1),
        adaptive_scale: bool = False,
        skip_scale: float = 1.0,
        eps: float = 1e-5,
        resample_proj: bool = False,
    ):
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.adaptive_scale = adaptive_scale
        self.skip_scale = skip_scale
        resampling: dict[str, Any] = {"up": up, "down": down, "resample_filter": resample_filter}

        self.norm0 = make_group_norm(in_channels, eps)
        self.conv0 = ResampleConv2d(in_channels, out_channels, 3, **resampling)
        self.affine = nn.Linear(emb_channels, out_channels * (2 if adaptive_scale else 1))
        self.norm1 = make_group_norm(out_channels, eps)
        # The tiny gain makes a new block almost the identity.
        self.conv1 = ResampleConv2d(out_channels, out_channels, 3, gain=1e-5)
        self.skip = None
        if out_channels != in_channels or up or down:
            kernel = 1 if resample_proj or out_channels != in_channels else 0
            self.skip = ResampleConv2d(in_channels, out_channels, kernel, **resampling)
        if num_heads:
            self.norm2 = make_group_norm(out_channels, eps)
            self.qkv = ResampleConv2d(out_channels, 3 * out_channels, 1)
            self.proj = ResampleConv2d(out_channels, out_channels, 1, gain=1e-5)

    def forward(self, x: torch.Tensor, emb: torch.Tensor) -> torch.Tensor:
        """Transform features of shape `(batch, in_channels, height, width)`, given the embedding."""
        # Tensors that belong to this block are changed in place: on a CPU, allocating new memory costs
        # as much as the arithmetic.
        h = self.conv0(F.silu(self.norm0(x), inplace=True))
        params = self.affine(emb)[:, :, None, None]
        if self.adaptive_scale:
            scale, shift = params.chunk(2, dim=1)
            h = F.silu(torch.addcmul(shift, self.norm1(h), scale + 1), inplace=True)
        else:
            h = F.silu(self.norm1(h.add_(params)), inplace=True)
        h = self.conv1(F.dropout(h, self.dropout, self.training))
        x = h.add_(x if self.skip is None else self.skip(x)).mul_(self.skip_scale)
        if self.num_heads:
            x = self.proj(self._attend(self.norm2(x))).add_(x).mul_(self.skip_scale)
        return x

    def _attend(self, x: torch.Tensor) -> torch.Tensor:
        batch, channels, height, width = x.shape
        # In the published layout of (heads, channels per head, 3) the last index selects q, k or v.
        qkv = self.qkv(x).reshape(batch, self.num_heads, channels // self.num_heads, 3, height * width)
        q, k, v = (part.transpose(-1, -2) for part in qkv.unbind(3))
        return F.scaled_dot_product_attention(q, k, v).transpose(-1, -2).reshape(x.shape)


class SinusoidalEmbedding(nn.Module):
    """
    Sines and cosines of a scalar at fixed frequencies, which keep float32 whatever the weights' type.

    Args:
        freqs (`torch.Tensor` of shape `(num_channels / 2,)`): The frequencies.
        scale (`float`, defaults to 1): Factor on the frequencies.
        sin_first (`bool`, defaults to `True`): Whether the sines come before the cosines.
        persistent (`bool`, defaults to `True`): Whether the frequencies are saved with the weights.
    """

    def __init__(
        self, freqs: torch.Tensor, scale: float = 1.0, sin_first: bool = True, persistent: bool = True
    ):
        super().__init__()
        self.freqs: torch.Tensor
        self.register_buffer("freqs", freqs, persistent=persistent)
        self.scale = scale
        self.sin_first = sin_first

    @classmethod
    def make_positional(
        cls, num_channels: int, endpoint: bool = True, sin_first: bool = True
    ) -> "SinusoidalEmbedding":
        """Build one with frequencies from 1 down to 1/10000, or to one short of it without `endpoint`."""
        half = num_channels // 2
        exponents = torch.arange(half, dtype=torch.float32) / (half - (1 if endpoint else 0))
        return cls(10000.0**-exponents, sin_first=sin_first, persistent=False)

    @classmethod
    def make_fourier(cls, num_channels: int) -> "SinusoidalEmbedding":
        """Build one with random frequencies, which belong to the weights."""
        return cls(16 * torch.randn(num_channels // 2, dtype=torch.float32), scale=2 * math.pi)

    def _apply(self, fn: Callable, recurse: bool = True) -> "SinusoidalEmbedding":
        # torch moves and casts modules through this method. The frequencies move but are never cast:
        # a rounded frequency is another frequency.
        freqs = self.freqs
        super()._apply(fn, recurse)
        self.freqs = freqs.to(self.freqs.device)
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Embed scalars of shape `(batch,)` in vectors of shape `(batch, num_channels)`."""
        angles = x.float().outer(self.scale * self.freqs)
        parts = [angles.sin(), angles.cos()]
        return torch.cat(parts if self.sin_first else parts[::-1], dim=1)


class DimensionEmbedding(nn.Module):
    r"""
    Embedding of D by $\log(1 + N/D)$, which is 0 at infinity and smooth in 1/D.

    Its weights begin at zero, so that adding it to a trained network changes nothing at first.

    Args:
        num_channels (`int`): Width of the embedding.
    """

    def __init__(self, num_channels: int):
        super().__init__()
        self.features = SinusoidalEmbedding.make_positional(num_channels)
        self.linear = nn.Linear(num_channels, num_channels, bias=False)
        nn.init.zeros_(self.linear.weight)

    def forward(self, D: torch.Tensor, num_dims: int) -> torch.Tensor:
        """Embed D of shape `(batch,)` for images of N = `num_dims` values."""
        return self.linear(self.features(torch.log1p(num_dims / D)).to(self.linear.weight.dtype))
