# Copyright 2026 The pipeline_pfgmpp authors. Licensed under the Apache License, Version 2.0.
r"""
The networks of PFGM++ and EDM, under their published option and parameter names: DDPM++ and NCSN++
(`SongUNet`, https://huggingface.co/papers/2011.13456) and ADM (`DhariwalUNet`,
https://huggingface.co/papers/2105.05233).

A network maps $(c_{in} x, c_{noise})$ to the raw output $F$ of EDM's preconditioned denoiser

$$D_\theta(x, \sigma) = c_{skip}\,x + c_{out}\,F(c_{in} x, c_{noise})$$

(https://huggingface.co/papers/2206.00364, table 1). The scheduler owns the preconditioning. A network
that restores images (https://huggingface.co/papers/2312.09754) sees a degraded image y as well: its input
consists of $c_{in} y$ and $c_{in} x$, joined along the channels.

From the Hub diffusers fetches one file of a network's code, so this module imports none of the package's.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.unets.unet_2d import UNet2DOutput
from diffusers.utils import is_accelerate_available
from torch import nn


# How the blocks of the two families differ.
FAMILIES: dict[str, dict[str, Any]] = {
    "SongUNet": {"adaptive_scale": False, "skip_scale": math.sqrt(0.5), "eps": 1e-6, "resample_proj": True},
    "DhariwalUNet": {"adaptive_scale": True, "skip_scale": 1.0, "eps": 1e-5, "resample_proj": False},
}


def _make_group_norm(channels: int, eps: float) -> nn.GroupNorm:
    """Build a group normalisation with the published number of groups."""
    groups = min(32, channels // 4)
    if channels % groups:
        raise ValueError(
            f"`model_channels` must make layers that divide into {groups} groups, as multiples of 32 do, but"
            f" makes one of {channels}."
        )
    return nn.GroupNorm(groups, channels, eps=eps)


class ResampleConv2d(nn.Module):
    """
    A convolution that may double or halve the resolution.

    With `kernel` 0 it only resamples; with `fused` it convolves first and resamples the padded output.
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
        return F.conv2d(x, self.weight, self.bias, padding=self.kernel // 2) if self.kernel else x


class UNetBlock(nn.Module):
    r"""
    A residual block with noise-level conditioning, optional resampling and optional self-attention.

    It computes $s\,(\mathrm{skip}(x) + f(x, e))$ with `skip_scale` as $s$ and an embedding $e$ of the noise
    level, the class and D.
    """

    takes_embedding = True

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
        family: str = "DhariwalUNet",
    ):
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.adaptive_scale = FAMILIES[family]["adaptive_scale"]
        self.skip_scale = FAMILIES[family]["skip_scale"]
        eps = FAMILIES[family]["eps"]
        resampling: dict[str, Any] = {"up": up, "down": down, "resample_filter": resample_filter}

        self.norm0 = _make_group_norm(in_channels, eps)
        self.conv0 = ResampleConv2d(in_channels, out_channels, 3, **resampling)
        self.affine = nn.Linear(emb_channels, out_channels * (2 if self.adaptive_scale else 1))
        self.norm1 = _make_group_norm(out_channels, eps)
        # The tiny gain makes a new block almost the identity.
        self.conv1 = ResampleConv2d(out_channels, out_channels, 3, gain=1e-5)
        self.skip = None
        if out_channels != in_channels or up or down:
            kernel = 1 if FAMILIES[family]["resample_proj"] or out_channels != in_channels else 0
            self.skip = ResampleConv2d(in_channels, out_channels, kernel, **resampling)
        if num_heads:
            self.norm2 = _make_group_norm(out_channels, eps)
            self.qkv = ResampleConv2d(out_channels, 3 * out_channels, 1)
            self.proj = ResampleConv2d(out_channels, out_channels, 1, gain=1e-5)

    def forward(self, x: torch.Tensor, emb: torch.Tensor) -> torch.Tensor:
        """Transform features of shape `(batch, in_channels, height, width)`, given the embedding."""
        # In place where the block owns the tensor: on a CPU, new memory costs as much as the arithmetic.
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
    """Sines and cosines of a scalar at fixed frequencies, in float32 whatever the weights' type."""

    def __init__(
        self, freqs: torch.Tensor, scale: float = 1.0, sin_first: bool = True, persistent: bool = True
    ):
        super().__init__()
        self.freqs: torch.Tensor
        self.register_buffer("freqs", freqs, persistent=persistent)
        self.scale = scale
        self.sin_first = sin_first

    @classmethod
    def make_positional(cls, num_channels: int, is_adm: bool = False) -> "SinusoidalEmbedding":
        """Build one with frequencies from 1 to 1/10000; ADM stops one short, and has cosines first."""
        half = num_channels // 2
        exponents = torch.arange(half, dtype=torch.float32) / (half if is_adm else half - 1)
        return cls(10000.0**-exponents, sin_first=not is_adm, persistent=False)

    @classmethod
    def make_fourier(cls, num_channels: int) -> "SinusoidalEmbedding":
        """Build one with random frequencies, which belong to the weights."""
        return cls(16 * torch.randn(num_channels // 2, dtype=torch.float32), scale=2 * math.pi)

    def _apply(self, fn: Callable, recurse: bool = True) -> "SinusoidalEmbedding":
        # torch moves and casts modules through this method. A rounded frequency is another frequency.
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
    """

    def __init__(self, num_channels: int):
        super().__init__()
        self.features = SinusoidalEmbedding.make_positional(num_channels)
        self.linear = nn.Linear(num_channels, num_channels, bias=False)
        nn.init.zeros_(self.linear.weight)

    def forward(self, D: torch.Tensor, num_dims: int, dtype: torch.dtype) -> torch.Tensor:
        """Embed D of shape `(batch,)` for images of N = `num_dims` values."""
        return self.linear(self.features(torch.log1p(num_dims / D)).to(dtype))


# Options of the published networks (https://huggingface.co/papers/2206.00364, table 7) and of our own.
_GREY = {"in_channels": 1, "out_channels": 1}
_LATENTS = {"in_channels": 4, "out_channels": 4}
_NCSNPP = {"embedding_type": "fourier", "channel_mult_noise": 2, "encoder_type": "residual"}
_ADM = {"model_type": "DhariwalUNet", "model_channels": 192, "channel_mult": (1, 2, 3, 4), "num_blocks": 3}
_IMAGENET = {**_ADM, "dropout": 0.1, "label_dim": 1000}
_CT = {"condition_channels": 1, "channel_mult": (1, 1, 2, 2, 2, 2, 2), "attn_resolutions": (16, 8, 4)}
_EMOJI = {"model_channels": 64, "channel_mult": (1, 2), "num_blocks": 3, "attn_resolutions": (8,)}
_CLOTHES = {"model_channels": 32, "channel_mult": (1, 2, 4), "num_blocks": 2, "attn_resolutions": (7,)}
PRESETS: dict[str, dict[str, Any]] = {
    "cifar10-ncsnpp": {**_NCSNPP, "sample_size": 32, "resample_filter": (1, 3, 3, 1)},
    "cifar10-ddpmpp": {"sample_size": 32},
    "ffhq64-ddpmpp": {"sample_size": 64, "channel_mult": (1, 2, 2, 2), "dropout": 0.05},
    "imagenet64-adm": {**_IMAGENET, "sample_size": 64, "attn_resolutions": (32, 16, 8)},
    "imagenet256-latent": {**_IMAGENET, **_LATENTS, "attn_resolutions": (16, 8)},
    # https://huggingface.co/papers/2312.09754
    "ppfm-ct": {**_GREY, **_CT, "sample_size": 256, "dropout": 0.1},
    "emoji-small": {**_LATENTS, **_EMOJI, "sample_size": 16, "dropout": 0.0},
    "fashion-mnist-small": {**_GREY, **_CLOTHES, "sample_size": 28, "dropout": 0.0},
}

# What options may be: one of these words, or numbers from a least to a greatest, whose type is theirs.
WORDS = {
    "model_type": list(FAMILIES),
    "embedding_type": ["positional", "fourier"],
    "encoder_type": ["standard", "residual"],
}
LISTS = ("channel_mult", "attn_resolutions", "resample_filter")
BOUNDS: dict[tuple[float, float], tuple[str, ...]] = {
    (0, 10**6): ("condition_channels", "num_blocks", "label_dim", "augment_dim"),
    (1, 10**6): ("in_channels", "out_channels", "channel_mult_noise", *LISTS),
    (4, 10**6): ("model_channels",),
    (0.0, 1.0): ("dropout", "label_dropout"),
}


def _check_options(options: Mapping[str, Any]) -> None:
    """Refuse options that no network can have, each by its name."""
    for name, allowed in WORDS.items():
        if options[name] not in allowed:
            raise ValueError(f"`{name}` must be one of {allowed}, but is {options[name]!r}.")
    for (low, high), names in BOUNDS.items():
        for name in names:
            value = options[name]
            numbers = value if name in LISTS else [value]
            is_list = isinstance(numbers, (list, tuple)) and (len(numbers) > 0 or name == "attn_resolutions")
            if not is_list or any(type(n) not in (int, type(low)) or not low <= n <= high for n in numbers):
                kind = "a list of integers" if name in LISTS else f"of type {type(low).__name__},"
                raise ValueError(f"`{name}` must be {kind} from {low} to {high}, but is {value!r}.")
    if options["model_channels"] % 2:
        raise ValueError(f"`model_channels` must be even, but is {options['model_channels']}.")
    taps = options["resample_filter"]
    if len(taps) % 2:
        raise ValueError(f"`resample_filter` must be an even number of integers, but is {taps!r}.")


class PFGMPPUNet2DModel(ModelMixin, ConfigMixin):
    r"""
    DDPM++, NCSN++ and ADM as published with PFGM++ and EDM.

    Args:
        sample_size (`int` or `tuple[int, int]`, defaults to 32): Height and width of the images, after
            which the parts are named. Any other size that the levels divide runs too.
        in_channels (`int`, defaults to 3): Channels of the noisy images.
        out_channels (`int`, defaults to 3): Channels of the output.
        condition_channels (`int`, defaults to 0): Channels of the image to restore; 0: it restores none.
        model_type (`str`, defaults to `"SongUNet"`): `"SongUNet"` (DDPM++, NCSN++) or `"DhariwalUNet"` (ADM).
        model_channels (`int`, defaults to 128): Channels, which `channel_mult` multiplies.
        channel_mult (`tuple[int, ...]`, defaults to `(2, 2, 2)`): Channels per level, finest first.
        num_blocks (`int`, defaults to 4): Residual blocks per resolution.
        attn_resolutions (`tuple[int, ...]`, defaults to `(16,)`): Levels with self-attention, by the shorter
            side that they have at `sample_size`. At other sizes the same levels have it.
        dropout (`float`, defaults to 0.13): Dropout probability inside the blocks.
        label_dim (`int`, defaults to 0): Number of classes; 0 is unconditional.
        label_dropout (`float`, defaults to 0): Probability of training without the label.
        augment_dim (`int`, defaults to 0): Number of augmentation labels; 0 is none.
        embedding_type (`str`, defaults to `"positional"`): `"positional"`, or `"fourier"` (NCSN++).
        channel_mult_noise (`int`, defaults to 1): Width of the noise embedding over `model_channels`.
        encoder_type (`str`, defaults to `"standard"`): `"standard"`, or `"residual"` (NCSN++).
        resample_filter (`tuple[int, ...]`, defaults to `(1, 1)`): Resampling filter; NCSN++: `(1, 3, 3, 1)`.
        d_conditioning (`bool`, defaults to `False`): Whether one network serves every D, which it is given.

    Raises:
        ValueError: An option is out of range, or `sample_size` cannot be halved at each further level.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["UNetBlock"]
    # Where accelerate is missing, diffusers refuses to load a model with such modules.
    _keep_in_fp32_modules = ["map_noise"] if is_accelerate_available() else None

    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] = 32,
        in_channels: int = 3,
        out_channels: int = 3,
        condition_channels: int = 0,
        model_type: str = "SongUNet",
        model_channels: int = 128,
        channel_mult: tuple[int, ...] = (2, 2, 2),
        num_blocks: int = 4,
        attn_resolutions: tuple[int, ...] = (16,),
        dropout: float = 0.13,
        label_dim: int = 0,
        label_dropout: float = 0.0,
        augment_dim: int = 0,
        embedding_type: str = "positional",
        channel_mult_noise: int = 1,
        encoder_type: str = "standard",
        resample_filter: tuple[int, ...] = (1, 1),
        d_conditioning: bool = False,
    ):
        super().__init__()
        _check_options(self.config)
        self._divisor = 2 ** (len(channel_mult) - 1)
        self._size = list(sample_size) if isinstance(sample_size, (list, tuple)) else [sample_size] * 2
        are_integers = all(isinstance(side, int) and side > 0 for side in self._size)
        if len(self._size) != 2 or not are_integers or any(side % self._divisor for side in self._size):
            raise ValueError(
                f"`sample_size` must be one or two multiples of {self._divisor}, since it is halved at each"
                f" further level, but is {sample_size!r}."
            )

        self._is_adm = model_type == "DhariwalUNet"
        self._build_mapping()
        skip_channels = self._build_encoder()
        self._build_decoder(skip_channels)
        self.gradient_checkpointing = False

    def _build_mapping(self) -> None:
        """Build the mapping from noise level, D, class and augmentation to one embedding."""
        config = self.config
        noise_channels = config.model_channels * config.channel_mult_noise
        emb_channels = 4 * config.model_channels
        if config.embedding_type == "fourier":
            self.map_noise = SinusoidalEmbedding.make_fourier(noise_channels)
        else:
            self.map_noise = SinusoidalEmbedding.make_positional(noise_channels, self._is_adm)
        self.map_dimension = DimensionEmbedding(noise_channels) if config.d_conditioning else None
        augment_dim = config.augment_dim
        self.map_augment = nn.Linear(augment_dim, noise_channels, bias=False) if augment_dim else None
        self.map_layer0 = nn.Linear(noise_channels, emb_channels)
        self.map_layer1 = nn.Linear(emb_channels, emb_channels)
        self.map_label: nn.Linear | None = None
        if config.label_dim:
            label_channels = emb_channels if self._is_adm else noise_channels
            self.map_label = nn.Linear(config.label_dim, label_channels, bias=not self._is_adm)

    def _make_block(
        self, in_channels: int, out_channels: int, attention: bool = False, **resampling: bool
    ) -> UNetBlock:
        """Build a block of this network's family, which keeps the resolution or goes `up` or `down`."""
        num_heads = math.gcd(out_channels, out_channels // 64 or 1) if self._is_adm else 1
        return UNetBlock(
            in_channels,
            out_channels,
            emb_channels=4 * self.config.model_channels,
            num_heads=num_heads if attention else 0,
            dropout=self.config.dropout,
            resample_filter=self.config.resample_filter,
            **resampling,
            family=self.config.model_type,
        )

    def _describe_level(self, level: int) -> tuple[str, bool]:
        """Return a level's size, after which its parts are named, and whether it has self-attention."""
        height, width = (side >> level for side in self._size)
        return f"{height}x{width}", min(height, width) in self.config.attn_resolutions

    def _build_encoder(self) -> list[int]:
        """Build the encoder; return the channels of its outputs, which the decoder takes as skips."""
        config = self.config
        self.enc = nn.ModuleDict()
        channels = config.model_channels * (config.channel_mult[0] if self._is_adm else 1)
        in_channels = config.condition_channels + config.in_channels
        aux_channels = in_channels
        skip_channels = []
        for level, mult in enumerate(config.channel_mult):
            prefix, attention = self._describe_level(level)
            if level == 0:
                self.enc[f"{prefix}_conv"] = ResampleConv2d(in_channels, channels, 3)
            else:
                self.enc[f"{prefix}_down"] = self._make_block(channels, channels, down=True)
            if level > 0 and config.encoder_type == "residual":
                self.enc[f"{prefix}_aux_residual"] = ResampleConv2d(
                    aux_channels, channels, 3, down=True, resample_filter=config.resample_filter, fused=True
                )
                aux_channels = channels
            skip_channels.append(channels)
            for index in range(config.num_blocks):
                block = self._make_block(channels, config.model_channels * mult, attention)
                self.enc[f"{prefix}_block{index}"] = block
                channels = config.model_channels * mult
                skip_channels.append(channels)
        return skip_channels

    def _build_decoder(self, skip_channels: list[int]) -> None:
        """Build the decoder, whose blocks named `_block` take the encoder's outputs in reverse."""
        config = self.config
        self.dec = nn.ModuleDict()
        channels = skip_channels[-1]
        for level, mult in reversed(list(enumerate(config.channel_mult))):
            prefix, attention = self._describe_level(level)
            if level == len(config.channel_mult) - 1:
                self.dec[f"{prefix}_in0"] = self._make_block(channels, channels, attention=True)
                self.dec[f"{prefix}_in1"] = self._make_block(channels, channels)
            else:
                self.dec[f"{prefix}_up"] = self._make_block(channels, channels, up=True)
            for index in range(config.num_blocks + 1):
                # Except in ADM, only the last block of a level attends.
                attends = attention and (self._is_adm or index == config.num_blocks)
                width = channels + skip_channels.pop()
                block = self._make_block(width, config.model_channels * mult, attends)
                self.dec[f"{prefix}_block{index}"] = block
                channels = config.model_channels * mult

        out_norm = _make_group_norm(channels, FAMILIES[config.model_type]["eps"])
        out_conv = ResampleConv2d(channels, config.out_channels, 3, gain=1e-5)
        if self._is_adm:
            self.out_norm = out_norm
            self.out_conv = out_conv
        else:
            self.dec[f"{prefix}_aux_norm"] = out_norm
            self.dec[f"{prefix}_aux_conv"] = out_conv

    @classmethod
    def from_preset(cls, name: str, **options: Any) -> "PFGMPPUNet2DModel":
        """
        Build the network of a published model, or of this package's, with new weights.

        Args:
            name (`str`): One of `PRESETS`, such as `"cifar10-ncsnpp"`.
            options: Constructor arguments that override the preset's.

        Returns:
            [`PFGMPPUNet2DModel`]: The network.

        Raises:
            ValueError: There is no such preset.
        """
        if name not in PRESETS:
            raise ValueError(f"`name` must be one of {list(PRESETS)}, but is {name!r}.")
        return cls(**{**PRESETS[name], **options})

    def _embed(
        self,
        timestep: torch.Tensor,
        class_labels: torch.Tensor | None,
        augment_labels: torch.Tensor | None,
        D: float | torch.Tensor | None,
        num_dims: int,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        config = self.config
        emb = self.map_noise(timestep).to(dtype)
        if self.map_dimension is not None:
            dof = torch.as_tensor(math.inf if D is None else D, dtype=torch.float32, device=timestep.device)
            emb = emb + self.map_dimension(dof.expand(len(emb)), num_dims, dtype)
        if self.map_augment is not None and augment_labels is not None:
            emb = emb + self.map_augment(augment_labels.to(dtype))
        label_emb: torch.Tensor | float = 0.0
        if self.map_label is not None:
            labels = self._encode_labels(class_labels, emb)
            if self.training and config.label_dropout:
                labels = labels * (torch.rand_like(labels[:, :1]) >= config.label_dropout)
            label_emb = self.map_label(labels * (1.0 if self._is_adm else math.sqrt(config.label_dim)))
        if self._is_adm:
            return F.silu(self.map_layer1(F.silu(self.map_layer0(emb))) + label_emb)
        return F.silu(self.map_layer1(F.silu(self.map_layer0(emb + label_emb))))

    def _encode_labels(self, class_labels: torch.Tensor | None, emb: torch.Tensor) -> torch.Tensor:
        """Return one weight per class and image, in the type of the embedding."""
        shape = (len(emb), self.config.label_dim)
        if class_labels is None:
            return emb.new_zeros(shape)
        if class_labels.ndim == 1:
            class_labels = F.one_hot(class_labels.long(), self.config.label_dim)
        if class_labels.shape != shape:
            given = tuple(class_labels.shape)
            raise ValueError(f"`class_labels` must be of shape {shape[:1]} or {shape}, but are of {given}.")
        return class_labels.to(emb)

    def _join_condition(self, sample: torch.Tensor, condition: torch.Tensor | None) -> torch.Tensor:
        """Join the condition and the sample along the channels, in the published order."""
        shape = (len(sample), self.config.condition_channels, *sample.shape[2:])
        if condition is None or condition.shape != shape:
            given = "missing" if condition is None else f"of shape {tuple(condition.shape)}"
            raise ValueError(f"This network needs a `condition` of shape {shape}, but it is {given}.")
        return torch.cat([condition.to(sample.dtype), sample], dim=1)

    def _run(self, module: nn.Module, x: torch.Tensor, emb: torch.Tensor) -> torch.Tensor:
        # Not by its class, which diffusers makes anew whenever it loads custom code.
        if not getattr(module, "takes_embedding", False):
            return module(x)
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            # Set by ModelMixin.enable_gradient_checkpointing, as in the models of diffusers.
            return self._gradient_checkpointing_func(module, x, emb)
        return module(x, emb)

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float,
        class_labels: torch.Tensor | None = None,
        augment_labels: torch.Tensor | None = None,
        D: float | torch.Tensor | None = None,
        condition: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> UNet2DOutput | tuple[torch.Tensor]:
        r"""
        Compute the raw output F of the preconditioned denoiser.

        Args:
            sample (`torch.Tensor` of shape `(batch, in_channels, height, width)`): Scaled input, c_in * x.
            timestep (`torch.Tensor` or `float`): c_noise = ln(sigma) / 4, one for all or one per image.
            class_labels (`torch.Tensor`, *optional*): Classes of shape `(batch,)`, or weights of
                shape `(batch, label_dim)`; None is no class (all zeros).
            augment_labels (`torch.Tensor` of shape `(batch, augment_dim)`, *optional*): None is all zeros.
            D (`float` or `torch.Tensor` of shape `(batch,)`, *optional*): The augmented dimension,
                with `d_conditioning`; None is infinity.
            condition (`torch.Tensor` of shape `(batch, condition_channels, height, width)`, *optional*):
                The image y that the network is conditioned on, scaled as the sample is: c_in * y, as from
                `scheduler.scale_model_input(y, t)` or `scheduler.precondition_inputs(y, sigma)`.
            return_dict (`bool`, defaults to `True`): Whether to return a `UNet2DOutput` or a tuple.

        Returns:
            `UNet2DOutput` or `tuple`: The raw output F of shape `(batch, out_channels, height, width)`.

        Raises:
            ValueError: A shape does not fit, the condition is missing, or something is given in vain.
        """
        for name, given, option in (
            ("class_labels", class_labels, "label_dim"),
            ("augment_labels", augment_labels, "augment_dim"),
            ("D", D, "d_conditioning"),
            ("condition", condition, "condition_channels"),
        ):
            if given is not None and not self.config[option]:
                problem = f"this network is not conditioned on it: its `{option}` is not set"
                raise ValueError(f"`{name}` is given, but {problem}.")
        channels = self.config.in_channels
        is_batch = sample.ndim == 4 and sample.shape[1] == channels
        if not is_batch or any(side % self._divisor for side in sample.shape[2:]):
            raise ValueError(
                f"`sample` must have a height and a width that are multiples of {self._divisor}, and"
                f" {channels} channels, but is of shape {tuple(sample.shape)}."
            )
        timestep = torch.as_tensor(timestep, device=sample.device).expand(len(sample))
        # D belongs to the noise, whose dimensions are those of the sample alone.
        emb = self._embed(timestep, class_labels, augment_labels, D, sample[0].numel(), sample.dtype)

        if self.config.condition_channels:
            sample = self._join_condition(sample, condition)
        if sample.device.type == "cpu":
            sample = sample.contiguous(memory_format=torch.channels_last)  # the fastest layout there
        x = sample
        aux = sample
        skips: list[torch.Tensor] = []
        for name, module in self.enc.items():
            if name.endswith("_aux_residual"):
                aux = (x + module(aux)) * math.sqrt(0.5)
                x = aux
                skips[-1] = aux
            else:
                x = self._run(module, x, emb)
                skips.append(x)
        for name, module in self.dec.items():
            if "_block" in name:
                x = torch.cat([x, skips.pop()], dim=1)
            if name.endswith("_aux_conv"):
                x = F.silu(x)
            x = self._run(module, x, emb)
        if self._is_adm:
            x = self.out_conv(F.silu(self.out_norm(x)))

        return UNet2DOutput(sample=x) if return_dict else (x,)
