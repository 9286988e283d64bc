"""
Reports of what was measured: as JSON, as Markdown tables, and as sections of a model's card.
"""

import math
import os
import shutil
import statistics
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult

from ..hub.cards import put_section, read_card
from ..pictures.plots import Panel
from ..pipeline_pfgmpp import PFGMPPPipeline
from ..records.digests import describe
from ..records.reports import check_weights, list_weights
from ..records.writing import write_json


# What sampling can be disturbed by, and how tables and plots call it.
DISTURBANCES = {"noise": "injected noise, α", "bits": "bits per weight", "nfe": "calls of the network"}

EVALUATION_SECTION = """
Measured over the features `{features}` with {num_images:,} images per value, against {reference};
{sampling}.

{table}
```bash
{command}
```
"""

ROBUSTNESS_SECTION = """
The Fréchet distance when sampling is disturbed: by noise of α times the noise level before each step, by
rounding the weights to a few bits, or by using few calls of the network. Each value is the mean and the
standard deviation of {groups} groups of {num_images:,} images; the value in brackets is what the disturbance
adds to the distance of the same group.

![Fréchet distance against noise, bits and calls, one line per D](robustness.png)

{table}
The same seeds at each D, with noise that grows to the right:

![One row per D, three seeds with growing noise](noise.png)

```bash
{command}
```
"""


def build_report(
    entries: list[dict[str, Any]],
    pipeline: PFGMPPPipeline,
    features: str,
    num_images: int,
    reference: str,
    command: str,
    **settings: Any,
) -> dict[str, Any]:
    """
    Build the report of an evaluation: the results and everything that they depend on.

    Args:
        entries (`list[dict]`): The results of [`~pipeline_pfgmpp.evaluation.evaluate.evaluate`], and
            of [`~pipeline_pfgmpp.evaluation.evaluate.evaluate_real`] if real images were measured.
        pipeline ([`PFGMPPPipeline`]): The model.
        features (`str`): Name of the features.
        num_images (`int`): Images per value.
        reference (`str`): The real images that the model was measured against, in words.
        command (`str`): The command that measured.
        settings: Arguments of the pipeline's call.

    Returns:
        `dict`: The report, ready for JSON.
    """
    return {
        "results": entries,
        "features": features,
        "num_images": num_images,
        "reference": reference,
        "command": command,
        "settings": describe(pipeline, **settings),
    }


def round_figure(value: float) -> float:
    """
    Round a figure as reports keep it.

    Args:
        value (`float`): The figure.

    Returns:
        `float`: The figure with five significant digits.
    """
    return float(f"{value:.5g}")


def format_mean(values: list[float]) -> str:
    """
    Format the mean of values, with their standard deviation if there are several.

    Args:
        values (`list[float]`): One or more values.

    Returns:
        `str`: Such as `"6.60 ± 0.44"`, with two significant digits of the deviation.
    """
    mean = statistics.mean(values)
    if len(values) == 1:
        return f"{mean:.5g}"
    return format_error(mean, statistics.stdev(values))


def format_error(mean: float, error: float) -> str:
    """
    Format a value with its error.

    Args:
        mean (`float`): The value.
        error (`float`): Its error, at least 0.

    Returns:
        `str`: Such as `"6.60 ± 0.44"`, with two significant digits of the error.
    """
    if error == 0:
        return f"{mean:.5g} ± 0"
    decimals = max(0, 1 - math.floor(math.log10(error)))
    return f"{mean:.{decimals}f} ± {error:.{decimals}f}"


def name_metric(metric: str, features: str) -> str:
    """
    Name a metric for readers.

    Args:
        metric (`str`): Its name in a report, such as `"fid"`.
        features (`str`): The features that it was measured over.

    Returns:
        `str`: Such as `"Fréchet distance"`, which is called FID only over Inception's features.
    """
    names = {
        "fid": "FID" if features == "inception" else "Fréchet distance",
        "kid": "KID",
        "inception_score": "Inception score",
    }
    return names.get(metric, metric)


def format_evaluation(report: dict[str, Any]) -> str:
    """
    Format an evaluation as a Markdown table with one row per D.

    Args:
        report (`dict`): The report, from [`build_report`].

    Returns:
        `str`: The table.
    """
    entries = report["results"]
    metrics = [name for name, values in entries[0].items() if isinstance(values, list)]
    titles = [name_metric(name, report["features"]) for name in metrics]
    rows = [_format_row("images", titles), _format_rule(len(metrics))]
    for entry in entries:
        label = entry.get("images") or f"D = {entry['D']}"
        rows.append(_format_row(label, [format_mean(entry[name]) for name in metrics]))
    return "\n".join(rows) + "\n"


def _format_row(label: str, cells: list[str]) -> str:
    return f"| {label} | {' | '.join(cells)} |"


def _format_rule(columns: int) -> str:
    """Format the line below the header of a table that has so many columns besides the labels."""
    return "|---" * (columns + 1) + "|"


def write_evaluation(folder: str | os.PathLike, report: dict[str, Any]) -> None:
    """
    Store an evaluation with a model: as `evaluation.json`, and in its card as a section and as
    metadata.

    Args:
        folder (`str` or `os.PathLike`): The model's folder, with its card.
        report (`dict`): The report, from [`build_report`].

    Raises:
        ValueError: Other weights than those in the folder were measured.
    """
    folder = Path(folder)
    check_weights(list_weights(report), "evaluation.json", folder)
    settings = report["settings"]
    sampling = f"{settings['num_inference_steps']} steps of {settings['scheduler']['solver_type']}"
    if settings["guidance_scale"] != 1:
        sampling += f", guidance {settings['guidance_scale']:g}"
        if "guidance_interval" in settings:
            low, high = settings["guidance_interval"]
            sampling += f" at noise levels from {low:g} to {high:g}"
    if "class_labels" in settings:
        label = settings["class_labels"]
        sampling += f", all of class {settings.get('id2label', {}).get(str(label), label)}"
    if "class_weights" in settings:
        sampling += ", each class drawn as often as the data hold it"
    section = EVALUATION_SECTION.format(
        features=report["features"],
        num_images=report["num_images"],
        reference=report["reference"],
        sampling=sampling,
        table=format_evaluation(report),
        command=report["command"],
    )
    card = read_card(folder)
    put_section(card, "Evaluation", section)
    card.data.model_name = folder.resolve().name
    named = card.data.datasets or report.get("data", report["reference"])
    dataset = named if isinstance(named, str) else named[0]
    own = f" over {report['features']} features"
    others = [
        result
        for result in card.data.eval_results or []
        if result.dataset_type != dataset or own not in (result.metric_name or "")
    ]
    card.data.eval_results = [*others, *_list_eval_results(report, dataset)]
    write_json(folder / "evaluation.json", report)
    card.save(folder / "README.md")


def _list_eval_results(report: dict[str, Any], dataset: str) -> list[EvalResult]:
    """List the values of a report as the metadata of a card."""
    features = report["features"]
    results = []
    for entry in report["results"]:
        if "D" not in entry:
            continue
        for name, values in entry.items():
            if not isinstance(values, list):
                continue
            metric_type = name
            if name == "fid" and features != "inception":
                metric_type = "frechet_distance"  # on the Hub, `fid` is over Inception's features
            title = f"{name_metric(name, features)} over {features} features"
            result = EvalResult(
                task_type="unconditional-image-generation",
                dataset_type=dataset,
                dataset_name=dataset.rpartition("/")[2],
                metric_type=metric_type,
                metric_value=float(format_mean(values).split()[0]),  # as in the table
                metric_name=f"{title}, {report['num_images']:,} images, D = {entry['D']}",
            )
            results.append(result)
    return results


def list_panels(entries: list[dict[str, Any]]) -> list[Panel]:
    """
    List what a table or a plot of robustness shows, one panel per kind of disturbance.

    Args:
        entries (`list[dict]`): The results of [`~pipeline_pfgmpp.evaluation.robustness.measure`].

    Returns:
        `list[Panel]`: For each kind of disturbance the distances by its level, from the undisturbed
            one on. Kinds with a single level are left out.
    """
    undisturbed = {"noise": 0.0, "bits": None, "nfe": max(entry["nfe"] for entry in entries)}
    several_models = len({entry["model"] for entry in entries}) > 1
    panels = []
    for kind, title in DISTURBANCES.items():
        others = [name for name in DISTURBANCES if name != kind]
        chosen = [entry for entry in entries if all(entry[name] == undisturbed[name] for name in others)]
        levels = _sort_levels(kind, {entry[kind] for entry in chosen})
        if len(levels) == 1:
            continue
        curves: dict[str, list[list[float]]] = {}
        for entry in chosen:
            label = f"D = {entry['D']}"
            if several_models:
                label = f"{entry['model']}, {label}"
            curve = curves.setdefault(label, [[] for _ in levels])
            curve[levels.index(entry[kind])] = entry["distances"]
        panels.append(Panel(title, [_format_level(level) for level in levels], curves))
    return panels


def _sort_levels(kind: str, levels: set[float | None]) -> list[float | None]:
    """Sort levels from the mildest on: noise grows, bits and calls fall."""
    if kind == "noise":
        return sorted(levels, key=lambda level: level or 0.0)
    return sorted(levels, key=lambda level: -math.inf if level is None else -level)


def _format_level(level: float | None) -> str:
    return "as trained" if level is None else f"{level:g}"


def format_robustness(entries: list[dict[str, Any]]) -> str:
    """
    Format the robustness of models as Markdown tables, one per kind of disturbance.

    A cell holds the mean and the standard deviation over the groups. In brackets follows the increase
    over the undisturbed distance of the same group, which compares better, because groups differ
    more from each other.

    Args:
        entries (`list[dict]`): The results of [`~pipeline_pfgmpp.evaluation.robustness.measure`].

    Returns:
        `str`: The tables.
    """
    tables = []
    for panel in list_panels(entries):
        rows = [_format_row(panel.title, panel.levels), _format_rule(len(panel.levels))]
        for label, curve in panel.curves.items():
            cells = [_format_distances(distances, curve[0]) for distances in curve[1:]]
            rows.append(_format_row(label, [format_mean(curve[0]) if curve[0] else "", *cells]))
        tables.append("\n".join(rows))
    return "\n\n".join(tables) + "\n"


def _format_distances(distances: list[float], undisturbed: list[float]) -> str:
    """Format the distances of groups, with what was added to their undisturbed distances."""
    if not distances:
        return ""
    text = format_mean(distances)
    if not undisturbed:
        return text
    added = [distance - before for distance, before in zip(distances, undisturbed)]
    return f"{text} ({format_mean(added)})"


def write_robustness(
    folder: str | os.PathLike, entries: list[dict[str, Any]], output: str | os.PathLike, command: str
) -> None:
    """
    Store the robustness of a model with it: as `robustness.json`, as pictures, and as a section of
    its card.

    Args:
        folder (`str` or `os.PathLike`): The model's folder, with its card.
        entries (`list[dict]`): The results of [`~pipeline_pfgmpp.evaluation.robustness.measure`].
        output (`str` or `os.PathLike`): The folder that holds the pictures `robustness.png` and
            `noise.png`.
        command (`str`): The command that measured.

    Raises:
        ValueError: Other weights than those in the folder were measured.
    """
    folder = Path(folder)
    check_weights(list_weights(entries), "robustness.json", folder)
    section = ROBUSTNESS_SECTION.format(
        groups=len(entries[0]["distances"]),
        num_images=entries[0]["num_images"],
        table=format_robustness(entries),
        command=command,
    )
    card = read_card(folder)
    put_section(card, "Robustness", section)
    if Path(output).resolve() != folder.resolve():
        for name in ("robustness.png", "noise.png"):
            shutil.copyfile(Path(output) / name, folder / name)
    write_json(folder / "robustness.json", entries)
    card.save(folder / "README.md")
