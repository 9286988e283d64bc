# Copyright 2026 The pipeline_pfgmpp authors. Licensed under the Apache License, Version 2.0.
r"""
Images into a pipeline and out of it.

Inside, an image is a tensor $x \in [-1, 1]^{C \times H \times W}$. A level $v \in \{0, \dots, 255\}$
becomes $x = v / 127.5 - 1$, and a sample goes out as $(x + 1) / 2 \in [0, 1]$.
"""

from typing import Any, TypeAlias

import numpy as np
import PIL.Image
import torch
from diffusers.utils import numpy_to_pil


OUTPUT_TYPES = ("pil", "np", "pt", "latent")
Images: TypeAlias = PIL.Image.Image | list[PIL.Image.Image] | np.ndarray | torch.Tensor


def prepare_images(images: Images, name: str, channels: int, size: tuple[int, int]) -> torch.Tensor:
    """
    Convert images of any form to a tensor.

    Args:
        images (`PIL.Image.Image`, list of them, `np.ndarray` or `torch.Tensor`): PIL images,
            integers in [0, 255] or floats in [-1, 1]; arrays of shape (batch, height, width,
            channels), tensors of shape (batch, channels, height, width).
        name (`str`): Name of the argument, for messages.
        channels (`int`): Channels that the images must have; PIL images are converted.
        size (`tuple[int, int]`): Height and width that they must have.

    Returns:
        `torch.Tensor` of shape `(batch, channels, height, width)`: The images in [-1, 1].

    Raises:
        ValueError: The images are of another kind, shape or range.
    """
    tensor = _to_tensor(images, "L" if channels == 1 else "RGB")
    shape = (channels, *size)
    if tensor is None or tensor.shape[1:] != shape or not len(tensor):
        found = type(images).__name__ if tensor is None else tuple(tensor.shape)
        raise ValueError(f"`{name}` must hold images of shape {shape}, but is {found}.")
    if tensor.is_floating_point():
        _check_bounds(tensor, name, -1, 1, "floats")
        return tensor
    _check_bounds(tensor, name, 0, 255, "integers")
    return tensor.float() / 127.5 - 1


def _to_tensor(images: Any, mode: str) -> torch.Tensor | None:
    """Return images as a tensor with channels first, or None for what holds no images."""
    if isinstance(images, PIL.Image.Image):
        images = [images]
    if isinstance(images, (list, tuple)):
        if not images or not all(isinstance(image, PIL.Image.Image) for image in images):
            return None
        images = np.stack([np.asarray(image.convert(mode)) for image in images])
        images = images.reshape(*images.shape[:3], -1)
    if isinstance(images, np.ndarray):
        images = torch.from_numpy(images)
        if images.ndim == 4:
            images = images.permute(0, 3, 1, 2)
    return images if isinstance(images, torch.Tensor) else None


def _check_bounds(images: torch.Tensor, name: str, low: int, high: int, kind: str) -> None:
    if not bool(((images >= low) & (images <= high)).all()):
        raise ValueError(
            f"`{name}` must lie in [{low}, {high}] ({kind}), but ranges from {images.min().item():g} to"
            f" {images.max().item():g}."
        )


def prepare_mask(mask_image: Images, image: torch.Tensor) -> torch.Tensor:
    """
    Convert a mask of any form to a tensor of booleans.

    Args:
        mask_image (`PIL.Image.Image`, `np.ndarray` or `torch.Tensor`): The mask. Values brighter than
            the middle of their range, or True, are selected.
        image (`torch.Tensor` of shape `(batch, channels, height, width)`): The images that it masks.

    Returns:
        `torch.Tensor`: The mask, in a shape that broadcasts over the images, on their device.

    Raises:
        ValueError: The mask is of another size.
    """
    if isinstance(mask_image, PIL.Image.Image):
        mask = torch.from_numpy(np.asarray(mask_image.convert("L")) > 127)
    else:
        mask = torch.as_tensor(mask_image)
        if mask.dtype != torch.bool:
            mask = mask > (0.5 if mask.is_floating_point() else 127)
    broadcasts = mask.ndim < 4 or (mask.ndim == 4 and mask.shape[1] in (1, image.shape[1]))
    if mask.shape[-2:] != image.shape[-2:] or not broadcasts:
        raise ValueError(
            f"`mask_image` must be of size {tuple(image.shape[-2:])}, but is of shape {tuple(mask.shape)}."
        )
    return mask.to(image.device)


def convert_samples(samples: torch.Tensor, output_type: str) -> Any:
    """
    Convert samples to the form in which a pipeline returns them.

    Args:
        samples (`torch.Tensor` of shape `(batch, channels, height, width)`): Samples in about [-1, 1].
        output_type (`str`): One of `OUTPUT_TYPES`, as for [`PFGMPPPipeline.__call__`].

    Returns:
        `list[PIL.Image.Image]`, `np.ndarray` or `torch.Tensor`: The images.
    """
    if output_type == "latent":
        return samples
    images = (samples / 2 + 0.5).clamp(0, 1)
    if output_type == "pt":
        return images
    array = images.permute(0, 2, 3, 1).cpu().float().numpy()
    return array if output_type == "np" else numpy_to_pil(array)
