"""Images of a data set that is read while it is trained on."""

import hashlib
import os
from collections.abc import Iterator
from itertools import islice

import torch

from ..records.digests import derive_seed
from .decoding import ImageDecoder
from .images import measure_deviation


class ImageStream:
    """
    Images of a data set that is read while it is trained on.

    The files come in another order each epoch, and a window of the stream is read at a time and
    shuffled. So the place in the stream is all there is to keep: to go on, the window is read
    again.

    Args:
        dataset (`datasets.IterableDataset`): A data set with an image column, from
            `load_dataset(..., streaming=True)`.
        resolution (`int`): Height and width of the images, in pixels.
        window (`int`, defaults to 10_000): Images shuffled at a time, kept as they are stored.
        options: Further arguments of [`ImageDecoder`].

    Raises:
        ValueError: As [`ImageDecoder`].
    """

    def __init__(self, dataset, resolution: int, window: int = 10_000, **options):
        self.decoder = ImageDecoder(dataset, resolution, **options)
        self.class_names, self.channels, self.window = self.decoder.class_names, self.decoder.channels, window

    def digest(self) -> str:
        """Digest of the first images as they are stored, of labels and class names."""
        decoder = self.decoder
        digest = hashlib.blake2b(
            repr([decoder.resolution, self.channels, self.class_names]).encode(), digest_size=8
        )
        for row in islice(decoder.dataset, 64):
            image = row[decoder.image_column] or {}
            digest.update(image.get("bytes") or os.path.basename(image.get("path") or "").encode())
            digest.update(repr(row.get(decoder.label_column)).encode())
        return digest.hexdigest()

    def sigma_data(self) -> float:
        """Standard deviation of the first images of the stream in [-1, 1]."""
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
        Batches without end, of the files or the images that fall to this process.

        Args:
            batch_size (`int`): Images a batch and process.
            seed (`int`, defaults to 0): Seed of the orders.
            process_index (`int`, defaults to 0): Number of this process.
            num_processes (`int`, defaults to 1): Number of processes.
            state (`dict`, *optional*): Where to go on, as it came with a batch.

        Yields:
            `tuple[dict, dict]`: `images` as uint8 with their `class_labels`, and the state to go on
                from after this batch.

        Raises:
            ValueError: A whole epoch has no image for this process, or one is broken and `strict`
                is set.
        """
        start = {"epoch": 0, "window": None, "first": 0, "taken": 0}
        rows = self._rows(seed, process_index, num_processes, **(state or start))
        while True:
            images, labels = [], []
            while len(images) < batch_size:
                image, label, state = next(rows)
                images.append(image)
                labels.append(label)
            batch = {"images": torch.stack(images)}
            if self.decoder.label_column is not None:
                batch["class_labels"] = torch.tensor(labels)
            yield batch, state

    def _rows(self, seed, process_index, num_processes, epoch, window, first, taken):
        """
        Single images with their class and the state after them: epoch, window, where that begins
        and what of it is done.
        """
        from datasets.distributed import split_dataset_by_node

        while True:
            # The order of the files alone; they are read one after the other, so that the order of
            # the images is certain.
            order = {
                "seed": derive_seed(seed, "files", epoch) % 2**31,
                "buffer_size": 1,
                "max_buffer_input_shards": 1,
            }
            stream = self.decoder.dataset.shuffle(**order)
            stream = split_dataset_by_node(stream, rank=process_index, world_size=num_processes)
            whole, found = window is None, False
            if not whole:
                stream.load_state_dict(window)
            rows = iter(stream)
            while True:
                window = stream.state_dict()
                content = list(islice(rows, self.window))
                if not content:
                    break
                rng = torch.Generator().manual_seed(derive_seed(seed, "window", epoch, process_index, first))
                order = torch.randperm(len(content), generator=rng)[taken:].tolist()
                images = self.decoder((first + index, content[index]) for index in order)
                for done, (index, image) in enumerate(zip(order, images), taken + 1):
                    if image is not None:
                        found = True
                        state = {"epoch": epoch, "window": window, "first": first, "taken": done}
                        yield image, content[index].get(self.decoder.label_column), state
                first, taken = first + len(content), 0
            if whole and not found:
                raise ValueError("The stream holds no image that can be read for this process.")
            epoch, window, first = epoch + 1, None, 0
