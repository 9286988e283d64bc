r"""
Pictures and arrays of any kind as numbers: the one place that decodes, for training, evaluation and
the pipeline's `image=`.

A network sees values in [-1, 1], and a file holds them in a range of its own: [0, 255] at 8 bits,
[0, 65535] at 16 bits, and whatever it likes as floats. With the range $[a, b]$ the network sees

$$x = 2\,\frac{v - a}{b - a} - 1.$$

Eight-bit values stay eight-bit; deeper ones become float32, which holds 16 bits exactly.
"""

from typing import NamedTuple

import numpy as np
import PIL.ExifTags
import PIL.Image
import PIL.ImageColor
import PIL.ImageOps
from PIL.Image import Resampling


EIGHT_BITS = (0.0, 255.0)
SIXTEEN_BITS = (0.0, 65535.0)
WITH_ALPHA = {"LA": "LA", "La": "LA", "PA": "RGBA", "RGBA": "RGBA", "RGBa": "RGBA"}
TURNS = {
    2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
    3: PIL.Image.Transpose.ROTATE_180,
    4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
    5: PIL.Image.Transpose.TRANSPOSE,
    6: PIL.Image.Transpose.ROTATE_270,
    7: PIL.Image.Transpose.TRANSVERSE,
    8: PIL.Image.Transpose.ROTATE_90,
}  # by EXIF's orientation
GREY_MODES = ("1", "L")
COLOUR_MODES = ("RGB", "RGBX", "P", "CMYK", "YCbCr", "HSV")
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, as Pillow converts


class Pixels(NamedTuple):
    """
    The values of an image.

    Args:
        values (`np.ndarray` of shape `(H, W, C)`): uint8 for at most 8 bits, else float32.
        value_range (`tuple[float, float]` or `None`): The values of black and white; None if the
            type does not say, as for floats.
        has_alpha (`bool`, defaults to `False`): Whether the last channel is the alpha channel of a picture.
    """

    values: np.ndarray
    value_range: tuple[float, float] | None
    has_alpha: bool = False


def read_picture(image: PIL.Image.Image, channels: int | None = None, background: str = "white") -> Pixels:
    """
    Read a picture of any mode and depth, upright.

    Transparent pictures are composited on a background, unless their alpha channel is asked for by
    `channels` of 2 or 4. Pillow itself reads at most 8 bits per channel of colour pictures.

    Args:
        image (`PIL.Image.Image`): The picture; its EXIF orientation is applied.
        channels (`int`, *optional*): 1 (grey), 2 (grey and alpha), 3 (RGB) or 4 (RGBA); by default
            1 for grey pictures and 3 for the others.
        background (`str`, defaults to `"white"`): A colour as Pillow names it, such as `"#808080"`.

    Returns:
        [`Pixels`]: Its values.

    Raises:
        ValueError: The mode, the background or the number of channels is not supported.
    """
    is_png = image.format == "PNG"  # a copy does not say
    image = turn_upright(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _convert_channels(_read_deep(image, is_png, background, channels), channels)
    if is_transparent(image):
        image = image.convert(WITH_ALPHA.get(image.mode) or ("LA" if image.mode in GREY_MODES else "RGBA"))
        if channels not in (2, 4):
            image = _composite(image, background)
    elif image.mode in GREY_MODES:
        image = image.convert("L")
    elif image.mode in COLOUR_MODES:
        image = image.convert("RGB")
    else:
        raise ValueError(f"a picture of mode {image.mode} cannot be read as grey or RGB")
    modes = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
    if channels is not None:
        if channels not in modes:
            raise ValueError(f"a picture has 1 to 4 channels, but {channels} are wanted")
        image = image.convert(modes[channels])
    values = np.array(image)
    return Pixels(values.reshape(*values.shape[:2], -1), EIGHT_BITS, has_alpha=channels in (2, 4))


def turn_upright(image: PIL.Image.Image) -> PIL.Image.Image:
    """
    Turn a picture as its EXIF orientation says.

    Pillow's `exif_transpose` also rewrites the tags, and fails where they are of other types than the
    standard has.

    Args:
        image (`PIL.Image.Image`): The picture.

    Returns:
        `PIL.Image.Image`: The picture, upright. Its own tags stay as they are.
    """
    image.load()  # by which Pillow turns TIFF files itself
    turn = TURNS.get(image.getexif().get(PIL.ExifTags.Base.Orientation, 1))
    return image if turn is None else image.transpose(turn)


def read_array(array: np.ndarray, channels: int | None = None) -> Pixels:
    """
    Read an array of shape `(H, W)`, `(C, H, W)` or `(H, W, C)`.

    Args:
        array (`np.ndarray`): Booleans, integers or floats.
        channels (`int`, *optional*): Channels of the result, which tell the two layouts apart; grey and
            colour are converted into each other. By default the axis that is at most 4 long is C.

    Returns:
        [`Pixels`]: Its values. Integers of 8 and 16 unsigned bits have the range of their depth; the
            range of other types is not known.

    Raises:
        ValueError: Shape or type is not supported, or a value is not finite.
    """
    array = np.asarray(array)
    if array.dtype.kind not in "buif":
        raise ValueError(f"an array must hold numbers, but is of type {array.dtype}")
    array = array.astype(array.dtype.newbyteorder("="), copy=False)  # or ">u2" is not uint16
    array = _move_channels_last(array, channels)
    if array.dtype == bool:
        return _convert_channels(Pixels(array.astype(np.uint8) * 255, EIGHT_BITS), channels)
    if array.dtype == np.uint8:
        return _convert_channels(Pixels(array, EIGHT_BITS), channels)
    if not np.isfinite(array).all():
        raise ValueError("an array must not hold NaN or infinities")
    value_range = SIXTEEN_BITS if array.dtype == np.uint16 else None
    return _convert_channels(Pixels(array.astype(np.float32), value_range), channels)


def is_transparent(image: PIL.Image.Image) -> bool:
    """
    Tell whether a picture has an alpha channel or a transparent colour.

    Args:
        image (`PIL.Image.Image`): The picture.

    Returns:
        `bool`: Whether it has.
    """
    return image.mode in WITH_ALPHA or "transparency" in image.info


def fit_size(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    """
    Resize the shorter side to fit and crop the longer one at the centre.

    Args:
        pixels ([`Pixels`]): The image.
        size (`tuple[int, int]`): Height and width, in pixels.

    Returns:
        [`Pixels`]: The image in that size, with values within the range that it had.
    """
    values = pixels.values
    if values.shape[:2] == size:
        return pixels
    height, width = size
    if values.dtype == np.uint8 and (values.shape[-1] in (1, 3) or pixels.has_alpha):
        image = PIL.Image.fromarray(values[..., 0] if values.shape[-1] == 1 else values)
        # Pillow weighs colours by alpha, so that what is hidden does not show at the edges.
        fitted = np.array(PIL.ImageOps.fit(image, (width, height), Resampling.LANCZOS))
        return pixels._replace(values=fitted.reshape(height, width, -1))
    planes = []
    for plane in np.moveaxis(values, -1, 0):
        image = PIL.Image.fromarray(plane if values.dtype == np.uint8 else plane.astype(np.float32))
        fitted = np.array(PIL.ImageOps.fit(image, (width, height), Resampling.LANCZOS))
        planes.append(fitted.clip(plane.min(), plane.max()))  # Lanczos overshoots
    return Pixels(np.stack(planes, axis=-1), pixels.value_range)


def _read_deep(image: PIL.Image.Image, is_png: bool, background: str, channels: int | None) -> Pixels:
    """Read a picture of one channel with more than 8 bits, with an alpha channel if that is asked for."""
    values = np.array(image).astype(np.float32)[..., None]
    if not np.isfinite(values).all():
        raise ValueError("a picture must not hold NaN or infinities")
    sixteen = image.mode.startswith("I;16") or (image.mode == "I" and is_png)
    value_range = SIXTEEN_BITS if sixteen else None
    top = SIXTEEN_BITS[1] if sixteen else float(values.max())
    hidden = np.zeros(values.shape, bool)
    if "transparency" in image.info:  # the one value that stands for transparent pixels
        hidden = values == image.info["transparency"]
    if channels in (2, 4):
        if not sixteen:
            raise ValueError(f"a picture of mode {image.mode} has no range of its own, so it gets no alpha")
        alpha = np.where(hidden, 0, top).astype(np.float32)
        return Pixels(np.concatenate([values] * (channels - 1) + [alpha], axis=-1), value_range)
    values[hidden] = LUMA @ np.array(parse_colour(background), np.float32) / 255 * top
    return Pixels(values, value_range)


def _composite(image: PIL.Image.Image, background: str) -> PIL.Image.Image:
    """Put a picture with alpha on a background; grey on grey stays grey."""
    red, green, blue = parse_colour(background)
    if image.mode == "LA" and red == green == blue:
        canvas = PIL.Image.new("L", image.size, red)
        canvas.paste(image.getchannel("L"), mask=image.getchannel("A"))
        return canvas
    canvas = PIL.Image.new("RGB", image.size, (red, green, blue))
    canvas.paste(image.convert("RGB"), mask=image.getchannel("A"))
    return canvas


def parse_colour(name: str) -> tuple[int, int, int]:
    """
    Parse a colour.

    Args:
        name (`str`): A colour as Pillow names it, such as `"white"` or `"#808080"`.

    Returns:
        `tuple[int, int, int]`: Red, green and blue in [0, 255].

    Raises:
        ValueError: There is no such colour.
    """
    try:
        red, green, blue = PIL.ImageColor.getrgb(name)[:3]
    except (ValueError, AttributeError):  # no such colour, or no text
        raise ValueError(f"`background` must be a colour such as white or #808080, but is {name!r}") from None
    return red, green, blue


def _move_channels_last(array: np.ndarray, channels: int | None) -> np.ndarray:
    if array.ndim == 2:
        return array[..., None]
    if array.ndim != 3 or 0 in array.shape:
        raise ValueError(f"an array must be of shape (H, W), (C, H, W) or (H, W, C), but is of {array.shape}")
    first = array.shape[0]
    last = array.shape[-1]
    is_first = first == channels
    is_last = last == channels
    if not is_first and not is_last:
        is_first = first <= 4
        is_last = last <= 4
    if is_first:
        return np.moveaxis(array, 0, -1)
    if is_last:
        return array
    hint = "name their number with `channels`" if channels is None else f"`channels` is {channels}"
    raise ValueError(f"an array of shape {array.shape} does not show which axis holds the channels: {hint}")


def _convert_channels(pixels: Pixels, channels: int | None) -> Pixels:
    """Turn grey into colour or colour into grey, if that is asked for."""
    values = pixels.values
    found = values.shape[-1]
    if channels in (None, found):
        return pixels
    if found == 1 and channels == 3:
        return Pixels(np.repeat(values, 3, axis=-1), pixels.value_range)
    if found == 3 and channels == 1:
        grey = values.astype(np.float32) @ LUMA
        if values.dtype == np.uint8:
            grey = grey.round().astype(np.uint8)
        return Pixels(grey[..., None], pixels.value_range)
    raise ValueError(f"an image of {found} channels cannot be given {channels}")
