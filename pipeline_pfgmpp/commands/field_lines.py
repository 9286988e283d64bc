"""
Draw field lines of a few charges, without a network.

Writes pictures of the exact field at several D, of the paths of samples (also animated), and of how the
norm of the noise is distributed.
"""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """
    Add the arguments of `pfgmpp field-lines`.

    Args:
        parser (`argparse.ArgumentParser`): The parser of the command.
    """
    parser.add_argument("output", type=Path, help="folder for the pictures")
    parser.add_argument(
        "--shape",
        default="heart",
        help="shape of the data: heart, spiral, moons or ring (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> None:
    """
    Draw the pictures.

    Args:
        args (`argparse.Namespace`): Arguments of [`add_arguments`].
    """
    from ..pictures.field_lines import (
        SHAPES,
        animate_trajectories,
        plot_field_lines,
        plot_norms,
        plot_trajectories,
    )

    if args.shape not in SHAPES:
        raise ValueError(f"--shape must be one of {', '.join(SHAPES)}, but is {args.shape!r}.")
    args.output.mkdir(parents=True, exist_ok=True)
    plot_field_lines(args.output / "field_lines.png")
    plot_trajectories(args.output / "trajectories.png", args.shape)
    plot_norms(args.output / "norms.png")
    animate_trajectories(args.output / "trajectories.gif", args.shape)
    print(f"Wrote field_lines.png, trajectories.png, norms.png and trajectories.gif: {args.output}")
