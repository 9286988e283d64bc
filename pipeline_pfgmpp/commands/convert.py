"""
Turn a published checkpoint into a pipeline folder.

The checkpoint is a PFGM++, EDM or PPFM file (.pt or .pkl), of which no code is run, or a DDPM of diffusers.
"""

import argparse
import math

from .parsing import make_number_parser, parse_dimension, parse_positive


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """
    Add the arguments of `pfgmpp convert`.

    Args:
        parser (`argparse.ArgumentParser`): The parser of the command.
    """
    parser.add_argument("checkpoint", help="the file; with --from-diffusers, a Hub id or a pipeline folder")
    parser.add_argument("output_dir", help="the folder to write; it must not exist or be empty")
    parser.add_argument(
        "--from-diffusers", action="store_true", help="convert a DDPM of diffusers instead of a file"
    )
    parser.add_argument(
        "--dtype",
        choices=["float32", "float16", "bfloat16"],
        default="float32",
        help="type of the weights (default: %(default)s)",
    )
    parser.add_argument(
        "--weights",
        choices=["ema", "net"],
        default="ema",
        help="ema for the moving average, net for the network as trained (default: %(default)s)",
    )
    parser.add_argument(
        "--D",
        type=parse_dimension,
        help="augmented dimension, if the file does not state it; inf is diffusion",
    )
    parser.add_argument(
        "--sigma-data",
        type=parse_positive,
        help="standard deviation of the data, if the file does not state it",
    )
    parser.add_argument(
        "--value-range",
        type=make_number_parser("a finite number", math.isfinite),
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="the data's own values of black and white, such as -1024 3071 (default: 0 1)",
    )


def run(args: argparse.Namespace) -> None:
    """
    Convert a checkpoint.

    Args:
        args (`argparse.Namespace`): Arguments of [`add_arguments`].
    """
    if args.from_diffusers:
        for option in ("weights", "sigma_data", "value_range"):
            if option in args.given:
                raise ValueError(
                    f"--{option.replace('_', '-')} has no effect on a DDPM of diffusers: leave it out with"
                    " --from-diffusers."
                )
    import torch

    from ..conversion import convert_checkpoint, convert_diffusers

    dtype = getattr(torch, args.dtype)
    if args.from_diffusers:
        convert_diffusers(args.checkpoint, args.output_dir, dtype, args.D)
    else:
        convert_checkpoint(
            args.checkpoint,
            args.output_dir,
            dtype,
            args.weights,
            args.D,
            args.sigma_data,
            args.value_range,
        )
    print(f"Converted {args.checkpoint}: {args.output_dir}")
