# Copyright 2026 The pipeline_pfgmpp authors. Licensed under the Apache License, Version 2.0.
r"""
Restoration of images with PFGM++: denoising and whatever else a network was trained to undo.

The network sees a degraded image y beside the noisy one (https://huggingface.co/papers/2312.09754). From
the prior its field lines lead to samples of the posterior, the images that y may have been. They may also
be entered midway, at y itself and the noise level $\sigma_a$ ("hijacking"). After each step from $\sigma_i$
to $\sigma_{i+1}$ the sample may be drawn back to y by a weight w,

$$x_{i+1} = w\,\Bigl(x_i + (\sigma_{i+1} - \sigma_i)\,\frac{x_i - F(x_i, y, \sigma_i)}{\sigma_i}\Bigr)
  + (1 - w)\,y,$$

where F is the denoised image (Euler's step). One step from $x_0 = y$ to $\sigma_1 = 0$ gives
$w\,F(y, y, \sigma_a) + (1 - w)\,y$: one call of the network.
"""

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from diffusers import EDMDPMSolverMultistepScheduler, ImagePipelineOutput
from diffusers.utils import logging

from .arguments import check_generator, check_integer, check_number
from .code_files import copy_files  # noqa: F401 - diffusers copies only what this file itself imports
from .conditioning import ClassLabels, call_guided, check_guidance
from .images import SLACK, UNIT, Images, convert_samples, prepare_images, require_range
from .latents import count_image_channels, get_factor
from .noise import sample_noise
from .pipeline_base import PFGMPPBasePipeline
from .pipeline_checks import check_callback, check_output_type, warn_of_nonfinite
from .pixels import read_picture  # noqa: F401 - likewise
from .preconditioning import name_dimension, takes_dimension
from .scheduler_config import PortableConfig  # noqa: F401 - likewise
from .tiles import call_in_tiles


logger = logging.get_logger(__name__)

DETERMINISTIC = ("heun", "euler", "dpmpp_2m", "dpmpp_3m")  # solvers that add no noise, but for churn


class PFGMPPRestorationPipeline(PFGMPPBasePipeline):
    r"""
    Pipeline that restores degraded images by a network that is conditioned on them.

    Its components are those of [`PFGMPPPipeline`]; the network has `condition_channels`. With a `vae` the
    condition is encoded, the noise levels are those of latents, and what is restored is decoded.
    """

    @property
    def condition_channels(self) -> int:
        """Number of channels of degraded images; 0 for a network that restores none."""
        channels = self.unet.config.get("condition_channels") or 0
        return channels and count_image_channels(self.vae, channels)

    @torch.no_grad()
    def __call__(
        self,
        image: Images,
        num_inference_steps: int | None = None,
        start_sigma: float | None = None,
        blend: float = 1.0,
        D: float | None = None,
        class_labels: ClassLabels = None,
        guidance_scale: float = 1.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ["latents"],
        num_images_per_condition: int = 1,
        tile_size: int | None = None,
    ) -> ImagePipelineOutput | tuple:
        r"""
        Restore images.

        The mean of several samples of the posterior is the best estimate, and their standard deviation a
        map of how sure it is:

        ```py
        samples = pipe(image, num_images_per_condition=8, output_type="pt").images.unflatten(0, (-1, 8))
        mean = samples.mean(1)
        deviation = samples.std(1)
        ```

        Args:
            image (`PIL.Image.Image`, list of them, `np.ndarray` or `torch.Tensor`): The degraded images y,
                of any one size: PIL images of any mode; floats in [0, 1] or in the pipeline's
                `value_range`; integers in the range of their depth; arrays of shape (batch, height, width,
                channels), tensors of shape (batch, channels, height, width). Values outside the range, up
                to its width, are taken with a warning.
            num_inference_steps (`int`, *optional*): Number of steps; by default the scheduler's
                `default_steps` or, without one, 18.
            start_sigma (`float`, *optional*): Noise level at which to enter the field lines at the degraded
                image itself, with levels from there down that are spaced as the scheduler's. None starts
                from the prior, which gives samples of the posterior.
            blend (`float`, defaults to 1.0): Weight w of the restored image after each step, in [0, 1]; the
                rest is the degraded image.
            D (`float`, *optional*): Augmented dimension, as in [`PFGMPPPipeline.__call__`].
            class_labels (`int`, `str`, list of them, `np.ndarray` or `torch.Tensor`, *optional*): Classes,
                of all degraded images or of each, as in [`PFGMPPPipeline.__call__`].
            guidance_scale (`float`, defaults to 1.0): The w in F_0 + w (F - F_0); 1 is no guidance. F_0 is
                the output of `guidance_unet` if there is one, otherwise the network's output without the
                degraded image, for networks trained with condition dropout.
            generator (`torch.Generator` or a list of them, *optional*): Source of the prior and of
                stochastic solvers. With a list, one per restored image, image i depends on generator i
                alone.
            output_type (`str`, defaults to `"pil"`): As in [`PFGMPPPipeline.__call__`]. `"latent"` alone
                keeps what lies outside the range of values. With a `vae` it is the latent, of as many rows
                and columns as the image begins.
            return_dict (`bool`, defaults to `True`): Whether to return an `ImagePipelineOutput` or a tuple.
            callback_on_step_end (`Callable`, *optional*), callback_on_step_end_tensor_inputs (`list[str]`):
                As in [`PFGMPPPipeline.__call__`]. `latents` are of the size to which images are padded.
            num_images_per_condition (`int`, defaults to 1): Number n of samples of the posterior per
                degraded image. The n samples of the first image come first, as in diffusers.
            tile_size (`int`, *optional*): Side of the tiles on which the network is called one after the
                other, in pixels; None calls it on whole images. Neighbouring tiles overlap by a quarter.
                What lies within a sixteenth of the side of a cut is not used, so a network that sees no
                farther gives the same image as without tiles. Group normalisation and attention see the
                whole tile: choose at least the size that the network was trained on. A `vae` sees whole
                images, unless `vae.enable_tiling()` says otherwise.

        Returns:
            `ImagePipelineOutput` or `tuple`: The restored images, of the size of the degraded ones.

        Raises:
            ValueError: An argument does not fit the network or the others; the message names it.
        """
        # 1. Check the arguments
        degraded = self._prepare_degraded(image)
        repeats = check_integer(
            "num_images_per_condition", num_images_per_condition, "be a positive integer", 1
        )
        batch_size = len(degraded) * repeats
        height, width = degraded.shape[2:]
        check_generator(generator, batch_size)
        D = self._choose_dimension(D, len(degraded))
        check_output_type(output_type, self.image_channels)
        callback_on_step_end_tensor_inputs = check_callback(
            callback_on_step_end, callback_on_step_end_tensor_inputs, self._callback_tensor_inputs
        )
        blend = check_number("blend", blend, "lie in [0, 1]", 0, 1)
        guidance_scale = check_guidance(guidance_scale, self.unet, self.guidance_unet)
        self._check_entry(start_sigma, blend)
        divisor = 2 ** (len(self.unet.config.channel_mult) - 1)
        factor = get_factor(self.vae)
        tile_size = _check_tile_size(tile_size, divisor, factor)

        # 2. Choose the noise levels, on a scheduler that no other call shares
        device = self._execution_device
        self._arrange_weights(device)
        scheduler = self._make_scheduler(start_sigma, num_inference_steps, device)
        _check_randomness(scheduler, start_sigma, repeats)

        # 3. Draw the classes and the prior, or enter at the degraded image
        network_dtype = self.unet.dtype  # diffusers looks through all modules for it, so once
        dtype = torch.promote_types(network_dtype, torch.float32)
        if class_labels is None:
            labels = self._prepare_labels(None, batch_size, generator, device)
        else:
            labels = self._prepare_labels(class_labels, len(degraded), None, device)
            labels = None if labels is None else labels.repeat_interleave(repeats, 0)
        if isinstance(D, torch.Tensor) and D.ndim:
            D = D.repeat_interleave(repeats)
        degraded = _pad_by_reflection(degraded.to(device, dtype), divisor * factor)
        degraded = self.encode_images(degraded).repeat_interleave(repeats, 0)
        latents = degraded
        if start_sigma is None:
            shape = (batch_size, self.unet.config.in_channels, *degraded.shape[2:])
            limit = scheduler.config.get("max_noise_norm")
            latents = scheduler.sigmas[0] * sample_noise(shape, D, generator, device, dtype, limit)

        # 4. Follow the field lines
        predict = self._make_restorer(scheduler, network_dtype, degraded, labels, D, tile_size, divisor)
        dimension = name_dimension(scheduler, D)
        interrupted = False
        num_calls = len(scheduler.timesteps)
        self._begin(scheduler, guidance_scale, num_calls)
        for step, t in enumerate(self.progress_bar(scheduler.timesteps)):
            if interrupted or self.interrupt:
                continue
            output = predict(latents, t, guidance_scale)
            tensors = {}
            if "pred_original_sample" in callback_on_step_end_tensor_inputs:
                sigma = scheduler.sigmas[step]
                denoised = scheduler.precondition_outputs(latents, output, sigma, **dimension)
                tensors["pred_original_sample"] = denoised
            latents = scheduler.step(output, t, latents, generator=generator, return_dict=False, **dimension)[
                0
            ]
            is_end_of_step = (step + 1) % scheduler.order == 0 or step + 1 == num_calls
            if blend < 1 and is_end_of_step:
                latents = torch.lerp(degraded, latents, blend)
            if callback_on_step_end is not None:
                if "latents" in callback_on_step_end_tensor_inputs:
                    tensors["latents"] = latents
                state = (scheduler, step, t, tensors, latents, guidance_scale, num_calls)
                latents, guidance_scale, interrupted = self._call_back(callback_on_step_end, *state)
        self._show_state(scheduler, guidance_scale, num_calls)

        # 5. Turn the samples into images
        images = latents[..., : -(-height // factor), : -(-width // factor)]
        if output_type != "latent":
            images = self.decode_latents(latents)[..., :height, :width]
        self.maybe_free_model_hooks()
        warn_of_nonfinite(images)
        images = convert_samples(images, output_type, self._value_range)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _make_restorer(
        self,
        scheduler: Any,
        dtype: torch.dtype,
        degraded: torch.Tensor,
        class_labels: torch.Tensor | None,
        D: float | torch.Tensor | None,
        tile_size: int | None,
        divisor: int,
    ) -> Callable[..., torch.Tensor]:
        """Make the function that computes the network's raw output, in tiles if there is their size."""
        dimension = name_dimension(scheduler, D)

        def predict(latents: torch.Tensor, t: torch.Tensor, guidance_scale: float = 1.0) -> torch.Tensor:
            def call(model_input: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
                unets = (self.unet, self.guidance_unet)
                output = call_guided(*unets, guidance_scale, model_input, t, class_labels, D, condition)
                return output.to(latents.dtype)

            inputs = [
                scheduler.scale_model_input(each, t, **dimension).to(dtype) for each in (latents, degraded)
            ]
            if tile_size is None:
                return call(*inputs)
            return call_in_tiles(call, inputs, tile_size, divisor)

        return predict

    def _prepare_degraded(self, image: Images) -> torch.Tensor:
        """Convert degraded images to a tensor in about [-1, 1], or refuse them."""
        channels = self.condition_channels
        if not channels:
            raise ValueError(
                "`unet` must be conditioned on an image to restore others, but its `condition_channels` is 0."
            )
        low, high = require_range(self._value_range or UNIT)
        degraded = prepare_images(image, "image", channels, None, self._value_range, SLACK)
        if bool((degraded.abs() > 1).any()):
            logger.warning(
                f"`image` holds values outside [{low:g}, {high:g}], the range that the network was trained"
                ' for; the pipeline returns none such, except with `output_type="latent"`.'
            )
        return degraded

    def _check_entry(self, start_sigma: float | None, blend: float) -> None:
        """Refuse an entry at degraded images of other channels than the restored ones."""
        channels = self.unet.config.condition_channels
        restored_channels = self.unet.config.in_channels
        if channels != restored_channels and (blend < 1 or start_sigma is not None):
            raise ValueError(
                f"`start_sigma` and `blend` need degraded images of as many channels as the restored ones,"
                f" {restored_channels}, but `image` has {channels}."
            )

    def _make_scheduler(
        self, start_sigma: float | None, num_inference_steps: int | None, device: torch.device
    ) -> Any:
        """Make a scheduler that begins at the prior, or lower with the same spacing from there down."""
        config = self.scheduler.config
        if start_sigma is None:
            scheduler = copy.copy(self.scheduler)
            self._set_noise_levels(scheduler, num_inference_steps, None, 1.0, device)
            return scheduler
        requirement = (
            f"lie above {config.sigma_min:g} and up to {config.sigma_max:g}, the model's noise levels"
        )
        start_sigma = check_number(
            "start_sigma", start_sigma, requirement, config.sigma_min, config.sigma_max, exclude_low=True
        )
        options: dict[str, Any] = {"sigma_max": start_sigma}
        if config.get("s_churn"):  # the degraded image is where it enters, at no higher level
            options["s_tmax"] = min(config.s_tmax or math.inf, start_sigma * (1 - 1e-6))
        scheduler = self.scheduler.from_config(config, **options)
        self._set_noise_levels(scheduler, num_inference_steps, None, 1.0, device)
        # The levels are those of this call, and the configuration is the model's.
        scheduler.register_to_config(**config)
        return scheduler


def is_deterministic(scheduler: Any, num_steps: int) -> bool:
    """
    Tell whether a scheduler adds no noise on the way, so that the same start always has the same end.

    Args:
        scheduler (`SchedulerMixin`): The scheduler, ours or one of diffusers that fits.
        num_steps (`int`): Number of steps or calls, of which the last adds no noise.

    Returns:
        `bool`: Whether it adds none.
    """
    config = scheduler.config
    if num_steps == 1 and config.final_sigmas_type == "zero":
        return True
    if isinstance(scheduler, EDMDPMSolverMultistepScheduler):
        return not config.algorithm_type.startswith("sde")
    if not takes_dimension(scheduler):  # diffusers' EDMEulerScheduler, whose churn is never asked for
        return True
    return config.solver_type in DETERMINISTIC and not config.s_churn


def _check_randomness(scheduler: Any, start_sigma: float | None, repeats: int) -> None:
    """Refuse to draw several samples of an image that would all be equal."""
    calls = len(scheduler.timesteps)
    if repeats > 1 and start_sigma is not None and is_deterministic(scheduler, calls):
        raise ValueError(
            "Several samples per image (`num_images_per_condition`) need noise on the way, but with"
            f" `start_sigma` {calls} calls of this solver draw nothing at random."
        )


def _check_tile_size(tile_size: Any, divisor: int, factor: int) -> int | None:
    """Return the side of tiles of latents, or refuse that of images."""
    if tile_size is None:
        return None
    divisor *= factor
    requirement = f"be a multiple of {divisor} and at least {2 * divisor} for this network"
    number = check_integer("tile_size", tile_size, requirement, 2 * divisor)
    if number % divisor:
        raise ValueError(f"`tile_size` must {requirement}, but is {tile_size}.")
    return number // factor


def _pad_by_reflection(images: torch.Tensor, divisor: int) -> torch.Tensor:
    """Pad images at the bottom and on the right to multiples of a number, as often reflected as need be."""
    for dim in (2, 3):
        size = images.shape[dim]
        index = torch.arange(-(-size // divisor) * divisor, device=images.device)
        period = max(2 * size - 2, 1)
        index = index % period
        images = images.index_select(dim, torch.minimum(index, period - index))
    return images


# diffusers expects one class of pipelines in the file that it loads one from.
del PFGMPPBasePipeline
