# Copyright 2026 The pipeline_pfgmpp authors. Licensed under the Apache License, Version 2.0.
"""Checks of a pipeline's components, and of the arguments of its call against them."""

import math
from typing import Any

import torch
from diffusers import EDMDPMSolverMultistepScheduler, EDMEulerScheduler
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.utils import logging

from .arguments import check_choice, check_integer, check_number, check_tensor, describe
from .conditioning import count_classes, get_sample_size
from .images import OUTPUT_TYPES
from .latents import check_autoencoder
from .preconditioning import takes_dimension


logger = logging.get_logger(__name__)


def check_scheduler(scheduler: Any, unet: Any) -> None:
    """
    Refuse a scheduler without the preconditioning of a network, since it would not make images.

    Args:
        scheduler (`SchedulerMixin`): The scheduler.
        unet (`ModelMixin`): The network.

    Raises:
        ValueError: It is none of those that fit, or is set to another preconditioning.
    """
    if not isinstance(scheduler, (EDMEulerScheduler, EDMDPMSolverMultistepScheduler)):
        raise ValueError(
            "`scheduler` must be a PFGMPPScheduler or, of diffusers, an EDMEulerScheduler or an"
            " EDMDPMSolverMultistepScheduler, since others lack EDM's preconditioning, but is"
            f" {type(scheduler).__name__}."
        )
    preconditioning = scheduler.config.get("preconditioning", "edm")
    if preconditioning != "edm" and not takes_dimension(scheduler):
        raise ValueError(
            f"`scheduler` must be a PFGMPPScheduler for `preconditioning` {preconditioning!r}, but is"
            f" {type(scheduler).__name__}, which has only EDM's."
        )
    prediction = scheduler.config.get("prediction_type", "epsilon")
    if prediction != "epsilon":
        raise ValueError(
            "`prediction_type` of the scheduler must be 'epsilon', as EDM's networks are trained, but is"
            f" {prediction!r}."
        )
    sigma_data = scheduler.config.sigma_data
    if unet.config.get("sigma_data", sigma_data) != sigma_data:
        raise ValueError(
            f"`sigma_data` is {unet.config.sigma_data} in the network but {sigma_data} in the scheduler."
        )
    own = unet.config.get("preconditioning", "edm")
    if "sigma_data" in unet.config and own != preconditioning:  # a network that undoes it
        raise ValueError(
            f"`preconditioning` is {own!r} in the network but {preconditioning!r} in the scheduler."
        )


def check_is_denoiser(scheduler: Any, action: str) -> None:
    """
    Refuse to follow field lines by a network that jumps to their ends.

    Args:
        scheduler (`SchedulerMixin`): The scheduler.
        action (`str`): The method that was called.

    Raises:
        ValueError: The scheduler's solver is that of consistency models.
    """
    if scheduler.config.get("solver_type") == "consistency":
        raise ValueError(
            f"`{action}` needs a denoiser, but this is a model of few calls (its scheduler's `solver_type` is"
            " 'consistency'), which gives only the ends of field lines: use the model it was tuned from."
        )


def check_components(unet: Any, scheduler: Any, guidance_unet: Any | None, vae: Any | None) -> None:
    """
    Refuse components that do not fit each other.

    Args:
        unet (`ModelMixin`): The network.
        scheduler (`SchedulerMixin`): The scheduler.
        guidance_unet (`ModelMixin`, *optional*): The network that guides.
        vae (`ModelMixin`, *optional*): The autoencoder.

    Raises:
        ValueError: They do not fit; the message names what differs.
    """
    check_scheduler(scheduler, unet)
    channels = unet.config.in_channels
    if unet.config.get("out_channels", channels) != channels:
        raise ValueError(
            f"`unet` must return as many channels as it takes, but takes {channels} and returns"
            f" {unet.config.out_channels}."
        )
    _check_latents(unet, vae)
    if guidance_unet is None:
        return
    if get_sample_size(guidance_unet) != get_sample_size(unet):
        raise ValueError(
            f"`sample_size` is {guidance_unet.config.sample_size} in `guidance_unet` but"
            f" {unet.config.sample_size} in `unet`."
        )
    for name in ("in_channels", "condition_channels"):
        weak, own = (network.config.get(name) or 0 for network in (guidance_unet, unet))
        if weak != own:
            raise ValueError(f"`{name}` is {weak} in `guidance_unet` but {own} in `unet`.")
    classes = count_classes(guidance_unet)
    if classes not in (0, count_classes(unet)):
        raise ValueError(
            f"`guidance_unet` must have no classes or those of `unet`, but has {classes}, and `unet` has"
            f" {count_classes(unet)}."
        )


def _check_latents(unet: Any, vae: Any | None) -> None:
    """Refuse an autoencoder whose latents the network does not take."""
    check_autoencoder(vae)
    if vae is None:
        return
    made = vae.config.latent_channels
    for name in ("in_channels", "condition_channels"):
        taken = unet.config.get(name) or made
        if taken != made:
            raise ValueError(f"`{name}` of `unet` is {taken}, but `vae` makes latents of {made} channels.")


def check_batch_size(batch_size: Any, latents: Any, unet: Any) -> int:
    """
    Return the number of images to generate.

    Args:
        batch_size (`int`): The number that was asked for; with latents, 1 or their number.
        latents (`torch.Tensor`, *optional*): Unit noise to start from.
        unet (`ModelMixin`): The network, whose channels the latents must have.

    Returns:
        `int`: The number.

    Raises:
        ValueError: It is not a positive integer, or the latents do not fit it or the network.
    """
    batch_size = check_integer("batch_size", batch_size, "be a positive integer", 1)
    if latents is None:
        return batch_size
    latents = check_tensor("latents", latents)
    channels = unet.config.in_channels
    if latents.ndim != 4 or latents.shape[1] != channels or not len(latents):
        shape = (batch_size, channels, *get_sample_size(unet))
        raise ValueError(f"`latents` must be of shape {shape}, but are {tuple(latents.shape)}.")
    if batch_size not in (1, len(latents)):
        raise ValueError(f"`batch_size` must be that of `latents`, {len(latents)}, but is {batch_size}.")
    return len(latents)


def check_interval(name: str, interval: Any) -> tuple[float, float]:
    """
    Return an interval of noise levels, or refuse it.

    Args:
        name (`str`): Name of the argument.
        interval (`tuple[float, float]`): Its ends; the upper one may be infinite.

    Returns:
        `tuple[float, float]`: Its ends.

    Raises:
        ValueError: It is not two numbers in increasing order, from 0 on.
    """
    requirement = f"be (low, high) with 0 <= low <= high, as in {(0.2, 5.0)}"
    if not isinstance(interval, (list, tuple)) or len(interval) != 2:
        raise ValueError(f"`{name}` must {requirement}, but is {interval!r}.")
    low = check_number(name, interval[0], requirement, 0, math.inf)
    high = check_number(name, interval[1], requirement, low, math.inf)
    return low, high


def check_output_type(output_type: Any, channels: int, makes_fields: bool = False) -> None:
    """
    Refuse a form of images that does not exist, or that cannot hold their channels.

    Args:
        output_type (`str`): The form.
        channels (`int`): The channels of the images.
        makes_fields (`bool`, defaults to `False`): Whether they are fields, and no pictures.

    Raises:
        ValueError: It is no such form.
    """
    check_choice("output_type", output_type, OUTPUT_TYPES)
    if output_type == "pil" and makes_fields:
        raise ValueError(
            f"`output_type` must be one of {OUTPUT_TYPES[1:]} for fields, which are no pictures, but is"
            " 'pil'."
        )
    if output_type == "pil" and channels > 4:
        raise ValueError(
            f"`output_type` must be one of {OUTPUT_TYPES[1:]} for images of {channels} channels, since a"
            " picture has at most 4, but is 'pil'."
        )


def check_callback(callback: Any, names: Any, allowed: list[str]) -> list[str]:
    """
    Refuse a callback that cannot be called, or that wants what the pipeline does not have.

    Args:
        callback (`Callable` or `PipelineCallback`, *optional*): The callback.
        names (`list[str]`): Names of the tensors that the callback wants. A `PipelineCallback` of diffusers
            knows them itself.
        allowed (`list[str]`): Names of those that there are.

    Returns:
        `list[str]`: Names of the tensors that the callback wants.

    Raises:
        ValueError: The callback is no function, or the names are no list of these.
    """
    if callback is not None and not callable(callback):
        raise ValueError(f"`callback_on_step_end` must be a function, but is {describe(callback)}.")
    if isinstance(callback, (PipelineCallback, MultiPipelineCallbacks)):
        names = callback.tensor_inputs
    if not isinstance(names, (list, tuple)) or any(name not in allowed for name in names):
        raise ValueError(f"`callback_on_step_end_tensor_inputs` may hold {allowed}, but is {names!r}.")
    return list(names)


def check_changed(latents: Any, old: torch.Tensor) -> torch.Tensor:
    """
    Return the sample that a callback puts in the place of another, in the type of that one.

    Args:
        latents (`torch.Tensor`): What the callback returned.
        old (`torch.Tensor` of shape `(batch, channels, height, width)`): The sample.

    Returns:
        `torch.Tensor`: The new sample.

    Raises:
        ValueError: It is no tensor of that shape.
    """
    is_tensor = isinstance(latents, torch.Tensor) and latents.is_floating_point()
    if not is_tensor or latents.shape != old.shape:
        raise ValueError(
            f"`latents` that `callback_on_step_end` returns must be a torch.Tensor of floats of shape"
            f" {tuple(old.shape)}, but are {describe(latents)}."
        )
    return latents.to(old)


def check_editing(image: torch.Tensor | None, strength: Any, mask_image: Any, batch_size: int) -> float:
    """
    Return the strength of an edit, or refuse arguments that do not fit each other.

    Args:
        image (`torch.Tensor` of shape `(batch, channels, height, width)`, *optional*): The images to edit.
        strength (`float`): The share of the steps to take.
        mask_image (*optional*): Where to repaint.
        batch_size (`int`): Number of images to generate.

    Returns:
        `float`: The strength.

    Raises:
        ValueError: The strength is out of range, there is no image, or the number of images does not fit.
    """
    strength = check_number("strength", strength, "lie in (0, 1]", 0, 1, exclude_low=True)
    if image is None and (strength != 1 or mask_image is not None):
        raise ValueError("`strength` and `mask_image` need an `image`.")
    if image is not None and len(image) not in (1, batch_size):
        raise ValueError(f"`image` holds {len(image)} images for a batch of {batch_size}.")
    return strength


def check_sizes(image: torch.Tensor, latents: torch.Tensor, factor: int) -> None:
    """
    Refuse an image and latents of different sizes.

    Args:
        image (`torch.Tensor` of shape `(batch, channels, height, width)`): The image to edit.
        latents (`torch.Tensor` of shape `(batch, channels, height, width)`): Unit noise.
        factor (`int`): Pixels per latent along each side.

    Raises:
        ValueError: The sizes differ.
    """
    size = tuple(side * factor for side in latents.shape[2:])
    if tuple(image.shape[2:]) != size:
        raise ValueError(f"`image` is of size {tuple(image.shape[2:])}, but `latents` of {size}.")


def warn_of_nonfinite(samples: torch.Tensor) -> None:
    """
    Warn if samples hold NaN or infinities.

    Args:
        samples (`torch.Tensor` of shape `(batch, channels, height, width)`): The samples.
    """
    finite = samples.isfinite().flatten(1).all(1)
    if not bool(finite.all()):
        logger.warning(
            f"{len(finite) - int(finite.sum())} of {len(finite)} samples hold NaN or infinities; the"
            " network's weights may be damaged, or its type too coarse."
        )
