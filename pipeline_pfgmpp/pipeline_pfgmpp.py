# Copyright 2026 The pipeline_pfgmpp authors. Licensed under the Apache License, Version 2.0.
"""Unconditional and class-conditional image generation with PFGM++, for any augmented dimension D."""

from collections.abc import Callable

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput, ModelMixin, SchedulerMixin

from .noise import degrees_of_freedom, sample_noise


OUTPUT_TYPES = ("pil", "np", "pt", "latent")


class PFGMPPPipeline(DiffusionPipeline):
    r"""
    Generates images by following the field lines of PFGM++ (https://huggingface.co/papers/2302.04265) from the prior home.

    Args:
        unet ([`PFGMPPUNet2DModel`], [`~diffusers.UNet2DModel`] or [`EmpiricalDenoiser`]): The network, trained with EDM's
            preconditioning: it sees c_in * x and c_noise.
        scheduler ([`PFGMPPScheduler`]): Owns D, the noise levels and the solver. diffusers' EDM schedulers made from its
            config do as well.
        id2label (`dict[int, str]`, *optional*): Names of the classes, for people.
    """

    model_cpu_offload_seq = "unet"
    _callback_tensor_inputs = ["latents", "pred_original_sample"]

    def __init__(self, unet: ModelMixin, scheduler: SchedulerMixin, id2label: dict | None = None):
        super().__init__()
        if "sigma_data" not in scheduler.config:
            raise ValueError(
                f"`scheduler` must be a PFGMPPScheduler or one of diffusers' EDM schedulers, but is {type(scheduler).__name__}."
            )
        sigma_data = scheduler.config.sigma_data
        if unet.config.get("sigma_data", sigma_data) != sigma_data:
            raise ValueError(f"`sigma_data` is {unet.config.sigma_data} in the network but {sigma_data} in the scheduler.")
        self.register_modules(unet=unet, scheduler=scheduler)
        self.register_to_config(id2label=id2label and {str(number): name for number, name in id2label.items()})  # as in JSON
        self._interrupt = False

    @property
    def num_classes(self) -> int:
        """Number of classes that the network is conditioned on; 0 for an unconditional one."""
        config = self.unet.config
        return config.get("label_dim") or config.get("num_class_embeds") or 0

    @property
    def interrupt(self) -> bool:
        """Whether a callback has set `pipe._interrupt = True`, which stops sampling after the current call of the network."""
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
    ) -> ImagePipelineOutput | tuple:
        r"""
        Args:
            batch_size (`int`, defaults to 1): Number of images; with `latents` it is theirs.
            num_inference_steps (`int`, defaults to 18): Number n of steps; Heun calls the network 2n - 1 times.
            D (`float`, *optional*): Augmented dimension for a network conditioned on D, `inf` for infinity; None is the
                scheduler's. A network trained at one D takes no other.
            class_labels (`int`, `list[int]` or `torch.Tensor`, *optional*): Class of all images or of each. None draws classes
                with `generator` when the network is conditional.
            guidance_scale (`float`, defaults to 1.0): Classifier-free guidance: w in F_uncond + w (F_cond - F_uncond), for
                class-conditional networks trained with label dropout; 1 is none.
            generator (`torch.Generator` or a list of them, *optional*): Makes generation deterministic. With a list, one an
                image, image i depends on generator i alone.
            latents (`torch.Tensor` of shape `(batch, channels, height, width)`, *optional*): Unit noise to start from, as from
                [`PFGMPPScheduler.sample_noise`]; the pipeline multiplies it by `init_noise_sigma`.
            output_type (`str`, defaults to `"pil"`): `"pil"`; `"np"` of shape (batch, height, width, channels) in [0, 1];
                `"pt"` of shape (batch, channels, height, width) in [0, 1]; `"latent"`, the sample itself in about [-1, 1].
            return_dict (`bool`, defaults to `True`): Whether to return an `ImagePipelineOutput` or a tuple.
            callback_on_step_end (`Callable`, *optional*): Called as `callback(pipe, step, timestep, tensors)` after each call
                of the network; `latents` that it returns replace the pipeline's.
            callback_on_step_end_tensor_inputs (`list[str]`, defaults to `["latents"]`): Which tensors it is given: "latents",
                the sample, and "pred_original_sample", the denoised image so far.

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
        batch_size = self._check_batch_size(batch_size, latents)
        D = self._resolve_d(D)
        if guidance_scale != 1 and not config.get("label_dim"):
            raise ValueError(
                f"`guidance_scale` must be 1 for this network, but is {guidance_scale}: guidance needs a class-conditional"
                " network trained with label dropout."
            )
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"`output_type` must be one of {list(OUTPUT_TYPES)}, but is {output_type!r}.")
        unknown = set(callback_on_step_end_tensor_inputs) - set(self._callback_tensor_inputs)
        if unknown:
            raise ValueError(
                f"`callback_on_step_end_tensor_inputs` may hold {self._callback_tensor_inputs}, but holds {sorted(unknown)}."
            )

        # 2. Draw the prior: unit Student-t noise, times the largest noise level
        device = self._execution_device
        dtype = torch.promote_types(self.unet.dtype, torch.float32)  # the state stays exact where the network is half
        size = config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        shape = (batch_size, config.in_channels, height, width)
        if latents is None:
            latents = sample_noise(shape, D, generator=generator, device=device, dtype=dtype)
        elif latents.ndim != 4 or latents.shape[1] != config.in_channels:
            raise ValueError(f"`latents` must be of shape {shape}, but are {tuple(latents.shape)}.")
        class_labels = self._prepare_class_labels(class_labels, batch_size, generator, device)
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        latents = latents.to(device, dtype) * self.scheduler.init_noise_sigma

        # 3. Follow the field lines
        conditioning = {"D": D} if config.get("d_conditioning") else {}
        self._interrupt = False
        for step, t in enumerate(self.progress_bar(self.scheduler.timesteps)):
            if self.interrupt:
                continue
            model_input = self.scheduler.scale_model_input(latents, t).to(self.unet.dtype)
            model_output = self._call_unet(model_input, t, class_labels, guidance_scale, conditioning).to(dtype)
            tensors = {}
            if "pred_original_sample" in callback_on_step_end_tensor_inputs:
                sigma = self.scheduler.sigmas[self.scheduler.step_index]
                tensors["pred_original_sample"] = self.scheduler.precondition_outputs(latents, model_output, sigma)
            latents = self.scheduler.step(model_output, t, latents, generator=generator, return_dict=False)[0]
            if callback_on_step_end is not None:
                if "latents" in callback_on_step_end_tensor_inputs:
                    tensors["latents"] = latents
                latents = (callback_on_step_end(self, step, t, tensors) or {}).get("latents", latents)

        # 4. Turn the samples into images
        self.maybe_free_model_hooks()
        images = latents
        if output_type != "latent":
            images = (images / 2 + 0.5).clamp(0, 1)
        if output_type in ("np", "pil"):
            images = images.permute(0, 2, 3, 1).cpu().float().numpy()
        if output_type == "pil":
            images = self.numpy_to_pil(images)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _call_unet(self, model_input, t, class_labels, guidance_scale, conditioning):
        if class_labels is None:
            return self.unet(model_input, t, return_dict=False, **conditioning)[0]
        if guidance_scale == 1:
            return self.unet(model_input, t, class_labels=class_labels, return_dict=False, **conditioning)[0]
        # The output is affine in the denoised image, so guiding the one guides the other. One call for both halves.
        labels = torch.cat([torch.zeros_like(class_labels), class_labels])
        output = self.unet(torch.cat([model_input] * 2), t, class_labels=labels, return_dict=False, **conditioning)[0]
        unconditional, conditional = output.chunk(2)
        return unconditional + guidance_scale * (conditional - unconditional)

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
            return own
        differs = bool((degrees_of_freedom(D) != degrees_of_freedom(own)).any())
        if differs and not self.unet.config.get("d_conditioning"):
            raise ValueError(
                f"`D` is {D}, but this network was trained at D = {'inf' if own is None else own} alone; leave `D` out, or load"
                " a network that is conditioned on D."
            )
        return D

    def _prepare_class_labels(self, class_labels, batch_size, generator, device):
        num_classes = self.num_classes
        if not num_classes:
            if class_labels is not None:
                raise ValueError(f"`class_labels` are {class_labels}, but this network is unconditional; leave them out.")
            return None
        if class_labels is None:
            generators = generator if isinstance(generator, (list, tuple)) else [generator]
            rows = batch_size // len(generators)
            labels = [
                torch.randint(num_classes, (rows,), generator=g, device=device if g is None else g.device) for g in generators
            ]
            class_labels = torch.cat(labels)
        class_labels = torch.as_tensor(class_labels)
        if class_labels.is_floating_point() or class_labels.shape not in ((), (1,), (batch_size,)):
            raise ValueError(f"`class_labels` must be an int or {batch_size} ints, but are {class_labels.tolist()}.")
        if not bool(((class_labels >= 0) & (class_labels < num_classes)).all()):
            raise ValueError(f"`class_labels` must lie in 0 ... {num_classes - 1}, but are {class_labels.tolist()}.")
        class_labels = class_labels.long().expand(batch_size).to(device)
        if self.unet.config.get("label_dim"):  # weights of the classes, so that "no class" is expressible: all zeros
            class_labels = torch.nn.functional.one_hot(class_labels, num_classes).to(self.unet.dtype)
        return class_labels
