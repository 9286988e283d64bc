"""PFGM++ in a browser: turn D like a dial. `python app.py` prints the address."""

import base64
import html
import io
import math
import queue
import tempfile
import threading
import time
import zipfile
from pathlib import Path

import gradio as gr
import torch
from checks import Refusal, check_cost, one_of, real, whole
from limits import MODEL, guard
from models import HERE, read_models
from PIL import Image

from pipeline_pfgmpp import sample_noise
from pipeline_pfgmpp.generation import inject_noise
from pipeline_pfgmpp.pictures.field_lines import SHAPES, make_shape, trace_field_lines
from pipeline_pfgmpp.pictures.grid import draw_grid, to_pil
from pipeline_pfgmpp.records.dimensions import format_dimension


try:
    import spaces  # there on the Hub

    gpu = spaces.GPU  # lends a GPU to what is decorated
except ImportError:

    def gpu(function):
        return function


MODELS = read_models()
SOLVERS = ["heun", "dpmpp_3m", "dpmpp_2m", "euler", "dpmpp_2m_sde"]
ANY_CLASS = "any"
INFINITY = 19.0  # the stop of a dial of log2 D that stands for infinity
COMPARED = ["16", "64", "128", "512", "2048", "16384", "inf"]
DEFAULTS = ["16", "128", "2048", "inf"]
AS_TRAINED = "as trained"
PAUSE = 0.7  # seconds between what is shown of a run
LARGEST_SEED = 2**31 - 65  # with those of 64 images it fits 31 bits
PLANE, REACH = 480, 3.0  # the playground: its pixels, and half its width
CHECKED_HERE = {
    "preprocess": False
}  # all that comes in is checked here, and nothing by gradio, which knows less of it
MODEL_WORK = {"concurrency_id": MODEL, "concurrency_limit": 1, **CHECKED_HERE}  # one at a time, in turn


# What is asked for


def turned(dial):
    """The D of a dial of log2 D."""
    dial = real(dial, 0, INFINITY, "The dial of D")
    return math.inf if dial > INFINITY - 1 else float(f"{2**dial:.3g}")


def chosen_dimension(model, dial, fixed):
    """The D that is asked of a model: of the dial, or one of a family's."""
    if model.dimensions:
        return float(one_of(fixed, offered_by(model), "D"))
    low, high = model.trained_range
    dial = real(dial, *stops_of_dial(low, high), "The dial of D")
    return min(max(turned(dial), low), high)  # which a D of three digits may miss


def stops_of_dial(low, high):
    """Where the dial of log2 D begins and ends for a range of D."""
    return math.log2(low), INFINITY if math.isinf(high) else math.log2(high)


def offered_by(model):
    """The D to choose from, as the browser knows them: JSON has no infinity."""
    low, high = model.trained_range
    return [f"{D:g}" for D in model.dimensions] or [D for D in COMPARED if low <= float(D) <= high]


def chosen_model(name):
    """The model of a name, loaded so far as to say what D it serves."""
    try:
        return MODELS[one_of(name, list(MODELS), "The model")].load()
    except ValueError as error:
        raise Refusal(str(error)) from None


def classes_of(pipe, name, count):
    """
    Class of each of `count` images, and the names of the classes; None for a model that knows none.
    """
    names = list((pipe.config.id2label or {}).values()) or [str(index) for index in range(pipe.num_classes)]
    if not names:
        return None, []
    one_of(name, [ANY_CLASS, *names], "The class")
    return [names.index(name) if name != ANY_CLASS else index % len(names) for index in range(count)], names


def loaded(model, D, **settings):
    """A pipeline, or a message for the browser."""
    try:
        return model.pipeline(D, **settings)
    except ValueError as error:
        raise Refusal(str(error)) from None


def calls_of(pipe, steps, guidance=1.0):
    """Calls of the network for an image."""
    pipe.scheduler.set_timesteps(steps)
    return len(pipe.scheduler.timesteps) * (1 if guidance == 1 else 2)


# Pictures


def pictures_of(samples):
    """Samples, in about [-1, 1], as PIL."""
    return to_pil(((samples / 2 + 0.5).clamp(0, 1) * 255).round().to("cpu", torch.uint8))


def as_html(picture, alt, width=None):
    """A picture with a text for those who do not see it, inside the page: no file is written."""
    data = io.BytesIO()
    picture.save(data, format="PNG")
    source = base64.b64encode(data.getvalue()).decode()
    style = f' style="width:{width}px"' if width else ""
    return f'<img class="pixels" alt="{html.escape(alt)}" src="data:image/png;base64,{source}"{style}>'


def as_rows(rows):
    """Rows of pictures by name: a name beside each row, or above it where the page is narrow."""
    parts = [
        f'<div class="name">{html.escape(name)}</div>{as_html(draw_grid(pictures, len(pictures)), name)}'
        for name, pictures in rows.items()
    ]
    return f'<div class="rows">{"".join(parts)}</div>'


def figure_to_pil(figure):
    """A figure of matplotlib, as PIL."""
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=100)
    return Image.open(data)


# Sampling


def run(pipe, count, callback_on_step_end=None, **settings):
    """
    Calls the pipeline in a thread and yields, now and then and at the end, the number of calls of
    the network so far and the denoised images. Closing this generator, as the cancel button does,
    stops the pipeline.
    """
    seen = queue.Queue()

    def after_call(pipe, index, timestep, tensors):
        if index + 1 < len(pipe.scheduler.timesteps):
            seen.put((index + 1, tensors["pred_original_sample"]))
        return callback_on_step_end(pipe, index, timestep, tensors) if callback_on_step_end else {}

    def work():
        try:
            images = pipe(
                count, output_type="latent", callback_on_step_end=after_call,
                callback_on_step_end_tensor_inputs=["latents", "pred_original_sample"], **settings,
            ).images  # fmt: skip
            seen.put((len(pipe.scheduler.timesteps), images))
        except Exception as error:
            seen.put(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        calls, shown = 0, -math.inf
        while not calls or calls < len(pipe.scheduler.timesteps):
            item = seen.get()
            if isinstance(item, Exception):
                raise Refusal(str(item)) if isinstance(item, ValueError) else item
            calls, images = item
            if calls == len(pipe.scheduler.timesteps) or time.monotonic() - shown > PAUSE:
                shown = time.monotonic()
                yield calls, images
    finally:
        pipe._interrupt = True
        thread.join()


def generators_of(seed, count):
    return [torch.Generator().manual_seed(seed + index) for index in range(count)]


def code_of(source, count, seed, steps, solver, settings):
    """The program that draws the same images."""
    arguments = "".join(f"    {name}={value!r},\n" for name, value in settings.items()).replace(
        "=inf", '=float("inf")'
    )
    where = (
        'pipe.to("cuda")' if torch.cuda.is_available() else "pipe.unet.to(memory_format=torch.channels_last)"
    )
    return f"""import torch
from diffusers import DiffusionPipeline
from pipeline_pfgmpp import PFGMPPScheduler

pipe = DiffusionPipeline.from_pretrained({source!r})
{where}
pipe.scheduler = PFGMPPScheduler.from_config(pipe.scheduler.config, solver_type={solver!r})
images = pipe(
    batch_size={count},
    num_inference_steps={steps},
{arguments}    generator=[torch.Generator().manual_seed({seed} + index) for index in range({count})],
).images
"""


@gpu
def sample(model, dial, fixed, label, count, steps, solver, guidance, seed):
    """Draws images: a gallery that fills, what it took, a zip file, and the code that draws the same."""
    model = chosen_model(model)
    D = chosen_dimension(model, dial, fixed)
    count, steps = whole(count, 1, 64, "The number of images"), whole(steps, 1, 100, "The number of steps")
    seed, guidance = whole(seed, 0, LARGEST_SEED, "The seed"), real(guidance, 0, 10, "Guidance")
    pipe = loaded(model, D, solver_type=one_of(solver, SOLVERS, "The solver"))
    check_cost(count, calls_of(pipe, steps, guidance))
    labels, names = classes_of(pipe, label, count)
    settings = {"D": D, "class_labels": labels, "guidance_scale": guidance}
    if not names:
        settings = {"D": D}
    captions = [
        f"{names[labels[index]]}, seed {seed + index}" if names else f"seed {seed + index}"
        for index in range(count)
    ]
    code, start = code_of(model.source(D), count, seed, steps, solver, settings), time.monotonic()
    for calls, images in run(
        pipe, count, num_inference_steps=steps, generator=generators_of(seed, count), **settings
    ):
        pictures, total = list(zip(pictures_of(images), captions)), len(pipe.scheduler.timesteps)
        seconds = time.monotonic() - start
        took = f"{count} images, D = {format_dimension(D)}, {calls} of {total} calls of the network, {seconds:.1f} s"
        if calls < total:
            yield pictures, took, gr.skip(), code
    with tempfile.TemporaryDirectory() as folder:  # gradio takes its copy before it asks for more
        path = Path(folder) / f"pfgmpp-D{D:g}-seed{seed}.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for picture, caption in pictures:
                with archive.open(f"{caption.replace('/', '-')}.png", "w") as file:
                    picture.save(file, format="PNG")
        yield pictures, took, str(path), code


@gpu
def compare(model, dimensions, label, steps, seed):
    """The same seeds at several D: a row each, as they are drawn."""
    model = chosen_model(model)
    if not isinstance(dimensions, list) or not 1 <= len(dimensions) <= 5:
        raise Refusal("Choose one to five D.")
    dimensions = sorted(float(one_of(D, offered_by(model), "D")) for D in dimensions)
    steps, seed = whole(steps, 1, 100, "The number of steps"), whole(seed, 0, LARGEST_SEED, "The seed")
    pipes = {D: loaded(model, D) for D in dimensions}
    rows = {}
    columns = 8
    check_cost(columns * len(dimensions), calls_of(pipes[dimensions[0]], steps))
    for D, pipe in pipes.items():
        labels, _ = classes_of(pipe, label, columns)
        settings = {"num_inference_steps": steps, "D": D, "class_labels": labels}
        for _, images in run(pipe, columns, generator=generators_of(seed, columns), **settings):
            rows[f"D = {format_dimension(D)}"] = pictures_of(images)
            yield as_rows(rows)


@gpu
def disturb(model, noise, bits, small, large, label, steps, seed):
    """The same seeds at a small and a large D, undisturbed and disturbed."""
    model = chosen_model(model)
    small, large = (float(one_of(D, offered_by(model), "D")) for D in (small, large))
    noise, steps = real(noise, 0, 1, "The noise"), whole(steps, 1, 100, "The number of steps")
    seed = whole(seed, 0, LARGEST_SEED, "The seed")
    bits = None if bits == AS_TRAINED else whole(bits, 2, 16, "Bits a weight")
    rows = {}
    columns = 8
    check_cost(columns * 4, calls_of(loaded(model, small), steps))
    for alpha, rounded in ((0.0, None), (noise, bits)):
        for D in (small, large):
            pipe = loaded(model, D, **({} if rounded is None else {"bits": rounded}))
            labels, _ = classes_of(pipe, label, columns)
            generators = generators_of(seed, columns)
            settings = {"num_inference_steps": steps, "D": D, "class_labels": labels, "generator": generators}
            if alpha:
                settings |= inject_noise(pipe, list(range(seed, seed + columns)), generators, alpha, D)
            for _, images in run(pipe, columns, **settings):
                rows[f"D = {format_dimension(D)}, {'disturbed' if alpha or rounded else 'as it is'}"] = (
                    pictures_of(images)
                )
                yield as_rows(rows)


# One sample's way


@gpu
def follow(model, dial, fixed, label, steps, seed):
    """A sample at every step of its way from the prior to the image."""
    model = chosen_model(model)
    D = chosen_dimension(model, dial, fixed)
    steps, seed = whole(steps, 2, 100, "The number of steps"), whole(seed, 0, LARGEST_SEED, "The seed")
    pipe = loaded(model, D)
    labels, _ = classes_of(pipe, label, 1)
    generator = torch.Generator().manual_seed(seed)
    size = pipe.unet.config.sample_size
    prior = pipe.scheduler.sample_noise((1, pipe.unet.config.in_channels, size, size), [generator], D=D)
    samples, denoised = [], []

    def keep(pipe, index, timestep, tensors):
        if (index + 1) % pipe.scheduler.order == 0 or index + 1 == len(pipe.scheduler.timesteps):
            samples.append(tensors["latents"].cpu())
            denoised.append(tensors["pred_original_sample"].cpu())
        return {}

    settings = {
        "num_inference_steps": steps,
        "D": D,
        "class_labels": labels,
        "latents": prior,
        "generator": [generator],
    }
    for _ in run(pipe, 1, callback_on_step_end=keep, **settings):
        yield [gr.skip()] * 4  # so that it stops where nobody listens any more
    sigmas = [*pipe.scheduler.sigmas[: -1 : pipe.scheduler.order].tolist()[:steps], 0.0]
    samples, denoised = [sigmas[0] * prior.cpu(), *samples], [denoised[0], *denoised]
    frames = []
    for sigma, x, image in zip(sigmas, samples, denoised):
        norm = x.norm().item() / x[0].numel() ** 0.5
        scaled = x / max(1.0, norm)
        pair = draw_grid([*pictures_of(scaled), *pictures_of(image)], 2, cell=224)
        frames.append(
            (as_html(pair, f"The sample at sigma {sigma:.3g}, and what the network makes of it"), sigma, norm)
        )
    yield (
        frames,
        gr.update(maximum=steps, value=steps, visible=True),
        show_frame(frames, steps),
        plot_way(frames, D),
    )


def show_frame(frames, index):
    """One step of the way."""
    if not frames:
        return ""
    picture, sigma, norm = frames[whole(index, 0, len(frames) - 1, "The step")]
    return f"{picture}<p>left the sample, right what the network makes of it: σ = {sigma:.3g}, ‖x‖ / √N = {norm:.3g}</p>"


def plot_way(frames, D):
    """Height and norm along the way."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 2.8), layout="constrained")
    axis = figure.subplots()
    axis.plot([sigma for _, sigma, _ in frames], label="σ", marker=".")
    axis.plot([norm for *_, norm in frames], label="‖x‖ / √N", marker=".")
    axis.set(xlabel="step", title=f"D = {format_dimension(D)}")
    axis.set_yscale("symlog", linthresh=0.01)
    axis.legend()
    axis.grid(alpha=0.3)
    return as_html(figure_to_pil(figure), "Sigma and the norm of the sample at each step", 460)


# The playground


def play(charges, dial):
    """The way of sixty samples of the exact field of charges, on a plane from -REACH to REACH."""
    from matplotlib.figure import Figure

    D = turned(dial)
    figure = Figure(figsize=(PLANE / 100, PLANE / 100))
    axis = figure.add_axes(
        (0, 0, 1, 1), xlim=(-REACH, REACH), ylim=(-REACH, REACH), frame_on=False, xticks=[], yticks=[]
    )
    if charges:
        points, _ = trace_field_lines(
            torch.tensor(charges), D, sample_noise((60, 2), D, torch.Generator().manual_seed(0)), 40, 2.0
        )
        axis.plot(points[:, :, 0], points[:, :, 1], color="tab:blue", linewidth=0.8, alpha=0.7)
        axis.plot(*points[0].T, ".", color="0.4", markersize=4)
        axis.plot(*zip(*charges), ".", color="tab:red", markersize=5)
    return figure_to_pil(figure), f"Charges: {len(charges)}. D = {format_dimension(D)}."


def add_charge(charges, dial, event: gr.SelectData):
    """A charge where the picture was clicked."""
    if len(charges) >= 300:
        raise Refusal("There is room for 300 charges.")
    if not isinstance(event.index, list) or len(event.index) != 2:
        raise Refusal("The place must be two numbers.")
    x, y = (real(place, 0, PLANE, "The place") / PLANE * 2 * REACH - REACH for place in event.index)
    charges = [*charges, (x, -y)]
    return charges, *play(charges, dial)


def take_shape(name, dial):
    """The charges of a shape."""
    charges = (1.2 * make_shape(one_of(name, SHAPES, "The shape"), 100)).tolist()
    return charges, *play(charges, dial)


# The page


SHOW_D = (
    f"(dial) => dial > {INFINITY - 1} ? 'D = ∞, diffusion' : `D = ${{Number((2 ** dial).toPrecision(3))}}`"
)
ROLL = "() => Math.floor(Math.random() * 1e6)"
CSS = """
.pixels, .grid-wrap img, .preview img { image-rendering: pixelated; }
.pixels { max-width: 100%; height: auto; background: white; border-radius: 4px; }
.grid-wrap { max-height: none !important; min-height: 0 !important; overflow: visible !important; }
.grid-wrap .grid-container { grid-template-columns: repeat(8, minmax(0, 1fr)) !important; }
.grid-wrap .caption-label { opacity: 0; }
.grid-wrap button:hover .caption-label, .grid-wrap button:focus .caption-label { opacity: 1; }
.rows { display: grid; grid-template-columns: max-content 1fr; gap: 4px 12px; align-items: center; }
.rows .name { text-align: right; }
.dial .tab-like-container, .dial .min_value, .dial .max_value { display: none; }
.turn, .turn > * { background: var(--block-background-fill) !important; }
.ruler { position: relative; height: 1.6em; margin: -6px 8px 0; font-size: 13px; color: var(--body-text-color-subdued); }
.ruler span { position: absolute; transform: translateX(-50%); }
.turned { padding-top: 6px; font-size: 22px; font-weight: 600; text-align: center; }
@media (max-width: 600px) {
  .rows { grid-template-columns: 1fr; }
  .rows .name { text-align: left; }
  .grid-wrap .grid-container { grid-template-columns: repeat(4, minmax(0, 1fr)) !important; }
}
"""
THEME = gr.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
INTRODUCTION = """# PFGM++: turn D like a dial
Images are electric charges in a space with D more dimensions, and the field lines lead from noise home to them. D = 1 is
Poisson flow, D = ∞ is diffusion; small D is robust, large D is rigid. Turn D and a seed stays
the same garment; then disturb it."""


def named(dimensions):
    """Choices of D for people."""
    return [(format_dimension(float(D)), D) for D in dimensions]


def ruler(low, high):
    """The marks below a dial of a range of D."""
    first, last = stops_of_dial(low, high)
    between = [(place, f"{2**place}") for place in (3, 7, 11, 15) if first + 1 < place < last - 1]
    marks = [(first, format_dimension(low)), *between, (last, format_dimension(high))]
    spans = [
        f'<span style="left:{100 * (place - first) / (last - first):.1f}%">{text}</span>'
        for place, text in marks
    ]
    return f'<div class="ruler" aria-hidden="true">{"".join(spans)}</div>'


def dial_of_dimension(low, high, value):
    """A dial of log2 D with a stop for infinity, its marks, and the D that it says."""
    with gr.Group(elem_classes="turn"):
        shown = gr.HTML(f"D = {2**value:g}", html_template='<div class="turned" role="status">${value}</div>')
        dial = gr.Slider(
            *stops_of_dial(low, high),
            value,
            step=0.5,
            label="D (the dial turns log₂ D)",
            buttons=[],
            elem_classes="dial",
        )
        marks = gr.HTML(ruler(low, high))
    dial.change(None, dial, shown, js=SHOW_D, api_visibility="private")
    return dial, marks, shown


def choice_of_dimension(model):
    """The dial, for a network that is told D; the choice, for a family."""
    return [*dial_of_dimension(*model.trained_range, 7.0), gr.Radio([], label="D", visible=False)]


def offer(name):
    """What the page offers for a model, which is loaded now."""
    try:
        model = chosen_model(name)
        pipe = model.pipeline((model.dimensions or model.trained_range)[0])
    except (ValueError, Refusal) as error:
        message = getattr(error, "message", str(error))
        said = f"**{message}** The others can be used."
        return [said, "", *[gr.skip()] * 12, *[gr.update(interactive=False) for _ in range(4)]]
    _, names = classes_of(pipe, ANY_CLASS, 1)
    family, offered = bool(model.dimensions), offered_by(model)
    low, high = model.trained_range
    first, last = stops_of_dial(low, high)

    def dimension():
        return [
            gr.update(visible=not family, minimum=first, maximum=last, value=min(max(7.0, first), last)),
            gr.update(visible=not family, value=ruler(low, high)),
            gr.update(visible=not family),
            gr.update(
                visible=family, choices=named(offered) if family else [], value=offered[0] if family else None
            ),
        ]

    compared = gr.update(
        choices=named(offered), value=offered[:5] if family else [D for D in DEFAULTS if D in offered]
    )
    small, large = (gr.update(choices=named(offered), value=D) for D in (offered[0], offered[-1]))
    label = gr.update(choices=[ANY_CLASS, *names], value=ANY_CLASS, visible=bool(names))
    size, parameters = pipe.unet.config.sample_size, pipe.unet.num_parameters()
    said = f"{size}×{size} pixels, {parameters:,} parameters"
    on = [gr.update(interactive=True) for _ in range(4)]
    return [said, model.card(), label, *dimension(), *dimension(), compared, small, large, *on]


def build():
    """The page."""
    first = next(iter(MODELS.values()))
    with gr.Blocks(title="PFGM++", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.Markdown(INTRODUCTION)
        with gr.Row():
            with gr.Column(min_width=160):
                model = gr.Dropdown(list(MODELS), value=first.name, label="Model")
                said = gr.Markdown()
            label = gr.Dropdown([ANY_CLASS], value=ANY_CLASS, label="Class", allow_custom_value=True)
            steps = gr.Slider(1, 100, 18, step=1, label="Steps")
            with gr.Column(min_width=160):
                seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=LARGEST_SEED)
                dice = gr.Button("🎲 another seed", size="sm")
        dice.click(None, None, seed, js=ROLL, api_visibility="private")

        with gr.Tab("Sample"):
            with gr.Row():
                with gr.Column(scale=1):
                    dial, *dial_marks, fixed = choice_of_dimension(first)
                    count = gr.Slider(1, 64, 16, step=1, label="Images")
                    solver = gr.Dropdown(SOLVERS, value=SOLVERS[0], label="Solver")
                    guidance = gr.Slider(
                        0, 10, 1.0, step=0.1, label="Guidance", info="1 is none, more is more typical"
                    )
                    with gr.Row():
                        draw = gr.Button("Draw", variant="primary", min_width=80)
                        cancel = gr.Button("Cancel", min_width=80)
                with gr.Column(scale=2):
                    gallery = gr.Gallery(
                        label="Images",
                        show_label=False,
                        columns=8,
                        format="png",
                        object_fit="contain",
                        height="auto",
                    )
                    took = gr.Markdown()
                    archive = gr.DownloadButton("Download all as zip", size="sm")
                    code = gr.Code(
                        label="The code that draws these images", language="python", interactive=False
                    )
            drawing = gr.on(
                [draw.click, dial.release], sample, [model, dial, fixed, label, count, steps, solver, guidance, seed],
                [gallery, took, archive, code], api_name="sample", trigger_mode="always_last", **MODEL_WORK,
            )  # fmt: skip
            cancel.click(None, cancels=[drawing], api_visibility="private")

        with gr.Tab("Compare D"):
            gr.Markdown("The same seeds, a row each for up to five D.")
            compared = gr.CheckboxGroup(named(COMPARED), value=DEFAULTS, label="D")
            with gr.Row():
                compare_button = gr.Button("Compare", variant="primary")
                cancel = gr.Button("Cancel")
            comparison = gr.HTML(label="Comparison")
            comparing = compare_button.click(
                compare, [model, compared, label, steps, seed], comparison, api_name="compare", **MODEL_WORK
            )
            cancel.click(None, cancels=[comparing], api_visibility="private")

        with gr.Tab("Robustness"):
            gr.Markdown(
                "Disturb the sampling: at small D a network has seen more of what is off the way, and bears more noise. The"
                " paper finds the same for rounded weights; on the bundled network that does not show."
            )
            with gr.Row():
                noise = gr.Slider(
                    0,
                    1,
                    0.2,
                    step=0.05,
                    label="Noise α",
                    info="injected before each step, in units of its level",
                )
                bits = gr.Radio([AS_TRAINED, 8, 7, 6, 5, 4], value=AS_TRAINED, label="Bits a weight")
                small = gr.Radio(named(COMPARED), value="16", label="Small D")
                large = gr.Radio(named(COMPARED), value="inf", label="Large D")
            with gr.Row():
                disturb_button = gr.Button("Disturb", variant="primary")
                cancel = gr.Button("Cancel")
            disturbed = gr.HTML(label="Disturbed samples")
            disturbing = disturb_button.click(
                disturb,
                [model, noise, bits, small, large, label, steps, seed],
                disturbed,
                api_name="disturb",
                **MODEL_WORK,
            )
            cancel.click(None, cancels=[disturbing], api_visibility="private")

        with gr.Tab("Follow a field line"):
            with gr.Row():
                with gr.Column():
                    follow_dial, *follow_marks, follow_fixed = choice_of_dimension(first)
                    follow_button = gr.Button("Follow one sample", variant="primary")
                    place = gr.Slider(0, 18, 18, step=1, label="Step", visible=False)
                    frame, way = gr.HTML(), gr.HTML()
                with gr.Column():
                    gr.Markdown(
                        "**On a plane:** click to put a charge, or take a shape, and turn D. The field is exact."
                    )
                    with gr.Row():
                        plane_shape = gr.Dropdown(list(SHAPES), value="heart", label="Shape")
                        clear = gr.Button("Clear")
                    plane_dial, *_ = dial_of_dimension(1.0, math.inf, 3.0)
                    plane = gr.Image(
                        label="Plane", show_label=False, type="pil", interactive=False, width=PLANE, height=PLANE, buttons=[],
                        alt_text="Charges in red, and the ways of sixty samples home to them",
                    )  # fmt: skip
                    plane_said = gr.Markdown()
            frames, charges = gr.State([]), gr.State([])
            follow_button.click(
                follow, [model, follow_dial, follow_fixed, label, steps, seed], [frames, place, frame, way],
                api_visibility="private", **MODEL_WORK,
            )  # fmt: skip
            place.change(
                show_frame,
                [frames, place],
                frame,
                show_progress="hidden",
                api_visibility="private",
                **CHECKED_HERE,
            )
            quiet = {
                "show_progress": "hidden",
                "api_visibility": "private",
                "trigger_mode": "always_last",
                **CHECKED_HERE,
            }
            shown = [charges, plane, plane_said]
            plane.select(add_charge, [charges, plane_dial], shown, **quiet)
            plane_dial.change(play, [charges, plane_dial], shown[1:], **quiet)
            plane_shape.change(take_shape, [plane_shape, plane_dial], shown, **quiet)
            clear.click(lambda dial: ([], *play([], dial)), plane_dial, shown, **quiet)
            page.load(take_shape, [plane_shape, plane_dial], shown, **quiet)

        with gr.Tab("About"):
            gr.Markdown((HERE / "about.md").read_text())
            with gr.Accordion("The card of the model", open=False):
                card = gr.Markdown()

        buttons = [draw, compare_button, disturb_button, follow_button]
        dials = [dial, *dial_marks, fixed, follow_dial, *follow_marks, follow_fixed]
        offered = [said, card, label, *dials, compared, small, large, *buttons]
        for event in (page.load, model.change):
            event(offer, model, offered, api_visibility="private", show_progress="minimal", **CHECKED_HERE)
    return page


gr.set_static_paths([HERE / "pictures"])  # the only files that are choose_dimensions, beside what was drawn
page = build()

if __name__ == "__main__":
    page.launch(
        css=CSS,
        theme=THEME,
        app_kwargs={"middleware": guard(page)},  # routes, sizes and turns: see limits.py
        run_history=False,  # with HF_TOKEN set, its routes act on the Hub in the owner's name for anybody who asks
        share=False,  # no tunnel to another server, whatever GRADIO_SHARE says
        enable_monitoring=False,  # who asked for what is nobody's business
        mcp_server=False,  # what programs may call is the API, in its turn
        ssr_mode=False,  # no second server in front, for which all visitors would have one address
        num_workers=0,  # no processes beside the door, which would serve files and take uploads
        pwa=False,  # nothing is installed on a visitor's device
        max_file_size=1,  # no input takes a file; the route is closed as well
        show_error=False,  # what went wrong inside stays in the log; what visitors may know is a Refusal
        debug=False,
        strict_cors=True,  # pages from elsewhere reach no Space on this machine
        state_session_capacity=1000,  # each keeps the last pictures of a visitor
        footer_links=["api"],  # of settings and of runs there are none
    )
