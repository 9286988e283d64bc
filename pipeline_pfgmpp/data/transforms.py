"""
What is done to an image each time that it is read: a random crop, and a degradation.

An image and its degraded version are a pair. A pair travels as one image, whose last channels are those of
the degraded one, so that whatever moves one moves the other.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..images import Scale
from ..records.digests import derive_seed
from .decoding import ImageDecoder
from .degradations import Degrader


@dataclass(frozen=True)
class ImageTransform:
    """
    Crops an image and pairs it with a degraded version.

    Args:
        crop_size (`tuple[int, int]`, *optional*): Height and width of crops, at random places.
        degrader ([`Degrader`], *optional*): Makes the degraded image. Without it, pairs stay what they are.
    """

    crop_size: tuple[int, int] | None = None
    degrader: Degrader | None = None

    def __bool__(self) -> bool:
        return self.crop_size is not None or self.degrader is not None

    def describe(self) -> list:
        """Describe what the images depend on, for digests; nothing if they stay as they are."""
        words = self.degrader.words if self.degrader else None
        return [self.crop_size, words] if self else []

    def __call__(self, image: torch.Tensor, value_range: Scale, generator: torch.Generator) -> torch.Tensor:
        """
        Transform an image.

        Args:
            image (`torch.Tensor` of shape `(C, H, W)`): The image, or a pair.
            value_range (`tuple[float, float]`): The values of black and white.
            generator (`torch.Generator`): Source of randomness, on the CPU.

        Returns:
            `torch.Tensor`: The crop; with a degrader, of twice as many channels.
        """
        image = self.crop(image, generator)
        if self.degrader is None:
            return image
        return torch.cat([image, self.degrader(image, value_range, generator)])

    def crop(self, image: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """
        Crop an image at a random place, if images are cropped.

        Args:
            image (`torch.Tensor` of shape `(C, H, W)`): An image of at least the size of the crop.
            generator (`torch.Generator`): Source of randomness.

        Returns:
            `torch.Tensor` of shape `(C, *crop_size)`: The crop, a view of the image.
        """
        if self.crop_size is None:
            return image
        height, width = self.crop_size
        top = int(torch.randint(image.shape[1] - height + 1, (), generator=generator))
        left = int(torch.randint(image.shape[2] - width + 1, (), generator=generator))
        return image[:, top : top + height, left : left + width]


def make_transform(decoder: ImageDecoder, degradation: Sequence[str] | None) -> ImageTransform:
    """
    Make the transform for decoded images.

    Args:
        decoder ([`ImageDecoder`]): The decoder.
        degradation (`Sequence[str]`, *optional*): Degradations, as for [`Degrader`].

    Returns:
        [`ImageTransform`]: The transform.

    Raises:
        ValueError: A degradation is not known, or the images are paired already.
    """
    if degradation and decoder.condition_channels:
        raise ValueError("`degradation` makes the degraded images that `condition_column` names: give one.")
    degrader = Degrader(degradation) if degradation else None
    return ImageTransform(decoder.size if decoder.crop else None, degrader)


def split_pairs(
    images: torch.Tensor, condition_channels: int, kept: torch.Tensor | None = None
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """
    Split pairs into images and the degraded ones, from which a network restores them.

    Args:
        images (`torch.Tensor` of shape `(batch, C, H, W)`): Pairs, or images alone.
        condition_channels (`int`): How many channels, the last ones, are those of the degraded images.
        kept (`torch.Tensor` of shape `(batch,)`, *optional*): Which degraded images are kept; the others
            become 0, which says nothing about the image. None keeps all.

    Returns:
        `tuple[torch.Tensor, dict[str, torch.Tensor]]`: The images, and `condition` with the degraded ones;
            nothing for images alone.
    """
    if not condition_channels:
        return images, {}
    clean, degraded = images.split([images.shape[1] - condition_channels, condition_channels], dim=1)
    if kept is not None:
        degraded = degraded * kept.view(-1, 1, 1, 1)
    return clean, {"condition": degraded}


def make_generator(seed: int, *place: int) -> torch.Generator:
    """
    Make the source of randomness for the image at a place in the order of a run.

    Args:
        seed (`int`): The seed of the run.
        place (`int`): The place.

    Returns:
        `torch.Generator`: The generator, which depends on nothing else.
    """
    return torch.Generator().manual_seed(derive_seed(seed, "transform", *place))
