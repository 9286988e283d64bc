"""Checkpoints of a run: folders `checkpoint-N`, complete or absent, and verified when they are loaded."""

import contextlib
import hashlib
import json
import os
import shutil
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, broadcast_object_list
from safetensors import SafetensorError

from ..records.writing import replace_folder
from .divergence import are_finite
from .run import list_checkpoints, parse_step, read_run, write_run


CHECKSUMS = "checksums.json"
LAYOUT = "layout of the weights"  # in the run.json of a checkpoint


def _compute_checksum(path: Path) -> str:
    with open(path, "rb") as file:
        digest = hashlib.blake2b(digest_size=16)
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def save_checkpoint(
    accelerator: Accelerator,
    output_dir: str | os.PathLike,
    step: int,
    data_state: object,
    limit: int,
    run: dict,
) -> None:
    """
    Save `checkpoint-N`, then remove the oldest checkpoints up to step N beyond the limit.

    Every process must call this.

    Args:
        accelerator (`Accelerator`): Holds what is saved.
        output_dir (`str` or `os.PathLike`): The run's folder.
        step (`int`): N, the number of optimisation steps done.
        data_state (JSON value): Where this process resumes its data.
        limit (`int`): Number of checkpoints to keep; 0 for all.
        run (`dict`): The identity of the run, for [`write_run`].

    Raises:
        OSError: It cannot be written. The checkpoints before it are intact.
    """
    final = Path(output_dir) / f"checkpoint-{step}"
    main = accelerator.is_main_process
    if main:
        for left in Path(output_dir).glob(".checkpoint-*.partial"):  # by a run that was killed
            shutil.rmtree(left, ignore_errors=True)
    try:
        with replace_folder(final) if main else contextlib.nullcontext() as partial:
            (partial,) = broadcast_object_list([partial])
            accelerator.save_state(str(partial))
            (partial / f"data_{accelerator.process_index}.json").write_text(json.dumps(data_state))
            accelerator.wait_for_everyone()
            if main:
                write_run(partial, run | {LAYOUT: _describe_layout(accelerator)})
                _write_checksums(partial)
    except (OSError, RuntimeError, SafetensorError) as error:  # a full disk raises any of them
        raise OSError(
            f"The checkpoint of step {step} cannot be written; the ones before it are intact: {error}"
        ) from error
    if main and limit:
        # Later ones are from before the run was resumed here; the new one must not give way to them.
        until_now = [path for path in list_checkpoints(output_dir) if parse_step(path) <= step]
        for old in until_now[:-limit]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()


def _write_checksums(checkpoint: Path) -> None:
    files = [path for path in checkpoint.rglob("*") if path.is_file()]
    sums = {path.relative_to(checkpoint).as_posix(): _compute_checksum(path) for path in files}
    (checkpoint / CHECKSUMS).write_text(json.dumps(sums, indent=1))


def _describe_layout(accelerator: Accelerator) -> str:
    """Name what decides which files hold the weights: the number of processes does not."""
    if accelerator.distributed_type == DistributedType.FSDP:
        return accelerator.distributed_type.value
    return "whole"


def compare_checkpoint(accelerator: Accelerator, checkpoint: Path, averages: int, streaming: bool) -> None:
    """
    Check that a checkpoint was saved by a run with the same parts as this one.

    Whether it is complete is found out when it is loaded.

    Args:
        accelerator (`Accelerator`): Holds the parts of this run.
        checkpoint (`Path`): A folder `checkpoint-N`.
        averages (`int`): Number of moving averages.
        streaming (`bool`): Whether this run reads its images during training.

    Raises:
        ValueError: A part is missing, or there is one more. The message says which.
    """
    try:
        names = json.loads((checkpoint / CHECKSUMS).read_text()).keys()
        state = json.loads((checkpoint / "data_0.json").read_text())
        layout = (read_run(checkpoint) or {}).get(LAYOUT)
    except (OSError, ValueError, AttributeError):
        return
    ours = _describe_layout(accelerator)
    saved_averages = sum(name.startswith("custom_checkpoint_") for name in names)
    streamed = isinstance(state, dict)
    differences = []
    if saved_averages != averages:
        differences.append(
            f"{saved_averages} moving averages, not {averages} (--ema_halflife and --ema_width)"
        )
    if state is not None and streamed != streaming:
        differences.append(f"{'' if streamed else 'no '}streaming (--streaming)")
    if accelerator.scaler is not None and "scaler.pt" not in names:
        differences.append("no scaling of gradients (--mixed_precision fp16)")
    if layout is not None and layout != ours:
        differences.append(f"weights in the layout {layout}, not {ours} (the configuration of accelerate)")
    if differences:
        raise ValueError(
            f"{checkpoint} was saved by a run with {' and '.join(differences)}: resume it with what it was"
            " started with, or choose another `output_dir` for a new run."
        )


def load_checkpoint(accelerator: Accelerator, checkpoint: str | os.PathLike) -> tuple[int, object]:
    """
    Verify a checkpoint and load it.

    Args:
        accelerator (`Accelerator`): Holds what is loaded into.
        checkpoint (`str` or `os.PathLike`): A folder `checkpoint-N`.

    Returns:
        `tuple[int, object]`: N, and where this process resumes its data.

    Raises:
        ValueError: A file is missing or changed, or the folder is not a checkpoint of these networks.
    """
    checkpoint = Path(checkpoint)
    try:
        step = parse_step(checkpoint)
        for name, checksum in json.loads((checkpoint / CHECKSUMS).read_text()).items():
            if _compute_checksum(checkpoint / name) != checksum:
                raise ValueError(f"{name} has changed since it was written")
        count = len(list(checkpoint.glob("data_*.json")))
        states = [json.loads((checkpoint / f"data_{process}.json").read_text()) for process in range(count)]
        accelerator.load_state(str(checkpoint))
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{checkpoint} is damaged: {error}") from error
    accelerator.step = 0  # a checkpoint lies between optimisation steps, however many passes they have
    if len(states) == accelerator.num_processes:
        return step, states[accelerator.process_index]
    if isinstance(states[0], dict):  # a place in a stream, whose files other processes would share otherwise
        accelerator.print(f"{checkpoint.name} is of {count} processes: the stream begins its next epoch.")
        return step, {"epoch": states[0]["epoch"] + 1}
    return step, states[0]


def load_newest_checkpoint(
    accelerator: Accelerator,
    checkpoints: list[Path],
    weights: list[torch.nn.Parameter],
    *,
    averages: int,
    streaming: bool,
) -> tuple[Path, int, object] | None:
    """
    Load the newest checkpoint that is neither damaged nor holds NaN; every process must call this.

    Args:
        accelerator (`Accelerator`): Holds what is loaded into.
        checkpoints (`list[Path]`): Folders `checkpoint-N`, oldest first.
        weights (`list[torch.nn.Parameter]`): The weights that are loaded into.
        averages (`int`): Number of moving averages of this run.
        streaming (`bool`): Whether this run reads its images during training.

    Returns:
        `tuple[Path, int, object]` or `None`: The checkpoint, its step, and where this process resumes its
            data; None if there is no checkpoint at all.

    Raises:
        ValueError: None of them can be resumed from.
    """
    for checkpoint in reversed(checkpoints):
        compare_checkpoint(accelerator, checkpoint, averages, streaming)
        try:
            step, data_state = load_checkpoint(accelerator, checkpoint)
            if not are_finite(accelerator, weights):
                raise ValueError(f"{checkpoint} holds weights that are NaN or infinite")
        except ValueError as error:
            if checkpoint == checkpoints[0]:
                raise ValueError(f"{error}. There is no checkpoint to resume from.") from None
            accelerator.print(f"{error}. Trying the checkpoint before it.")
            continue
        return checkpoint, step, data_state
    return None
