"""The size of images, in numbers and in text."""

from __future__ import annotations

from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from diffusers import ModelMixin


def get_image_size(unet: ModelMixin) -> tuple[int, int]:
    """
    Return the size of the images that a network denoises.

    Args:
        unet (`ModelMixin`): The network, whose `sample_size` is one number for square images.

    Returns:
        `tuple[int, int]`: Height and width in pixels.
    """
    size = unet.config.sample_size
    if isinstance(size, int):
        return size, size
    height, width = size
    return height, width


def format_size(height: int, width: int) -> str:
    """
    Format the size of images.

    Args:
        height (`int`): Height in pixels.
        width (`int`): Width in pixels.

    Returns:
        `str`: Both sides, and in which order they stand if they differ.
    """
    size = f"{height}×{width}"
    return size if height == width else f"{size} (height × width)"
