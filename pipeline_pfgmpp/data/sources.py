"""Data sets by name: of the Hub, of a folder that `datasets` reads, or of a folder of arrays."""

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Union

import PIL.Image

from .decoding import PROBED


if TYPE_CHECKING:
    import datasets

logger = logging.getLogger(__name__)

ARRAYS = "*.npy"
SPLITS = ("train", "validation", "test")
MOST_SHARDS = 1024  # of a stream of arrays
UNREADABLE = {".heic", ".heif", ".jxl", ".dng", ".cr2", ".cr3", ".nef", ".arw"}  # which Pillow does not open


def open_dataset(
    source: str, config_name: str | None = None, split: str = "train", streaming: bool = False
) -> Union["datasets.Dataset", "datasets.IterableDataset"]:
    """
    Open a data set.

    A folder of `.npy` files holds one image per file. Its subfolders `train`, `test` and so on are
    splits, and the folders in a split are classes, as in a folder of pictures.

    Args:
        source (`str`): Name on the Hub, or a local folder of pictures, parquet files or arrays.
        config_name (`str`, *optional*): Configuration of the data set.
        split (`str`, defaults to `"train"`): The split.
        streaming (`bool`, defaults to `False`): Whether it is read as it is used.

    Returns:
        `datasets.Dataset` or `datasets.IterableDataset`: The data set. A warning tells which pictures of a
            folder are in no split of it.

    Raises:
        ValueError: There is no such data set or split, or a folder mixes arrays with other images.
    """
    import datasets

    if Path(source).is_dir() and any(Path(source).rglob(ARRAYS)):
        if config_name is not None:
            raise ValueError(
                f"`config_name` is {config_name!r}, but a folder of .npy files has no configurations."
            )
        dataset = _open_arrays(Path(source), split)
        # In shards, whose order changes with each epoch: else a stream is as sorted as the names are.
        shards = min(len(dataset), MOST_SHARDS)
        return dataset.shuffle(seed=0).to_iterable_dataset(shards) if streaming else dataset
    if Path(source).is_dir() and "[" in source:
        raise ValueError(
            f"The data set {source} cannot be opened: `datasets` reads no folder with [ in its name."
        )
    try:
        if Path(source).is_dir():
            _report_left_out(Path(source), config_name)
        dataset = datasets.load_dataset(source, config_name, split=split, streaming=streaming)
        return _describe_columns(dataset) if dataset.features is None else dataset
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        is_vague = isinstance(error, datasets.exceptions.DatasetGenerationError)
        reason = str(error.__cause__ if is_vague and error.__cause__ else error).strip()
        raise ValueError(f"The data set {source} cannot be opened: {reason}") from error


def _list_pictures(folder: Path) -> tuple[list[Path], list[Path]]:
    """List the pictures in a folder and below, without hidden ones: those that can be read, and others."""
    formats = PIL.Image.registered_extensions()
    readable: list[Path] = []
    unreadable: list[Path] = []
    for path in folder.rglob("*"):
        suffix = path.suffix.lower()
        is_readable = formats.get(suffix) in PIL.Image.OPEN
        if not is_readable and suffix not in UNREADABLE:
            continue
        if not any(part[0] == "." for part in path.relative_to(folder).parts):
            (readable if is_readable else unreadable).append(path)
    return readable, unreadable


def _report_left_out(folder: Path, config_name: str | None) -> None:
    """
    Warn of pictures that are left out, since nothing can read them or `datasets` does not.

    `datasets` takes a word such as "train" in the name of any file or folder for a split, and then only what
    has such a name; and pictures with as many texts beside them for a data set of texts.
    """
    import datasets

    files = datasets.load_dataset_builder(str(folder), config_name).config.data_files or {}
    read = {os.path.abspath(file) for paths in files.values() for file in paths}
    pictures, unreadable = _list_pictures(folder)
    if unreadable:
        logger.warning(
            "%d pictures in %s are left out, such as %s: they must be converted to PNG or JPEG first.",
            len(unreadable),
            folder,
            os.path.relpath(unreadable[0], folder),
        )
    left_out = sorted(str(path) for path in pictures if os.path.abspath(path) not in read)
    is_of_others = not any(Path(file).suffix == ".txt" for file in read) and len(left_out) == len(pictures)
    if left_out and not is_of_others:
        logger.warning(
            "%d of %d pictures in %s are left out, such as %s: datasets takes words such as 'train' in names"
            " for splits, and texts beside pictures for the data. Put the pictures alone into %s.",
            len(left_out),
            len(pictures),
            folder,
            os.path.relpath(left_out[0], folder),
            folder / "train",
        )


def _describe_columns(dataset: "datasets.IterableDataset") -> "datasets.IterableDataset":
    """Describe the columns of a stream whose files do not, such as CSV, by what its first rows hold."""
    import datasets

    first = datasets.Dataset.from_list(list(dataset.take(PROBED)))
    return dataset.cast(first.features)


def _refuse_mixture(folder: Path) -> None:
    """Raise an error if a folder holds images besides its arrays, which would be left out."""
    pictures, _ = _list_pictures(folder)
    others = [*pictures, *folder.rglob("*.parquet")]
    if others:
        raise ValueError(f"The folder {folder} mixes .npy files with others, such as {others[0].name}.")


def _open_arrays(folder: Path, split: str) -> "datasets.Dataset":
    """List the files of a split, each with the folder that it is in as its class."""
    import datasets

    root = folder / split if (folder / split).is_dir() else folder
    has_splits = any((folder / name).is_dir() for name in SPLITS)
    if root == folder and (has_splits or split != "train"):
        raise ValueError(f"The data set {folder} has no split {split!r}: it has no folder of that name.")
    _refuse_mixture(root)
    paths = sorted(root.rglob(ARRAYS))
    if not paths:
        raise ValueError(f"The folder {root} holds no .npy files.")
    columns = {"image": [str(path) for path in paths]}
    features = {"image": datasets.Value("string")}
    classes = sorted({path.parent.relative_to(root).as_posix() for path in paths})
    if len(classes) > 1:
        names = [path.parent.relative_to(root).as_posix() for path in paths]
        columns["label"] = names
        features["label"] = datasets.ClassLabel(names=classes)
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))
