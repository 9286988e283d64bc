"""
Measure a model's samples against real images.

Draws images at each D, prints a table and writes evaluation.json. Processes share the work under
`accelerate launch -m pipeline_pfgmpp evaluate ...`. Interrupted runs resume.
"""

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

from .arguments import (
    add_drawing_arguments,
    add_measuring_arguments,
    get_call_settings,
    get_reading,
    get_scheduler_settings,
)
from .loading import check_card, check_dimensions, load_metrics, load_pipeline, load_real_images
from .parsing import parse_dimensions


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
    add_class_weights_argument(parser)
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
    from ..records.writing import write_json

    if args.write:
        check_card(args.model)
    pipeline = load_pipeline(args.model, args.variant, **get_scheduler_settings(args))
    settings = get_measuring_settings(args, pipeline)
    check_dimensions([pipeline], args.D)
    reading = get_reading(args, pipeline)
    metrics = load_metrics(
        pipeline, args.features, args.data, args.split, args.metrics, args.trust_remote_code, **reading
    )
    baseline = None
    if args.baseline_split:
        baseline = load_real_images(args.data, args.baseline_split, pipeline, **reading)
    description = describe(pipeline, **settings)
    entries = measure_dimensions(args, pipeline, metrics, args.D, settings)
    if baseline is not None:
        entries.append(evaluate_real(baseline, metrics, args.num_images, args.baseline_split))
    if not PartialState().is_main_process:
        return
    data, report = report_dimensions(args, pipeline, metrics, entries, settings)
    report |= {"data": data, "split": args.split, "data_digest": metrics.reference, "reading": reading}
    names = ("features", "metrics", "seed", "num_images", "groups", "D", "baseline_split")
    measured = {name: getattr(args, name) for name in names}
    description |= measured | {"reference": metrics.reference}
    output = Path(args.output or default_output("evaluation", args.model, description))
    write_json(output / "evaluation.json", report)
    if args.write:
        write_evaluation(args.model, report)
    print(format_evaluation(report))


def add_class_weights_argument(parser: argparse.ArgumentParser) -> None:
    """
    Add the arguments that say how often each class is drawn.

    Args:
        parser (`argparse.ArgumentParser`): The parser of a command that measures images.
    """
    parser.add_argument(
        "--match-classes",
        action="store_true",
        help="draw each class as often as the split holds it (default: all equally often)",
    )
    parser.add_argument(
        "--label-column",
        help="column of the classes, for --match-classes or --class-label (default: the only class column, or"
        " `label`)",
    )


def get_measuring_settings(args: argparse.Namespace, pipeline: Any) -> dict[str, Any]:
    """
    Return the command line's arguments for the images that are drawn.

    Args:
        args (`argparse.Namespace`): The arguments of a command that measures images.
        pipeline ([`PFGMPPPipeline`]): The model.

    Returns:
        `dict`: Arguments of [`~pipeline_pfgmpp.generation.generate`].

    Raises:
        ValueError: There is no such class, or the classes of the data are not those of the model.
    """
    settings = get_call_settings(args, pipeline)
    if args.match_classes:
        if "class_labels" in settings:
            raise ValueError("--match-classes draws all classes, and --class-label one: choose one.")
        settings["class_weights"] = _count_classes(args, pipeline)
    return settings


def _count_classes(args: argparse.Namespace, pipeline: Any) -> list[int]:
    """Count the images of each class of the model in the data."""
    from ..data import open_dataset
    from ..data.labels import MISSING, find_label_column, match_class, read_labels
    from ..generation import list_classes

    dataset = open_dataset(args.data, args.dataset_config_name, args.split)
    column = find_label_column(dataset, args.label_column)
    names = list_classes(pipeline)
    if not names or column is None:
        raise ValueError("--match-classes needs a model and data that both have classes.")
    labels = read_labels(dataset, column)
    found = Counter(labels.names[index] for index in labels.indices.tolist() if index != MISSING)
    numbers = list(names)
    counts = [0] * pipeline.num_classes
    for name, count in found.items():
        places = match_class(name, list(names.values()))
        if not places:
            raise ValueError(f"--match-classes: the model does not know the class {name!r} of the data.")
        counts[numbers[places[-1]]] += count
    if not any(counts):
        raise ValueError(f"--match-classes: no image of the split {args.split!r} has a class.")
    return counts


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
    from ..records.commands import hide_folders

    data = hide_folders(args.data)
    images = "images" if args.class_label is None else "images of that class"
    reference = f"the {len(metrics.real_features):,} {images} of the {args.split} split of `{data}`"
    return data, build_report(
        entries, pipeline, args.features, args.num_images, reference, args.command_line, **settings
    )
