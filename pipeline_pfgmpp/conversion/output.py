"""The folder that a conversion writes."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import torch

from ..records.writing import replace_folder


@contextlib.contextmanager
def create_folder(path: str | os.PathLike) -> Iterator[Path]:
    """
    Fill a new folder, which appears when it is complete.

    Args:
        path (`str` or `os.PathLike`): The folder; it must not exist or be empty.

    Yields:
        `Path`: Where to write.

    Raises:
        ValueError: The folder exists and is not empty, or is the current one.
    """
    path = Path(path)
    if path.resolve() == Path.cwd():
        raise ValueError(
            "`output_dir` must not be the current folder, which would be replaced: name a new one."
        )
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"`output_dir` {path.resolve().name} exists and is not empty: name a new folder.")
    with replace_folder(path) as folder:
        yield folder


def describe_rounding(dtype: torch.dtype) -> str:
    """
    Describe for a card what a conversion did to the weights.

    Args:
        dtype (`torch.dtype`): The type that they are stored in; published weights are float32.

    Returns:
        `str`: Such as `"unchanged"` or `"rounded to float16"`.
    """
    if dtype == torch.float32:
        return "unchanged"
    return f"rounded to {str(dtype).removeprefix('torch.')}"
