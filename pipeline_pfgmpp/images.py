# Copyright 2026 The pipeline_pfgmpp authors. Licensed under the Apache License, Version 2.0.
r"""
Images into a pipeline and out of it.

Inside, an image is a tensor $x \in [-1, 1]^{C \times H \times W}$. Outside, its values lie in a range
$[a, b]$ and $x = 2 (v - a) / (b - a) - 1$: $[0, 1]$ for floats, as in diffusers, unless the pipeline has
a `value_range`; the range of their depth for integers.

Fields, such as those of weather, have no black and white, and their extremes matter. They are
standardised by channel, $x = (v - m) / s$, and nothing is clipped.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import numpy as np
import PIL.Image
import torch
from diffusers.utils import numpy_to_pil

from .arguments import describe, read_number
from .pixels import EIGHT_BITS, SIXTEEN_BITS, read_picture


OUTPUT_TYPES = ["pil", "np", "pt", "latent"]
UNIT = (0.0, 1.0)
SLACK = 1.0  # how far degraded images may lie outside their range of values, in widths of it: noise does
Range: TypeAlias = tuple[float, float]


@dataclass(frozen=True)
class Standardization:
    """
    The mean and the standard deviation of each channel of fields, which a network sees as 0 and 1.

    Args:
        mean (`tuple[float, ...]`): The means, in the units of the data.
        deviation (`tuple[float, ...]`): The standard deviations.
    """

    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    def standardize(self, values: torch.Tensor) -> torch.Tensor:
        """
        Map values in the units of the data to those that a network sees.

        Args:
            values (`torch.Tensor` of shape `(..., channels, height, width)`): The values.

        Returns:
            `torch.Tensor`, at least float32: The standardised values.
        """
        exact = values.to(torch.promote_types(values.dtype, torch.float32))
        return (exact - self._by_channel(self.mean, exact)) / self._by_channel(self.deviation, exact)

    def restore(self, values: torch.Tensor) -> torch.Tensor:
        """
        Map what a network makes to the units of the data.

        Args:
            values (`torch.Tensor` of shape `(..., channels, height, width)`): The standardised values.

        Returns:
            `torch.Tensor`, at least float32: The values.
        """
        exact = values.to(torch.promote_types(values.dtype, torch.float32))
        return exact * self._by_channel(self.deviation, exact) + self._by_channel(self.mean, exact)

    @staticmethod
    def _by_channel(numbers: Sequence[float], like: torch.Tensor) -> torch.Tensor:
        return torch.tensor(numbers, dtype=like.dtype, device=like.device).view(-1, 1, 1)


Scale: TypeAlias = Range | Standardization
Image: TypeAlias = PIL.Image.Image | np.ndarray | torch.Tensor
Images: TypeAlias = Image | list[PIL.Image.Image] | list[np.ndarray] | list[torch.Tensor]


def check_value_range(value_range: Any) -> list[float] | None:
    """
    Return a range of values as JSON keeps it, or refuse it.

    Args:
        value_range (`tuple[float, float]` or `None`): The values of black and white.

    Returns:
        `list[float]` or `None`: The range.

    Raises:
        ValueError: It is not two increasing numbers.
    """
    if value_range is None:
        return None
    bounds = list(value_range) if isinstance(value_range, (list, tuple, np.ndarray, torch.Tensor)) else []
    numbers = [number for number in map(read_number, bounds) if number is not None and math.isfinite(number)]
    if len(bounds) != 2 or len(numbers) != 2 or numbers[0] >= numbers[1]:
        raise ValueError(f"`value_range` must be (low, high) with low < high, but is {value_range!r}.")
    return [float(number) for number in numbers]


def check_scale(value_range: Any, channels: int) -> list[float] | dict[str, list[float]] | None:
    """
    Return how values become what a network sees, as JSON keeps it, or refuse it.

    Args:
        value_range (`tuple[float, float]`, [`Standardization`], `dict` or `None`): The values of black and
            white, or `mean` and `deviation`, each with one number per channel.
        channels (`int`): The number of channels.

    Returns:
        `list[float]`, `dict[str, list[float]]` or `None`: The same in lists.

    Raises:
        ValueError: It is neither.
    """
    entries = asdict(value_range) if isinstance(value_range, Standardization) else value_range
    if not isinstance(entries, Mapping):
        return check_value_range(value_range)
    checked = {}
    for name in ("mean", "deviation"):
        given = entries.get(name)
        numbers = [read_number(each) for each in given] if isinstance(given, (list, tuple)) else []
        least = 0.0 if name == "deviation" else -math.inf
        checked[name] = [float(each) for each in numbers if each is not None and least < each < math.inf]
        if len(entries) != 2 or len(numbers) != channels or len(checked[name]) != channels:
            raise ValueError(
                "`value_range` of fields must hold `mean` and `deviation`, each with a number for each of the"
                f" {channels} channels, the deviations positive, but is {value_range!r}."
            )
    return checked


def read_scale(value_range: Any) -> Scale | None:
    """
    Read what [`check_scale`] returned.

    Args:
        value_range (`list[float]`, `dict[str, list[float]]` or `None`): The entry of a configuration.

    Returns:
        `tuple[float, float]`, [`Standardization`] or `None`: How values become what a network sees.
    """
    if isinstance(value_range, Mapping):
        return Standardization(tuple(value_range["mean"]), tuple(value_range["deviation"]))
    return (value_range[0], value_range[1]) if value_range else None


def require_range(value_range: Scale) -> Range:
    """
    Return the values of black and white, or refuse fields, which have none.

    Args:
        value_range (`tuple[float, float]` or [`Standardization`]): How values become what a network sees.

    Returns:
        `tuple[float, float]`: The range.

    Raises:
        ValueError: The values are those of fields.
    """
    if isinstance(value_range, Standardization):
        raise ValueError("`value_range` must be (low, high) here, but is that of fields, without pictures.")
    return value_range


def normalize(values: torch.Tensor, value_range: Scale) -> torch.Tensor:
    """
    Map values from their range to [-1, 1], or standardise them.

    Args:
        values (`torch.Tensor` of shape `(..., channels, height, width)`): Values of any type.
        value_range (`tuple[float, float]` or [`Standardization`]): The values that become -1 and 1, or
            those that become 0 and 1 in each channel.

    Returns:
        `torch.Tensor`, at least float32: What a network sees.
    """
    if isinstance(value_range, Standardization):
        return value_range.standardize(values)
    low, high = value_range
    exact = values.to(torch.promote_types(values.dtype, torch.float32))
    return (exact - low) / ((high - low) / 2) - 1


def prepare_images(
    images: Images,
    name: str,
    channels: int,
    size: tuple[int, int] | None,
    value_range: Scale | None = None,
    slack: float = 0.0,
) -> torch.Tensor:
    """
    Convert images of any form to a tensor.

    Args:
        images (`PIL.Image.Image`, `np.ndarray`, `torch.Tensor` or a list of them): PIL images of any
            mode; arrays of shape (batch, height, width, channels), tensors of shape (batch, channels,
            height, width), both without the channels if there is one. Floats lie in [0, 1], or in the
            pipeline's `value_range`; uint8 in [0, 255] and uint16 in [0, 65535]; other integers in the
            `value_range`, or else in [0, 255].
        name (`str`): Name of the argument, for messages.
        channels (`int`): Channels that the images must have; PIL images are converted.
        size (`tuple[int, int]` or `None`): Height and width that they must have; None is any.
        value_range (`tuple[float, float]` or [`Standardization`], *optional*): The pipeline's. Of fields,
            whose values are in the units of the data, there are no PIL images.
        slack (`float`, defaults to 0): How far values may lie outside their range, in widths of it.

    Returns:
        `torch.Tensor` of shape `(batch, channels, height, width)`: The images in [-1, 1], or as far outside
            as they lie outside their range.

    Raises:
        ValueError: The images are of another kind, shape or range.
    """
    shape = f"({channels}, height, width)" if size is None else str((channels, *size))
    parts = []
    image_range: Scale
    for image in images if isinstance(images, (list, tuple)) else [images]:
        if isinstance(image, PIL.Image.Image):
            values, image_range = _read_picture(image, name, channels, value_range)
        else:
            values = _read_tensor(image, name, shape, channels)
            image_range = _find_range(values.dtype, value_range)
        parts.append(_scale(values, name, image_range, slack))
    sizes = {tuple(part.shape[2:]) for part in parts}
    if len(sizes) > 1:
        named = " and ".join(f"{height}x{width}" for height, width in sorted(sizes))
        raise ValueError(f"`{name}` holds images of several sizes (height x width): {named}.")
    tensor = torch.cat(parts) if parts else torch.empty(0)
    if tensor.shape[1:2] != (channels,) or size not in (None, tensor.shape[2:]) or not tensor.numel():
        raise ValueError(
            f"`{name}` must hold images of shape {shape}, but is of shape {tuple(tensor.shape)}."
        )
    return tensor


def _read_picture(
    image: PIL.Image.Image, name: str, channels: int, value_range: Scale | None
) -> tuple[torch.Tensor, Range]:
    """Return the values of a picture with channels first, and their range."""
    if isinstance(value_range, Standardization):
        raise ValueError(f"`{name}` must be an array or a tensor in the units of the data, but is a picture.")
    try:
        pixels = read_picture(image, channels)
    except ValueError as error:
        raise ValueError(f"`{name}` cannot be used: {error}.") from None
    values = torch.from_numpy(pixels.values).permute(2, 0, 1)[None]
    if pixels.value_range == SIXTEEN_BITS:
        return values, find_deep_range(value_range)
    if pixels.value_range is not None:
        return values, pixels.value_range
    if value_range is None and image.mode != "F":
        raise ValueError(
            f"`{name}` is a picture of mode {image.mode}, which does not tell its range; convert it to mode"
            " I;16, or give the pipeline a `value_range`."
        )
    return values, value_range or UNIT


def _to_tensor(array: np.ndarray) -> torch.Tensor:
    """Convert an array of numbers to a tensor, also of types that torch does not know."""
    dtype = np.dtype(np.float64) if array.dtype.itemsize > 8 else array.dtype.newbyteorder("=")
    return torch.from_numpy(np.ascontiguousarray(array.astype(dtype)))


def _read_tensor(image: Any, name: str, shape: str, channels: int) -> torch.Tensor:
    """Return an array or a tensor as a batch with channels first; a stack of grey images is a batch too."""
    tensor = image
    is_stack = channels == 1 and getattr(image, "ndim", None) == 3
    if isinstance(image, np.ndarray) and image.dtype.kind in "buif":
        tensor = _to_tensor(image)
        if tensor.ndim == 2 or (is_stack and tensor.shape[-1] != 1):
            tensor = tensor[..., None]
        if tensor.ndim in (3, 4):
            tensor = tensor.movedim(-1, -3)
    if not isinstance(tensor, torch.Tensor) or tensor.is_complex():
        raise ValueError(f"`{name}` must hold images of shape {shape}, but is {describe(image)}.")
    if is_stack and tensor.ndim == 3:
        tensor = tensor[:, None]
    if tensor.ndim == 2:
        tensor = tensor[None]
    if tensor.ndim == 3:
        tensor = tensor[None]
    if tensor.ndim != 4:
        raise ValueError(f"`{name}` must hold images of shape {shape}, but is {describe(image)}.")
    return tensor


def _find_range(dtype: torch.dtype, value_range: Scale | None) -> Scale:
    """Return the range of the values of a type."""
    if isinstance(value_range, Standardization):
        return value_range
    if dtype == torch.bool:
        return UNIT
    if dtype == torch.uint8:
        return EIGHT_BITS
    if dtype == torch.uint16:
        return find_deep_range(value_range)
    return value_range or (UNIT if dtype.is_floating_point else EIGHT_BITS)


def find_deep_range(value_range: Range | None) -> Range:
    """
    Find the range of 16-bit values.

    Args:
        value_range (`tuple[float, float]`, *optional*): The pipeline's.

    Returns:
        `tuple[float, float]`: The pipeline's if it needs and fits 16 bits, else the depth's.
    """
    if value_range is not None and value_range[0] >= 0 and EIGHT_BITS[1] < value_range[1] <= SIXTEEN_BITS[1]:
        return value_range
    return SIXTEEN_BITS


def _scale(values: torch.Tensor, name: str, value_range: Scale, slack: float) -> torch.Tensor:
    """Map values from their range to [-1, 1], and those near it alike."""
    if values.is_floating_point() and values.dtype.itemsize == 1:
        values = values.float()
    if values.is_floating_point() and not bool(values.isfinite().all()):
        raise ValueError(f"`{name}` must be finite, but holds NaN or infinity.")
    if isinstance(value_range, Standardization):
        is_fit = values.shape[1] == len(value_range.mean)  # another shape is refused later
        return value_range.standardize(values) if is_fit else values
    low, high = value_range
    margin = slack * (high - low)
    is_float = values.is_floating_point()
    if not is_float:
        values = values.float()
    if values.numel() and not bool(((values >= low - margin) & (values <= high + margin)).all()):
        kind = "floats" if is_float else "integers"
        hint = ""
        if is_float and value_range == UNIT:
            hint = "; images in [-1, 1] become images / 2 + 0.5"
        raise ValueError(
            f"`{name}` must lie in [{low - margin:g}, {high + margin:g}] ({kind}), but ranges from"
            f" {values.min().item():g} to {values.max().item():g}{hint}."
        )
    return normalize(values, value_range)


def prepare_mask(mask_image: Any, image: torch.Tensor, batch_size: int) -> torch.Tensor:
    """
    Convert a mask of any form to a tensor of booleans.

    Args:
        mask_image (`PIL.Image.Image`, `np.ndarray`, `torch.Tensor` or a list of them): The mask, or
            one per image. Values brighter than the middle of their range, or True, are selected; an
            integer mask of zeros and ones is taken as such.
        image (`torch.Tensor` of shape `(batch, channels, height, width)`): The images that it masks.
        batch_size (`int`): Number of images to generate.

    Returns:
        `torch.Tensor`: The mask, in a shape that broadcasts over the images, on their device.

    Raises:
        ValueError: The mask is of another kind, size or range.
    """
    size = tuple(image.shape[2:])
    is_list = isinstance(mask_image, (list, tuple))
    masks = [_read_mask(mask, size) for mask in (mask_image if is_list else [mask_image])]
    fits = [mask.shape[-2:] == size and mask.shape[1] in (1, image.shape[1]) for mask in masks]
    if not masks or not all(fits) or len({mask.shape for mask in masks}) > 1:
        shapes = ", ".join(str(tuple(mask.shape)) for mask in masks)
        raise ValueError(f"`mask_image` must be of size {size}, but is of shape {shapes or 'nothing'}.")
    mask = torch.cat(masks)
    if len(mask) not in (1, batch_size):
        raise ValueError(f"`mask_image` holds {len(mask)} masks for a batch of {batch_size}.")
    return mask.to(image.device)


def _read_mask(mask_image: Any, size: tuple[int, ...]) -> torch.Tensor:
    """Return a mask as booleans of shape `(batch, channels, height, width)`."""
    if isinstance(mask_image, PIL.Image.Image) and mask_image.mode == "I":
        mask_image = np.asarray(mask_image)
    if isinstance(mask_image, PIL.Image.Image):
        values, (_, top) = _read_picture(mask_image, "mask_image", 1, None)
        return values > (UNIT[1] if values.max() <= 1 else top) / 2
    mask = mask_image
    if isinstance(mask, np.ndarray):
        if mask.ndim > 2 and mask.shape[-3:-1] == size and mask.shape[-2:] != size:
            mask = np.moveaxis(mask, -1, -3)  # channels last, as images in arrays are
        mask = _to_tensor(mask) if mask.dtype.kind in "buif" else None
    if not isinstance(mask, torch.Tensor) or mask.is_complex() or not 2 <= mask.ndim <= 4:
        raise ValueError(f"`mask_image` must be a mask of size {size}, but is {describe(mask_image)}.")
    mask = mask[(None,) * (4 - mask.ndim)]
    if mask.dtype == torch.bool:
        return mask
    is_float = mask.is_floating_point()
    values = mask.float()
    high = values.max().item() if mask.numel() else 0.0
    top = SIXTEEN_BITS[1] if mask.dtype == torch.uint16 else EIGHT_BITS[1]
    if is_float or high <= 1:
        top = UNIT[1]
    if not bool(((values >= 0) & (values <= top)).all()):
        raise ValueError(
            f"`mask_image` must lie in [0, {top:g}], but ranges from {values.min().item():g} to {high:g}."
        )
    return values > top / 2


def convert_samples(samples: torch.Tensor, output_type: str, value_range: Scale | None = None) -> Any:
    """
    Convert samples to the form in which a pipeline returns them.

    Args:
        samples (`torch.Tensor` of shape `(batch, channels, height, width)`): Samples in about [-1, 1].
        output_type (`str`): One of `OUTPUT_TYPES`, as for [`PFGMPPPipeline.__call__`].
        value_range (`tuple[float, float]` or [`Standardization`], *optional*): The pipeline's.

    Returns:
        `list[PIL.Image.Image]`, `np.ndarray` or `torch.Tensor`: The images.
    """
    if output_type == "latent":
        return samples
    if isinstance(value_range, Standardization):
        fields = value_range.restore(samples)
        return fields if output_type == "pt" else _to_array(fields)
    images = (samples / 2 + 0.5).clamp(0, 1)
    is_deep = samples.shape[1] == 1 and value_range not in (None, EIGHT_BITS)
    if output_type == "pil" and not is_deep:
        return numpy_to_pil(_to_array(images))
    if output_type == "pil":
        value_range = find_deep_range(value_range)
    if value_range is not None:
        low, high = value_range
        images = (low + (high - low) * images).clamp(low, high)
    if output_type == "pil":
        levels = _to_array(images)[..., 0].round().astype(np.uint16)
        return [PIL.Image.fromarray(each) for each in levels]  # of mode I;16
    return images if output_type == "pt" else _to_array(images)


def _to_array(images: torch.Tensor) -> np.ndarray:
    return images.permute(0, 2, 3, 1).cpu().float().numpy()
