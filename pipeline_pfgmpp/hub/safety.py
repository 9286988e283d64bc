"""
Files that may be uploaded: no link out of the folder, and nothing named like a secret.

The one kind of link that is followed is that of the Hub's own cache, which leads from
`snapshots/COMMIT/NAME` to `blobs/ETAG` of the same repository.
"""

import os
import re
from collections.abc import Iterable
from pathlib import Path


SECRET = re.compile(
    r"(^|[^a-z])(token|secret|credential|password|passwd|passphrase|(api|access|private)[_-]?key)s?([^a-z]|$)"
    r"|(^|[^a-z])(id_(rsa|dsa|ecdsa|ed25519)|netrc|kubeconfig|authorized_keys|service[_-]?account)([^a-z]|$)"
    r"|(^|/)\.|\.(env|pem|key|p12|pfx|ppk|jks|keystore|kdbx|gpg|asc)$"
)
COMMIT = re.compile(r"[0-9a-f]{40}")
BLOB = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


def check_name(name: str, folder: Path) -> None:
    """
    Refuse a file that is named like a secret.

    Args:
        name (`str`): The file's path in the folder.
        folder (`Path`): The folder, for the error message.

    Raises:
        ValueError: The name is that of a secret.
    """
    words = re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()
    if SECRET.search(words):
        raise ValueError(
            f"{name} in {folder} is named like a secret, and nothing was sent: rename or remove it."
        )


def find_file(folder: Path, name: str) -> Path | None:
    """
    Find a file in a folder.

    Args:
        folder (`Path`): The folder, itself resolved.
        name (`str`): The file's path in it.

    Returns:
        `Path` or `None`: The file with its links resolved; None if there is no such file.

    Raises:
        ValueError: The file lies outside the folder, is named like a secret, or is not a regular file.
    """
    path = folder / name
    if not os.path.lexists(path):
        return None
    target = Path(os.path.realpath(path))
    if target.is_relative_to(folder):
        check_name(target.relative_to(folder).as_posix(), folder)
    elif not _is_cache_link(path, folder):
        raise ValueError(
            f"{path} links to a file outside its folder, which is not uploaded:"
            " replace the link with the file itself."
        )
    if not target.is_file():
        raise ValueError(f"{path} is not a regular file.")
    return target


def find_files(folder: Path, names: Iterable[str]) -> dict[str, Path]:
    """
    Find those of the named files that a folder has.

    Args:
        folder (`Path`): The folder, itself resolved.
        names (`Iterable[str]`): Paths in it.

    Returns:
        `dict[str, Path]`: The files, as [`find_file`] finds them, by their names.

    Raises:
        ValueError: As for [`find_file`].
    """
    files = {}
    for name in names:
        path = find_file(folder, name)
        if path is not None:
            files[name] = path
    return files


def _is_cache_link(path: Path, folder: Path) -> bool:
    """Tell whether a link of a snapshot in the Hub's cache leads to a blob of the same repository."""
    if folder.parent.name != "snapshots" or not COMMIT.fullmatch(folder.name):
        return False
    repository = folder.parents[1]
    if not repository.name.startswith(("models--", "spaces--")) or not path.is_symlink():
        return False
    parent = Path(os.path.realpath(path.parent))
    if not parent.is_relative_to(folder):
        return False
    target = Path(os.path.normpath(parent / os.readlink(path)))
    if target.parent != repository / "blobs" or not BLOB.fullmatch(target.name):
        return False
    return Path(os.path.realpath(target)) == target  # neither the blob nor its folder is a link
