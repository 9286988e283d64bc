"""Many files restored into a folder, each as if it were alone; interrupted runs resume."""

import errno
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm.auto import tqdm

from ..data.image_files import FORMATS, JPEG_SUFFIXES, ImageFile, identify_file, read_image_file
from ..images import SLACK, UNIT, Range, read_scale, require_range
from ..pipeline_pfgmpp_restoration import PFGMPPRestorationPipeline
from ..records.digests import describe, digest_file, list_differences
from ..records.errors import is_out_of_memory
from ..records.writing import replace_file, write_json
from .files import SETTINGS
from .generate import split_batches


# Values that lie outside the range of the model's data by more than this share of it stay as they are: noise
# lies nearer, and metal in a CT slice farther.
KEPT_FROM = 0.1
MOST_OUTSIDE = 0.1  # share of an image's values that may lie farther outside than noise does
SUFFIXES = {".png", ".tif", ".tiff", ".npy", ".dcm", ".dicom"}


class Work(NamedTuple):
    """
    A file to restore.

    Args:
        name (`str`): Its path within the output folder.
        source (`Path`): The file.
        digest (`str`): A digest of what it holds.
        image ([`ImageFile`]): Its image.
        degraded (`np.ndarray` of shape `(height, width, channels)`): The values that the pipeline takes.
    """

    name: str
    source: Path
    digest: str
    image: ImageFile
    degraded: np.ndarray


def list_sources(paths: Sequence[str | os.PathLike], output: Path) -> dict[str, Path]:
    """
    List the files to restore.

    Args:
        paths (`Sequence`): Files, and folders that are searched for PNG, TIFF, JPEG, `.npy` and DICOM files.
        output (`Path`): The folder of restored files, which is not searched.

    Returns:
        `dict[str, Path]`: The files by their paths within the output folder: their names or, from folders,
            their paths there; those of JPEG files end in `.png`.

    Raises:
        OSError: A file or a folder does not exist or cannot be read.
        ValueError: A folder holds no such files, or two files have one name.
    """
    sources: dict[str, Path] = {}
    for path in map(Path, paths):
        found = {path.name: path}
        if path.is_dir():
            found = {file.relative_to(path).as_posix(): file for file in _search(path, output.resolve())}
            if not found:
                raise ValueError(f"{path} holds no {FORMATS} files.")
        for name, file in found.items():
            if not file.exists():
                raise FileNotFoundError(f"{file} does not exist.")
            if _find_format(file) == "JPEG":
                stem, end = os.path.splitext(name)
                name = f"{stem if end.lower() in JPEG_SUFFIXES else name}.png"
            if name in sources and sources[name].resolve() != file.resolve():
                raise ValueError(
                    f"{sources[name]} and {file} would both be written to {name}: restore them into two"
                    " folders."
                )
            sources[name] = file
    return sources


def _search(folder: Path, output: Path) -> Iterator[Path]:
    """List the files of a folder that can be restored, but for hidden ones and those of the output."""
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if hidden or not path.is_file() or path.resolve().is_relative_to(output):
            continue
        if _find_format(path) is not None:
            yield path


def _find_format(path: Path) -> str | None:
    """Tell the format of a file; one that cannot be read is refused when its turn comes."""
    try:
        return identify_file(path)
    except OSError:
        return "unknown"


def name_outputs(name: str, num_samples: int) -> dict[str, str]:
    """
    Name the files that are written for one.

    Args:
        name (`str`): Its path within the output folder.
        num_samples (`int`): Samples of the posterior.

    Returns:
        `dict[str, str]`: The paths of the samples under `"1"`, `"2"`, ...; with several samples also those
            of their `"mean"` and, an array of float32 in the units of the data, of their `"std"`.
    """
    if num_samples == 1:
        return {"1": name}
    stem, end = os.path.splitext(name)
    if end.lower() not in SUFFIXES:  # the name of a DICOM file may be a number with points
        stem = name
        end = ""
    outputs = {kind: f"{stem}-{kind}{end}" for kind in [*map(str, range(1, num_samples + 1)), "mean"]}
    outputs["std"] = f"{stem}-std.npy"
    return outputs


def restore_to_files(
    pipeline: PFGMPPRestorationPipeline,
    sources: Mapping[str, Path],
    output: str | os.PathLike,
    report: Callable[[str], None],
    num_samples: int = 1,
    seed: int = 0,
    batch_size: int = 1,
    **settings: Any,
) -> int:
    """
    Restore files into a folder.

    What is written has the type and the metadata of what was read. Each file is restored as if it were
    alone: the first sample of each is drawn with the seed, the second with the next. A file that cannot be
    restored is reported, and the others go on. Interrupted runs resume: files that were restored with the
    same settings are left alone.

    Args:
        pipeline ([`PFGMPPRestorationPipeline`]): The pipeline, on its device.
        sources (`Mapping[str, Path]`): The files by their paths within the folder, see [`list_sources`].
        output (`str` or `os.PathLike`): The folder.
        report (`Callable[[str], None]`): Called with a sentence for each file that cannot be restored.
        num_samples (`int`, defaults to 1): Samples of the posterior per file; with several, their mean and
            standard deviation are written too, see [`name_outputs`].
        seed (`int`, defaults to 0): Seed of the first sample.
        batch_size (`int`, defaults to 1): Images per batch.
        settings: Further arguments of the pipeline's call, recorded with the files.

    Returns:
        `int`: Number of files that could not be restored.

    Raises:
        OSError: A file cannot be written.
        ValueError: The folder holds something else, two files would be written to one path, or an argument
            does not fit the pipeline.
    """
    folder = Path(output).resolve()
    _check_outputs(sources, folder, num_samples)
    description = describe(pipeline, **settings, num_samples=num_samples, seed=seed)
    record = _Record(folder, description, sources, num_samples)
    pipeline.set_progress_bar_config(disable=True)
    identity = json.dumps(description, sort_keys=True)
    seeds = list(range(seed, seed + num_samples))
    failed = 0
    with tqdm(total=len(sources), desc="Restoring", unit="file") as progress:

        def refuse(error: Exception) -> None:
            nonlocal failed
            failed += 1
            report(str(error))
            progress.update()

        for batch in _read_batches(pipeline, record, max(1, batch_size // num_samples), refuse):
            chunks = split_batches(seeds, max(1, batch_size // len(batch)))
            try:
                images = _restore(pipeline, batch, chunks, settings)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                advice = "use a smaller batch" if batch_size > 1 else "use smaller tiles"
                for work in batch:
                    refuse(ValueError(f"{work.source} needs more memory than there is: {advice}."))
                continue
            record.write()
            for work, samples in zip(batch, images):
                try:
                    _write(work, samples, pipeline, folder, identity)
                except ValueError as error:
                    refuse(error)
                    continue
                except OSError as error:
                    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
                        raise
                    reason = error.strerror or "its metadata do not permit it"  # a text may quote them
                    refuse(ValueError(f"{work.source}, restored, cannot be written: {reason}."))
                    continue
                record.digests[work.name] = work.digest
                progress.update()
            record.write()
        progress.update(len(sources) - progress.n)  # those of earlier runs
    return failed


def _check_outputs(sources: Mapping[str, Path], folder: Path, num_samples: int) -> None:
    """Refuse to write two images to one path, or an image over one that is read."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"`output` {folder} is a file; choose a folder.")
    read = {path.resolve() for path in sources.values()}
    owners: dict[str, Path] = {}
    for name, source in sources.items():
        for target in name_outputs(name, num_samples).values():
            if target in owners:
                raise ValueError(
                    f"{owners[target]} and {source} would both be written to {target}: restore them into two"
                    " folders."
                )
            owners[target] = source
            if (folder / target).resolve() in read:
                raise ValueError(f"{folder / target} is among the files to restore; choose another output.")


class _Record:
    """What a folder was restored with, and from which files."""

    def __init__(
        self, folder: Path, description: dict[str, Any], sources: Mapping[str, Path], num_samples: int
    ):
        self.sources = sources
        self.digests: dict[str, str] = {}
        self._path = folder / SETTINGS
        self._description = description
        self._targets = {
            name: [folder / target for target in name_outputs(name, num_samples).values()] for name in sources
        }
        if not self._path.is_file():
            existing = [path for paths in self._targets.values() for path in paths if path.exists()]
            if existing:
                raise ValueError(
                    f"{existing[0]} exists, but no {SETTINGS} of `pfgmpp restore` beside it; choose another"
                    " output."
                )
            return
        try:
            found = json.loads(self._path.read_text(encoding="utf-8"))
            self.digests = dict(found.pop("files"))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ValueError(
                f"{self._path} is not a record of `pfgmpp restore`; choose another output."
            ) from None
        differences = list_differences(found, description)
        if differences:
            raise ValueError(
                f"{folder} holds files restored with other settings ({differences}); choose another output."
            )

    def is_done(self, name: str, digest: str) -> bool:
        """Tell whether a file was restored; refuse to replace what was restored from another file."""
        if name not in self.digests or not all(path.is_file() for path in self._targets[name]):
            return False
        if self.digests[name] != digest:
            raise ValueError(
                f"{self.sources[name]} cannot be restored: {self._targets[name][0]} was restored from another"
                " file; choose another output."
            )
        return True

    def write(self) -> None:
        """Write the record."""
        write_json(self._path, {**self._description, "files": self.digests})


def _read_batches(
    pipeline: PFGMPPRestorationPipeline,
    record: _Record,
    batch_size: int,
    refuse: Callable[[Exception], None],
) -> Iterator[list[Work]]:
    """Read the files that are not restored yet, in batches of one size; refuse what cannot be restored."""
    batch: list[Work] = []
    for name, source in record.sources.items():
        try:
            digest = digest_file(source)
            if record.is_done(name, digest):
                continue
            work = _prepare(pipeline, name, source, digest)
        except (OSError, ValueError) as error:
            refuse(error)
            continue
        if batch and (len(batch) == batch_size or batch[0].degraded.shape != work.degraded.shape):
            yield batch
            batch = []
        batch.append(work)
    if batch:
        yield batch


def _prepare(pipeline: PFGMPPRestorationPipeline, name: str, source: Path, digest: str) -> Work:
    """Read a file, and refuse what does not fit the model."""
    image = read_image_file(source)
    channels = image.values.shape[-1]
    taken = pipeline.condition_channels
    if channels != taken:
        raise ValueError(f"{source} has {channels} channels, but the model restores images of {taken}.")
    returned = pipeline.image_channels
    if not image.can_hold(returned):
        raise ValueError(
            f"{source} cannot hold a restored image, which has {returned} channels; convert it to a"
            " .npy file."
        )
    first, last = _find_range(pipeline)
    if first < 0 and image.values.dtype.kind == "u" and image.values.itemsize > 1:
        raise ValueError(
            f"{source} holds unsigned integers, but the model restores values from {first:g} to {last:g}: use"
            " DICOM, a TIFF of floats, or a .npy file of floats or of int16."
        )
    low, high = _choose_range(pipeline, image)
    shares = (image.values.astype(np.float64) - low) / (high - low)
    outside = (shares < -SLACK) | (shares > 1 + SLACK)
    if outside.mean() > (MOST_OUTSIDE if _keeps_outside(pipeline) else 0):
        least, most = sorted((low - SLACK * (high - low), high + SLACK * (high - low)))
        raise ValueError(
            f"{source} ranges from {image.values.min():g} to {image.values.max():g}, but must lie in"
            f" [{least:g}, {most:g}]."
        )
    degraded = (first + (last - first) * shares.clip(-SLACK, 1 + SLACK)).astype(np.float32)
    return Work(name, source, digest, image, degraded)


def _find_range(pipeline: PFGMPPRestorationPipeline) -> Range:
    """Return the values that are black and white to the pipeline, or refuse one of fields."""
    return require_range(read_scale(pipeline.config.value_range) or UNIT)


def _keeps_outside(pipeline: PFGMPPRestorationPipeline) -> bool:
    """Tell whether values far outside the range mean something, as in data with units, or are noise."""
    return pipeline.config.value_range is not None


def _choose_range(pipeline: PFGMPPRestorationPipeline, image: ImageFile) -> tuple[float, float]:
    value_range = pipeline.config.value_range
    return image.choose_range(tuple(value_range) if value_range else None)


def _restore(
    pipeline: PFGMPPRestorationPipeline, batch: list[Work], chunks: list[list[int]], settings: dict[str, Any]
) -> np.ndarray:
    """Restore images of one size to [0, 1], of shape `(files, samples, height, width, channels)`."""
    degraded = np.stack([work.degraded for work in batch])
    parts = []
    for chunk in chunks:
        generators = [torch.Generator().manual_seed(seed) for _ in batch for seed in chunk]
        samples = pipeline(
            degraded,
            generator=generators,
            num_images_per_condition=len(chunk),
            output_type="np",
            **settings,
        ).images
        first, last = _find_range(pipeline)
        shares = (samples.astype(np.float64) - first) / (last - first)
        parts.append(shares.reshape(len(batch), len(chunk), *shares.shape[1:]))
    return np.concatenate(parts, axis=1)


def _write(
    work: Work, samples: np.ndarray, pipeline: PFGMPPRestorationPipeline, folder: Path, identity: str
) -> None:
    """Write the samples of a file, and with several their mean and standard deviation."""
    if not np.isfinite(samples).all():
        raise ValueError(f"{work.source} became NaN or infinite when it was restored, so it is not stored.")
    low, high = _choose_range(pipeline, work.image)
    values = low + (high - low) * samples.clip(0, 1)
    degraded = work.image.values
    if _keeps_outside(pipeline) and degraded.shape == values.shape[1:]:
        margin = KEPT_FROM * (high - low)
        values = np.where((degraded < low - margin) | (degraded > high + margin), degraded, values)
    images = dict(zip(map(str, range(1, len(values) + 1)), values))
    if len(values) > 1:
        images["mean"] = values.mean(0)
    for kind, target in name_outputs(work.name, len(values)).items():
        with replace_file(folder / target) as partial:
            if kind != "std":
                work.image.write(partial, images[kind], f"{identity} {kind}")
                continue
            deviation = values.std(0, ddof=1).astype(np.float32)
            with open(partial, "wb") as file:
                np.save(file, deviation[..., 0] if deviation.shape[-1] == 1 else deviation)
