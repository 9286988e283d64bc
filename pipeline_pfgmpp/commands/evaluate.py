"""
Measure a model's samples against real images.

Draws images at each D, prints a table and writes evaluation.json. Processes share the work under
`accelerate launch -m pipeline_pfgmpp evaluate ...`. Interrupted runs resume.
"""

import argparse
import json
from pathlib import Path

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

    from ..evaluation.evaluate import evaluate, evaluate_real
    from ..evaluation.reports import build_report, format_evaluation, write_evaluation
    from ..records.commands import format_command
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
    samples = Path(args.output or default_output("samples", args.model, description))
    entries = evaluate(
        pipeline,
        metrics,
        args.D,
        samples,
        args.num_images,
        args.groups,
        args.seed,
        args.batch_size,
        args.command_line,
        **settings,
    )
    if baseline is not None:
        entries.append(evaluate_real(baseline, metrics, args.num_images, args.baseline_split))
    if not PartialState().is_main_process:
        return
    data = format_command("", [args.data])  # without folders of this machine
    reference = f"the {len(metrics.real_features):,} images of the {args.split} split of `{data}`"
    report = build_report(
        entries, pipeline, args.features, args.num_images, reference, args.command_line, **settings
    )
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
