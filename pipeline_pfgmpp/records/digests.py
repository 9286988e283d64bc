"""
What results depend on, as descriptions and their digests.

Images and figures are stored under a description of everything that they depend on, so that an
interrupted run resumes with its own results and never with those of another.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline

from .. import __version__


def derive_seed(*parts: int | str) -> int:
    """
    Derive the seed for one purpose from another seed.

    Args:
        parts (`int` or `str`): The other seed, and what distinguishes the purpose from all others.

    Returns:
        `int`: A seed of 63 bits.
    """
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "little") >> 1


def digest_weights(pipeline: DiffusionPipeline) -> str:
    """
    Digest the weights of a pipeline's networks, whatever folder or repository they come from.

    Args:
        pipeline ([`PFGMPPPipeline`]): The pipeline.

    Returns:
        `str`: A digest of the weights as float32, so that weights stored in float16 and loaded in
            float32 are the same weights.
    """
    digest = hashlib.sha256()
    for part, component in sorted(pipeline.components.items()):
        if isinstance(component, torch.nn.Module):
            _add_weights(digest, part, component)
    return digest.hexdigest()[:16]


def digest_network(network: Any) -> str:
    """
    Digest the configuration and the weights of a network, wherever they come from.

    Args:
        network (`ModelMixin`): The network.

    Returns:
        `str`: The digest, in which weights count as float32.
    """
    described = json.dumps(_describe_component(network), sort_keys=True, default=str)
    digest = hashlib.sha256(described.encode())
    _add_weights(digest, "", network)
    return digest.hexdigest()[:16]


def _add_weights(digest: Any, part: str, network: torch.nn.Module) -> None:
    """Add names, shapes and values of a network's weights to a digest."""
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{part} {name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().to("cpu", torch.float32).contiguous().numpy())


def _describe_component(component: Any) -> dict:
    public = {name: value for name, value in component.config.items() if not name.startswith("_")}
    if public.get("preconditioning") == "edm":
        del public["preconditioning"]  # which descriptions from before there was a choice do not state
    return {"_class_name": type(component).__name__, **public}


def describe(pipeline: DiffusionPipeline, **settings: Any) -> dict:
    """
    Describe everything that images depend on besides their seed.

    Args:
        pipeline ([`PFGMPPPipeline`]): The pipeline that generates them.
        settings: Arguments of its call.

    Returns:
        `dict`: The settings, the configurations of scheduler, network and autoencoder, digest and type of the
            weights, the names of the classes and the range of values if there are any, and the version of
            this package, as JSON represents them.
    """
    description = {
        **settings,
        "scheduler": _describe_component(pipeline.scheduler),
        "network": _describe_component(pipeline.unet),
        "weights": digest_weights(pipeline),
        "dtype": str(pipeline.unet.dtype).removeprefix("torch."),
        "version": __version__,
    }
    if pipeline.components.get("vae") is not None:
        description["autoencoder"] = _describe_component(pipeline.vae)
    for name in ("id2label", "value_range"):
        if pipeline.config.get(name):
            description[name] = pipeline.config[name]
    return json.loads(json.dumps(description))


def digest_file(path: str | os.PathLike) -> str:
    """
    Digest the content of a file, without loading it whole.

    Args:
        path (`str` or `os.PathLike`): The file.

    Returns:
        `str`: SHA-256 in hexadecimal.
    """
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def default_output(kind: str, model: str | os.PathLike, description: dict) -> Path:
    """
    Name a folder for results: always the same one for the same description.

    Args:
        kind (`str`): Kind of results, such as `"evaluation"`.
        model (`str` or `os.PathLike`): The model; its name is part of the folder's.
        description (`dict`): Everything that the results depend on, ready for JSON.

    Returns:
        `Path`: `outputs/KIND/NAME-DIGEST`.
    """
    text = json.dumps(description, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return Path("outputs", kind, f"{Path(model).resolve().name}-{digest}")


def list_differences(found: dict, wanted: dict) -> str:
    """
    Put the differences between two descriptions into words.

    Args:
        found (`dict`): The description of stored results.
        wanted (`dict`): The description of the results asked for.

    Returns:
        `str`: Such as `"num_inference_steps is 18 there and 9 here"`; empty if they agree.
    """
    parts = []
    for name in {**found, **wanted}:
        there = found.get(name)
        here = wanted.get(name)
        if there == here:
            continue
        if isinstance(there, dict) and isinstance(here, dict):
            parts.append(list_differences(there, here))
        else:
            parts.append(f"{name} is {there} there and {here} here")
    return ", ".join(parts)
