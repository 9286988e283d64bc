r"""
How quality falls when sampling is disturbed, at several D
(https://huggingface.co/papers/2302.04265, sec. 6):

- noise: before each step $x \leftarrow x + \alpha\,\sigma_i\,g$ with $g \sim \mathcal{N}(0, I)$;
- weights: every parameter tensor rounded to $2^k$ evenly spaced values between its least and its
  largest;
- steps: fewer calls of the network.

The paper's claim is that small D degrades later than D = infinity does.
"""

import json
import math
import os
import shutil
import statistics
from pathlib import Path
from typing import NamedTuple

import torch
from huggingface_hub import ModelCard
from tqdm.auto import tqdm

from ..generation import generate, quantize_temporarily
from ..hub.cards import put_section
from ..pictures.grid import draw_grid, stack_panels, to_pil
from ..pipeline_pfgmpp import PFGMPPPipeline
from ..records.digests import describe, list_differences
from ..records.dimensions import format_dimension
from ..records.reports import check_weights, list_weights
from ..records.writing import replace_file
from .evaluate import choose_dimensions, mean_and_deviation
from .metrics import ImageMetrics


class Setting(NamedTuple):
    """
    How images are drawn: noise injected before each step, bits a weight (None leaves them be),
    calls of the network.
    """

    noise: float
    bits: int | None
    nfe: int


def settings_of(noise: list[float], bits: list[int], nfe: list[int]) -> list[Setting]:
    """
    The points of the three curves: each disturbs one thing and leaves the others be. They begin at
    the same undisturbed point.

    Args:
        noise (`list[float]`): Values of alpha.
        bits (`list[int]`): Bits a weight.
        nfe (`list[int]`): Calls of the network, the most of which serve the others.

    Returns:
        `list[Setting]`: The points, the undisturbed one first.

    Raises:
        ValueError: A value cannot be.
    """
    for name, values, least in (("noise", noise, 0), ("bits", bits, 1), ("nfe", nfe, 1)):
        for value in values:
            if value < least or (name != "noise" and value != int(value)):
                raise ValueError(f"`{name}` must not hold {value:g}.")
    most = int(max(nfe, default=35))
    points = [Setting(0.0, None, most), *(Setting(float(level), None, most) for level in noise)]
    points += [Setting(0.0, int(level), most) for level in bits] + [
        Setting(0.0, None, int(level)) for level in nfe
    ]
    if len(points := list(dict.fromkeys(points))) == 1:
        raise ValueError("Nothing is disturbed: name some noise, bits or calls.")
    return points


def count_steps(pipeline, nfe):
    """Steps of so many calls: Heun calls twice a step, but for the last."""
    return -(-nfe // pipeline.scheduler.order)


def measure(
    pipelines: dict[str, PFGMPPPipeline],
    dimensions: list[float],
    settings: list[Setting],
    metrics: ImageMetrics,
    output: str | os.PathLike,
    num_images: int = 1000,
    num_groups: int = 3,
    batch_size: int = 50,
) -> list[dict]:
    """
    Fréchet distances of every model at every D under every setting, the images shared among the
    processes; what `robustness.json` holds is not measured again.

    Args:
        pipelines (`dict[str, PFGMPPPipeline]`): Models by name. One that serves a single D is
            measured at that D alone.
        dimensions (`list`): Augmented dimensions for networks that are conditioned on D; `inf` for
            infinity.
        settings (`list[Setting]`): What to measure.
        metrics ([`ImageMetrics`]): What measures the Fréchet distance.
        output (`str` or `os.PathLike`): Folder for `robustness.json`.
        num_images (`int`, defaults to 1000): Images a distance.
        num_groups (`int`, defaults to 3): Distances a point, of other seeds.
        batch_size (`int`, defaults to 50): Images at a time, in each process.

    Returns:
        `list[dict]`: An entry per point: `model`, `D`, `num_images`, `noise`, `bits`, `nfe`,
            `distances`, and the digests and settings that they depend on.

    Raises:
        ValueError: `robustness.json` holds distances of other weights, settings or real images.
    """
    from accelerate import PartialState

    state = PartialState(cpu=next(iter(pipelines.values())).device.type == "cpu")
    path = Path(output) / "robustness.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    common = {"num_images": num_images, "reference": metrics.reference}
    origins = {model: {**common, **describe(pipe)} for model, pipe in pipelines.items()}
    entries = json.loads(path.read_text()) if path.is_file() else []
    for entry in entries:
        _check_origin(path, entry, origins)
    state.wait_for_everyone()  # all have read before one writes
    points = [
        (model, D, setting)
        for setting in settings
        for model, pipe in pipelines.items()
        for D in choose_dimensions(pipe, dimensions)
    ]
    asked = []
    progress = tqdm(points, desc="Robustness", unit="point", disable=not state.is_main_process)
    for model, D, setting in progress:
        key = {"model": model, "D": format_dimension(D), **setting._asdict()}
        found = next((entry for entry in entries if key.items() <= entry.items()), None)
        if found and len(found["distances"]) >= num_groups:
            asked.append({**found, "distances": found["distances"][:num_groups]})
            continue
        progress.set_postfix(D=format_dimension(D), **setting._asdict())
        pipeline, distances = pipelines[model], []
        with quantize_temporarily(pipeline.unet, setting.bits):
            for group in range(num_groups):
                seeds = list(range(group * 10_000, group * 10_000 + num_images))[
                    state.process_index :: state.num_processes
                ]
                call = {"D": D, "num_inference_steps": count_steps(pipeline, setting.nfe)}
                images = torch.cat(
                    [
                        images
                        for _, images in generate(pipeline, seeds, batch_size, None, setting.noise, **call)
                    ]
                )
                distances.append(round(metrics(images)["fid"], 3))
        asked.append({**key, **origins[model], "distances": distances})
        entries = [entry for entry in entries if entry is not found] + asked[-1:]
        if state.is_main_process:
            with replace_file(path) as partial:
                partial.write_text(json.dumps(entries, indent=1) + "\n")
    return asked


def _check_origin(path, entry, origins):
    """Refuses to put distances beside others that were measured of something else."""
    origin = origins.get(entry["model"])
    if origin is None:
        raise ValueError(f"{path} holds distances of another model, {entry['model']}; name another output.")
    differences = list_differences({name: entry.get(name) for name in origin}, origin)
    if differences:
        raise ValueError(
            f"{path} holds distances of {entry['model']} measured otherwise ({differences}); name another output."
        )


TITLES = {"noise": "noise injected, α", "bits": "bits a weight", "nfe": "calls of the network"}


def _panels(entries):
    """
    For what was disturbed: its levels from the mildest on, the undisturbed first, and by label the
    distances at each.
    """
    undisturbed, panels = Setting(0.0, None, max(entry["nfe"] for entry in entries))._asdict(), {}
    several = len({entry["model"] for entry in entries}) > 1
    for kind in TITLES:
        chosen = [
            entry
            for entry in entries
            if all(entry[name] == undisturbed[name] for name in TITLES if name != kind)
        ]
        levels = sorted(
            {entry[kind] for entry in chosen},
            key=lambda level: level if kind == "noise" else -(level or math.inf),
        )
        lines = {}
        for entry in chosen:
            label = f"{entry['model']}, D = {entry['D']}" if several else f"D = {entry['D']}"
            lines.setdefault(label, {})[entry[kind]] = entry["distances"]
        if len(levels) > 1:
            panels[kind] = levels, lines
    return panels


def _name(level):
    return "as trained" if level is None else f"{level:g}"


def plot(entries: list[dict], path: str | os.PathLike) -> None:
    """
    Draws distance against noise, bits and calls, a line a D, with the standard deviation over the
    groups.

    Args:
        entries (`list[dict]`): What [`measure`] returned.
        path (`str` or `os.PathLike`): The picture.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    panels = _panels(entries)
    figure, axes = plt.subplots(
        1, len(panels), figsize=(4.6 * len(panels), 3.9), constrained_layout=True, squeeze=False
    )
    for axis, (kind, (levels, lines)) in zip(axes[0], panels.items()):
        for label, found in lines.items():
            places, distances = zip(
                *((place, found[level]) for place, level in enumerate(levels) if level in found)
            )
            means = [statistics.mean(values) for values in distances]
            deviations = [statistics.stdev(values) if len(values) > 1 else 0.0 for values in distances]
            axis.errorbar(
                places,
                means,
                deviations,
                marker="o",
                markersize=3.5,
                linewidth=1.2,
                elinewidth=0.8,
                capsize=2,
                label=label,
            )
        axis.set(xlabel=TITLES[kind], yscale="log")
        axis.set_xticks(range(len(levels)), map(_name, levels))
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
        axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.yaxis.set_minor_formatter(NullFormatter())
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("Fréchet distance")
    axes[0][0].legend(fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def picture(
    pipeline: PFGMPPPipeline,
    dimensions: list[float],
    levels: list[float],
    path: str | os.PathLike,
    num_seeds: int = 3,
    nfe: int = 35,
) -> None:
    """
    Draws the same seeds, and for a network that knows classes the same classes, at each D: a row a
    D, with the noise growing to the right for each seed.

    Args:
        pipeline ([`PFGMPPPipeline`]): A model that serves every D.
        dimensions (`list`): The rows; `inf` for infinity.
        levels (`list[float]`): alpha of the columns.
        path (`str` or `os.PathLike`): The picture.
        num_seeds (`int`, defaults to 3): Seeds, one after the other.
        nfe (`int`, defaults to 35): Calls of the network.
    """
    seeds = list(range(num_seeds))
    labels = [seed % pipeline.num_classes for seed in seeds] if pipeline.num_classes else None
    settings = {"num_inference_steps": count_steps(pipeline, nfe), "class_labels": labels}
    images = []
    for D in dimensions:
        columns = [
            next(generate(pipeline, seeds, num_seeds, None, level, D=D, **settings))[1] for level in levels
        ]
        images += torch.stack(columns, dim=1).flatten(0, 1)
    grid = draw_grid(to_pil(torch.stack(images)), num_seeds * len(levels), [f"D = {D:g}" for D in dimensions])
    stack_panels(
        {f"noise of {', '.join(f'{level:g}' for level in levels)} injected before each step": grid}
    ).save(path)


def table(entries: list[dict]) -> str:
    """
    The same as Markdown, a table a kind: mean and standard deviation over the groups, and, in
    brackets, of what the disturbance adds to the undisturbed distance of the same group. Groups
    differ by more than that, so there the D compare best.

    Args:
        entries (`list[dict]`): What [`measure`] returned.

    Returns:
        `str`: The tables.
    """
    parts = []
    for kind, (levels, lines) in _panels(entries).items():
        rows = [f"| {TITLES[kind]} | {' | '.join(map(_name, levels))} |", "|---" * (len(levels) + 1) + "|"]
        for label, found in lines.items():
            cells = dict.fromkeys(levels, "") | {
                level: mean_and_deviation(distances) for level, distances in found.items()
            }
            for level in found.keys() - levels[:1]:
                added = [distance - before for distance, before in zip(found[level], found[levels[0]])]
                cells[level] += f" ({mean_and_deviation(added)})"
            rows.append(f"| {label} | {' | '.join(cells.values())} |")
        parts.append("\n".join(rows))
    return "\n\n".join(parts) + "\n"


def write_robustness(
    folder: str | os.PathLike, entries: list[dict], output: str | os.PathLike, command: str
) -> None:
    """
    Keeps what was measured with a model: `robustness.json`, the pictures, and a section of its card.

    Args:
        folder (`str` or `os.PathLike`): The model's folder.
        entries (`list[dict]`): What [`measure`] returned.
        output (`str` or `os.PathLike`): Where [`plot`] and [`picture`] wrote to.
        command (`str`): The command that measured.

    Raises:
        ValueError: The folder holds other weights than those that were measured.
    """
    folder, output = Path(folder), Path(output)
    check_weights(list_weights(entries), "robustness.json", folder)
    for name in ("robustness.png", "noise.png"):
        shutil.copyfile(output / name, folder / name)
    (folder / "robustness.json").write_text(json.dumps(entries, indent=1) + "\n")
    card = ModelCard.load(folder / "README.md")
    groups, images = len(entries[0]["distances"]), f"{entries[0]['num_images']:,} images"
    section = f"""
The Fréchet distance when sampling is disturbed: by noise of α times the noise level before each step, by weights rounded to
few bits, or by few calls of the network. Mean and standard deviation of {groups} groups of {images}; in brackets, of what the
disturbance adds to the distance of the same group.

![Fréchet distance against noise, bits and calls, a line a D](robustness.png)

{table(entries)}
The same seeds at each D, with noise that grows to the right:

![A row a D, three seeds with growing noise](noise.png)

```bash
{command}
```
"""
    put_section(card, "Robustness", section)
    card.save(folder / "README.md")
