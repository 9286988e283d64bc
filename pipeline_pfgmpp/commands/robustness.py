"""
Measure how quality falls under noise, rounded weights and fewer steps, at several D.

Measures the Fréchet distance against injected noise, bits per weight and calls of the network, and
writes tables, plots and pictures with one line per D. Processes share the work under
`accelerate launch -m pipeline_pfgmpp robustness ...`. Interrupted runs resume.
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

from .arguments import (
    add_batch_size_argument,
    add_measuring_arguments,
    add_noise_argument,
    add_variant_argument,
    get_reading,
)
from .loading import (
    check_card,
    check_dimensions,
    list_trained_dimensions,
    load_metrics,
    load_pipeline,
)
from .parsing import make_list_parser, parse_dimensions


COMPARED = (16.0, 64.0, 128.0, 2048.0, math.inf)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """
    Add the arguments of `pfgmpp robustness`.

    Args:
        parser (`argparse.ArgumentParser`): The parser of the command.
    """
    parser.add_argument("models", nargs="+", metavar="MODEL", help="Hub ids or pipeline folders")
    add_measuring_arguments(parser, num_images=1000, groups=3)
    add_variant_argument(parser)
    parser.add_argument(
        "--D",
        type=parse_dimensions,
        help="augmented dimensions, for networks that are conditioned on D (default: those of"
        " 16,64,128,2048,inf that they were trained for)",
    )
    add_noise_argument(
        parser,
        "0,0.1,0.2,0.3",
        "strengths α of the noise that is injected before each step (default: %(default)s)",
        may_be_empty=True,
    )
    parser.add_argument(
        "--bits",
        type=make_list_parser(
            "whole numbers from 1 to 24, separated by commas",
            lambda bits: bits in range(1, 25),
            may_be_empty=True,
        ),
        default="9,8,7,6,5",
        help="bits per weight (default: %(default)s)",
    )
    parser.add_argument(
        "--nfe",
        type=make_list_parser(
            "whole numbers from 1 to 100,000, separated by commas",
            lambda nfe: nfe in range(1, 100_001),
            may_be_empty=True,
        ),
        default="35,19,11,7",
        help="calls of the network; the largest number is used for noise and bits (default: %(default)s)",
    )
    add_batch_size_argument(parser, 50)
    parser.add_argument(
        "--output",
        help="folder for the results (default: outputs/robustness/MODEL-DIGEST, where the digest covers"
        " everything that they depend on)",
    )


def run(args: argparse.Namespace) -> None:
    """
    Measure models under every disturbance and report.

    Args:
        args (`argparse.Namespace`): Arguments of [`add_arguments`].
    """
    from accelerate import PartialState

    from ..evaluation import robustness
    from ..evaluation.evaluate import choose_dimensions
    from ..evaluation.reports import format_robustness, list_panels, write_robustness
    from ..pictures.plots import plot_robustness
    from ..records.digests import default_output, describe

    if len(set(args.models)) < len(args.models):
        raise ValueError(f"A model is named twice: {' '.join(args.models)}.")
    settings = robustness.list_settings(args.noise, args.bits, args.nfe)
    if args.write:
        if len(args.models) > 1:
            raise ValueError("--write needs one model, because each model has a card of its own.")
        check_card(args.models[0])
    pipelines = {}
    for name, model in zip(_name_models(args.models), args.models):
        pipelines[name] = load_pipeline(model, args.variant)
    check_dimensions(list(pipelines.values()), args.D)
    asked = args.D or list_trained_dimensions(list(pipelines.values()), COMPARED)
    first = next(iter(pipelines.values()))
    for name, pipeline in pipelines.items():
        if (pipeline.image_channels, pipeline.image_size) != (first.image_channels, first.image_size):
            raise ValueError(
                f"{name} draws images of another size or of other channels than {args.models[0]}."
            )
    metrics = load_metrics(
        first,
        args.features,
        args.data,
        args.split,
        trust_remote_code=args.trust_remote_code,
        **get_reading(args, first),
    )
    description = {
        "models": {name: describe(pipeline) for name, pipeline in pipelines.items()},
        "reference": metrics.reference,
        "num_images": args.num_images,
    }
    output = Path(args.output or default_output("robustness", args.models[0], description))
    entries = robustness.measure(
        pipelines, asked, settings, metrics, output, args.num_images, args.groups, args.batch_size
    )
    if not PartialState().is_main_process:
        return
    (output / "robustness.md").write_text(format_robustness(entries), encoding="utf-8")
    plot_robustness(list_panels(entries), output / "robustness.png")
    dimensions = choose_dimensions(first, asked)
    robustness.draw_noise_grid(
        first, dimensions, args.noise or [0.0], output / "noise.png", nfe=settings[0].nfe
    )
    if args.write:
        write_robustness(args.models[0], entries, output, args.command_line)
    print(f"Wrote robustness.json, robustness.md, robustness.png and noise.png: {output.resolve()}")


def _name_models(models: Sequence[str]) -> Sequence[str]:
    """Name models by the last part of their paths, or by whole paths if the last parts are not unique."""
    names = [Path(model).name for model in models]
    return names if len(set(names)) == len(names) else models
