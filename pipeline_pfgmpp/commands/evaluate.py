"""
Measure a model's samples against real images.

Draws images at each D, prints a table and writes evaluation.json. Processes share the work under
`accelerate launch -m pipeline_pfgmpp evaluate ...`. Interrupted runs resume.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from .parsing import parse_dimensions
from .shared import (
    add_drawing_arguments,
    add_measuring_arguments,
    check_card,
    check_dimensions,
    get_call_settings,
    get_scheduler_settings,
    load_metrics,
    load_pipeline,
    load_real_images,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """
    Add the arguments of `pfgmpp evaluate`.

    Args:
        parser (`argparse.ArgumentParser`): The parser of the command.
    """
    parser.add_argument("model", help="a Hub id or a pipeline folder")
    add_measuring_arguments(parser, num_images=10_000, groups=1)
    parser.add_argument(
        "--baseline-split",
        help="another split, of which as many images are measured too, for comparison",
    )
    parser.add_argument(
        "--metrics",
        type=lambda text: text.split(","),
        default=["fid"],
        help="one or more of fid, kid, precision_recall and inception_score, separated by commas"
        " (default: fid)",
    )
    parser.add_argument(
        "--D",
        type=parse_dimensions,
        help="augmented dimensions, for a network that is conditioned on D, such as 16,128,inf"
        " (default: the model's)",
    )
    add_drawing_arguments(parser)
    parser.add_argument(
        "--output",
        help="folder for images and results (default: outputs/samples/MODEL-DIGEST and"
        " outputs/evaluation/MODEL-DIGEST, where the digest covers everything that they depend on)",
    )


def run(args: argparse.Namespace) -> None:
    """
    Draw images, measure them and report.

    Args:
        args (`argparse.Namespace`): Arguments of [`add_arguments`].
    """
    from accelerate import PartialState

    from ..evaluation.evaluate import evaluate_real
    from ..evaluation.reports import format_evaluation, write_evaluation
    from ..records.digests import default_output, describe
    from ..records.writing import replace_file

    if args.write:
        check_card(args.model)
    pipeline = load_pipeline(args.model, args.variant, **get_scheduler_settings(args))
    settings = get_call_settings(args, pipeline)
    check_dimensions([pipeline], args.D)
    metrics = load_metrics(
        pipeline, args.features, args.data, args.split, args.metrics, args.trust_remote_code
    )
    baseline = None
    if args.baseline_split:
        baseline = load_real_images(args.data, args.baseline_split, pipeline)
    description = describe(pipeline, **settings)
    entries = measure_dimensions(args, pipeline, metrics, args.D, settings)
    if baseline is not None:
        entries.append(evaluate_real(baseline, metrics, args.num_images, args.baseline_split))
    if not PartialState().is_main_process:
        return
    data, report = report_dimensions(args, pipeline, metrics, entries, settings)
    report |= {"data": data, "split": args.split, "data_digest": metrics.reference}
    measured = {
        name: getattr(args, name) for name in ("features", "metrics", "seed", "num_images", "groups", "D")
    }
    description |= measured | {"reference": metrics.reference}
    output = Path(args.output or default_output("evaluation", args.model, description))
    with replace_file(output / "evaluation.json") as partial:
        partial.write_text(json.dumps(report, indent=1) + "\n")
    print(format_evaluation(report))
    if args.write:
        write_evaluation(args.model, report)


def measure_dimensions(
    args: argparse.Namespace, pipeline: Any, metrics: Any, dimensions: list[float] | None, settings: dict
) -> list[dict[str, Any]]:
    """
    Draw images at each D, and measure them.

    Args:
        args (`argparse.Namespace`): The arguments of a command that measures images.
        pipeline ([`PFGMPPPipeline`]): The model.
        metrics ([`~pipeline_pfgmpp.evaluation.ImageMetrics`]): What is measured.
        dimensions (`list[float]`, *optional*): Augmented dimensions; by default the model's.
        settings (`dict`): Arguments of the pipeline's call.

    Returns:
        `list[dict]`: The results, by D.
    """
    from ..evaluation.evaluate import evaluate
    from ..records.digests import default_output, describe

    samples = Path(args.output or default_output("samples", args.model, describe(pipeline, **settings)))
    return evaluate(
        pipeline,
        metrics,
        dimensions,
        samples,
        args.num_images,
        args.groups,
        args.seed,
        args.batch_size,
        args.command_line,
        **settings,
    )


def report_dimensions(
    args: argparse.Namespace, pipeline: Any, metrics: Any, entries: list[dict[str, Any]], settings: dict
) -> tuple[str, dict[str, Any]]:
    """
    Report what was measured at each D.

    Args:
        args, pipeline, metrics, settings: As for [`measure_dimensions`].
        entries (`list[dict]`): The results.

    Returns:
        `tuple[str, dict]`: The name of the data, without folders of this machine, and the report.
    """
    from ..evaluation.reports import build_report
    from ..records.commands import format_command

    data = format_command("", [args.data])
    reference = f"the {len(metrics.real_features):,} images of the {args.split} split of `{data}`"
    return data, build_report(
        entries, pipeline, args.features, args.num_images, reference, args.command_line, **settings
    )
