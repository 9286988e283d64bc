"""Rows of a data set as tensors of one size."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import numpy as np
import torch
from PIL import Image, ImageOps
from tqdm.auto import tqdm


def _pick_column(dataset, wanted, feature_type, what):
    """The named column, or the only one of a feature type; None where there is none."""
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
    Turns the rows of a data set into tensors of one size: the shorter side is resized to fit, the
    rest cropped at the centre.

    Args:
        dataset (`datasets.Dataset` or `datasets.IterableDataset`): A data set with an image column.
        resolution (`int`): Height and width of the result, in pixels.
        image_column (`str`, *optional*): Name of the image column; by default the only one.
        label_column (`str`, *optional*): Name of the class column; by default the only `ClassLabel`.
        channels (`int`, *optional*): 1 (grey) or 3 (RGB); by default that of the first image that
            can be read.
        strict (`bool`, defaults to `False`): Whether a broken image ends the run; otherwise it is
            named and skipped.
        num_workers (`int`, defaults to 4): Threads that decode.

    Raises:
        ValueError: A column is missing or ambiguous, `channels` is neither 1 nor 3, or no image can
            be read.
    """

    def __init__(
        self,
        dataset,
        resolution: int,
        image_column: str | None = None,
        label_column: str | None = None,
        channels: int | None = None,
        strict: bool = False,
        num_workers: int = 4,
    ):
        import datasets

        if dataset.features is None:
            raise ValueError("The data set says nothing of its columns.")
        self.image_column = _pick_column(dataset, image_column, datasets.Image, "image")
        self.label_column = _pick_column(dataset, label_column, datasets.ClassLabel, "label")
        if self.image_column is None:
            raise ValueError(
                f"The data set has no image column among {list(dataset.features)}; name one with `image_column`."
            )
        self.class_names = getattr(dataset.features.get(self.label_column), "names", None)
        self.dataset = dataset.cast_column(
            self.image_column, datasets.Image(decode=False)
        )  # rows that cannot fail
        self.resolution, self.strict, self.skipped = resolution, strict, 0
        self.pool = ThreadPoolExecutor(max(num_workers, 1))
        self._open = datasets.Image().decode_example
        self.channels = self._channels_of_the_first() if channels is None else channels
        if self.channels not in (1, 3):
            raise ValueError(f"`channels` must be 1 or 3, but is {channels}.")

    def _channels_of_the_first(self):
        for row in islice(self.dataset, 100):
            try:
                grey = self._open(row[self.image_column]).mode in ("1", "L", "LA", "I", "I;16", "F")
            except Exception:
                continue
            return 1 if grey else 3
        raise ValueError("None of the first images can be read.")

    def _decode(self, row):
        try:
            image = self._open(row[self.image_column]).convert("L" if self.channels == 1 else "RGB")
            if image.size != (self.resolution, self.resolution):
                image = ImageOps.fit(image, (self.resolution, self.resolution), Image.Resampling.LANCZOS)
        except Exception as error:  # whatever a broken file makes of itself
            return error
        return (
            torch.from_numpy(np.array(image))
            .view(self.resolution, self.resolution, self.channels)
            .permute(2, 0, 1)
        )

    def __call__(self, rows: Iterable[tuple[int, dict]]) -> Iterator[torch.Tensor | None]:
        """
        Decodes rows in threads, in the order in which they come.

        Args:
            rows (iterable of `tuple[int, dict]`): Rows of the data set with their numbers, which
                name those without a path.

        Yields:
            `torch.Tensor` of shape `(C, H, W)`, uint8, or `None` for an image that is broken.

        Raises:
            ValueError: An image is broken, and `strict` is set.
        """
        rows, pending = iter(rows), deque()

        def submit():
            for number, row in islice(rows, 1):
                name = (row[self.image_column] or {}).get("path") or f"row {number}"
                pending.append((name, self.pool.submit(self._decode, row)))

        for _ in range(64):
            submit()
        while pending:
            name, future = pending.popleft()
            image = future.result()
            submit()
            if isinstance(image, Exception):
                if self.strict:
                    raise ValueError(f"The image {name} cannot be read: {image}")
                self.skipped += 1
                tqdm.write(
                    f"Skipping the image {name}, which cannot be read ({self.skipped} so far): {image}"
                )
                image = None
            yield image
