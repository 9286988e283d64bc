"""
Compute a power-function average of any width after training.

The average is combined from the snapshots of a run that was trained with --ema_width, and is stored in
the run's pipeline as a variant of its weights.
"""

import argparse
import shlex
from pathlib import Path

from .parsing import make_integer_parser, make_number_parser


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """
    Add the arguments of `pfgmpp average`.

    Args:
        parser (`argparse.ArgumentParser`): The parser of the command.
    """
    parser.add_argument("run", type=Path, help="the --output_dir of a finished training run with --ema_width")
    parser.add_argument(
        "--width",
        type=make_number_parser("a number between 0 and 0.289", lambda width: 0 < width < 0.289),
        required=True,
        help="sigma_rel, between 0 and 0.289",
    )
    parser.add_argument(
        "--step", type=make_integer_parser(1, 10**12), help="optimisation step (default: the last)"
    )


def run(args: argparse.Namespace) -> None:
    """
    Compute the average, and print how to load it.

    Args:
        args (`argparse.Namespace`): Arguments of [`add_arguments`].
    """
    from ..training.ema import reconstruct_average

    variant = reconstruct_average(args.run, args.width, args.step)
    print(f"Draw from it with `pfgmpp sample {shlex.quote(str(args.run))} --variant {variant}`.")
    print(f'Load it with DiffusionPipeline.from_pretrained("{args.run}", variant="{variant}")')
