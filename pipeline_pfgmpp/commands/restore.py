"""
Restore pictures, arrays and DICOM files.

What is written has the type, the depth and the metadata of what was read. Files that cannot be restored
are named, and the others go on. Interrupted runs resume.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from .arguments import (
    add_batch_size_argument,
    add_entry_arguments,
    add_guidance_argument,
    add_seed_argument,
    add_solver_arguments,
    choose_class,
    get_scheduler_settings,
)
from .loading import check_dimensions, load_pipeline
from .parsing import make_integer_parser, parse_dimension


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """
    Add the arguments of `pfgmpp restore`.

    Args:
        parser (`argparse.ArgumentParser`): The parser of the command.
    """
    parser.add_argument("model", help="a Hub id or a folder of a restoration pipeline")
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="IN",
        help="PNG, TIFF, JPEG, .npy or DICOM files, or folders that are searched for them",
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="the folder of the restored files")
    add_entry_arguments(parser)
    add_guidance_argument(parser)
    parser.add_argument(
        "--D",
        type=parse_dimension,
        help="augmented dimension, for a network that is conditioned on D; inf is diffusion"
        " (default: the model's)",
    )
    parser.add_argument(
        "--tile-size",
        type=make_integer_parser(1),
        help="side in pixels of the overlapping tiles on which the network is called one after the other, for"
        " large images (default: whole images)",
    )
    parser.add_argument(
        "--num-samples",
        type=make_integer_parser(1, 10_000),
        default=1,
        help="samples of the posterior per file; with several, their mean and standard deviation are written"
        " too (default: %(default)s)",
    )
    add_solver_arguments(parser)
    add_seed_argument(parser, "the first sample of each file")
    add_batch_size_argument(parser, 1)


def run(args: argparse.Namespace) -> None:
    """
    Restore files into a folder.

    Args:
        args (`argparse.Namespace`): Arguments of [`add_arguments`].

    Raises:
        OSError: A file does not exist, or cannot be written.
        ValueError: The arguments contradict each other or do not fit the model, or a file could not be
            restored.
    """
    from ..generation.restoration import list_sources, restore_to_files
    from ..pipeline_pfgmpp_restoration import is_deterministic

    output = Path(args.output)
    sources = list_sources(args.inputs, output)
    pipeline = load_pipeline(args.model, args.variant, restores=True, **get_scheduler_settings(args))
    check_dimensions([pipeline], None if args.D is None else [args.D])
    settings = _get_call_settings(args, pipeline)
    steps = settings["num_inference_steps"]
    if args.num_samples > 1 and args.start_sigma is not None and is_deterministic(pipeline.scheduler, steps):
        raise ValueError(
            f"--num-samples must be 1 with --start-sigma: {steps} steps of"
            f" {pipeline.scheduler.config.solver_type} draw nothing at random."
        )
    failed = restore_to_files(
        pipeline, sources, output, _print_problem, args.num_samples, args.seed, args.batch_size, **settings
    )
    restored = len(sources) - failed
    if failed:
        raise ValueError(f"{failed} of {len(sources)} files could not be restored; see above.")
    print(f"Restored {restored} files: {output.resolve()}")


def _get_call_settings(args: argparse.Namespace, pipeline: Any) -> dict[str, Any]:
    """Return the command line's arguments for the call of the pipeline."""
    from ..scheduler_config import get_default_steps

    settings: dict[str, Any] = {
        "num_inference_steps": args.num_inference_steps or get_default_steps(pipeline.scheduler),
        "blend": args.blend,
        "guidance_scale": args.guidance_scale,
    }
    for name in ("start_sigma", "D", "tile_size"):
        if getattr(args, name) is not None:
            settings[name] = getattr(args, name)
    if args.class_label is not None:
        settings["class_labels"] = choose_class(pipeline, args.class_label)
    return settings


def _print_problem(message: str) -> None:
    """Print why a file cannot be restored, above the progress bar."""
    from tqdm.auto import tqdm

    from ..hub.reading import escape_controls

    tqdm.write(f"pfgmpp: {escape_controls(message)}", file=sys.stderr)
