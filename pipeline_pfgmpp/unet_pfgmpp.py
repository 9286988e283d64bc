# Copyright 2026 The pipeline_pfgmpp authors. Licensed under the Apache License, Version 2.0.
r"""
The networks of PFGM++ and EDM: DDPM++ and NCSN++ (`SongUNet`,
https://huggingface.co/papers/2011.13456) and ADM (`DhariwalUNet`,
https://huggingface.co/papers/2105.05233), under their published option and parameter names.

The network maps $(c_{in} x, c_{noise})$ to the raw output F of EDM's preconditioning $c_{skip}\,x +
c_{out}\,F$ (https://huggingface.co/papers/2206.00364, table 1); the scheduler owns the
preconditioning.
"""

import math

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.unets.unet_2d import UNet2DOutput
from diffusers.utils import is_accelerate_available
from torch import nn


# What tells the two families apart, block by block.
FAMILIES = {
    "SongUNet": {"adaptive_scale": False, "skip_scale": math.sqrt(0.5), "eps": 1e-6, "resample_proj": True},
    "DhariwalUNet": {"adaptive_scale": True, "skip_scale": 1.0, "eps": 1e-5, "resample_proj": False},
}


def _group_norm(channels: int, eps: float) -> nn.GroupNorm:
    return nn.GroupNorm(num_groups=min(32, channels // 4), num_channels=channels, eps=eps)


class ResampleConv2d(nn.Module):
    """A convolution that may double or halve the resolution; with `kernel` 0 it only resamples."""

    def __init__(
        self,
        in_channels,
        out_channels,
        kernel,
        up=False,
        down=False,
        resample_filter=(1, 1),
        fused=False,
        gain=1.0,
    ):
        super().__init__()
        self.up, self.down, self.fused = up, down, fused
        if kernel:
            self.weight = nn.Parameter(torch.empty(out_channels, in_channels, kernel, kernel))
            self.bias = nn.Parameter(torch.zeros(out_channels))
            nn.init.xavier_uniform_(self.weight, gain)
        if up or down:
            taps = torch.tensor(resample_filter, dtype=torch.float32)
            kernel2d = taps.outer(taps) / taps.sum() ** 2
            self.register_buffer("resample_filter", kernel2d[None, None])
        self.kernel, self.filter_padding = kernel, (len(resample_filter) - 1) // 2

    def _resample(self, x, padding):
        channels = x.shape[1]
        kernel = self.resample_filter.to(x.dtype).expand(channels, -1, -1, -1)
        if self.up:
            return F.conv_transpose2d(x, 4 * kernel, stride=2, padding=padding, groups=channels)
        return F.conv2d(x, kernel, stride=2, padding=padding, groups=channels)

    def forward(self, x):
        if self.fused:
            x = F.conv2d(x, self.weight, self.bias, padding=self.kernel // 2 + self.filter_padding)
            return self._resample(x, padding=0)
        if self.up or self.down:
            x = self._resample(x, self.filter_padding)
        return F.conv2d(x, self.weight, self.bias, padding=self.kernel // 2) if self.kernel else x


class UNetBlock(nn.Module):
    """Residual block with noise-level conditioning, optional resampling and optional self-attention."""

    def __init__(
        self,
        in_channels,
        out_channels,
        emb_channels,
        num_heads=0,
        up=False,
        down=False,
        dropout=0.0,
        resample_filter=(1, 1),
        adaptive_scale=False,
        skip_scale=1.0,
        eps=1e-5,
        resample_proj=False,
    ):
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.adaptive_scale, self.skip_scale = adaptive_scale, skip_scale
        resampling = {"up": up, "down": down, "resample_filter": resample_filter}

        self.norm0 = _group_norm(in_channels, eps)
        self.conv0 = ResampleConv2d(in_channels, out_channels, 3, **resampling)
        self.affine = nn.Linear(emb_channels, out_channels * (2 if adaptive_scale else 1))
        self.norm1 = _group_norm(out_channels, eps)
        self.conv1 = ResampleConv2d(
            out_channels, out_channels, 3, gain=1e-5
        )  # a block begins as the identity
        self.skip = None
        if out_channels != in_channels or up or down:
            kernel = 1 if resample_proj or out_channels != in_channels else 0
            self.skip = ResampleConv2d(in_channels, out_channels, kernel, **resampling)
        if num_heads:
            self.norm2 = _group_norm(out_channels, eps)
            self.qkv = ResampleConv2d(out_channels, 3 * out_channels, 1)
            self.proj = ResampleConv2d(out_channels, out_channels, 1, gain=1e-5)

    def forward(self, x, emb):
        # In place wherever the result is this block's own: on a CPU new memory costs as much as the
        # arithmetic.
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
            x = self.proj(self._attention(self.norm2(x))).add_(x).mul_(self.skip_scale)
        return x

    def _attention(self, x):
        batch, channels, height, width = x.shape
        # The published layout: the last of (heads, channels per head, 3) tells q, k and v apart.
        qkv = self.qkv(x).reshape(batch, self.num_heads, channels // self.num_heads, 3, height * width)
        q, k, v = (t.transpose(-1, -2) for t in qkv.unbind(3))
        return F.scaled_dot_product_attention(q, k, v).transpose(-1, -2).reshape(x.shape)


class SinusoidalEmbedding(nn.Module):
    """Sines and cosines of a scalar at fixed frequencies, whatever the type of the weights."""

    def __init__(self, freqs, scale=1.0, sin_first=True, persistent=True):
        super().__init__()
        self.register_buffer("freqs", freqs, persistent=persistent)
        self.scale, self.sin_first = scale, sin_first

    @classmethod
    def positional(cls, num_channels, endpoint=True, sin_first=True):
        """Frequencies from 1 down to 1/10000, or to one short of it without `endpoint`."""
        half = num_channels // 2
        exponents = torch.arange(half, dtype=torch.float32) / (half - (1 if endpoint else 0))
        return cls(10000.0**-exponents, sin_first=sin_first, persistent=False)

    @classmethod
    def fourier(cls, num_channels):
        """Random frequencies, which belong to the weights."""
        return cls(16 * torch.randn(num_channels // 2, dtype=torch.float32), scale=2 * math.pi)

    def _apply(self, fn, recurse=True):
        freqs = self.freqs
        super()._apply(fn, recurse)
        self.freqs = freqs.to(
            self.freqs.device
        )  # moved, never cast: a rounded frequency is another frequency
        return self

    def forward(self, x):
        angles = x.float().outer(self.scale * self.freqs)
        return torch.cat(
            [angles.sin(), angles.cos()] if self.sin_first else [angles.cos(), angles.sin()], dim=1
        )


class DimensionEmbedding(nn.Module):
    r"""
    Embedding of D by $\log(1 + N/D)$, which is 0 at infinity and smooth in 1/D.

    It begins at zero: a network trained without it goes on as what it was.
    """

    def __init__(self, num_channels):
        super().__init__()
        self.features = SinusoidalEmbedding.positional(num_channels)
        self.linear = nn.Linear(num_channels, num_channels, bias=False)
        nn.init.zeros_(self.linear.weight)

    def forward(self, D, num_dims):
        return self.linear(self.features(torch.log1p(num_dims / D)).to(self.linear.weight.dtype))


# Network options of the published models (https://huggingface.co/papers/2206.00364, table 7) and of
# ours.
PRESETS = {
    "cifar10-ncsnpp": {
        "sample_size": 32,
        "embedding_type": "fourier",
        "channel_mult_noise": 2,
        "encoder_type": "residual",
        "resample_filter": (1, 3, 3, 1),
    },
    "cifar10-ddpmpp": {"sample_size": 32},
    "ffhq64-ddpmpp": {"sample_size": 64, "channel_mult": (1, 2, 2, 2), "dropout": 0.05},
    "imagenet64-adm": {
        "sample_size": 64,
        "model_type": "DhariwalUNet",
        "model_channels": 192,
        "channel_mult": (1, 2, 3, 4),
        "num_blocks": 3,
        "attn_resolutions": (32, 16, 8),
        "dropout": 0.1,
        "label_dim": 1000,
    },
    "fashion-mnist-small": {
        "sample_size": 28,
        "in_channels": 1,
        "out_channels": 1,
        "model_channels": 32,
        "channel_mult": (1, 2, 4),
        "num_blocks": 2,
        "attn_resolutions": (7,),
        "dropout": 0.0,
    },
}


class PFGMPPUNet2DModel(ModelMixin, ConfigMixin):
    r"""
    DDPM++, NCSN++ and ADM as published with PFGM++ and EDM.

    Args:
        sample_size (`int`, defaults to 32): Height and width of the images, for which the parts are
            named; others run too.
        in_channels (`int`, defaults to 3): Channels of the input.
        out_channels (`int`, defaults to 3): Channels of the output.
        model_type (`str`, defaults to `"SongUNet"`): `"SongUNet"` (DDPM++, NCSN++) or
            `"DhariwalUNet"` (ADM).
        model_channels (`int`, defaults to 128): Channels that `channel_mult` multiplies.
        channel_mult (`tuple[int]`, defaults to `(2, 2, 2)`): Channels of each level, from the
            finest to the coarsest.
        num_blocks (`int`, defaults to 4): Residual blocks a resolution.
        attn_resolutions (`tuple[int]`, defaults to `(16,)`): Resolutions with self-attention.
        dropout (`float`, defaults to 0.13): Dropout probability inside the blocks.
        label_dim (`int`, defaults to 0): Number of classes; 0 is unconditional.
        label_dropout (`float`, defaults to 0): Probability of training without the label, for guidance.
        augment_dim (`int`, defaults to 0): Number of augmentation labels; 0 is none.
        embedding_type (`str`, defaults to `"positional"`): `"positional"` (DDPM++, ADM) or
            `"fourier"` (NCSN++).
        channel_mult_noise (`int`, defaults to 1): Width of the noise embedding, in
            `model_channels`; 2 for NCSN++.
        encoder_type (`str`, defaults to `"standard"`): `"standard"`, or `"residual"` (NCSN++).
        resample_filter (`tuple[int]`, defaults to `(1, 1)`): Resampling filter; `(1, 3, 3, 1)` for
            NCSN++.
        d_conditioning (`bool`, defaults to `False`): Whether one network serves every D from 1 to
            infinity, told by `D`.

    Raises:
        ValueError: An option is unknown, or `sample_size` cannot be halved once for each further
            resolution.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["UNetBlock"]
    _keep_in_fp32_modules = (
        ["map_noise"] if is_accelerate_available() else None
    )  # diffusers cannot honour it without

    @register_to_config
    def __init__(
        self,
        sample_size: int = 32,
        in_channels: int = 3,
        out_channels: int = 3,
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
        for name, value, allowed in (
            ("model_type", model_type, FAMILIES),
            ("embedding_type", embedding_type, ("positional", "fourier")),
            ("encoder_type", encoder_type, ("standard", "residual")),
        ):
            if value not in allowed:
                raise ValueError(f"`{name}` must be one of {list(allowed)}, but is {value!r}.")
        if sample_size % 2 ** (len(channel_mult) - 1):
            raise ValueError(f"`sample_size` {sample_size} cannot be halved {len(channel_mult) - 1} times.")

        family = FAMILIES[model_type]
        adm = model_type == "DhariwalUNet"
        emb_channels = 4 * model_channels
        noise_channels = model_channels * channel_mult_noise

        # Mapping from noise level, D, class and augmentation to one embedding.
        if embedding_type == "fourier":
            self.map_noise = SinusoidalEmbedding.fourier(noise_channels)
        else:
            self.map_noise = SinusoidalEmbedding.positional(
                noise_channels, endpoint=not adm, sin_first=not adm
            )
        self.map_dimension = DimensionEmbedding(noise_channels) if d_conditioning else None
        self.map_augment = nn.Linear(augment_dim, noise_channels, bias=False) if augment_dim else None
        self.map_layer0 = nn.Linear(noise_channels, emb_channels)
        self.map_layer1 = nn.Linear(emb_channels, emb_channels)
        self.map_label = None
        if label_dim:
            self.map_label = nn.Linear(label_dim, emb_channels if adm else noise_channels, bias=not adm)

        def block(cin, cout, attention=False, **kwargs):
            heads = (max(1, cout // 64) if adm else 1) if attention else 0
            return UNetBlock(
                cin,
                cout,
                emb_channels,
                heads,
                dropout=dropout,
                resample_filter=resample_filter,
                **family,
                **kwargs,
            )

        def attends(resolution):
            return resolution in attn_resolutions

        # Encoder: its outputs are the decoder's skips.
        self.enc = nn.ModuleDict()
        channels = model_channels * channel_mult[0] if adm else model_channels
        skips, aux_channels = [], in_channels
        for level, mult in enumerate(channel_mult):
            resolution = sample_size >> level
            prefix = f"{resolution}x{resolution}"
            if level == 0:
                self.enc[f"{prefix}_conv"] = ResampleConv2d(in_channels, channels, 3)
            else:
                self.enc[f"{prefix}_down"] = block(channels, channels, down=True)
                if encoder_type == "residual":
                    self.enc[f"{prefix}_aux_residual"] = ResampleConv2d(
                        aux_channels, channels, 3, down=True, resample_filter=resample_filter, fused=True
                    )
                    aux_channels = channels
            skips.append(channels)
            for index in range(num_blocks):
                self.enc[f"{prefix}_block{index}"] = block(
                    channels, model_channels * mult, attends(resolution)
                )
                channels = model_channels * mult
                skips.append(channels)

        # Decoder: each `_block` takes a skip.
        self.dec = nn.ModuleDict()
        for level, mult in reversed(list(enumerate(channel_mult))):
            resolution = sample_size >> level
            prefix = f"{resolution}x{resolution}"
            if level == len(channel_mult) - 1:
                self.dec[f"{prefix}_in0"] = block(channels, channels, True)
                self.dec[f"{prefix}_in1"] = block(channels, channels)
            else:
                self.dec[f"{prefix}_up"] = block(channels, channels, up=True)
            for index in range(num_blocks + 1):
                attention = attends(resolution) and (adm or index == num_blocks)
                self.dec[f"{prefix}_block{index}"] = block(
                    channels + skips.pop(), model_channels * mult, attention
                )
                channels = model_channels * mult

        out_norm, out_conv = (
            _group_norm(channels, family["eps"]),
            ResampleConv2d(channels, out_channels, 3, gain=1e-5),
        )
        if adm:
            self.out_norm, self.out_conv = out_norm, out_conv
        else:
            self.dec[f"{prefix}_aux_norm"], self.dec[f"{prefix}_aux_conv"] = out_norm, out_conv
        self.gradient_checkpointing = False

    @classmethod
    def from_preset(cls, name: str, **options) -> "PFGMPPUNet2DModel":
        """
        Builds a published network, or ours, with new weights.

        Args:
            name (`str`): One of `PRESETS`: `"cifar10-ncsnpp"`, `"cifar10-ddpmpp"`,
                `"ffhq64-ddpmpp"`, `"imagenet64-adm"`, `"fashion-mnist-small"`.
            options: Constructor arguments that override the preset's.

        Returns:
            [`PFGMPPUNet2DModel`]: The network.

        Raises:
            ValueError: There is no such preset.
        """
        if name not in PRESETS:
            raise ValueError(f"`name` must be one of {list(PRESETS)}, but is {name!r}.")
        return cls(**{**PRESETS[name], **options})

    def _embed(self, timestep, class_labels, augment_labels, D, num_dims, dtype):
        config = self.config
        emb = self.map_noise(timestep).to(dtype)
        if self.map_dimension is not None:
            D = torch.as_tensor(math.inf if D is None else D, dtype=torch.float32, device=timestep.device)
            emb = emb + self.map_dimension(D.expand(len(emb)), num_dims)
        if self.map_augment is not None and augment_labels is not None:
            emb = emb + self.map_augment(augment_labels.to(dtype))
        labels = None
        if self.map_label is not None:
            labels = self._one_hot(class_labels, emb)
            if self.training and config.label_dropout:
                labels = labels * (torch.rand_like(labels[:, :1]) >= config.label_dropout)
        if config.model_type == "DhariwalUNet":
            emb = self.map_layer1(F.silu(self.map_layer0(emb)))
            return F.silu(emb if labels is None else emb + self.map_label(labels))
        if labels is not None:
            emb = emb + self.map_label(labels * math.sqrt(config.label_dim))
        return F.silu(self.map_layer1(F.silu(self.map_layer0(emb))))

    def _one_hot(self, class_labels, emb):
        shape = (len(emb), self.config.label_dim)
        if class_labels is None:
            return emb.new_zeros(shape)
        if class_labels.ndim == 1:
            class_labels = F.one_hot(class_labels.long(), self.config.label_dim)
        if class_labels.shape != shape:
            raise ValueError(
                f"`class_labels` must be of shape {shape[:1]} or {shape}, but are {tuple(class_labels.shape)}."
            )
        return class_labels.to(emb)

    def _run(self, module, x, emb):
        if not isinstance(module, UNetBlock):
            return module(x)
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            return self._gradient_checkpointing_func(module, x, emb)
        return module(x, emb)

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float,
        class_labels: torch.Tensor | None = None,
        augment_labels: torch.Tensor | None = None,
        D: float | torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> UNet2DOutput | tuple[torch.Tensor]:
        r"""
        Args:
            sample (`torch.Tensor` of shape `(batch, in_channels, height, width)`): The scaled input
                c_in * x.
            timestep (`torch.Tensor` or `float`): c_noise = ln(sigma) / 4, one for all or one an image.
            class_labels (`torch.Tensor`, *optional*): Classes of shape `(batch,)`, or weights of
                shape `(batch, label_dim)`; None is no class (all zeros).
            augment_labels (`torch.Tensor` of shape `(batch, augment_dim)`, *optional*): None is no
                augmentation (all zeros).
            D (`float` or `torch.Tensor` of shape `(batch,)`, *optional*): The augmented dimension,
                with `d_conditioning`; None is infinity.
            return_dict (`bool`, defaults to `True`): Whether to return a `UNet2DOutput` or a tuple.

        Returns:
            `UNet2DOutput` or `tuple`: The raw output F of shape `(batch, out_channels, height, width)`.

        Raises:
            ValueError: The labels are of another shape, or the network was not built for what it is
                given.
        """
        for name, given, layer, option in (
            ("class_labels", class_labels, self.map_label, "label_dim"),
            ("augment_labels", augment_labels, self.map_augment, "augment_dim"),
            ("D", D, self.map_dimension, "d_conditioning"),
        ):
            if given is not None and layer is None:
                raise ValueError(
                    f"`{name}` is given, but this network is not conditioned on it: its `{option}` is not set."
                )
        timestep = torch.as_tensor(timestep, device=sample.device).expand(len(sample))
        emb = self._embed(timestep, class_labels, augment_labels, D, sample[0].numel(), sample.dtype)

        x, aux, skips = sample, sample, []
        for name, module in self.enc.items():
            if name.endswith("_aux_residual"):
                x = skips[-1] = aux = (x + module(aux)) * math.sqrt(0.5)
            else:
                x = self._run(module, x, emb)
                skips.append(x)
        for name, module in self.dec.items():
            if "_block" in name:
                x = torch.cat([x, skips.pop()], dim=1)
            if name.endswith("_aux_conv"):
                x = F.silu(x)
            x = self._run(module, x, emb)
        if self.config.model_type == "DhariwalUNet":
            x = self.out_conv(F.silu(self.out_norm(x)))

        return UNet2DOutput(sample=x) if return_dict else (x,)
