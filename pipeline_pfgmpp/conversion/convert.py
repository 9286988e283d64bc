"""
Turns checkpoints that exist in the world into pipeline folders: the authors' PFGM++ and EDM files,
and diffusers' DDPM folders.

The published files are pickles of whole network objects with the source of their classes inside.
Nothing of that is run: the file is read by [`inert_pickle`], the tensors say which network it is,
and their names are those of [`PFGMPPUNet2DModel`].
"""

import contextlib
import hashlib
import inspect
import logging
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from diffusers import DiffusionPipeline, UNet2DModel

from ..hub.cards import write_model_card
from ..pipeline_pfgmpp import PFGMPPPipeline
from ..records.writing import replace_folder
from ..scheduling_pfgmpp import PFGMPPScheduler
from ..unet_ddpm import DDPMUNet2DModel
from ..unet_pfgmpp import PFGMPPUNet2DModel
from .inert_pickle import Record, load, rebuild_tensor, to_number


logger = logging.getLogger(__name__)

# The options of DDPMScheduler that make its noise levels.
DDPM_SCHEDULE = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "rescale_betas_zero_snr",
)

# Published networks nest five modules deep.
MAX_DEPTH = 32

PUBLISHED = """## Origin

Converted from `{name}` (SHA-256 `{digest}`), `{weights}` weights, without changing them{rounded}. The published PFGM++ and EDM
weights are under CC BY-NC-SA 4.0 (https://creativecommons.org/licenses/by-nc-sa/4.0/) and belong to their authors
([PFGM++](https://github.com/Newbeeer/pfgmpp), [EDM](https://github.com/NVlabs/edm)); if this file is your own, the licence is
yours to state.
"""

TRANSFERRED = """## Origin

The DDPM network `{name}` read through the transfer rule of PFGM++ (r = σ√D): its weights are unchanged, and its licence is that
of its source. At D = ∞ it samples as it is; at another D it is where fine-tuning starts.
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
    Converts a published PFGM++ or EDM file (`training-state-*.pt` or `.pkl`) into a pipeline folder.

    Args:
        checkpoint (`str` or `os.PathLike`): The file.
        output_dir (`str` or `os.PathLike`): The folder to write; it must not exist or be empty.
        dtype (`torch.dtype`, defaults to `torch.float32`): Type of the weights.
        weights (`str`, defaults to `"ema"`): `"ema"`, the average, or `"net"`, the network as trained.
        D (`float`, *optional*): Augmented dimension, for files that do not state it; `inf` is infinity.
        sigma_data (`float`, *optional*): Standard deviation of the data, for files that do not state it.

    Raises:
        OSError: A file cannot be read or written.
        ValueError: The file is cut off, hostile or of another kind, or lacks what must then be given.
    """
    if weights not in ("ema", "net"):
        raise ValueError(f"`weights` must be 'ema' or 'net', but is {weights!r}.")
    with _new_folder(output_dir) as folder:
        try:
            network = _find_network(load(checkpoint), weights)
            settings = {**network, **_entries(network.get("_init_kwargs"))}
            state, broken = {}, []
            for name, tensor in _tensors(network):
                if not all(extreme.isfinite() for extreme in tensor.aminmax()):
                    broken.append(name)
                # Frequencies stay exact; one at a time, so that a type at a time is in memory.
                state[name] = tensor if name == "map_noise.freqs" else tensor.to(dtype)
            unet = _build(
                state, {name: _number(settings, name) or 0.0 for name in ("dropout", "label_dropout")}
            )
        except ValueError as error:
            raise ValueError(f"{checkpoint} cannot be converted: {error}.") from None
        D = _dimension(D, settings, checkpoint)
        sigma_data = _agreed("sigma_data", sigma_data, _number(settings, "sigma_data"), checkpoint)
        if broken:
            logger.warning(
                "%s has NaN or infinite weights in %d tensors, the first %s.",
                checkpoint,
                len(broken),
                broken[0],
            )
        pipeline = PFGMPPPipeline(unet, PFGMPPScheduler(D=D, sigma_data=sigma_data))
        pipeline.save_pretrained(folder)
        digest = _sha256(checkpoint)
        rounded = (
            "" if dtype == torch.float32 else f" but for rounding to {str(dtype).removeprefix('torch.')}"
        )
        origin = PUBLISHED.format(name=Path(checkpoint).name, digest=digest, weights=weights, rounded=rounded)
        write_model_card(folder, pipeline, origin, license="cc-by-nc-sa-4.0")


def convert_diffusers(
    model: str | os.PathLike,
    output_dir: str | os.PathLike,
    dtype: torch.dtype = torch.float32,
    D: float | None = None,
) -> None:
    """
    Converts a DDPM of diffusers (`UNet2DModel` with a DDPM schedule, epsilon-prediction) into a
    pipeline folder.

    Args:
        model (`str` or `os.PathLike`): A Hub id or a pipeline folder.
        output_dir (`str` or `os.PathLike`): The folder to write; it must not exist or be empty.
        dtype (`torch.dtype`, defaults to `torch.float32`): Type of the weights.
        D (`float`, *optional*): Augmented dimension to fine-tune at; None is infinity, where the
            network is exact as it is.

    Raises:
        OSError: The model cannot be loaded, or the folder not written.
        ValueError: It is no DDPM that predicts epsilon.
    """
    with _new_folder(output_dir) as folder:
        source = DiffusionPipeline.from_pretrained(os.fspath(model), use_safetensors=True)  # never a pickle
        unet, scheduler = getattr(source, "unet", None), getattr(source, "scheduler", None)
        if type(unet) is not UNet2DModel or "beta_schedule" not in getattr(scheduler, "config", {}):
            raise ValueError(f"{model} cannot be converted: it is no UNet2DModel with a DDPM schedule.")
        prediction_type = scheduler.config.get("prediction_type", "epsilon")
        if prediction_type != "epsilon" or unet.config.out_channels != unet.config.in_channels:
            raise ValueError(
                f"{model} cannot be converted: its network predicts {prediction_type} or more, not epsilon alone."
            )
        schedule = {name: scheduler.config[name] for name in DDPM_SCHEDULE if name in scheduler.config}
        options = {name: unet.config[name] for name in inspect.signature(UNet2DModel).parameters}
        ddpm = DDPMUNet2DModel(ddpm_schedule=schedule, **options)
        ddpm.load_state_dict(unet.state_dict())
        sigma_min, sigma_max = ddpm.sigma_range
        new_scheduler = PFGMPPScheduler(D=D, sigma_min=sigma_min, sigma_max=sigma_max, sigma_data=1.0)
        pipeline = PFGMPPPipeline(ddpm.to(dtype), new_scheduler)
        pipeline.save_pretrained(folder)
        name = model if not Path(model).exists() else Path(model).resolve().name
        write_model_card(folder, pipeline, TRANSFERRED.format(name=name))


@contextlib.contextmanager
def _new_folder(output_dir) -> Iterator[Path]:
    """Fills a folder, which must not exist or be empty."""
    path = Path(output_dir)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"`output_dir` {path.resolve().name} exists and is not empty; name a new folder.")
    with replace_folder(path) as folder:
        yield folder


def _entries(value):
    """A dictionary, or what a pickled object of a dictionary's class holds."""
    if isinstance(value, Record):
        value = value.items
    return value if isinstance(value, dict) else {}


def _described(value):
    """The description that a pickled network object is made from: `class_name`, `state` and more."""
    if (
        isinstance(value, Record)
        and value.name.endswith("_reconstruct_persistent_obj")
        and len(value.args or ()) == 1
    ):
        return _entries(value.args[0])
    return {}


def _find_network(root, weights):
    """The attributes of the checkpoint's network."""
    root = _entries(root)
    network = _described(root.get(weights))
    if not network:
        found = [name for name in ("ema", "net") if _described(root.get(name))]
        if found:
            raise ValueError(f"it holds no {weights!r} weights, only {found[0]!r}")
        raise ValueError("it is no checkpoint of PFGM++ or EDM: it holds no network")
    if network.get("class_name") != "EDMPrecond":
        raise ValueError(
            f"its network is a {network.get('class_name')}, and only EDMPrecond has EDM's preconditioning"
        )
    return _entries(network.get("state"))


def _tensors(module, prefix="", depth=0):
    """
    Names and tensors of a pickled module and of those inside it, without the preconditioner's own
    `model.`.
    """
    if depth > MAX_DEPTH:
        raise ValueError("its modules are nested too deeply")
    for kind in ("_parameters", "_buffers"):
        for name, record in _entries(module.get(kind)).items():
            if record is not None:
                yield f"{prefix}{name}".removeprefix("model."), rebuild_tensor(record)
    for name, child in _entries(module.get("_modules")).items():
        inner = _described(child).get("state") if _described(child) else getattr(child, "state", None)
        yield from _tensors(_entries(inner), f"{prefix}{name}.", depth + 1)


def _number(settings, name):
    value = settings.get(name)
    return None if value is None else to_number(value)


def _dimension(given, settings, checkpoint):
    """
    D as the file states it or else as given; EDM's files hold neither `D` nor `pfgmpp`, and are at
    infinity.
    """
    stated = _number(settings, "D")
    if "pfgmpp" in settings and not settings["pfgmpp"]:
        stated = math.inf
    elif stated is None and "pfgmpp" not in settings and given is None:
        return math.inf
    return _agreed("D", given, stated, checkpoint)


def _agreed(name, given, stated, checkpoint):
    if given is None and stated is None:
        raise ValueError(
            f"{checkpoint} does not state `{name}`; give it (--{name.replace('_', '-')} on the command line)."
        )
    if given is not None and stated is not None and given != stated:
        raise ValueError(f"`{name}` is given as {given:g}, but {checkpoint} states {stated:g}; leave it out.")
    return stated if given is None else given


def _build(state, options):
    """The network that the names and shapes of the tensors describe, around these tensors."""
    try:
        with torch.device("meta"):
            unet = PFGMPPUNet2DModel(**_read_architecture(state), **options)
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError):
        raise ValueError("its tensors are not those of DDPM++, NCSN++ or ADM") from None
    expected = unet.state_dict()
    for name in sorted(expected.keys() | state.keys()):
        if name not in state:
            raise ValueError(f"the tensor {name} is missing")
        if name not in expected:
            raise ValueError(f"the tensor {name} does not belong to DDPM++, NCSN++ or ADM")
        if state[name].shape != expected[name].shape:
            shapes = f"{tuple(state[name].shape)} instead of {tuple(expected[name].shape)}"
            raise ValueError(f"the tensor {name} is of shape {shapes}")
    unet.load_state_dict(state, assign=True)  # in place of the meta device's, without a copy
    return unet.eval()


def _read_architecture(state):
    """Options of [`PFGMPPUNet2DModel`] from the names and shapes of a published network's tensors."""
    blocks = {}  # by resolution, the finest first
    for name in state:
        if found := re.match(r"enc\.(\d+)x\d+_block(\d+)\.", name):
            blocks.setdefault(int(found[1]), set()).add(int(found[2]))
    resolutions = sorted(blocks, reverse=True)
    size = resolutions[0]
    emb_channels, noise_channels = state["map_layer0.weight"].shape
    model_channels = emb_channels // 4
    filters = [tensor for name, tensor in state.items() if name.endswith(".resample_filter")]
    taps = filters[0][0, 0].sum(0) if filters else torch.ones(2)
    labels, augment = state.get("map_label.weight"), state.get("map_augment.weight")
    return {
        "sample_size": size,
        "in_channels": state[f"enc.{size}x{size}_conv.weight"].shape[1],
        "out_channels": state.get("out_conv.weight", state.get(f"dec.{size}x{size}_aux_conv.weight")).shape[
            0
        ],
        "model_type": "DhariwalUNet" if "out_conv.weight" in state else "SongUNet",
        "model_channels": model_channels,
        "channel_mult": [
            state[f"enc.{r}x{r}_block0.conv1.weight"].shape[0] // model_channels for r in resolutions
        ],
        "num_blocks": len(blocks[size]),
        "attn_resolutions": [r for r in resolutions if f"enc.{r}x{r}_block0.qkv.weight" in state],
        "label_dim": 0 if labels is None else labels.shape[1],
        "augment_dim": 0 if augment is None else augment.shape[1],
        "embedding_type": "fourier" if "map_noise.freqs" in state else "positional",
        "channel_mult_noise": noise_channels // model_channels,
        "encoder_type": "residual" if any("aux_residual" in name for name in state) else "standard",
        "resample_filter": (taps / taps.min()).round().int().tolist(),
    }


def _sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
