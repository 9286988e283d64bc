"""Plots of what was measured."""

import os
import statistics
from typing import NamedTuple


class Panel(NamedTuple):
    """
    Distances at several levels of a disturbance.

    Args:
        title (`str`): Name of the disturbance.
        levels (`list[str]`): Its levels, from the undisturbed one on.
        curves (`dict[str, list[list[float]]]`): By label, for each level the distances of the groups;
            an empty list where nothing was measured.
    """

    title: str
    levels: list[str]
    curves: dict[str, list[list[float]]]


def plot_robustness(panels: list[Panel], path: str | os.PathLike) -> None:
    """
    Plot the Fréchet distance against each disturbance, with the standard deviation over the groups.

    Args:
        panels (`list[Panel]`): What to plot, from
            [`~pipeline_pfgmpp.evaluation.reports.list_panels`].
        path (`str` or `os.PathLike`): The picture to write.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    figure = Figure(figsize=(4.6 * len(panels), 3.9), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, panel in zip(axes, panels):
        for label, curve in panel.curves.items():
            places = [place for place, distances in enumerate(curve) if distances]
            means = [statistics.mean(curve[place]) for place in places]
            deviations = [
                statistics.stdev(curve[place]) if len(curve[place]) > 1 else 0.0 for place in places
            ]
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
        axis.set(xlabel=panel.title, yscale="log")
        axis.set_xticks(range(len(panel.levels)), panel.levels)
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
        axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.yaxis.set_minor_formatter(NullFormatter())
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("Fréchet distance")
    axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=110)


def plot_log(entries: list[dict], path: str | os.PathLike) -> None:
    """
    Plot a training log: loss, also by noise level, gradient norm and learning rate, speed, and, if they
    were measured, the loss on validation data and the Fréchet distance.

    Args:
        entries (`list[dict]`): From [`~pipeline_pfgmpp.training.read_log`].
        path (`str` or `os.PathLike`): The picture to write.
    """
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(name for entry in entries for name in entry))
    panels = {
        "loss": {"loss": "training", "validation_loss": "validation"},
        "loss by noise level": _label_levels(names, "loss/sigma_"),
        "validation loss by noise level": _label_levels(names, "validation_loss/sigma_"),
        "gradient norm, learning rate": {"grad_norm": "gradient norm", "lr": "learning rate"},
        "images per second": {"images_per_second": ""},
        "Fréchet distance": {"frechet_distance": ""},
    }
    panels = {title: curves for title, curves in panels.items() if any(name in names for name in curves)}
    figure = Figure(figsize=(4 * len(panels), 3.4), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (title, curves) in zip(axes, panels.items()):
        for name, label in curves.items():
            points = [(entry["step"], entry[name]) for entry in entries if name in entry]
            if points:
                axis.plot(*zip(*points), label=label, marker="." if len(points) < 30 else None)
        axis.set(xlabel="optimisation steps", title=title)
        axis.grid(alpha=0.3)
        if title != "images per second":
            axis.set_yscale("log")
        if len(curves) > 1:
            axis.legend(fontsize=8, title="σ" if title.endswith("by noise level") else None)
    figure.savefig(path, dpi=110)


def _label_levels(names: list[str], prefix: str) -> dict[str, str]:
    """Label the curves of the noise levels by their intervals."""
    return {name: name.removeprefix(prefix) for name in names if name.startswith(prefix)}
