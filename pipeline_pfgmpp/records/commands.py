"""Commands as they are kept beside results: whole, and without a folder of this machine."""

import os
import re
import shlex
from pathlib import PureWindowsPath


def format_command(program: str, arguments: list[str]) -> str:
    """
    Writes a command for people who read a card: quoted for a shell, and without a folder of this machine. A path that is
    absolute, or leads to a home or out of the working directory, becomes its last name.

    Args:
        program (`str`): What is run, such as `"pfgmpp"` or `"accelerate launch train_accelerate.py"`.
        arguments (`list[str]`): Its arguments, each as the program gets it, also as `--name=value`.

    Returns:
        `str`: The command.
    """
    return shlex.join(_hide_folders(word) for word in [*shlex.split(program), *map(str, arguments)])


def _hide_folders(word):
    """A word of a command with each local path in it, which may stand after `=`, `,` or `:`, cut down to its last name."""
    if "://" in word and "file://" not in word:
        return word  # the address of something that is not on this machine
    pieces = re.split(r"((?:file://)|(?<![A-Za-z0-9])[A-Za-z]:[\\/][^,;=]*|[=,:;])", word)
    return "".join(_hide_folder(piece) for piece in pieces if piece != "file://")


def _hide_folder(path):
    if re.match(r"[A-Za-z]:[\\/]|\\\\", path):
        return PureWindowsPath(path).name
    if not path.startswith(("/", "~")) and not os.path.normpath(path).startswith(".."):
        return path
    absolute = os.path.abspath(os.path.expanduser(path))
    return "~" if absolute == os.path.expanduser("~") else os.path.basename(absolute)
