"""
Checkpoints of a run: folders `checkpoint-N`, written beside their place, checked when they are
read.
"""

import contextlib
import hashlib
import json
import os
import shutil
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError

from ..records.writing import replace_folder
from .run import list_checkpoints, step_of, write_run


CHECKSUMS = "checksums.json"


def _checksum(path):
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
    Writes `checkpoint-N` beside its place, moves it there, then removes the oldest over the limit.
    Every process calls it.

    Args:
        accelerator (`Accelerator`): Holds what is saved.
        output_dir (`str` or `os.PathLike`): The run's folder.
        step (`int`): N, the optimisation steps done.
        data_state (JSON value): Where this process stands in its data.
        limit (`int`): Checkpoints to keep; 0 for all.
        run (`dict`): What run it is of, for [`write_run`].

    Raises:
        OSError: It cannot be written; the ones before it are as they were.
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
                write_run(partial, run)
                sums = {
                    path.relative_to(partial).as_posix(): _checksum(path)
                    for path in partial.rglob("*")
                    if path.is_file()
                }
                (partial / CHECKSUMS).write_text(json.dumps(sums, indent=1))
    except (OSError, RuntimeError, SafetensorError) as error:  # a full disk comes as any of them
        raise OSError(
            f"The checkpoint of step {step} cannot be written, the ones before it are as they were: {error}"
        ) from error
    if main and limit:
        for old in list_checkpoints(output_dir)[:-limit]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()


def load_checkpoint(accelerator: Accelerator, checkpoint: str | os.PathLike) -> tuple[int, object]:
    """
    Checks a checkpoint and loads it.

    Args:
        accelerator (`Accelerator`): Holds what is loaded into.
        checkpoint (`str` or `os.PathLike`): A folder `checkpoint-N`.

    Returns:
        `tuple[int, object]`: N, and where this process stood in its data.

    Raises:
        ValueError: A file is missing or is not what was written, or the folder is no such checkpoint.
    """
    checkpoint = Path(checkpoint)
    try:
        step = step_of(checkpoint)
        for name, checksum in json.loads((checkpoint / CHECKSUMS).read_text()).items():
            if _checksum(checkpoint / name) != checksum:
                raise ValueError(f"{name} is not as it was written")
        saved = [checkpoint / f"data_{process}.json" for process in range(accelerator.num_processes)]
        states = [json.loads(path.read_text()) for path in saved if path.is_file()]
        accelerator.load_state(str(checkpoint))
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{checkpoint} is damaged: {error}") from error
    accelerator.step = 0  # a checkpoint lies between optimisation steps, whatever their number of passes
    return step, states[accelerator.process_index if len(states) == accelerator.num_processes else 0]
