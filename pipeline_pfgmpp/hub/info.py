"""Describing a model from its configurations and its card."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..latents import LEVELS, find_factor
from ..records.errors import get_first_line
from ..records.sizes import format_size
from ..records.weights import list_folder_variants, list_variants
from .reading import (
    MAX_BYTES,
    build_network,
    check_model_name,
    escape_controls,
    get_entry,
    get_number,
    list_components,
    read_metadata,
    read_object,
    read_text,
)


INDEX = "model_index.json"
SCHEDULER = "scheduler/scheduler_config.json"
NETWORK = "unet/config.json"
AUTOENCODER = "vae/config.json"
CARD = "README.md"
MAX_LEVELS = 16  # of an autoencoder
MAX_NAMES = 100  # classes or data sets that are listed by name


def model_info(model: str | os.PathLike) -> dict[str, str]:
    """
    Describe a model from its configurations and its card.

    No weights are downloaded, and no code of the model runs.

    Args:
        model (`str` or `os.PathLike`): A pipeline folder or a Hub id.

    Returns:
        `dict[str, str]`: Properties and their values, ready for a terminal: without control characters.

    Raises:
        ValueError: There is no such model, or it cannot be read as a PFGM++ pipeline.
    """
    check_model_name(str(model))
    try:
        if Path(model).is_dir():
            rows = _describe(Path(model), list_folder_variants(model))
        else:
            rows = _describe(*_download(str(model)))
    except (OSError, ValueError) as error:
        reason = get_first_line(error)
        raise ValueError(f"{model} cannot be read as a PFGM++ pipeline: {escape_controls(reason)}") from None
    return {name: escape_controls(value) for name, value in rows.items()}


def _download(repo_id: str) -> tuple[Path, Sequence[str | None]]:
    """
    Download the files that describe a model, and list the variants of its weights.

    If the Hub cannot be reached, the files and the weights in the cache count.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HTTPError  # of whatever library it makes requests with

    names = [INDEX, SCHEDULER, NETWORK, AUTOENCODER, CARD]
    variants = None
    try:
        for file in HfApi().get_paths_info(repo_id, names):
            if getattr(file, "size", 0) > MAX_BYTES:
                raise ValueError(f"{file.path} is larger than {MAX_BYTES} bytes.")
        files = HfApi().list_repo_files(repo_id)
        variants = list_variants(name.removeprefix("unet/") for name in files if name.startswith("unet/"))
    except HfHubHTTPError:
        raise
    except (OSError, HTTPError):  # offline, or the Hub cannot be reached
        pass
    folder = Path(snapshot_download(repo_id, allow_patterns=names))
    return folder, list_folder_variants(folder) if variants is None else variants


def _describe(folder: Path, variants: Sequence[str | None]) -> dict[str, str]:
    index = read_object(folder, INDEX)
    scheduler = read_object(folder, SCHEDULER)
    unet = read_object(folder, NETWORK)
    card = read_metadata(read_text(folder, CARD)) if (folder / CARD).exists() else {}
    components = list_components(index)
    network = components["unet"][1]
    vae = read_object(folder, AUTOENCODER) if "vae" in components else None
    parameters = build_network(network, unet, NETWORK).num_parameters()
    sigma_min = get_number(scheduler, "sigma_min", SCHEDULER)
    sigma_max = get_number(scheduler, "sigma_max", SCHEDULER)
    sigma_data = get_number(scheduler, "sigma_data", SCHEDULER)
    classes = get_entry(index, "id2label", (dict, type(None)), INDEX, None) or {}
    preconditioning = get_entry(scheduler, "preconditioning", str, SCHEDULER, "edm")
    rows = {
        "D": _describe_dimension(scheduler, unet),
        "noise levels": f"{sigma_min:g} to {sigma_max:g}, sigma_data {sigma_data:g}",
        "images": _describe_images(index, unet, vae),
        "network": f"{network}, {parameters:,} parameters",
        "classes": _join_names(classes.values(), f"`id2label` in {INDEX}") or "none",
        "trained on": _read_card_entry(card, "datasets"),
        "licence": _read_card_entry(card, "license"),
    }
    if preconditioning != "edm":
        rows["preconditioning"] = preconditioning
    if vae is not None:
        height, width = _read_size(unet)
        channels = get_entry(unet, "in_channels", int, NETWORK)
        shape = f"{format_size(height, width)}, {channels} channels"
        rows["autoencoder"] = f"{components['vae'][1]}, latents of {shape}"
    if variants not in ([], [None]):
        rows["variants"] = _join_names((str(variant) for variant in variants if variant), "variants")
        if None not in variants:
            rows["variants"] += f" (load one of them, for instance with --variant {variants[0]})"
    return rows


def _describe_dimension(scheduler: Mapping[str, Any], unet: Mapping[str, Any]) -> str:
    """Describe D, or for a network that is conditioned on D the range that it was trained for."""
    if str(scheduler.get("_class_name")).startswith("EDM"):
        scheduler = {"D": None, **scheduler}  # a scheduler of diffusers, which knows no other D
    D = _format_dimension(scheduler, "D", SCHEDULER)
    if not get_entry(unet, "d_conditioning", bool, NETWORK, False):
        return D
    trained = get_entry(scheduler, "D_range", (list, type(None)), SCHEDULER, None)
    if trained is None:
        return f"any (default: {D}, trained range not stated)"
    if len(trained) != 2:
        raise ValueError(f"`D_range` in {SCHEDULER} must be a pair, but has {len(trained)} entries.")
    ends = {"0": trained[0], "1": trained[1]}
    low = _format_dimension(ends, "0", f"`D_range` in {SCHEDULER}")
    high = _format_dimension(ends, "1", f"`D_range` in {SCHEDULER}")
    return f"{low} to {high} (default: {D})"


def _format_dimension(entries: Mapping[str, Any], name: str, file: str) -> str:
    """Format an entry that is a positive number, or null for infinity."""
    from ..records.dimensions import format_dimension

    if name in entries and entries[name] is None:
        return format_dimension(None)
    return format_dimension(get_number(entries, name, file))


def _read_size(unet: Mapping[str, Any]) -> tuple[int, int]:
    """Read height and width of what the network makes."""
    size = get_entry(unet, "sample_size", (int, list), NETWORK)
    sides = size if isinstance(size, list) else [size, size]
    if len(sides) != 2 or not all(isinstance(side, int) for side in sides):
        raise ValueError(f"`sample_size` in {NETWORK} must be one or two whole numbers.")
    return sides[0], sides[1]


def _read_factor(vae: Mapping[str, Any] | None) -> int:
    """Read by what factor the autoencoder, if there is one, shrinks the sides of images."""
    if vae is not None:
        name = next((name for name in LEVELS if name in vae), LEVELS[-1])
        levels = get_entry(vae, name, list, AUTOENCODER)
        if not 1 <= len(levels) <= MAX_LEVELS:
            raise ValueError(f"`{name}` in {AUTOENCODER} must hold 1 to {MAX_LEVELS} entries.")
    return find_factor(vae)


def _describe_images(index: Mapping[str, Any], unet: Mapping[str, Any], vae: Mapping[str, Any] | None) -> str:
    """Describe size and channels, and the range of values if it is not that of 8 bits."""
    height, width = (side * _read_factor(vae) for side in _read_size(unet))
    channels = get_entry(unet, "in_channels", int, NETWORK)
    if vae is not None:
        channels = get_entry(vae, "in_channels", int, AUTOENCODER)
    colours = {1: "grey", 3: "RGB"}.get(channels, f"{channels} channels")
    description = f"{format_size(height, width)}, {colours}"
    value_range = get_entry(index, "value_range", (list, dict, type(None)), INDEX, None)
    if value_range is None:
        return description
    if isinstance(value_range, dict):
        return f"{description}, fields standardised by channel"
    if len(value_range) != 2 or not all(_is_number(value) for value in value_range):
        raise ValueError(f"`value_range` in {INDEX} must be two numbers.")
    low, high = value_range
    return f"{description}, values {low:g} to {high:g}"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _read_card_entry(card: Mapping[str, Any], name: str) -> str:
    value = get_entry(card, name, (str, list), CARD, "")
    if value in ("", "null", "~", []):
        return "not stated"
    return _join_names([value] if isinstance(value, str) else value, f"`{name}` in {CARD}")


def _join_names(values: Iterable[Any], what: str) -> str:
    names = list(values)
    if not all(isinstance(name, str) for name in names):
        raise ValueError(f"{what} must hold only text.")
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return ", ".join(name[:100] for name in names[:MAX_NAMES]) + more
