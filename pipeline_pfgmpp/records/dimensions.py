"""The augmented dimension D in text."""

import math


def format_dimension(D: float | None) -> str:
    """
    Format an augmented dimension.

    Args:
        D (`float` or `None`): The dimension; None and `inf` are both infinity.

    Returns:
        `str`: Such as `"2048"` or `"∞"`.
    """
    if D in (None, math.inf):
        return "∞"
    short = f"{D:g}"
    return short if float(short) == D and "e" not in short else repr(D).removesuffix(".0")


def describe_dimensions(D: float | None, any_D: bool, D_range: list[float | None] | None) -> str:
    """
    Describe which augmented dimensions a model serves.

    Args:
        D (`float` or `None`): The D of its scheduler.
        any_D (`bool`): Whether the network is conditioned on D.
        D_range (`list` or `None`): The least and the largest D that it was trained for, if known.

    Returns:
        `str`: Such as `"any augmented dimension D from 16 to ∞ (default: 2048)"`.
    """
    if not any_D:
        return f"augmented dimension D = {format_dimension(D)}"
    trained = ""
    if D_range is not None:
        low, high = map(format_dimension, D_range)
        trained = f" from {low} to {high}"
    return f"any augmented dimension D{trained} (default: {format_dimension(D)})"
