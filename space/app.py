"""PFGM++ in a browser, with D on a dial. `python app.py` prints the address."""

import atexit
import math
import os
import shutil
import tempfile
from collections.abc import Callable
from typing import Any, NamedTuple


# Before torch starts its threads: threads that spin while they wait for each other draw several times slower
# as soon as something else, such as the browser beside them, needs a core.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# Gradio deletes what visitors drew after an hour, but not at the end of a process with pages still open.
if "GRADIO_TEMP_DIR" not in os.environ:
    os.environ["GRADIO_TEMP_DIR"] = tempfile.mkdtemp(prefix="pfgmpp-space-")
    atexit.register(shutil.rmtree, os.environ["GRADIO_TEMP_DIR"], ignore_errors=True)

import gradio as gr
from checks import Refusal
from choices import (
    ANY_CLASS,
    COMPARED,
    MODELS,
    RESTORERS,
    SOLVERS,
    choose_model,
    count_live_steps,
    list_dimensions,
    list_solvers,
)
from dial import START, Dial, add_dial, choose_start, find_ends, render_ruler
from drawing import (
    AS_TRAINED,
    IMAGES,
    LARGEST_SEED,
    MOST_COMPARED,
    MOST_IMAGES,
    MOST_STEPS,
    compare,
    disturb,
    sample,
    show_first,
)
from field_lines import PLANE, add_charge, clear_plane, draw_plane, follow_sample, place_shape, show_frame
from limits import MODEL, guard
from models import HERE, Model
from picture_input import add_picture_input
from rendering import KEEP_PICTURES
from restoring import DAMAGES, restore
from sampling import reserve_cores
from style import CSS, THEME

from pipeline_pfgmpp.generation import list_classes
from pipeline_pfgmpp.pictures.field_lines import SHAPES
from pipeline_pfgmpp.records.dimensions import format_dimension
from pipeline_pfgmpp.records.sizes import format_size
from pipeline_pfgmpp.scheduler_config import DEFAULT_STEPS, get_default_steps


INTRODUCTION = """# PFGM++: turn D like a dial
PFGM++ treats images as electric charges in a space with D extra dimensions, and draws new images by
following the field lines. D = 1 is Poisson flow (PFGM), D = ∞ is diffusion. Turn the dial: a seed draws
much the same image at every D. Then disturb the sampling: the paper finds that a small D tolerates more
noise."""
ROBUSTNESS = """Disturb the sampling and compare a small D with a large one. At small D, training covers a
wider range of noise, and the paper finds that the network copes better with noise that is injected at each
step, and with rounded weights. The model's card, under *About*, says what was measured of this one."""
RESTORING = """Choose a picture, or upload one, and damage it; what you draw on it is damage as well. A
network that sees the damaged picture restores it in a single call. It has a model of its own; of the settings
above it uses only the seed."""
FOLLOWING = "**In the model:** follow one sample from noise to an image, step by step."
PLAYGROUND = """**On a plane:** choose a shape, or click to add a charge, and turn the dial. The lines follow
the exact field, without a network."""

KEPT = 3600  # seconds for which the page remembers what only one visitor sees
DEFAULTS = ["16", "128", "2048", "inf"]  # D that are compared at first
NEW_SEED = "() => Math.floor(Math.random() * 1e6)"
# What asks for a drawing adds one to a hidden number, and its change draws. The dial of a fast model draws as
# it moves, that of another as it is released. A tab draws when it is opened, if its number is not the page's.
AS_IT_MOVES = "(asked, live, steps) => steps <= live ? asked + 1 : asked"
AS_IT_STOPS = "(asked, live, steps) => steps <= live ? asked : asked + 1"
WITH_NEW_MODEL = "(number, live) => live === null ? number : number + 1"
WITH_NEW_SETTINGS = "(number) => number + 1"
WHEN_OPENED = "(number) => number"
WHILE_OPEN = """(number, asked, live, steps) =>
    steps <= live && document.querySelector('.%s')?.offsetParent ? number : asked"""
AT_ONCE = "(asked) => asked + 1"
NOTHING = "() => null"
IF_SHOWN = "(asked) => document.querySelector('.restore')?.offsetParent ? asked + 1 : asked"
# The functions check all that they are sent. Gradio knows less of it, and would answer with a traceback.
UNCHECKED = {"preprocess": False}
NETWORK_EVENT = {"concurrency_id": MODEL, "concurrency_limit": 1, **UNCHECKED}  # one at a time, in turn
WAITING = {"show_progress": "minimal"}  # a full one pulses, and takes the processor from the network
IN_BROWSER = {"api_visibility": "private", "show_progress": "hidden"}
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
    live: gr.Number
    version: gr.Number


class Drawing(NamedTuple):
    """A button that draws, one that cancels, and a hidden number whose change draws as well."""

    draw: gr.Button
    cancel: gr.Button
    asked: gr.Number

    def run(self, function: Callable, inputs: list, outputs: Any, **options: Any) -> None:
        """
        Let the buttons and the number run and cancel a function that needs the network.

        While it runs, the browser keeps the latest request and forgets those before it.

        Args:
            function (`Callable`): The function.
            inputs (`list`): Components that it takes.
            outputs: Components that it fills.
            options: Further options of Gradio's event.
        """
        drawing = gr.on(
            [self.draw.click, self.asked.change],
            function,
            inputs,
            outputs,
            trigger_mode="always_last",
            **{**NETWORK_EVENT, **options},
        )
        self.cancel.click(None, cancels=[drawing], api_visibility="private")

    def open_with(self, tab: gr.Tab, shared: Shared, result: str) -> None:
        """
        Draw when a tab is opened, unless it shows what the current settings have drawn. While it is open, a
        fast model draws as they change.

        Args:
            tab (`gradio.Tab`): The tab.
            shared ([`Shared`]): The inputs that all tabs use.
            result (`str`): Class of the tab's result on the page.
        """
        tab.select(None, shared.version, self.asked, js=WHEN_OPENED, **IN_BROWSER)
        settings = [shared.version, self.asked, shared.live, shared.steps]
        shared.version.change(None, settings, self.asked, js=WHILE_OPEN % result, **IN_BROWSER)


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
            D to compare, the small D, the large D, the steps up to which the dial is live and the four
            buttons that draw.
    """
    try:
        model = choose_model(name)
        pipe = model.make_pipeline((model.dimensions or model.trained_range)[0])
    except (ValueError, Refusal) as error:
        message = getattr(error, "message", str(error))
        unchanged = [gr.skip() for _ in range(14)]
        disabled = [gr.update(interactive=False) for _ in range(4)]
        return [f"**{message}** Please choose another model.", "", *unchanged, None, *disabled]
    dimensions = list_dimensions(model)
    choices = name_dimensions(dimensions)
    common = [D for D in DEFAULTS if D in dimensions]
    defaults = dimensions[:MOST_COMPARED] if model.dimensions or not common else common
    classes = list(list_classes(pipe).values())
    size = format_size(*pipe.image_size)
    solvers = list_solvers(pipe)
    return [
        f"{size} pixels, {pipe.unet.num_parameters():,} parameters",
        model.read_card(),
        min(get_default_steps(pipe.scheduler), MOST_STEPS),
        gr.update(choices=solvers, value=solvers[0]),
        gr.update(choices=[ANY_CLASS, *classes], value=ANY_CLASS, visible=bool(classes)),
        *update_dimension_input(model),
        *update_dimension_input(model),
        gr.update(choices=choices, value=defaults),
        gr.update(choices=choices, value=dimensions[0]),
        gr.update(choices=choices, value=dimensions[-1]),
        count_live_steps(pipe),
        *(gr.update(interactive=True) for _ in range(4)),
    ]


def offer_restorer(name: str) -> list:
    """
    Load a model that restores, and offer its D.

    Args:
        name (`str`): Name of the model.

    Returns:
        `list`: Updates of the summary, the input of D and the button that restores.
    """
    try:
        model = choose_model(name, RESTORERS)
        pipe = model.make_pipeline((model.dimensions or model.trained_range)[0])
    except (ValueError, Refusal) as error:
        message = getattr(error, "message", str(error))
        unchanged = [gr.skip() for _ in (*Dial._fields, "choice")]
        return [f"**{message}** Please choose another model.", *unchanged, gr.update(interactive=False)]
    size = format_size(*pipe.image_size)
    return [
        f"{name}: {size} pixels, {pipe.unet.num_parameters():,} parameters",
        *update_dimension_input(model),
        gr.update(interactive=True),
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
    return [
        gr.update(visible=True, minimum=first, maximum=last, value=choose_start(low, high)),
        gr.update(visible=True, value=render_ruler(low, high)),
        gr.update(visible=True),
        gr.update(visible=False, choices=[], value=None),
    ]


# The page


def add_shared_inputs() -> Shared:
    """Add the inputs that all tabs use."""
    names = list(MODELS)
    with gr.Row():
        with gr.Column(min_width=200):
            model = gr.Dropdown(names, value=names[0], label="Model")
            summary = gr.Markdown()
        label = gr.Dropdown(
            [ANY_CLASS], value=ANY_CLASS, label="Class", allow_custom_value=True, min_width=150
        )
        steps = gr.Slider(1, MOST_STEPS, DEFAULT_STEPS, step=1, label="Steps", buttons=[], min_width=150)
        with gr.Column(min_width=120):
            seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=LARGEST_SEED)
            new_seed = gr.Button("New seed", size="sm")
            live = gr.Number(visible="hidden")  # steps up to which the dial is live; none without a model
            version = gr.Number(0, visible="hidden")  # of the settings, for all tabs
    new_seed.click(None, None, seed, js=NEW_SEED, api_visibility="private")
    gr.on(
        [label.input, steps.input, seed.change],
        None,
        version,
        version,
        js=WITH_NEW_SETTINGS,
        trigger_mode="multiple",
        **IN_BROWSER,
    )
    return Shared(model, summary, label, steps, seed, live, version)


def add_dimension_input(model: Model) -> DimensionInput:
    """Add a dial and a list, of which one is visible at a time."""
    return DimensionInput(
        add_dial(*model.trained_range, START), gr.Radio([], label="Augmented dimension D", visible=False)
    )


def add_drawing(name: str) -> Drawing:
    """Add what starts and cancels a drawing."""
    with gr.Row():
        draw = gr.Button(name, variant="primary", min_width=80, interactive=False)  # until a model is offered
        cancel = gr.Button("Cancel", min_width=80)
    return Drawing(draw, cancel, gr.Number(0, visible="hidden"))


def add_sample_tab(page: gr.Blocks, shared: Shared) -> tuple[DimensionInput, gr.Dropdown, Drawing]:
    """Add the tab that draws images at one D; return what depends on the model."""
    with gr.Row(elem_classes="sample"):
        with gr.Column(scale=1):
            dimension = add_dimension_input(MODELS[shared.model.value])
            with gr.Group(elem_classes="dial-group"):
                noise = gr.Slider(
                    0, 1, 0.0, step=0.05, label="Injected noise α", info="disturbs each step; 0 is off"
                )
            count = gr.Slider(1, MOST_IMAGES, IMAGES, step=1, label="Images")
            solver = gr.Dropdown(SOLVERS, value=SOLVERS[0], label="Solver")
            guidance = gr.Slider(
                0,
                10,
                1.0,
                step=0.1,
                label="Guidance",
                info="1 is off; larger values draw more typical images of the class",
            )
            drawing = add_drawing("Draw")
        with gr.Column(scale=2):
            images = gr.HTML(label="Images", js_on_load=KEEP_PICTURES)
            summary = gr.Markdown()
            archive = gr.DownloadButton("Download all as zip", size="sm")
            code = gr.Code(label="Code for these images", language="python", interactive=False)
    slider = dimension.dial.slider
    outputs = [images, summary, archive, code]
    first = page.load(show_first, None, outputs, concurrency_limit=1, **QUIET_EVENT)
    inputs = [shared.model, slider, dimension.choice, shared.label, count, shared.steps, solver, guidance]
    inputs += [shared.seed, noise]
    options = {"cancels": [first], **WAITING, "show_progress_on": summary}
    drawing.run(sample, inputs, outputs, api_name="sample", **options)

    moved = [part.input for part in (slider, dimension.choice, noise, count, guidance)]
    moved += [shared.label.input, shared.steps.input, shared.seed.change]
    asked = [drawing.asked, shared.live, shared.steps]
    for triggers, js in ((moved, AS_IT_MOVES), ([slider.release], AS_IT_STOPS)):
        gr.on(triggers, None, asked, drawing.asked, js=js, trigger_mode="multiple", **IN_BROWSER)
    return dimension, solver, drawing


def add_compare_tab(tab: gr.Tab, shared: Shared) -> tuple[gr.CheckboxGroup, gr.Button]:
    """Add the tab that compares several D; return what depends on the model."""
    gr.Markdown(f"Draw the same seeds at up to {MOST_COMPARED} values of D, one row per D.")
    dimensions = gr.CheckboxGroup(name_dimensions(COMPARED), value=DEFAULTS, label="Augmented dimension D")
    drawing = add_drawing("Compare")
    rows = gr.HTML(label="Comparison", elem_classes="comparison")
    inputs = [shared.model, dimensions, shared.label, shared.steps, shared.seed]
    drawing.run(compare, inputs, rows, api_name="compare")
    drawing.open_with(tab, shared, "comparison")
    return dimensions, drawing.draw


def add_robustness_tab(tab: gr.Tab, shared: Shared) -> tuple[gr.Radio, gr.Radio, gr.Button]:
    """Add the tab that disturbs the sampling; return what depends on the model."""
    gr.Markdown(ROBUSTNESS)
    with gr.Row():
        noise = gr.Slider(
            0,
            1,
            0.3,
            step=0.05,
            label="Injected noise α",
            info="before each step, relative to the step's noise level",
            min_width=240,
        )
        bits = gr.Radio([AS_TRAINED, 8, 7, 6, 5, 4], value=AS_TRAINED, label="Bits per weight", min_width=240)
        small = gr.Radio(name_dimensions(COMPARED), value=COMPARED[0], label="Small D", min_width=240)
        large = gr.Radio(name_dimensions(COMPARED), value=COMPARED[-1], label="Large D", min_width=240)
    drawing = add_drawing("Disturb")
    rows = gr.HTML(label="Disturbed samples", elem_classes="disturbed")
    inputs = [shared.model, noise, bits, small, large, shared.label, shared.steps, shared.seed]
    drawing.run(disturb, inputs, rows, api_name="disturb")
    drawing.open_with(tab, shared, "disturbed")
    return small, large, drawing.draw


def add_restore_tab(page: gr.Blocks, tab: gr.Tab, shared: Shared) -> None:
    """Add the tab that damages a picture and restores it."""
    names = list(RESTORERS)
    gr.Markdown(RESTORING)
    with gr.Row(elem_classes="restore"):
        with gr.Column(scale=0, min_width=300):
            picture = add_picture_input()
        with gr.Column():
            pictures = gr.HTML(label="Before and after")
            with gr.Row():
                with gr.Column(min_width=260):
                    damage = gr.Radio(list(DAMAGES), value=next(iter(DAMAGES)), label="Damage")
                    strength = gr.Slider(
                        0, 1, 0.5, step=0.05, label="Strength", info="of the noise; of a hole, its size"
                    )
                with gr.Column(min_width=260):
                    dimension = add_dimension_input(RESTORERS[names[0]])
                    drawing = add_drawing("Restore")
            model = gr.Dropdown(names, value=names[0], label="Restoration model", visible=len(names) > 1)
            summary = gr.Markdown()
    inputs = [model, picture, damage, strength, dimension.dial.slider, dimension.choice, shared.seed]
    drawing.run(restore, inputs, pictures, api_name="restore", **WAITING, show_progress_on=summary)

    changed = [picture.change, damage.input, strength.input]
    changed += [dimension.dial.slider.input, dimension.choice.input, tab.select]
    for triggers, js in ((changed, AT_ONCE), ([shared.seed.change], IF_SHOWN)):
        gr.on(triggers, None, drawing.asked, drawing.asked, js=js, trigger_mode="multiple", **IN_BROWSER)
    offered = [summary, *dimension.list_parts(), drawing.draw]
    options = {"api_visibility": "private", "show_progress": "minimal", **UNCHECKED}
    page.load(offer_restorer, model, offered, **options)
    offering = model.change(offer_restorer, model, offered, **options)
    offering.then(None, drawing.asked, drawing.asked, js=AT_ONCE, **IN_BROWSER)


def add_following(tab: gr.Tab, shared: Shared) -> tuple[DimensionInput, gr.Button]:
    """Add what follows one sample of the model; return what depends on the model."""
    gr.Markdown(FOLLOWING)
    dimension = add_dimension_input(MODELS[shared.model.value])
    drawing = add_drawing("Follow")
    step = gr.Slider(0, 18, 18, step=1, label="Step", visible=False)
    frame = gr.HTML(elem_classes="frame")
    plot = gr.HTML()
    frames = gr.State([], time_to_live=KEPT)
    inputs = [shared.model, dimension.dial.slider, dimension.choice, shared.label, shared.steps, shared.seed]
    outputs = [frames, step, frame, plot]
    drawing.run(follow_sample, inputs, outputs, api_visibility="private", show_progress_on=frame)
    drawing.open_with(tab, shared, "frame")
    step.change(
        show_frame, [frames, step], frame, show_progress="hidden", api_visibility="private", **UNCHECKED
    )
    return dimension, drawing.draw


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
    charges = gr.State([], time_to_live=KEPT)
    outputs = [charges, plane, summary]
    # Every click counts; Gradio lets them through one at a time.
    every_click = {**QUIET_EVENT, "trigger_mode": "multiple"}
    plane.select(add_charge, [charges, dial], outputs, concurrency_limit=1, **every_click)
    dial.change(draw_plane, [charges, dial], [plane, summary], **QUIET_EVENT)
    shape.input(place_shape, [shape, dial], outputs, **QUIET_EVENT)
    clear.click(clear_plane, dial, outputs, **QUIET_EVENT)
    clear.click(None, None, shape, js=NOTHING, **IN_BROWSER)  # the same shape may be chosen again
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
            dimension, solver, drawing = add_sample_tab(page, shared)
        with gr.Tab("Compare D") as tab:
            compared, draw_comparison = add_compare_tab(tab, shared)
        with gr.Tab("Robustness") as tab:
            small, large, draw_disturbed = add_robustness_tab(tab, shared)
        if RESTORERS:
            with gr.Tab("Restore") as tab:
                add_restore_tab(page, tab, shared)
        with gr.Tab("Follow a field line") as tab, gr.Row():
            with gr.Column():
                followed, follow = add_following(tab, shared)
            with gr.Column():
                add_playground(page)
        with gr.Tab("About"):
            card = add_about_tab()

        dimensions = [*dimension.list_parts(), *followed.list_parts()]
        buttons = [drawing.draw, draw_comparison, draw_disturbed, follow]
        offered = [shared.summary, card, shared.steps, solver, shared.label]
        offered += [*dimensions, compared, small, large, shared.live, *buttons]
        # The page opens with pictures of its first model; another model draws its own.
        for event, numbers in (
            (page.load, [shared.version]),
            (shared.model.change, [drawing.asked, shared.version]),
        ):
            offering = event(
                offer_model,
                shared.model,
                offered,
                api_visibility="private",
                show_progress="minimal",
                **UNCHECKED,
            )
            for number in numbers:
                offering.then(None, [number, shared.live], number, js=WITH_NEW_MODEL, **IN_BROWSER)
    return page


gr.set_static_paths([HERE / "pictures"])  # besides what was drawn, the only files that visitors can read
page = build_page()

if __name__ == "__main__":
    reserve_cores()
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
