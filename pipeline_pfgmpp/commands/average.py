"""
Compute a power-function average of any width after training.

The average is combined from the snapshots of a run that was trained with --ema_width, and is stored in
the run's pipeline as a variant of its weights.
"""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """
    Add the arguments of `pfgmpp average`.

    Args:
        parser (`argparse.ArgumentParser`): The parser of the command.
    """
    parser.add_argument("run", type=Path, help="the --output_dir of a finished training run with --ema_width")
    parser.add_argument("--width", type=float, required=True, help="sigma_rel, between 0 and 0.289")
    parser.add_argument("--step", type=int, help="optimisation step (default: the last)")


def run(args: argparse.Namespace) -> None:
    """
    Compute the average, and print how to load it.

    Args:
        args (`argparse.Namespace`): Arguments of [`add_arguments`].
    """
    from ..training.ema import reconstruct_average

    variant = reconstruct_average(args.run, args.width, args.step)
    print(f'Load it with DiffusionPipeline.from_pretrained("{args.run}", variant="{variant}")')
