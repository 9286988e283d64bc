"""Data sets by name: of the Hub, of a folder that `datasets` reads, or of a folder of arrays."""

from pathlib import Path
from typing import TYPE_CHECKING, Union

import PIL.Image

from .decoding import PROBED


if TYPE_CHECKING:
    import datasets

ARRAYS = "*.npy"
SPLITS = ("train", "validation", "test")


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
        `datasets.Dataset` or `datasets.IterableDataset`: The data set.

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
        return dataset.to_iterable_dataset() if streaming else dataset
    try:
        dataset = datasets.load_dataset(source, config_name, split=split, streaming=streaming)
        return _describe_columns(dataset) if dataset.features is None else dataset
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        is_vague = isinstance(error, datasets.exceptions.DatasetGenerationError)
        reason = str(error.__cause__ if is_vague and error.__cause__ else error).strip()
        raise ValueError(f"The data set {source} cannot be opened: {reason}") from error


def _describe_columns(dataset: "datasets.IterableDataset") -> "datasets.IterableDataset":
    """Describe the columns of a stream whose files do not, such as CSV, by what its first rows hold."""
    import datasets

    first = datasets.Dataset.from_list(list(dataset.take(PROBED)))
    return dataset.cast(first.features)


def _refuse_mixture(folder: Path) -> None:
    """Raise an error if a folder holds images besides its arrays, which would be left out."""
    suffixes = {*PIL.Image.registered_extensions(), ".parquet"}
    for path in folder.rglob("*"):
        if path.suffix.lower() in suffixes:
            raise ValueError(f"The folder {folder} mixes .npy files with others, such as {path.name}.")


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
