"""
The weights of a model: which files hold them, under which variants, and whether they are finite.

diffusers stores the weights of a network as `diffusion_pytorch_model.safetensors`, in one file or in
several with an index, and other weights of the same network as variants, such as
`diffusion_pytorch_model.fp16.safetensors`. It also reads pickles, whose names end in `.bin`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple


if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


SHARD = re.compile(r"(diffusion_pytorch_model|model)(\.[\w-]+)?-\d{5}-of-\d{5}(\.[\w-]+)?\.(safetensors|bin)")
_FILE = re.compile(r"(?:diffusion_pytorch_model|model)(?:\.(?P<variant>[\w-]+))?\.(?P<kind>safetensors|bin)")
_INDEX = re.compile(
    r"(?:diffusion_pytorch_model|model)\.(?P<kind>safetensors|bin)\.index(?:\.(?P<variant>[\w-]+))?\.json"
)


class WeightFile(NamedTuple):
    """
    A file with the weights of a network, or the index of several.

    Args:
        name (`str`): The file's name.
        variant (`str` or `None`): The variant; None for the weights that load by default.
        is_pickle (`bool`): Whether the weights are stored as pickles.
        is_index (`bool`): Whether the file lists the files that hold the weights.
    """

    name: str
    variant: str | None
    is_pickle: bool
    is_index: bool


def parse_weight_files(names: Iterable[str]) -> list[WeightFile]:
    """
    Find the weight files among the files of a network. Files that only an index names are left out.

    Args:
        names (`Iterable[str]`): Names of the files in the network's folder.

    Returns:
        `list[WeightFile]`: The weight files, sorted by name.
    """
    files = []
    for name in sorted(names):
        index = _INDEX.fullmatch(name)
        found = index or _FILE.fullmatch(name)
        if found and not SHARD.fullmatch(name):
            files.append(WeightFile(name, found["variant"], found["kind"] == "bin", index is not None))
    return files


def list_variants(names: Iterable[str]) -> list[str | None]:
    """
    List the variants of a network's weights.

    Args:
        names (`Iterable[str]`): Names of the files in the network's folder.

    Returns:
        `list`: The variants, sorted; first None if there are weights that load by default.
    """
    variants = {file.variant for file in parse_weight_files(names)}
    return sorted(variants, key=lambda variant: variant or "")


def group_by_variant(names: Iterable[str]) -> dict[str | None, set[str]]:
    """
    Group the weight files of a network, with their indexes and what these name, by their variant.

    Args:
        names (`Iterable[str]`): Names of the files in the network's folder.

    Returns:
        `dict[str | None, set[str]]`: The names by variant; None is the weights that load by default.
    """
    groups: dict[str | None, set[str]] = {}
    for name in names:
        shard = SHARD.fullmatch(name)
        if shard:
            variant = (shard[2] or shard[3] or "").removeprefix(".") or None
            groups.setdefault(variant, set()).add(name)
        for file in parse_weight_files([name]):
            groups.setdefault(file.variant, set()).add(name)
    return groups


def list_folder_variants(folder: str | os.PathLike) -> list[str | None]:
    """
    List the variants of the weights in a pipeline folder.

    Args:
        folder (`str` or `os.PathLike`): The pipeline folder.

    Returns:
        `list`: The variants of its `unet`, as [`list_variants`] returns them.
    """
    network = Path(folder, "unet")
    if not network.is_dir():
        return []
    return list_variants(path.name for path in network.iterdir())


def check_finite(pipeline: DiffusionPipeline, model: str | os.PathLike) -> None:
    """
    Refuse a pipeline whose networks have NaN or infinite weights.

    Args:
        pipeline ([`PFGMPPPipeline`]): The pipeline.
        model (`str` or `os.PathLike`): The model, for the error message.

    Raises:
        ValueError: A weight is NaN or infinite.
    """
    import torch

    for part, component in pipeline.components.items():
        if not isinstance(component, torch.nn.Module):
            continue
        for name, tensor in component.state_dict().items():
            if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                raise ValueError(
                    f"{model} cannot be used: its weights must be finite, but `{name}` of `{part}` holds NaN"
                    " or infinity, as after a training run that diverged."
                )
