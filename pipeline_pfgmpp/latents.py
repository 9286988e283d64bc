# Copyright 2026 The pipeline_pfgmpp authors. Licensed under the Apache License, Version 2.0.
r"""
Latents: the form in which an autoencoder of diffusers hands images to a network.

The encoder gives a normal distribution of $z$ for each image, or one $z$. The network sees

$$x = s\,\frac{z - m}{d},$$

with the `scaling_factor` s of the autoencoder's configuration (1 if there is none), and with m and d its
`latents_mean` and `latents_std` per channel, or else its `shift_factor` (0 if there is none) and 1
(https://huggingface.co/papers/2112.10752, app. G; https://huggingface.co/papers/2402.17245). This is the
one place that encodes and decodes. Without an autoencoder an image is its own latent.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch

from .arguments import describe


# Entries of a configuration that list the encoder's levels, each of which but one halves the sides.
LEVELS = ("encoder_block_out_channels", "down_block_out_channels", "block_out_channels")
PIXELS_AT_ONCE = 2**20  # per channel, that are encoded or decoded together
MOST_CHANNELS = 4  # of a picture


class Encoding(NamedTuple):
    """
    What an encoder makes of images.

    Args:
        mean (`torch.Tensor` of shape `(batch, channels, height, width)`): Mean of the latents.
        deviation (`torch.Tensor` or `None`): Their standard deviation, of the same shape; None if the
            encoder is deterministic.
    """

    mean: torch.Tensor
    deviation: torch.Tensor | None = None


def check_autoencoder(vae: Any) -> None:
    """
    Refuse what is no autoencoder of pictures.

    Args:
        vae (`ModelMixin` or `None`): The autoencoder; None is none.

    Raises:
        ValueError: It cannot encode and decode, or not pictures of 1 to 4 channels.
    """
    if vae is None:
        return
    config = getattr(vae, "config", {})
    is_video = "temporal_compression_ratio" in config or "temporal_downsample_factor" in config
    is_known = "latent_channels" in config and any(name in config for name in LEVELS) and not is_video
    if not is_known or not hasattr(vae, "encode") or not hasattr(vae, "decode"):
        raise ValueError(
            "`vae` must be an autoencoder of diffusers for images, such as AutoencoderKL, AutoencoderTiny or"
            f" AutoencoderDC, but is {describe(vae)}."
        )
    taken = config["in_channels"]
    returned = config.get("out_channels", taken)
    if taken != returned or not 1 <= taken <= MOST_CHANNELS:
        raise ValueError(
            f"`vae` must take and return pictures of 1 to {MOST_CHANNELS} channels, but takes {taken} and"
            f" returns {returned}."
        )


def find_factor(config: Mapping[str, Any] | None) -> int:
    """
    Find by what factor an autoencoder shrinks the sides of an image.

    Args:
        config (`Mapping[str, Any]` or `None`): Its configuration; None without an autoencoder.

    Returns:
        `int`: Pixels per latent along each side; 1 without an autoencoder.
    """
    if config is None:
        return 1
    levels = next(config[name] for name in LEVELS if name in config)
    return 2 ** (len(levels) - 1)


def get_factor(vae: Any) -> int:
    """
    Return by what factor an autoencoder shrinks the sides of an image.

    Args:
        vae (`ModelMixin` or `None`): The autoencoder.

    Returns:
        `int`: Pixels per latent along each side; 1 without an autoencoder.
    """
    return find_factor(None if vae is None else vae.config)


def count_image_channels(vae: Any, latent_channels: int) -> int:
    """
    Count the channels of the images that latents stand for.

    Args:
        vae (`ModelMixin` or `None`): The autoencoder.
        latent_channels (`int`): Channels of the latents.

    Returns:
        `int`: Channels of the images: as many as of latents without an autoencoder.
    """
    return latent_channels if vae is None else vae.config.in_channels


@torch.no_grad()
def encode_images(vae: Any, images: torch.Tensor) -> Encoding:
    """
    Encode images, a few at a time and in the autoencoder's own type.

    Args:
        vae (`ModelMixin` or `None`): The autoencoder, on the device of the images.
        images (`torch.Tensor` of shape `(batch, channels, height, width)`): Images in about [-1, 1], with
            sides that the factor divides.

    Returns:
        [`Encoding`]: The latents, in the type of the images; without an autoencoder the images.

    Raises:
        ValueError: The latents are of another size than the autoencoder's configuration says.
    """
    if vae is None:
        return Encoding(images)
    _avoid_overflow(vae)
    parts = [_encode(vae, part) for part in _split(images, images.shape[2:])]
    means, deviations = zip(*parts)
    mean = torch.cat(means).to(images.dtype)
    shift, scale = _get_normalization(vae.config, mean)
    mean = (mean - shift) * scale
    factor = get_factor(vae)
    height, width = images.shape[2:]
    expected = (vae.config.latent_channels, height // factor, width // factor)
    if tuple(mean.shape[1:]) != expected:
        raise ValueError(
            f"`vae` makes latents of shape {tuple(mean.shape[1:])} of images of {height}x{width} pixels,"
            f" where its configuration says {expected}."
        )
    if deviations[0] is None:
        return Encoding(mean)
    return Encoding(mean, torch.cat(deviations).to(images.dtype) * scale)


def _avoid_overflow(vae: Any) -> None:
    """Convert an autoencoder for which float16 is too coarse, as its configuration says, to float32."""
    if vae.dtype == torch.float16 and vae.config.get("force_upcast"):
        vae.to(torch.float32)


def _encode(vae: Any, images: torch.Tensor) -> Encoding:
    """Encode a few images, without scaling."""
    output = vae.encode(images.to(vae.dtype))
    if hasattr(output, "latent_dist"):
        return Encoding(output.latent_dist.mean, output.latent_dist.std)
    return Encoding(output.latents if hasattr(output, "latents") else output.latent)


@torch.no_grad()
def decode_latents(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """
    Decode latents, a few at a time and in the autoencoder's own type.

    Args:
        vae (`ModelMixin` or `None`): The autoencoder, on the device of the latents.
        latents (`torch.Tensor` of shape `(batch, channels, height, width)`): Latents, as for the network.

    Returns:
        `torch.Tensor`: Images in about [-1, 1], in the type of the latents; without an autoencoder the
            latents.
    """
    if vae is None:
        return latents
    _avoid_overflow(vae)
    shift, scale = _get_normalization(vae.config, latents)
    factor = get_factor(vae)
    size = [side * factor for side in latents.shape[2:]]
    parts = [vae.decode(part.to(vae.dtype)).sample for part in _split(latents / scale + shift, size)]
    return torch.cat(parts).to(latents.dtype)


def _split(batch: torch.Tensor, size: Any) -> Iterator[torch.Tensor]:
    """Split a batch, given the size of the images that it stands for, so that memory is bounded."""
    height, width = size
    return iter(batch.split(max(1, PIXELS_AT_ONCE // (height * width))))


def _get_normalization(config: Mapping[str, Any], latents: torch.Tensor) -> tuple[Any, Any]:
    """Return what is subtracted from the encoder's latents, and by what they are then multiplied."""
    scale = config.get("scaling_factor") or 1.0
    mean = config.get("latents_mean")
    deviation = config.get("latents_std")
    if mean is None or deviation is None:
        return config.get("shift_factor") or 0.0, scale
    shape = (1, -1, 1, 1)
    return latents.new_tensor(mean).view(shape), scale / latents.new_tensor(deviation).view(shape)


def shrink_mask(vae: Any, mask: torch.Tensor) -> torch.Tensor:
    """
    Find the latents that are to be repainted: those of which any pixel is.

    Args:
        vae (`ModelMixin` or `None`): The autoencoder.
        mask (`torch.Tensor` of booleans, of shape `(batch, channels, height, width)`): The pixels to repaint.

    Returns:
        `torch.Tensor` of booleans: The latents, of shape `(batch, 1, height / factor, width / factor)`;
            without an autoencoder the mask itself.
    """
    if vae is None:
        return mask
    any_channel = mask.any(1, keepdim=True).float()
    return torch.nn.functional.max_pool2d(any_channel, get_factor(vae)) > 0
