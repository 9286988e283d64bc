"""Data sets that are decoded once, into files that are mapped into memory and found again."""

import hashlib
import json
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm.auto import tqdm

from ..images import Scale
from ..records.writing import lock, replace_folder
from .decoding import DeeperImageError, ImageDecoder, report
from .images import ImageDataset, measure_range, measure_standardization, split_images
from .labels import MISSING, find_label_column, read_labels
from .transforms import make_transform


if TYPE_CHECKING:
    import datasets

FORMAT = 4  # of the files in the cache
FACTS = "facts.json"
VALUES = "values.bin"  # of all images, one after the other


def load_images(
    dataset: "datasets.Dataset",
    resolution: int | tuple[int, int],
    image_column: str | None = None,
    label_column: str | None = None,
    labels: bool = True,
    crop: bool = False,
    degradation: Sequence[str] | None = None,
    standardize: bool = False,
    **options: Any,
) -> ImageDataset:
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
        crop (`bool`, defaults to `False`): Whether images keep their size, and crops of `resolution` are
            taken at random places.
        degradation (`Sequence[str]`, *optional*): Degradations that make the condition of each image, as
            for [`Degrader`].
        standardize (`bool`, defaults to `False`): Whether the data are fields without black and white, of
            which a network sees (value - mean) / deviation of each channel, and nothing is clipped.
        options: Further options of [`ImageDecoder`], such as `condition_column` for pairs.

    Returns:
        [`ImageDataset`]: The images, with labels if the data set has classes.

    Raises:
        ValueError: A column is missing or ambiguous, an option is out of range, all pixels of float
            data have the same value, or `strict` is set and an image is broken or has no class.
    """
    if standardize and options.get("value_range") is not None:
        raise ValueError(
            "`standardize` and `value_range` exclude each other: fields have no black and white."
        )
    decoder = ImageDecoder(dataset, resolution, image_column, crop=crop, **options)
    transform = make_transform(decoder, degradation)
    column = find_label_column(dataset, label_column) if labels else None
    found = read_labels(dataset, column) if column else None
    chosen = range(len(dataset))
    if found is not None:
        chosen = (found.indices != MISSING).nonzero().flatten().tolist()
        _report_missing(len(dataset) - len(chosen), len(dataset), decoder.strict)
    folder = _choose_cache_folder(decoder, dataset, chosen)
    with lock(folder):
        if not folder.is_dir() or (decoder.strict and len(np.load(folder / "rows.npy")) < len(chosen)):
            _decode_into(folder, decoder, chosen)
    rows = np.load(folder / "rows.npy")
    if len(rows) < len(chosen):
        report(f"Left out {len(chosen) - len(rows)} of {len(chosen)} images, which cannot be read.")
    facts = json.loads((folder / FACTS).read_text())
    for remark in facts["remarks"]:
        report(remark)
    images = _map_images(folder, facts["dtype"], crop)
    names = None if found is None else found.names
    classes = None if found is None else found.indices[torch.from_numpy(rows)]
    scale: Scale = tuple(facts["value_range"])
    if standardize:
        scale = measure_standardization(list(split_images(images, 256)))
    return ImageDataset(images, classes, names, scale, decoder.condition_channels, transform)


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
    options = [decoder.size, decoder.crop, decoder.stated_range, decoder.background]
    columns = [decoder.channels, decoder.condition_channels, *(column.name for column in decoder.columns)]
    rows = None if len(chosen) == len(dataset) else list(chosen)
    key = Hasher.hash([FORMAT, fingerprint, state, columns, options, rows])
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
    Write the images that can be read to `values.bin`, their shapes to `shapes.npy`, their row numbers to
    `rows.npy`, and their type, range and what was done to them to a file of facts.
    """
    with replace_folder(folder) as partial:
        try:
            rows = _decode_rows(partial, decoder, chosen)
        except DeeperImageError:
            decoder.deepen()
            rows = _decode_rows(partial, decoder, chosen)
        if not rows:
            raise ValueError("No image can be read.")
        np.save(partial / "rows.npy", np.array(rows, np.int64))
        dtype = str(torch.empty(0, dtype=decoder.dtype).numpy().dtype)
        images = _map_images(partial, dtype, decoder.crop)
        value_range = decoder.value_range or measure_range(split_images(images, 4096))
        facts = {"value_range": value_range, "dtype": dtype, "remarks": list(decoder.remarks)}
        (partial / FACTS).write_text(json.dumps(facts))


def _decode_rows(folder: Path, decoder: ImageDecoder, chosen: Sequence[int]) -> list[int]:
    """Write the images that can be read to a folder, and return their row numbers."""
    source: Iterable[tuple[int, dict]] = enumerate(decoder.dataset)
    if len(chosen) < len(decoder.dataset):
        source = ((row, decoder.dataset[row]) for row in chosen)
    rows: list[int] = []
    shapes: list[tuple[int, ...]] = []
    progress = tqdm(decoder(source), total=len(chosen), desc="Decoding images", unit="image")
    with open(folder / VALUES, "wb") as file:
        for row, image in zip(chosen, progress):
            if image is not None:
                file.write(image.numpy().tobytes())
                rows.append(row)
                shapes.append(tuple(image.shape))
    np.save(folder / "shapes.npy", np.array(shapes, np.int64))
    return rows


def _map_images(folder: Path, dtype: str, crop: bool) -> torch.Tensor | list[torch.Tensor]:
    """Map decoded images into memory: as one tensor, or as a list if they are to be cropped."""
    shapes = [tuple(shape) for shape in np.load(folder / "shapes.npy").tolist()]
    values = torch.from_numpy(np.memmap(folder / VALUES, dtype, mode="c"))
    if not crop:
        return values.view(len(shapes), *shapes[0])
    parts = values.split([math.prod(shape) for shape in shapes])
    return [part.view(shape) for part, shape in zip(parts, shapes)]
