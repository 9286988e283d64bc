"""
The list of files that a push sends.

The list follows from what a pipeline or a Space names, never from what happens to lie in a folder.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from .pipeline_files import list_pipeline_files
from .reading import escape_controls
from .safety import check_name
from .space_files import list_space_files


def list_files(folder: str | os.PathLike, repo_type: str = "model") -> dict[str, Path]:
    """
    List the files that a push of a folder sends, and check them as far as possible without the Hub.

    Nothing is sent or written.

    Args:
        folder (`str` or `os.PathLike`): A pipeline folder, or the folder of a Space.
        repo_type (`str`, defaults to `"model"`): What the folder holds, `"model"` or `"space"`.

    Returns:
        `dict[str, Path]`: The files by their path in the repository. Code is the package's own.

    Raises:
        ValueError: The folder is not a pipeline or a Space, a file of the list links out of the folder
            or is named like a secret, or the weights do not fit the network.
    """
    if repo_type not in ("model", "space"):
        raise ValueError(f"`repo_type` must be 'model' or 'space', but is {repo_type!r}.")
    folder = Path(os.path.realpath(folder))
    files = list_space_files(folder) if repo_type == "space" else list_pipeline_files(folder)
    for name in files:
        check_name(name, folder)
    return dict(sorted(files.items()))


def describe_files(files: Mapping[str, Path]) -> str:
    """
    Format a list of files with their sizes.

    Args:
        files (`Mapping[str, Path]`): The files by their path in the repository.

    Returns:
        `str`: One line per file, then the total.
    """
    total = 0
    rows = []
    for name, path in files.items():
        size = path.stat().st_size
        total += size
        rows.append(f"{_format_size(size):>9}  {escape_controls(name)}")
    rows.append(f"{_format_size(total):>9}  in {len(files)} files")
    return "\n".join(rows)


def _format_size(size: int) -> str:
    for unit, bytes_per_unit in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= bytes_per_unit:
            return f"{size / bytes_per_unit:.1f} {unit}"
    return f"{size} B"
