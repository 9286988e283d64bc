"""Data sets of images that are read while they are trained on."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from ..images import normalize
from ..pixels import EIGHT_BITS
from ..records.digests import derive_seed
from .decoding import ImageDecoder, report
from .images import ImageSource, check_contrast, describe_images, measure_deviation, measure_range
from .labels import MISSING, find_label_column, read_class_names
from .transforms import make_generator, make_transform


if TYPE_CHECKING:
    import datasets

SAMPLED = 2000  # images that stand for a stream where its values are measured


class _Place(NamedTuple):
    """A place in a stream, from which it can be read again."""

    epoch: int = 0
    # State of the stream at the beginning of the window; None at the beginning of the epoch.
    window: dict | None = None
    first: int = 0  # images of the epoch before the window
    taken: int = 0  # images already taken from the window


class ImageStream(ImageSource):
    """
    Images of a data set that is read while it is trained on.

    Each epoch reads the files in another order, one window of images at a time, and shuffles each
    window. So a place in the stream is all that a checkpoint must hold: resuming reads the window
    again. Unlike with [`ImageDataset`], which images a step sees depends on the number of processes,
    since the files are divided among them.

    Args:
        dataset (`datasets.IterableDataset`): A data set with an image column, from
            `load_dataset(..., streaming=True)`.
        resolution (`int` or `tuple[int, int]`): Height and width of the images, in pixels.
        window (`int`, defaults to 10_000): Number of images to shuffle at a time. They are held in
            memory as they are stored, undecoded.
        image_column (`str`, *optional*): Name of the image column; by default the only one.
        label_column (`str`, *optional*): Name of the class column, a `ClassLabel`; by default the
            only one.
        labels (`bool`, defaults to `True`): Whether to read classes, if there are any. Rows without
            a class are then left out.
        crop (`bool`, defaults to `False`): As for [`load_images`].
        degradation (`Sequence[str]`, *optional*): As for [`load_images`].
        options: Further options of [`ImageDecoder`], such as `condition_column` for pairs.

    Raises:
        ValueError: As [`ImageDecoder`].
    """

    def __init__(
        self,
        dataset: "datasets.IterableDataset",
        resolution: int | tuple[int, int],
        window: int = 10_000,
        image_column: str | None = None,
        label_column: str | None = None,
        labels: bool = True,
        crop: bool = False,
        degradation: Sequence[str] | None = None,
        **options: Any,
    ):
        self.decoder = ImageDecoder(dataset, resolution, image_column, crop=crop, **options)
        self.transform = make_transform(self.decoder, degradation)
        self.label_column = find_label_column(dataset, label_column) if labels else None
        self.class_names = read_class_names(dataset, self.label_column)
        self.channels = self.decoder.channels
        self.condition_channels = self.decoder.condition_channels
        if self.transform.degrader:
            self.condition_channels = self.channels
        self.size = self.decoder.size
        self.window = window
        self.unlabelled = 0
        self.decoder.rounds_deeper = True
        if self.decoder.value_range is None:
            self.decoder.set_range(measure_range(self._read_first()))
        assert self.decoder.value_range is not None
        self.value_range = self.decoder.value_range
        self.reported: set[str] = set()  # of the decoder's remarks

    @property
    def present_classes(self) -> list[int]:
        """All classes, since a stream does not tell which of them occur; none without labels."""
        return list(range(len(self.class_names or [])))

    def summarize(self) -> str:
        """Describe the images in a phrase: their size, channels, range and classes."""
        classes = len(self.class_names) if self.class_names is not None else None
        is_cropped = self.transform.crop_size is not None
        shape = (self.channels, *self.size)
        described = describe_images(shape, self.value_range, classes, self.condition_channels, is_cropped)
        return f"a stream of {described}"

    def check_contrast(self) -> None:
        """
        Check that there is something to learn from the first 2,000 images.

        Raises:
            ValueError: All their pixels have the same value.
        """
        check_contrast(image[: self.channels] for image in self._read_first())

    def normalize(self, images: torch.Tensor) -> torch.Tensor:
        """Scale images from the range of the data to [-1, 1], as float32."""
        return normalize(images, self.value_range)

    @property
    def is_eight_bits(self) -> bool:
        """Whether the images are usual ones of 8 bits, and not data with a range of their own."""
        return self.decoder.dtype == torch.uint8

    def _read_first(self) -> Iterator[torch.Tensor]:
        """Decode the first images of the stream that can be read, whole."""
        images = self.decoder(enumerate(islice(self.decoder.dataset, SAMPLED)))
        return (image for image in images if image is not None)

    def digest(self) -> str:
        """Digest the class names and the first 64 rows as they are stored."""
        decoder = self.decoder
        height, width = decoder.size
        described: list = [height if height == width else decoder.size, self.channels, self.class_names]
        if self.value_range != EIGHT_BITS:
            described.append(self.value_range)
        if decoder.background != "white":
            described.append(decoder.background)
        if decoder.condition_channels:
            described.append(decoder.condition_channels)
        described += self.transform.describe()
        digest = hashlib.blake2b(repr(described).encode(), digest_size=8)
        for row in islice(decoder.dataset, 64):
            for column in decoder.columns:
                digest.update(_describe_stored(row[column.name]))
            digest.update(repr(row.get(self.label_column)).encode())
        return digest.hexdigest()

    def sigma_data(self) -> float:
        """Compute the standard deviation of the first 2,000 images, or of a crop of each, in [-1, 1]."""
        images = [
            self.transform.crop(image[: self.channels], make_generator(0, number)).clone()  # a view holds all
            for number, image in enumerate(self._read_first())
        ]
        return measure_deviation(images, self.value_range)

    def batches(
        self,
        batch_size: int,
        seed: int = 0,
        process_index: int = 0,
        num_processes: int = 1,
        state: dict | None = None,
    ) -> Iterator[tuple[dict[str, torch.Tensor], dict]]:
        """
        Yield batches without end, from the files or the images that fall to this process.

        Args:
            batch_size (`int`): Images per batch and process.
            seed (`int`, defaults to 0): Seed of the orders.
            process_index (`int`, defaults to 0): Index of this process.
            num_processes (`int`, defaults to 1): Number of processes.
            state (`dict`, *optional*): Where to resume, as it came with a batch.

        Yields:
            `tuple[dict, dict]`: `images` or pairs in the range of the data with their `class_labels`, and the
                state from which to resume after this batch.

        Raises:
            ValueError: A whole epoch holds no image for this process, or `strict` is set and an
                image is broken.
        """
        rows = self._read_rows(seed, process_index, num_processes, _Place(**(state or {})))
        while True:
            images, labels, places = zip(*islice(rows, batch_size))
            batch = {"images": torch.stack(images)}
            if self.label_column is not None:
                batch["class_labels"] = torch.tensor(labels)
            yield batch, places[-1]._asdict()

    def _read_rows(
        self, seed: int, process_index: int, num_processes: int, place: _Place
    ) -> Iterator[tuple[torch.Tensor, int | None, _Place]]:
        """Yield single images without end, each with its class and the place after it."""
        while True:
            found = False
            for row in self._read_epoch(seed, process_index, num_processes, place):
                found = True
                yield row
            if place == _Place(epoch=place.epoch) and not found:
                raise ValueError("The stream holds no image that can be read for this process.")
            place = _Place(epoch=place.epoch + 1)

    def _read_epoch(
        self, seed: int, process_index: int, num_processes: int, place: _Place
    ) -> Iterator[tuple[torch.Tensor, int | None, _Place]]:
        """Yield the images of an epoch from a place in it."""
        stream = self._open_epoch(seed, process_index, num_processes, place.epoch)
        if place.window is not None:
            stream.load_state_dict(place.window)
        rows = iter(stream)
        first = place.first
        taken = place.taken
        while True:
            window = stream.state_dict()
            content = list(islice(rows, self.window))
            if not content:
                return
            generator = torch.Generator()
            generator.manual_seed(derive_seed(seed, "window", place.epoch, process_index, first))
            order = torch.randperm(len(content), generator=generator)[taken:].tolist()
            images = self.decoder((first + index, content[index]) for index in order)
            for done, (index, image) in enumerate(zip(order, images), taken + 1):
                label = content[index].get(self.label_column)
                self._report_changes()
                if image is not None and self._is_labelled(label):
                    rng = make_generator(seed, place.epoch, process_index, first + done)
                    image = self.transform(image, self.value_range, rng)
                    yield image, label, _Place(place.epoch, window, first, done)
            first += len(content)
            taken = 0

    def _report_changes(self) -> None:
        """Say once what was done to images besides resizing."""
        for remark in list(self.decoder.remarks):  # to which the threads add
            if remark not in self.reported:
                self.reported.add(remark)
                report(remark)

    def _is_labelled(self, label: int | None) -> bool:
        """Tell whether a row can be trained on, and report the first one that has no class."""
        if self.label_column is None:
            return True
        if label not in (None, MISSING):
            count = len(self.class_names or [])
            if not 0 <= label < count:
                raise ValueError(
                    f"`label_column` {self.label_column!r} holds {label}, which is not one of its {count}"
                    " classes."
                )
            return True
        if self.decoder.strict:
            raise ValueError("A row of the stream has no class.")
        if not self.unlabelled:
            report("The stream holds rows without a class, which are skipped.")
        self.unlabelled += 1
        return False

    def _open_epoch(
        self, seed: int, process_index: int, num_processes: int, epoch: int
    ) -> "datasets.IterableDataset":
        """Open what this process reads in an epoch."""
        from datasets.distributed import split_dataset_by_node

        # This shuffles the files and nothing else. They are read one after the other, so that the
        # order of the images is reproducible.
        stream = self.decoder.dataset.shuffle(
            seed=derive_seed(seed, "files", epoch) % 2**31, buffer_size=1, max_buffer_input_shards=1
        )
        return split_dataset_by_node(stream, rank=process_index, world_size=num_processes)


def _describe_stored(value: Any) -> bytes:
    """Return what is stored of an image: its bytes or those of its file, or the values of an array."""
    if isinstance(value, dict):
        path = value.get("path") or ""
        if value.get("bytes"):
            return value["bytes"]
        return Path(path).read_bytes() if os.path.isfile(path) else os.path.basename(path).encode()
    return np.asarray(value).tobytes() if value is not None else b""
