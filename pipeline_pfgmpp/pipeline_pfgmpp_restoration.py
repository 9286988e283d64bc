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
from typing import Any

import torch
from diffusers import ImagePipelineOutput
from diffusers.utils import logging

from .arguments import check_generator, check_number
from .code_files import copy_files  # noqa: F401 - diffusers copies only what this file itself imports
from .conditioning import ClassLabels, call_network
from .images import Images, convert_samples, prepare_images
from .likelihood import spread_levels  # noqa: F401 - likewise
from .noise import sample_noise
from .pipeline_checks import check_output_type, warn_of_nonfinite
from .pipeline_pfgmpp import PFGMPPPipeline
from .pixels import read_picture  # noqa: F401 - likewise
from .scheduler_config import PortableConfig  # noqa: F401 - likewise
from .scheduling_pfgmpp import PFGMPPScheduler  # noqa: F401 - likewise


logger = logging.get_logger(__name__)

SLACK = 1.0  # how far images may lie outside the range of values, in widths of it: metal in a CT does


class PFGMPPRestorationPipeline(PFGMPPPipeline):
    r"""
    Pipeline that restores degraded images by a network that is conditioned on them.

    Its components are those of [`PFGMPPPipeline`]; the network has `condition_channels`.
    """

    @torch.no_grad()
    def __call__(  # type: ignore[override]  # called with images, not with their number
        self,
        image: Images,
        num_inference_steps: int | None = None,
        start_sigma: float | None = None,
        blend: float = 1.0,
        D: float | None = None,
        class_labels: ClassLabels = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple:
        r"""
        Restore images.

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
                as in [`PFGMPPPipeline.__call__`].
            generator (`torch.Generator` or a list of them, *optional*): Source of the prior and of
                stochastic solvers. With a list, one per image, image i depends on generator i alone.
            output_type (`str`, defaults to `"pil"`): As in [`PFGMPPPipeline.__call__`]. `"latent"` alone
                keeps what lies outside the range of values.
            return_dict (`bool`, defaults to `True`): Whether to return an `ImagePipelineOutput` or a tuple.

        Returns:
            `ImagePipelineOutput` or `tuple`: The restored images, of the size of the degraded ones.

        Raises:
            ValueError: An argument does not fit the network or the others; the message names it.
        """
        # 1. Check the arguments
        degraded = self._prepare_degraded(image)
        batch_size, _, height, width = degraded.shape
        check_generator(generator, batch_size)
        D = self._choose_dimension(D, batch_size)
        check_output_type(output_type, self.unet)
        blend = check_number("blend", blend, "lie in [0, 1]", 0, 1)
        channels = self.unet.config.in_channels
        if degraded.shape[1] != channels and (blend < 1 or start_sigma is not None):
            raise ValueError(
                f"`start_sigma` and `blend` need degraded images of as many channels as the restored ones,"
                f" {channels}, but `image` has {degraded.shape[1]}."
            )

        # 2. Choose the noise levels, on a scheduler that no other call shares
        device = self._execution_device
        self._arrange_weights()
        scheduler = self._make_scheduler(start_sigma)
        self._set_noise_levels(scheduler, num_inference_steps, None, 1.0, device)

        # 3. Draw the classes and the prior, or enter at the degraded image
        dtype = torch.promote_types(self.unet.dtype, torch.float32)
        degraded = _pad_by_reflection(
            degraded.to(device, dtype), 2 ** (len(self.unet.config.channel_mult) - 1)
        )
        labels = self._prepare_labels(class_labels, batch_size, generator, device)
        latents = degraded
        if start_sigma is None:
            shape = (batch_size, channels, *degraded.shape[2:])
            limit = scheduler.config.get("max_noise_norm")
            latents = scheduler.sigmas[0] * sample_noise(shape, D, generator, device, dtype, limit)

        # 4. Follow the field lines
        step_options: dict[str, Any] = {"generator": generator}
        if self._scheduler_is_ours:
            step_options["D"] = D
        num_calls = len(scheduler.timesteps)
        for call, t in enumerate(self.progress_bar(scheduler.timesteps), start=1):
            model_input = scheduler.scale_model_input(latents, t)
            condition = scheduler.scale_model_input(degraded, t).to(self.unet.dtype)
            output = call_network(self.unet, model_input, t, labels, D, condition).to(dtype)
            latents = scheduler.step(output, t, latents, return_dict=False, **step_options)[0]
            is_end_of_step = call % scheduler.order == 0 or call == num_calls
            if blend < 1 and is_end_of_step:
                latents = torch.lerp(degraded, latents, blend)

        # 5. Turn the samples into images
        self.maybe_free_model_hooks()
        self._num_timesteps = num_calls
        warn_of_nonfinite(latents)
        images = convert_samples(latents[..., :height, :width], output_type, self._value_range)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _prepare_degraded(self, image: Images) -> torch.Tensor:
        """Convert degraded images to a tensor in about [-1, 1], or refuse them."""
        channels = self.unet.config.get("condition_channels")
        if not channels:
            raise ValueError(
                "`unet` must be conditioned on an image to restore others, but its `condition_channels` is 0."
            )
        degraded = prepare_images(image, "image", channels, None, self._value_range, SLACK)
        if bool((degraded.abs() > 1).any()):
            low, high = self._value_range or (0.0, 1.0)
            logger.warning(
                f"`image` holds values outside [{low:g}, {high:g}], the range that the network was trained"
                ' for; in the result they are clipped, except with `output_type="latent"`.'
            )
        return degraded

    def _make_scheduler(self, start_sigma: float | None) -> Any:
        """Make a scheduler that begins at the prior, or lower with the same spacing from there down."""
        config = self.scheduler.config
        if start_sigma is None:
            return copy.copy(self.scheduler)
        requirement = (
            f"lie above {config.sigma_min:g} and up to {config.sigma_max:g}, the model's noise levels"
        )
        start_sigma = check_number(
            "start_sigma", start_sigma, requirement, config.sigma_min, config.sigma_max, exclude_low=True
        )
        options: dict[str, Any] = {"sigma_max": start_sigma}
        if config.get("sigmas"):  # tuned from the prior on
            options["sigmas"] = None
        return self.scheduler.from_config(config, **options)


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
del PFGMPPPipeline
