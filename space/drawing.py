"""
What the tabs Sample, Compare D and Robustness do.

Each function takes the values of the page's inputs, which anybody may send and which are checked
here, and yields what the page shows while the images are being drawn.
"""

import functools
import io
import math
import re
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import torch
from checks import Refusal, check_choice, check_cost, check_integer, check_number
from choices import (
    ANY_CLASS,
    MODELS,
    choose_classes,
    choose_dimension,
    choose_listed_dimension,
    choose_model,
    count_live_steps,
    list_dimensions,
    list_solvers,
    load_pipeline,
)
from dial import choose_start
from gradio.processing_utils import save_bytes_to_cache
from gradio.utils import get_upload_folder
from rendering import Gallery, render_gallery, render_rows, to_pictures
from sampling import Progress, count_calls, draw_seeds, lend_gpu

from pipeline_pfgmpp import PFGMPPPipeline
from pipeline_pfgmpp.generation import list_classes
from pipeline_pfgmpp.records.dimensions import format_dimension
from pipeline_pfgmpp.scheduler_config import get_default_steps


IMAGES = 16  # that the page offers to draw
FIRST_IMAGES = 2  # images of a model of few calls that are drawn before the others
MOST_IMAGES = 64
MOST_STEPS = 100
MOST_COMPARED = 5
COLUMNS = 8  # images in a row of a comparison
AS_TRAINED = "as trained"
LARGEST_SEED = 2**31 - 1 - MOST_IMAGES  # the seeds of all images fit 31 bits


def check_steps(steps: Any, fewest: int = 1) -> int:
    """Return the number of steps that was asked for, or refuse it."""
    return check_integer(steps, fewest, MOST_STEPS, "The number of steps")


def check_seed(seed: Any) -> int:
    """Return the seed that was asked for, or refuse it."""
    return check_integer(seed, 0, LARGEST_SEED, "The seed")


@lend_gpu
def sample(
    model: str,
    dial: float,
    fixed: str | None,
    label: str,
    count: int,
    steps: int,
    solver: str,
    guidance: float,
    seed: int,
    noise: float = 0.0,
) -> Iterator[tuple]:
    """
    Draw images.

    Args:
        model (`str`): Name of the model.
        dial (`float`): log₂ D; 19 is infinity. It counts for a D-conditioned network.
        fixed (`str`, *optional*): D such as `"128"` or `"inf"`. It counts for a family of networks.
        label (`str`): Name of the class, or `"any"` to go through all of them.
        count (`int`): Images, 1 to 64.
        steps (`int`): Steps of the solver, 1 to 100.
        solver (`str`): One of the solvers that fit the model.
        guidance (`float`): Guidance scale, 0 to 10; 1 is without guidance.
        seed (`int`): Seed of the first image; each further image has the next one.
        noise (`float`, defaults to 0): Noise injected before each step, 0 to 1, in units of the step's
            noise level.

    Yields:
        `tuple`: HTML with the images, a summary, a zip file (at the end), and a program that draws the
            same images.
    """
    chosen = choose_model(model)
    D = choose_dimension(chosen, dial, fixed)
    count = check_integer(count, 1, MOST_IMAGES, "The number of images")
    steps = check_steps(steps)
    seed = check_seed(seed)
    guidance = check_number(guidance, 0, 10, "Guidance")
    noise = check_number(noise, 0, 1, "The noise")
    solver = check_choice(solver, list_solvers(load_pipeline(chosen, D)), "The solver")
    pipe = load_pipeline(chosen, D, solver_type=solver)
    check_cost(count, count_calls(pipe, steps, guidance))
    labels = choose_classes(pipe, label, count)
    settings: dict[str, Any] = {"D": D}
    captions = [f"seed {seed + index}" for index in range(count)]
    if labels is not None:
        settings["class_labels"] = labels
        names = list_classes(pipe)
        captions = [f"{names[number]}, {caption}" for number, caption in zip(labels, captions)]
    if labels is not None or pipe.guidance_unet is not None:
        settings["guidance_scale"] = guidance
    elif guidance != 1:
        raise Refusal("Guidance must be 1 for this model, because it has no classes.")

    code = write_code(chosen.find_source(D), count, seed, steps, solver, settings, noise)
    start = time.monotonic()
    noun = "image" if count == 1 else "images"
    disturbed = f" with noise α = {noise:g}" if noise else ""
    what = f"{count} {noun} at D = {format_dimension(D)}{disturbed}"
    seeds = list(range(seed, seed + count))
    first = FIRST_IMAGES if steps <= count_live_steps(pipe) else count
    for progress in draw_first_ones(pipe, seeds, first, num_inference_steps=steps, noise=noise, **settings):
        gallery = list(zip(to_pictures(progress.images), captions))
        shown = render_gallery(gallery, count)
        calls = f"{progress.calls} of {progress.total} network calls"
        reached = f"{what}: {calls}" if len(gallery) == count else f"{len(gallery)} of {what}"
        summary = f"{reached}, {time.monotonic() - start:.1f} s"
        if len(gallery) < count or not progress.finished:
            yield shown, summary, None, code
    name = re.sub(r"[^\w.-]+", "-", f"{model}-D{D:g}-seed{seed}.zip")
    yield shown, summary, write_archive(name, gallery), code


def draw_first_ones(
    pipe: PFGMPPPipeline, seeds: list[int], first: int, class_labels: list[int] | None = None, **settings: Any
) -> Iterator[Progress]:
    """
    Draw one image per seed, and the first of them before the others, so that there is soon something to see.

    Args:
        pipe ([`PFGMPPPipeline`]): The pipeline, which no other request uses.
        seeds (`list[int]`): The seeds.
        first (`int`): How many images come first.
        class_labels (`list[int]`, *optional*): The class of each image.
        settings: Further arguments of [`~sampling.draw_seeds`].

    Yields:
        [`Progress`]: Of the images that are being drawn; its images are all that there are so far.
    """
    finished: list[torch.Tensor] = []
    for part in (slice(first), slice(first, None)):
        if not seeds[part]:
            continue
        labels = None if class_labels is None else class_labels[part]
        for progress in draw_seeds(pipe, seeds[part], class_labels=labels, **settings):
            images = torch.cat([*finished, progress.images])
            yield progress._replace(images=images)
        finished = [images]


@functools.cache
def draw_first() -> tuple:
    """
    Draw what the page opens with: the first model, with the settings that the page offers for it.

    Returns:
        `tuple`: HTML with the images, a summary, the zip file's name and content, and a program.

    Raises:
        Refusal: The model cannot be loaded.
    """
    name, model = next(iter(MODELS.items()))
    choose_model(name)
    dial = choose_start(*model.trained_range)
    fixed = list_dimensions(model)[0] if model.dimensions else None
    pipe = load_pipeline(model, choose_dimension(model, dial, fixed))
    steps = min(get_default_steps(pipe.scheduler), MOST_STEPS)
    solver = list_solvers(pipe)[0]
    *_, (images, summary, archive, code) = sample(
        name, dial, fixed, ANY_CLASS, IMAGES, steps, solver, guidance=1, seed=0
    )
    return images, summary, Path(archive).name, Path(archive).read_bytes(), code


def show_first() -> tuple:
    """
    Show what the page opens with, which is drawn once for all visitors.

    Returns:
        `tuple`: As [`sample`] yields; nothing new if the first model cannot be loaded.
    """
    try:
        images, summary, name, content, code = draw_first()
    except Refusal:
        return gr.skip(), gr.skip(), gr.skip(), gr.skip()
    archive = save_bytes_to_cache(content, name, get_upload_folder())  # from which Gradio deletes old files
    return images, summary, archive, code


def write_code(
    source: str, count: int, seed: int, steps: int, solver: str, settings: dict[str, Any], noise: float
) -> str:
    """
    Write the program that draws the same images.

    Args:
        source (`str`): Hub id or folder of the model.
        count (`int`): Images.
        seed (`int`): Seed of the first image.
        steps (`int`): Steps of the solver.
        solver (`str`): The solver.
        settings (`dict[str, Any]`): Further arguments of the pipeline's call.
        noise (`float`): Factor of the noise that is injected before each step; 0 for none.

    Returns:
        `str`: Python.
    """
    written = {name: 'float("inf")' if value == math.inf else repr(value) for name, value in settings.items()}
    arguments = "".join(f"    {name}={value},\n" for name, value in written.items())
    device = 'pipe.to("cuda")\n' if torch.cuda.is_available() else ""
    import_noise = injection = ""
    if noise:
        import_noise = "from pipeline_pfgmpp.generation import inject_noise\n"
        injection = f"noise = inject_noise(pipe, seeds, generators, noise={noise!r}, D={written['D']})\n"
        arguments += "    **noise,\n"
    churn = ", s_churn=0.0" if solver.startswith("dpmpp") else ""
    return f"""import torch
from diffusers import DiffusionPipeline
from pipeline_pfgmpp import PFGMPPScheduler
{import_noise}
pipe = DiffusionPipeline.from_pretrained({source!r})
{device}pipe.scheduler = PFGMPPScheduler.from_config(pipe.scheduler.config, solver_type={solver!r}{churn})
seeds = list(range({seed}, {seed + count}))
generators = [torch.Generator().manual_seed(seed) for seed in seeds]
{injection}images = pipe(
    batch_size={count},
    num_inference_steps={steps},
    generator=generators,
{arguments}).images
"""


def write_archive(name: str, gallery: Gallery) -> str:
    """
    Write a zip file of pictures into Gradio's cache, from which Gradio serves and later deletes it.

    On ZeroGPU this runs in a process that may have ended before the page asks for the file, so the file
    must not depend on that process.

    Args:
        name (`str`): The file's name.
        gallery (`Gallery`): Pictures and their captions, which name the files inside.

    Returns:
        `str`: Path of the file.
    """
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for picture, caption in gallery:
            with archive.open(f"{caption.replace('/', '-')}.png", "w") as file:
                picture.save(file, format="PNG")
    return save_bytes_to_cache(content.getvalue(), name, get_upload_folder())


@lend_gpu
def compare(model: str, dimensions: list[str], label: str, steps: int, seed: int) -> Iterator[str]:
    """
    Draw the same seeds at several D.

    Args:
        model (`str`): Name of the model.
        dimensions (`list[str]`): One to five D, such as `"128"` or `"inf"`.
        label (`str`): Name of the class, or `"any"` to go through all of them.
        steps (`int`): Steps of the solver, 1 to 100.
        seed (`int`): Seed of the first image of each row.

    Yields:
        `str`: HTML with one row of images per D.
    """
    chosen = choose_model(model)
    if not isinstance(dimensions, list) or not 1 <= len(dimensions) <= MOST_COMPARED:
        raise Refusal(f"Choose between one and {MOST_COMPARED} values of D.")
    steps = check_steps(steps)
    seed = check_seed(seed)
    pipes = {
        D: load_pipeline(chosen, D)
        for D in sorted(choose_listed_dimension(chosen, choice) for choice in dimensions)
    }
    calls = max(count_calls(pipe, steps) for pipe in pipes.values())
    check_cost(COLUMNS * len(pipes), calls)
    seeds = list(range(seed, seed + COLUMNS))
    rows = {}
    for D, pipe in pipes.items():
        labels = choose_classes(pipe, label, COLUMNS)
        progresses = draw_seeds(pipe, seeds, D, num_inference_steps=steps, class_labels=labels)
        for progress in progresses:
            rows[f"D = {format_dimension(D)}"] = to_pictures(progress.images)
            yield render_rows(rows)


@lend_gpu
def disturb(
    model: str, noise: float, bits: int | str, small: str, large: str, label: str, steps: int, seed: int
) -> Iterator[str]:
    """
    Draw the same seeds at a small and at a large D, undisturbed and disturbed.

    Args:
        model (`str`): Name of the model.
        noise (`float`): Noise injected before each step, 0 to 1, in units of the step's noise level.
        bits (`int` or `str`): Bits per weight, 2 to 16, or `"as trained"`.
        small (`str`): The small D, such as `"16"`.
        large (`str`): The large D, such as `"inf"`.
        label (`str`): Name of the class, or `"any"` to go through all of them.
        steps (`int`): Steps of the solver, 1 to 100.
        seed (`int`): Seed of the first image of each row.

    Yields:
        `str`: HTML with four rows of images.
    """
    chosen = choose_model(model)
    dimensions = [choose_listed_dimension(chosen, D) for D in (small, large)]
    noise = check_number(noise, 0, 1, "The noise")
    steps = check_steps(steps)
    seed = check_seed(seed)
    rounding = {}
    if bits != AS_TRAINED:
        rounding["bits"] = check_integer(bits, 2, 16, "Bits per weight")
    check_cost(COLUMNS * 4, count_calls(load_pipeline(chosen, dimensions[0]), steps))
    seeds = list(range(seed, seed + COLUMNS))
    rows = {}
    for alpha, options in ((0.0, {}), (noise, rounding)):
        name = "disturbed" if alpha or options else "undisturbed"
        for D in dimensions:
            pipe = load_pipeline(chosen, D, **options)
            labels = choose_classes(pipe, label, COLUMNS)
            progresses = draw_seeds(pipe, seeds, D, alpha, num_inference_steps=steps, class_labels=labels)
            for progress in progresses:
                rows[f"D = {format_dimension(D)}, {name}"] = to_pictures(progress.images)
                yield render_rows(rows)
