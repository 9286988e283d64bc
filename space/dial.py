"""The dial for D: a slider of log₂ D whose right end stands for infinity."""

import math
from typing import NamedTuple

import gradio as gr
from checks import check_number

from pipeline_pfgmpp.noise import SMALLEST_D_FOR_IMAGES
from pipeline_pfgmpp.records.dimensions import format_dimension


FIRST = math.log2(SMALLEST_D_FOR_IMAGES)
INFINITY = 19.0  # the position that stands for infinity
START = 7.0  # where the dial of a model stands at first
STEP = 0.5
LAST_FINITE = INFINITY - 1
MARKS = (3, 7, 11, 15)  # log2 of the D that are marked between the two ends
# The same in the browser as `read_dial` here.
SHOW_D = (
    f"(dial) => dial > {LAST_FINITE} ? 'D = ∞, diffusion' : `D = ${{Number((2 ** dial).toPrecision(3))}}`"
)


class Dial(NamedTuple):
    """The parts of a dial, of which a page may change the range."""

    slider: gr.Slider
    ruler: gr.HTML
    value: gr.HTML


def read_dial(position: float) -> float:
    """
    Return the D at a position of the dial.

    Args:
        position (`float`): log₂ D, from `FIRST` to `INFINITY`.

    Returns:
        `float`: D, rounded to three digits; infinity near the right end.

    Raises:
        Refusal: The position is not on the dial.
    """
    position = check_number(position, FIRST, INFINITY, "The dial (log₂ D)")
    return math.inf if position > LAST_FINITE else float(f"{2**position:.3g}")


def find_ends(low: float, high: float) -> tuple[float, float]:
    """
    Find the ends of a dial.

    Args:
        low (`float`): The smallest D.
        high (`float`): The largest D, which may be infinity.

    Returns:
        `tuple[float, float]`: The positions of both.
    """
    return math.log2(low), INFINITY if math.isinf(high) else min(math.log2(high), LAST_FINITE)


def choose_start(low: float, high: float) -> float:
    """
    Choose where a dial stands at first.

    Args:
        low (`float`): The smallest D.
        high (`float`): The largest D, which may be infinity.

    Returns:
        `float`: The position: `START`, or the end next to it.
    """
    first, last = find_ends(low, high)
    return min(max(START, first), last)


def render_ruler(low: float, high: float) -> str:
    """
    Render the marks below a dial.

    Args:
        low (`float`): The smallest D.
        high (`float`): The largest D, which may be infinity.

    Returns:
        `str`: HTML.
    """
    first, last = find_ends(low, high)
    marks = {first: format_dimension(low)}
    marks |= {place: str(2**place) for place in MARKS if first + 1 < place < last - 1}
    marks[last] = format_dimension(high)
    spans = [
        f'<span style="left:{100 * (place - first) / (last - first):.1f}%">{text}</span>'
        for place, text in marks.items()
    ]
    return f'<div class="ruler" aria-hidden="true">{"".join(spans)}</div>'


def add_dial(low: float, high: float, position: float) -> Dial:
    """
    Add a dial to the page.

    Args:
        low (`float`): The smallest D.
        high (`float`): The largest D, which may be infinity.
        position (`float`): log₂ D to begin with.

    Returns:
        [`Dial`]: Its parts.
    """
    first, last = find_ends(low, high)
    template = '<div class="dial-value" role="status">${value}</div>'
    with gr.Group(elem_classes="dial-group"):
        value = gr.HTML(f"D = {2**position:g}", html_template=template)
        slider = gr.Slider(
            first,
            last,
            position,
            step=STEP,
            label="Augmented dimension D",
            buttons=[],
            elem_classes="dial",
        )
        ruler = gr.HTML(render_ruler(low, high))
    slider.change(None, slider, value, js=SHOW_D, api_visibility="private")
    return Dial(slider, ruler, value)
