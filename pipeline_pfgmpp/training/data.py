"""
Image data sets of the Hugging Face ecosystem as endless batches of uint8 tensors.

What images come in which step, and at which place, depends on the seed alone, not on the number of processes, of accumulated
passes or of restarts. A stream is the one exception: its files are shared among the processes.
"""

import hashlib
import math
import os
import shutil
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from tqdm.auto import tqdm

from ..sampling import derived_seed


def _pick_column(dataset, wanted, feature_type, what):
    """The named column, or the only one of a feature type; None where there is none."""
    names = [name for name, feature in dataset.features.items() if isinstance(feature, feature_type)]
    if wanted is not None:
        if wanted not in dataset.features:
            raise ValueError(f"`{what}_column` is {wanted!r}, but the data set has the columns {list(dataset.features)}.")
        return wanted
    if len(names) > 1:
        raise ValueError(f"The data set has several {what} columns, {names}; name one with `{what}_column`.")
    return names[0] if names else None


class ImageDecoder:
    """
    Turns the rows of a data set into tensors of one size: the shorter side is resized to fit, the rest cropped at the centre.

    Args:
        dataset (`datasets.Dataset` or `datasets.IterableDataset`): A data set with an image column.
        resolution (`int`): Height and width of the result, in pixels.
        image_column (`str`, *optional*): Name of the image column; by default the only one.
        label_column (`str`, *optional*): Name of the class column; by default the only `ClassLabel`.
        channels (`int`, *optional*): 1 (grey) or 3 (RGB); by default that of the first image that can be read.
        strict (`bool`, defaults to `False`): Whether a broken image ends the run; otherwise it is named and skipped.
        num_workers (`int`, defaults to 4): Threads that decode.

    Raises:
        ValueError: A column is missing or ambiguous, `channels` is neither 1 nor 3, or no image can be read.
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
            raise ValueError(f"The data set has no image column among {list(dataset.features)}; name one with `image_column`.")
        self.class_names = getattr(dataset.features.get(self.label_column), "names", None)
        self.dataset = dataset.cast_column(self.image_column, datasets.Image(decode=False))  # rows that cannot fail
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
        return torch.from_numpy(np.array(image)).view(self.resolution, self.resolution, self.channels).permute(2, 0, 1)

    def __call__(self, rows: Iterable[tuple[int, dict]]) -> Iterator[torch.Tensor | None]:
        """
        Decodes rows in threads, in the order in which they come.

        Args:
            rows (iterable of `tuple[int, dict]`): Rows of the data set with their numbers, which name those without a path.

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
                tqdm.write(f"Skipping the image {name}, which cannot be read ({self.skipped} so far): {image}")
                image = None
            yield image


def load_images(dataset, resolution: int, image_column: str | None = None, label_column: str | None = None, **options):
    """
    Decodes a data set once, into a memory-mapped file in the cache of `datasets`: what fits into memory the system keeps there,
    processes share it, and the next run finds it.

    Args:
        dataset (`datasets.Dataset`): A data set with an image column.
        resolution (`int`): Height and width of the result, in pixels.
        image_column (`str`, *optional*): Name of the image column; by default the only one.
        label_column (`str`, *optional*): Name of the class column; by default the only `ClassLabel`.
        options: `channels`, `strict` and `num_workers` of [`ImageDecoder`].

    Returns:
        [`ImageDataset`]: Images and, where there are classes, labels.

    Raises:
        ValueError: A column is missing or ambiguous, `channels` is neither 1 nor 3, or an image is broken and `strict` is set.
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
    What the system says of the image files that a data set refers to: size and last change of what it is and of what it is
    called. The data set's fingerprint goes by a time that a copy may keep.
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
    """Writes `images.npy`, and in `rows.npy` which rows they are, beside their place and moves them there."""
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    try:
        count = len(decoder.dataset)
        shape = (count, decoder.channels, decoder.resolution, decoder.resolution)
        images = np.lib.format.open_memmap(partial / "images.npy", mode="w+", dtype=np.uint8, shape=shape)
        rows = []
        progress = tqdm(decoder(enumerate(decoder.dataset)), total=count, desc="Decoding images", unit="image")
        for row, image in enumerate(progress):
            if image is not None:
                images[len(rows)] = image.numpy()
                rows.append(row)
        images.flush()
        np.save(partial / "rows.npy", np.array(rows, np.int64))
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


class ImageDataset(torch.utils.data.Dataset):
    """
    Images in memory, or in a file that is mapped into it.

    Args:
        images (`torch.Tensor` of shape `(M, C, H, W)`, uint8): The images.
        labels (`torch.Tensor` of shape `(M,)`, *optional*): Their classes.
        class_names (`list[str]`, *optional*): Names of the classes.
    """

    def __init__(self, images: torch.Tensor, labels: torch.Tensor | None = None, class_names: list[str] | None = None):
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
        return _standard_deviation(self.images)

    def batches(
        self, batch_size: int, seed: int = 0, process_index: int = 0, num_processes: int = 1, state: int = 0
    ) -> Iterator[tuple[dict[str, torch.Tensor], int]]:
        """
        Batches without end: every image once an epoch, in an order of its own, and the epochs run into each other. The P
        processes take turns, so process p has the images at places p, p + P, … of a block of P batches.

        Args:
            batch_size (`int`): Images a batch and process.
            seed (`int`, defaults to 0): Seed of the orders.
            process_index (`int`, defaults to 0): Number of this process.
            num_processes (`int`, defaults to 1): Number of processes.
            state (`int`, defaults to 0): Images before the first block, to go on from there.

        Yields:
            `tuple[dict, int]`: `images` as uint8 with their `class_labels`, and the state to go on from after this batch.
        """
        count, block, orders = len(self), batch_size * num_processes, {}
        while True:
            places = torch.arange(state + process_index, state + block, num_processes)
            epochs = range(int(places[0]) // count, int(places[-1]) // count + 1)
            orders = {epoch: orders[epoch] if epoch in orders else self._order(seed, epoch) for epoch in epochs}
            indices = torch.cat([orders[epoch][places[places // count == epoch] % count] for epoch in epochs])
            state += block
            yield self[indices], state

    def _order(self, seed, epoch):
        return torch.randperm(len(self), generator=torch.Generator().manual_seed(derived_seed(seed, "order", epoch)))


class ImageStream:
    """
    Images of a data set that is read while it is trained on.

    The files come in another order each epoch, and a window of the stream is read at a time and shuffled. So the place in the
    stream is all there is to keep: to go on, the window is read again.

    Args:
        dataset (`datasets.IterableDataset`): A data set with an image column, from `load_dataset(..., streaming=True)`.
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
        digest = hashlib.blake2b(repr([decoder.resolution, self.channels, self.class_names]).encode(), digest_size=8)
        for row in islice(decoder.dataset, 64):
            image = row[decoder.image_column] or {}
            digest.update(image.get("bytes") or os.path.basename(image.get("path") or "").encode())
            digest.update(repr(row.get(decoder.label_column)).encode())
        return digest.hexdigest()

    def sigma_data(self) -> float:
        """Standard deviation of the first images of the stream in [-1, 1]."""
        images = self.decoder(enumerate(islice(self.decoder.dataset, 2000)))
        return _standard_deviation(torch.stack([image for image in images if image is not None]))

    def batches(
        self, batch_size: int, seed: int = 0, process_index: int = 0, num_processes: int = 1, state: dict | None = None
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
            `tuple[dict, dict]`: `images` as uint8 with their `class_labels`, and the state to go on from after this batch.

        Raises:
            ValueError: A whole epoch has no image for this process, or one is broken and `strict` is set.
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
        """Single images with their class and the state after them: epoch, window, where that begins and what of it is done."""
        from datasets.distributed import split_dataset_by_node

        while True:
            # The order of the files alone; they are read one after the other, so that the order of the images is certain.
            order = {"seed": derived_seed(seed, "files", epoch) % 2**31, "buffer_size": 1, "max_buffer_input_shards": 1}
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
                rng = torch.Generator().manual_seed(derived_seed(seed, "window", epoch, process_index, first))
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


def prefetch(iterator: Iterator, depth: int = 2) -> Iterator:
    """Reads an endless iterator in a thread, so many items ahead."""
    with ThreadPoolExecutor(1) as pool:
        pending = deque(pool.submit(next, iterator) for _ in range(depth))
        while True:
            item = pending.popleft().result()
            pending.append(pool.submit(next, iterator))
            yield item


def _standard_deviation(images):
    counts = sum(torch.bincount(chunk.flatten(), minlength=256) for chunk in images.split(4096)).double()
    values = torch.arange(256, dtype=torch.float64) / 127.5 - 1
    mean = (counts * values).sum() / counts.sum()
    return math.sqrt(((counts * (values - mean) ** 2).sum() / counts.sum()).item())
