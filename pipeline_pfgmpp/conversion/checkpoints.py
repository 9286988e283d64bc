"""
The authors' PFGM++, EDM and PPFM files, converted into pipeline folders.

The published files are pickles of whole network objects, with the source of their classes inside. None
of it is run: [`inert_pickle`] reads the file, its tensors tell which network it holds, and their names
are those of [`PFGMPPUNet2DModel`].
"""

import itertools
import logging
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from ..hub.cards import write_model_card
from ..pipeline_pfgmpp import PFGMPPPipeline
from ..pipeline_pfgmpp_restoration import PFGMPPRestorationPipeline
from ..records.digests import digest_file
from ..scheduling_pfgmpp import PFGMPPScheduler
from ..unet_pfgmpp import PFGMPPUNet2DModel
from .architecture import build_network
from .inert_pickle import Record
from .output import create_folder, describe_rounding
from .torch_files import load, rebuild_tensor, to_number


logger = logging.getLogger(__name__)

MAX_DEPTH = 32  # of nested modules; published networks have five levels
MAX_MODULES = 100_000  # a small file may hold one module many times; published networks have some hundred
# The published kinds of networks, with the images that enter each: the noisy one, and PPFM's degraded one.
KINDS = {"SongUNet": 1, "DhariwalUNet": 1, "cSongUNet": 2, "cDhariwalUNet": 2}
# How PPFM samples (https://huggingface.co/papers/2312.09754); its files do not state it.
PPFM_SCHEDULE: dict[str, Any] = {"sigma_max": 380.0, "solver_type": "euler", "default_steps": 8}
PPFM_HIJACKED = 1  # steps that are left of these 8 after the best published "hijacking"
PPFM_WEIGHT = 0.7  # of the denoised image in its blend with the degraded one

ORIGIN = """## Origin

The `{weights}` weights of `{name}` (SHA-256 `{digest}`), {rounding}. The published {names} weights
belong to their authors ({links})
and are under CC BY-NC-SA 4.0 (https://creativecommons.org/licenses/by-nc-sa/4.0/). If the file is your own,
you may state another licence.
"""
AUTHORS = {
    "names": "PFGM++ and EDM",
    "links": "[PFGM++](https://github.com/Newbeeer/pfgmpp), [EDM](https://github.com/NVlabs/edm)",
}
PPFM_AUTHORS = {"names": "PPFM", "links": "[PPFM](https://huggingface.co/papers/2312.09754)"}

RESTORATION = """
## Restoration

{values} The steps lead from σ = {sigma_max:g} to {sigma_min:g}. The best published results, at D = 64, take
one call that starts from the degraded image:

```python
hijack = {{"num_inference_steps": 1, "start_sigma": {start_sigma:.8g}, "blend": {blend:.6g}}}
restored = pipe(image=degraded, **hijack).images
```
"""
STATED_VALUES = (
    "Images have values in [{low:g}, {high:g}]: the smallest and the largest of the training data."
)
UNSTATED_VALUES = """Images have values in [0, 1], which stand for the smallest and the largest value of the
training data. The file does not state those; `pfgmpp convert --value-range` writes them into the model."""
LIMITS = """Details of a restored image may come from the training data and not from the degraded image. The
model is meant for research, and is no medical device."""


def convert_checkpoint(
    checkpoint: str | os.PathLike,
    output_dir: str | os.PathLike,
    dtype: torch.dtype = torch.float32,
    weights: str = "ema",
    D: float | None = None,
    sigma_data: float | None = None,
    value_range: tuple[float, float] | None = None,
) -> None:
    """
    Convert a published PFGM++, EDM or PPFM file (`training-state-*.pt` or `.pkl`) into a pipeline folder.

    PPFM's networks are conditioned on a degraded image and become a [`PFGMPPRestorationPipeline`].

    Args:
        checkpoint (`str` or `os.PathLike`): The file.
        output_dir (`str` or `os.PathLike`): The folder to write; it must not exist or be empty.
        dtype (`torch.dtype`, defaults to `torch.float32`): Type of the weights.
        weights (`str`, defaults to `"ema"`): `"ema"` for the average, `"net"` for the network as trained.
        D (`float`, *optional*): Augmented dimension, for files that do not state it; `inf` is infinity.
        sigma_data (`float`, *optional*): Standard deviation of the data, for files that do not state it.
        value_range (`tuple[float, float]`, *optional*): The data's own values of black and white, such as
            Hounsfield units, which files do not state. None is [0, 1].

    Raises:
        OSError: The file cannot be read, or the folder cannot be written.
        ValueError: The file is cut off, hostile or of another kind, `D` or `sigma_data` is missing or
            contradicts the file, `value_range` is no range, or the folder is not empty.
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
        restores = bool(unet.config.condition_channels)
        pipeline_class = PFGMPPRestorationPipeline if restores else PFGMPPPipeline
        schedule = PPFM_SCHEDULE if restores else {}
        scheduler = PFGMPPScheduler(D=D, sigma_data=sigma_data, **schedule)
        pipeline = pipeline_class(unet, scheduler, value_range=value_range)
        pipeline.save_pretrained(folder)
        origin = ORIGIN.format(
            weights=weights,
            name=Path(checkpoint).name,
            digest=digest_file(checkpoint),
            rounding=describe_rounding(dtype),
            **(PPFM_AUTHORS if restores else AUTHORS),
        )
        metadata = {"license": "cc-by-nc-sa-4.0"}
        if restores:
            origin += _describe_restoration(pipeline)
            metadata["limits"] = LIMITS
        write_model_card(folder, pipeline, origin, **metadata)


def _describe_restoration(pipeline: PFGMPPPipeline) -> str:
    """Describe for a card the values of images, and the best published way to restore them."""
    values = UNSTATED_VALUES
    if pipeline.config.value_range:
        low, high = pipeline.config.value_range
        values = STATED_VALUES.format(low=low, high=high)
    scheduler = pipeline.scheduler
    scheduler.set_timesteps(scheduler.config.default_steps)
    start_sigma, end_sigma = scheduler.sigmas[-2 - PPFM_HIJACKED : -1].tolist()
    # Euler's step from one to the other and the blend with weight w are a blend with the denoised image.
    return RESTORATION.format(
        values=values,
        sigma_min=scheduler.config.sigma_min,
        sigma_max=scheduler.config.sigma_max,
        start_sigma=start_sigma,
        blend=PPFM_WEIGHT * (1 - end_sigma / start_sigma),
    )


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
    _check_kind(unet, settings.get("model_type"))
    if not_finite:
        logger.warning(
            "%s has NaN or infinite weights in %d tensors, the first %s.",
            checkpoint,
            len(not_finite),
            not_finite[0],
        )
    return unet, settings


def _check_kind(unet: PFGMPPUNet2DModel, kind: object) -> None:
    """Refuse a network whose tensors are not those of the kind that its file states."""
    if not isinstance(kind, str) or kind not in KINDS:
        return
    inputs = unet.config.in_channels + unet.config.condition_channels
    expected = KINDS[kind] * unet.config.in_channels
    if inputs != expected:
        raise ValueError(
            f"its network is a {kind}, whose first convolution has {inputs} inputs instead of {expected}"
        )


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


def _list_tensors(
    module: Mapping, prefix: str = "", visited: Iterator[int] | None = None
) -> Iterator[tuple[str, torch.Tensor]]:
    """List the tensors of a pickled module by name, without the preconditioner's own prefix `model.`."""
    visited = visited or itertools.count()
    if prefix.count(".") > MAX_DEPTH or next(visited) > MAX_MODULES:
        raise ValueError("its modules are nested too deeply, or too many")
    for kind in ("_parameters", "_buffers"):
        for name, record in _get_entries(module.get(kind)).items():
            if record is not None:
                yield f"{prefix}{name}".removeprefix("model."), rebuild_tensor(record)
    for name, child in _get_entries(module.get("_modules")).items():
        description = _get_description(child)
        attributes = description.get("state") if description else getattr(child, "state", None)
        yield from _list_tensors(_get_entries(attributes), f"{prefix}{name}.", visited)


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
