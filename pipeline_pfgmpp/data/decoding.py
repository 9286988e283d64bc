"""Rows of a data set, decoded into tensors of one size and one range of values."""

import io
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image
import torch
from tqdm.auto import tqdm

from ..arguments import check_integer, read_number
from ..images import check_value_range
from ..pixels import (
    EIGHT_BITS,
    GREY_MODES,
    SIXTEEN_BITS,
    Pixels,
    fit_size,
    is_transparent,
    parse_colour,
    read_array,
    read_picture,
)


if TYPE_CHECKING:
    import datasets

CHANNELS = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4}  # of the modes that a column may ask for
PENDING = 64  # images that wait for a thread or for their turn
PROBED = 100  # rows in which a first image must be readable


class DeeperImageError(ValueError):
    """An image has more than the 8 bits that the first one promised."""


def _find_image_column(dataset: Any, wanted: str | None, condition_column: str | None) -> str:
    """Return the column asked for, or else the only one that holds images, besides that of the condition."""
    import datasets

    columns = list(dataset.features)
    if wanted is not None:
        return _check_image_column(dataset, wanted, "image_column")
    kinds = (datasets.Image, datasets.Array2D, datasets.Array3D)
    names = [name for name in columns if isinstance(dataset.features[name], kinds)]
    if not names and "image" in columns and _holds_images(dataset.features["image"]):
        names = ["image"]
    names = [name for name in names if name != condition_column]
    if len(names) > 1:
        raise ValueError(f"The data set has several image columns, {names}; name one with `image_column`.")
    if not names:
        raise ValueError(f"The data set has no image column among {columns}; name one with `image_column`.")
    return names[0]


def _check_image_column(dataset: Any, name: str, argument: str) -> str:
    """Return the name of a column, or raise an error if it holds no images."""
    columns = list(dataset.features)
    if name not in columns:
        raise ValueError(f"`{argument}` is {name!r}, but the data set has the columns {columns}.")
    if not _holds_images(dataset.features[name]):
        kind = dataset.features[name]
        raise ValueError(f"`{argument}` {name!r} holds {kind}, which is neither pictures nor arrays.")
    return name


def _holds_images(feature: Any) -> bool:
    """Tell whether a column may hold pictures, arrays or paths of `.npy` files."""
    import datasets

    kinds = (datasets.Image, datasets.Array2D, datasets.Array3D, datasets.List, datasets.LargeList, list)
    return isinstance(feature, kinds) or feature in map(datasets.Value, ("string", "large_string"))


def _is_grey(image: PIL.Image.Image) -> bool:
    return image.mode in (*GREY_MODES, "LA", "La", "I", "F") or image.mode.startswith("I;16")


def _is_deep_colour(value: dict) -> bool:
    """Tell whether a stored picture is a PNG file that Pillow cuts to 8 bits, by its header."""
    header = (value.get("bytes") or b"")[:26]
    if not header and os.path.isfile(value.get("path") or ""):
        with open(value["path"], "rb") as file:
            header = file.read(26)
    is_png = header.startswith(b"\x89PNG") and len(header) == 26
    return is_png and header[24] == 16 and header[25] in (2, 4, 6)  # depth; RGB, grey with alpha, RGBA


def _load_array(path: str) -> np.ndarray:
    if not path.endswith(".npy"):
        raise ValueError(f"{path!r} is not the path of a .npy file")
    return np.load(path, allow_pickle=False)


def _find_type(feature: Any) -> np.dtype | None:
    """Return the type of the numbers in a column of arrays or of nested lists; None in other columns."""
    import datasets

    while isinstance(feature, (datasets.List, datasets.LargeList, list)):
        feature = feature[0] if isinstance(feature, list) else feature.feature
    try:
        return np.dtype(getattr(feature, "dtype", None) or "object")
    except TypeError:
        return None


def _read_size(resolution: int | tuple[int, int]) -> tuple[int, int]:
    """Return height and width."""
    sides = list(resolution) if isinstance(resolution, (list, tuple)) else [resolution, resolution]
    size = [side for side in map(read_number, sides) if isinstance(side, int) and side > 0]
    if len(sides) != 2 or len(size) != 2:
        raise ValueError(f"`resolution` must be one positive integer or two, but is {resolution!r}.")
    return size[0], size[1]


def report(message: str) -> None:
    """
    Print a message once, although all processes load the same images.

    Args:
        message (`str`): The message.
    """
    if os.environ.get("RANK", "0") == "0":  # as torchrun and accelerate set it
        tqdm.write(message)


def _open_picture(value: dict) -> PIL.Image.Image:
    """Open a picture of a data set. Its orientation is left to [`read_picture`], which minds odd tags."""
    import datasets

    if value["bytes"] is not None:
        image = PIL.Image.open(io.BytesIO(value["bytes"]))
    elif os.path.isfile(value["path"]):
        image = PIL.Image.open(value["path"])
    else:  # at an address
        return datasets.Image().decode_example(value)
    image.load()
    return image


class _Column:
    """A column of images, each read as pixels; remarks say what was done to them."""

    def __init__(self, dataset: Any, name: str, background: str, remarks: dict[str, None]):
        import datasets

        feature = dataset.features[name]
        self.name = name
        self.is_picture = isinstance(feature, datasets.Image)
        self.channels = CHANNELS.get(feature.mode or "") if isinstance(feature, datasets.Image) else None
        self.background = background
        self.remarks = remarks
        self._dtype = _find_type(feature)

    def read(self, row: dict, channels: int | None) -> Pixels:
        """Read the image in a row."""
        value = row[self.name]
        if not self.is_picture:
            array = _load_array(value) if isinstance(value, str) else np.asarray(value, dtype=self._dtype)
            if channels in (1, 3):  # arrays get no alpha channel
                self._note_conversion(array.ndim == 2 or 1 in (array.shape[0], array.shape[-1]), channels)
            return read_array(array, channels)
        image = _open_picture(value)
        if _is_deep_colour(value):
            self.remarks["Pictures of 16 bits with colours or alpha are read with 8: store them as .npy."] = (
                None
            )
        if is_transparent(image) and channels not in (2, 4):
            self.remarks[f"Transparent pictures are shown on a {self.background} background."] = None
        self._note_conversion(_is_grey(image), channels)
        return read_picture(image, channels, self.background)

    def _note_conversion(self, is_grey: bool, channels: int | None) -> None:
        """Note that an image becomes coloured or grey, if it does."""
        if is_grey and channels in (3, 4):
            self.remarks["Grey images are converted to colour."] = None
        if not is_grey and channels in (1, 2):
            self.remarks["Coloured images are converted to grey."] = None

    def list_files(self, dataset: Any, first: int, last: int) -> list[str]:
        """List the files on this machine that a range of rows refers to."""
        import pyarrow as pa
        import pyarrow.compute as pc

        column = dataset.with_format("arrow")[first:last][self.name]
        if self.is_picture:
            if not pc.any(pc.is_null(pc.struct_field(column, "bytes"))).as_py():
                return []
            column = pc.struct_field(column, "path")
        if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
            return []
        return [path for path in column.to_pylist() if path and os.path.isfile(path)]


class ImageDecoder:
    """
    Decode rows of a data set into tensors of one size.

    The shorter side of an image is resized to fit, and the longer one is cropped at the centre.
    Images of 8 bits come as uint8, deeper ones as float32 in the units of the data. With a condition
    column a row is a pair, whose last channels are those of the condition.

    Args:
        dataset (`datasets.Dataset` or `datasets.IterableDataset`): A data set with a column of
            pictures (`Image`) or arrays (`Array2D`, `Array3D` or nested lists).
        resolution (`int` or `tuple[int, int]`): Height and width of the result, in pixels; one
            number for squares.
        image_column (`str`, *optional*): Name of the image column; by default the only one.
        channels (`int`, *optional*): Channels of the result: 1 (grey), 2 (grey and alpha), 3 (RGB),
            4 (RGBA), or as many as arrays have; by default those of the column's mode if it has one, or
            else of the first image that can be read.
        value_range (`tuple[float, float]`, *optional*): The values of black and white, for data that
            do not use the range of their type. Values outside are clipped.
        background (`str`, defaults to `"white"`): The colour behind transparent pictures.
        strict (`bool`, defaults to `False`): Whether a broken image raises an error; otherwise it
            is reported and skipped.
        num_workers (`int`, defaults to 4): Number of decoding threads.
        condition_column (`str`, *optional*): Name of the column of the degraded images.
        condition_channels (`int`, *optional*): Their channels, as `channels`.
        crop (`bool`, defaults to `False`): Whether images keep their size, from which crops of
            `resolution` will be taken. Smaller images count as broken.

    Attributes:
        size (`tuple[int, int]`): Height and width of the result, or of the crops.
        channels (`int`): Channels of the result without those of the condition.
        condition_channels (`int`): Channels of the condition; 0 without one.
        dtype (`torch.dtype`): Type of the result, uint8 or float32.
        value_range (`tuple[float, float]` or `None`): The values of black and white; None for data
            whose type does not tell.
        remarks (`dict[str, None]`): Sentences about what was done to images besides resizing.

    Raises:
        ValueError: A column is missing or ambiguous, an option is out of range, or no image can be
            read.
    """

    def __init__(
        self,
        dataset: "datasets.Dataset | datasets.IterableDataset",
        resolution: int | tuple[int, int],
        image_column: str | None = None,
        channels: int | None = None,
        value_range: tuple[float, float] | None = None,
        background: str = "white",
        strict: bool = False,
        num_workers: int = 4,
        condition_column: str | None = None,
        condition_channels: int | None = None,
        crop: bool = False,
    ):
        import datasets

        if dataset.features is None:
            raise ValueError("The data set does not describe its columns: give them with `dataset.cast`.")
        bounds = check_value_range(value_range)
        if channels is not None:
            channels = check_integer("channels", channels, "be at least 1", 1)
        if condition_channels is not None:
            condition_channels = check_integer("condition_channels", condition_channels, "be at least 1", 1)
        parse_colour(background)
        self.size = _read_size(resolution)
        self.crop = crop
        names = []
        if condition_column is not None:
            names.append(_check_image_column(dataset, condition_column, "condition_column"))
        names.insert(0, _find_image_column(dataset, image_column, condition_column))
        if len(set(names)) < len(names):
            raise ValueError(f"`condition_column` must be another column than `image_column`, {names[0]!r}.")
        self.remarks: dict[str, None] = {}
        self.columns = [_Column(dataset, name, background, self.remarks) for name in names]
        for column in self.columns:
            if column.is_picture:
                # Undecoded rows can always be read, whatever is in them.
                dataset = dataset.cast_column(column.name, datasets.Image(decode=False))
        self.dataset = dataset.with_format(None)  # without transforms, which may leave out the column
        self.background = background
        self.strict = strict
        self.skipped = 0
        self.rounds_deeper = False  # where decoding cannot start again
        self.pool = ThreadPoolExecutor(max(num_workers, 1))
        self.stated_range = (bounds[0], bounds[1]) if bounds else None
        self._probe([channels, condition_channels])

    @property
    def image_column(self) -> str:
        """Name of the image column."""
        return self.columns[0].name

    def list_files(self, first: int, last: int) -> list[str]:
        """
        List the files on this machine that a range of rows refers to.

        Args:
            first (`int`): The first row.
            last (`int`): The row after the last.

        Returns:
            `list[str]`: Their paths.
        """
        return [path for column in self.columns for path in column.list_files(self.dataset, first, last)]

    def _probe(self, wanted: list[int | None]) -> None:
        """Take number of channels, type and range of the first image that can be read."""
        reason: Exception | None = None
        channels = [number or column.channels for column, number in zip(self.columns, wanted)]
        for row in islice(self.dataset, PROBED):
            try:
                images = [column.read(row, number) for column, number in zip(self.columns, channels)]
                self._check_pair(images)
            except Exception as error:
                reason = error
                continue
            self._channels = [number or image.values.shape[-1] for number, image in zip(channels, images)]
            self.channels: int = self._channels[0]
            self.condition_channels = sum(self._channels[1:])
            is_deep = self.stated_range is not None or any(image.values.dtype != np.uint8 for image in images)
            self.dtype = torch.float32 if is_deep else torch.uint8
            ranges = [image.value_range for image in images]
            self.value_range = self.stated_range or (SIXTEEN_BITS if SIXTEEN_BITS in ranges else ranges[0])
            self._is_measured = self.value_range is None
            return
        raise ValueError(f"None of the first images can be read: {reason or 'there are none'}")

    def _check_pair(self, images: list[Pixels]) -> None:
        """Raise an error if the images of a row differ in size or kind, or are too small for crops."""
        sizes = [image.values.shape[:2] for image in images]
        described = [f"{height}x{width} pixels" for height, width in sizes]
        if len(set(sizes)) > 1:
            raise ValueError(
                f"it has {described[0]}, but its degraded image in `condition_column` has {described[1]}"
            )
        have_range = {image.value_range is not None for image in images}
        if len(have_range) > 1 and self.stated_range is None:
            raise ValueError(
                "it and its degraded image in `condition_column` are of different types, of which one has a"
                " range of its own: name the range with `value_range`"
            )
        height, width = self.size
        if self.crop and (sizes[0][0] < height or sizes[0][1] < width):
            raise ValueError(f"it has {described[0]}, too few for crops of {height}x{width}")

    def set_range(self, value_range: tuple[float, float]) -> None:
        """Set the values of black and white, and clip values outside from now on."""
        self.stated_range = value_range
        self.value_range = value_range

    def deepen(self) -> None:
        """Decode to float32 from now on, since an image has more than 8 bits."""
        self.dtype = torch.float32
        self.value_range = self.stated_range or SIXTEEN_BITS

    def _decode(self, row: dict) -> torch.Tensor | Exception:
        """Decode a row; a broken image gives its error, whatever that is."""
        try:
            images = [column.read(row, number) for column, number in zip(self.columns, self._channels)]
            self._check_pair(images)
            if not self.crop:
                images = [fit_size(image, self.size) for image in images]
            pixels = np.concatenate([self._fit_range(image) for image in images], axis=-1)
        except Exception as error:
            return error
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))

    def _fit_range(self, pixels: Pixels) -> np.ndarray:
        """Give an image the range of the data set."""
        values = pixels.values
        if self.stated_range is not None:
            low, high = self.stated_range
            if values.min() < low or values.max() > high:
                self.remarks["Some images have values outside of `value_range`, which are clipped."] = None
            return values.clip(low, high).astype(np.float32)
        if (pixels.value_range is None) != self._is_measured:
            raise ValueError(
                "its type has a range of its own and the first image's type has none, or the other way round"
            )
        if self._is_measured or pixels.value_range == self.value_range:
            return values
        if self.value_range == SIXTEEN_BITS:
            return values.astype(np.float32) * (SIXTEEN_BITS[1] / EIGHT_BITS[1])
        if not self.rounds_deeper:
            raise DeeperImageError("it has more than 8 bits, unlike the first image")
        return (values * (EIGHT_BITS[1] / SIXTEEN_BITS[1])).round().astype(np.uint8)

    def __call__(self, rows: Iterable[tuple[int, dict]]) -> Iterator[torch.Tensor | None]:
        """
        Decode rows in threads and yield them in their order.

        Args:
            rows (iterable of `tuple[int, dict]`): Rows of the data set with their numbers, by which
                messages name an image that has no path.

        Yields:
            `torch.Tensor` of shape `(C, H, W)`, or `None` for a broken image.

        Raises:
            ValueError: An image is broken, and `strict` is set.
        """
        rows = iter(rows)
        pending: deque[tuple[str, Future]] = deque()

        def submit_next():
            for number, row in islice(rows, 1):
                pending.append((self._name(row, number), self.pool.submit(self._decode, row)))

        for _ in range(PENDING):
            submit_next()
        while pending:
            name, future = pending.popleft()
            image = future.result()
            submit_next()
            if isinstance(image, DeeperImageError):
                raise image
            if isinstance(image, Exception):
                self._report(name, image)
                image = None
            yield image

    def _name(self, row: dict, number: int) -> str:
        value = row[self.image_column]
        if isinstance(value, dict):
            value = value.get("path")
        return value if isinstance(value, str) else f"row {number}"

    def _report(self, name: str, error: Exception) -> None:
        """Raise for a broken image, or report and count it."""
        if self.strict:
            raise ValueError(f"The image {name} cannot be read: {error}")
        self.skipped += 1
        tqdm.write(f"Skipping the image {name}, which cannot be read ({self.skipped} so far): {error}")
