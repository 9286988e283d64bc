"""PFGM++ for the Hugging Face ecosystem: noise, scheduler, networks and pipeline for any augmented dimension D."""

import sys

import diffusers
from diffusers.pipelines.pipeline_loading_utils import LOADABLE_CLASSES

from .empirical_denoiser import EmpiricalDenoiser
from .noise import field_target, interpolate_noise, log_density, posterior_weights, sample_noise, sample_noise_given
from .pipeline_pfgmpp import PFGMPPPipeline
from .scheduling_pfgmpp import PFGMPPScheduler
from .unet_ddpm import DDPMUNet2DModel
from .unet_pfgmpp import PFGMPPUNet2DModel


__version__ = "0.1.0"
__all__ = [
    "DDPMUNet2DModel",
    "EmpiricalDenoiser",
    "PFGMPPPipeline",
    "PFGMPPScheduler",
    "PFGMPPUNet2DModel",
    "field_target",
    "interpolate_noise",
    "log_density",
    "posterior_weights",
    "sample_noise",
    "sample_noise_given",
]

# `DiffusionPipeline.from_pretrained` looks a pipeline's class up in `diffusers`, its components' in a module of
# `diffusers.pipelines`; LOADABLE_CLASSES makes `save_pretrained` write that module's name into model_index.json.
for _class in (PFGMPPPipeline, PFGMPPScheduler, PFGMPPUNet2DModel, DDPMUNet2DModel, EmpiricalDenoiser):
    setattr(diffusers, _class.__name__, _class)
diffusers.pipelines.pipeline_pfgmpp = sys.modules[__name__]
LOADABLE_CLASSES["pipeline_pfgmpp"] = {}
