# Copyright 2026 The pipeline_pfgmpp authors. Licensed under the Apache License, Version 2.0.
"""Image generation, editing and likelihood with PFGM++, for any augmented dimension D."""

import inspect
import json
import math
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput, ModelMixin, SchedulerMixin
from diffusers.utils import BaseOutput, logging

from .noise import parse_dimension, log_density, sample_noise
from .scheduling_pfgmpp import PFGMPPScheduler


logger = logging.get_logger(__name__)

OUTPUT_TYPES = ("pil", "np", "pt", "latent")
Images = PIL.Image.Image | list[PIL.Image.Image] | np.ndarray | torch.Tensor


@dataclass
class PFGMPPLikelihoodOutput(BaseOutput):
    """
    Output of [`PFGMPPPipeline.log_likelihood`].

    Args:
        log_likelihood (`torch.Tensor` of shape `(batch,)`): Log-density of the images in [-1, 1]^N,
            in nats.
        bits_per_dim (`torch.Tensor` of shape `(batch,)`): Bits per dimension of the images at 256
            levels.
        standard_error (`torch.Tensor` of shape `(batch,)`): Standard error of `log_likelihood`, in
            nats, over the repeats; NaN for a single one.
    """

    log_likelihood: torch.Tensor
    bits_per_dim: torch.Tensor
    standard_error: torch.Tensor


class PFGMPPPipeline(DiffusionPipeline):
    r"""
    Generates images by following the field lines of PFGM++
    (https://huggingface.co/papers/2302.04265) from the prior home.

    Args:
        unet ([`PFGMPPUNet2DModel`], [`~diffusers.UNet2DModel`] or [`EmpiricalDenoiser`]): The
            network, trained with EDM's preconditioning: it sees c_in * x and c_noise.
        scheduler ([`PFGMPPScheduler`]): Owns D, the noise levels and the solver. diffusers' EDM
            schedulers made from its config do as well.
        guidance_unet (`ModelMixin`, *optional*): A weaker network of the same task for autoguidance
            (https://huggingface.co/papers/2406.02507).
        id2label (`dict[int, str]`, *optional*): Names of the classes, for people.
    """

    model_cpu_offload_seq = "unet->guidance_unet"
    _optional_components = ["guidance_unet"]
    _callback_tensor_inputs = ["latents", "pred_original_sample"]

    def __init__(
        self,
        unet: ModelMixin,
        scheduler: SchedulerMixin,
        guidance_unet: ModelMixin | None = None,
        id2label: dict | None = None,
    ):
        super().__init__()
        if "sigma_data" not in scheduler.config:
            raise ValueError(
                f"`scheduler` must be a PFGMPPScheduler or one of diffusers' EDM schedulers, but is {type(scheduler).__name__}."
            )
        sigma_data = scheduler.config.sigma_data
        if unet.config.get("sigma_data", sigma_data) != sigma_data:
            raise ValueError(
                f"`sigma_data` is {unet.config.sigma_data} in the network but {sigma_data} in the scheduler."
            )
        if guidance_unet is not None:
            for name in ("sample_size", "in_channels"):
                if guidance_unet.config[name] != unet.config[name]:
                    raise ValueError(
                        f"`{name}` is {guidance_unet.config[name]} in `guidance_unet` but {unet.config[name]} in `unet`."
                    )
        self.register_modules(unet=unet, scheduler=scheduler, guidance_unet=guidance_unet)
        self.register_to_config(
            id2label=id2label and {str(number): name for number, name in id2label.items()}
        )  # as in JSON
        self._interrupt = False
        self._warned_of_range = False

    def save_pretrained(self, save_directory: str | os.PathLike, *args, **kwargs) -> None:
        """
        Saves the pipeline as diffusers does, and with it the source files that load it where only
        diffusers is installed: `DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder,
        trust_remote_code=True)`.

        Args:
            save_directory (`str` or `os.PathLike`): The folder.
            args, kwargs: As for [`~DiffusionPipeline.save_pretrained`].
        """
        self.write_code(save_directory)
        written = [Path(save_directory, "model_index.json")]
        for name in self.components:
            written += [
                path
                for kind in ("json", "safetensors")
                for path in Path(save_directory, name).glob(f"*.{kind}")
            ]
        for path in written:
            if path.is_symlink():  # is replaced: what it leads to, such as the Hub's cache, stays as it was
                path.unlink()
        super().save_pretrained(save_directory, *args, **kwargs)
        for path in [Path(save_directory, "model_index.json"), *Path(save_directory).glob("*/*config.json")]:
            entries = json.loads(path.read_text(encoding="utf-8"))
            if entries.pop(
                "_name_or_path", None
            ):  # where the pipeline came from may be a folder of this machine
                path.write_text(json.dumps(entries, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    def write_code(self, folder: str | os.PathLike) -> list[Path]:
        """
        Writes the source files of the pipeline and of its components, with the modules that they
        import, as diffusers looks for them: `pipeline.py`, and in a component's folder the library
        that `model_index.json` names.

        Args:
            folder (`str` or `os.PathLike`): The pipeline's folder.

        Returns:
            `list[Path]`: The files.
        """
        components = {}
        for name, component in self.components.items():
            library, _ = self.config[name]
            components[name] = (
                library,
                type(getattr(component, "_orig_mod", component)),
            )  # not torch.compile's wrapper
        files = list_code(components)
        for name, source in files.items():
            _copy_file(source, Path(folder, name))
        return [Path(folder, name) for name in files]

    @property
    def num_classes(self) -> int:
        """Number of classes that the network is conditioned on; 0 for an unconditional one."""
        config = self.unet.config
        return config.get("label_dim") or config.get("num_class_embeds") or 0

    @property
    def interrupt(self) -> bool:
        """
        Whether a callback has set `pipe._interrupt = True`, which stops sampling after the current
        call of the network.
        """
        return self._interrupt

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        num_inference_steps: int = 18,
        D: float | None = None,
        class_labels: int | list[int] | torch.Tensor | None = None,
        guidance_scale: float = 1.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ["latents"],
        sigmas: list[float] | None = None,
        guidance_interval: tuple[float, float] = (0.0, math.inf),
        image: Images | None = None,
        strength: float = 1.0,
        mask_image: Images | None = None,
        temperature: float = 1.0,
    ) -> ImagePipelineOutput | tuple:
        r"""
        Args:
            batch_size (`int`, defaults to 1): Number of images; with `latents` it is theirs.
            num_inference_steps (`int`, defaults to 18): Number n of steps; Heun calls the network
                2n - 1 times, others n times.
            D (`float`, *optional*): Augmented dimension for a network conditioned on D, `inf` for
                infinity; None is the scheduler's. A network trained at one D takes no other.
                Outside the range that the scheduler's `D_range` states it warns once.
            class_labels (`int`, `list[int]` or `torch.Tensor`, *optional*): Class of all images or
                of each. None draws classes with `generator` when the network is conditional.
            guidance_scale (`float`, defaults to 1.0): The w in F_guide + w (F - F_guide); 1 is
                none. F_guide is that of `guidance_unet` where there is one (autoguidance), else of
                the network without a class (classifier-free guidance, for networks trained with
                label dropout).
            generator (`torch.Generator` or a list of them, *optional*): Makes generation
                deterministic. With a list, one an image, image i depends on generator i alone.
            latents (`torch.Tensor` of shape `(batch, channels, height, width)`, *optional*): Unit
                noise to start from, as from [`PFGMPPScheduler.sample_noise`]; the pipeline
                multiplies it by `init_noise_sigma`.
            output_type (`str`, defaults to `"pil"`): `"pil"`; `"np"` of shape (batch, height,
                width, channels) in [0, 1]; `"pt"` of shape (batch, channels, height, width) in [0,
                1]; `"latent"`, the sample itself in about [-1, 1].
            return_dict (`bool`, defaults to `True`): Whether to return an `ImagePipelineOutput` or
                a tuple.
            callback_on_step_end (`Callable`, *optional*): Called as `callback(pipe, step, timestep,
                tensors)` after each call of the network; `latents` that it returns replace the
                pipeline's.
            callback_on_step_end_tensor_inputs (`list[str]`, defaults to `["latents"]`): Which
                tensors it is given: "latents", the sample, and "pred_original_sample", the denoised
                image so far.
            sigmas (`list[float]`, *optional*): The noise levels of the steps, falling and positive,
                in place of `num_inference_steps`.
            guidance_interval (`tuple[float, float]`, defaults to `(0, inf)`): Least and largest
                sigma that are guided (https://huggingface.co/papers/2404.07724); elsewhere the
                network is called alone.
            image (`PIL.Image.Image`, list of them, `np.ndarray` or `torch.Tensor`, *optional*):
                Images to start from, or with `mask_image` to keep in part: PIL, integers in [0,
                255] or floats in [-1, 1]; arrays are (batch, height, width, channels), tensors
                (batch, channels, height, width). One image serves the whole batch.
            strength (`float`, defaults to 1.0): How far `image` is perturbed, in (0, 1]: the share
                of the steps that are taken.
            mask_image (`PIL.Image.Image`, `np.ndarray` or `torch.Tensor`, *optional*): Where to
                paint anew: what is brighter than the middle (True in a mask of booleans); the rest
                of `image` is kept.
            temperature (`float`, defaults to 1.0): Factor on the norm of the prior's samples
                (https://huggingface.co/papers/2209.11178, sec. 4); below 1 less varied.

        Returns:
            `ImagePipelineOutput` or `tuple`: The images.

        Raises:
            ValueError: An argument does not fit the network or the others; the message names it.

        Example:

        ```py
        >>> import pipeline_pfgmpp, torch
        >>> from diffusers import DiffusionPipeline

        >>> pipe = DiffusionPipeline.from_pretrained("model_cards/pfgmpp-fashion-mnist")
        >>> images = pipe(batch_size=16, generator=torch.Generator().manual_seed(0)).images
        ```
        """
        # 1. Check the arguments
        config = self.unet.config
        if image is not None:
            image = self._prepare_images(image, "image")
            if latents is None and batch_size == 1:
                batch_size = len(image)
        batch_size = self._check_batch_size(batch_size, latents)
        D = self._resolve_d(D)
        self._check_guidance(guidance_scale, guidance_interval)
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"`output_type` must be one of {list(OUTPUT_TYPES)}, but is {output_type!r}.")
        unknown = set(callback_on_step_end_tensor_inputs) - set(self._callback_tensor_inputs)
        if unknown:
            raise ValueError(
                f"`callback_on_step_end_tensor_inputs` may hold {self._callback_tensor_inputs}, but holds {sorted(unknown)}."
            )
        if not 0 < strength <= 1:
            raise ValueError(f"`strength` must lie in (0, 1], but is {strength}.")
        if image is None and (strength != 1 or mask_image is not None):
            raise ValueError("`strength` and `mask_image` need an `image`.")
        if image is not None and len(image) not in (1, batch_size):
            raise ValueError(f"`image` holds {len(image)} images for a batch of {batch_size}.")
        if not 0 < temperature < math.inf:
            raise ValueError(f"`temperature` must be positive, but is {temperature}.")

        # 2. Choose the noise levels
        device = self._execution_device
        dtype = torch.promote_types(
            self.unet.dtype, torch.float32
        )  # the state stays exact where the network is half
        scheduler = self.scheduler
        takes_d = "D" in inspect.signature(scheduler.step).parameters  # ours does, those of diffusers do not
        if sigmas is None:
            scheduler.set_timesteps(num_inference_steps, device=device)
        elif takes_d:
            scheduler.set_timesteps(sigmas=sigmas, device=device)
        else:
            raise ValueError(
                f"`sigmas` are for a PFGMPPScheduler, but `scheduler` is {type(scheduler).__name__}."
            )
        steps = -(-len(scheduler.timesteps) // scheduler.order)
        begin = min(math.floor((1 - strength) * steps + 1e-9), steps - 1) * scheduler.order
        scheduler.set_begin_index(begin)
        sigma = scheduler.sigmas[begin]

        # 3. Draw the prior: unit Student-t noise, times the first noise level
        height, width = self._size
        shape = (batch_size, config.in_channels, height, width)
        if latents is None:
            latents = sample_noise(shape, D, generator, device, dtype, scheduler.config.get("max_noise_norm"))
        elif latents.ndim != 4 or latents.shape[1] != config.in_channels:
            raise ValueError(f"`latents` must be of shape {shape}, but are {tuple(latents.shape)}.")
        conditioning = {
            "class_labels": self._prepare_class_labels(class_labels, batch_size, generator, device),
            "D": D,
        }
        noise = latents.to(device, dtype) * temperature
        mask = None
        if image is None:
            latents = noise * (scheduler.init_noise_sigma if begin == 0 else sigma)
        else:
            image = image.to(device, dtype)
            if image.shape[2:] != noise.shape[2:]:
                raise ValueError(
                    f"`image` is of size {tuple(image.shape[2:])}, but `latents` of {tuple(noise.shape[2:])}."
                )
            mask = None if mask_image is None else self._prepare_mask(mask_image, image)
            start = image if mask is None or strength < 1 else image.new_zeros(())
            latents = start + sigma * noise

        # 4. Follow the field lines
        guidance = {"guidance_scale": guidance_scale, "guidance_interval": guidance_interval}
        step_kwargs = {"D": D} if takes_d else {}
        self._interrupt = False
        for step, t in enumerate(self.progress_bar(scheduler.timesteps[begin:])):
            if self.interrupt:
                continue
            if mask is not None:  # what is kept follows its own field line
                latents = torch.where(mask, latents, image + scheduler.sigmas[begin + step] * noise)
            model_output = self._call_unet(scheduler, latents, t, conditioning, **guidance)
            tensors = {}
            if "pred_original_sample" in callback_on_step_end_tensor_inputs:
                sigma = scheduler.sigmas[scheduler.step_index]
                tensors["pred_original_sample"] = scheduler.precondition_outputs(latents, model_output, sigma)
            latents = scheduler.step(
                model_output, t, latents, generator=generator, return_dict=False, **step_kwargs
            )[0]
            if callback_on_step_end is not None:
                if "latents" in callback_on_step_end_tensor_inputs:
                    tensors["latents"] = latents
                latents = (callback_on_step_end(self, step, t, tensors) or {}).get("latents", latents)
        if mask is not None:
            latents = torch.where(mask, latents, image)

        # 5. Turn the samples into images
        self.maybe_free_model_hooks()
        images = latents
        if output_type != "latent":
            images = (images / 2 + 0.5).clamp(0, 1)
        if output_type in ("np", "pil"):
            images = images.permute(0, 2, 3, 1).cpu().float().numpy()
        if output_type == "pil":
            images = self.numpy_to_pil(images)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    @torch.no_grad()
    def invert(
        self,
        images: Images,
        num_inference_steps: int = 64,
        D: float | None = None,
        class_labels: int | list[int] | torch.Tensor | None = None,
    ) -> torch.Tensor:
        r"""
        Follows the field lines of images back to the prior, by Heun's method.

        `pipe(latents=pipe.invert(images), ...)` with the same steps and classes returns the images,
            up to the solver's error.

        Args:
            images (`PIL.Image.Image`, list of them, `np.ndarray` or `torch.Tensor`): Images as in
                [`__call__`]'s `image`.
            num_inference_steps (`int`, defaults to 64): Number n of noise levels; the network is
                called 2n - 2 times.
            D (`float`, *optional*): As in [`__call__`].
            class_labels (`int`, `list[int]` or `torch.Tensor`, *optional*): Classes of the images;
                None is no class.

        Returns:
            `torch.Tensor` of shape `(batch, channels, height, width)`: Unit latents.

        Raises:
            ValueError: An argument does not fit the network or the others; the message names it.
        """
        x, conditioning, scheduler = self._prepare_reverse(images, num_inference_steps, D, class_labels)
        for t in self.progress_bar(scheduler.timesteps):
            x = scheduler.step(self._call_unet(scheduler, x, t, conditioning), t, x, return_dict=False)[0]
        self.maybe_free_model_hooks()
        return x / scheduler.sigmas[-1]

    def log_likelihood(
        self,
        images: Images,
        num_inference_steps: int = 64,
        D: float | None = None,
        class_labels: int | list[int] | torch.Tensor | None = None,
        trace: str = "hutchinson",
        num_repeats: int = 1,
        dequantize: bool = True,
        generator: torch.Generator | None = None,
    ) -> PFGMPPLikelihoodOutput:
        r"""
        Likelihood of images by the instantaneous change of variables along their field lines
        (https://huggingface.co/papers/1810.01367), exact for every D since $p(x)$ at $\sigma_{max}$
        is the Student-t prior:

        $$\log p(x_{\sigma_{min}}) = \log p_{prior}(x_{\sigma_{max}})
          + \int_{\sigma_{min}}^{\sigma_{max}} \frac{N - \mathrm{tr}\,\partial F / \partial
          x}{\sigma}\, d\sigma.$$

        Args:
            images (`PIL.Image.Image`, list of them, `np.ndarray` or `torch.Tensor`): Images as in
                [`__call__`]'s `image`.
            num_inference_steps (`int`, defaults to 64): Number n of noise levels; the network is
                differentiated 2n - 2 times.
            D (`float`, *optional*): As in [`__call__`].
            class_labels (`int`, `list[int]` or `torch.Tensor`, *optional*): Classes of the images;
                None is no class.
            trace (`str`, defaults to `"hutchinson"`): `"hutchinson"`, an unbiased estimate from one
                random direction, or `"exact"`, which differentiates once a dimension.
            num_repeats (`int`, defaults to 1): How often all is repeated with other random numbers,
                for the mean and its error.
            dequantize (`bool`, defaults to `True`): Whether to spread each of the 256 levels
                uniformly over its width, 2 / 255, so that the density bounds the probability of the
                levels.
            generator (`torch.Generator`, *optional*): Source of dequantisation and directions.

        Returns:
            [`PFGMPPLikelihoodOutput`]: Nats, bits per dimension and the standard error.

        Raises:
            ValueError: An argument does not fit the network or the others; the message names it.
        """
        if trace not in ("hutchinson", "exact"):
            raise ValueError(f"`trace` must be 'hutchinson' or 'exact', but is {trace!r}.")
        if num_repeats < 1:
            raise ValueError(f"`num_repeats` must be positive, but is {num_repeats}.")
        D = self._resolve_d(D)
        draws = []
        for _ in range(num_repeats):
            x, conditioning, scheduler = self._prepare_reverse(images, num_inference_steps, D, class_labels)
            draw_device = x.device if generator is None else generator.device
            random = {"generator": generator, "device": draw_device, "dtype": x.dtype}
            if dequantize:
                x = x + ((torch.rand(x.shape, **random) - 0.5) / 127.5).to(x.device)
            if trace == "exact":
                probes = torch.eye(x[0].numel(), device=x.device, dtype=x.dtype).view(-1, 1, *x.shape[1:])
            else:
                probes = (torch.randint(2, (1, *x.shape), **random) * 2 - 1).to(x.device)
            volume = torch.zeros(
                len(x), device=x.device, dtype=torch.float64 if x.device.type != "mps" else torch.float32
            )
            divergences = []
            for index, t in enumerate(self.progress_bar(scheduler.timesteps)):
                sigma = scheduler.sigmas[index]
                with torch.enable_grad():
                    x = x.detach().requires_grad_()
                    model_output = self._call_unet(scheduler, x, t, conditioning)
                    denoised = scheduler.precondition_outputs(x, model_output, sigma)
                    divergence = x.new_full((len(x),), x[0].numel())
                    for k, probe in enumerate(probes):
                        (gradient,) = torch.autograd.grad(
                            (denoised * probe).sum(), x, retain_graph=k + 1 < len(probes)
                        )
                        divergence = divergence - (gradient * probe).flatten(1).sum(1)
                divergences.append(divergence)
                if (
                    len(divergences) == 2
                ):  # the trapezoid that goes with Heun's step; in ln(sigma) the integrand is bounded
                    volume += (
                        (sigma / scheduler.sigmas[index - 1]).log() * (divergences[0] + divergences[1]) / 2
                    )
                    divergences = []
                x = scheduler.step(model_output.detach(), t, x.detach(), return_dict=False)[0]
            draws.append(log_density(x, D, scheduler.sigmas[-1]).to(volume) + volume)
        self.maybe_free_model_hooks()
        draws = torch.stack(draws)
        mean, dims = draws.mean(0), x[0].numel()
        return PFGMPPLikelihoodOutput(
            log_likelihood=mean,
            bits_per_dim=math.log2(127.5) - mean / (dims * math.log(2)),
            standard_error=draws.std(0) / math.sqrt(num_repeats)
            if num_repeats > 1
            else torch.full_like(mean, math.nan),
        )

    def _call_unet(
        self, scheduler, latents, t, conditioning, guidance_scale=1.0, guidance_interval=(0.0, math.inf)
    ):
        """
        Raw output of the network, guided where asked; affine in the denoised image, so guiding the
        one guides the other.
        """
        model_input = scheduler.scale_model_input(latents, t).to(self.unet.dtype)
        sigma = scheduler.sigmas[scheduler.step_index]
        low, high = guidance_interval
        if guidance_scale == 1 or not low <= sigma <= high:
            return self._network(self.unet, model_input, t, **conditioning).to(latents.dtype)
        if self.guidance_unet is not None:
            output = self._network(self.unet, model_input, t, **conditioning)
            guide = self._network(
                self.guidance_unet, model_input.to(self.guidance_unet.dtype), t, **conditioning
            )
        else:  # one call for both halves
            labels, D = conditioning["class_labels"], conditioning["D"]
            both = {"class_labels": torch.cat([torch.zeros_like(labels), labels]), "D": D}
            if isinstance(D, torch.Tensor) and D.ndim:
                both["D"] = torch.cat([D, D])
            guide, output = self._network(self.unet, torch.cat([model_input] * 2), t, **both).chunk(2)
        return torch.lerp(guide.to(latents.dtype), output.to(latents.dtype), guidance_scale)

    @staticmethod
    def _network(unet, model_input, t, class_labels, D):
        conditioning = {}
        if class_labels is not None and (unet.config.get("label_dim") or unet.config.get("num_class_embeds")):
            conditioning["class_labels"] = class_labels
        if unet.config.get("d_conditioning"):
            conditioning["D"] = D
        return unet(model_input, t, return_dict=False, **conditioning)[0]

    @property
    def _size(self):
        size = self.unet.config.sample_size
        return (size, size) if isinstance(size, int) else tuple(size)

    def _prepare_images(self, images, name):
        """Images of any form as a tensor of shape (batch, channels, height, width) in [-1, 1]."""
        channels = self.unet.config.in_channels
        if isinstance(images, PIL.Image.Image):
            images = [images]
        if (
            isinstance(images, (list, tuple))
            and images
            and all(isinstance(each, PIL.Image.Image) for each in images)
        ):
            images = np.stack([np.asarray(each.convert("L" if channels == 1 else "RGB")) for each in images])
            images = images.reshape(*images.shape[:3], -1)
        if isinstance(images, np.ndarray):
            images = torch.from_numpy(images)
            images = images.permute(0, 3, 1, 2) if images.ndim == 4 else images
        shape = (channels, *self._size)
        if not isinstance(images, torch.Tensor) or images.shape[1:] != shape or not len(images):
            found = tuple(images.shape) if isinstance(images, torch.Tensor) else type(images).__name__
            raise ValueError(f"`{name}` must hold images of shape {shape}, but is {found}.")
        low, high = (-1, 1) if images.is_floating_point() else (0, 255)
        if not bool(((images >= low) & (images <= high)).all()):
            raise ValueError(
                f"`{name}` must lie in [{low}, {high}] ({'floats' if high == 1 else 'integers'}), but reaches from"
                f" {images.min().item():g} to {images.max().item():g}."
            )
        return images if images.is_floating_point() else images.float() / 127.5 - 1

    @staticmethod
    def _prepare_mask(mask_image, image):
        """True where to paint, of a shape that broadcasts over the images."""
        if isinstance(mask_image, PIL.Image.Image):
            mask = torch.from_numpy(np.asarray(mask_image.convert("L")) > 127)
        else:
            mask = torch.as_tensor(mask_image)
            mask = mask if mask.dtype == torch.bool else mask > (0.5 if mask.is_floating_point() else 127)
        if (
            mask.shape[-2:] != image.shape[-2:]
            or mask.ndim > 4
            or (mask.ndim == 4 and mask.shape[1] not in (1, image.shape[1]))
        ):
            raise ValueError(
                f"`mask_image` must be of size {tuple(image.shape[-2:])}, but is of shape {tuple(mask.shape)}."
            )
        return mask.to(image.device)

    def _prepare_reverse(self, images, num_inference_steps, D, class_labels):
        """
        Images at the least noise level, what the network is conditioned on, and a scheduler that
        leads up from there.
        """
        if num_inference_steps < 2:
            raise ValueError(f"`num_inference_steps` must be at least 2, but is {num_inference_steps}.")
        device, dtype = self._execution_device, torch.promote_types(self.unet.dtype, torch.float32)
        x = self._prepare_images(images, "images").to(device, dtype)
        conditioning = {"class_labels": None, "D": self._resolve_d(D)}
        if class_labels is not None:
            conditioning["class_labels"] = self._prepare_class_labels(class_labels, len(x), None, device)
        scheduler = PFGMPPScheduler.from_config(self.scheduler.config, solver_type="heun", s_churn=0.0)
        scheduler.set_timesteps(num_inference_steps, device=device, reverse=True)
        scheduler.set_begin_index(0)
        return x, conditioning, scheduler

    def _check_guidance(self, guidance_scale, guidance_interval):
        if guidance_scale != 1 and self.guidance_unet is None and not self.unet.config.get("label_dim"):
            raise ValueError(
                f"`guidance_scale` must be 1 for this network, but is {guidance_scale}: guidance needs a class-conditional"
                " network trained with label dropout, or a `guidance_unet`."
            )
        if len(guidance_interval) != 2 or not 0 <= guidance_interval[0] <= guidance_interval[1]:
            raise ValueError(
                f"`guidance_interval` must be (low, high) with 0 <= low <= high, but is {guidance_interval}."
            )

    @staticmethod
    def _check_batch_size(batch_size, latents):
        if latents is not None and batch_size in (1, len(latents)):
            return len(latents)
        if not isinstance(batch_size, int) or batch_size < 1 or latents is not None:
            wanted = "a positive integer" if latents is None else f"that of `latents`, {len(latents)}"
            raise ValueError(f"`batch_size` must be {wanted}, but is {batch_size}.")
        return batch_size

    def _resolve_d(self, D):
        own = self.scheduler.config.get("D")
        if D is None:
            self._check_range(own)
            return own
        differs = bool((parse_dimension(D) != parse_dimension(own)).any())
        if differs and not self.unet.config.get("d_conditioning"):
            raise ValueError(
                f"`D` is {D}, but this network was trained at D = {'inf' if own is None else own} alone; leave `D` out, or load"
                " a network that is conditioned on D."
            )
        self._check_range(D)
        return D

    def _check_range(self, D):
        """Warns of a D that the network was not trained for; refuses one that is known to give noise."""
        trained = self.scheduler.config.get("D_range")
        if trained is None or not self.unet.config.get("d_conditioning"):
            return
        low, high = (parse_dimension(bound).item() for bound in trained)
        asked = parse_dimension(D)
        inside = f"this network was trained for D from {low:g} to {high:g}"
        if low > 2 and bool(
            (asked <= 2).any()
        ):  # there the noise has no variance: its far points are like nothing it has seen
            raise ValueError(f"`D` is {D}, but {inside}, and draws noise at D up to 2.")
        if bool(((asked < low) | (asked > high)).any()) and not self._warned_of_range:
            logger.warning(f"`D` is {D}, but {inside}; outside that range the images get worse.")
            self._warned_of_range = True

    def _prepare_class_labels(self, class_labels, batch_size, generator, device):
        num_classes = self.num_classes
        if not num_classes:
            if class_labels is not None:
                raise ValueError(
                    f"`class_labels` are {class_labels}, but this network is unconditional; leave them out."
                )
            return None
        if class_labels is None:
            generators = generator if isinstance(generator, (list, tuple)) else [generator]
            rows = batch_size // len(generators)
            labels = [
                torch.randint(num_classes, (rows,), generator=g, device=device if g is None else g.device)
                for g in generators
            ]
            class_labels = torch.cat(labels)
        class_labels = torch.as_tensor(class_labels)
        if class_labels.is_floating_point() or class_labels.shape not in ((), (1,), (batch_size,)):
            raise ValueError(
                f"`class_labels` must be an int or {batch_size} ints, but are {class_labels.tolist()}."
            )
        if not bool(((class_labels >= 0) & (class_labels < num_classes)).all()):
            raise ValueError(
                f"`class_labels` must lie in 0 ... {num_classes - 1}, but are {class_labels.tolist()}."
            )
        class_labels = class_labels.long().expand(batch_size).to(device)
        if self.unet.config.get(
            "label_dim"
        ):  # weights of the classes, so that "no class" is expressible: all zeros
            class_labels = torch.nn.functional.one_hot(class_labels, num_classes).to(self.unet.dtype)
        return class_labels


def list_code(components: dict[str, tuple[str | None, type]]) -> dict[str, Path]:
    """
    Lists the source files that load a pipeline where only diffusers is installed.

    Args:
        components (`dict[str, tuple[str | None, type]]`): For each component, the library that
            `model_index.json` names and the class.

    Returns:
        `dict[str, Path]`: The files, by their path in the pipeline's folder: `pipeline.py`, in a
            component's folder the library of that component, and beside each the modules that it
            imports.
    """
    files = _list_modules(Path(__file__), Path("pipeline.py"))
    for name, (library, cls) in components.items():
        if cls.__module__.split(".")[0] == __name__.split(".")[0]:
            files |= _list_modules(Path(inspect.getsourcefile(cls)), Path(name, f"{library}.py"))
    return files


def _list_modules(source, target):
    """
    Lists a module and those that it imports relatively, by the paths that they get when it goes to
    `target`.
    """
    files = {target.as_posix(): source}
    for name in re.findall(r"^from \.(\w+) import", source.read_text(encoding="utf-8"), re.MULTILINE):
        files |= _list_modules(source.with_name(f"{name}.py"), target.with_name(f"{name}.py"))
    return files


def _copy_file(source, target):
    """Copies a file; a link at its place is replaced, and what it leads to stays as it was."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_symlink():
        target.unlink()
    if source.resolve() != target.resolve():
        shutil.copyfile(source, target)
