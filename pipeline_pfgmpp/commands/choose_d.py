"""
Choose the best D of a model that serves every D.

Draws images from the same seeds at each D, measures them against real ones, and prints the D that is best
beyond doubt, or within which bounds there is no difference. Images are shared with `pfgmpp evaluate`.
Processes share the work under `accelerate launch -m pipeline_pfgmpp choose-D ...`. Interrupted runs resume.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING

from .arguments import (
    add_drawing_arguments,
    add_measuring_arguments,
    get_reading,
    get_scheduler_settings,
)
from .evaluate import (
    add_class_weights_argument,
    get_measuring_settings,
    measure_dimensions,
    report_dimensions,
)
from .loading import list_trained_dimensions, load_metrics, load_pipeline
from .parsing import parse_dimensions


if TYPE_CHECKING:
    from ..pipeline_pfgmpp import PFGMPPPipeline


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """
    Add the arguments of `pfgmpp choose-D`.

    Args:
        parser (`argparse.ArgumentParser`): The parser of the command.
    """
    parser.add_argument("model", help="a Hub id or a pipeline folder, with a network conditioned on D")
    add_measuring_arguments(parser, num_images=500, groups=10, may_write=False)
    parser.add_argument(
        "--metric",
        choices=["fid", "kid"],
        default="fid",
        help="the distance; kid has no bias, which suits groups of few images (default: %(default)s)",
    )
    parser.add_argument(
        "--D",
        type=parse_dimensions,
        help="two or more augmented dimensions (default: those of 16,128,2048,inf that the network was"
        " trained for)",
    )
    add_drawing_arguments(parser)
    add_class_weights_argument(parser)
    parser.add_argument(
        "--output",
        help="folder for images and results (default: outputs/samples/MODEL-DIGEST and"
        " outputs/choice/MODEL-DIGEST, where the digest covers everything that they depend on)",
    )


def run(args: argparse.Namespace) -> None:
    """
    Draw images, measure them and choose.

    Args:
        args (`argparse.Namespace`): Arguments of [`add_arguments`].

    Raises:
        ValueError: The network is for one D, or there are too few D or groups to compare.
    """
    from accelerate import PartialState

    from ..evaluation.choice import choose_best, describe_choice, format_choice
    from ..evaluation.reports import name_metric
    from ..records.digests import default_output, describe
    from ..records.writing import write_json

    if args.groups < 2:
        raise ValueError(f"--groups must be at least 2, for the error of a difference, but is {args.groups}.")
    pipeline = load_pipeline(args.model, args.variant, **get_scheduler_settings(args))
    settings = get_measuring_settings(args, pipeline)
    dimensions = _choose_candidates(pipeline, args.D)
    metrics = load_metrics(
        pipeline,
        args.features,
        args.data,
        args.split,
        [args.metric],
        args.trust_remote_code,
        **get_reading(args, pipeline),
    )
    description = describe(pipeline, **settings)
    entries = measure_dimensions(args, pipeline, metrics, dimensions, settings)
    if not PartialState().is_main_process:
        return
    distances = {entry["D"]: entry[args.metric] for entry in entries}
    choice = choose_best(distances)
    _, report = report_dimensions(args, pipeline, metrics, entries, settings)
    measured = {name: getattr(args, name) for name in ("features", "metric", "seed", "num_images", "groups")}
    description |= measured | {"D": dimensions, "reference": metrics.reference}
    output = Path(args.output or default_output("choice", args.model, description))
    write_json(output / "choice.json", report | describe_choice(choice))
    print(format_choice(choice, distances, name_metric(args.metric, args.features)))


def _choose_candidates(pipeline: PFGMPPPipeline, asked: list[float] | None) -> list[float]:
    """Return the augmented dimensions to choose from, or refuse a network that leaves no choice."""
    from ..conditioning import choose_dimension, get_trained_range

    if not pipeline.unet.config.get("d_conditioning"):
        own = pipeline.scheduler.config.D
        raise ValueError(
            f"There is no D to choose: this network was trained at D = {own or math.inf:g} only. Use a"
            " network that is conditioned on D."
        )
    candidates = asked or list_trained_dimensions([pipeline])
    if len(candidates) < 2:
        low, high = get_trained_range(pipeline.unet, pipeline.scheduler)
        raise ValueError(
            f"--D must name two or more augmented dimensions to choose from; this network was trained for D"
            f" from {low:g} to {high:g}."
        )
    for D in candidates:
        choose_dimension(D, pipeline.unet, pipeline.scheduler)
    return candidates
