"""
Turns a data set in MNIST's IDX files, such as Debian's package dataset-fashion-mnist, into parquet
files that `datasets` loads:

    python -m pipeline_pfgmpp.data.fashion_mnist /usr/share/datasets/fashion-mnist data/fashion-mnist
"""

import argparse
import gzip
import os
from pathlib import Path

import numpy as np

from ..records.writing import replace_file


FASHION_MNIST_CLASSES = [
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
]  # fmt: skip
SPLITS = {"train": "train", "test": "t10k"}


def read_idx(path: str | os.PathLike) -> np.ndarray:
    """
    Reads one IDX file of unsigned bytes, gzipped or not.

    Args:
        path (`str` or `os.PathLike`): The file.

    Returns:
        `np.ndarray` of uint8: Images of shape (M, H, W) or labels of shape (M,).

    Raises:
        ValueError: The file is not an IDX file of bytes, or it is cut off.
    """
    path = Path(path)
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    if content[:3] != b"\x00\x00\x08" or len(content) < 4 + 4 * content[3]:
        raise ValueError(f"{path} is not an IDX file of unsigned bytes.")
    dimensions = content[3]
    shape = np.frombuffer(content, ">u4", count=dimensions, offset=4)
    if len(content) != 4 + 4 * dimensions + shape.prod(dtype=np.int64):
        raise ValueError(f"{path} is cut off: its header promises a shape of {tuple(shape)}.")
    return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def convert(source: str | os.PathLike, output: str | os.PathLike, class_names: list[str]) -> dict[str, int]:
    """
    Writes `train.parquet` and `test.parquet` with the columns `image` and `label`.

    Args:
        source (`str` or `os.PathLike`): Folder with `train-images-idx3-ubyte[.gz]` and so on.
        output (`str` or `os.PathLike`): Folder to write to; made if missing.
        class_names (`list[str]`): Names of the classes, in the order of their numbers.

    Returns:
        `dict[str, int]`: Number of images in each split.

    Raises:
        ValueError: A file is missing or damaged, or images and labels do not fit each other.
    """
    import datasets

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=class_names)})
    sizes = {}
    for split, prefix in SPLITS.items():
        arrays = []
        for kind in ("images-idx3", "labels-idx1"):
            found = sorted(Path(source).glob(f"{prefix}-{kind}-ubyte*"))
            if not found:
                raise ValueError(f"{source} holds no {prefix}-{kind}-ubyte or {prefix}-{kind}-ubyte.gz.")
            arrays.append(read_idx(found[0]))
        images, labels = arrays
        if len(images) != len(labels) or labels.max(initial=0) >= len(class_names):
            found = f"{len(images)} images and {len(labels)} labels up to {labels.max(initial=0)}"
            raise ValueError(
                f"The {split} split has {found}, which do not fit each other or {len(class_names)} classes."
            )
        dataset = datasets.Dataset.from_dict({"image": list(images), "label": labels}, features=features)
        with replace_file(Path(output) / f"{split}.parquet") as partial:
            dataset.to_parquet(partial)
        sizes[split] = len(images)
    return sizes


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", help="folder with the four IDX files")
    parser.add_argument("output", help="folder for train.parquet and test.parquet")
    parser.add_argument(
        "--class_names", nargs="+", default=FASHION_MNIST_CLASSES, help="default: Fashion-MNIST's"
    )
    args = parser.parse_args()
    try:
        sizes = convert(args.source, args.output, args.class_names)
    except ValueError as error:
        parser.exit(1, f"{error}\n")
    print(f"Wrote {' and '.join(f'{size} {split} images' for split, size in sizes.items())} to {args.output}")


if __name__ == "__main__":
    main()
