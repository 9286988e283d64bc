"""What comes from the browser, or from anybody: checked before it is used."""

import gradio as gr


LARGEST_JOB = 3200  # calls of the network, each for one image


class Refusal(gr.Error):
    """
    What a visitor is told who asks for what is not there: a sentence for the page, and no traceback
    for the log.
    """

    def __init__(self, message: str):
        super().__init__(message, print_exception=False)


def whole(value, low, high, name):
    """A whole number in a range."""
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or value != value // 1
        or not low <= value <= high
    ):
        raise Refusal(f"{name} must be a whole number from {low} to {high}.")
    return int(value)


def real(value, low, high, name):
    """A number in a range."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise Refusal(f"{name} must be a number from {low:g} to {high:g}.")
    return float(value)


def one_of(value, choices, name):
    """One of several things."""
    if value not in list(choices):
        raise Refusal(f"{name} must be one of those offered.")
    return value


def check_cost(images, calls):
    """
    Refuses a drawing that would keep the others waiting: so many images, each with so many calls of
    the network.
    """
    if images * calls > LARGEST_JOB:
        raise Refusal(
            f"A drawing may take {LARGEST_JOB:,} calls of the network, but {images} images × {calls} calls are"
            f" {images * calls:,}: ask for fewer images or steps."
        )
