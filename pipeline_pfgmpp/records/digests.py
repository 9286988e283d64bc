"""
Digests and descriptions: what images and figures depend on, so that what is kept is taken up again by the same work alone.
"""

import hashlib
import json
import os
from pathlib import Path

import torch
from diffusers import DiffusionPipeline

from .. import __version__


def derive_seed(*parts: int | str) -> int:
    """A seed of 63 bits for one purpose, from another seed and what tells the purpose from all others."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "little") >> 1


def digest_weights(pipeline: DiffusionPipeline) -> str:
    """
    Tells networks apart by what they hold, whatever the folder or the repository they come from.

    Args:
        pipeline ([`PFGMPPPipeline`]): The pipeline.

    Returns:
        `str`: A digest of the networks' weights as float32: weights that are stored in float16 and loaded in float32 are the
            same weights.
    """
    digest = hashlib.sha256()
    for part, component in sorted(pipeline.components.items()):
        if isinstance(component, torch.nn.Module):
            for name, tensor in sorted(component.state_dict().items()):
                digest.update(f"{part} {name} {tuple(tensor.shape)}".encode())
                digest.update(tensor.detach().to("cpu", torch.float32).contiguous().numpy())
    return digest.hexdigest()[:16]


def _public_config(component):
    return {name: value for name, value in component.config.items() if not name.startswith("_")}


def describe(pipeline: DiffusionPipeline, **settings) -> dict:
    """
    Lists what images depend on besides their seed.

    Args:
        pipeline ([`PFGMPPPipeline`]): What generates.
        settings: Arguments of its call.

    Returns:
        `dict`: The settings, the configurations of scheduler and network, the digest and the type of the weights, and the
            version of this package, as they come back from JSON.
    """
    scheduler = {"_class_name": type(pipeline.scheduler).__name__, **_public_config(pipeline.scheduler)}
    dtype = str(pipeline.unet.dtype).removeprefix("torch.")
    network = {"_class_name": type(pipeline.unet).__name__, **_public_config(pipeline.unet)}
    description = {
        **settings,
        "scheduler": scheduler,
        "network": network,
        "weights": digest_weights(pipeline),
    }
    return json.loads(json.dumps({**description, "dtype": dtype, "version": __version__}))


def default_output(kind: str, model: str | os.PathLike, description: dict) -> Path:
    """
    Names a folder for results: the same one for the same description, another one for any other.

    Args:
        kind (`str`): What the results are, such as `"evaluation"`.
        model (`str` or `os.PathLike`): The model, whose name the folder bears.
        description (`dict`): All that the results depend on, ready for JSON.

    Returns:
        `Path`: `outputs/KIND/NAME-DIGEST`.
    """
    text = json.dumps(description, sort_keys=True)
    return Path(
        "outputs", kind, f"{Path(model).resolve().name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    )


def list_differences(found: dict, wanted: dict) -> str:
    """
    Says in words how two descriptions differ.

    Args:
        found (`dict`): What is there.
        wanted (`dict`): What is asked for.

    Returns:
        `str`: Such as `"num_inference_steps is 18 there and 9 here"`; empty where they agree.
    """
    names = [name for name in {**found, **wanted} if found.get(name) != wanted.get(name)]
    parts = []
    for name in names:
        there, here = found.get(name), wanted.get(name)
        if isinstance(there, dict) and isinstance(here, dict):
            parts.append(list_differences(there, here))
        else:
            parts.append(f"{name} is {there} there and {here} here")
    return ", ".join(parts)
