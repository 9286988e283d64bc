"""Checks of what visitors send. Anybody can call the API, so every value is checked before it is used."""

from collections.abc import Collection
from typing import Any, TypeVar

import gradio as gr


LARGEST_JOB = 3200  # network calls per drawing, summed over its images
LISTED = 20  # choices that an error message lists
Choice = TypeVar("Choice")


class Refusal(gr.Error):
    """
    Tell a visitor why a request is refused.

    The page shows the message. The log gets no traceback, because nothing has gone wrong inside.

    Args:
        message (`str`): One sentence for the visitor.
    """

    def __init__(self, message: str):
        super().__init__(message, print_exception=False)


def check_integer(value: Any, low: int, high: int, name: str) -> int:
    """
    Return a value that must be a whole number within a range.

    Args:
        value: The value, of any type.
        low (`int`): The smallest number allowed.
        high (`int`): The largest number allowed.
        name (`str`): What the value is, to begin the message with.

    Returns:
        `int`: The number.

    Raises:
        Refusal: The value is something else.
    """
    is_integer = is_number(value) and value == value // 1
    if not is_integer or not low <= value <= high:
        raise Refusal(f"{name} must be a whole number from {low} to {high}.")
    return int(value)


def check_number(value: Any, low: float, high: float, name: str) -> float:
    """
    Return a value that must be a number within a range.

    Args:
        value: The value, of any type.
        low (`float`): The smallest number allowed.
        high (`float`): The largest number allowed.
        name (`str`): What the value is, to begin the message with.

    Returns:
        `float`: The number.

    Raises:
        Refusal: The value is something else.
    """
    if not is_number(value) or not low <= value <= high:
        raise Refusal(f"{name} must be a number from {low:g} to {high:g}.")
    return float(value)


def is_number(value: Any) -> bool:
    """Tell whether a value is a number; in Python, a bool is an int."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def check_choice(value: Any, choices: Collection[Choice], name: str) -> Choice:
    """
    Return a value that must be one of several.

    Args:
        value: The value, of any type.
        choices (`Collection`): The values allowed.
        name (`str`): What the value is, to begin the message with.

    Returns:
        The value.

    Raises:
        Refusal: The value is something else.
    """
    choices = list(choices)
    if value not in choices:
        listed = ", ".join(str(choice) for choice in choices[:LISTED])
        more = f" and {len(choices) - LISTED} others" if len(choices) > LISTED else ""
        raise Refusal(f"{name} must be one of: {listed}{more}.")
    return value


def check_cost(images: int, calls: int) -> None:
    """
    Refuse a drawing that would keep other visitors waiting for too long.

    Args:
        images (`int`): Images in the drawing.
        calls (`int`): Network calls per image.

    Raises:
        Refusal: The drawing needs more than `LARGEST_JOB` network calls.
    """
    if images * calls > LARGEST_JOB:
        raise Refusal(
            f"A drawing may make at most {LARGEST_JOB:,} network calls, but {images} images with {calls}"
            f" calls each would make {images * calls:,}. Ask for fewer images or steps."
        )
