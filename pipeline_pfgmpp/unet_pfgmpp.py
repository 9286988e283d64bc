# Copyright 2026 The pipeline_pfgmpp authors. Licensed under the Apache License, Version 2.0.
r"""
The networks of PFGM++ and EDM, under their published option and parameter names.

They are DDPM++ and NCSN++ (`SongUNet`, https://huggingface.co/papers/2011.13456) and ADM
(`DhariwalUNet`, https://huggingface.co/papers/2105.05233).

A network maps $(c_{in} x, c_{noise})$ to the raw output $F$ of EDM's preconditioned denoiser

$$D_\theta(x, \sigma) = c_{skip}\,x + c_{out}\,F(c_{in} x, c_{noise})$$

(https://huggingface.co/papers/2206.00364, table 1). The scheduler owns the preconditioning.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.unets.unet_2d import UNet2DOutput
from diffusers.utils import is_accelerate_available
from torch import nn

from .unet_blocks import (
    FAMILIES,
    DimensionEmbedding,
    ResampleConv2d,
    SinusoidalEmbedding,
    UNetBlock,
    make_group_norm,
)


# Network options of the published models (https://huggingface.co/papers/2206.00364, table 7), and of
# the model that comes with this package.
PRESETS: dict[str, dict[str, Any]] = {
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

    On a CPU the weights of the convolutions are kept channels last, the layout in which they run
    fastest there.

    Args:
        sample_size (`int`, defaults to 32): Height and width of the images, after which the parts are
            named. Other sizes run too.
        in_channels (`int`, defaults to 3): Channels of the input.
        out_channels (`int`, defaults to 3): Channels of the output.
        model_type (`str`, defaults to `"SongUNet"`): `"SongUNet"` (DDPM++, NCSN++) or
            `"DhariwalUNet"` (ADM).
        model_channels (`int`, defaults to 128): Base number of channels, which `channel_mult`
            multiplies.
        channel_mult (`tuple[int, ...]`, defaults to `(2, 2, 2)`): Factor on the channels of each
            level, from the finest to the coarsest.
        num_blocks (`int`, defaults to 4): Residual blocks per resolution.
        attn_resolutions (`tuple[int, ...]`, defaults to `(16,)`): Resolutions with self-attention.
        dropout (`float`, defaults to 0.13): Dropout probability inside the blocks.
        label_dim (`int`, defaults to 0): Number of classes; 0 is unconditional.
        label_dropout (`float`, defaults to 0): Probability of training without the label, for
            guidance.
        augment_dim (`int`, defaults to 0): Number of augmentation labels; 0 is none.
        embedding_type (`str`, defaults to `"positional"`): `"positional"` (DDPM++, ADM) or
            `"fourier"` (NCSN++).
        channel_mult_noise (`int`, defaults to 1): Width of the noise embedding, as a multiple of
            `model_channels`; 2 for NCSN++.
        encoder_type (`str`, defaults to `"standard"`): `"standard"`, or `"residual"` (NCSN++).
        resample_filter (`tuple[int, ...]`, defaults to `(1, 1)`): Resampling filter; `(1, 3, 3, 1)`
            for NCSN++.
        d_conditioning (`bool`, defaults to `False`): Whether one network serves every D from 1 to
            infinity and is given `D` at each call.

    Raises:
        ValueError: An option is unknown, or `sample_size` cannot be halved once for each level after
            the first.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["UNetBlock"]
    # Where accelerate is missing, diffusers refuses to load a model with such modules.
    _keep_in_fp32_modules = ["map_noise"] if is_accelerate_available() else None

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
            ("model_type", model_type, list(FAMILIES)),
            ("embedding_type", embedding_type, ["positional", "fourier"]),
            ("encoder_type", encoder_type, ["standard", "residual"]),
        ):
            if value not in allowed:
                raise ValueError(f"`{name}` must be one of {allowed}, but is {value!r}.")
        if sample_size % 2 ** (len(channel_mult) - 1):
            raise ValueError(f"`sample_size` {sample_size} cannot be halved {len(channel_mult) - 1} times.")

        self._is_adm = model_type == "DhariwalUNet"
        self._build_mapping()
        skip_channels = self._build_encoder()
        self._build_decoder(skip_channels)
        self.gradient_checkpointing = False
        self._set_layout(torch.channels_last)

    def _build_mapping(self) -> None:
        """Build the mapping from noise level, D, class and augmentation to one embedding."""
        config = self.config
        noise_channels = config.model_channels * config.channel_mult_noise
        emb_channels = 4 * config.model_channels
        if config.embedding_type == "fourier":
            self.map_noise = SinusoidalEmbedding.make_fourier(noise_channels)
        else:
            self.map_noise = SinusoidalEmbedding.make_positional(
                noise_channels, endpoint=not self._is_adm, sin_first=not self._is_adm
            )
        self.map_dimension = DimensionEmbedding(noise_channels) if config.d_conditioning else None
        self.map_augment: nn.Linear | None = None
        if config.augment_dim:
            self.map_augment = nn.Linear(config.augment_dim, noise_channels, bias=False)
        self.map_layer0 = nn.Linear(noise_channels, emb_channels)
        self.map_layer1 = nn.Linear(emb_channels, emb_channels)
        self.map_label: nn.Linear | None = None
        if config.label_dim:
            label_channels = emb_channels if self._is_adm else noise_channels
            self.map_label = nn.Linear(config.label_dim, label_channels, bias=not self._is_adm)

    def _make_block(
        self,
        in_channels: int,
        out_channels: int,
        attention: bool = False,
        up: bool = False,
        down: bool = False,
    ) -> UNetBlock:
        """Build a block of this network's family."""
        num_heads = 0
        if attention:
            num_heads = max(1, out_channels // 64) if self._is_adm else 1
        return UNetBlock(
            in_channels,
            out_channels,
            emb_channels=4 * self.config.model_channels,
            num_heads=num_heads,
            up=up,
            down=down,
            dropout=self.config.dropout,
            resample_filter=self.config.resample_filter,
            **FAMILIES[self.config.model_type],
        )

    def _build_encoder(self) -> list[int]:
        """Build the encoder; return the channels of its outputs, which the decoder takes as skips."""
        config = self.config
        self.enc = nn.ModuleDict()
        channels = config.model_channels * (config.channel_mult[0] if self._is_adm else 1)
        aux_channels = config.in_channels
        skip_channels = []
        for level, mult in enumerate(config.channel_mult):
            resolution = config.sample_size >> level
            prefix = f"{resolution}x{resolution}"
            if level == 0:
                self.enc[f"{prefix}_conv"] = ResampleConv2d(config.in_channels, channels, 3)
            else:
                self.enc[f"{prefix}_down"] = self._make_block(channels, channels, down=True)
            if level > 0 and config.encoder_type == "residual":
                self.enc[f"{prefix}_aux_residual"] = ResampleConv2d(
                    aux_channels, channels, 3, down=True, resample_filter=config.resample_filter, fused=True
                )
                aux_channels = channels
            skip_channels.append(channels)
            for index in range(config.num_blocks):
                attention = resolution in config.attn_resolutions
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
            resolution = config.sample_size >> level
            prefix = f"{resolution}x{resolution}"
            if level == len(config.channel_mult) - 1:
                self.dec[f"{prefix}_in0"] = self._make_block(channels, channels, attention=True)
                self.dec[f"{prefix}_in1"] = self._make_block(channels, channels)
            else:
                self.dec[f"{prefix}_up"] = self._make_block(channels, channels, up=True)
            for index in range(config.num_blocks + 1):
                attention = resolution in config.attn_resolutions
                if not self._is_adm:  # only the last block of a level attends
                    attention = attention and index == config.num_blocks
                width = channels + skip_channels.pop()
                block = self._make_block(width, config.model_channels * mult, attention)
                self.dec[f"{prefix}_block{index}"] = block
                channels = config.model_channels * mult

        out_norm = make_group_norm(channels, FAMILIES[config.model_type]["eps"])
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

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """
        Load a network as [`~diffusers.ModelMixin.from_pretrained`] does.

        Args:
            args, kwargs: As for [`~diffusers.ModelMixin.from_pretrained`].

        Returns:
            [`PFGMPPUNet2DModel`]: The network; with `output_loading_info`, a tuple of the network
                and the information.
        """
        loaded = super().from_pretrained(*args, **kwargs)
        network = loaded[0] if isinstance(loaded, tuple) else loaded
        # Loading may have replaced the weights, with their layout, by those of the file.
        network._set_layout(torch.channels_last)
        return loaded

    def _apply(self, fn: Callable, recurse: bool = True) -> "PFGMPPUNet2DModel":
        # torch moves and casts modules through this method. Weights that leave the CPU take the usual
        # layout with them, unless the caller asks for another one; weights that stay or arrive there
        # are laid out as the CPU likes them.
        leaves_cpu = fn(torch.empty(0, device="cpu")).device.type != "cpu"
        if leaves_cpu:
            self._set_layout(torch.contiguous_format)
        super()._apply(fn, recurse)
        self._set_layout(torch.channels_last)
        return self

    def _set_layout(self, memory_format: torch.memory_format) -> None:
        """Change the memory layout of the convolutions' weights that are on the CPU."""
        for parameter in self.parameters():
            weight = parameter.data
            # Sharded and quantised weights are tensors of other types, with layouts of their own.
            if type(weight) is torch.Tensor and weight.ndim == 4 and weight.device.type == "cpu":
                parameter.data = weight.contiguous(memory_format=memory_format)

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
            emb = emb + self.map_dimension(dof.expand(len(emb)), num_dims)
        if self.map_augment is not None and augment_labels is not None:
            emb = emb + self.map_augment(augment_labels.to(dtype))
        label_emb: torch.Tensor | float = 0.0
        if self.map_label is not None:
            labels = self._encode_labels(class_labels, emb)
            if self.training and config.label_dropout:
                labels = labels * (torch.rand_like(labels[:, :1]) >= config.label_dropout)
            scale = 1.0 if self._is_adm else math.sqrt(config.label_dim)
            label_emb = self.map_label(labels * scale)
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
            raise ValueError(
                f"`class_labels` must be of shape {shape[:1]} or {shape}, but are of shape"
                f" {tuple(class_labels.shape)}."
            )
        return class_labels.to(emb)

    def _run(self, module: nn.Module, x: torch.Tensor, emb: torch.Tensor) -> torch.Tensor:
        if not isinstance(module, UNetBlock):
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
        return_dict: bool = True,
    ) -> UNet2DOutput | tuple[torch.Tensor]:
        r"""
        Compute the raw output F of the preconditioned denoiser.

        Args:
            sample (`torch.Tensor` of shape `(batch, in_channels, height, width)`): The scaled input
                c_in * x.
            timestep (`torch.Tensor` or `float`): c_noise = ln(sigma) / 4, one for all images or one
                per image.
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
            ValueError: The labels are of the wrong shape, or the network is not conditioned on an
                argument that is given.
        """
        for name, given, layer, option in (
            ("class_labels", class_labels, self.map_label, "label_dim"),
            ("augment_labels", augment_labels, self.map_augment, "augment_dim"),
            ("D", D, self.map_dimension, "d_conditioning"),
        ):
            if given is not None and layer is None:
                raise ValueError(
                    f"`{name}` is given, but this network is not conditioned on it: its `{option}` is"
                    " not set."
                )
        timestep = torch.as_tensor(timestep, device=sample.device).expand(len(sample))
        emb = self._embed(timestep, class_labels, augment_labels, D, sample[0].numel(), sample.dtype)

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

        if not return_dict:
            return (x,)
        return UNet2DOutput(sample=x)
