"""
Image data sets of the Hugging Face ecosystem as endless batches of uint8 tensors.

What images come in which step, and at which place, depends on the seed alone, not on the number of
processes, of accumulated passes or of restarts. A stream is the one exception: its files are shared
among the processes.
"""

import hashlib
import math
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from ..records.digests import derive_seed
from ..records.writing import replace_folder
from .decoding import ImageDecoder


def load_images(
    dataset, resolution: int, image_column: str | None = None, label_column: str | None = None, **options
):
    """
    Decodes a data set once, into a memory-mapped file in the cache of `datasets`: what fits into
    memory the system keeps there, processes share it, and the next run finds it.

    Args:
        dataset (`datasets.Dataset`): A data set with an image column.
        resolution (`int`): Height and width of the result, in pixels.
        image_column (`str`, *optional*): Name of the image column; by default the only one.
        label_column (`str`, *optional*): Name of the class column; by default the only `ClassLabel`.
        options: `channels`, `strict` and `num_workers` of [`ImageDecoder`].

    Returns:
        [`ImageDataset`]: Images and, where there are classes, labels.

    Raises:
        ValueError: A column is missing or ambiguous, `channels` is neither 1 nor 3, or an image is
            broken and `strict` is set.
    """
    import datasets
    from datasets.fingerprint import Hasher

    decoder = ImageDecoder(dataset, resolution, image_column, label_column, **options)
    state = _state_of_files(decoder)
    key = Hasher.hash([dataset._fingerprint, state, decoder.image_column, resolution, decoder.channels])
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "pipeline_pfgmpp" / key
    if not folder.is_dir() or (decoder.strict and len(np.load(folder / "rows.npy")) < len(dataset)):
        _decode_into(folder, decoder)
    rows = np.load(folder / "rows.npy")
    if len(rows) < len(dataset):
        tqdm.write(f"{len(dataset) - len(rows)} of {len(dataset)} images cannot be read and are left out.")
    images = torch.from_numpy(np.load(folder / "images.npy", mmap_mode="c"))[: len(rows)]

    labels, names = None, None
    if decoder.label_column is not None:
        labels = torch.tensor(dataset[decoder.label_column][:])[torch.from_numpy(rows)]
        names = decoder.class_names or [str(i) for i in range(int(labels.max()) + 1)]
    return ImageDataset(images, labels, names)


def _state_of_files(decoder):
    """
    What the system says of the image files that a data set refers to: size and last change of what
    it is and of what it is called. The data set's fingerprint goes by a time that a copy may keep.
    """
    import pyarrow.compute as pc

    table = decoder.dataset.with_format("arrow")
    digest = hashlib.blake2b(digest_size=16)
    for first in range(0, len(table), 10_000):
        column = table[first : first + 10_000][decoder.image_column]
        if not pc.any(pc.is_null(pc.struct_field(column, "bytes"))).as_py():
            continue
        for path in pc.struct_field(column, "path").to_pylist():
            if path and os.path.isfile(path):
                state = os.stat(path)
                digest.update(f"{path} {state.st_size} {state.st_mtime_ns} {state.st_ctime_ns}\n".encode())
    return digest.hexdigest()


def _decode_into(folder, decoder):
    """Writes `images.npy`, and in `rows.npy` which rows they are."""
    with replace_folder(folder) as partial:
        count = len(decoder.dataset)
        shape = (count, decoder.channels, decoder.resolution, decoder.resolution)
        images = np.lib.format.open_memmap(partial / "images.npy", mode="w+", dtype=np.uint8, shape=shape)
        rows = []
        progress = tqdm(
            decoder(enumerate(decoder.dataset)), total=count, desc="Decoding images", unit="image"
        )
        for row, image in enumerate(progress):
            if image is not None:
                images[len(rows)] = image.numpy()
                rows.append(row)
        images.flush()
        np.save(partial / "rows.npy", np.array(rows, np.int64))


class ImageDataset(torch.utils.data.Dataset):
    """
    Images in memory, or in a file that is mapped into it.

    Args:
        images (`torch.Tensor` of shape `(M, C, H, W)`, uint8): The images.
        labels (`torch.Tensor` of shape `(M,)`, *optional*): Their classes.
        class_names (`list[str]`, *optional*): Names of the classes.
    """

    def __init__(
        self, images: torch.Tensor, labels: torch.Tensor | None = None, class_names: list[str] | None = None
    ):
        self.images, self.labels, self.class_names = images, labels, class_names

    @property
    def channels(self) -> int:
        """Channels of an image."""
        return self.images.shape[1]

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index: int | torch.Tensor) -> dict[str, torch.Tensor]:
        item = {"images": self.images[index]}
        if self.labels is not None:
            item["class_labels"] = self.labels[index]
        return item

    def digest(self) -> str:
        """Digest of images, labels and class names, the same wherever they come from."""
        digest = hashlib.blake2b(repr([list(self.images.shape), self.class_names]).encode(), digest_size=8)
        for tensor in (self.images, self.labels):
            for chunk in tensor.split(4096) if tensor is not None else ():
                digest.update(chunk.contiguous().numpy())
        return digest.hexdigest()

    def sigma_data(self) -> float:
        """Standard deviation of the images in [-1, 1] over all pixels, for the preconditioning."""
        return measure_deviation(self.images)

    def batches(
        self, batch_size: int, seed: int = 0, process_index: int = 0, num_processes: int = 1, state: int = 0
    ) -> Iterator[tuple[dict[str, torch.Tensor], int]]:
        """
        Batches without end: every image once an epoch, in an order of its own, and the epochs run
        into each other. The P processes take turns, so process p has the images at places p, p + P,
        … of a block of P batches.

        Args:
            batch_size (`int`): Images a batch and process.
            seed (`int`, defaults to 0): Seed of the orders.
            process_index (`int`, defaults to 0): Number of this process.
            num_processes (`int`, defaults to 1): Number of processes.
            state (`int`, defaults to 0): Images before the first block, to go on from there.

        Yields:
            `tuple[dict, int]`: `images` as uint8 with their `class_labels`, and the state to go on
                from after this batch.
        """
        count, block, orders = len(self), batch_size * num_processes, {}
        while True:
            places = torch.arange(state + process_index, state + block, num_processes)
            epochs = range(int(places[0]) // count, int(places[-1]) // count + 1)
            orders = {
                epoch: orders[epoch] if epoch in orders else self._order(seed, epoch) for epoch in epochs
            }
            indices = torch.cat([orders[epoch][places[places // count == epoch] % count] for epoch in epochs])
            state += block
            yield self[indices], state

    def _order(self, seed, epoch):
        return torch.randperm(
            len(self), generator=torch.Generator().manual_seed(derive_seed(seed, "order", epoch))
        )


def prefetch(iterator: Iterator, depth: int = 2) -> Iterator:
    """Reads an endless iterator in a thread, so many items ahead."""
    with ThreadPoolExecutor(1) as pool:
        pending = deque(pool.submit(next, iterator) for _ in range(depth))
        while True:
            item = pending.popleft().result()
            pending.append(pool.submit(next, iterator))
            yield item


def measure_deviation(images):
    counts = sum(torch.bincount(chunk.flatten(), minlength=256) for chunk in images.split(4096)).double()
    values = torch.arange(256, dtype=torch.float64) / 127.5 - 1
    mean = (counts * values).sum() / counts.sum()
    return math.sqrt(((counts * (values - mean) ** 2).sum() / counts.sum()).item())
