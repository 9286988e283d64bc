r"""
Measure the figures of a model's card again with fewer images, and tell whether they agree.

The Fréchet distance of n images is larger than that of more images, by a bias that falls as 1 / n
(https://huggingface.co/papers/1911.07023): $d(n) \approx d_\infty + c / n$. So the distances of n
images and of quarters of them predict the distance of N images.
"""

import inspect
import math
import statistics
from typing import Any, NamedTuple

import torch

from ..generation import generate
from ..pipeline_pfgmpp import PFGMPPPipeline
from ..records.dimensions import format_dimension
from .evaluate import choose_dimensions
from .features import extract_features
from .metrics import ImageMetrics, frechet_distance
from .reports import format_mean
from .robustness import Setting, measure_distances


# What a report's settings hold besides the arguments of the pipeline's call.
DESCRIPTION = (
    "scheduler", "network", "autoencoder", "weights", "dtype", "id2label", "value_range", "version",
)  # fmt: skip
# Arguments of the call that are not settings, since they differ from image to image.
OWN = ("batch_size", "D", "generator", "latents", "output_type", "return_dict")
# How many standard deviations a figure may be off. The usual two are too few, because a deviation
# is estimated from few groups.
ALLOWED_DEVIATIONS = 4
# The relative difference between processors that round differently.
ROUNDING = 0.02


class Figure(NamedTuple):
    """
    A figure of a card that was measured again.

    Args:
        name (`str`): What it is a figure of.
        stated (`str`): The figure in the card.
        measured (`float`): The Fréchet distance that was measured now.
        predicted (`float`): What that predicts for as many images as the card's figure is of.
        agrees (`bool`): Whether the prediction agrees with the card.
    """

    name: str
    stated: str
    measured: float
    predicted: float
    agrees: bool


def predict_distance(
    features: torch.Tensor, real_features: torch.Tensor, count: int
) -> tuple[float, float, float]:
    """
    Predict the Fréchet distance of many images from the distance of a few.

    Args:
        features (`torch.Tensor` of shape `(n, K)`): Features of the few images.
        real_features (`torch.Tensor` of shape `(R, K)`): Features of real images.
        count (`int`): Number of images to predict the distance of, at least n.

    Returns:
        `tuple[float, float, float]`: The distance of the few images, the predicted distance of
            `count` images, and the standard error of both.
    """
    measured = frechet_distance(features, real_features)
    quarters = [frechet_distance(quarter, real_features) for quarter in features.tensor_split(4)]
    # The bias of n images, c / n, because c / (n / 4) - c / n = 3 c / n.
    bias = (statistics.mean(quarters) - measured) / 3
    predicted = measured - bias * (1 - len(features) / count)
    return measured, predicted, statistics.stdev(quarters) / 2


def verify_evaluation(
    pipeline: PFGMPPPipeline,
    metrics: ImageMetrics,
    report: dict[str, Any],
    num_images: int,
    batch_size: int = 64,
) -> list[Figure]:
    """
    Measure the Fréchet distances of an `evaluation.json` again.

    Args:
        pipeline ([`PFGMPPPipeline`]): The model, with the scheduler of the report.
        metrics ([`ImageMetrics`]): The metrics, against the real images of the report.
        report (`dict`): The report, from [`~pipeline_pfgmpp.evaluation.reports.build_report`].
        num_images (`int`): Images per figure, at least 8.
        batch_size (`int`, defaults to 64): Images per batch.

    Returns:
        `list[Figure]`: One figure per D of the report.

    Raises:
        ValueError: The report's settings are not those of this pipeline.
    """
    settings = {name: value for name, value in report["settings"].items() if name not in DESCRIPTION}
    allowed = {"noise", "class_weights", *inspect.signature(pipeline.__call__).parameters} - set(OWN)
    if unknown := sorted(settings.keys() - allowed):
        raise ValueError(
            f"evaluation.json cannot be verified: its `settings` hold {', '.join(unknown)}, which this"
            " pipeline does not take."
        )
    figures = []
    for entry in report["results"]:
        if "D" not in entry or "fid" not in entry:
            continue
        name = f"D = {entry['D']}"
        (D,) = choose_dimensions(pipeline, [_parse_dimension(entry["D"])])
        seeds = list(range(num_images))
        batches = generate(pipeline, seeds, batch_size, f"Evaluation, {name}", D=D, **settings)
        features = extract_features(metrics.extractor, torch.cat([images for _, images in batches]))
        measured, predicted, error = predict_distance(features, metrics.real_features, report["num_images"])
        figures.append(_compare(name, entry["fid"], measured, predicted, error))
    return figures


def verify_robustness(
    pipeline: PFGMPPPipeline, metrics: ImageMetrics, entries: list[dict[str, Any]], batch_size: int = 50
) -> list[Figure]:
    """
    Measure the first group of the noisiest point of each D of a `robustness.json` again.

    Args:
        pipeline ([`PFGMPPPipeline`]): The model.
        metrics ([`ImageMetrics`]): The metrics, against the same real images.
        entries (`list[dict]`): The results of [`~pipeline_pfgmpp.evaluation.robustness.measure`].
        batch_size (`int`, defaults to 50): Images per batch.

    Returns:
        `list[Figure]`: One figure per D.
    """
    figures = []
    for label in dict.fromkeys(entry["D"] for entry in entries):
        entry = max((entry for entry in entries if entry["D"] == label), key=lambda entry: entry["noise"])
        setting = Setting(entry["noise"], entry["bits"], entry["nfe"])
        (D,) = choose_dimensions(pipeline, [_parse_dimension(label)])
        desc = f"Robustness, D = {label}"
        groups = [list(range(entry["num_images"]))]
        (measured,) = measure_distances(pipeline, D, setting, metrics, groups, batch_size, desc)
        error = _compute_deviation(entry["distances"])
        name = f"D = {label}, noise {setting.noise:g}"
        figures.append(_compare(name, entry["distances"], measured, measured, error))
    return figures


def _compare(name: str, values: list[float], measured: float, predicted: float, error: float) -> Figure:
    """Compare a prediction that has a standard error with the values in a card."""
    mean = statistics.mean(values)
    allowed = max(ALLOWED_DEVIATIONS * math.hypot(error, _compute_deviation(values)), ROUNDING * mean)
    return Figure(name, format_mean(values), measured, predicted, abs(predicted - mean) <= allowed)


def _compute_deviation(values: list[float]) -> float:
    """Compute the standard deviation, which a single value does not show."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def _parse_dimension(text: str) -> float:
    """Parse an augmented dimension that [`~pipeline_pfgmpp.records.dimensions.format_dimension`] wrote."""
    return math.inf if text == format_dimension(None) else float(text)


def format_figures(title: str, figures: list[Figure]) -> str:
    """
    Format figures that were verified as a Markdown table.

    Args:
        title (`str`): Header of the first column, such as the name of the report.
        figures (`list[Figure]`): The figures.

    Returns:
        `str`: The table.
    """
    rows = [f"| {title} | the card says | measured here | for as many images | |", "|---|---|---|---|---|"]
    for figure in figures:
        verdict = "agrees" if figure.agrees else "**does not agree**"
        numbers = f"{figure.stated} | {figure.measured:.4g} | {figure.predicted:.4g}"
        rows.append(f"| {figure.name} | {numbers} | {verdict} |")
    return "\n".join(rows) + "\n"
