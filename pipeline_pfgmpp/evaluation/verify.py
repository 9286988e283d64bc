r"""
Measures a card's own figures again with few images and says whether they agree.

The Fréchet distance of n images is larger than that of more, by a bias that falls as 1 / n
(https://huggingface.co/papers/1911.07023): $d(n) \approx d_\infty + c / n$. So the distance of n
images and of their quarters predict that of N.
"""

import math
import statistics
from typing import NamedTuple

import torch

from ..generation import generate, quantize_temporarily
from ..pipeline_pfgmpp import PFGMPPPipeline
from ..records.dimensions import format_dimension
from .evaluate import choose_dimensions, mean_and_deviation
from .features import image_features
from .metrics import ImageMetrics, frechet_distance
from .robustness import Setting, count_steps


# What a report's settings hold besides the arguments of the pipeline's call.
DESCRIPTION = ("scheduler", "network", "weights", "dtype", "version")
ALLOWED_DEVIATIONS = 4  # of few groups the deviation is known badly, so more than the usual two
ROUNDING = 0.02  # by which processors may differ, which round otherwise


class Figure(NamedTuple):
    """
    A figure of a card, what was measured, what that predicts for as many images as the card's, and
    whether they agree.
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
    Predicts the Fréchet distance of more images from that of a few.

    Args:
        features (`torch.Tensor` of shape `(n, K)`): Features of the few.
        real_features (`torch.Tensor` of shape `(R, K)`): Features of real images.
        count (`int`): How many images to predict it for, at least n.

    Returns:
        `tuple[float, float, float]`: The distance of the few, of `count` images, and the standard
            error of either.
    """
    measured = frechet_distance(features, real_features)
    quarters = [frechet_distance(quarter, real_features) for quarter in features.chunk(4)]
    bias_of_few = (statistics.mean(quarters) - measured) / 3  # c / n, since c / (n / 4) - c / n = 3 c / n
    predicted = measured - bias_of_few * (1 - len(features) / count)
    return measured, predicted, statistics.stdev(quarters) / 2


def verify_evaluation(
    pipeline: PFGMPPPipeline, metrics: ImageMetrics, report: dict, num_images: int, batch_size: int = 64
) -> list[Figure]:
    """
    Measures the Fréchet distances of an `evaluation.json` again.

    Args:
        pipeline ([`PFGMPPPipeline`]): The model, with the scheduler of the report.
        metrics ([`ImageMetrics`]): What measures, against the report's real images.
        report (`dict`): What [`~pipeline_pfgmpp.evaluation.evaluate.report`] returned.
        num_images (`int`): Images per figure.
        batch_size (`int`, defaults to 64): Images at a time.

    Returns:
        `list[Figure]`: One for each D of the report.
    """
    settings = {name: value for name, value in report["settings"].items() if name not in DESCRIPTION}
    figures = []
    for entry in report["results"]:
        if "D" not in entry or "fid" not in entry:
            continue
        (D,) = choose_dimensions(pipeline, [read_dimension(entry["D"])])
        seeds = list(range(num_images))
        drawn = generate(pipeline, seeds, batch_size, f"Evaluation, D = {entry['D']}", D=D, **settings)
        images = torch.cat([images for _, images in drawn])
        features = image_features(metrics.extractor, images)
        measured, predicted, error = predict_distance(features, metrics.real_features, report["num_images"])
        figures.append(_compare(f"D = {entry['D']}", entry["fid"], measured, predicted, error))
    return figures


def verify_robustness(
    pipeline: PFGMPPPipeline, metrics: ImageMetrics, entries: list[dict], batch_size: int = 50
) -> list[Figure]:
    """
    Measures the first group of the most disturbed point of each D of a `robustness.json` again.

    Args:
        pipeline ([`PFGMPPPipeline`]): The model.
        metrics ([`ImageMetrics`]): What measures, against the same real images.
        entries (`list[dict]`): What [`~pipeline_pfgmpp.evaluation.robustness.measure`] returned.
        batch_size (`int`, defaults to 50): Images at a time.

    Returns:
        `list[Figure]`: One for each D.
    """
    figures = []
    for label in dict.fromkeys(entry["D"] for entry in entries):
        entry = max((entry for entry in entries if entry["D"] == label), key=lambda entry: entry["noise"])
        setting = Setting(entry["noise"], entry["bits"], entry["nfe"])
        (D,) = choose_dimensions(pipeline, [read_dimension(label)])
        seeds = list(range(entry["num_images"]))
        call = {"D": D, "num_inference_steps": count_steps(pipeline, setting.nfe)}
        with quantize_temporarily(pipeline.unet, setting.bits):
            drawn = generate(pipeline, seeds, batch_size, f"Robustness, D = {label}", setting.noise, **call)
            images = torch.cat([images for _, images in drawn])
        measured = frechet_distance(image_features(metrics.extractor, images), metrics.real_features)
        error = statistics.stdev(entry["distances"]) if len(entry["distances"]) > 1 else 0.0
        name = f"D = {label}, noise {setting.noise:g}"
        figures.append(_compare(name, entry["distances"], measured, measured, error))
    return figures


def _compare(name, values, measured, predicted, error):
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    mean = statistics.mean(values)
    allowed = max(ALLOWED_DEVIATIONS * math.hypot(error, deviation), ROUNDING * mean)
    return Figure(name, mean_and_deviation(values), measured, predicted, abs(predicted - mean) <= allowed)


def read_dimension(text: str) -> float:
    """
    Reads an augmented dimension as [`~pipeline_pfgmpp.records.dimensions.format_dimension`] writes
    it.
    """
    return math.inf if text == format_dimension(None) else float(text)


def format_figures(title: str, figures: list[Figure]) -> str:
    """
    Formats what was verified as a table for people.

    Args:
        title (`str`): What the figures are of.
        figures (`list[Figure]`): They.

    Returns:
        `str`: The table, as Markdown.
    """
    rows = [f"| {title} | the card says | measured here | for as many images | |", "|---|---|---|---|---|"]
    for figure in figures:
        verdict = "agrees" if figure.agrees else "**does not agree**"
        rows.append(
            f"| {figure.name} | {figure.stated} | {figure.measured:.4g} | {figure.predicted:.4g} | {verdict} |"
        )
    return "\n".join(rows) + "\n"
