"""Files and folders that are either complete or absent, even if the program is killed while it writes."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock


@contextlib.contextmanager
def replace_file(path: str | os.PathLike) -> Iterator[Path]:
    """
    Write a file under a temporary name and rename it when it is complete.

    Args:
        path (`str` or `os.PathLike`): The file; its folder is created if it is missing.

    Yields:
        `Path`: Where to write. Its name ends in `.partial`, whatever `path` ends in.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: str | os.PathLike, content: Any) -> None:
    """
    Write a file of JSON, complete or not at all.

    Args:
        path (`str` or `os.PathLike`): The file; it is replaced if it exists.
        content: What JSON can represent.
    """
    with replace_file(path) as partial:
        partial.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


@contextlib.contextmanager
def lock(path: str | os.PathLike) -> Iterator[None]:
    """
    Keep other processes from making the same file or folder meanwhile.

    Args:
        path (`str` or `os.PathLike`): The file or folder; a hidden file is left beside it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        yield


@contextlib.contextmanager
def replace_folder(path: str | os.PathLike) -> Iterator[Path]:
    """
    Fill a folder under a temporary path and rename it when it is complete.

    An older folder of that name is removed only then.

    Args:
        path (`str` or `os.PathLike`): The folder; its parents are created if they are missing.

    Yields:
        `Path`: An empty folder with the same last name, `.NAME.PROCESS.partial/NAME`.
    """
    path = Path(path).resolve()
    beside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    shutil.rmtree(beside, ignore_errors=True)
    folder = beside / path.name
    folder.mkdir(parents=True)
    try:
        yield folder
        older = beside / "replaced"
        if path.exists():
            os.replace(path, older)
        try:
            os.replace(folder, path)
        except OSError:
            if older.exists() and not path.exists():
                os.replace(older, path)
            raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)
