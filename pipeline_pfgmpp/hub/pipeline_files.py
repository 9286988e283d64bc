"""The files that a pipeline consists of, checked against each other before anything is uploaded."""

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

from ..records.errors import get_first_line
from ..records.reports import REPORTS, check_weights, list_weights, parse_report
from ..records.weights import SHARD, WeightFile, list_variants, parse_weight_files
from .reading import (
    NETWORKS,
    build_network,
    find_class,
    get_entry,
    list_components,
    read_metadata,
    read_object,
    read_text,
)
from .safety import find_file, find_files


PACKAGE = "pipeline_pfgmpp"
DESCRIPTIONS = ("README.md", *REPORTS)  # uploaded if they exist
CONFIGS = ("config.json", "scheduler_config.json")
PICTURE_TYPES = r"\.(?:png|jpe?g|gif|webp)"
PICTURE = re.compile(rf"""(?:\]\(\s*<?|\bsrc\s*=\s*["']?)([^\s"'<>()?#]+{PICTURE_TYPES})\b""", re.IGNORECASE)


def list_pipeline_files(folder: Path) -> dict[str, Path]:
    """
    List the files of a pipeline.

    Args:
        folder (`Path`): The pipeline folder, itself resolved.

    Returns:
        `dict[str, Path]`: The files by their path in the repository. Code is the package's own.

    Raises:
        ValueError: The folder is not a pipeline folder, its files do not fit each other, or one of them
            may not be uploaded.
    """
    from diffusers import ModelMixin

    from ..code_files import list_code

    if find_file(folder, "model_index.json") is None:
        raise ValueError(f"{folder} is not a pipeline folder: it has no model_index.json.")
    try:
        index = read_object(folder, "model_index.json")
        components = list_components(index)
        pipeline_class = _find_pipeline_class(get_entry(index, "_class_name", str, "model_index.json"))
        classes: dict[str, tuple[str | None, type]] = {}
        for part, (library, name) in components.items():
            classes[part] = (library, find_class(name))
        files = find_files(folder, ["model_index.json", *DESCRIPTIONS])
        if "README.md" in files:
            files |= _list_pictures(folder)
        variants = {}
        for part, (_, cls) in classes.items():
            component = _list_component(folder, part, cls)
            files |= component
            if issubclass(cls, ModelMixin):
                variants[part] = list_variants(PurePosixPath(name).name for name in component)
        _check_variants(variants)
        for name in REPORTS:
            if name in files:
                _check_report(folder, name)
    except ValueError as error:
        raise ValueError(f"{folder} cannot be uploaded: {error}") from None
    return files | list_code(pipeline_class, classes)


def _check_report(folder: Path, name: str) -> None:
    """Refuse figures of other weights; reports of early versions do not name any."""
    report = parse_report(read_text(folder, name), name, folder)
    check_weights(list_weights(report) - {None}, name, folder)


def _find_pipeline_class(name: str) -> type:
    from diffusers import DiffusionPipeline

    cls = find_class(name)
    if not cls.__module__.startswith(PACKAGE) or not issubclass(cls, DiffusionPipeline):
        raise ValueError(
            f"model_index.json names the pipeline {name[:100]!r}, which is not a pipeline of {PACKAGE}."
        )
    return cls


def _list_pictures(folder: Path) -> dict[str, Path]:
    """List the pictures in the folder that its card shows."""
    text = read_text(folder, "README.md")
    read_metadata(text)
    names = set()
    for address in PICTURE.findall(text):
        name = PurePosixPath(unquote(address))
        if ".." in name.parts:
            raise ValueError(f"README.md shows the picture {address}, which lies outside the folder.")
        if not name.is_absolute() and ":" not in address:
            names.add(name.as_posix())
    return find_files(folder, names)


def _list_component(folder: Path, part: str, cls: type) -> dict[str, Path]:
    """List the configuration and weights of a component, checked against each other."""
    from diffusers import ModelMixin

    files = find_files(folder, [f"{part}/{name}" for name in CONFIGS])
    if not files:
        raise ValueError(f"{part} has none of {', '.join(CONFIGS)}.")
    if not issubclass(cls, ModelMixin):
        return files
    weights = parse_weight_files(path.name for path in (folder / part).iterdir())
    for file in weights:
        if not file.is_pickle:
            files |= _list_weights(folder, part, cls.__name__, file)
    for file in weights:
        if file.is_pickle:
            _check_pickle(folder, part, file, weights)
    if not weights:
        raise ValueError(f"{part} has no weights as safetensors.")
    return files


def _list_weights(folder: Path, part: str, network: str, file: WeightFile) -> dict[str, Path]:
    """List a file of weights or an index with its files, checked against the network's configuration."""
    names = _list_shards(folder, part, file.name) if file.is_index else [file.name]
    weights = find_files(folder, [f"{part}/{name}" for name in names])
    for name in names:
        if f"{part}/{name}" not in weights:
            raise ValueError(f"{part} lacks {name}, which the index of its weights names.")
    _check_tensors(folder, part, network, weights)
    return weights | find_files(folder, [f"{part}/{file.name}"])


def _check_pickle(folder: Path, part: str, pickle: WeightFile, weights: list[WeightFile]) -> None:
    """Refuse weights that are stored as a pickle, unless the same weights are stored as safetensors."""
    for file in weights:
        if file.is_pickle or file.variant != pickle.variant:
            continue
        if _hold_the_same(_read_tensors(folder, part, file), _read_tensors(folder, part, pickle)):
            return
        raise ValueError(
            f"{part}/{pickle.name} holds other weights than {file.name}: remove the one that does not belong"
            " to this model."
        )
    raise ValueError(
        f"{part} holds weights as a pickle, {pickle.name}, and only safetensors are uploaded: save the"
        " pipeline again with safe_serialization=True, and remove the pickle."
    )


def _read_tensors(folder: Path, part: str, file: WeightFile) -> dict[str, Any]:
    """Read the tensors of a weight file, or of the files that an index names; no pickle is run."""
    import torch
    from safetensors.torch import load_file

    names = _list_shards(folder, part, file.name) if file.is_index else [file.name]
    tensors: dict[str, Any] = {}
    for name, path in find_files(folder, [f"{part}/{name}" for name in names]).items():
        try:
            if file.is_pickle:
                tensors |= torch.load(path, "cpu", weights_only=True)
            else:
                tensors |= load_file(path)
        except Exception as error:  # a damaged pickle may raise anything
            reason = get_first_line(error)
            raise ValueError(f"{name} cannot be read: {reason}") from None
    return tensors


def _hold_the_same(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    import torch

    if first.keys() != second.keys():
        return False
    return all(torch.equal(first[name], second[name]) for name in first)


def _check_variants(components: Mapping[str, list[str | None]]) -> None:
    """Refuse networks that no variant loads together; diffusers falls back to the default weights of each."""
    choices = {variant for variants in components.values() for variant in variants}
    for choice in choices:
        if all(choice in variants or None in variants for variants in components.values()):
            return
    if choices:
        found = "; ".join(
            f"{part} has {', '.join(str(variant) for variant in variants)}"
            for part, variants in components.items()
        )
        raise ValueError(f"no variant loads all of its networks: {found}.")


def _list_shards(folder: Path, part: str, index: str) -> list[str]:
    find_file(folder, f"{part}/{index}")  # refuses a link out of the folder before it is read
    shards = get_entry(read_object(folder, f"{part}/{index}"), "weight_map", dict, f"{part}/{index}")
    names = sorted({str(name) for name in shards.values()})
    for name in names:
        if not SHARD.fullmatch(name):
            raise ValueError(f"{part}/{index} names {name[:100]!r}, which is not a weight file.")
    return names


def _check_tensors(folder: Path, part: str, network: str, files: Mapping[str, Path]) -> None:
    """Check that weight files are complete, finite and hold the tensors of the configured network."""
    from safetensors import SafetensorError, safe_open

    shapes = {}
    for name, path in files.items():
        try:
            with safe_open(path, "pt") as file:
                for key in file.keys():  # noqa: SIM118
                    tensor = file.get_tensor(key)
                    shapes[key] = tuple(tensor.shape)
                    if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                        raise ValueError(
                            f"{name} holds NaN or infinity in `{key}`, but weights must be finite."
                        )
        except SafetensorError as error:
            raise ValueError(f"{name} cannot be read: {error}") from None
    if network not in NETWORKS:
        return
    config = f"{part}/config.json"
    for key, tensor in build_network(network, read_object(folder, config), config).state_dict().items():
        expected = tuple(tensor.shape)
        if key not in shapes:
            raise ValueError(f"the weights of {part} lack `{key}`, which {config} declares.")
        if shapes[key] != expected:
            raise ValueError(
                f"`{key}` in the weights of {part} has shape {shapes[key]}, but {config} declares {expected}."
            )
