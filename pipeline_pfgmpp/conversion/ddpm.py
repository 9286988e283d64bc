"""DDPM folders of diffusers, read through the transfer rule of PFGM++."""

import inspect
import os
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, UNet2DModel

from ..hub.cards import write_model_card
from ..pipeline_pfgmpp import PFGMPPPipeline
from ..records.errors import get_first_line
from ..scheduling_pfgmpp import PFGMPPScheduler
from ..unet_ddpm import DDPMUNet2DModel
from .output import create_folder, describe_rounding


# The options of DDPMScheduler that determine its noise levels.
DDPM_SCHEDULE = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "rescale_betas_zero_snr",
)

ORIGIN = """## Origin

The DDPM network `{name}`, read through the transfer rule of PFGM++ (r = σ√D). Its weights are {weights},
and the licence of their source applies. At D = ∞ the network samples as it is; at another D it is a starting
point for fine-tuning.
"""


def convert_diffusers(
    model: str | os.PathLike,
    output_dir: str | os.PathLike,
    dtype: torch.dtype = torch.float32,
    D: float | None = None,
) -> None:
    """
    Convert a DDPM of diffusers into a pipeline folder.

    Args:
        model (`str` or `os.PathLike`): A Hub id or a pipeline folder, with a `UNet2DModel` that predicts
            epsilon and a DDPM schedule.
        output_dir (`str` or `os.PathLike`): The folder to write; it must not exist or be empty.
        dtype (`torch.dtype`, defaults to `torch.float32`): Type of the weights.
        D (`float`, *optional*): Augmented dimension to fine-tune at. None is infinity, where the network
            is exact without fine-tuning.

    Raises:
        OSError: The model cannot be loaded, or the folder cannot be written.
        ValueError: The model is not a DDPM that predicts epsilon, or the folder is not empty.
    """
    with create_folder(output_dir) as folder:
        source = _load_source(os.fspath(model))
        unet = _transfer_network(source, model).to(dtype)
        sigma_min, sigma_max = unet.sigma_range
        scheduler = PFGMPPScheduler(D=D, sigma_min=sigma_min, sigma_max=sigma_max, sigma_data=1.0)
        pipeline = PFGMPPPipeline(unet, scheduler)
        pipeline.save_pretrained(folder)
        name = Path(model).resolve().name if Path(model).exists() else model
        origin = ORIGIN.format(name=name, weights=describe_rounding(dtype))
        write_model_card(folder, pipeline, origin)


def _load_source(model: str) -> DiffusionPipeline:
    try:
        return DiffusionPipeline.from_pretrained(model, use_safetensors=True)  # never a pickle
    except OSError:
        raise
    except Exception as error:  # a class that is not there, or a configuration that it does not accept
        raise ValueError(f"{model} cannot be loaded: {get_first_line(error)}") from None


def _transfer_network(source: DiffusionPipeline, model: str | os.PathLike) -> DDPMUNet2DModel:
    unet: Any = getattr(source, "unet", None)
    scheduler: Any = getattr(source, "scheduler", None)
    if type(unet) is not UNet2DModel or "beta_schedule" not in getattr(scheduler, "config", {}):
        raise ValueError(f"{model} cannot be converted: it is not a UNet2DModel with a DDPM schedule.")
    prediction_type = scheduler.config.get("prediction_type", "epsilon")
    if prediction_type != "epsilon" or unet.config.out_channels != unet.config.in_channels:
        raise ValueError(
            f"{model} cannot be converted: its network predicts {prediction_type} with"
            f" {unet.config.out_channels} channels, but must predict epsilon with {unet.config.in_channels}."
        )
    schedule = {name: scheduler.config[name] for name in DDPM_SCHEDULE if name in scheduler.config}
    options = {name: unet.config[name] for name in inspect.signature(UNet2DModel).parameters}
    ddpm = DDPMUNet2DModel(ddpm_schedule=schedule, **options)
    ddpm.load_state_dict(unet.state_dict())
    return ddpm
