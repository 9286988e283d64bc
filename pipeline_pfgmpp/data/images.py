"""
Data sets of images, decoded once and served as endless batches of uint8 tensors.

Which images a training step sees, and in which order, depends on the seed alone: not on the number
of processes, of accumulated passes or of restarts.
"""

import hashlib
import math
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm.auto import tqdm

from ..records.digests import derive_seed
from ..records.writing import replace_folder
from .decoding import ImageDecoder


if TYPE_CHECKING:
    import datasets


def load_images(
    dataset: "datasets.Dataset",
    resolution: int,
    image_column: str | None = None,
    label_column: str | None = None,
    **options: Any,
) -> "ImageDataset":
    """
    Decode a data set once, into a memory-mapped file in the cache of `datasets`.

    The operating system keeps in memory what fits there, all processes share it, and the next run
    finds it again.

    Args:
        dataset (`datasets.Dataset`): A data set with an image column.
        resolution (`int`): Height and width of the result, in pixels.
        image_column (`str`, *optional*): Name of the image column; by default the only one.
        label_column (`str`, *optional*): Name of the class column; by default the only `ClassLabel`.
        options: `channels`, `strict` and `num_workers` of [`ImageDecoder`].

    Returns:
        [`ImageDataset`]: The images, with labels if the data set has classes.

    Raises:
        ValueError: A column is missing or ambiguous, `channels` is neither 1 nor 3, or `strict` is
            set and an image is broken.
    """
    decoder = ImageDecoder(dataset, resolution, image_column, label_column, **options)
    folder = _choose_cache_folder(decoder, dataset)
    if not folder.is_dir() or (decoder.strict and len(np.load(folder / "rows.npy")) < len(dataset)):
        _decode_into(folder, decoder)
    rows = np.load(folder / "rows.npy")
    if len(rows) < len(dataset):
        tqdm.write(f"Left out {len(dataset) - len(rows)} of {len(dataset)} images, which cannot be read.")
    images = torch.from_numpy(np.load(folder / "images.npy", mmap_mode="c"))[: len(rows)]
    if decoder.label_column is None:
        return ImageDataset(images)
    labels = torch.tensor(dataset[decoder.label_column][:])[torch.from_numpy(rows)]
    class_names = decoder.class_names or [str(label) for label in range(int(labels.max()) + 1)]
    return ImageDataset(images, labels, class_names)


def _choose_cache_folder(decoder: ImageDecoder, dataset: "datasets.Dataset") -> Path:
    """Name the folder for a decoded data set after everything that the result depends on."""
    import datasets
    from datasets.fingerprint import Hasher

    # `datasets` has no public name for the fingerprint that its own cache goes by.
    fingerprint = dataset._fingerprint
    state = _digest_file_states(decoder)
    key = Hasher.hash([fingerprint, state, decoder.image_column, decoder.resolution, decoder.channels])
    return Path(datasets.config.HF_DATASETS_CACHE) / "pipeline_pfgmpp" / key


def _digest_file_states(decoder: ImageDecoder) -> str:
    """
    Digest the paths, sizes and times of the image files that a data set refers to.

    The data set's own fingerprint depends on the modification time alone, which a copy may keep.
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


def _decode_into(folder: Path, decoder: ImageDecoder) -> None:
    """Write the images that can be read to `images.npy`, and their row numbers to `rows.npy`."""
    with replace_folder(folder) as partial:
        count = len(decoder.dataset)
        shape = (count, decoder.channels, decoder.resolution, decoder.resolution)
        images = np.lib.format.open_memmap(partial / "images.npy", mode="w+", dtype=np.uint8, shape=shape)
        rows: list[int] = []
        decoded = decoder(enumerate(decoder.dataset))
        for row, image in enumerate(tqdm(decoded, total=count, desc="Decoding images", unit="image")):
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
        self.images = images
        self.labels = labels
        self.class_names = class_names

    @property
    def channels(self) -> int:
        """Number of channels per image."""
        return self.images.shape[1]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int | torch.Tensor) -> dict[str, torch.Tensor]:
        item = {"images": self.images[index]}
        if self.labels is not None:
            item["class_labels"] = self.labels[index]
        return item

    def digest(self) -> str:
        """Digest images, labels and class names, independently of where they were loaded from."""
        digest = hashlib.blake2b(repr([list(self.images.shape), self.class_names]).encode(), digest_size=8)
        for tensor in (self.images, self.labels):
            if tensor is None:
                continue
            for chunk in tensor.split(4096):
                digest.update(chunk.contiguous().numpy())
        return digest.hexdigest()

    def sigma_data(self) -> float:
        """Compute the standard deviation of all pixels in [-1, 1], which preconditioning needs."""
        return measure_deviation(self.images)

    def batches(
        self, batch_size: int, seed: int = 0, process_index: int = 0, num_processes: int = 1, state: int = 0
    ) -> Iterator[tuple[dict[str, torch.Tensor], int]]:
        """
        Yield batches without end.

        Every epoch holds each image once, in an order of its own, and one epoch runs into the next.
        The P processes take turns: process p gets places p, p + P, … of each block of P batches.

        Args:
            batch_size (`int`): Images per batch and process.
            seed (`int`, defaults to 0): Seed of the orders.
            process_index (`int`, defaults to 0): Index of this process.
            num_processes (`int`, defaults to 1): Number of processes.
            state (`int`, defaults to 0): Number of images to skip, to resume after them.

        Yields:
            `tuple[dict, int]`: `images` as uint8 with their `class_labels`, and the state from
                which to resume after this batch.
        """
        count = len(self)
        block = batch_size * num_processes
        orders: dict[int, torch.Tensor] = {}
        while True:
            places = torch.arange(state + process_index, state + block, num_processes)
            epochs = range(int(places[0]) // count, int(places[-1]) // count + 1)
            for epoch in epochs:
                if epoch not in orders:
                    orders[epoch] = self._shuffle(seed, epoch)
            orders = {epoch: orders[epoch] for epoch in epochs}
            indices = torch.cat([orders[epoch][places[places // count == epoch] % count] for epoch in epochs])
            state += block
            yield self[indices], state

    def _shuffle(self, seed: int, epoch: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(derive_seed(seed, "order", epoch))
        return torch.randperm(len(self), generator=generator)


def prefetch(iterator: Iterator, depth: int = 2) -> Iterator:
    """
    Read an endless iterator ahead in a thread.

    Args:
        iterator (`Iterator`): What to read.
        depth (`int`, defaults to 2): Number of items to read ahead.

    Yields:
        Its items.
    """
    with ThreadPoolExecutor(1) as pool:
        pending = deque(pool.submit(next, iterator) for _ in range(depth))
        while True:
            item = pending.popleft().result()
            pending.append(pool.submit(next, iterator))
            yield item


def measure_deviation(images: torch.Tensor) -> float:
    """
    Compute the standard deviation of images exactly, from counts of their 256 values.

    Args:
        images (`torch.Tensor`, uint8): Images of any shape, where 0 stands for -1 and 255 for 1.

    Returns:
        `float`: The standard deviation in [-1, 1].
    """
    counts = torch.zeros(256, dtype=torch.int64)
    for chunk in images.split(4096):
        counts += torch.bincount(chunk.flatten(), minlength=256)
    weights = counts.double() / counts.sum()
    values = torch.arange(256, dtype=torch.float64) / 127.5 - 1
    mean = (weights * values).sum()
    return math.sqrt((weights * (values - mean) ** 2).sum().item())
