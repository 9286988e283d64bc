"""
Data sets of images, decoded once and read as endless batches.

Which images a training step sees, and in which order, depends on the seed alone: not on the number
of processes, of accumulated passes or of restarts.
"""

import hashlib
import json
import math
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import torch
from tqdm.auto import tqdm

from ..images import normalize
from ..pixels import EIGHT_BITS
from ..records.digests import derive_seed
from ..records.writing import replace_folder
from .decoding import DeeperImageError, ImageDecoder, report
from .labels import MISSING, find_label_column, read_labels


if TYPE_CHECKING:
    import datasets

FORMAT = 3  # of the files in the cache
FACTS = "facts.json"


def load_images(
    dataset: "datasets.Dataset",
    resolution: int | tuple[int, int],
    image_column: str | None = None,
    label_column: str | None = None,
    labels: bool = True,
    **options: Any,
) -> "ImageDataset":
    """
    Decode a data set once, into a memory-mapped file in the cache of `datasets`.

    The operating system keeps in memory what fits there, all processes share it, and the next run
    finds it again.

    Args:
        dataset (`datasets.Dataset`): A data set with a column of pictures or arrays.
        resolution (`int` or `tuple[int, int]`): Height and width of the result, in pixels.
        image_column (`str`, *optional*): Name of the image column; by default the only one.
        label_column (`str`, *optional*): Name of the class column; by default the only `ClassLabel`,
            or else one that is called `label`.
        labels (`bool`, defaults to `True`): Whether to read classes, if there are any. Rows without
            a class are then left out.
        options: Further options of [`ImageDecoder`].

    Returns:
        [`ImageDataset`]: The images, with labels if the data set has classes.

    Raises:
        ValueError: A column is missing or ambiguous, an option is out of range, all pixels of float
            data have the same value, or `strict` is set and an image is broken or has no class.
    """
    decoder = ImageDecoder(dataset, resolution, image_column, **options)
    column = find_label_column(dataset, label_column) if labels else None
    found = read_labels(dataset, column) if column else None
    chosen = range(len(dataset))
    if found is not None:
        chosen = (found.indices != MISSING).nonzero().flatten().tolist()
        _report_missing(len(dataset) - len(chosen), len(dataset), decoder.strict)
    folder = _choose_cache_folder(decoder, dataset, chosen)
    if not folder.is_dir() or (decoder.strict and len(np.load(folder / "rows.npy")) < len(chosen)):
        _decode_into(folder, decoder, chosen)
    rows = np.load(folder / "rows.npy")
    if len(rows) < len(chosen):
        report(f"Left out {len(chosen) - len(rows)} of {len(chosen)} images, which cannot be read.")
    images = torch.from_numpy(np.load(folder / "images.npy", mmap_mode="c"))[: len(rows)]
    facts = json.loads((folder / FACTS).read_text())
    for remark in facts["remarks"]:
        report(remark)
    value_range = tuple(facts["value_range"])
    if found is None:
        return ImageDataset(images, value_range=value_range)
    return ImageDataset(images, found.indices[torch.from_numpy(rows)], found.names, value_range)


def _report_missing(missing: int, count: int, strict: bool) -> None:
    if missing and (strict or missing == count):
        raise ValueError(f"{missing} of {count} rows have no class.")
    if missing:
        report(f"Left out {missing} of {count} rows, which have no class.")


def _choose_cache_folder(decoder: ImageDecoder, dataset: "datasets.Dataset", chosen: Sequence[int]) -> Path:
    """Name the folder for a decoded data set after everything that the result depends on."""
    import datasets
    from datasets.fingerprint import Hasher

    # `datasets` has no public name for the fingerprint that its own cache goes by.
    fingerprint = dataset._fingerprint
    state = _digest_file_states(decoder)
    options = [decoder.size, decoder.channels, decoder.stated_range, decoder.background]
    rows = None if len(chosen) == len(dataset) else list(chosen)
    key = Hasher.hash([FORMAT, fingerprint, state, decoder.image_column, options, rows])
    return Path(datasets.config.HF_DATASETS_CACHE) / "pipeline_pfgmpp" / key


def _digest_file_states(decoder: ImageDecoder) -> str:
    """
    Digest the paths, sizes and times of the image files that a data set refers to.

    The data set's own fingerprint depends on the modification time alone, which a copy may keep.
    """
    digest = hashlib.blake2b(digest_size=16)
    for first in range(0, len(decoder.dataset), 10_000):
        for path in decoder.list_files(first, first + 10_000):
            state = os.stat(path)
            digest.update(f"{path} {state.st_size} {state.st_mtime_ns} {state.st_ctime_ns}\n".encode())
    return digest.hexdigest()


def _decode_into(folder: Path, decoder: ImageDecoder, chosen: Sequence[int]) -> None:
    """
    Write the images that can be read to `images.npy`, their row numbers to `rows.npy`, and their range
    and what was done to them to a file of facts.
    """
    with replace_folder(folder) as partial:
        try:
            rows = _decode_rows(partial / "images.npy", decoder, chosen)
        except DeeperImageError:
            decoder.deepen()
            rows = _decode_rows(partial / "images.npy", decoder, chosen)
        if not rows:
            raise ValueError("No image can be read.")
        np.save(partial / "rows.npy", np.array(rows, np.int64))
        images = torch.from_numpy(np.load(partial / "images.npy", mmap_mode="c"))[: len(rows)]
        value_range = decoder.value_range or measure_range(images)
        facts = {"value_range": value_range, "remarks": list(decoder.remarks)}
        (partial / FACTS).write_text(json.dumps(facts))


def _decode_rows(path: Path, decoder: ImageDecoder, chosen: Sequence[int]) -> list[int]:
    """Write the images that can be read to a file, and return their row numbers."""
    shape = (len(chosen), decoder.channels, *decoder.size)
    dtype = torch.empty(0, dtype=decoder.dtype).numpy().dtype
    images = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    source: Iterable[tuple[int, dict]] = enumerate(decoder.dataset)
    if len(chosen) < len(decoder.dataset):
        source = ((row, decoder.dataset[row]) for row in chosen)
    rows: list[int] = []
    progress = tqdm(decoder(source), total=len(chosen), desc="Decoding images", unit="image")
    for row, image in zip(chosen, progress):
        if image is not None:
            images[len(rows)] = image.numpy()
            rows.append(row)
    images.flush()
    return rows


def describe_images(shape: tuple[int, ...], value_range: tuple[float, float], num_classes: int | None) -> str:
    """
    Describe images in a phrase.

    Args:
        shape (`tuple[int, int, int]`): Channels, height and width of an image.
        value_range (`tuple[float, float]`): The values of black and white.
        num_classes (`int` or `None`): Number of classes; None without classes.

    Returns:
        `str`: The phrase, such as "images of 28x28 pixels, 1 channel, values from 0 to 255, without
            classes".
    """
    channels, height, width = shape
    low, high = value_range
    classes = "without classes"
    if num_classes is not None:
        classes = f"in {num_classes} {'class' if num_classes == 1 else 'classes'}"
    return (
        f"images of {height}x{width} pixels, {channels} {'channel' if channels == 1 else 'channels'},"
        f" values from {low:g} to {high:g}, {classes}"
    )


def _refuse_flat(value: float) -> NoReturn:
    raise ValueError(f"All pixels have the value {value:g}, so there is nothing to learn.")


def check_contrast(images: Iterable[torch.Tensor]) -> None:
    """
    Check that pixels differ.

    Args:
        images (iterable of `torch.Tensor`): Images, which are read until two pixels differ.

    Raises:
        ValueError: All pixels have the same value.
    """
    first: torch.Tensor | None = None
    for image in images:
        if first is None:
            first = image.flatten()[0]
        if bool((image != first).any()):
            return
    if first is not None:
        _refuse_flat(first.item())


def measure_range(images: torch.Tensor) -> tuple[float, float]:
    """
    Find the range of values of images.

    Args:
        images (`torch.Tensor` of shape `(M, C, H, W)`): The images.

    Returns:
        `tuple[float, float]`: The least and the largest value.

    Raises:
        ValueError: All pixels have the same value.
    """
    extremes = [chunk.aminmax() for chunk in images.split(4096)]
    low = min(extreme.min.item() for extreme in extremes)
    high = max(extreme.max.item() for extreme in extremes)
    if low == high:
        _refuse_flat(low)
    return low, high


def _check_labels(labels: torch.Tensor, count: int, class_names: list[str] | None) -> None:
    if labels.shape != (count,) or labels.is_floating_point():
        raise ValueError(
            f"`labels` must be {count} integers, one class per image, but are {labels.dtype} of shape"
            f" {tuple(labels.shape)}."
        )
    low, high = (bound.item() for bound in labels.aminmax())
    if low < 0 or (class_names is not None and high >= len(class_names)):
        classes = "at least 0" if class_names is None else f"in 0 ... {len(class_names) - 1}"
        raise ValueError(f"`labels` must be {classes}, but range from {low} to {high}.")


class ImageDataset(torch.utils.data.Dataset):
    """
    Images in memory, or in a file that is mapped into it.

    Args:
        images (`torch.Tensor` of shape `(M, C, H, W)`, uint8 or float32): The images.
        labels (`torch.Tensor` of shape `(M,)`, *optional*): Their classes.
        class_names (`list[str]`, *optional*): Names of the classes.
        value_range (`tuple[float, float]`, *optional*): The values of black and white, which a network
            sees as -1 and 1; by default (0, 255) for uint8, and otherwise the least and the largest
            value.

    Raises:
        ValueError: The images are of another shape, or the labels are not one class per image.
    """

    def __init__(
        self,
        images: torch.Tensor,
        labels: torch.Tensor | None = None,
        class_names: list[str] | None = None,
        value_range: tuple[float, float] | None = None,
    ):
        if images.ndim != 4 or 0 in images.shape:
            raise ValueError(f"`images` must be of shape (M, C, H, W), but are of {tuple(images.shape)}.")
        if labels is not None:
            _check_labels(labels, len(images), class_names)
        if value_range is None:
            value_range = EIGHT_BITS if images.dtype == torch.uint8 else measure_range(images)
        self.images = images
        self.labels = labels
        self.class_names = class_names
        self.value_range = value_range

    @property
    def channels(self) -> int:
        """Number of channels per image."""
        return self.images.shape[1]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of an image, in pixels."""
        _, _, height, width = self.images.shape
        return height, width

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int | torch.Tensor) -> dict[str, torch.Tensor]:
        item = {"images": self.images[index]}
        if self.labels is not None:
            item["class_labels"] = self.labels[index]
        return item

    @property
    def present_classes(self) -> list[int]:
        """The classes that occur; none without labels."""
        return [] if self.labels is None else self.labels.unique().tolist()

    def summarize(self) -> str:
        """Describe the images in a phrase: their number, size, channels, range and classes."""
        classes = len(self.present_classes) if self.labels is not None else None
        shape = tuple(self.images.shape[1:])
        return f"{len(self):,} {describe_images(shape, self.value_range, classes)}"

    def check_contrast(self) -> None:
        """
        Check that there is something to learn.

        Raises:
            ValueError: All pixels have the same value.
        """
        check_contrast(self.images.split(256))

    def normalize(self, images: torch.Tensor) -> torch.Tensor:
        """Scale images from the range of the data to [-1, 1], as float32."""
        return normalize(images, self.value_range)

    @property
    def is_eight_bits(self) -> bool:
        """Whether the images are usual ones of 8 bits, and not data with a range of their own."""
        return self.images.dtype == torch.uint8 and tuple(self.value_range) == EIGHT_BITS

    def digest(self) -> str:
        """Digest images, labels and class names, which identify the data wherever they were loaded from."""
        described: list = [list(self.images.shape), self.class_names]
        if self.images.dtype != torch.uint8:
            described.append(self.value_range)
        digest = hashlib.blake2b(repr(described).encode(), digest_size=8)
        for tensor in (self.images, self.labels):
            if tensor is None:
                continue
            for chunk in tensor.split(4096):
                digest.update(chunk.contiguous().numpy())
        return digest.hexdigest()

    def sigma_data(self) -> float:
        """Compute the standard deviation of all pixels in [-1, 1], which preconditioning needs."""
        return measure_deviation(self.images, self.value_range)

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
            `tuple[dict, int]`: `images` in the range of the data with their `class_labels`, and the
                state from which to resume after this batch.
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
            parts = [orders[epoch][places[places // count == epoch] % count] for epoch in epochs]
            indices = torch.cat(parts)
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


def convert_to_bytes(images: torch.Tensor, value_range: tuple[float, float]) -> torch.Tensor:
    """
    Round images of any depth to 8 bits, in which features compare them.

    Args:
        images (`torch.Tensor` of shape `(M, C, H, W)`): Images in the range of their data.
        value_range (`tuple[float, float]`): The values of black and white.

    Returns:
        `torch.Tensor`, uint8: The images in [0, 255].
    """
    if images.dtype == torch.uint8 and tuple(value_range) == EIGHT_BITS:
        return images
    chunks = [
        ((normalize(chunk, value_range).clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        for chunk in images.split(256)
    ]
    return torch.cat(chunks)


def measure_deviation(images: torch.Tensor, value_range: tuple[float, float]) -> float:
    """
    Compute the standard deviation that images have in [-1, 1].

    Args:
        images (`torch.Tensor` of shape `(M, C, H, W)`): Images in the range of their data.
        value_range (`tuple[float, float]`): The values that become -1 and 1.

    Returns:
        `float`: The standard deviation.

    Raises:
        ValueError: All pixels have the same value.
    """
    count = images.numel()
    chunks = images.split(256)
    mean = sum(chunk.double().sum().item() for chunk in chunks) / count
    variance = sum(((chunk.double() - mean) ** 2).sum().item() for chunk in chunks) / count
    if variance == 0:
        _refuse_flat(mean)
    low, high = value_range
    return math.sqrt(variance) / ((high - low) / 2)
