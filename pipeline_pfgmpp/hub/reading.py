"""
Reading what others have written: small files, checked before they are believed.

A repository may hold anything. Nothing of it runs here, no more than a bound is read of a file, and
what is not of the expected type is a ValueError that names the file and the entry. What goes to a
terminal passes through [`printable`].
"""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any


MAX_BYTES = 2**20  # of a configuration or a card
MAX_METADATA = 2**15  # characters of a card's front matter, which YAML is slow to read
MAX_DIGITS = 18
MAX_SIZE = 2**16  # of any number in a network's configuration
MAX_ENTRIES = 64  # of any list there
MAX_DEPTH = 4
MAX_BLOCKS = 128  # levels times blocks a level
NETWORKS = (
    "PFGMPPUNet2DModel",
    "DDPMUNet2DModel",
    "UNet2DModel",
)  # whose parameters can be counted from their configuration


def printable(text: str) -> str:
    """
    Writes out control characters, which a terminal would obey, as escapes: one line in, one line
    out.
    """
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def read_text(folder: Path, name: str) -> str:
    """
    Reads a small text file.

    Args:
        folder (`Path`): A folder.
        name (`str`): The file's path in it.

    Returns:
        `str`: The text.

    Raises:
        ValueError: The file is not there, not regular, too large or not UTF-8.
    """
    path = Path(folder, name)
    if not path.is_file():
        raise ValueError(f"it has no file {name}.")
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"{name} is larger than {MAX_BYTES} bytes.")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{name} is not UTF-8 text.") from None


def read_object(folder: Path, name: str) -> dict[str, Any]:
    """
    Reads a JSON object: unique names, finite numbers, nesting that Python can follow.

    Args:
        folder (`Path`): A folder.
        name (`str`): The file's path in it.

    Returns:
        `dict[str, Any]`: The entries.

    Raises:
        ValueError: The file cannot be read, or is no such object.
    """

    def unique(pairs):
        entries = dict(pairs)
        if len(entries) < len(pairs):
            raise ValueError("a name stands twice in one object")
        return entries

    def finite(text):
        if not math.isfinite(float(text)):
            raise ValueError(f"{text[:MAX_DIGITS]} is no finite number")
        return float(text)

    def whole(text):
        if len(text) > MAX_DIGITS:
            raise ValueError(f"a number has more than {MAX_DIGITS} digits")
        return int(text)

    text = read_text(folder, name)
    try:
        entries = json.loads(
            text, object_pairs_hook=unique, parse_float=finite, parse_int=whole, parse_constant=finite
        )
    except RecursionError:
        raise ValueError(f"{name} is nested too deeply.") from None
    except ValueError as error:
        raise ValueError(f"{name} is no JSON that can be used: {error}.") from None
    if not isinstance(entries, dict):
        raise ValueError(f"{name} must hold a JSON object, but holds a {type(entries).__name__}.")
    return entries


def read_yaml(text: str, name: str) -> Any:
    """
    Reads YAML in which every scalar is text, so that none can mean anything else.

    Args:
        text (`str`): The YAML.
        name (`str`): What it is called in an error.

    Returns:
        `Any`: Mappings, lists and strings.

    Raises:
        ValueError: It is malformed or too long.
    """
    import yaml

    if len(text) > MAX_METADATA:
        raise ValueError(f"the YAML of {name} is longer than {MAX_METADATA} characters.")
    try:
        return yaml.load(text, yaml.BaseLoader)
    except RecursionError:
        raise ValueError(f"the YAML of {name} is nested too deeply.") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        raise ValueError(f"the YAML of {name} is malformed{where}.") from None


def read_metadata(text: str) -> dict[str, Any]:
    """
    Reads the front matter of a card.

    Args:
        text (`str`): The card.

    Returns:
        `dict[str, Any]`: Its metadata, whose scalars are text; empty where there are none.

    Raises:
        ValueError: They are malformed, or no mapping.
    """
    found = re.match(r"---[ \t]*\r?\n(.*?)^---[ \t]*\r?$", text, re.DOTALL | re.MULTILINE)
    metadata = read_yaml(found[1], "README.md") if found else ""
    if metadata and not isinstance(metadata, dict):
        raise ValueError("the YAML of README.md must hold a mapping.")
    return metadata or {}


def get_entry(
    entries: Mapping[str, Any], name: str, kind: type | tuple[type, ...], file: str, default: Any = ...
) -> Any:
    """
    Returns an entry of the expected type.

    Args:
        entries (`Mapping[str, Any]`): What was read.
        name (`str`): The entry.
        kind (`type` or `tuple[type, ...]`): Its type; a `bool` is no number.
        file (`str`): Where it was read, for the error.
        default (`Any`, *optional*): Stands for an entry that is not there.

    Returns:
        `Any`: The entry.

    Raises:
        ValueError: The entry is missing, or of another type.
    """
    if name not in entries and default is not ...:
        return default
    if name not in entries:
        raise ValueError(f"{file} lacks `{name}`.")
    value = entries[name]
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        wanted = " or ".join(map(_name_type, kinds))
        raise ValueError(f"`{name}` in {file} must be {wanted}, but is {_name_type(type(value))}.")
    return value


def _name_type(kind):
    return "null" if kind is type(None) else kind.__name__


def get_number(entries: Mapping[str, Any], name: str, file: str, default: Any = ...) -> float:
    """Returns a positive number among entries that were read; `default` as for [`get_entry`]."""
    value = get_entry(entries, name, (int, float), file, default)
    if value is not default and value <= 0:
        raise ValueError(f"`{name}` in {file} must be positive, but is {value}.")
    return value


def find_class(name: str) -> type:
    """
    Finds a class that a pipeline may be made of.

    Args:
        name (`str`): Its name, as `model_index.json` has it.

    Returns:
        `type`: A class of this package or of diffusers.

    Raises:
        ValueError: There is none of that name that can be built from a configuration.
    """
    import diffusers
    from diffusers import ConfigMixin

    import pipeline_pfgmpp

    package = pipeline_pfgmpp if name in pipeline_pfgmpp.__all__ else diffusers
    cls = getattr(package, name, None) if name.isidentifier() and not name.startswith("_") else None
    if not isinstance(cls, type) or not issubclass(cls, ConfigMixin):
        raise ValueError(f"{name[:100]!r} is no class of pipeline_pfgmpp or diffusers.")
    return cls


def list_components(index: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """
    Lists the components that a pipeline has.

    Args:
        index (`Mapping[str, Any]`): What `model_index.json` holds.

    Returns:
        `dict[str, tuple[str, str]]`: Library and class of each, by its name, which is that of its
            folder.

    Raises:
        ValueError: A component's name is no plain name, or `unet` or `scheduler` is missing.
    """
    components = {}
    for name, value in index.items():
        if isinstance(value, list) and len(value) == 2 and all(isinstance(part, str) for part in value):
            if not name.isidentifier() or not value[0].isidentifier():
                raise ValueError(
                    f"model_index.json names the component {name[:100]!r}, which cannot be a folder's name."
                )
            components[name] = tuple(value)
    for name in ("unet", "scheduler"):
        if name not in components:
            raise ValueError(f"model_index.json must name library and class of `{name}`.")
    return components


def build_network(name: str, config: Mapping[str, Any], file: str) -> Any:
    """
    Builds a network without weights, once its size has been found sane.

    Args:
        name (`str`): Its class, one of `NETWORKS`.
        config (`Mapping[str, Any]`): Its configuration.
        file (`str`): Where that was read, for errors.

    Returns:
        `torch.nn.Module`: The network, on the meta device.

    Raises:
        ValueError: The configuration cannot be built, or would take too long.
    """
    import inspect

    import torch

    if name not in NETWORKS:
        raise ValueError(f"the network must be one of {', '.join(NETWORKS)}, but is {name[:100]!r}.")
    # A DDPM's schedule adds no parameters, and its length is not worth to be trusted.
    cls = find_class("UNet2DModel" if name == "DDPMUNet2DModel" else name)
    parameters = inspect.signature(cls).parameters
    options = {option: config.get(option, parameter.default) for option, parameter in parameters.items()}
    for option, value in options.items():
        _check_size(value, f"`{option}` in {file}")
    levels = get_entry(
        options, "channel_mult" if "channel_mult" in options else "block_out_channels", (list, tuple), file
    )
    blocks = get_entry(options, "num_blocks" if "num_blocks" in options else "layers_per_block", int, file)
    count = len(levels) * blocks
    if count > MAX_BLOCKS:
        raise ValueError(
            f"{file} declares {count} blocks, of which {MAX_BLOCKS} are the most that are believed."
        )
    try:
        with torch.device("meta"):
            return cls(**options)
    except Exception as error:  # a constructor may raise anything at options that do not go together
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"no network can be built from {file}: {reason[:200]}") from None


def _check_size(value, name, depth=0):
    if depth > MAX_DEPTH:
        raise ValueError(f"{name} is nested more than {MAX_DEPTH} times.")
    if isinstance(value, (int, float)) and abs(value) > MAX_SIZE:
        raise ValueError(f"{name} holds {value:g}, and {MAX_SIZE} is the most that is believed.")
    if isinstance(value, (list, tuple, dict)):
        if len(value) > MAX_ENTRIES:
            raise ValueError(
                f"{name} holds {len(value)} entries, and {MAX_ENTRIES} is the most that is believed."
            )
        for each in value.values() if isinstance(value, dict) else value:
            _check_size(each, name, depth + 1)
