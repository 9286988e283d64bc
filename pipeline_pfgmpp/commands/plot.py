"""
Plot the log of a training run.

Writes log.png into the run's folder: the loss, also by noise level, the gradient norm, the learning
rate, the speed and, if they were measured, the loss on the validation split and the Fréchet distance.
"""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """
    Add the arguments of `pfgmpp plot`.

    Args:
        parser (`argparse.ArgumentParser`): The parser of the command.
    """
    parser.add_argument("run", type=Path, help="the --output_dir of a training run")


def run(args: argparse.Namespace) -> None:
    """
    Plot the log.

    Args:
        args (`argparse.Namespace`): Arguments of [`add_arguments`].
    """
    from ..pictures.plots import plot_log
    from ..training.log import read_log

    try:
        entries = read_log(args.run)
    except OSError as error:
        raise ValueError(f"{args.run} holds no log of a training run: {error}") from None
    if not entries:
        raise ValueError(f"{args.run} holds no log of a training run: its log is empty.")
    output = args.run / "log.png"
    plot_log(entries, output)
    print(f"Plotted {len(entries)} steps: {output}")
