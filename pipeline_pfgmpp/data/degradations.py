r"""
Degradations of images, from which a network learns to restore them.

A degradation is a function of an image with values in [0, 1], a level and a source of randomness. On a
command line it is a word:

    gaussian=0.1               noise of this level
    gaussian=0.05:0.2          a level drawn between these two, uniformly, anew each time
    grey                       the level that the degradation has by default
    downscale=4 jpeg=30:90     one after the other
    gaussian,downscale,mask    one of them, at random

Others are added in Python:

    @register_degradation("darken", default=0.5, low=0.0, high=1.0)
    def darken(image: torch.Tensor, level: float, generator: torch.Generator) -> torch.Tensor:
        return image * level
"""

import io
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F

from ..images import SLACK, Scale, require_range
from ..pixels import LUMA


Function: TypeAlias = Callable[[torch.Tensor, float, torch.Generator], torch.Tensor]


class Degradation(NamedTuple):
    """
    A degradation and its levels.

    Args:
        function (`Callable`): Takes an image of shape `(C, H, W)` in [0, 1], a level and a generator, and
            returns the degraded image in the same shape.
        default (`float`): The level where none is given.
        low (`float`): The smallest level.
        high (`float`): The largest level.
        is_whole (`bool`, defaults to `False`): Whether levels are whole numbers.
    """

    function: Function
    default: float
    low: float
    high: float
    is_whole: bool = False


DEGRADATIONS: dict[str, Degradation] = {}


def register_degradation(
    name: str, default: float, low: float, high: float, is_whole: bool = False
) -> Callable[[Function], Function]:
    """
    Make a decorator that registers a degradation under a name.

    Args:
        name (`str`): The name; it may replace another degradation.
        default, low, high, is_whole: As for [`Degradation`].

    Returns:
        `Callable`: The decorator, which returns its function unchanged.

    Raises:
        ValueError: The name is not made of letters, digits and `_`.
    """
    if not name.isidentifier():
        raise ValueError(f"`name` of a degradation must be made of letters, digits and _, but is {name!r}.")

    def register(function: Function) -> Function:
        DEGRADATIONS[name] = Degradation(function, default, low, high, is_whole)
        return function

    return register


@register_degradation("gaussian", default=0.1, low=0.0, high=10.0)
def add_gaussian_noise(image: torch.Tensor, level: float, generator: torch.Generator) -> torch.Tensor:
    """Add Gaussian noise, whose standard deviation is `level` of the distance from black to white."""
    return image + level * torch.randn(image.shape, generator=generator)


@register_degradation("poisson", default=100.0, low=1e-3, high=1e6)
def add_poisson_noise(image: torch.Tensor, level: float, generator: torch.Generator) -> torch.Tensor:
    """Count photons, of which a white pixel receives `level` in the mean."""
    return torch.poisson(image.clamp(min=0) * level, generator=generator) / level


@register_degradation("blur", default=2.0, low=0.0, high=100.0)
def blur(image: torch.Tensor, level: float, generator: torch.Generator) -> torch.Tensor:
    """Blur by a Gaussian with a standard deviation of `level` pixels; borders are repeated."""
    radius = math.ceil(3 * level)
    if not radius:
        return image
    positions = torch.arange(-radius, radius + 1, dtype=torch.float32)
    taps = (-0.5 * (positions / level) ** 2).exp()
    taps = taps / taps.sum()
    planes = F.pad(image[:, None], (radius,) * 4, mode="replicate")
    planes = F.conv2d(planes, taps.view(1, 1, 1, -1))
    return F.conv2d(planes, taps.view(1, 1, -1, 1))[:, 0]


@register_degradation("downscale", default=4, low=1, high=64, is_whole=True)
def downscale(image: torch.Tensor, level: float, generator: torch.Generator) -> torch.Tensor:
    """Average squares of `level` pixels, and enlarge the result to the old size by cubic interpolation."""
    size = image.shape[1:]
    small = F.interpolate(image[None], [-(-side // int(level)) for side in size], mode="area")
    return F.interpolate(small, size, mode="bicubic", align_corners=False)[0]


@register_degradation("jpeg", default=30, low=1, high=95, is_whole=True)
def compress(image: torch.Tensor, level: float, generator: torch.Generator) -> torch.Tensor:
    """Compress as a JPEG picture of quality `level`; channels that make no picture each by itself."""
    pixels = (image.clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    pictures = [pixels.transpose(1, 2, 0)] if len(pixels) == 3 else list(pixels)
    parts = []
    for picture in pictures:
        file = io.BytesIO()
        PIL.Image.fromarray(picture).save(file, "JPEG", quality=int(level))
        parts.append(np.atleast_3d(np.asarray(PIL.Image.open(file))).transpose(2, 0, 1))
    return torch.from_numpy(np.concatenate(parts)).float() / 255


@register_degradation("mask", default=0.25, low=0.0, high=1.0)
def mask(image: torch.Tensor, level: float, generator: torch.Generator) -> torch.Tensor:
    """Hide a rectangle that covers the share `level` of the image, at a random place, under middle grey."""
    _, height, width = image.shape
    exponent, top, left = torch.rand(3, generator=generator).tolist()
    exponent = 0.25 + exponent / 2  # of the height; of the width it is the rest
    rows = round(height * level**exponent)
    columns = round(width * level ** (1 - exponent))
    first_row = int(top * (height - rows + 1))
    first_column = int(left * (width - columns + 1))
    hidden = image.clone()
    hidden[:, first_row : first_row + rows, first_column : first_column + columns] = 0.5
    return hidden


@register_degradation("grey", default=1.0, low=0.0, high=1.0)
def remove_colour(image: torch.Tensor, level: float, generator: torch.Generator) -> torch.Tensor:
    """Take away the share `level` of the colours; images of other than three channels have none."""
    if len(image) != 3:
        return image
    grey = torch.einsum("c,chw->hw", torch.from_numpy(LUMA), image)
    return torch.lerp(image, grey.expand_as(image), level)


class _Choice(NamedTuple):
    """A degradation by name, and the levels from which one is drawn."""

    name: str
    low: float
    high: float

    def degrade(self, image: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Degrade an image with values in [0, 1]."""
        degradation = DEGRADATIONS[self.name]
        level = self.low
        if self.high > self.low:
            position = torch.rand((), generator=generator).item()
            level = self.low + position * (self.high - self.low)
            if degradation.is_whole:
                level = self.low + math.floor(position * (self.high - self.low + 1))
        degraded = degradation.function(image, level, generator)
        if degraded.shape != image.shape:
            raise ValueError(
                f"the degradation {self.name} must return an image of shape {tuple(image.shape)}, but"
                f" returned {tuple(degraded.shape)}"
            )
        return degraded


def _parse_choice(text: str) -> _Choice:
    """Parse a degradation such as `gaussian=0.05:0.2`."""
    name, has_level, levels = text.partition("=")
    if name not in DEGRADATIONS:
        raise ValueError(
            f"`degradation` must be made of {', '.join(sorted(DEGRADATIONS))}, each alone or with a level"
            f" such as gaussian=0.1 or gaussian=0.05:0.2, but is {text!r}."
        )
    degradation = DEGRADATIONS[name]
    if not has_level:
        return _Choice(name, degradation.default, degradation.default)
    first, is_range, last = levels.partition(":")
    kind = "a whole number" if degradation.is_whole else "a number"
    try:
        low = float(first)
        high = float(last) if is_range else low
    except ValueError:
        low = high = math.nan
    is_allowed = degradation.low <= low <= high <= degradation.high
    if not is_allowed or (degradation.is_whole and not (low.is_integer() and high.is_integer())):
        raise ValueError(
            f"`degradation`: the level of {name} must be {kind} in [{degradation.low:g},"
            f" {degradation.high:g}], or two as low:high, but is {levels!r}."
        )
    return _Choice(name, low, high)


class Degrader:
    """
    Degrades images by some degradations, one after the other.

    Args:
        words (`Sequence[str]`): Degradations as on a command line, such as `["downscale=4",
            "gaussian=0.05:0.2"]`. Of several in a word, separated by commas, one is drawn each time.

    Raises:
        ValueError: There is no such degradation, or its level is not allowed.
    """

    def __init__(self, words: Sequence[str]):
        if isinstance(words, str) or not words:
            raise ValueError(f"`degradation` must be a list of degradations, but is {words!r}.")
        self.words = tuple(words)
        self._stages = [[_parse_choice(text) for text in word.split(",")] for word in words]

    def __call__(self, image: torch.Tensor, value_range: Scale, generator: torch.Generator) -> torch.Tensor:
        """
        Degrade an image.

        Args:
            image (`torch.Tensor` of shape `(C, H, W)`, uint8 or float32): The image.
            value_range (`tuple[float, float]`): The values of black and white.
            generator (`torch.Generator`): Source of randomness, on the CPU.

        Returns:
            `torch.Tensor`: The degraded image in the same shape, type and units. Bytes are rounded and
                clipped, as they are in files; floats are clipped a whole range beyond their own.

        Raises:
            ValueError: The values are those of fields, which have no black and white.
        """
        low, high = require_range(value_range)
        degraded = (image.float() - low) / (high - low)
        for choices in self._stages:
            chosen = choices[0]
            if len(choices) > 1:
                chosen = choices[int(torch.randint(len(choices), (), generator=generator))]
            degraded = chosen.degrade(degraded, generator)
        if image.dtype == torch.uint8:
            return (low + (high - low) * degraded.clamp(0, 1)).round().to(torch.uint8)
        return low + (high - low) * degraded.clamp(-SLACK, 1 + SLACK)
