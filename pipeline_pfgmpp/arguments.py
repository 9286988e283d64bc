# Copyright 2026 The pipeline_pfgmpp authors. Licensed under the Apache License, Version 2.0.
"""
Checks of arguments, each of which refuses a value in one sentence.

A number may come as Python's, NumPy's or torch's; booleans, NaN and infinities are not numbers here.
"""

import math
import numbers
from typing import Any

import numpy as np
import torch


# Beyond these, squares of noise levels leave the range of float32.
SMALLEST = 1e-9
LARGEST = 1e9
LARGEST_COUNT = 1_000_000


def read_number(value: Any) -> float | int | None:
    """
    Convert a scalar of Python, NumPy or torch to a number of Python.

    Args:
        value: The scalar.

    Returns:
        `float`, `int` or `None`: The number; None for anything else, booleans included.
    """
    if isinstance(value, (torch.Tensor, np.ndarray, np.generic)) and value.ndim == 0:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return None
    return int(value) if isinstance(value, numbers.Integral) else float(value)


def check_number(
    name: str,
    value: Any,
    requirement: str,
    low: float = -LARGEST,
    high: float = LARGEST,
    exclude_low: bool = False,
) -> float:
    """
    Return a number, or refuse it.

    Args:
        name (`str`): Name of the argument.
        value: Its value.
        requirement (`str`): What is allowed, to follow "must" in the message.
        low (`float`): The smallest number allowed.
        high (`float`): The largest number allowed.
        exclude_low (`bool`, defaults to `False`): Whether `low` itself is refused.

    Returns:
        `float`: The number.

    Raises:
        ValueError: It is not a number, or lies outside the bounds.
    """
    number = read_number(value)
    if number is not None and high == LARGEST < number < math.inf:  # the bound that no requirement states
        requirement = f"be at most {high:g}"
    if number is None or not low <= number <= high or (exclude_low and number == low):
        raise ValueError(f"`{name}` must {requirement}, but is {value!r}.")
    return number


def check_integer(name: str, value: Any, requirement: str, low: int, high: int = LARGEST_COUNT) -> int:
    """
    Return an integer, or refuse it.

    Args:
        name (`str`): Name of the argument.
        value: Its value.
        requirement (`str`): What is allowed, to follow "must" in the message.
        low (`int`): The smallest integer allowed.
        high (`int`): The largest integer allowed.

    Returns:
        `int`: The integer.

    Raises:
        ValueError: It is not an integer, or lies outside the bounds.
    """
    number = read_number(value)
    if isinstance(number, int) and high == LARGEST_COUNT < number:  # likewise
        requirement = f"be at most {high:,}"
    if not isinstance(number, int) or not low <= number <= high:
        raise ValueError(f"`{name}` must {requirement}, but is {value!r}.")
    return number


def check_choice(name: str, value: Any, choices: list[str]) -> str:
    """
    Return one of several values, or refuse it.

    Args:
        name (`str`): Name of the argument.
        value: Its value.
        choices (`list[str]`): The values allowed.

    Returns:
        `str`: The value.

    Raises:
        ValueError: It is none of them.
    """
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"`{name}` must be one of {choices}, but is {value!r}.")
    return value


def check_generator(generator: Any, batch_size: int | None) -> None:
    """
    Refuse anything but a generator, or one generator per image.

    Args:
        generator: The generator or generators; None is torch's default generator.
        batch_size (`int` or `None`): Number of images; with None a list is refused as well.

    Raises:
        ValueError: It is something else, or the number of generators does not fit the batch.
    """
    if isinstance(generator, (list, tuple)) and batch_size is not None:
        if len(generator) != batch_size:
            raise ValueError(
                f"`generator` is a list of {len(generator)} for a batch of {batch_size}; give one per image."
            )
        if all(isinstance(getattr(each, "device", None), torch.device) for each in generator):
            return
    if generator is not None and not isinstance(getattr(generator, "device", None), torch.device):
        allowed = "a torch.Generator" if batch_size is None else "a torch.Generator or a list of them"
        raise ValueError(f"`generator` must be {allowed}, but is {describe(generator)}.")


def check_tensor(name: str, value: Any) -> torch.Tensor:
    """
    Return a tensor of floats of a size that can be computed with, or refuse it.

    Args:
        name (`str`): Name of the argument.
        value: Its value.

    Returns:
        `torch.Tensor`: The tensor.

    Raises:
        ValueError: It is no such tensor.
    """
    if not isinstance(value, torch.Tensor) or not value.is_floating_point():
        raise ValueError(f"`{name}` must be a torch.Tensor of floats, but is {describe(value)}.")
    if not bool(value.isfinite().all()):
        raise ValueError(f"`{name}` must be finite, but holds NaN or infinities.")
    if value.numel() and value.abs().max() > LARGEST:
        raise ValueError(f"`{name}` must hold at most {LARGEST:g}, but holds {value.abs().max().item():g}.")
    return value


def describe(value: Any) -> str:
    """
    Describe a value by its type, and tensors and arrays by their shape as well.

    Args:
        value: The value.

    Returns:
        `str`: The description, for messages.
    """
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return f"{type(value).__name__} of {value.dtype} and shape {tuple(value.shape)}"
    if isinstance(value, (list, tuple)):
        kinds = sorted({type(each).__name__ for each in value})
        return f"{type(value).__name__} of {' and '.join(kinds) or 'nothing'}"
    return repr(value) if isinstance(value, (str, int, float)) else type(value).__name__
