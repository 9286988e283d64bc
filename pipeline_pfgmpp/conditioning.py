# Copyright 2026 The pipeline_pfgmpp authors. Licensed under the Apache License, Version 2.0.
r"""
What a network is told besides the noisy image: the class and D, and how strongly it is guided by them.

Guidance extrapolates from a weaker prediction $F_0$ to the network's own $F$,

$$F_w = F_0 + w\,(F - F_0).$$

$F_0$ comes from the same network without a class or, if it restores images, without the degraded one
(classifier-free guidance, https://huggingface.co/papers/2207.12598), or from a weaker network (autoguidance,
https://huggingface.co/papers/2406.02507). The network's raw output is affine in the denoised image
and the coefficients are the same for both, so guiding one guides the other.
"""

import math
from collections.abc import Mapping
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch

from .arguments import check_number, describe, read_number
from .noise import SMALLEST_D_FOR_IMAGES, parse_dimension
from .preconditioning import check_preconditioning


Number = TypeVar("Number", int, str)  # of a class; JSON keeps it as text
ClassLabels: TypeAlias = int | str | list[int] | list[str] | np.ndarray | torch.Tensor | None


def count_classes(unet: Any) -> int:
    """
    Return the number of classes that a network is conditioned on.

    Args:
        unet (`ModelMixin`): The network.

    Returns:
        `int`: The number; 0 for an unconditional network.
    """
    return unet.config.get("label_dim") or unet.config.get("num_class_embeds") or 0


def get_sample_size(unet: Any) -> tuple[int, int]:
    """
    Return the size of the images that a network was built for.

    Args:
        unet (`ModelMixin`): The network.

    Returns:
        `tuple[int, int]`: Height and width in pixels.

    Raises:
        ValueError: The network's configuration does not state its size.
    """
    size = unet.config.get("sample_size")
    if isinstance(size, int):
        return size, size
    if not isinstance(size, (list, tuple)) or len(size) != 2:
        raise ValueError(
            f"`sample_size` of the network must be an integer or (height, width), but is {size!r}."
        )
    height, width = size
    return height, width


def check_class_names(id2label: dict | None, num_classes: int) -> dict[str, str] | None:
    """
    Return the names of the classes as JSON keeps them, or refuse them.

    Args:
        id2label (`dict` or `None`): Names by the classes' numbers.
        num_classes (`int`): Classes of the network; 0 for an unconditional one.

    Returns:
        `dict[str, str]` or `None`: Names by the numbers as text.

    Raises:
        ValueError: A number is not that of a class, or a name is not text.
    """
    if not id2label:
        return None
    if not isinstance(id2label, dict):
        raise ValueError(f"`id2label` must map the numbers of classes to names, but is {describe(id2label)}.")
    names = {}
    for key, name in id2label.items():
        number = str(key)
        known = number.isdecimal() and (not num_classes or int(number) < num_classes)
        if not known or not isinstance(name, str):
            raise ValueError(
                f"`id2label` must map numbers in 0 ... {max(num_classes, 1) - 1} to names, but holds"
                f" {key!r}: {name!r}."
            )
        names[str(int(number))] = name
    return names


def prepare_class_labels(
    class_labels: ClassLabels,
    unet: Any,
    id2label: dict[str, str] | None,
    batch_size: int,
    generator: torch.Generator | list[torch.Generator] | None,
    device: torch.device,
) -> torch.Tensor | None:
    """
    Convert classes to what a network takes, or draw them.

    Args:
        class_labels (`int`, `str`, list of them, `np.ndarray`, `torch.Tensor` or `None`): Class of all
            images or of each, by number or by name; None draws them.
        unet (`ModelMixin`): The network.
        id2label (`dict[str, str]` or `None`): Names of the classes. Classes without a name are neither
            drawn nor accepted, unless there are no names at all.
        batch_size (`int`): Number of images.
        generator (`torch.Generator` or a list of them, *optional*): Source of randomness.
        device (`torch.device`): Device of the result.

    Returns:
        `torch.Tensor` or `None`: None for an unconditional network; one weight per class and image
            where the network has `label_dim`, so that all zeros can mean "no class"; else the
            classes, of shape `(batch,)`.

    Raises:
        ValueError: The network is unconditional, or the classes do not exist or do not fit the batch.
    """
    num_classes = count_classes(unet)
    if not num_classes:
        if class_labels is not None:
            raise ValueError(
                f"`class_labels` are {class_labels}, but this network is unconditional; leave them out."
            )
        return None
    offered = list(list_classes(id2label, num_classes))
    if class_labels is None:
        labels = draw_classes(unet, id2label, batch_size, generator, device)
    else:
        labels = _read_classes(class_labels, id2label or {}, batch_size)
    if not set(labels.flatten().tolist()) <= set(offered):
        allowed = f"lie in 0 ... {num_classes - 1}"
        if len(offered) < num_classes:
            allowed = f"be one of the classes that this model was trained for, {offered}"
        raise ValueError(f"`class_labels` must {allowed}, but are {labels.tolist()}.")
    labels = labels.long().expand(batch_size).to(device)
    if unet.config.get("label_dim"):
        return torch.nn.functional.one_hot(labels, num_classes).float()
    return labels


def _read_classes(class_labels: Any, id2label: dict[str, str], batch_size: int) -> torch.Tensor:
    """Return the numbers of classes, of shape `()`, `(1,)` or `(batch,)`."""
    if isinstance(class_labels, np.ndarray) and class_labels.dtype.kind in "OU":
        class_labels = class_labels.tolist()
    if isinstance(class_labels, (torch.Tensor, np.ndarray)):
        labels = torch.as_tensor(class_labels)
        is_integer = not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
    else:
        is_list = isinstance(class_labels, (list, tuple))
        numbers = [_read_class(each, id2label) for each in (class_labels if is_list else [class_labels])]
        is_integer = all(isinstance(number, int) and abs(number) < 2**63 for number in numbers)
        labels = torch.tensor(numbers if is_integer else [])
    if not is_integer or labels.shape not in ((), (1,), (batch_size,)):
        raise ValueError(
            f"`class_labels` must be a class or {batch_size} classes, by number or by name, but are"
            f" {class_labels!r}."
        )
    return labels


def _read_class(label: Any, id2label: dict[str, str]) -> int | float | None:
    """Return the number of a class that is given by number or by name; None is no class."""
    if not isinstance(label, str):
        return read_number(label)
    found = find_classes(label, id2label)
    if len(found) == 1:
        return int(found[0])
    if not id2label:
        allowed = "be numbers, since this model has no names of classes"
    elif found:
        allowed = f"name one class, and {label!r} is the name of {', '.join(found)}; give a number"
    else:
        allowed = f"be one of {list(id2label.values())}, or a number"
    raise ValueError(f"`class_labels` must {allowed}, but are {label!r}.")


def find_classes(text: str, names: Mapping[Number, str]) -> list[Number]:
    """
    Find the classes of a name.

    Args:
        text (`str`): The name.
        names (`Mapping`): The names of the classes by their numbers.

    Returns:
        `list`: The numbers of the classes that have this name or, if there are none, of those that
            have it in another case.
    """
    found = [number for number, name in names.items() if name == text]
    return found or [number for number, name in names.items() if name.casefold() == text.casefold()]


def list_classes(id2label: Mapping[str, str] | None, num_classes: int) -> dict[int, str]:
    """
    List the classes that may be drawn and asked for.

    Args:
        id2label (`Mapping[str, str]` or `None`): Names of the classes, as for [`prepare_class_labels`].
        num_classes (`int`): Classes of the network.

    Returns:
        `dict[int, str]`: Their names by their numbers, in order; without any names, each class is named by
            its number.
    """
    if not id2label:
        return {number: str(number) for number in range(num_classes)}
    return {int(number): name for number, name in sorted(id2label.items(), key=lambda item: int(item[0]))}


def draw_classes(
    unet: Any,
    id2label: dict[str, str] | None,
    batch_size: int,
    generator: torch.Generator | list[torch.Generator] | None,
    device: torch.device,
) -> torch.Tensor:
    """
    Draw classes of a conditional network.

    Args:
        unet (`ModelMixin`): The network.
        id2label (`dict[str, str]` or `None`): Names of the classes, as for [`prepare_class_labels`].
        batch_size (`int`): Number of images.
        generator (`torch.Generator` or a list of them, *optional*): Source of randomness; with a list,
            each draws the class of its image.
        device (`torch.device`): Where to draw without a generator.

    Returns:
        `torch.Tensor` of shape `(batch,)`: The numbers of the classes.
    """
    offered = list(list_classes(id2label, count_classes(unet)))
    generators = generator if isinstance(generator, (list, tuple)) else [generator]
    rows = batch_size // len(generators)
    parts = []
    for rng in generators:
        source = device if rng is None else rng.device
        parts.append(torch.randint(len(offered), (rows,), generator=rng, device=source))
    drawn = torch.cat(parts)
    return torch.tensor(offered, device=drawn.device)[drawn]


def choose_dimension(
    D: float | torch.Tensor | None, unet: Any, scheduler: Any
) -> float | torch.Tensor | None:
    """
    Choose the augmented dimension of a call: the one that was asked for, or the scheduler's own.

    Args:
        D (`float`, `torch.Tensor` or `None`): The augmented dimension that was asked for, if any.
        unet (`ModelMixin`): The network.
        scheduler (`SchedulerMixin`): The scheduler.

    Returns:
        `float`, `torch.Tensor` or `None`: The augmented dimension; None is infinity.

    Raises:
        ValueError: `D` is not an augmented dimension, or the network cannot denoise at it.
    """
    own = scheduler.config.get("D")
    dof = parse_dimension(own if D is None else D, SMALLEST_D_FOR_IMAGES)
    if bool((dof != parse_dimension(own)).any()) and not unet.config.get("d_conditioning"):
        raise ValueError(
            f"`D` is {D}, but this network was trained at D = {'inf' if own is None else own} only; leave `D`"
            " out, or load a network that is conditioned on D."
        )
    check_preconditioning(scheduler.config.get("preconditioning", "edm"), dof)
    low, high = get_trained_range(unet, scheduler)
    # At D up to 2 the noise has no variance: its distant points are like nothing that the network has seen.
    if low > 2 and bool((dof <= 2).any()):
        raise ValueError(
            f"`D` is {own if D is None else D}, but this network was trained for D from {low:g} to {high:g},"
            " and its images are only noise at D up to 2."
        )
    if dof.ndim:
        return dof
    return None if dof.isinf() else dof.item()


def get_trained_range(unet: Any, scheduler: Any) -> tuple[float, float]:
    """
    Return the range of D that a network was trained for.

    Args:
        unet (`ModelMixin`): The network.
        scheduler (`SchedulerMixin`): The scheduler, whose `D_range` states it.

    Returns:
        `tuple[float, float]`: The smallest and the largest D; (0, inf) where nothing is stated.
    """
    stated = scheduler.config.get("D_range")
    if stated is None or not unet.config.get("d_conditioning"):
        return 0.0, math.inf
    low, high = (parse_dimension(bound).item() for bound in stated)
    return low, high


def call_network(
    unet: Any,
    model_input: torch.Tensor,
    t: torch.Tensor,
    class_labels: torch.Tensor | None,
    D: float | torch.Tensor | None,
    condition: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    Call a network with those of its conditions that it takes.

    Args:
        unet (`ModelMixin`): The network.
        model_input (`torch.Tensor` of shape `(batch, channels, height, width)`): The scaled input, in the
            network's type.
        t (`torch.Tensor` of shape `()` or `(batch,)`): c_noise.
        class_labels (`torch.Tensor` or `None`): Classes, as from [`prepare_class_labels`].
        D (`float`, `torch.Tensor` or `None`): The augmented dimension.
        condition (`torch.Tensor`, *optional*): The image that a restoring network is conditioned on, scaled
            as the input is.

    Returns:
        `torch.Tensor` of shape `(batch, channels, height, width)`: The raw output.
    """
    conditions: dict[str, Any] = {}
    if class_labels is not None and count_classes(unet):
        conditions["class_labels"] = class_labels
    if unet.config.get("d_conditioning"):
        conditions["D"] = D
    if condition is not None:
        conditions["condition"] = condition
    return unet(model_input, t, return_dict=False, **conditions)[0]


def check_guidance(guidance_scale: float, unet: Any, guidance_unet: Any | None) -> float:
    """
    Return the guidance scale, or refuse to guide a network that cannot be guided.

    Args:
        guidance_scale (`float`): The w of the equation above; 1 is no guidance.
        unet (`ModelMixin`): The network.
        guidance_unet (`ModelMixin`, *optional*): A weaker network.

    Returns:
        `float`: The guidance scale.

    Raises:
        ValueError: The scale is not a number in [-1000, 1000], or there is neither a weaker network nor
            one that can be called without a class.
    """
    number = check_number("guidance_scale", guidance_scale, "lie in [-1000, 1000]", -1000, 1000)
    is_conditional = unet.config.get("label_dim") or unet.config.get("condition_channels")
    if number != 1 and guidance_unet is None and not is_conditional:
        raise ValueError(
            f"`guidance_scale` must be 1 for this network, but is {guidance_scale}: guidance needs a"
            " class-conditional network trained with label dropout, or a `guidance_unet`."
        )
    return number


def call_guided(
    unet: Any,
    guidance_unet: Any | None,
    guidance_scale: float | torch.Tensor,
    model_input: torch.Tensor,
    t: torch.Tensor,
    class_labels: torch.Tensor | None,
    D: float | torch.Tensor | None,
    condition: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    Call a network and its guide, and extrapolate from the guide's output; at a scale of 1 call it alone.

    Args:
        unet (`ModelMixin`): The network.
        guidance_unet (`ModelMixin`, *optional*): The guide; None is the network without the degraded image,
            or without a class if it restores none.
        guidance_scale (`float` or `torch.Tensor`): The w of the equation above, or one for each sample, of
            shape `(batch, 1, 1, 1)`; 1 is no guidance.
        model_input, t, class_labels, D, condition: As for [`call_network`].

    Returns:
        `torch.Tensor` of shape `(batch, channels, height, width)`: The raw output; if it is guided, at least
            float32.

    Raises:
        ValueError: This network cannot be guided.
    """
    if not isinstance(guidance_scale, torch.Tensor):
        if guidance_scale == 1:
            return call_network(unet, model_input, t, class_labels, D, condition)
        check_guidance(guidance_scale, unet, guidance_unet)
    if guidance_unet is not None:
        output = call_network(unet, model_input, t, class_labels, D, condition)
        weak_input = model_input.to(guidance_unet.dtype)
        guide = call_network(guidance_unet, weak_input, t, class_labels, D, condition)
    else:  # one call of twice the batch
        if condition is None:
            labels = torch.cat([torch.zeros_like(class_labels), class_labels])
        else:
            labels = None if class_labels is None else torch.cat([class_labels] * 2)
            condition = torch.cat([torch.zeros_like(condition), condition])
        doubled = torch.cat([model_input] * 2)
        if isinstance(D, torch.Tensor) and D.ndim:
            D = torch.cat([D, D])
        if t.ndim:
            t = torch.cat([t, t])
        guide, output = call_network(unet, doubled, t, labels, D, condition).chunk(2)
    dtype = torch.promote_types(output.dtype, torch.float32)
    return torch.lerp(guide.to(dtype), output.to(dtype), guidance_scale)
