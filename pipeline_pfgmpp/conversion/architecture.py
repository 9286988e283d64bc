"""Networks of the published kinds, built from the names and shapes of their tensors alone."""

import re
from collections.abc import Mapping
from typing import Any

import torch

from ..unet_pfgmpp import PFGMPPUNet2DModel


def build_network(state: Mapping[str, torch.Tensor], options: Mapping[str, Any]) -> PFGMPPUNet2DModel:
    """
    Build the network that tensors belong to, around these tensors.

    Args:
        state (`Mapping[str, torch.Tensor]`): The tensors by their published names.
        options (`Mapping[str, Any]`): Options that the tensors do not determine, such as `dropout`.

    Returns:
        [`PFGMPPUNet2DModel`]: The network; it shares the memory of the tensors.

    Raises:
        ValueError: The tensors are not those of a DDPM++, NCSN++ or ADM network.
    """
    try:
        with torch.device("meta"):
            unet = PFGMPPUNet2DModel(**read_architecture(state), **options)
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
    unet.load_state_dict(state, assign=True)  # takes the tensors themselves, without a copy
    return unet.eval()


def read_architecture(state: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """
    Read the options of a network from the names and shapes of its tensors.

    Args:
        state (`Mapping[str, torch.Tensor]`): The tensors by their published names.

    Returns:
        `dict[str, Any]`: Options of [`PFGMPPUNet2DModel`].

    Raises:
        LookupError or ValueError: Tensors of a published network are missing or of a wrong shape.
    """
    blocks: dict[tuple[int, int], set[str]] = {}  # the blocks of each level, by its height and width
    for name in state:
        found = re.match(r"enc\.(\d+)x(\d+)_block(\d+)\.", name)
        if found:
            blocks.setdefault((int(found[1]), int(found[2])), set()).add(found[3])
    sizes = sorted(blocks, reverse=True)
    levels = [f"{height}x{width}" for height, width in sizes]
    first = levels[0]
    height, width = sizes[0]
    emb_channels, noise_channels = state["map_layer0.weight"].shape
    model_channels = emb_channels // 4
    channels = [state[f"enc.{level}_block0.conv1.weight"].shape[0] for level in levels]
    is_adm = "out_conv.weight" in state
    last = "out_conv.weight" if is_adm else f"dec.{first}_aux_conv.weight"
    # A network that restores images takes the degraded image beside as many channels as it returns.
    in_channels = state[last].shape[0]
    has_residual_skips = any("aux_residual" in name for name in state)
    return {
        "sample_size": height if height == width else (height, width),
        "in_channels": in_channels,
        "out_channels": in_channels,
        "condition_channels": state[f"enc.{first}_conv.weight"].shape[1] - in_channels,
        "model_type": "DhariwalUNet" if is_adm else "SongUNet",
        "model_channels": model_channels,
        "channel_mult": [count // model_channels for count in channels],
        "num_blocks": len(blocks[sizes[0]]),
        "attn_resolutions": [
            min(size) for size, level in zip(sizes, levels) if f"enc.{level}_block0.qkv.weight" in state
        ],
        "label_dim": _count_inputs(state, "map_label.weight"),
        "augment_dim": _count_inputs(state, "map_augment.weight"),
        "embedding_type": "fourier" if "map_noise.freqs" in state else "positional",
        "channel_mult_noise": noise_channels // model_channels,
        "encoder_type": "residual" if has_residual_skips else "standard",
        "resample_filter": _read_filter(state),
    }


def _count_inputs(state: Mapping[str, torch.Tensor], name: str) -> int:
    return state[name].shape[1] if name in state else 0


def _read_filter(state: Mapping[str, torch.Tensor]) -> list[int]:
    """Read the taps of the resampling filter, whose smallest is 1."""
    for name, tensor in state.items():
        if name.endswith(".resample_filter"):
            taps = tensor[0, 0].sum(0)
            return (taps / taps.min()).round().int().tolist()
    return [1, 1]
