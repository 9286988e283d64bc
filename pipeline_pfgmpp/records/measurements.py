"""Measurements as JSON, each with the command, the machine and the day that it comes from."""

import datetime
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .writing import write_json


def describe_machine() -> str:
    """
    Describe this machine as far as timings depend on it.

    Returns:
        `str`: Such as `"2 CPU cores"` or `"one NVIDIA H100"`.
    """
    if torch.cuda.is_available():
        return f"one {torch.cuda.get_device_name()}"
    return f"{os.cpu_count()} CPU cores"


def write_measurement(path: str | os.PathLike, command: str, results: Any) -> None:
    """
    Write results as JSON, with what a reader needs in order to repeat them.

    Args:
        path (`str` or `os.PathLike`): The file; it is replaced if it exists.
        command (`str`): The command that measured, from
            [`~pipeline_pfgmpp.records.commands.format_command`].
        results: What was measured, as JSON represents it.
    """
    measurement = {
        "command": command,
        "machine": describe_machine(),
        "date": datetime.date.today().isoformat(),
        "results": results,
    }
    write_json(path, measurement)


def read_measurement(path: str | os.PathLike) -> dict[str, Any]:
    """
    Read what [`write_measurement`] wrote.

    Args:
        path (`str` or `os.PathLike`): The file.

    Returns:
        `dict`: `command`, `machine`, `date` and `results`, and for a measurement that was recorded
            by hand a `note`.
    """
    return json.loads(Path(path).read_text(encoding="utf-8"))


def recall(path: str | os.PathLike, compute: Callable[[], Any]) -> Any:
    """
    Read what an earlier run computed, or compute and keep it.

    Args:
        path (`str` or `os.PathLike`): The file that keeps it.
        compute (`Callable`): Computes what JSON can represent.

    Returns:
        What was computed, as JSON represents it.
    """
    path = Path(path)
    if not path.exists():
        write_json(path, compute())
    return json.loads(path.read_text(encoding="utf-8"))
