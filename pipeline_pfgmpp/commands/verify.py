"""
Measure the figures of a model's card again, with few images.

Draws images with the settings that the model's evaluation.json and robustness.json name, measures them
and tells whether they agree with the card. Exits with code 1 if they do not.
"""

import argparse
from typing import Any

from .arguments import READING, add_batch_size_argument, add_trust_argument, add_variant_argument
from .loading import load_metrics, load_pipeline
from .parsing import make_integer_parser


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """
    Add the arguments of `pfgmpp verify`.

    Args:
        parser (`argparse.ArgumentParser`): The parser of the command.
    """
    parser.add_argument("model", help="a Hub id or a pipeline folder")
    parser.add_argument("--data", help="data set of real images (default: the one in evaluation.json)")
    parser.add_argument("--split", help="its split (default: the one in evaluation.json)")
    parser.add_argument(
        "--num-images",
        type=make_integer_parser(8),
        default=1000,
        help="images per figure of evaluation.json (default: %(default)s)",
    )
    add_batch_size_argument(parser, 50)
    add_variant_argument(parser)
    add_trust_argument(parser)


def run(args: argparse.Namespace) -> None:
    """
    Measure the figures again and compare them.

    Args:
        args (`argparse.Namespace`): Arguments of [`add_arguments`].
    """
    from ..evaluation.verify import format_figures, verify_evaluation, verify_robustness
    from ..records.reports import check_weights, list_weights, read_report
    from ..scheduling_pfgmpp import PFGMPPScheduler

    pipeline = load_pipeline(args.model, args.variant)
    evaluation = read_report(args.model, "evaluation.json")
    robustness = read_report(args.model, "robustness.json") or []
    if evaluation is None:
        raise ValueError(f"{args.model} holds no evaluation.json, so there is nothing to verify.")
    scheduler = evaluation["settings"].get("scheduler")
    if not isinstance(scheduler, dict):
        raise ValueError(
            f"evaluation.json of {args.model} cannot be verified: `settings` does not name the scheduler."
        )
    data = args.data or evaluation.get("data")
    if data is None:
        raise ValueError("evaluation.json does not say which data it is about: name them with --data.")
    split = args.split or evaluation.get("split", "test")
    for name, report in (("evaluation.json", evaluation), ("robustness.json", robustness)):
        check_weights(list_weights(report) - {None}, name, args.model, pipeline)
    metrics = load_metrics(
        pipeline,
        evaluation["features"],
        data,
        split,
        trust_remote_code=args.trust_remote_code,
        **_get_reading(evaluation, args.model),
    )
    own_scheduler = pipeline.scheduler.config
    pipeline.scheduler = PFGMPPScheduler.from_config(scheduler)
    figures = verify_evaluation(pipeline, metrics, evaluation, args.num_images, args.batch_size)
    print(format_figures("evaluation.json", figures))
    if robustness:
        pipeline.scheduler = PFGMPPScheduler.from_config(robustness[0].get("scheduler", own_scheduler))
        repeated = verify_robustness(pipeline, metrics, robustness, args.batch_size)
        print(format_figures("robustness.json", repeated))
        figures += repeated
    if not figures:
        raise ValueError(
            f"evaluation.json of {args.model} holds no Fréchet distance, which could be verified."
        )
    wrong = [figure.name for figure in figures if not figure.agrees]
    if wrong:
        reason = ""
        if evaluation.get("data_digest") not in (None, metrics.reference):
            reason = ", which was measured against other real images or over other features"
        raise ValueError(f"{args.model} does not agree with its card at {', '.join(wrong)}{reason}.")
    print("All figures agree.")


def _get_reading(evaluation: dict[str, Any], model: str) -> dict[str, Any]:
    """Return how the report's real images were read, or refuse what no report says."""
    reading = evaluation.get("reading", {})
    known = {*READING, "class_name", "label_column"}
    if not isinstance(reading, dict) or not reading.keys() <= known:
        raise ValueError(f"evaluation.json of {model} cannot be verified: its `reading` is {reading!r}.")
    return reading
