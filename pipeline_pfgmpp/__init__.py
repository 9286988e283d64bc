"""
PFGM++ for the Hugging Face ecosystem: noise, scheduler, networks and pipeline for any augmented
dimension D.

Importing the package registers its classes with diffusers without loading them. Each class is loaded
when it is first used, so that the command line starts quickly.
"""

import importlib
import importlib.abc
import importlib.util
import sys
from types import ModuleType
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
    from .pipeline_pfgmpp_restoration import PFGMPPRestorationPipeline
    from .scheduling_pfgmpp import PFGMPPScheduler
    from .unet_ddpm import DDPMUNet2DModel
    from .unet_pfgmpp import PFGMPPUNet2DModel

__version__ = "0.1.0"
__all__ = [
    "DDPMUNet2DModel",
    "EmpiricalDenoiser",
    "PFGMPPPipeline",
    "PFGMPPRestorationPipeline",
    "PFGMPPScheduler",
    "PFGMPPUNet2DModel",
    "field_target",
    "interpolate_noise",
    "log_density",
    "posterior_weights",
    "sample_noise",
    "sample_noise_given",
]

# The classes that pipelines consist of, with the module of each.
_CLASSES = {
    "DDPMUNet2DModel": "unet_ddpm",
    "EmpiricalDenoiser": "empirical_denoiser",
    "PFGMPPPipeline": "pipeline_pfgmpp",
    "PFGMPPRestorationPipeline": "pipeline_pfgmpp_restoration",
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
    Let `DiffusionPipeline.from_pretrained` find the classes.

    It looks up the class of a pipeline in `diffusers`, and those of its components in a module of
    `diffusers.pipelines`. An entry in LOADABLE_CLASSES, which is not public, makes `save_pretrained`
    write that module's name into model_index.json; diffusers has no public way to register either.
    """
    import diffusers
    from diffusers.pipelines.pipeline_loading_utils import LOADABLE_CLASSES

    lazy_module: Any = type(diffusers)

    class DiffusersModule(lazy_module):
        def __getattr__(self, name: str) -> Any:
            if name in _CLASSES:
                return globals()["__getattr__"](name)
            return super().__getattr__(name)

    diffusers.__class__ = DiffusersModule
    diffusers.pipelines.pipeline_pfgmpp = sys.modules[__name__]
    LOADABLE_CLASSES[__name__] = {}


class _DiffusersFinder(importlib.abc.MetaPathFinder):
    """Registers the classes as soon as diffusers has been imported."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        if fullname != "diffusers":
            return None
        sys.meta_path.remove(self)
        spec: Any = importlib.util.find_spec(fullname)
        if spec is None:
            return None
        run_module = spec.loader.exec_module

        def run_and_register(module: ModuleType) -> None:
            run_module(module)
            _register_classes()

        spec.loader.exec_module = run_and_register
        return spec


if "diffusers" in sys.modules:
    _register_classes()
else:
    sys.meta_path.insert(0, _DiffusersFinder())
