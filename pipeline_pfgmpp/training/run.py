"""
The identity of a run. Its folder, with checkpoints, log and result, belongs to it alone: a file
`run.json` in the folder and in each checkpoint says which run that is.
"""

import contextlib
import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from ..code_files import list_code
from ..data import ImageStream
from ..pipeline_pfgmpp import PFGMPPPipeline
from ..pipeline_pfgmpp_restoration import PFGMPPRestorationPipeline
from ..records.writing import write_json


if TYPE_CHECKING:
    from diffusers import ModelMixin

    from ..data import ImageDataset
    from ..scheduling_pfgmpp import PFGMPPScheduler
    from .config import TrainingConfig
    from .loss import DimensionRange

RUN = "run.json"
LOCK = ".run.lock"
CHECKPOINT = re.compile(r"checkpoint-(0|[1-9][0-9]*)")

# The settings that may change when a run is resumed: how long it and its warm-up take, what it
# reports, where it is and how it is computed. Every other setting is part of the run's identity.
# The batch is identified by its size over all processes and passes, and the data and the pretrained
# network by their content.
CHANGEABLE = {
    "config", "output_dir", "overwrite_output_dir", "resume_from_checkpoint", "max_train_steps",
    "max_train_time", "lr_warmup_steps", "lr_warmup_images", "checkpointing_steps",
    "checkpoints_total_limit", "logging_steps", "report_to", "sample_steps", "ema_snapshot_steps",
    "fid_steps", "fid_images", "fid_features", "save_dtype", "push_to_hub", "hub_model_id",
    "dataloader_num_workers", "strict", "mixed_precision", "gradient_checkpointing", "compile",
    "nonfinite_patience", "validation_split",
    "train_batch_size", "gradient_accumulation_steps", "dataset_name", "dataset_config_name",
    "train_data_dir", "split", "image_column", "label_column", "condition_column",
    "pretrained_model_name_or_path",
    "teacher_model_name_or_path", "vae_model_name_or_path", "fid_num_inference_steps",
}  # fmt: skip

# Settings that runs have stated only since there has been a choice, and what they were before.
FORMER = {"--preconditioning": "edm", "--standardize": False, "--ema_rampup": 0.05}

# What a run leaves in its folder besides checkpoints, including its result and measurements of it.
LEFT = (
    ".checkpoint-*.partial", "best", ".best.*.partial", "samples", "samples.png", "ema", "logs", "log.jsonl",
    "log.png", "arguments.yaml", LOCK, RUN, f".{RUN}.*.partial", "model_index.json", "unet", "scheduler",
    "guidance_unet", "vae", "README.md", "evaluation.json", "robustness.json", "robustness.png", "noise.png",
    *{**list_code(PFGMPPPipeline, {}), **list_code(PFGMPPRestorationPipeline, {})},
)  # fmt: skip
MARKS = (RUN, "arguments.yaml", "log.jsonl", "model_index.json")  # each of them marks the folder of a run


@dataclass
class RunRecord:
    """
    What identifies a run, and what its card says of it.

    Args:
        identity (`dict`): What makes the run what it is, ready for JSON; a resumed run must agree.
        arguments (`dict`): What is written to `arguments.yaml` and given to the trackers.
        source (`str`, defaults to `"a data set"`): Name or folder of the data.
        dataset_id (`str`, *optional*): Hub id of the data.
        pretrained (`str`, *optional*): Folder or Hub id of the pretrained model.
        command (`str`, *optional*): The command that started the run.
        teacher (`str`, *optional*): Folder or Hub id of the teacher.
        autoencoder (`str`, *optional*): Folder or Hub id of the autoencoder.
    """

    identity: dict
    arguments: dict = field(default_factory=dict)
    source: str = "a data set"
    dataset_id: str | None = None
    pretrained: str | None = None
    command: str | None = None
    teacher: str | None = None
    autoencoder: str | None = None


def describe_run(
    unet: "ModelMixin",
    scheduler: "PFGMPPScheduler",
    data: "ImageDataset | ImageStream",
    config: "TrainingConfig",
    images_per_step: int,
    dimensions: "DimensionRange | None" = None,
) -> RunRecord:
    """
    Describe a run that was started from Python.

    Args:
        unet (`ModelMixin`): The network; its configuration is part of the run's identity.
        scheduler ([`PFGMPPScheduler`]): The scheduler.
        data ([`ImageDataset`] or [`ImageStream`]): The images.
        config ([`TrainingConfig`]): The settings.
        images_per_step (`int`): Images per optimisation step, over all processes and passes.
        dimensions ([`DimensionRange`], *optional*): Distribution of D.

    Returns:
        [`RunRecord`]: The description.
    """
    settings = asdict(config)
    identity = identify_run(settings, images_per_step)
    public = {name: value for name, value in unet.config.items() if not name.startswith("_")}
    digest = hashlib.blake2b(json.dumps(public, default=str).encode(), digest_size=8).hexdigest()
    identity["network"] = {"name": type(unet).__name__, "digest": digest}
    identity["--D"] = str(dimensions or f"{scheduler.config.D or math.inf:g}")
    identity["--preconditioning"] = scheduler.config.preconditioning
    identity["data"] = {"name": type(data).__name__, "digest": data.digest()}
    identity["--streaming"] = isinstance(data, ImageStream)
    arguments = json.loads(json.dumps(settings, default=str))
    return RunRecord(
        identity, arguments | {"resume_from_checkpoint": "latest", "overwrite_output_dir": False}
    )


def identify_run(settings: Mapping[str, Any], images_per_step: int) -> dict:
    """
    Collect what makes a run what it is, as far as its settings tell.

    Args:
        settings (`Mapping[str, Any]`): Settings by name.
        images_per_step (`int`): Images per optimisation step, over all processes and passes.

    Returns:
        `dict`: Values by argument (`--name`), ready for JSON.
    """
    identity = {f"--{name}": value for name, value in settings.items() if name not in CHANGEABLE}
    identity["images per step (--train_batch_size)"] = images_per_step
    for name in ("--D", "--preconditioning"):
        if identity.get(name) is None:
            identity.pop(name, None)  # that of the pretrained network, which is not loaded yet
    return json.loads(json.dumps(identity, default=str))


def read_run(folder: str | os.PathLike) -> dict | None:
    """
    Read which run a folder belongs to.

    Args:
        folder (`str` or `os.PathLike`): A run's folder or a checkpoint.

    Returns:
        `dict` or `None`: What [`write_run`] wrote; None if there is no `run.json`.

    Raises:
        ValueError: The file is damaged.
    """
    path = Path(folder, RUN)
    try:
        run = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    if not isinstance(run, dict):
        raise ValueError(f"{path} is damaged: it does not hold a JSON object.")
    return run


def write_run(folder: str | os.PathLike, run: dict) -> None:
    """
    Write which run a folder belongs to.

    Args:
        folder (`str` or `os.PathLike`): A run's folder or a checkpoint.
        run (`dict`): The run's identity, and what else is to be kept with it.
    """
    write_json(Path(folder, RUN), run)


def list_checkpoints(output_dir: str | os.PathLike) -> list[Path]:
    """
    List the folders `checkpoint-N` of a run; others, such as `checkpoint-best`, are left alone.

    Args:
        output_dir (`str` or `os.PathLike`): The run's folder.

    Returns:
        `list[Path]`: The folders, oldest first.
    """
    return sorted(filter(_is_checkpoint, Path(output_dir).glob("checkpoint-*")), key=parse_step)


def _is_checkpoint(path: Path) -> bool:
    return CHECKPOINT.fullmatch(path.name) is not None and path.is_dir()


def parse_step(checkpoint: Path) -> int:
    """
    Parse the step N of a folder `checkpoint-N`.

    Args:
        checkpoint (`Path`): The folder.

    Returns:
        `int`: N.

    Raises:
        ValueError: The folder has another name.
    """
    match = CHECKPOINT.fullmatch(checkpoint.name)
    if match is None:
        raise ValueError(f"`checkpoint` must be a folder named checkpoint-N, but is {checkpoint}.")
    return int(match[1])


def find_checkpoint(resume: str | os.PathLike, output_dir: str | os.PathLike) -> Path:
    """
    Find the checkpoint that a run is to resume from.

    Args:
        resume (`str` or `os.PathLike`): A path, or a name such as `checkpoint-4` in `output_dir`.
        output_dir (`str` or `os.PathLike`): The run's folder.

    Returns:
        `Path`: The folder `checkpoint-N`.

    Raises:
        ValueError: There is no such checkpoint.
    """
    path = Path(resume)
    if path.name == str(path) and not _is_checkpoint(path):
        path = Path(output_dir, path)
    if not path.is_dir():
        raise ValueError(f"`resume_from_checkpoint`: there is no checkpoint {path}.")
    if not _is_checkpoint(path.resolve()):
        raise ValueError(
            f"`resume_from_checkpoint` must be latest or a folder checkpoint-N of a run, but is {path}."
        )
    return path


@contextlib.contextmanager
def lock_run(output_dir: str | os.PathLike) -> Iterator[None]:
    """
    Keep other runs out of a folder for a while. The lock of a killed process does not outlive it.

    Args:
        output_dir (`str` or `os.PathLike`): The run's folder, which is created if it is missing.

    Raises:
        ValueError: Another run is in the folder.
    """
    path = Path(output_dir, LOCK)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, blocking=False)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(
            f"`output_dir` {output_dir} is in use by another run: wait until it ends, or choose another"
            " folder."
        ) from None
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        lock.release()


def open_run(
    output_dir: str | os.PathLike,
    identity: dict,
    resume: str | os.PathLike | None = None,
    overwrite: bool = False,
) -> list[Path]:
    """
    Check, without changing anything, that a run may use a folder, and find its checkpoints.

    Args:
        output_dir (`str` or `os.PathLike`): The run's folder.
        identity (`dict`): What makes the run what it is, or the part of it that is known already.
        resume (`str` or `os.PathLike`, *optional*): `"latest"`, or a checkpoint, see
            [`find_checkpoint`].
        overwrite (`bool`, defaults to `False`): Whether what the folder holds may be removed.

    Returns:
        `list[Path]`: The checkpoints to resume from, oldest first.

    Raises:
        ValueError: The folder holds something else, or a checkpoint belongs to another run.
    """
    folder = Path(output_dir)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"`output_dir` {folder} is a file.")
    checkpoints: list[Path] = []
    if resume == "latest":
        checkpoints = list_checkpoints(folder)
    elif resume:
        checkpoints = [find_checkpoint(resume, folder)]
    if not overwrite:
        _check_folder(folder, identity, bool(resume), checkpoints)
    unclaimed = resume == "latest" and read_run(folder) is None
    for checkpoint in reversed(checkpoints):
        _check_checkpoint(checkpoint, identity, unclaimed)
    return checkpoints


def _check_folder(folder: Path, identity: dict, resume: bool, checkpoints: list[Path]) -> None:
    """Raise an error unless the folder is empty or holds this run, which is to be resumed."""
    held = sorted(path.name for path in folder.iterdir() if path.name != LOCK) if folder.is_dir() else []
    if not held:
        return
    otherwise = "choose another folder, or set `overwrite_output_dir` to remove what it holds"
    run = read_run(folder)
    if run is None and list_checkpoints(folder) and resume:
        return  # written before runs had an identity; _check_checkpoint decides
    if run is None:
        raise ValueError(
            f"`output_dir` {folder} is not empty (it holds {held[0]}), and it holds no run to resume:"
            f" {otherwise}."
        )
    if differences := _list_differences(run, identity):
        raise ValueError(
            f"`output_dir` {folder} holds another run ({differences}): to resume that run, give what it was"
            f" started with; otherwise {otherwise}."
        )
    if not resume:
        raise ValueError(
            f"`output_dir` {folder} already holds this run: to resume it, set `resume_from_checkpoint` to"
            f" latest; otherwise {otherwise}."
        )
    if not checkpoints and (folder / "model_index.json").exists():
        raise ValueError(
            f"`output_dir` {folder} holds the result of this run, but no checkpoint to resume from:"
            f" {otherwise}."
        )


def _check_checkpoint(checkpoint: Path, identity: dict, unclaimed: bool) -> None:
    """
    Raise an error unless a checkpoint belongs to this run.

    Whether it is complete is found out when it is loaded.
    """
    try:
        run = read_run(checkpoint)
    except ValueError:
        return
    if run is None and unclaimed:
        raise ValueError(
            f"{checkpoint} does not name its run. If it belongs to this one, set `resume_from_checkpoint` to"
            " its path."
        )
    if differences := _list_differences(run or {}, identity):
        raise ValueError(
            f"`resume_from_checkpoint`: {checkpoint} belongs to another run ({differences}):"
            " to resume that run, give what it was started with."
        )


def _list_differences(run: dict, identity: dict) -> str:
    """Put into words where two runs differ, of what both state."""
    parts = []
    run = FORMER | run
    for name in identity:
        if name in run and _get_key(run[name]) != _get_key(identity[name]):
            there = _format_value(run[name])
            here = _format_value(identity[name])
            parts.append(f"{name} is {there} there and {here} here")
    return "; ".join(parts)


def _get_key(value: Any) -> Any:
    """Return what must agree: the digest of data and networks, whatever they are called."""
    return value["digest"] if isinstance(value, dict) else value


def _format_value(value: Any) -> str:
    return f"{value['name']} (digest {value['digest']})" if isinstance(value, dict) else str(value)


def remove_run(output_dir: str | os.PathLike) -> None:
    """
    Remove what a run left in its folder, and nothing else.

    From a folder that holds no run, nothing is removed.

    Args:
        output_dir (`str` or `os.PathLike`): The folder.
    """
    folder = Path(output_dir)
    checkpoints = list_checkpoints(folder)
    if not checkpoints and not any((folder / mark).exists() for mark in MARKS):
        return
    left = [path for pattern in LEFT for path in folder.glob(pattern)]
    for path in [*checkpoints, *left]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def is_inside(path: str | os.PathLike | None, folder: str | os.PathLike) -> bool:
    """
    Tell whether a local path is a folder or lies in it.

    Args:
        path (`str`, `os.PathLike` or `None`): A path; a Hub id or None is in no folder.
        folder (`str` or `os.PathLike`): The folder.

    Returns:
        `bool`: Whether it does.
    """
    if path is None or not Path(path).exists():
        return False
    return Path(path).resolve().is_relative_to(Path(folder).resolve())
