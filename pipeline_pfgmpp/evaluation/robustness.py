r"""
How quality falls when sampling is disturbed, at several D
(https://huggingface.co/papers/2302.04265, sec. 6):

- noise: before each step $x \leftarrow x + \alpha\,\sigma_i\,g$ with $g \sim \mathcal{N}(0, I)$;
- bits: each parameter tensor of the network takes $2^k$ evenly spaced values;
- calls: the network is called less often.

The paper claims that quality falls later at small D than at D = infinity.
"""

import math
import os
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm.auto import tqdm

from ..generation import generate, list_classes, quantize_temporarily
from ..pictures.grid import draw_grid, stack_panels, to_pil
from ..pipeline_pfgmpp import PFGMPPPipeline
from ..records.digests import describe, list_differences
from ..records.dimensions import format_dimension
from ..records.reports import parse_report
from ..records.writing import write_json
from .evaluate import check_num_images, choose_dimensions
from .metrics import ImageMetrics
from .reports import round_figure


class Setting(NamedTuple):
    """
    How sampling is disturbed.

    Args:
        noise (`float`): The factor alpha of the noise injected before each step.
        bits (`int` or `None`): Bits per weight; with None the weights are not rounded.
        nfe (`int`): Calls of the network.
    """

    noise: float
    bits: int | None
    nfe: int


def list_settings(noise: list[float], bits: list[float], nfe: list[float]) -> list[Setting]:
    """
    List the settings to measure, each of which disturbs sampling in a single way.

    Args:
        noise (`list[float]`): Values of alpha.
        bits (`list[float]`): Bits per weight, whole numbers.
        nfe (`list[float]`): Calls of the network, whole numbers. The largest is used for noise and
            bits.

    Returns:
        `list[Setting]`: The settings, the undisturbed one first.

    Raises:
        ValueError: A value is out of range, or only the undisturbed setting remains.
    """
    for name, values, least in (("noise", noise, 0), ("bits", bits, 1), ("nfe", nfe, 1)):
        for value in values:
            if not least <= value < math.inf or (name != "noise" and not float(value).is_integer()):
                raise ValueError(f"`{name}` must not contain {value:g}.")
    most = int(max(nfe, default=35))
    settings = [Setting(0.0, None, most)]
    settings += [Setting(float(level), None, most) for level in noise]
    settings += [Setting(0.0, int(level), most) for level in bits]
    settings += [Setting(0.0, None, int(level)) for level in nfe]
    settings = list(dict.fromkeys(settings))
    if len(settings) == 1:
        raise ValueError("No setting disturbs sampling: give some noise, bits or calls of the network.")
    return settings


def count_steps(pipeline: PFGMPPPipeline, nfe: int) -> int:
    """
    Count the steps that take a number of calls of the network.

    Args:
        pipeline ([`PFGMPPPipeline`]): The pipeline, with its solver.
        nfe (`int`): Calls of the network.

    Returns:
        `int`: The steps.

    Raises:
        ValueError: The solver cannot make this number of calls. Heun's method calls the network twice per
            step, except for the last.
    """
    order = pipeline.scheduler.order
    if order == 2 and nfe % 2 == 0:
        raise ValueError(
            f"Heun's method makes an odd number of calls, so {nfe} must be {nfe - 1} or {nfe + 1}."
        )
    return -(-nfe // order)


def measure(
    pipelines: dict[str, PFGMPPPipeline],
    dimensions: list[float],
    settings: list[Setting],
    metrics: ImageMetrics,
    output: str | os.PathLike,
    num_images: int = 1000,
    num_groups: int = 3,
    batch_size: int = 50,
) -> list[dict[str, Any]]:
    """
    Measure the Fréchet distance of every model at every D under every setting.

    The processes share the images. Interrupted runs resume: points that `robustness.json` holds are
    not measured again.

    Args:
        pipelines (`dict[str, PFGMPPPipeline]`): Models by name.
        dimensions (`list[float]`): Augmented dimensions, `inf` for infinity, for networks that are
            conditioned on D; any other network is measured at the D of its scheduler.
        settings (`list[Setting]`): The settings, from [`list_settings`].
        metrics ([`ImageMetrics`]): The metrics, of which `fid` is used.
        output (`str` or `os.PathLike`): Folder for `robustness.json`.
        num_images (`int`, defaults to 1000): Images per distance.
        num_groups (`int`, defaults to 3): Distances per point, each from images of its own.
        batch_size (`int`, defaults to 50): Images per batch and process.

    Returns:
        `list[dict]`: One entry per point: `model`, `D`, `num_images`, `noise`, `bits`, `nfe`,
            `distances`, and the digests and configurations that they depend on.

    Raises:
        ValueError: `robustness.json` holds distances of other weights, settings or real images, a solver
            cannot make the number of calls, or there are fewer images than processes.
    """
    from accelerate import PartialState

    state = PartialState(cpu=next(iter(pipelines.values())).device.type == "cpu")
    check_num_images(num_images, state.num_processes)
    for pipeline in pipelines.values():
        for setting in settings:
            count_steps(pipeline, setting.nfe)  # refuses a wrong number before anything is drawn
    path = Path(output) / "robustness.json"
    common = {"num_images": num_images, "reference": metrics.reference}
    origins = {model: {**common, **describe(pipeline)} for model, pipeline in pipelines.items()}
    entries = _read_entries(path, origins)
    state.wait_for_everyone()  # every process has read the file before one of them writes it
    stride = max(num_images, 10_000)  # groups of up to 10,000 images start at the same seeds
    starts = [group * stride for group in range(num_groups)]
    groups = [
        list(range(start, start + num_images))[state.process_index :: state.num_processes] for start in starts
    ]
    points = [
        (model, D, setting)
        for setting in settings
        for model, pipeline in pipelines.items()
        for D in choose_dimensions(pipeline, dimensions)
    ]
    results = []
    progress = tqdm(points, desc="Robustness", unit="point", disable=not state.is_main_process)
    for model, D, setting in progress:
        point = {"model": model, "D": format_dimension(D), **setting._asdict()}
        entry = next((entry for entry in entries if point.items() <= entry.items()), None)
        if entry is None or len(entry["distances"]) < num_groups:
            progress.set_postfix(D=format_dimension(D), **setting._asdict())
            distances = measure_distances(pipelines[model], D, setting, metrics, groups, batch_size)
            entries = [other for other in entries if other is not entry]
            entry = {**point, **origins[model], "distances": distances}
            entries.append(entry)
            if state.is_main_process:
                write_json(path, entries)
        results.append({**entry, "distances": entry["distances"][:num_groups]})
    return results


def measure_distances(
    pipeline: PFGMPPPipeline,
    D: float,
    setting: Setting,
    metrics: ImageMetrics,
    groups: list[list[int]],
    batch_size: int,
    desc: str | None = None,
) -> list[float]:
    """
    Measure the Fréchet distance of disturbed images.

    Args:
        pipeline ([`PFGMPPPipeline`]): The model.
        D (`float`): The augmented dimension.
        setting ([`Setting`]): How sampling is disturbed.
        metrics ([`ImageMetrics`]): The metrics, of which `fid` is used.
        groups (`list[list[int]]`): Seeds, of which each group gives a distance.
        batch_size (`int`): Images per batch.
        desc (`str`, *optional*): Label of a progress bar for each group; with None none is shown.

    Returns:
        `list[float]`: The distances.
    """
    call: dict[str, Any] = {"D": D, "num_inference_steps": count_steps(pipeline, setting.nfe)}
    distances = []
    with quantize_temporarily(pipeline.unet, setting.bits):
        for seeds in groups:
            batches = generate(pipeline, seeds, batch_size, desc, setting.noise, **call)
            images = torch.cat([images for _, images in batches])
            distances.append(round_figure(metrics(images)["fid"]))
    return distances


def _read_entries(path: Path, origins: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Read the distances of an earlier run, and refuse those of other models, settings or real images."""
    if not path.is_file():
        return []
    entries = parse_report(path.read_bytes(), path.name, path.parent)
    for entry in entries:
        model = entry.get("model")
        if model not in origins:
            raise ValueError(f"{path} holds distances of another model, {model}; choose another output.")
        origin = origins[model]
        differences = list_differences({name: entry.get(name) for name in origin}, origin)
        if differences:
            raise ValueError(
                f"{path} holds distances of {model} measured differently ({differences});"
                " choose another output."
            )
    return entries


def draw_noise_grid(
    pipeline: PFGMPPPipeline,
    dimensions: list[float],
    levels: list[float],
    path: str | os.PathLike,
    num_seeds: int = 3,
    nfe: int = 35,
) -> None:
    """
    Draw the same seeds at each D, with noise that grows to the right for each seed.

    A class-conditional model draws the same classes at each D.

    Args:
        pipeline ([`PFGMPPPipeline`]): A model that serves every D of `dimensions`.
        dimensions (`list[float]`): The D of the rows; `inf` is infinity.
        levels (`list[float]`): Values of alpha, from left to right.
        path (`str` or `os.PathLike`): The picture to write.
        num_seeds (`int`, defaults to 3): Number of seeds, next to each other.
        nfe (`int`, defaults to 35): Calls of the network.
    """
    seeds = list(range(num_seeds))
    labels = None
    if classes := list(list_classes(pipeline)):
        labels = [classes[seed % len(classes)] for seed in seeds]
    call: dict[str, Any] = {"num_inference_steps": count_steps(pipeline, nfe), "class_labels": labels}
    rows = []
    for D in dimensions:
        columns = []
        for level in levels:
            _, images = next(generate(pipeline, seeds, num_seeds, None, level, D=D, **call))
            columns.append(images)
        rows.append(torch.stack(columns, dim=1).flatten(0, 1))
    row_labels = [f"D = {D:g}" for D in dimensions]
    grid = draw_grid(to_pil(torch.cat(rows)), num_seeds * len(levels), row_labels)
    title = f"noise of {', '.join(f'{level:g}' for level in levels)} injected before each step"
    stack_panels({title: grid}).save(path)
