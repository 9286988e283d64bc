"""
What a run is: the folder that holds it, its checkpoints, its log and its result belong to it alone,
and a file `run.json` in the folder and in each checkpoint says which run that is.
"""

import argparse
import json
import os
import re
import shutil
from pathlib import Path

from ..records.writing import replace_file


RUN = "run.json"

# The arguments that may change between a run and its continuation: how long it and its warm-up
# take, what it tells, where it is and how it is computed. Every other one makes the run what it is.
# The batch is told over all processes and passes, and the data and the pretrained network by what
# they hold.
CHANGEABLE = {
    "config", "output_dir", "overwrite_output_dir", "resume_from_checkpoint", "max_train_steps", "max_train_time",
    "lr_warmup_steps", "lr_warmup_images", "checkpointing_steps", "checkpoints_total_limit", "logging_steps", "report_to",
    "sample_steps", "ema_snapshot_steps", "fid_steps", "fid_images", "fid_features", "save_dtype", "push_to_hub",
    "hub_model_id", "dataloader_num_workers", "strict", "mixed_precision", "gradient_checkpointing", "compile",
    "train_batch_size", "gradient_accumulation_steps", "dataset_name", "dataset_config_name", "train_data_dir", "split",
    "image_column", "label_column", "pretrained_model_name_or_path",
}  # fmt: skip

# What a run leaves in its folder beside checkpoints: its result included, and what was measured of that.
LEFT = (
    ".checkpoint-*.partial", "best", ".best.*.partial", "samples", "samples.png", "ema", "logs", "log.jsonl", "log.png",
    "arguments.yaml", RUN, f".{RUN}.*.partial", "model_index.json", "unet", "scheduler", "guidance_unet", "README.md",
    "pipeline.py", "scheduling_pfgmpp.py", "noise.py", "evaluation.json", "robustness.json", "robustness.png", "noise.png",
)  # fmt: skip
MARKS = (RUN, "arguments.yaml", "log.jsonl", "model_index.json")  # by which the folder of a run is known


def identify_run(args: argparse.Namespace, images_per_step: int) -> dict:
    """
    Collects what makes a run what it is, as far as its arguments tell.

    Args:
        args (`argparse.Namespace`): The arguments, as they were parsed.
        images_per_step (`int`): Images in an optimisation step, over all processes and passes.

    Returns:
        `dict`: Values by the arguments' names, ready for JSON.
    """
    identity = {f"--{name}": value for name, value in vars(args).items() if name not in CHANGEABLE}
    identity["images per step (--train_batch_size)"] = images_per_step
    if args.D is None:
        del identity["--D"]  # the pretrained network's, which is to be seen
    return json.loads(json.dumps(identity, default=str))


def read_run(folder: str | os.PathLike) -> dict | None:
    """
    Reads whose a folder is.

    Args:
        folder (`str` or `os.PathLike`): A run's folder or a checkpoint.

    Returns:
        `dict` or `None`: What [`write_run`] wrote; None where nothing did.

    Raises:
        ValueError: The file is damaged.
    """
    try:
        run = json.loads(Path(folder, RUN).read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ValueError(f"{Path(folder, RUN)} is damaged: {error}") from None
    if not isinstance(run, dict):
        raise ValueError(f"{Path(folder, RUN)} is damaged: it holds no object.")
    return run


def write_run(folder: str | os.PathLike, run: dict) -> None:
    """
    Writes whose a folder is.

    Args:
        folder (`str` or `os.PathLike`): A run's folder or a checkpoint.
        run (`dict`): The run's identity, and what else is kept with it.
    """
    with replace_file(Path(folder, RUN)) as partial:
        partial.write_text(json.dumps(run, indent=1))


def list_checkpoints(output_dir: str | os.PathLike) -> list[Path]:
    """Lists the folders `checkpoint-N` of a run, oldest first."""
    found = [
        path for path in Path(output_dir).glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)
    ]
    return sorted((path for path in found if path.is_dir()), key=step_of)


def step_of(checkpoint: Path) -> int:
    """Reads N of a folder `checkpoint-N`."""
    return int(checkpoint.name.removeprefix("checkpoint-"))


def open_run(
    output_dir: str | os.PathLike, identity: dict, resume: str | None = None, overwrite: bool = False
) -> list[Path]:
    """
    Checks that a run may have its folder, changes nothing, and finds the checkpoints to go on from.

    Args:
        output_dir (`str` or `os.PathLike`): The run's folder.
        identity (`dict`): What makes the run what it is, or as much of that as is known already.
        resume (`str`, *optional*): `"latest"`, or the path of a checkpoint.
        overwrite (`bool`, defaults to `False`): Whether what the folder holds may go.

    Returns:
        `list[Path]`: The checkpoints, of which the last is the newest.

    Raises:
        ValueError: The folder holds something else, or a checkpoint is of another run.
    """
    folder, latest = Path(output_dir), resume == "latest"
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--output_dir {folder} is a file.")
    checkpoints = list_checkpoints(folder) if latest else [Path(resume)] if resume else []
    if not overwrite:
        _check_folder(folder, identity, resume, checkpoints)
    unclaimed = latest and read_run(folder) is None
    for checkpoint in reversed(checkpoints):
        _check_checkpoint(checkpoint, identity, unclaimed)
    return checkpoints


def _check_folder(folder, identity, resume, checkpoints):
    """Raises unless the folder is empty or this run, which goes on, has it."""
    held = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if not held:
        return
    anew = "choose another folder, or --overwrite_output_dir to have it removed"
    run = read_run(folder)
    if run is None and list_checkpoints(folder) and resume:
        return  # of a run from before they had an identity: its checkpoints decide
    if run is None:
        raise ValueError(
            f"--output_dir {folder} is not empty, it holds {held[0]}, and no run that could go on: {anew}."
        )
    if differences := _list_differences(run, identity):
        raise ValueError(f"--output_dir {folder} holds another run ({differences}): {anew}.")
    if not resume:
        raise ValueError(
            f"--output_dir {folder} holds this run already: --resume_from_checkpoint latest goes on, or {anew}."
        )
    if not checkpoints and (folder / "model_index.json").exists():
        raise ValueError(
            f"--output_dir {folder} holds the result of this run, but no checkpoint to go on from: {anew}."
        )


def _check_checkpoint(checkpoint, identity, unclaimed):
    """Raises unless a checkpoint is of this run. Whether it is whole is seen when it is loaded."""
    if not checkpoint.is_dir():
        raise ValueError(f"--resume_from_checkpoint {checkpoint}: there is no such checkpoint.")
    try:
        run = read_run(checkpoint)
    except ValueError:
        return
    if run is None and unclaimed:
        raise ValueError(
            f"{checkpoint} does not say of which run it is: if it is this one's, --resume_from_checkpoint {checkpoint} takes"
            " it."
        )
    if differences := _list_differences(run or {}, identity):
        raise ValueError(f"--resume_from_checkpoint: {checkpoint} is of another run ({differences}).")


def _list_differences(run, identity):
    """
    How a run differs from another in what both say: the argument, its value there, and its value
    here.
    """

    def key(value):
        return value["digest"] if isinstance(value, dict) else value

    def show(value):
        return f"{value['name']}, digest {value['digest']}" if isinstance(value, dict) else value

    names = [name for name in identity if name in run and key(run[name]) != key(identity[name])]
    return "; ".join(f"{name}: it has {show(run[name])}, this one {show(identity[name])}" for name in names)


def remove_run(output_dir: str | os.PathLike) -> None:
    """
    Removes what a run left in its folder. Where none did, nothing is removed, so that what else
    lies there stays.

    Args:
        output_dir (`str` or `os.PathLike`): The folder.
    """
    folder = Path(output_dir)
    checkpoints = list_checkpoints(folder)
    if not checkpoints and not any((folder / mark).exists() for mark in MARKS):
        return
    for path in [*checkpoints, *(path for name in LEFT for path in folder.glob(name))]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def lies_in(path: str | os.PathLike | None, folder: str | os.PathLike) -> bool:
    """Tells whether a path is a folder, or something in it, on this machine."""
    return (
        path is not None
        and Path(path).exists()
        and Path(path).resolve().is_relative_to(Path(folder).resolve())
    )
