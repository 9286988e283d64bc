"""Data sets of images that are read while they are trained on."""

import hashlib
import os
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from ..records.digests import derive_seed
from .decoding import ImageDecoder
from .images import measure_deviation


if TYPE_CHECKING:
    import datasets


class _Place(NamedTuple):
    """A place in a stream, from which it can be read again."""

    epoch: int = 0
    window: dict | None = (
        None  # state of the stream at the beginning of the window; None at that of the epoch
    )
    first: int = 0  # images of the epoch before the window
    taken: int = 0  # images already taken from the window


class ImageStream:
    """
    Images of a data set that is read while it is trained on.

    Each epoch reads the files in another order, one window of images at a time, and shuffles each
    window. So a place in the stream is all that a checkpoint must hold: resuming reads the window
    again. Unlike with [`ImageDataset`], which images a step sees depends on the number of processes,
    since the files are divided among them.

    Args:
        dataset (`datasets.IterableDataset`): A data set with an image column, from
            `load_dataset(..., streaming=True)`.
        resolution (`int`): Height and width of the images, in pixels.
        window (`int`, defaults to 10_000): Number of images to shuffle at a time. They are held in
            memory as they are stored, undecoded.
        options: Further arguments of [`ImageDecoder`].

    Raises:
        ValueError: As [`ImageDecoder`].
    """

    def __init__(
        self, dataset: "datasets.IterableDataset", resolution: int, window: int = 10_000, **options: Any
    ):
        self.decoder = ImageDecoder(dataset, resolution, **options)
        self.class_names = self.decoder.class_names
        self.channels = self.decoder.channels
        self.window = window

    def digest(self) -> str:
        """Digest the class names and the first 64 rows as they are stored."""
        decoder = self.decoder
        described = repr([decoder.resolution, self.channels, self.class_names])
        digest = hashlib.blake2b(described.encode(), digest_size=8)
        for row in islice(decoder.dataset, 64):
            image = row[decoder.image_column] or {}
            digest.update(image.get("bytes") or os.path.basename(image.get("path") or "").encode())
            digest.update(repr(row.get(decoder.label_column)).encode())
        return digest.hexdigest()

    def sigma_data(self) -> float:
        """Compute the standard deviation of the first 2,000 images in [-1, 1]."""
        images = self.decoder(enumerate(islice(self.decoder.dataset, 2000)))
        return measure_deviation(torch.stack([image for image in images if image is not None]))

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
            `tuple[dict, dict]`: `images` as uint8 with their `class_labels`, and the state from
                which to resume after this batch.

        Raises:
            ValueError: A whole epoch holds no image for this process, or `strict` is set and an
                image is broken.
        """
        rows = self._read_rows(seed, process_index, num_processes, _Place(**(state or {})))
        while True:
            images, labels, places = zip(*islice(rows, batch_size))
            batch = {"images": torch.stack(images)}
            if self.decoder.label_column is not None:
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
                if image is not None:
                    label = content[index].get(self.decoder.label_column)
                    yield image, label, _Place(place.epoch, window, first, done)
            first += len(content)
            taken = 0

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
