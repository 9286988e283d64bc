"""What a model is, from its configurations and its card."""

import os
from pathlib import Path

from .reading import (
    MAX_BYTES,
    build_network,
    get_entry,
    get_number,
    list_components,
    printable,
    read_metadata,
    read_object,
    read_text,
)


INDEX, SCHEDULER, NETWORK, CARD = (
    "model_index.json",
    "scheduler/scheduler_config.json",
    "unet/config.json",
    "README.md",
)
MAX_NAMES = 100  # classes that are listed by name


def model_info(model: str | os.PathLike) -> dict[str, str]:
    """
    Describes a model from its configurations and its card; no weights are downloaded, and nothing
    of the model runs.

    Args:
        model (`str` or `os.PathLike`): A pipeline folder or a Hub id.

    Returns:
        `dict[str, str]`: Names and values, for people: no control character is in them.

    Raises:
        ValueError: There is no such model, or it is no PFGM++ pipeline that can be read.
    """
    try:
        folder = Path(model) if Path(model).is_dir() else _download(str(model))
        rows = _describe(folder)
    except (OSError, ValueError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"{model} is no PFGM++ pipeline that can be read: {printable(reason)}") from None
    return {name: printable(value) for name, value in rows.items()}


def _download(repo_id):
    """
    Downloads the files that describe a model, each of a sane size; without a network those of the
    cache are taken.
    """
    from httpx import TransportError
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    names = [INDEX, SCHEDULER, NETWORK, CARD]
    try:
        for file in HfApi().get_paths_info(repo_id, names):
            if getattr(file, "size", 0) > MAX_BYTES:
                raise ValueError(f"{file.path} is larger than {MAX_BYTES} bytes.")
    except HfHubHTTPError:
        raise
    except (OSError, TransportError):  # offline, or the Hub cannot be reached
        pass
    return Path(snapshot_download(repo_id, allow_patterns=names))


def _describe(folder):
    index, scheduler, unet = (read_object(folder, name) for name in (INDEX, SCHEDULER, NETWORK))
    card = read_metadata(read_text(folder, CARD)) if (folder / CARD).exists() else {}
    cls = list_components(index)["unet"][1]
    parameters = build_network(cls, unet, NETWORK).num_parameters()
    low, high, data = (
        get_number(scheduler, name, SCHEDULER) for name in ("sigma_min", "sigma_max", "sigma_data")
    )
    channels = get_entry(unet, "in_channels", int, NETWORK)
    kind = {1: "grey", 3: "RGB"}.get(channels, f"{channels} channels")
    names = get_entry(index, "id2label", (dict, type(None)), INDEX, None) or {}
    return {
        "D": _describe_dimension(scheduler, unet),
        "noise levels": f"{low:g} to {high:g}, data {data:g}",
        "images": f"{_describe_size(unet)}, {kind}",
        "network": f"{cls}, {parameters:,} parameters",
        "classes": _join(names.values(), f"`id2label` in {INDEX}") or "none",
        "trained on": _read_stated(card, "datasets"),
        "licence": _read_stated(card, "license"),
    }


def _describe_dimension(scheduler, unet):
    """The augmented dimension, and for a network that is told it the range that it was trained for."""
    from ..records.dimensions import format_dimension

    D = format_dimension(
        get_number(scheduler, "D", SCHEDULER) if scheduler.get("D", "") is not None else None
    )
    if not get_entry(unet, "d_conditioning", bool, NETWORK, False):
        return D
    trained = get_entry(scheduler, "D_range", (list, type(None)), SCHEDULER, None)
    if trained is None:
        return f"any, trained for what is not stated, {D} when none is asked for"
    if len(trained) != 2:
        raise ValueError(f"`D_range` in {SCHEDULER} must be a pair, but has {len(trained)} entries.")
    ends = {str(place): end for place, end in enumerate(trained) if end is not None}
    low, high = (
        format_dimension(get_number(ends, place, f"`D_range` in {SCHEDULER}", None)) for place in "01"
    )
    return f"{low} to {high}, {D} when none is asked for"


def _describe_size(unet):
    size = get_entry(unet, "sample_size", (int, list), NETWORK)
    sides = size if isinstance(size, list) else [size, size]
    if len(sides) != 2 or not all(isinstance(side, int) for side in sides):
        raise ValueError(f"`sample_size` in {NETWORK} must be a whole number or two.")
    return "×".join(map(str, sides))


def _read_stated(card, name):
    value = get_entry(card, name, (str, list), CARD, "")
    if value in ("", "null", "~", []):
        return "not stated"
    return _join([value] if isinstance(value, str) else value, f"`{name}` in {CARD}")


def _join(names, what):
    names = list(names)
    if not all(isinstance(name, str) for name in names):
        raise ValueError(f"{what} must hold text alone.")
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return ", ".join(name[:100] for name in names[:MAX_NAMES]) + more
