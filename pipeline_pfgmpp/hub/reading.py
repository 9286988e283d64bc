"""
Reading small files that others have written, checked before they are trusted.

A repository may hold anything. Nothing of it is executed, no file is read beyond a bound, and an entry
of an unexpected type is a ValueError that names the file and the entry. Text on its way to a terminal
passes through [`escape_controls`].
"""

import difflib
import inspect
import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..records.errors import get_first_line


MAX_BYTES = 2**20  # per configuration or card
MAX_METADATA = 2**15  # characters of a card's front matter, since parsing YAML is slow
MAX_DIGITS = 18  # per whole number
MAX_SIZE = 2**16  # of any number in a network's configuration
MAX_ENTRIES = 64  # per list in it
MAX_DEPTH = 4  # of nested lists in it
MAX_BLOCKS = 128  # levels times blocks per level
# Networks of which the configuration determines the parameters.
NETWORKS = ("PFGMPPUNet2DModel", "DDPMUNet2DModel", "UNet2DModel")


def check_model_name(model: str) -> None:
    """
    Refuse a model's name that leads into a folder of pipelines, but to none of them. diffusers would look for
    it on the Hub.

    Args:
        model (`str`): A Hub id or a path.

    Raises:
        ValueError: There is no such folder.
    """
    path = Path(model)
    if os.path.isdir(path) or not path.parent.name:
        return
    siblings = [index.parent.name for index in path.parent.glob("*/model_index.json")]
    if not siblings:
        return
    close = difflib.get_close_matches(path.name, siblings, n=1)
    hint = f": did you mean {path.parent / close[0]}?" if close else "."
    raise ValueError(f"There is no folder {model}{hint}")


def escape_controls(text: str) -> str:
    """
    Escape control characters, which a terminal would obey.

    Args:
        text (`str`): Any text.

    Returns:
        `str`: The text on one line, with every unprintable character as an escape such as `\\x1b`.
    """
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def read_text(folder: Path, name: str) -> str:
    """
    Read a small text file.

    Args:
        folder (`Path`): A folder.
        name (`str`): The file's path in it.

    Returns:
        `str`: The text.

    Raises:
        ValueError: The file is missing, not a regular file, too large or not UTF-8.
    """
    path = Path(folder, name)
    if not path.is_file():
        raise ValueError(f"{name} is missing.")
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
    Read a JSON object with unique names, finite numbers and limited nesting.

    Args:
        folder (`Path`): A folder.
        name (`str`): The file's path in it.

    Returns:
        `dict[str, Any]`: The entries.

    Raises:
        ValueError: The file cannot be read, or does not hold such an object.
    """
    text = read_text(folder, name)
    try:
        entries = json.loads(
            text,
            object_pairs_hook=_parse_pairs,
            parse_float=_parse_float,
            parse_int=_parse_int,
            parse_constant=_parse_float,
        )
    except RecursionError:
        raise ValueError(f"{name} is nested too deeply.") from None
    except ValueError as error:
        raise ValueError(f"{name} is not valid JSON: {error}.") from None
    if not isinstance(entries, dict):
        raise ValueError(f"{name} must hold a JSON object, but holds a {type(entries).__name__}.")
    return entries


def _parse_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) < len(pairs):
        raise ValueError("a name appears twice in one object")
    return entries


def _parse_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:MAX_DIGITS]} is not a finite number")
    return value


def _parse_int(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"a number has more than {MAX_DIGITS} digits")
    return int(text)


def read_yaml(text: str, name: str) -> Any:
    """
    Parse YAML with every scalar as text, so that no value is mistaken for another type.

    Args:
        text (`str`): The YAML.
        name (`str`): The file's name, for error messages.

    Returns:
        `Any`: Mappings, lists and strings.

    Raises:
        ValueError: The YAML is malformed or too long.
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
    Parse the front matter of a model card.

    Args:
        text (`str`): The card.

    Returns:
        `dict[str, Any]`: The metadata, with scalars as text; empty if the card has none.

    Raises:
        ValueError: The front matter is malformed or not a mapping.
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
    Return an entry of the expected type.

    Args:
        entries (`Mapping[str, Any]`): Entries that were read from a file.
        name (`str`): Name of the entry.
        kind (`type` or `tuple[type, ...]`): The expected type or types. A `bool` does not count as a
            number.
        file (`str`): The file, for error messages.
        default (`Any`, *optional*): Value of a missing entry; without it, the entry is required.

    Returns:
        `Any`: The entry.

    Raises:
        ValueError: The entry is missing or of another type.
    """
    if name not in entries:
        if default is ...:
            raise ValueError(f"{file} lacks `{name}`.")
        return default
    value = entries[name]
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        wanted = " or ".join(map(_name_type, kinds))
        raise ValueError(f"`{name}` in {file} must be {wanted}, but is {_name_type(type(value))}.")
    return value


def _name_type(kind: type) -> str:
    return "null" if kind is type(None) else kind.__name__


def get_number(entries: Mapping[str, Any], name: str, file: str, default: Any = ...) -> float:
    """
    Return an entry that is a positive number.

    Args:
        entries, name, file, default: As for [`get_entry`].

    Returns:
        `float`: The number, or `default`.

    Raises:
        ValueError: The entry is missing, not a number, or not positive.
    """
    value = get_entry(entries, name, (int, float), file, default)
    if value is not default and value <= 0:
        raise ValueError(f"`{name}` in {file} must be positive, but is {value}.")
    return value


def find_class(name: str) -> type:
    """
    Find the class of a pipeline or of one of its components.

    Args:
        name (`str`): Its name in `model_index.json`.

    Returns:
        `type`: A configurable class of this package or of diffusers.

    Raises:
        ValueError: There is no such class.
    """
    import diffusers
    from diffusers import ConfigMixin

    import pipeline_pfgmpp

    package = pipeline_pfgmpp if name in pipeline_pfgmpp.__all__ else diffusers
    is_public = name.isidentifier() and not name.startswith("_")
    cls = getattr(package, name, None) if is_public else None
    if not isinstance(cls, type) or not issubclass(cls, ConfigMixin):
        raise ValueError(f"{name[:100]!r} is not a class of pipeline_pfgmpp or diffusers.")
    return cls


def list_components(index: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """
    List the components of a pipeline.

    Args:
        index (`Mapping[str, Any]`): Entries of `model_index.json`.

    Returns:
        `dict[str, tuple[str, str]]`: Library and class of each component, by the name of its folder.

    Raises:
        ValueError: The name of a component is not a plain name, or `unet` or `scheduler` is missing.
    """
    components = {}
    for name, value in index.items():
        if not isinstance(value, list) or len(value) != 2:
            continue
        library, cls = value
        if not isinstance(library, str) or not isinstance(cls, str):
            continue
        if not name.isidentifier() or not library.isidentifier():
            raise ValueError(
                f"model_index.json names the component {name[:100]!r}, which is not a valid folder name."
            )
        components[name] = (library, cls)
    for name in ("unet", "scheduler"):
        if name not in components:
            raise ValueError(f"model_index.json must name the library and class of `{name}`.")
    return components


def build_network(name: str, config: Mapping[str, Any], file: str) -> Any:
    """
    Build a network without weights, after checking that its size is plausible.

    Args:
        name (`str`): Its class, one of `NETWORKS`.
        config (`Mapping[str, Any]`): Its configuration.
        file (`str`): The file of the configuration, for error messages.

    Returns:
        `torch.nn.Module`: The network, on the meta device.

    Raises:
        ValueError: The network cannot be built from the configuration, or would take too long to build.
    """
    import torch

    if name not in NETWORKS:
        raise ValueError(f"the network must be one of {', '.join(NETWORKS)}, but is {name[:100]!r}.")
    # The schedule of a DDPM network adds no parameters, and may claim any length.
    cls = find_class("UNet2DModel" if name == "DDPMUNet2DModel" else name)
    options = {}
    for option, parameter in inspect.signature(cls).parameters.items():
        options[option] = config.get(option, parameter.default)
    _check_network_size(options, file)
    try:
        with torch.device("meta"):
            return cls(**options)
    except Exception as error:  # a constructor may raise anything for options that contradict each other
        reason = get_first_line(error)
        raise ValueError(f"no network can be built from {file}: {reason[:200]}") from None


def _check_network_size(options: Mapping[str, Any], file: str) -> None:
    for option, value in options.items():
        _check_size(value, f"`{option}` in {file}")
    levels_option = "channel_mult" if "channel_mult" in options else "block_out_channels"
    blocks_option = "num_blocks" if "num_blocks" in options else "layers_per_block"
    levels = get_entry(options, levels_option, (list, tuple), file)
    count = len(levels) * get_entry(options, blocks_option, int, file)
    if count > MAX_BLOCKS:
        raise ValueError(f"{file} declares {count} blocks; at most {MAX_BLOCKS} are accepted.")


def _check_size(value: Any, name: str, depth: int = 0) -> None:
    if depth > MAX_DEPTH:
        raise ValueError(f"{name} is nested more than {MAX_DEPTH} levels deep.")
    if isinstance(value, (int, float)) and abs(value) > MAX_SIZE:
        raise ValueError(f"{name} holds {value:g}; at most {MAX_SIZE} is accepted.")
    if not isinstance(value, (list, tuple, dict)):
        return
    if len(value) > MAX_ENTRIES:
        raise ValueError(f"{name} holds {len(value)} entries; at most {MAX_ENTRIES} are accepted.")
    for each in value.values() if isinstance(value, dict) else value:
        _check_size(each, name, depth + 1)
