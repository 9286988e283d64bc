"""Files and folders that are whole or not there: written beside their place, and moved into it when they are done."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replace_file(path: str | os.PathLike) -> Iterator[Path]:
    """
    Writes a file that takes its place only when it is complete.

    Args:
        path (`str` or `os.PathLike`): The file; its folder is made if it is missing.

    Yields:
        `Path`: Where to write. It ends in `.partial`, whatever `path` ends in.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def replace_folder(path: str | os.PathLike) -> Iterator[Path]:
    """
    Fills a folder that takes its place only when it is complete. What stood there goes last.

    Args:
        path (`str` or `os.PathLike`): The folder; its parents are made if they are missing.

    Yields:
        `Path`: An empty folder of the same name, `.NAME.PROCESS.partial/NAME`.
    """
    path = Path(path).resolve()
    beside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    shutil.rmtree(beside, ignore_errors=True)
    folder = beside / path.name
    folder.mkdir(parents=True)
    try:
        yield folder
        if path.exists():
            os.replace(path, beside / "replaced")
        os.replace(folder, path)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
