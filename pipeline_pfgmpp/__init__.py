"""
PFGM++ for the Hugging Face ecosystem: noise, scheduler, networks and pipeline for any augmented
dimension D.

Importing the package registers its classes with diffusers and loads none of them: each is loaded
when it is first asked for, so that the command line can answer at once.
"""

import importlib
import importlib.abc
import importlib.util
import sys
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from .empirical_denoiser import EmpiricalDenoiser
    from .noise import (
        field_target,
        interpolate_noise,
        log_density,
        posterior_weights,
        sample_noise,
        sample_noise_given,
    )
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

# The classes that pipelines are made of, and the module of each.
_CLASSES = {
    "DDPMUNet2DModel": "unet_ddpm",
    "EmpiricalDenoiser": "empirical_denoiser",
    "PFGMPPPipeline": "pipeline_pfgmpp",
    "PFGMPPScheduler": "scheduling_pfgmpp",
    "PFGMPPUNet2DModel": "unet_pfgmpp",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f".{_CLASSES.get(name, 'noise')}", __name__)
    return getattr(module, name)


def _register_classes() -> None:
    """
    Lets `DiffusionPipeline.from_pretrained` find the classes: it looks up a pipeline's in
    `diffusers` and its components' in a module of `diffusers.pipelines`. LOADABLE_CLASSES makes
    `save_pretrained` write that module's name into model_index.json.
    """
    import diffusers
    from diffusers.pipelines.pipeline_loading_utils import LOADABLE_CLASSES

    class DiffusersModule(type(diffusers)):
        def __getattr__(self, name):
            if name in _CLASSES:
                return globals()["__getattr__"](name)
            return super().__getattr__(name)

    diffusers.__class__ = DiffusersModule
    diffusers.pipelines.pipeline_pfgmpp = sys.modules[__name__]
    LOADABLE_CLASSES[__name__] = {}


class _DiffusersFinder(importlib.abc.MetaPathFinder):
    """Registers the classes as soon as somebody has imported diffusers."""

    def find_spec(self, name, path=None, target=None):
        if name != "diffusers":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None:
            return None
        run_module = spec.loader.exec_module

        def run_and_register(module):
            run_module(module)
            _register_classes()

        spec.loader.exec_module = run_and_register
        return spec


if "diffusers" in sys.modules:
    _register_classes()
else:
    sys.meta_path.insert(0, _DiffusersFinder())
