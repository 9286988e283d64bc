"""Rows of a data set, decoded into tensors of one size."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageOps
from tqdm.auto import tqdm


if TYPE_CHECKING:
    import datasets

GREY_MODES = ("1", "L", "LA", "I", "I;16", "F")
PENDING = 64  # images that wait for a thread or for their turn


def _pick_column(dataset, wanted: str | None, feature_type: type, what: str) -> str | None:
    """Return the column asked for, or else the only one of a feature type, or else None."""
    names = [name for name, feature in dataset.features.items() if isinstance(feature, feature_type)]
    if wanted is not None:
        if wanted not in dataset.features:
            raise ValueError(
                f"`{what}_column` is {wanted!r}, but the data set has the columns {list(dataset.features)}."
            )
        return wanted
    if len(names) > 1:
        raise ValueError(f"The data set has several {what} columns, {names}; name one with `{what}_column`.")
    return names[0] if names else None


class ImageDecoder:
    """
    Turns rows of a data set into tensors of one size.

    The shorter side of an image is resized to fit, and the longer one is cropped at the centre.

    Args:
        dataset (`datasets.Dataset` or `datasets.IterableDataset`): A data set with an image column.
        resolution (`int`): Height and width of the result, in pixels.
        image_column (`str`, *optional*): Name of the image column; by default the only one.
        label_column (`str`, *optional*): Name of the class column; by default the only `ClassLabel`.
        channels (`int`, *optional*): 1 (grey) or 3 (RGB); by default that of the first image that
            can be read.
        strict (`bool`, defaults to `False`): Whether a broken image raises an error; otherwise it
            is reported and skipped.
        num_workers (`int`, defaults to 4): Number of decoding threads.

    Raises:
        ValueError: A column is missing or ambiguous, `channels` is neither 1 nor 3, or no image can
            be read.
    """

    def __init__(
        self,
        dataset: "datasets.Dataset | datasets.IterableDataset",
        resolution: int,
        image_column: str | None = None,
        label_column: str | None = None,
        channels: int | None = None,
        strict: bool = False,
        num_workers: int = 4,
    ):
        import datasets

        if dataset.features is None:
            raise ValueError("The data set does not describe its columns.")
        self.image_column = _pick_column(dataset, image_column, datasets.Image, "image")
        self.label_column = _pick_column(dataset, label_column, datasets.ClassLabel, "label")
        if self.image_column is None:
            columns = list(dataset.features)
            raise ValueError(
                f"The data set has no image column among {columns}; name one with `image_column`."
            )
        self.class_names = getattr(dataset.features.get(self.label_column), "names", None)
        # Undecoded rows can always be read, whatever is in them.
        self.dataset = dataset.cast_column(self.image_column, datasets.Image(decode=False))
        self.resolution = resolution
        self.strict = strict
        self.skipped = 0
        self.pool = ThreadPoolExecutor(max(num_workers, 1))
        self._open = datasets.Image().decode_example
        self.channels = self._find_channels() if channels is None else channels
        if self.channels not in (1, 3):
            raise ValueError(f"`channels` must be 1 or 3, but is {channels}.")

    def _find_channels(self) -> int:
        """Return the number of channels of the first image that can be read."""
        for row in islice(self.dataset, 100):
            try:
                mode = self._open(row[self.image_column]).mode
            except Exception:
                continue
            return 1 if mode in GREY_MODES else 3
        raise ValueError("None of the first images can be read.")

    def _decode(self, row: dict) -> torch.Tensor | Exception:
        """Decode a row; a broken image gives its error, whatever that is."""
        size = (self.resolution, self.resolution)
        try:
            image = self._open(row[self.image_column]).convert("L" if self.channels == 1 else "RGB")
            if image.size != size:
                image = ImageOps.fit(image, size, Image.Resampling.LANCZOS)
        except Exception as error:
            return error
        pixels = torch.from_numpy(np.array(image))
        return pixels.view(*size, self.channels).permute(2, 0, 1)

    def __call__(self, rows: Iterable[tuple[int, dict]]) -> Iterator[torch.Tensor | None]:
        """
        Decode rows in threads and yield them in their order.

        Args:
            rows (iterable of `tuple[int, dict]`): Rows of the data set with their numbers, by which
                messages name an image that has no path.

        Yields:
            `torch.Tensor` of shape `(C, H, W)`, uint8, or `None` for a broken image.

        Raises:
            ValueError: An image is broken, and `strict` is set.
        """
        rows = iter(rows)
        pending: deque[tuple[str, Future]] = deque()

        def submit_next():
            for number, row in islice(rows, 1):
                name = (row[self.image_column] or {}).get("path") or f"row {number}"
                pending.append((name, self.pool.submit(self._decode, row)))

        for _ in range(PENDING):
            submit_next()
        while pending:
            name, future = pending.popleft()
            image = future.result()
            submit_next()
            if isinstance(image, Exception):
                self._report(name, image)
                image = None
            yield image

    def _report(self, name: str, error: Exception) -> None:
        """Raise for a broken image, or report and count it."""
        if self.strict:
            raise ValueError(f"The image {name} cannot be read: {error}")
        self.skipped += 1
        tqdm.write(f"Skipping the image {name}, which cannot be read ({self.skipped} so far): {error}")
