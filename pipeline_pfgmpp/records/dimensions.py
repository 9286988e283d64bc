"""The augmented dimension D for people."""

import math


def format_dimension(D: float | None) -> str:
    """An augmented dimension for people."""
    return "∞" if D in (None, math.inf) else f"{D:g}"


def describe_dimensions(D: float | None, any_D: bool, D_range: list[float | None] | None) -> str:
    """
    Says which augmented dimensions a model serves.

    Args:
        D (`float` or `None`): That of its scheduler.
        any_D (`bool`): Whether the network is told D.
        D_range (`list` or `None`): The range that it was trained for, where that is stated.

    Returns:
        `str`: Such as `"any augmented dimension D from 16 to ∞ (2048 when none is asked for)"`.
    """
    if not any_D:
        return f"augmented dimension D = {format_dimension(D)}"
    trained = ""
    if D_range is not None:
        low, high = map(format_dimension, D_range)
        trained = f" from {low} to {high}"
    return f"any augmented dimension D{trained} ({format_dimension(D)} when none is asked for)"
