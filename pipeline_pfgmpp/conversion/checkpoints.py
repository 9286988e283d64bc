"""
The authors' PFGM++ and EDM files, converted into pipeline folders.

The published files are pickles of whole network objects, with the source of their classes inside. None
of it is run: [`inert_pickle`] reads the file, its tensors tell which network it holds, and their names
are those of [`PFGMPPUNet2DModel`].
"""

import hashlib
import logging
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from ..hub.cards import write_model_card
from ..pipeline_pfgmpp import PFGMPPPipeline
from ..scheduling_pfgmpp import PFGMPPScheduler
from ..unet_pfgmpp import PFGMPPUNet2DModel
from .architecture import build_network
from .inert_pickle import Record
from .output import create_folder, describe_rounding
from .torch_files import load, rebuild_tensor, to_number


logger = logging.getLogger(__name__)

MAX_DEPTH = 32  # of nested modules; published networks have five levels

ORIGIN = """## Origin

The `{weights}` weights of `{name}` (SHA-256 `{digest}`), {rounding}. The published PFGM++ and EDM weights
belong to their authors ([PFGM++](https://github.com/Newbeeer/pfgmpp), [EDM](https://github.com/NVlabs/edm))
and are under CC BY-NC-SA 4.0 (https://creativecommons.org/licenses/by-nc-sa/4.0/). If the file is your own,
you may state another licence.
"""


def convert_checkpoint(
    checkpoint: str | os.PathLike,
    output_dir: str | os.PathLike,
    dtype: torch.dtype = torch.float32,
    weights: str = "ema",
    D: float | None = None,
    sigma_data: float | None = None,
) -> None:
    """
    Convert a published PFGM++ or EDM file (`training-state-*.pt` or `.pkl`) into a pipeline folder.

    Args:
        checkpoint (`str` or `os.PathLike`): The file.
        output_dir (`str` or `os.PathLike`): The folder to write; it must not exist or be empty.
        dtype (`torch.dtype`, defaults to `torch.float32`): Type of the weights.
        weights (`str`, defaults to `"ema"`): `"ema"` for the average, `"net"` for the network as trained.
        D (`float`, *optional*): Augmented dimension, for files that do not state it; `inf` is infinity.
        sigma_data (`float`, *optional*): Standard deviation of the data, for files that do not state it.

    Raises:
        OSError: The file cannot be read, or the folder cannot be written.
        ValueError: The file is cut off, hostile or of another kind, `D` or `sigma_data` is missing or
            contradicts the file, or the folder is not empty.
    """
    if weights not in ("ema", "net"):
        raise ValueError(f"`weights` must be 'ema' or 'net', but is {weights!r}.")
    with create_folder(output_dir) as folder:
        try:
            unet, settings = _read_network(checkpoint, weights, dtype)
            stated_sigma_data = _get_number(settings, "sigma_data")
        except ValueError as error:
            raise ValueError(f"{checkpoint} cannot be converted: {error}.") from None
        D = _choose_dimension(D, settings, checkpoint)
        sigma_data = _choose("sigma_data", sigma_data, stated_sigma_data, checkpoint)
        pipeline = PFGMPPPipeline(unet, PFGMPPScheduler(D=D, sigma_data=sigma_data))
        pipeline.save_pretrained(folder)
        origin = ORIGIN.format(
            weights=weights,
            name=Path(checkpoint).name,
            digest=_digest_file(checkpoint),
            rounding=describe_rounding(dtype),
        )
        write_model_card(folder, pipeline, origin, license="cc-by-nc-sa-4.0")


def _read_network(
    checkpoint: str | os.PathLike, weights: str, dtype: torch.dtype
) -> tuple[PFGMPPUNet2DModel, dict[str, Any]]:
    """Read the network of a file, and the settings that the file states."""
    network = _find_network(load(checkpoint), weights)
    settings = {**network, **_get_entries(network.get("_init_kwargs"))}
    state = {}
    not_finite = []
    for name, tensor in _list_tensors(network):
        if not all(extreme.isfinite() for extreme in tensor.aminmax()):
            not_finite.append(name)
        # Converted one at a time, so that memory holds only one copy. Frequencies stay exact.
        state[name] = tensor if name == "map_noise.freqs" else tensor.to(dtype)
    options = {name: _get_number(settings, name) or 0.0 for name in ("dropout", "label_dropout")}
    unet = build_network(state, options)
    if not_finite:
        logger.warning(
            "%s has NaN or infinite weights in %d tensors, the first %s.",
            checkpoint,
            len(not_finite),
            not_finite[0],
        )
    return unet, settings


def _find_network(root: object, weights: str) -> dict:
    """Find the attributes of the checkpoint's network."""
    entries = _get_entries(root)
    network = _get_description(entries.get(weights))
    if not network:
        for other in ("ema", "net"):
            if _get_description(entries.get(other)):
                raise ValueError(f"it holds no {weights!r} weights, only {other!r}")
        raise ValueError("it is not a checkpoint of PFGM++ or EDM: it holds no network")
    class_name = network.get("class_name")
    if class_name != "EDMPrecond":
        raise ValueError(f"its network is a {class_name}, and only EDMPrecond has EDM's preconditioning")
    return _get_entries(network.get("state"))


def _get_entries(value: object) -> dict:
    """Return a dictionary, or the entries of a pickled object of a dictionary's class."""
    if isinstance(value, Record):
        return value.items
    return value if isinstance(value, dict) else {}


def _get_description(value: object) -> dict:
    """Return what a pickled network object is made from: `class_name`, `state` and more."""
    if not isinstance(value, Record) or not value.name.endswith("_reconstruct_persistent_obj"):
        return {}
    args = value.args or ()
    return _get_entries(args[0]) if len(args) == 1 else {}


def _list_tensors(module: Mapping, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, torch.Tensor]]:
    """List the tensors of a pickled module by name, without the preconditioner's own prefix `model.`."""
    if depth > MAX_DEPTH:
        raise ValueError("its modules are nested too deeply")
    for kind in ("_parameters", "_buffers"):
        for name, record in _get_entries(module.get(kind)).items():
            if record is not None:
                yield f"{prefix}{name}".removeprefix("model."), rebuild_tensor(record)
    for name, child in _get_entries(module.get("_modules")).items():
        description = _get_description(child)
        attributes = description.get("state") if description else getattr(child, "state", None)
        yield from _list_tensors(_get_entries(attributes), f"{prefix}{name}.", depth + 1)


def _get_number(settings: Mapping[str, Any], name: str) -> float | None:
    value = settings.get(name)
    return None if value is None else to_number(value)


def _choose_dimension(
    given: float | None, settings: Mapping[str, Any], checkpoint: str | os.PathLike
) -> float:
    """
    Choose D as the file states it, or else as given.

    EDM's files hold neither `D` nor `pfgmpp`, and are at infinity.
    """
    stated = _get_number(settings, "D")
    if "pfgmpp" in settings and not settings["pfgmpp"]:
        stated = math.inf
    elif stated is None and "pfgmpp" not in settings and given is None:
        return math.inf
    return _choose("D", given, stated, checkpoint)


def _choose(name: str, given: float | None, stated: float | None, checkpoint: str | os.PathLike) -> float:
    """Choose the value that is given or stated by the file; refuse two that differ, and none."""
    if given is not None and stated is not None and given != stated:
        raise ValueError(f"`{name}` is given as {given:g}, but {checkpoint} states {stated:g}: leave it out.")
    value = given if stated is None else stated
    if value is None:
        option = name.replace("_", "-")
        raise ValueError(f"{checkpoint} does not state `{name}`: give it (--{option} on the command line).")
    return value


def _digest_file(path: str | os.PathLike) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
