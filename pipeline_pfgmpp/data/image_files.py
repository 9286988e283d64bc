"""
Files of one image each, which are written back as what they were: PNG, TIFF and `.npy`.

The format is told from the first bytes. What is written has the type, the depth and the metadata of
what was read; only the pixels are others. JPEG would lose some of what a network makes, and becomes PNG.
"""

import importlib.util
import io
import warnings
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
import PIL.ExifTags
import PIL.Image
import PIL.PngImagePlugin

from ..images import UNIT, Range, find_deep_range
from ..pixels import EIGHT_BITS, turn_upright


SIGNATURES = {
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"\xff\xd8\xff": "JPEG",
    b"\x93NUMPY": ".npy",
}
FORMATS = "PNG, TIFF, JPEG, .npy or DICOM"
DICOM_SIGNATURE = slice(128, 132)
MOST_PIXELS = 2**27  # 11585 x 11585; a damaged header may state any size
# Chunks of PNG that describe the picture, whatever its pixels are.
DESCRIPTIONS = {
    *(b"cHRM", b"gAMA", b"iCCP", b"sRGB", b"cICP", b"mDCV", b"cLLI", b"pHYs"),
    *(b"tEXt", b"zTXt", b"iTXt", b"eXIf", b"tIME"),
}
# Tags of TIFF that say how pixels are stored, which the writer chooses, or where other tables lie.
LAYOUT_TAGS = {
    *(256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 292, 293, 317, 320, 322, 323, 324, 325),
    *(330, 338, 339, 340, 341, 347, 512, 513, 514, 529, 530, 531, 532),
    *(34665, 34853, 40965),  # places in the file where EXIF has tables of its own
    *(34377, 37724),  # Photoshop's thumbnail and layers, which show the picture as it was
}
JPEG_SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"}
LOSSLESS = {"raw", "tiff_lzw", "tiff_deflate", "tiff_adobe_deflate", "packbits", "lzma", "zstd"}
# Types of TIFF that Pillow reads as they are: mode, bits, and whether they are floats.
TIFF_TYPES = {("L", 8, 1), ("LA", 8, 1), ("RGB", 8, 1), ("RGBA", 8, 1), ("I;16", 16, 1), ("F", 32, 3)}


class UnfitFileError(ValueError):
    """A file cannot be restored, for a reason that is said in a few words."""


class ImageFile(ABC):
    """
    An image and the file that it came from.

    Attributes:
        values (`np.ndarray` of shape `(height, width, channels)`): Its values in the units of the data.
    """

    values: np.ndarray

    @abstractmethod
    def choose_range(self, value_range: Range | None) -> Range:
        """
        Choose the values that a network sees as black and white.

        Args:
            value_range (`tuple[float, float]`, *optional*): Those of the network's data.

        Returns:
            `tuple[float, float]`: The range.
        """

    @abstractmethod
    def can_hold(self, channels: int) -> bool:
        """
        Tell whether such a file can hold an image of so many channels.

        Args:
            channels (`int`): The channels.

        Returns:
            `bool`: Whether it can.
        """

    @abstractmethod
    def write(self, path: Path, values: np.ndarray, identity: str) -> None:
        """
        Write another image into a file of the same type and with the same metadata.

        Args:
            path (`Path`): The file, whose name may end in anything.
            values (`np.ndarray` of shape `(height, width, channels)`): Its values in the units of the data;
                rounded for types of integers, and clipped to what the type can hold.
            identity (`str`): What distinguishes this image from all others, for formats that number them.
        """


def identify_file(path: Path) -> str | None:
    """
    Tell the format of a file from its first bytes.

    Args:
        path (`Path`): The file.

    Returns:
        `str` or `None`: `"PNG"`, `"TIFF"`, `"JPEG"`, `".npy"` or `"DICOM"`; None for another.

    Raises:
        OSError: It cannot be read.
    """
    with open(path, "rb") as file:
        head = file.read(DICOM_SIGNATURE.stop)
    if head[DICOM_SIGNATURE] == b"DICM":  # what comes before may be that of a TIFF file
        return "DICOM"
    return next((name for signature, name in SIGNATURES.items() if head.startswith(signature)), None)


def read_image_file(path: Path) -> ImageFile:
    """
    Read a file.

    Args:
        path (`Path`): A PNG, TIFF, JPEG, `.npy` or DICOM file.

    Returns:
        [`ImageFile`]: Its image.

    Raises:
        OSError: It cannot be opened.
        ValueError: It is damaged, or of a kind that cannot be written back. The message quotes nothing
            from the file, which may hold what identifies a patient.
    """
    name = identify_file(path)
    if name is None:
        raise ValueError(f"{path} is not a {FORMATS} file.")
    if name == "DICOM" and importlib.util.find_spec("pydicom") is None:
        raise ValueError(
            f"{path} is a DICOM file, which needs pydicom: pip install 'pipeline-pfgmpp[dicom]'."
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they may quote the file as well
            image = _read(path, name)
        _check_values(image.values)
    except UnfitFileError as error:
        raise ValueError(f"{path} cannot be restored: {error}.") from None
    except MemoryError:
        raise ValueError(f"{path} needs more memory than there is.") from None
    except PIL.Image.DecompressionBombError:
        raise ValueError(f"{path} cannot be restored: {_describe_limit()}.") from None
    except Exception:
        raise ValueError(f"{path} cannot be read as {name}: it is damaged or cut off.") from None
    return image


def _read(path: Path, name: str) -> ImageFile:
    if name == ".npy":
        return ArrayFile(path)
    if name == "DICOM":
        from .dicom_files import DicomFile

        return DicomFile(path)
    return PictureFile(path)


def check_size(height: int, width: int) -> None:
    """
    Refuse an image that is too large to be true, before memory is taken for it.

    Args:
        height (`int`), width (`int`): What its header states, in pixels.

    Raises:
        UnfitFileError: It has no pixels, or too many.
    """
    if height < 1 or width < 1:
        raise UnfitFileError("it holds no pixels")
    if height * width > MOST_PIXELS:
        raise UnfitFileError(_describe_limit())


def _describe_limit() -> str:
    return f"it states more than {MOST_PIXELS:,} pixels"


def _check_values(values: np.ndarray) -> None:
    """Refuse values that are not finite."""
    if not np.isfinite(values).all():
        raise UnfitFileError("it holds NaN or infinities")


def round_to_type(values: np.ndarray, dtype: np.dtype, low: float, high: float) -> np.ndarray:
    """
    Convert values to a type of integers.

    Args:
        values (`np.ndarray`): The values.
        dtype (`np.dtype`): The type.
        low (`float`), high (`float`): The smallest and the largest value allowed.

    Returns:
        `np.ndarray`: The rounded values.
    """
    return values.round().clip(low, high).astype(dtype)


class ArrayFile(ImageFile):
    """
    An array of numbers in a `.npy` file, of shape (H, W), (H, W, C) or (C, H, W) with at most 4 channels.

    Args:
        path (`Path`): The file.
    """

    def __init__(self, path: Path):
        # Mapped, an array that is larger than its file is refused at once.
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "iuf":
            raise UnfitFileError("it must hold integers or floats")
        if 0 in array.shape:
            raise UnfitFileError("it holds no pixels")
        self._shape = array.shape
        if array.ndim == 2:
            self._channel_axis: int | None = None
            array = array[..., None]
        elif array.ndim == 3 and array.shape[-1] <= 4:
            self._channel_axis = -1
        elif array.ndim == 3 and array.shape[0] <= 4:
            self._channel_axis = 0
            array = np.moveaxis(array, 0, -1)
        else:
            raise UnfitFileError(
                f"it is of shape {array.shape}, but must be of (H, W), (H, W, C) or (C, H, W) with up to 4"
                " channels"
            )
        check_size(*array.shape[:2])
        self._dtype = array.dtype
        self.values = np.array(array)

    def choose_range(self, value_range: Range | None) -> Range:
        """
        Choose the range as [`ImageFile.choose_range`] says. Without one, integers of up to 16 bits have their
        type's, and longer ones, as NumPy makes them of anything, that of 8 bits.
        """
        native = self._dtype.newbyteorder("=")
        if native == np.uint8 or (value_range is None and native.kind != "f" and native.itemsize > 2):
            return EIGHT_BITS
        if native == np.uint16:
            return find_deep_range(value_range)
        if value_range is not None or native.kind == "f":
            return value_range or UNIT
        limits = np.iinfo(native)
        return float(limits.min), float(limits.max)

    def can_hold(self, channels: int) -> bool:
        """Tell whether an array can hold so many channels: any number."""
        return True

    def write(self, path: Path, values: np.ndarray, identity: str) -> None:
        """Write an array of the same type and layout, see [`ImageFile.write`]."""
        if self._dtype.kind == "f":
            limits: Any = np.finfo(self._dtype)
            array = values.clip(limits.min, limits.max).astype(self._dtype)
        else:
            limits = np.iinfo(self._dtype)
            # float64 rounds the ends of 64 bits up, beyond the type.
            high = np.nextafter(float(limits.max), 0) if limits.bits == 64 else limits.max
            array = round_to_type(values, self._dtype, limits.min, high)
        if self._channel_axis is None and array.shape[-1] == 1:
            array = array[..., 0]
        elif self._channel_axis == 0:
            array = np.moveaxis(array, -1, 0)
        with open(path, "wb") as file:
            np.save(file, np.ascontiguousarray(array))


class PictureFile(ImageFile):
    """
    A PNG or TIFF file of 8 bits, of 16 bits in grey, or of floats in grey, or a JPEG file.

    An alpha channel is kept as it is. Palettes and single bits cannot hold what a network makes: such
    files become RGB and grey ones of 8 bits. A JPEG picture is turned upright and becomes a PNG file.

    Args:
        path (`Path`): The file.
    """

    def __init__(self, path: Path):
        # Pillow maps a file that it opens by name, and then turned TIFF pictures come out scrambled.
        with open(path, "rb") as file, PIL.Image.open(file, formats=["PNG", "TIFF", "JPEG"]) as opened:
            image: PIL.Image.Image = opened
            check_size(image.height, image.width)
            self._format = image.format
            if image.format in ("PNG", "TIFF") and getattr(image, "n_frames", 1) != 1:
                raise UnfitFileError("it holds several pictures, but must hold one")
            self._description = b""
            self._options: dict[str, Any] = {}
            if image.format == "PNG":
                image.load()
                self._description = _list_descriptions(path.read_bytes())
            elif image.format != "TIFF":  # JPEG, or MPO: one with previews behind it
                exif = _copy_exif(image)
                image = turn_upright(image)
                kept = {name: image.info.get(name) for name in ("icc_profile", "dpi")}
                self._options = {"exif": exif, **kept}
            else:
                _check_tiff(image)
                image.load()
                self._tags = {tag: value for tag, value in _list_tags(image) if tag not in LAYOUT_TAGS}
                compression = image.info.get("compression")
                self._compression = compression if compression in LOSSLESS else "tiff_adobe_deflate"
            values = np.array(_unfold(image))
        values = values.reshape(*values.shape[:2], -1)
        self._dtype = values.dtype.newbyteorder("=")
        has_alpha = values.shape[-1] in (2, 4)
        self._alpha = values[..., -1:] if has_alpha else None
        self.values = values[..., :-1] if has_alpha else values

    def choose_range(self, value_range: Range | None) -> Range:
        """Choose the range of the depth, for floats as [`ImageFile.choose_range`] says."""
        if self._dtype == np.uint8:
            return EIGHT_BITS
        if self._dtype == np.uint16:
            return find_deep_range(value_range)
        return value_range or UNIT

    def can_hold(self, channels: int) -> bool:
        """Tell whether the picture can be grey (1 channel) or coloured (3): only 8 bits have colours."""
        return channels == 1 or (channels == 3 and self._dtype == np.uint8)

    def write(self, path: Path, values: np.ndarray, identity: str) -> None:
        """Write a picture of the same depth with the same metadata, see [`ImageFile.write`]."""
        if self._dtype.kind == "f":
            array = values.astype(self._dtype)
        else:
            array = round_to_type(values, self._dtype, 0, np.iinfo(self._dtype).max)
        if self._alpha is not None:
            array = np.concatenate([array, self._alpha], axis=-1)
        picture = PIL.Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)
        if self._format == "TIFF":
            tags: Any = self._tags
            picture.save(path, format="TIFF", tiffinfo=tags, compression=self._compression)
            return
        buffer = io.BytesIO()
        picture.save(buffer, format="PNG", **self._options)
        data = buffer.getvalue()
        end_of_header = 8 + 25  # the signature and IHDR
        path.write_bytes(data[:end_of_header] + self._description + data[end_of_header:])


def _copy_exif(image: PIL.Image.Image) -> bytes:
    """Copy EXIF tags but for the orientation, or none of them if Pillow cannot write them."""
    exif = PIL.Image.Exif()
    exif.load(image.info.get("exif", b""))
    exif.pop(PIL.ExifTags.Base.Orientation, None)
    try:
        return exif.tobytes() if exif else b""
    except Exception:  # of many kinds, for tags of other types than the standard has
        return b""


def _check_tiff(image: Any) -> None:
    """Refuse types of TIFF that Pillow reads as another type."""
    bits = set(np.atleast_1d(image.tag_v2.get(258, 1)).tolist())
    kinds = set(np.atleast_1d(image.tag_v2.get(339, 1)).tolist())
    if image.mode in ("1", "P"):
        return
    if image.tag_v2.get(262) == 0 and image.mode != "L":
        raise UnfitFileError("its 0 is white, which is read for 8 bits alone; store it with black at 0")
    mode = "I;16" if image.mode.startswith("I;16") else image.mode
    if len(bits) > 1 or len(kinds) > 1 or (mode, *bits, *kinds) not in TIFF_TYPES:
        raise UnfitFileError(
            "its pixels must be uint8 (grey or RGB), uint16 (grey) or float32 (grey); store others as .npy"
        )


def _unfold(image: PIL.Image.Image) -> PIL.Image.Image:
    """Return a picture without palette, single bits or a transparent colour."""
    has_colour = image.mode in ("P", "PA", "RGB", "RGBA")
    if image.mode in ("1", "P", "PA") or ("transparency" in image.info and image.mode in ("L", "RGB")):
        is_transparent = image.mode == "PA" or "transparency" in image.info
        mode = "RGB" if has_colour else "L"
        return image.convert({"RGB": "RGBA", "L": "LA"}[mode] if is_transparent else mode)
    if image.mode.startswith("I;16") and "transparency" in image.info:
        raise UnfitFileError("16 bits with a transparent value are not written; store it as .npy")
    if image.mode not in ("L", "LA", "RGB", "RGBA", "F") and not image.mode.startswith("I;16"):
        raise UnfitFileError(f"it is of mode {image.mode}, but must be grey or RGB")
    return image


def _list_descriptions(data: bytes) -> bytes:
    """Return the chunks of a PNG file that describe the picture, and refuse what Pillow cuts to 8 bits."""
    depth = data[24]
    if depth == 16 and data[25] != 0:
        raise UnfitFileError("16 bits are read in grey only; store colours of 16 bits as .npy")
    found = b""
    start = 8
    while start + 12 <= len(data):
        length = int.from_bytes(data[start : start + 4], "big")
        end = start + 12 + length
        if data[start + 4 : start + 8] in DESCRIPTIONS:
            found += data[start:end]
        start = end
    return found


def _list_tags(image: Any) -> list[tuple[int, Any]]:
    """List the tags of a TIFF file, with texts as the bytes that they are, of any encoding."""
    tags = [(tag, image.tag_v2[tag]) for tag in image.tag_v2]
    return [(tag, value.encode("latin-1") if isinstance(value, str) else value) for tag, value in tags]
