"""The autoencoder of a training run on latents."""

import argparse
from typing import Any

from accelerate import Accelerator
from diffusers import AutoModel, DiffusionPipeline, ModelMixin

from ..latents import check_autoencoder
from ..pipeline_pfgmpp import PFGMPPPipeline
from ..records.digests import digest_network
from ..records.errors import get_first_line
from .arguments import check_encoded


def load_autoencoder(name: str, accelerator: Accelerator) -> ModelMixin:
    """
    Load an autoencoder, in the main process first.

    Args:
        name (`str`): Its folder or Hub id, or those of a pipeline that holds one as `vae`.
        accelerator (`Accelerator`): The processes.

    Returns:
        `ModelMixin`: The autoencoder.

    Raises:
        ValueError: It cannot be loaded, or is no autoencoder of images.
    """
    try:
        with accelerator.main_process_first():
            vae = AutoModel.from_pretrained(name, **_find_autoencoder(name))
        check_autoencoder(vae)
    except Exception as error:  # also damaged weights, or a configuration that its class does not accept
        reason = get_first_line(error)
        raise ValueError(f"--vae_model_name_or_path {name} cannot be used: {reason}") from None
    return vae


def _find_autoencoder(name: str) -> dict[str, str]:
    """Return where in a folder or repository the autoencoder lies, or raise an error if it holds none."""
    try:
        config = DiffusionPipeline.load_config(name)
    except (OSError, ValueError):  # it is the autoencoder itself
        return {}
    if None in config.get("vae", [None]):  # as diffusers writes a component that was not given
        raise ValueError("it is a pipeline without a `vae`.")
    return {"subfolder": "vae"}


def is_same_autoencoder(first: Any | None, second: Any | None) -> bool:
    """
    Tell whether two networks see the same latents.

    Args:
        first (`ModelMixin` or `None`): An autoencoder; None is none.
        second (`ModelMixin` or `None`): Another one.

    Returns:
        `bool`: Whether both are none, or have the same configuration and weights.
    """
    if first is None or second is None:
        return first is second
    return digest_network(first) == digest_network(second)


def choose_autoencoder(
    args: argparse.Namespace, accelerator: Accelerator, pretrained: PFGMPPPipeline | None
) -> ModelMixin | None:
    """
    Choose the autoencoder of a run, if there is one, and take over the channels of its images.

    Args:
        args (`argparse.Namespace`): The arguments of train_accelerate.py, of which those about channels are
            set.
        accelerator (`Accelerator`): The processes.
        pretrained ([`PFGMPPPipeline`], *optional*): The pipeline to fine-tune, which may hold one.

    Returns:
        `ModelMixin` or `None`: The autoencoder.

    Raises:
        ValueError: It cannot be loaded, or does not fit the pretrained network or the arguments.
    """
    own = pretrained and pretrained.vae
    name = args.vae_model_name_or_path
    if name and pretrained is not None and own is None:
        raise ValueError(
            f"--vae_model_name_or_path has no effect: the network of {args.pretrained_model_name_or_path}"
            " takes images themselves; leave it out, or train a new network."
        )
    vae = load_autoencoder(name, accelerator) if name else own
    if vae is None:
        return None
    if own is not None and not is_same_autoencoder(vae, own):
        raise ValueError(
            f"--vae_model_name_or_path {name} is another autoencoder than that of"
            f" {args.pretrained_model_name_or_path}: leave it out."
        )
    check_encoded(args)
    channels = vae.config.in_channels
    for option in ("channels", "condition_channels"):
        if getattr(args, option) not in (None, channels):
            raise ValueError(f"--{option} is {getattr(args, option)}, but the autoencoder takes {channels}.")
    args.channels = channels
    args.condition_channels = channels if args.condition_column else None
    return vae
