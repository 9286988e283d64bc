"""PFGM++ in a browser, with D on a dial. `python app.py` prints the address."""

import math
from typing import Any, NamedTuple

import gradio as gr
from checks import Refusal
from choices import (
    ANY_CLASS,
    COMPARED,
    MODELS,
    SOLVERS,
    choose_model,
    list_dimensions,
    list_solvers,
)
from dial import Dial, add_dial, find_ends, render_ruler
from drawing import (
    AS_TRAINED,
    LARGEST_SEED,
    MOST_COMPARED,
    MOST_IMAGES,
    MOST_STEPS,
    compare,
    disturb,
    sample,
)
from field_lines import PLANE, add_charge, clear_plane, draw_plane, follow_sample, place_shape, show_frame
from limits import MODEL, guard
from models import HERE, Model
from style import CSS, THEME

from pipeline_pfgmpp.conditioning import get_sample_size
from pipeline_pfgmpp.generation import list_classes
from pipeline_pfgmpp.pictures.field_lines import SHAPES
from pipeline_pfgmpp.records.dimensions import format_dimension
from pipeline_pfgmpp.records.sizes import format_size
from pipeline_pfgmpp.scheduler_config import DEFAULT_STEPS, get_default_steps


INTRODUCTION = """# PFGM++: turn D like a dial
PFGM++ treats images as electric charges in a space with D extra dimensions, and draws new images by
following the field lines. D = 1 is Poisson flow (PFGM), D = ∞ is diffusion. Turn the dial: a seed draws
much the same image at every D. Then disturb the sampling: a small D tolerates more noise."""
ROBUSTNESS = """Disturb the sampling and compare a small D with a large one. At small D, training covers a
wider range of noise, so the network copes better with noise that is injected at each step. The paper finds
the same for rounded weights, but the bundled network does not show it."""
FOLLOWING = "**In the model:** follow one sample from noise to an image, step by step."
PLAYGROUND = """**On a plane:** click to add a charge, or choose a shape, and turn the dial. The lines follow
the exact field, without a network."""

START = 7.0  # where the dial of a model stands at first, as log2 D
DEFAULTS = ["16", "128", "2048", "inf"]  # D that are compared at first
NEW_SEED = "() => Math.floor(Math.random() * 1e6)"
# The functions check all that they are sent. Gradio knows less of it, and would answer with a traceback.
UNCHECKED = {"preprocess": False}
NETWORK_EVENT = {"concurrency_id": MODEL, "concurrency_limit": 1, **UNCHECKED}  # one at a time, in turn
QUIET_EVENT = {
    "show_progress": "hidden",
    "api_visibility": "private",
    "trigger_mode": "always_last",
    **UNCHECKED,
}


class Shared(NamedTuple):
    """The inputs that all tabs use."""

    model: gr.Dropdown
    summary: gr.Markdown
    label: gr.Dropdown
    steps: gr.Slider
    seed: gr.Number


class DimensionInput(NamedTuple):
    """How D is chosen: on a dial for a D-conditioned network, from a list for a family of networks."""

    dial: Dial
    choice: gr.Radio

    def list_parts(self) -> list:
        """List the components, in the order of [`update_dimension_input`]."""
        return [*self.dial, self.choice]


def name_dimensions(dimensions: list[str]) -> list[tuple[str, str]]:
    """
    Give D their names on the page.

    Args:
        dimensions (`list[str]`): D such as `"128"` or `"inf"`.

    Returns:
        `list[tuple[str, str]]`: Choices of Gradio.
    """
    return [(format_dimension(float(D)), D) for D in dimensions]


# What depends on the model


def offer_model(name: str) -> list:
    """
    Load a model, and offer what it can do.

    Args:
        name (`str`): Name of the model.

    Returns:
        `list`: Updates of the summary, the card, the steps, the solvers, the classes, two inputs of D, the
            D to compare, the small D, the large D and the four buttons that draw.
    """
    try:
        model = choose_model(name)
        pipe = model.make_pipeline((model.dimensions or model.trained_range)[0])
    except (ValueError, Refusal) as error:
        message = getattr(error, "message", str(error))
        unchanged = [gr.skip() for _ in range(14)]
        disabled = [gr.update(interactive=False) for _ in range(4)]
        return [f"**{message}** Please choose another model.", "", *unchanged, *disabled]
    dimensions = list_dimensions(model)
    choices = name_dimensions(dimensions)
    defaults = dimensions[:MOST_COMPARED] if model.dimensions else [D for D in DEFAULTS if D in dimensions]
    classes = list(list_classes(pipe).values())
    size = format_size(*get_sample_size(pipe.unet))
    solvers = list_solvers(pipe)
    return [
        f"{size} pixels, {pipe.unet.num_parameters():,} parameters",
        model.read_card(),
        get_default_steps(pipe.scheduler),
        gr.update(choices=solvers, value=solvers[0]),
        gr.update(choices=[ANY_CLASS, *classes], value=ANY_CLASS, visible=bool(classes)),
        *update_dimension_input(model),
        *update_dimension_input(model),
        gr.update(choices=choices, value=defaults),
        gr.update(choices=choices, value=dimensions[0]),
        gr.update(choices=choices, value=dimensions[-1]),
        *(gr.update(interactive=True) for _ in range(4)),
    ]


def update_dimension_input(model: Model) -> list[dict[str, Any]]:
    """
    Show the dial for a D-conditioned network, or the list for a family of networks.

    Args:
        model ([`Model`]): The model, loaded.

    Returns:
        `list[dict]`: One update for each part of a [`DimensionInput`].
    """
    if model.dimensions:
        dimensions = list_dimensions(model)
        choice = gr.update(visible=True, choices=name_dimensions(dimensions), value=dimensions[0])
        return [*(gr.update(visible=False) for _ in Dial._fields), choice]
    low, high = model.trained_range
    first, last = find_ends(low, high)
    position = min(max(START, first), last)
    return [
        gr.update(visible=True, minimum=first, maximum=last, value=position),
        gr.update(visible=True, value=render_ruler(low, high)),
        gr.update(visible=True),
        gr.update(visible=False, choices=[], value=None),
    ]


# The page


def add_shared_inputs() -> Shared:
    """Add the inputs that all tabs use."""
    names = list(MODELS)
    with gr.Row():
        with gr.Column(min_width=160):
            model = gr.Dropdown(names, value=names[0], label="Model")
            summary = gr.Markdown()
        label = gr.Dropdown(
            [ANY_CLASS], value=ANY_CLASS, label="Class", allow_custom_value=True, min_width=200
        )
        steps = gr.Slider(1, MOST_STEPS, DEFAULT_STEPS, step=1, label="Steps", min_width=200)
        with gr.Column(min_width=160):
            seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=LARGEST_SEED)
            new_seed = gr.Button("New seed", size="sm")
    new_seed.click(None, None, seed, js=NEW_SEED, api_visibility="private")
    return Shared(model, summary, label, steps, seed)


def add_dimension_input(model: Model) -> DimensionInput:
    """Add a dial and a list, of which one is visible at a time."""
    return DimensionInput(
        add_dial(*model.trained_range, START), gr.Radio([], label="Augmented dimension D", visible=False)
    )


def add_buttons(name: str) -> tuple[gr.Button, gr.Button]:
    """Add a button that draws and one that cancels the drawing."""
    with gr.Row():
        return gr.Button(name, variant="primary", min_width=80), gr.Button("Cancel", min_width=80)


def add_sample_tab(shared: Shared) -> tuple[DimensionInput, gr.Dropdown, gr.Button]:
    """Add the tab that draws images at one D; return what depends on the model."""
    with gr.Row():
        with gr.Column(scale=1):
            dimension = add_dimension_input(MODELS[shared.model.value])
            count = gr.Slider(1, MOST_IMAGES, 16, step=1, label="Images")
            solver = gr.Dropdown(SOLVERS, value=SOLVERS[0], label="Solver")
            guidance = gr.Slider(
                0,
                10,
                1.0,
                step=0.1,
                label="Guidance",
                info="1 is off; larger values draw more typical images of the class",
            )
            draw, cancel = add_buttons("Draw")
        with gr.Column(scale=2):
            gallery = gr.Gallery(
                label="Images",
                show_label=False,
                columns=8,
                format="png",
                object_fit="contain",
                height="auto",
            )
            summary = gr.Markdown()
            archive = gr.DownloadButton("Download all as zip", size="sm")
            code = gr.Code(label="Code for these images", language="python", interactive=False)
    slider = dimension.dial.slider
    drawing = gr.on(
        [draw.click, slider.release],
        sample,
        [
            shared.model,
            slider,
            dimension.choice,
            shared.label,
            count,
            shared.steps,
            solver,
            guidance,
            shared.seed,
        ],
        [gallery, summary, archive, code],
        api_name="sample",
        trigger_mode="always_last",
        **NETWORK_EVENT,
    )
    cancel.click(None, cancels=[drawing], api_visibility="private")
    return dimension, solver, draw


def add_compare_tab(shared: Shared) -> tuple[gr.CheckboxGroup, gr.Button]:
    """Add the tab that compares several D; return what depends on the model."""
    gr.Markdown(f"Draw the same seeds at up to {MOST_COMPARED} values of D, one row per D.")
    dimensions = gr.CheckboxGroup(name_dimensions(COMPARED), value=DEFAULTS, label="Augmented dimension D")
    draw, cancel = add_buttons("Compare")
    rows = gr.HTML(label="Comparison")
    drawing = draw.click(
        compare,
        [shared.model, dimensions, shared.label, shared.steps, shared.seed],
        rows,
        api_name="compare",
        **NETWORK_EVENT,
    )
    cancel.click(None, cancels=[drawing], api_visibility="private")
    return dimensions, draw


def add_robustness_tab(shared: Shared) -> tuple[gr.Radio, gr.Radio, gr.Button]:
    """Add the tab that disturbs the sampling; return what depends on the model."""
    gr.Markdown(ROBUSTNESS)
    with gr.Row():
        noise = gr.Slider(
            0,
            1,
            0.2,
            step=0.05,
            label="Injected noise α",
            info="before each step, relative to the step's noise level",
            min_width=240,
        )
        bits = gr.Radio([AS_TRAINED, 8, 7, 6, 5, 4], value=AS_TRAINED, label="Bits per weight", min_width=240)
        small = gr.Radio(name_dimensions(COMPARED), value=COMPARED[0], label="Small D", min_width=240)
        large = gr.Radio(name_dimensions(COMPARED), value=COMPARED[-1], label="Large D", min_width=240)
    draw, cancel = add_buttons("Disturb")
    rows = gr.HTML(label="Disturbed samples")
    drawing = draw.click(
        disturb,
        [shared.model, noise, bits, small, large, shared.label, shared.steps, shared.seed],
        rows,
        api_name="disturb",
        **NETWORK_EVENT,
    )
    cancel.click(None, cancels=[drawing], api_visibility="private")
    return small, large, draw


def add_following(shared: Shared) -> tuple[DimensionInput, gr.Button]:
    """Add what follows one sample of the model; return what depends on the model."""
    gr.Markdown(FOLLOWING)
    dimension = add_dimension_input(MODELS[shared.model.value])
    draw = gr.Button("Follow one sample", variant="primary")
    step = gr.Slider(0, 18, 18, step=1, label="Step", visible=False)
    frame = gr.HTML()
    plot = gr.HTML()
    frames = gr.State([])
    draw.click(
        follow_sample,
        [shared.model, dimension.dial.slider, dimension.choice, shared.label, shared.steps, shared.seed],
        [frames, step, frame, plot],
        api_visibility="private",
        **NETWORK_EVENT,
    )
    step.change(
        show_frame, [frames, step], frame, show_progress="hidden", api_visibility="private", **UNCHECKED
    )
    return dimension, draw


def add_playground(page: gr.Blocks) -> None:
    """Add a plane on which a visitor places charges."""
    gr.Markdown(PLAYGROUND)
    shape = gr.Dropdown(list(SHAPES), value=SHAPES[0], label="Shape")
    dial = add_dial(1.0, math.inf, 3.0).slider
    plane = gr.Image(
        label="Plane",
        show_label=False,
        type="pil",
        interactive=False,
        width=PLANE,
        buttons=[],
        alt_text="Charges in red, and the paths of sixty samples to them",
    )
    summary = gr.Markdown()
    clear = gr.Button("Clear", size="sm")
    charges = gr.State([])
    outputs = [charges, plane, summary]
    plane.select(add_charge, [charges, dial], outputs, **QUIET_EVENT)
    dial.change(draw_plane, [charges, dial], [plane, summary], **QUIET_EVENT)
    shape.change(place_shape, [shape, dial], outputs, **QUIET_EVENT)
    clear.click(clear_plane, dial, outputs, **QUIET_EVENT)
    page.load(place_shape, [shape, dial], outputs, **QUIET_EVENT)


def add_about_tab() -> gr.Markdown:
    """Add the tab that explains the method; return the place for the model's card."""
    gr.Markdown((HERE / "about.md").read_text())
    with gr.Accordion("Model card", open=False):
        return gr.Markdown()


def build_page() -> gr.Blocks:
    """
    Build the page.

    Returns:
        `gradio.Blocks`: The page, ready to be launched.
    """
    with gr.Blocks(title="PFGM++", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.Markdown(INTRODUCTION)
        shared = add_shared_inputs()
        with gr.Tab("Sample"):
            dimension, solver, draw = add_sample_tab(shared)
        with gr.Tab("Compare D"):
            compared, draw_comparison = add_compare_tab(shared)
        with gr.Tab("Robustness"):
            small, large, draw_disturbed = add_robustness_tab(shared)
        with gr.Tab("Follow a field line"), gr.Row():
            with gr.Column():
                followed, follow = add_following(shared)
            with gr.Column():
                add_playground(page)
        with gr.Tab("About"):
            card = add_about_tab()

        dimensions = [*dimension.list_parts(), *followed.list_parts()]
        buttons = [draw, draw_comparison, draw_disturbed, follow]
        offered = [shared.summary, card, shared.steps, solver, shared.label]
        offered += [*dimensions, compared, small, large, *buttons]
        for event in (page.load, shared.model.change):
            event(
                offer_model,
                shared.model,
                offered,
                api_visibility="private",
                show_progress="minimal",
                **UNCHECKED,
            )
    return page


gr.set_static_paths([HERE / "pictures"])  # besides what was drawn, the only files that visitors can read
page = build_page()

if __name__ == "__main__":
    page.launch(
        css=CSS,
        theme=THEME,
        app_kwargs={"middleware": guard(page)},  # routes, sizes and turns: see limits.py
        run_history=False,  # with HF_TOKEN set, anybody could act on the Hub in the owner's name
        share=False,  # no tunnel to another server, whatever GRADIO_SHARE says
        enable_monitoring=False,  # visitors' requests are private
        mcp_server=False,  # programs may call the API, which waits its turn
        ssr_mode=False,  # a second server in front would give all visitors the same address
        num_workers=0,  # worker processes would serve files and take uploads around the middleware
        pwa=False,  # nothing is installed on a visitor's device
        max_file_size=1,  # no input takes a file; the route is closed as well
        show_error=False,  # internal errors stay in the log; visitors see only a Refusal
        debug=False,
        strict_cors=True,  # pages from elsewhere cannot reach a Space on the visitor's own machine
        state_session_capacity=1000,  # each session keeps a visitor's last pictures
        footer_links=["api"],  # there are no settings and no run history to link to
    )
