"""
Fashion-MNIST, or any other data set in MNIST's IDX files, as parquet files that `datasets` loads.

Debian's package dataset-fashion-mnist installs it under /usr/share/datasets/fashion-mnist.
"""

import contextlib
import gzip
import os
import zlib
from pathlib import Path

import numpy as np

from ..records.writing import replace_file


FASHION_MNIST_CLASSES = [
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
]  # fmt: skip
SPLITS = {"train": "train", "test": "t10k"}


def read_idx(path: str | os.PathLike) -> np.ndarray:
    """
    Read an IDX file of unsigned bytes, compressed with gzip or not.

    Args:
        path (`str` or `os.PathLike`): The file.

    Returns:
        `np.ndarray` of uint8: Images of shape (M, H, W) or labels of shape (M,).

    Raises:
        ValueError: The file is not an IDX file of bytes, or it is damaged.
    """
    path = Path(path)
    content = path.read_bytes()
    if path.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(f"{path} is damaged: {error}") from None
    if content[:3] != b"\x00\x00\x08" or len(content) < 4 + 4 * content[3]:
        raise ValueError(f"{path} is not an IDX file of unsigned bytes.")
    dimensions = content[3]
    start = 4 + 4 * dimensions
    shape = np.frombuffer(content, ">u4", count=dimensions, offset=4)
    if len(content) != start + shape.prod(dtype=np.int64):
        raise ValueError(f"{path} is truncated: its header promises a shape of {tuple(shape.tolist())}.")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def convert_idx(
    source: str | os.PathLike, output: str | os.PathLike, class_names: list[str]
) -> dict[str, int]:
    """
    Write `train.parquet` and `test.parquet` with the columns `image` and `label`.

    Args:
        source (`str` or `os.PathLike`): Folder with `train-images-idx3-ubyte[.gz]` and so on.
        output (`str` or `os.PathLike`): Folder to write to; it is created if it is missing.
        class_names (`list[str]`): Names of the classes, in the order of their numbers.

    Returns:
        `dict[str, int]`: Number of images in each split.

    Raises:
        ValueError: A file is missing or damaged, or images and labels do not match.
    """
    import datasets

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=class_names)})
    splits = {}
    for split, prefix in SPLITS.items():
        images = read_idx(_find_file(source, f"{prefix}-images-idx3-ubyte"))
        labels = read_idx(_find_file(source, f"{prefix}-labels-idx1-ubyte"))
        largest = labels.max(initial=0)
        if len(images) != len(labels):
            raise ValueError(f"The {split} split has {len(images)} images, but {len(labels)} labels.")
        if largest >= len(class_names):
            raise ValueError(
                f"The {split} split has the label {largest}, but {len(class_names)} class names."
            )
        dataset = datasets.Dataset.from_dict({"image": list(images), "label": labels}, features=features)
        splits[split] = dataset
    with contextlib.ExitStack() as stack:
        for split, dataset in splits.items():
            dataset.to_parquet(stack.enter_context(replace_file(Path(output) / f"{split}.parquet")))
    return {split: len(dataset) for split, dataset in splits.items()}


def _find_file(source: str | os.PathLike, name: str) -> Path:
    found = sorted(Path(source).glob(f"{name}*"))
    if not found:
        raise ValueError(f"{source} holds no {name} or {name}.gz.")
    return found[0]
