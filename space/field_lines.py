"""What the tab about field lines does: follow one sample step by step, and play with charges on a plane."""

import math
from collections.abc import Iterator
from typing import Any

import gradio as gr
import torch
from checks import Refusal, check_choice, check_integer, check_number
from choices import choose_classes, choose_dimension, choose_model, load_pipeline
from dial import read_dial
from drawing import check_seed, check_steps
from matplotlib.figure import Figure
from PIL import Image
from rendering import rasterize, render_picture, to_pictures
from sampling import lend_gpu, run_pipeline

from pipeline_pfgmpp import PFGMPPPipeline, sample_noise
from pipeline_pfgmpp.conditioning import get_sample_size
from pipeline_pfgmpp.pictures.field_lines import SHAPES, make_shape, trace_field_lines
from pipeline_pfgmpp.pictures.grid import draw_grid
from pipeline_pfgmpp.records.dimensions import format_dimension


PLANE = 480  # width and height of the plane's picture in pixels
REACH = 3.0  # the plane shows [-REACH, REACH] in both directions
MOST_CHARGES = 300
CHARGES_OF_SHAPE = 100
SAMPLES = 60
FRAME = 224  # least size of the longer side of an image of a frame in pixels

Frame = tuple[str, float, float]  # the pictures as HTML, sigma, and the norm of the sample over √N
Charges = list[tuple[float, float]]


@lend_gpu
def follow_sample(
    model: str, dial: float, fixed: str | None, label: str, steps: int, seed: int
) -> Iterator[tuple]:
    """
    Draw one image, and keep the sample at every step from the prior to the image.

    Args:
        model (`str`): Name of the model.
        dial (`float`): log₂ D; 19 is infinity. It counts for a D-conditioned network.
        fixed (`str`, *optional*): D such as `"128"` or `"inf"`. It counts for a family of networks.
        label (`str`): Name of the class, or `"any"` for the first.
        steps (`int`): Steps of the solver, 2 to 100.
        seed (`int`): The seed.

    Yields:
        `tuple`: At the end, the frames, an update of the slider that chooses one, the last frame as
            HTML, and a plot as HTML; nothing new before.
    """
    chosen = choose_model(model)
    D = choose_dimension(chosen, dial, fixed)
    steps = check_steps(steps, fewest=2)
    seed = check_seed(seed)
    pipe = load_pipeline(chosen, D)
    generator = torch.Generator().manual_seed(seed)
    shape_of_sample = (1, pipe.unet.config.in_channels, *get_sample_size(pipe.unet))
    prior = pipe.scheduler.sample_noise(shape_of_sample, [generator], D=D)
    samples = []
    denoised = []

    def keep(pipe: Any, index: int, timestep: Any, tensors: dict) -> dict:
        calls = index + 1
        if calls % pipe.scheduler.order == 0 or calls == len(pipe.scheduler.timesteps):
            samples.append(tensors["latents"].cpu())
            denoised.append(tensors["pred_original_sample"].cpu())
        return {}

    progresses = run_pipeline(
        pipe,
        1,
        callback_on_step_end=keep,
        num_inference_steps=steps,
        D=D,
        class_labels=choose_classes(pipe, label, 1),
        latents=prior,
        generator=[generator],
    )
    for _ in progresses:
        yield (gr.skip(), gr.skip(), gr.skip(), gr.skip())  # a place to stop if the visitor has left
    sigmas = [*pipe.scheduler.sigmas[: -1 : pipe.scheduler.order].tolist()[:steps], 0.0]
    samples = [sigmas[0] * prior.cpu(), *samples]
    denoised = [denoised[0], *denoised]
    frames = [make_frame(pipe, *parts) for parts in zip(sigmas, samples, denoised)]
    slider = gr.update(maximum=steps, value=steps, visible=True)
    yield frames, slider, show_frame(frames, steps), plot_norms(frames, D)


def make_frame(pipe: PFGMPPPipeline, sigma: float, sample: torch.Tensor, denoised: torch.Tensor) -> Frame:
    """
    Show a sample beside the network's estimate of the image.

    Args:
        pipe ([`PFGMPPPipeline`]): The pipeline, which decodes both.
        sigma (`float`): The noise level.
        sample (`torch.Tensor` of shape `(1, C, H, W)`): The sample, which is scaled down while it is
            larger than an image.
        denoised (`torch.Tensor` of shape `(1, C, H, W)`): The denoised image.

    Returns:
        `Frame`: The pictures, sigma, and the norm of the sample.
    """
    norm = sample.norm().item() / math.sqrt(sample.numel())
    images = pipe.decode_latents(torch.cat([sample / max(1.0, norm), denoised]).to(pipe.device))
    pictures = to_pictures(images)
    alt = f"The sample at sigma {sigma:.3g}, and the network's estimate of the image"
    return render_picture(draw_grid(pictures, 2, cell=FRAME), alt), sigma, norm


def show_frame(frames: list[Frame], index: int) -> str:
    """
    Show one step of a sample.

    Args:
        frames (`list[Frame]`): The frames, none of which exist before a sample is followed.
        index (`int`): The step.

    Returns:
        `str`: HTML.
    """
    if not frames:
        return ""
    picture, sigma, norm = frames[check_integer(index, 0, len(frames) - 1, "The step")]
    numbers = f"σ = {sigma:.3g}, ‖x‖ / √N = {norm:.3g}"
    return f"{picture}<p>Left: the sample x. Right: the network's estimate of the image.<br>{numbers}</p>"


def plot_norms(frames: list[Frame], D: float) -> str:
    """
    Plot sigma and the norm of the sample over the steps.

    Args:
        frames (`list[Frame]`): The frames.
        D (`float`): The augmented dimension, for the title.

    Returns:
        `str`: HTML.
    """
    figure = Figure(figsize=(5, 2.8), layout="constrained")
    axis = figure.subplots()
    axis.plot([sigma for _, sigma, _ in frames], label="σ", marker=".")
    axis.plot([norm for _, _, norm in frames], label="‖x‖ / √N", marker=".")
    axis.set(xlabel="step", title=f"D = {format_dimension(D)}")
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.set_yscale("symlog", linthresh=0.01)
    axis.legend()
    axis.grid(alpha=0.3)
    picture = render_picture(rasterize(figure), "Sigma and the norm of the sample at each step", 460)
    return f'<div class="plot">{picture}</div>'


def draw_plane(charges: Charges, dial: float) -> tuple[Image.Image, str]:
    """
    Draw the paths of samples that follow the exact field of charges on a plane.

    Args:
        charges (`Charges`): The charges.
        dial (`float`): log₂ D; 19 is infinity.

    Returns:
        `tuple[PIL.Image.Image, str]`: The picture and a summary.
    """
    D = read_dial(dial)
    figure = Figure(figsize=(PLANE / 100, PLANE / 100))
    view = (-REACH, REACH)
    axis = figure.add_axes((0, 0, 1, 1), xlim=view, ylim=view, frame_on=False, xticks=[], yticks=[])
    if charges:
        prior = sample_noise((SAMPLES, 2), D, torch.Generator().manual_seed(0))
        points, _ = trace_field_lines(torch.tensor(charges), D, prior, num_steps=40, sigma_max=2.0)
        axis.plot(points[:, :, 0], points[:, :, 1], color="tab:blue", linewidth=0.8, alpha=0.7)
        axis.plot(*points[0].T, ".", color="0.4", markersize=4)
        axis.plot(*zip(*charges), ".", color="tab:red", markersize=5)
    noun = "charge" if len(charges) == 1 else "charges"
    return rasterize(figure), f"{len(charges)} {noun}, D = {format_dimension(D)}"


def add_charge(charges: Charges, dial: float, event: gr.SelectData) -> tuple[Charges, Image.Image, str]:
    """
    Add a charge where the visitor has clicked.

    Args:
        charges (`Charges`): The charges so far.
        dial (`float`): log₂ D; 19 is infinity.
        event (`gradio.SelectData`): The click, at a pixel of the picture.

    Returns:
        `tuple`: The charges, the picture and a summary.
    """
    if len(charges) >= MOST_CHARGES:
        raise Refusal(f"The plane has room for {MOST_CHARGES} charges. Clear it to begin again.")
    if not isinstance(event.index, list) or len(event.index) != 2:
        raise Refusal("The position must be two numbers.")
    column, row = (check_number(pixel, 0, PLANE, "The position") for pixel in event.index)
    scale = 2 * REACH / PLANE
    charges = [*charges, (column * scale - REACH, REACH - row * scale)]
    return charges, *draw_plane(charges, dial)


def place_shape(name: str, dial: float) -> tuple[Charges, Image.Image, str]:
    """
    Replace the charges by a shape.

    Args:
        name (`str`): One of `SHAPES`.
        dial (`float`): log₂ D; 19 is infinity.

    Returns:
        `tuple`: The charges, the picture and a summary.
    """
    name = check_choice(name, SHAPES, "The shape")
    charges = (1.2 * make_shape(name, CHARGES_OF_SHAPE)).tolist()
    return charges, *draw_plane(charges, dial)


def clear_plane(dial: float) -> tuple[Charges, Image.Image, str]:
    """
    Remove all charges.

    Args:
        dial (`float`): log₂ D; 19 is infinity.

    Returns:
        `tuple`: No charges, the empty picture and a summary.
    """
    return [], *draw_plane([], dial)
