# Copyright 2026 The pipeline_pfgmpp authors. Licensed under the Apache License, Version 2.0.
"""
What the pipelines share: their components and how these are saved, and how a call prepares its network,
its noise levels, its classes and D.
"""

import inspect
import itertools
import math
import os
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, ModelMixin, SchedulerMixin
from diffusers.utils import logging

from .arguments import check_integer, describe
from .code_files import copy_files, list_code, remove_origins, unlink_links
from .conditioning import (
    ClassLabels,
    call_guided,
    check_class_names,
    choose_dimension,
    count_classes,
    get_sample_size,
    get_trained_range,
    prepare_class_labels,
)
from .images import Images, Scale, Standardization, check_scale, prepare_images, read_scale
from .latents import count_image_channels, decode_latents, encode_images, get_factor
from .noise import parse_dimension
from .pipeline_checks import check_changed, check_components, check_scheduler
from .preconditioning import name_dimension, takes_dimension
from .scheduler_config import get_default_steps


logger = logging.get_logger(__name__)
# By scheduler: callbacks run one at a time, since each finds the state of its own call there. Calls with
# another scheduler do not wait.
_LOCKS: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()
# Attributes by which accelerate and diffusers move a module, or what it is given, to another device.
HOOKS = {"_hf_hook", "_diffusers_hook"}


class PFGMPPBasePipeline(DiffusionPipeline):
    """
    Base of the pipelines: a network that denoises at any noise level, and a scheduler.

    Args:
        unet, scheduler, guidance_unet, vae, id2label, value_range: As in [`PFGMPPPipeline`].

    Raises:
        ValueError: The components do not fit each other; the message names what differs.
    """

    model_cpu_offload_seq = "unet->guidance_unet->vae"
    _optional_components = ["guidance_unet", "vae"]
    _callback_tensor_inputs = ["latents", "pred_original_sample"]

    def __init__(
        self,
        unet: ModelMixin,
        scheduler: SchedulerMixin,
        guidance_unet: ModelMixin | None = None,
        vae: ModelMixin | None = None,
        id2label: dict | None = None,
        value_range: Scale | list[float] | dict[str, list[float]] | None = None,
    ):
        super().__init__()
        check_components(unet, scheduler, guidance_unet, vae)
        self.register_modules(unet=unet, scheduler=scheduler, guidance_unet=guidance_unet, vae=vae)
        self.register_to_config(
            id2label=check_class_names(id2label, count_classes(unet)),
            value_range=check_scale(value_range, self.image_channels),
        )
        self._guidance_scale = 1.0
        self._num_timesteps = 0
        self._interrupt = False
        self._calls_begun = 0
        self._warned_of_range = False

    @property
    def components(self) -> dict[str, Any]:
        """
        What another pipeline of the same networks is built from, `PFGMPPPipeline(**pipe.components)`: the
        components, and the names of the classes and the range of values if there are any.
        """
        settings = {name: self.config[name] for name in ("id2label", "value_range") if self.config[name]}
        return {**super().components, **settings}

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs: Any) -> "PFGMPPBasePipeline":
        """
        Create a pipeline from the components of another one, without loading them again.

        Args:
            pipeline (`DiffusionPipeline`): The other pipeline.
            kwargs: Components that replace the other pipeline's, and the further arguments of
                [`~diffusers.DiffusionPipeline.from_pipe`].

        Returns:
            [`PFGMPPBasePipeline`]: The new pipeline, of the class that this is called on.
        """
        # Left to itself, diffusers takes over only models whose class stands in `__init__`'s annotations,
        # whereas this pipeline takes any model.
        accepted = inspect.signature(cls.__init__).parameters
        components = {name: part for name, part in pipeline.components.items() if name in accepted}
        return super().from_pipe(pipeline, **{**components, **kwargs})

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """
        Save the pipeline as diffusers does, along with the source files that load it where only
        diffusers is installed: `DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder,
        trust_remote_code=True)`.

        Args:
            save_directory (`str` or `os.PathLike`): The folder.
            args, kwargs: As for [`~diffusers.DiffusionPipeline.save_pretrained`].
        """
        folder = Path(save_directory)
        self.write_code(folder)
        unlink_links([folder / "model_index.json"])
        variant = dict(zip(("safe_serialization", "variant"), args), **kwargs).get("variant")
        suffix = f".{variant}" if variant else ""
        for name in super().components:
            unlink_links([*(folder / name).glob("*.json"), *(folder / name).glob("*.safetensors")])
            for index in (folder / name).glob(f"*.safetensors.index{suffix}.json"):
                index.unlink()  # diffusers deletes the shards that it names, and leaves it
        super().save_pretrained(save_directory, *args, **kwargs)
        remove_origins(folder, super().components)

    def _upload_folder(self, working_dir: str | os.PathLike, *args: Any, **kwargs: Any) -> Any:
        # `save_pretrained(push_to_hub=True)` uploads before it returns, by this method of diffusers.
        remove_origins(Path(working_dir), super().components)
        return super()._upload_folder(working_dir, *args, **kwargs)

    def register_to_config(self, **entries: Any) -> None:
        """
        Add entries to the configuration.

        Args:
            entries: The entries and their values.
        """
        # Of custom code diffusers names the module where it runs, and looks in a folder for the last part.
        for name, entry in entries.items():
            if isinstance(entry, tuple) and str(entry[0]).startswith("diffusers_modules."):
                entries[name] = (entry[0].rpartition(".")[2], *entry[1:])
        super().register_to_config(**entries)

    def write_code(self, folder: str | os.PathLike) -> list[Path]:
        """
        Write the source files of the pipeline and of its components to where diffusers looks for them.

        Args:
            folder (`str` or `os.PathLike`): The pipeline's folder.

        Returns:
            `list[Path]`: The files that were written.
        """
        components = {}
        origins = {"pipeline": self.config.get("_name_or_path")}
        for name, component in super().components.items():
            library, _ = self.config[name]
            # torch.compile wraps a network; the class that travels is that of the network itself.
            component = getattr(component, "_orig_mod", component)
            components[name] = (library, type(component))
            origins[name] = getattr(component, "config", {}).get("_name_or_path")
        return copy_files(list_code(type(self), components, origins), Path(folder))

    @property
    def num_classes(self) -> int:
        """Number of classes that the network is conditioned on; 0 for an unconditional one."""
        return count_classes(self.unet)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of images, in pixels: those of latents, times the factor of the `vae`."""
        height, width = get_sample_size(self.unet)
        factor = get_factor(self.vae)
        return height * factor, width * factor

    @property
    def image_channels(self) -> int:
        """Number of channels of images: the network's own without a `vae`."""
        return count_image_channels(self.vae, self.unet.config.in_channels)

    def encode_images(self, images: torch.Tensor) -> torch.Tensor:
        """
        Encode images to what the network sees.

        Args:
            images (`torch.Tensor` of shape `(batch, channels, height, width)`): Images in [-1, 1].

        Returns:
            `torch.Tensor`: The mean of their latents; without a `vae` the images themselves.
        """
        return encode_images(self.vae, images).mean

    def decode_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """
        Decode what the network makes.

        Args:
            latents (`torch.Tensor` of shape `(batch, channels, height, width)`): The latents.

        Returns:
            `torch.Tensor`: Images in about [-1, 1]; without a `vae` the latents themselves.
        """
        return decode_latents(self.vae, latents)

    @property
    def guidance_scale(self) -> float:
        """
        The guidance scale of the current call. A callback that sets `pipe._guidance_scale` changes it
        from the next call of the network on.
        """
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether the network is called with and without the class, in a batch of twice the size."""
        return self._guidance_scale != 1 and self.guidance_unet is None

    @property
    def num_timesteps(self) -> int:
        """Number of calls of the network in the current or last call of the pipeline."""
        return self._num_timesteps

    @property
    def _lock(self) -> Any:
        return _LOCKS.setdefault(self.scheduler, threading.RLock())

    @property
    def interrupt(self) -> bool:
        """
        Whether a callback has set `pipe._interrupt = True`, which stops sampling after the current
        call of the network.
        """
        with self._lock:  # that of another call may be waiting to be taken
            return self._interrupt

    def _make_predictor(
        self,
        scheduler: Any,
        dtype: torch.dtype,
        class_labels: torch.Tensor | None,
        D: float | torch.Tensor | None,
    ) -> Callable[..., torch.Tensor]:
        """Make the function that computes the network's raw output, guided if the scale is not 1."""
        dimension = name_dimension(scheduler, D)

        def predict(latents: torch.Tensor, t: torch.Tensor, guidance_scale: float = 1.0) -> torch.Tensor:
            model_input = scheduler.scale_model_input(latents, t, **dimension).to(dtype)
            unets = (self.unet, self.guidance_unet)
            output = call_guided(*unets, guidance_scale, model_input, t, class_labels, D)
            return output.to(latents.dtype)

        return predict

    def _begin(self, scheduler: Any, guidance_scale: float, num_timesteps: int) -> None:
        """Begin to follow the field lines, uninterrupted."""
        with self._lock:
            self._interrupt = False
            self._calls_begun += 1
            self._show_state(scheduler, guidance_scale, num_timesteps)

    def _show_state(self, scheduler: Any, guidance_scale: float, num_timesteps: int) -> None:
        """Show the state of a call on the pipeline and its scheduler, for callbacks and afterwards."""
        with self._lock:
            self.scheduler.__dict__.update(scheduler.__dict__)
            self._guidance_scale = guidance_scale
            self._num_timesteps = num_timesteps

    def _call_back(
        self,
        callback: Callable,
        scheduler: Any,
        step: int,
        t: torch.Tensor,
        tensors: dict[str, torch.Tensor],
        latents: torch.Tensor,
        guidance_scale: float,
        num_timesteps: int,
    ) -> tuple[torch.Tensor, float, bool]:
        """Call a callback; return the sample and the scale that it leaves, and whether it interrupts."""
        with self._lock:
            self._show_state(scheduler, guidance_scale, num_timesteps)
            calls_begun = self._calls_begun
            changed = callback(self, step, t, tensors)
            if self._calls_begun > calls_begun:  # the callback has called the pipeline itself
                self._show_state(scheduler, guidance_scale, num_timesteps)
            interrupted = self._interrupt
            self._interrupt = False
            guidance_scale = self._guidance_scale
        if changed is not None and not isinstance(changed, dict):
            raise ValueError(
                "`callback_on_step_end` must return a dictionary of the tensors that it replaces, or None,"
                f" but returned {describe(changed)}."
            )
        if changed and "latents" in changed:
            latents = check_changed(changed["latents"], latents)
        return latents, guidance_scale, interrupted

    @property
    def _value_range(self) -> Scale | None:
        return read_scale(self.config.value_range)

    @property
    def makes_fields(self) -> bool:
        """Whether its data are standardised fields, in units of their own, and no pictures."""
        return isinstance(self._value_range, Standardization)

    @property
    def _execution_device(self) -> torch.device:
        # diffusers walks through the network's modules three times, which shows where it is called once. One
        # walk tells whether there are hooks, whose meaning diffusers knows.
        has_hooks = any(not HOOKS.isdisjoint(vars(module)) for module in self.unet.modules())
        tensor = next(itertools.chain(self.unet.parameters(), self.unet.buffers()), None)
        if has_hooks or tensor is None:
            return super()._execution_device
        return tensor.device

    def _arrange_weights(self, device: torch.device) -> None:
        """
        On a CPU, give the weights of convolutions the layout that is fastest there, once.

        Not those of a network in training, whose optimiser may rely on their layout.
        """
        if device.type != "cpu":
            return
        layout = torch.channels_last
        networks = (self.unet, self.guidance_unet, self.vae)
        for network in (each for each in networks if each is not None):  # a compiled one has no truth value
            if network.training:
                continue
            # Sharded and quantised weights are of other types, with layouts of their own.
            weights = (w for w in network.parameters() if type(w.data) is torch.Tensor and w.ndim == 4)
            for weight in weights:
                if weight.is_inference():
                    continue  # loaded in inference mode, outside of which it may not be touched
                if weight.is_contiguous(memory_format=layout) and not weight.is_contiguous():
                    break  # an earlier call has been here
                with torch.inference_mode(False):  # or no gradient could be taken later
                    weight.data = weight.data.contiguous(memory_format=layout)

    def _prepare_images(self, images: Images, name: str) -> torch.Tensor:
        return prepare_images(images, name, self.image_channels, self.image_size, self._value_range)

    def _prepare_labels(
        self, class_labels: ClassLabels, batch_size: int, generator: Any, device: torch.device
    ) -> torch.Tensor | None:
        names = self.config.id2label
        return prepare_class_labels(class_labels, self.unet, names, batch_size, generator, device)

    def _set_noise_levels(
        self,
        scheduler: Any,
        num_inference_steps: int | None,
        sigmas: list[float] | None,
        strength: float,
        device: torch.device,
    ) -> int:
        """Set a scheduler's noise levels; return the index at which to begin."""
        check_scheduler(scheduler, self.unet)
        if num_inference_steps is not None and sigmas is not None:
            raise ValueError("Give `num_inference_steps` or `sigmas`, but not both.")
        if num_inference_steps is None:
            num_inference_steps = get_default_steps(scheduler)
        if sigmas is None:
            number = check_integer("num_inference_steps", num_inference_steps, "be a positive integer", 1)
            scheduler.set_timesteps(number, device=device)
        elif takes_dimension(scheduler):
            scheduler.set_timesteps(sigmas=sigmas, device=device)
        else:
            raise ValueError(
                f"`sigmas` are for a PFGMPPScheduler, but `scheduler` is {type(scheduler).__name__}."
            )
        steps = -(-len(scheduler.timesteps) // scheduler.order)
        if steps == 1 and strength < 1:
            raise ValueError(
                f"`strength` is {strength:g}, but a single step always begins at the largest noise level:"
                " take more steps, or leave `strength` out."
            )
        skipped = min(math.floor((1 - strength) * steps + 1e-9), steps - 1)
        begin = skipped * scheduler.order
        scheduler.set_begin_index(begin)
        return begin

    def _choose_dimension(
        self, D: float | torch.Tensor | None, batch_size: int
    ) -> float | torch.Tensor | None:
        """Return the augmented dimension of a call, and warn once if the network was not trained for it."""
        D = choose_dimension(D, self.unet, self.scheduler)
        low, high = get_trained_range(self.unet, self.scheduler)
        dof = parse_dimension(D)
        if dof.ndim and len(dof) != batch_size:
            raise ValueError(
                f"`D` holds {len(dof)} values for a batch of {batch_size}; give one value, or one per image."
            )
        if not self._warned_of_range and bool(((dof < low) | (dof > high)).any()):
            logger.warning(
                f"`D` is {dof.tolist()}, but this network was trained for D from {low:g} to {high:g}; outside"
                " that range the images get worse."
            )
            self._warned_of_range = True
        return D
