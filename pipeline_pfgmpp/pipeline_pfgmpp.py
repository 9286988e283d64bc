# Copyright 2026 The pipeline_pfgmpp authors. Licensed under the Apache License, Version 2.0.
r"""
Image generation, editing and likelihood with PFGM++, for any augmented dimension D.

With $r = \sigma\sqrt{D}$ the field lines of PFGM++ (https://huggingface.co/papers/2302.04265, sec. 4)
are the curves $\frac{dx}{d\sigma} = (x - F(x, \sigma))/\sigma$, where $F$ is the denoised image. They
map Student-t noise at $\sigma_{max}$ to images at $\sigma = 0$, one to one. Followed down they
generate, followed up they invert, and the volume change along them gives the likelihood.
"""

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from diffusers import ImagePipelineOutput

from .arguments import check_choice, check_generator, check_integer, check_number
from .code_files import copy_files  # noqa: F401 - diffusers copies only what this file itself imports
from .conditioning import ClassLabels, check_guidance, get_sample_size
from .images import Images, convert_samples, prepare_mask
from .latents import get_factor, shrink_mask
from .likelihood import (
    PFGMPPLikelihoodOutput,
    count_levels,
    integrate_divergence,
    make_probes,
    spread_levels,
    summarize_estimates,
)
from .noise import log_density, sample_noise
from .pipeline_base import PFGMPPBasePipeline
from .pipeline_checks import (
    check_batch_size,
    check_callback,
    check_editing,
    check_interval,
    check_is_denoiser,
    check_output_type,
    check_scheduler,
    check_sizes,
    warn_of_nonfinite,
)
from .pixels import read_picture  # noqa: F401 - likewise
from .preconditioning import find_output, name_dimension
from .scheduler_config import PortableConfig  # noqa: F401 - likewise
from .scheduling_pfgmpp import PFGMPPScheduler


class PFGMPPPipeline(PFGMPPBasePipeline):
    r"""
    Pipeline that generates images by following the field lines of PFGM++
    (https://huggingface.co/papers/2302.04265) from the prior to the data.

    Args:
        unet ([`PFGMPPUNet2DModel`], [`~diffusers.UNet2DModel`] or [`EmpiricalDenoiser`]): The
            network, trained with EDM's preconditioning: it takes c_in * x and c_noise.
        scheduler ([`PFGMPPScheduler`], [`~diffusers.EDMEulerScheduler`] or
            [`~diffusers.EDMDPMSolverMultistepScheduler`]): Owns D, the noise levels and the solver.
            diffusers' schedulers keep D when they are built by `from_config`; without it they stand for
            infinity.
        guidance_unet (`ModelMixin`, *optional*): A weaker network for the same task, for autoguidance
            (https://huggingface.co/papers/2406.02507).
        vae ([`~diffusers.AutoencoderKL`], [`~diffusers.AutoencoderTiny`], [`~diffusers.AutoencoderDC`] or
            another autoencoder of diffusers for images, *optional*): With it, whatever is an image outside
            is a latent inside, scaled and shifted as its configuration says.
        id2label (`dict[int, str]`, *optional*): Names of the classes. If it lacks a class, the network
            was not trained on that class, which is then neither drawn nor accepted.
        value_range (`tuple[float, float]`, *optional*): The data's own values of black and white, such as
            (0, 65535). Floats that come in or go out as images are in this range, and a grey picture
            leaves as a PIL image of mode I;16. None is [0, 1], and pictures of 8 bits. For fields, that is,
            data without black and white, `{"mean": [...], "deviation": [...]}` of each channel: values go in
            and out in the units of the data, as arrays or tensors, and none are clipped.

    Raises:
        ValueError: The components do not fit each other; the message names what differs.
    """

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        num_inference_steps: int | None = None,
        D: float | None = None,
        class_labels: ClassLabels = None,
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
        Generate images, or edit images.

        Args:
            batch_size (`int`, defaults to 1): Number of images; with `latents`, their number.
            num_inference_steps (`int`, *optional*): Number n of steps; by default the scheduler's
                `default_steps` or, without one, 18. Heun calls the network 2n - 1 times, the other
                solvers n times.
            D (`float`, *optional*): Augmented dimension for a network conditioned on D, `inf` for
                infinity. None is the scheduler's. A network trained at one D accepts no other.
                Outside the range in the scheduler's `D_range` the pipeline warns once.
            class_labels (`int`, `str`, list of them, `np.ndarray` or `torch.Tensor`, *optional*): Class
                of all images or of each, by number or by name. None draws classes with `generator` if
                the network is conditional, before the noise: a seed means the same class at every D.
            guidance_scale (`float`, defaults to 1.0): The w in F_0 + w (F - F_0); 1 is no guidance.
                F_0 is the output of `guidance_unet` if there is one (autoguidance), otherwise the
                network's output without a class (classifier-free guidance, for networks trained with
                label dropout).
            generator (`torch.Generator` or a list of them, *optional*): Makes generation
                deterministic. With a list, one per image, image i depends on generator i alone.
            latents (`torch.Tensor` of shape `(batch, channels, height, width)`, *optional*): Unit
                noise to start from, as from [`PFGMPPScheduler.sample_noise`]. The pipeline
                multiplies it by `init_noise_sigma`. Its shape is the network's, also with a `vae`.
            output_type (`str`, defaults to `"pil"`): `"pil"`; `"np"` of shape (batch, height,
                width, channels) in [0, 1]; `"pt"` of shape (batch, channels, height, width) in [0,
                1]; `"latent"`, the sample itself in about [-1, 1] or, with a `vae`, the latent. `"np"`
                and `"pt"` are in the pipeline's `value_range` if it has one.
            return_dict (`bool`, defaults to `True`): Whether to return an `ImagePipelineOutput` or
                a tuple.
            callback_on_step_end (`Callable`, *optional*): Called as `callback(pipe, step, timestep,
                tensors)` after each call of the network. The `latents` that it returns replace the
                pipeline's; the second half of a step of Heun leaves what was changed after the first as it
                is. Inside it, `pipe.scheduler` and `pipe.guidance_scale` show the state of this call, also
                where several threads call one pipeline.
            callback_on_step_end_tensor_inputs (`list[str]`, defaults to `["latents"]`): The tensors
                to pass to it: "latents", the sample, and "pred_original_sample", the denoised image
                so far.
            sigmas (`list[float]`, *optional*): The noise levels of the steps, decreasing and
                positive, instead of `num_inference_steps`.
            guidance_interval (`tuple[float, float]`, defaults to `(0, inf)`): Smallest and largest
                sigma at which to guide (https://huggingface.co/papers/2404.07724).
            image (`PIL.Image.Image`, list of them, `np.ndarray` or `torch.Tensor`, *optional*):
                Images to start from or, with `mask_image`, to keep in part, in any form that the
                pipeline returns but `"latent"`: PIL images of any mode; floats in [0, 1] or in the
                pipeline's `value_range`; integers in the range of their depth, [0, 255] for uint8;
                arrays of shape (batch, height, width, channels), tensors of shape (batch, channels,
                height, width). One image serves the whole batch.
            strength (`float`, defaults to 1.0): How far to perturb `image`, in (0, 1]: the fraction
                of the steps that are taken.
            mask_image (`PIL.Image.Image`, `np.ndarray` or `torch.Tensor`, *optional*): Where to
                repaint: pixels brighter than the middle, or True. The rest of `image` is kept as it is.
                With a `vae`, a latent is repainted if any of its pixels is.
            temperature (`float`, defaults to 1.0): Factor on the norm of the prior's samples
                (https://huggingface.co/papers/2209.11178, sec. 4); below 1 images vary less.

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
        pixels: torch.Tensor | None = None
        if image is not None:
            pixels = self._prepare_images(image, "image")
            if latents is None and batch_size == 1:
                batch_size = len(pixels)
        batch_size = check_batch_size(batch_size, latents, self.unet)
        check_generator(generator, batch_size)
        D = self._choose_dimension(D, batch_size)
        guidance_scale = check_guidance(guidance_scale, self.unet, self.guidance_unet)
        low, high = check_interval("guidance_interval", guidance_interval)
        check_output_type(output_type, self.image_channels, self.makes_fields)
        callback_on_step_end_tensor_inputs = check_callback(
            callback_on_step_end, callback_on_step_end_tensor_inputs, self._callback_tensor_inputs
        )
        temperature = check_number("temperature", temperature, "be positive", 0, exclude_low=True)
        strength = check_editing(pixels, strength, mask_image, batch_size)

        # 2. Choose the noise levels, on a copy of the scheduler that no other call shares
        device = self._execution_device
        self._arrange_weights(device)
        network_dtype = self.unet.dtype  # diffusers looks through all modules for it, so once
        dtype = torch.promote_types(network_dtype, torch.float32)  # half networks keep an exact state
        scheduler = copy.copy(self.scheduler)
        begin = self._set_noise_levels(scheduler, num_inference_steps, sigmas, strength, device)
        sigma = scheduler.sigmas[begin]
        timesteps = scheduler.timesteps[begin:]

        # 3. Draw the classes and the prior: unit Student-t noise, times the first noise level
        labels = self._prepare_labels(class_labels, batch_size, generator, device)
        shape = (batch_size, self.unet.config.in_channels, *get_sample_size(self.unet))
        if latents is None:
            latents = sample_noise(shape, D, generator, device, dtype, scheduler.config.get("max_noise_norm"))
        noise = latents.to(device, dtype) * temperature
        start = pixel_mask = mask = None
        latents = sigma * noise
        if pixels is not None:
            pixels = pixels.to(device, dtype)
            check_sizes(pixels, noise, get_factor(self.vae))
            if mask_image is not None:
                pixel_mask = prepare_mask(mask_image, pixels, batch_size)
                mask = shrink_mask(self.vae, pixel_mask)
            start = self._encode_start(pixels, pixel_mask, mask, strength)
            latents = start + latents

        # 4. Follow the field lines
        predict = self._make_predictor(scheduler, network_dtype, labels, D)
        dimension = name_dimension(scheduler, D)
        interrupted = False
        self._begin(scheduler, guidance_scale, len(timesteps))
        for step, t in enumerate(self.progress_bar(timesteps)):
            if interrupted or self.interrupt:
                continue
            sigma = scheduler.sigmas[begin + step]
            scale = guidance_scale if low <= sigma <= high else 1.0
            model_output = predict(latents, t, scale)
            if mask is not None:  # the part that is kept follows its own field line, whose end is known
                known = find_output(scheduler, latents, start, sigma, **dimension)
                model_output = torch.where(mask, model_output, known)
            tensors = {}
            if "pred_original_sample" in callback_on_step_end_tensor_inputs:
                denoised = scheduler.precondition_outputs(latents, model_output, sigma, **dimension)
                tensors["pred_original_sample"] = denoised
            latents = scheduler.step(
                model_output, t, latents, generator=generator, return_dict=False, **dimension
            )[0]
            if callback_on_step_end is not None:
                if "latents" in callback_on_step_end_tensor_inputs:
                    tensors["latents"] = latents
                state = (scheduler, step, t, tensors, latents, guidance_scale, len(timesteps))
                latents, guidance_scale, interrupted = self._call_back(callback_on_step_end, *state)
        if mask is not None:
            latents = torch.where(mask, latents, start)
        self._show_state(scheduler, guidance_scale, len(timesteps))

        # 5. Turn the samples into images
        images = self._convert_latents(latents, output_type, pixels, pixel_mask)
        self.maybe_free_model_hooks()
        if not return_dict:
            return (images,)
        return ImagePipelineOutput(images=images)

    def _encode_start(
        self,
        pixels: torch.Tensor,
        pixel_mask: torch.Tensor | None,
        mask: torch.Tensor | None,
        strength: float,
    ) -> torch.Tensor:
        """Encode the images to start from; at full strength nothing of the repainted part remains."""
        if pixel_mask is None or mask is None or strength < 1:
            return self.encode_images(pixels)
        return torch.where(mask, 0.0, self.encode_images(torch.where(pixel_mask, 0.0, pixels)))

    def _convert_latents(
        self,
        latents: torch.Tensor,
        output_type: str,
        pixels: torch.Tensor | None,
        pixel_mask: torch.Tensor | None,
    ) -> Any:
        """Convert latents to images, of which the part that is kept is that of the original."""
        images = latents if output_type == "latent" else self.decode_latents(latents)
        warn_of_nonfinite(images)
        if output_type != "latent" and pixel_mask is not None:
            images = torch.where(pixel_mask, images, pixels)
        return convert_samples(images, output_type, self._value_range)

    @torch.no_grad()
    def invert(
        self,
        images: Images,
        num_inference_steps: int = 64,
        D: float | None = None,
        class_labels: ClassLabels = None,
    ) -> torch.Tensor:
        r"""
        Follow the field lines of images back to the prior, by Heun's method.

        `pipe(latents=pipe.invert(images), ...)` with the same steps and classes returns the images,
        up to the solver's error.

        Args:
            images (`PIL.Image.Image`, list of them, `np.ndarray` or `torch.Tensor`): Images as in
                [`__call__`]'s `image`.
            num_inference_steps (`int`, defaults to 64): Number n of noise levels. The network is
                called 2n - 2 times.
            D (`float`, *optional*): As in [`__call__`].
            class_labels (`int`, `str`, list of them, `np.ndarray` or `torch.Tensor`, *optional*):
                Classes of the images, by number or by name; None is no class.

        Returns:
            `torch.Tensor` of shape `(batch, channels, height, width)`: Unit latents.

        Raises:
            ValueError: An argument does not fit the network or the others; the message names it.
        """
        check_is_denoiser(self.scheduler, "invert")
        pixels = self._prepare_images(images, "images")
        D = self._choose_dimension(D, len(pixels))
        x, labels, scheduler = self._prepare_reverse(pixels, num_inference_steps, class_labels)
        predict = self._make_predictor(scheduler, self.unet.dtype, labels, D)
        for t in self.progress_bar(scheduler.timesteps):
            x = scheduler.step(predict(x, t), t, x, return_dict=False, D=D)[0]
        self.maybe_free_model_hooks()
        return x / scheduler.sigmas[-1]

    def log_likelihood(
        self,
        images: Images,
        num_inference_steps: int = 64,
        D: float | None = None,
        class_labels: ClassLabels = None,
        trace: str = "hutchinson",
        num_repeats: int = 1,
        dequantize: bool = True,
        generator: torch.Generator | None = None,
    ) -> PFGMPPLikelihoodOutput:
        r"""
        Estimate the likelihood of images by the change of volume along their field lines; see
        [`~pipeline_pfgmpp.likelihood`].

        With a `vae` it is that of the images' latents, which says nothing of how well these decode.

        Args:
            images (`PIL.Image.Image`, list of them, `np.ndarray` or `torch.Tensor`): Images as in
                [`__call__`]'s `image`.
            num_inference_steps (`int`, defaults to 64): Number n of noise levels. The network is
                differentiated 2n - 2 times.
            D (`float`, *optional*): As in [`__call__`].
            class_labels (`int`, `str`, list of them, `np.ndarray` or `torch.Tensor`, *optional*):
                Classes of the images, by number or by name; None is no class.
            trace (`str`, defaults to `"hutchinson"`): `"hutchinson"`, an unbiased estimate from one
                random direction, or `"exact"`, which differentiates once per dimension.
            num_repeats (`int`, defaults to 1): Number of estimates with different random numbers, for
                the mean and its error.
            dequantize (`bool`, defaults to `True`): Whether to spread each level, of 256 or one per integer
                in `value_range`, over its width, so that the density bounds the probability of levels.
                Latents and fields have no levels, and stay what they are.
            generator (`torch.Generator`, *optional*): Source of dequantisation and directions.

        Returns:
            [`PFGMPPLikelihoodOutput`]: Nats, bits per dimension (per value of a latent with a `vae`), and the
                standard error.

        Raises:
            ValueError: An argument does not fit the network or the others; the message names it. Or
                `torch.inference_mode()` is on.
        """
        if torch.is_inference_mode_enabled():
            raise ValueError("`log_likelihood` differentiates: call it outside of `torch.inference_mode()`.")
        check_is_denoiser(self.scheduler, "log_likelihood")
        check_choice("trace", trace, ["hutchinson", "exact"])
        num_repeats = check_integer("num_repeats", num_repeats, "be a positive integer", 1)
        check_generator(generator, None)
        original = self._prepare_images(images, "images")
        D = self._choose_dimension(D, len(original))
        levels = None
        if self.vae is None and not self.makes_fields:
            levels = count_levels(self._value_range, dequantize)
        estimates = []
        for _ in range(num_repeats):
            x, labels, scheduler = self._prepare_reverse(original, num_inference_steps, class_labels)
            if dequantize and levels is not None:
                x = spread_levels(x, generator, levels)
            probes = make_probes(x, trace, generator)
            predict = self._make_predictor(scheduler, self.unet.dtype, labels, D)
            timesteps = self.progress_bar(scheduler.timesteps)
            x, volume = integrate_divergence(predict, scheduler, x, probes, timesteps, D)
            estimates.append(log_density(x, D, scheduler.sigmas[-1]).to(volume) + volume)
        self.maybe_free_model_hooks()
        return summarize_estimates(torch.stack(estimates), x[0].numel(), levels)

    def _prepare_reverse(
        self, pixels: torch.Tensor, num_inference_steps: int, class_labels: ClassLabels
    ) -> tuple[torch.Tensor, torch.Tensor | None, PFGMPPScheduler]:
        """Return latents at the smallest noise level, their classes and a scheduler that leads up."""
        check_scheduler(self.scheduler, self.unet)
        num_inference_steps = check_integer("num_inference_steps", num_inference_steps, "be at least 2", 2)
        device = self._execution_device
        self._arrange_weights(device)
        x = self.encode_images(pixels.to(device, torch.promote_types(self.unet.dtype, torch.float32)))
        without = class_labels is None
        labels = None if without else self._prepare_labels(class_labels, len(x), None, device)
        scheduler = PFGMPPScheduler.from_config(self.scheduler.config, solver_type="heun", s_churn=0.0)
        scheduler.set_timesteps(num_inference_steps, device=device, reverse=True)
        scheduler.set_begin_index(0)
        return x, labels, scheduler


# diffusers expects one class of pipelines in the file that it loads one from.
del PFGMPPBasePipeline
