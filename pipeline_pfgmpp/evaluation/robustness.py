r"""
How quality falls when sampling is disturbed, at several D (https://huggingface.co/papers/2302.04265, sec. 6):

- noise: before each step $x \leftarrow x + \alpha\,\sigma_i\,g$ with $g \sim \mathcal{N}(0, I)$;
- weights: every parameter tensor rounded to $2^k$ evenly spaced values between its least and its largest;
- steps: fewer calls of the network.

The paper's claim is that small D degrades later than D = infinity does.
"""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm.auto import tqdm

from ..cards import number
from ..grid import labelled_grid, to_pil
from ..pipeline_pfgmpp import PFGMPPPipeline
from ..sampling import generate
from .evaluate import served
from .metrics import ImageMetrics


def quantise(module: torch.nn.Module, bits: int) -> None:
    """
    Rounds weights in place: uniform affine quantisation of each parameter tensor.

    Args:
        module (`torch.nn.Module`): The network.
        bits (`int`): Bits a weight.
    """
    for parameter in module.parameters():
        low, high = parameter.data.float().aminmax()
        step = ((high - low) / (2**bits - 1)).clamp_min(torch.finfo(torch.float32).tiny)
        rounded = ((parameter.data.float() - low) / step).round() * step + low
        parameter.data = rounded.to(parameter.dtype)


@contextlib.contextmanager
def quantised(module: torch.nn.Module, bits: int | None) -> Iterator[None]:
    """
    Rounds weights as [`quantise`] does while the block runs.

    Args:
        module (`torch.nn.Module`): The network.
        bits (`int` or `None`): Bits a weight; None leaves them as they are.
    """
    kept = [parameter.data for parameter in module.parameters()]
    try:
        if bits is not None:
            quantise(module, bits)
        yield
    finally:
        for parameter, data in zip(module.parameters(), kept):
            parameter.data = data


class Disturbance(NamedTuple):
    """One point of a curve: what is disturbed, and how much."""

    kind: str
    level: float

    @property
    def settings(self) -> dict:
        """Noise, bits and calls of the network; what is not disturbed is None."""
        return {**dict.fromkeys(("noise", "bits", "nfe")), self.kind: self.level}


def _steps(pipeline, nfe):
    """Steps of so many calls: Heun calls twice a step, but for the last."""
    return -(-int(nfe) // pipeline.scheduler.order)


def measure(
    pipelines: dict[str, PFGMPPPipeline],
    dimensions: list[float],
    disturbances: list[Disturbance],
    metrics: ImageMetrics,
    output: str | os.PathLike,
    num_images: int = 1000,
    num_groups: int = 3,
    nfe: int = 35,
) -> list[dict]:
    """
    Fréchet distances of every model at every D under every disturbance; what `robustness.json` holds is not measured again.

    Args:
        pipelines (`dict[str, PFGMPPPipeline]`): Models by name. One that serves a single D is measured at that D alone.
        dimensions (`list`): Augmented dimensions for networks that are conditioned on D; `inf` for infinity.
        disturbances (`list[Disturbance]`): What to measure.
        metrics ([`ImageMetrics`]): What measures the Fréchet distance.
        output (`str` or `os.PathLike`): Folder for `robustness.json`.
        num_images (`int`, defaults to 1000): Images a distance.
        num_groups (`int`, defaults to 3): Distances a point, of other seeds.
        nfe (`int`, defaults to 35): Calls of the network where they are not what is disturbed.

    Returns:
        `list[dict]`: An entry a point: `model`, `D`, `kind`, `level` and `distances`.
    """
    path = Path(output) / "robustness.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    entries = json.loads(path.read_text()) if path.is_file() else []
    points = [
        (model, D, disturbance)
        for disturbance in disturbances
        for model, pipeline in pipelines.items()
        for D in served(pipeline, dimensions)
    ]
    progress = tqdm(points, desc="Robustness", unit="point")
    for model, D, disturbance in progress:
        key = {"model": model, "D": number(D), "kind": disturbance.kind, "level": disturbance.level, "num_images": num_images}
        if any(key.items() <= entry.items() and len(entry["distances"]) >= num_groups for entry in entries):
            continue
        progress.set_postfix(D=number(D), **{disturbance.kind: disturbance.level})
        pipeline, settings = pipelines[model], disturbance.settings
        steps = _steps(pipeline, settings["nfe"] or nfe)
        distances = []
        with quantised(pipeline.unet, settings["bits"]):
            for group in range(num_groups):
                seeds = list(range(group * 10_000, group * 10_000 + num_images))
                drawn = generate(pipeline, seeds, 50, None, settings["noise"] or 0.0, D=D, num_inference_steps=steps)
                images = torch.cat([images for _, images in drawn])
                distances.append(round(metrics(images)["fid"], 3))
        entries = [entry for entry in entries if not key.items() <= entry.items()] + [{**key, "distances": distances}]
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(entries, indent=1) + "\n")
        os.replace(partial, path)
    return entries


TITLES = {"noise": "noise injected, α", "bits": "bits a weight", "nfe": "calls of the network"}


def _lines(entries, kind):
    """Levels, means and standard deviations of each line of a panel."""
    lines = {}
    for entry in (entry for entry in entries if entry["kind"] == kind):
        lines.setdefault((entry["model"], entry["D"]), []).append((entry["level"], torch.tensor(entry["distances"]).double()))
    several = len({model for model, _ in lines}) > 1
    for (model, D), points in lines.items():
        levels, distances = zip(*sorted(points, key=lambda point: point[0]))
        label = f"{model}, D = {D}" if several else f"D = {D}"
        yield label, levels, [d.mean().item() for d in distances], [d.std().item() if len(d) > 1 else 0.0 for d in distances]


def plot(entries: list[dict], path: str | os.PathLike) -> None:
    """
    Draws distance against noise, bits and calls, a line a D, with the standard deviation over the groups.

    Args:
        entries (`list[dict]`): What [`measure`] returned.
        path (`str` or `os.PathLike`): The picture.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    kinds = [kind for kind in TITLES if any(entry["kind"] == kind for entry in entries)]
    figure, axes = plt.subplots(1, len(kinds), figsize=(4.6 * len(kinds), 3.9), constrained_layout=True, squeeze=False)
    for axis, kind in zip(axes[0], kinds):
        for label, levels, means, deviations in _lines(entries, kind):
            axis.errorbar(levels, means, deviations, marker="o", markersize=3.5, capsize=2, label=label)
        axis.set(xlabel=TITLES[kind], yscale="log")
        if kind != "noise":
            axis.invert_xaxis()  # all panels get worse to the right
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
    Draws the same seeds at each D, a row a D, with the noise growing to the right for each seed.

    Args:
        pipeline ([`PFGMPPPipeline`]): A model that serves every D.
        dimensions (`list`): The rows; `inf` for infinity.
        levels (`list[float]`): alpha of the columns.
        path (`str` or `os.PathLike`): The picture.
        num_seeds (`int`, defaults to 3): Seeds, one after the other.
        nfe (`int`, defaults to 35): Calls of the network.
    """
    steps = _steps(pipeline, nfe)
    images = []
    for D in dimensions:
        settings = {"D": D, "num_inference_steps": steps}
        columns = [next(generate(pipeline, list(range(num_seeds)), num_seeds, None, level, **settings))[1] for level in levels]
        images += [columns[index][seed] for seed in range(num_seeds) for index in range(len(levels))]
    rows = [f"D = {D:g}" for D in dimensions]
    labelled_grid(to_pil(torch.stack(images)), num_seeds * len(levels), rows).save(path)


def table(entries: list[dict]) -> str:
    """
    The same as Markdown, a table a kind: mean and standard deviation over the groups.

    Args:
        entries (`list[dict]`): What [`measure`] returned.

    Returns:
        `str`: The tables.
    """
    parts = []
    for kind, title in TITLES.items():
        lines = list(_lines(entries, kind))
        if lines:
            levels = sorted({level for _, levels, *_ in lines for level in levels}, reverse=kind != "noise")
            rows = [f"| {title} | {' | '.join(f'{level:g}' for level in levels)} |", "|---" * (len(levels) + 1) + "|"]
            for label, found, means, deviations in lines:
                cells = {level: f"{m:.1f} ± {d:.1f}" for level, m, d in zip(found, means, deviations)}
                rows.append(f"| {label} | {' | '.join(cells.get(level, '') for level in levels)} |")
            parts.append("\n".join(rows))
    return "\n\n".join(parts) + "\n"
