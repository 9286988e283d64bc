"""The commands that are recorded with results, without the folders of the machine that ran them."""

import os
import re
import shlex
from pathlib import PureWindowsPath


def format_command(program: str, arguments: list[str]) -> str:
    """
    Format a command for a card or a report, quoted for a shell.

    No folder of this machine appears in it: a path that is absolute, or that leads to a home or out
    of the working directory, is reduced to its last name.

    Args:
        program (`str`): The program, such as `"pfgmpp"` or `"accelerate launch train_accelerate.py"`.
        arguments (`list[str]`): Its arguments as the program receives them, `--name=value` included.

    Returns:
        `str`: The command.
    """
    return shlex.join(hide_folders(word) for word in [*shlex.split(program), *map(str, arguments)])


def hide_folders(word: str) -> str:
    """
    Reduce each local path in a word to its last name, also after `=`, `,` or `:`, as [`format_command`] does.

    Args:
        word (`str`): An argument.

    Returns:
        `str`: The word, without quotes.
    """
    if "://" in word and "file://" not in word:
        return word  # a web address
    pieces = re.split(r"((?:file://)|(?<![A-Za-z0-9])[A-Za-z]:[\\/][^,;=]*|[=,:;])", word)
    return "".join(_hide_folder(piece) for piece in pieces if piece != "file://")


def _hide_folder(path: str) -> str:
    if re.match(r"[A-Za-z]:[\\/]|\\\\", path):
        return PureWindowsPath(path).name
    if not path.startswith(("/", "~")) and not os.path.normpath(path).startswith(".."):
        return path.rstrip("/") or path
    absolute = os.path.abspath(os.path.expanduser(path))
    return "~" if absolute == os.path.expanduser("~") else os.path.basename(absolute)
