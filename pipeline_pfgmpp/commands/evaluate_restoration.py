"""
Measure how near restored images come to the truth.

Restores degraded images at each D and number of steps, prints a table of PSNR and SSIM and writes
restoration.json. With the network of LPIPS, it measures that distance as well.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .arguments import (
    add_batch_size_argument,
    add_entry_arguments,
    add_guidance_argument,
    add_seed_argument,
    add_trust_argument,
    add_variant_argument,
)
from .loading import check_dimensions, choose_value_range, load_pipeline
from .parsing import (
    make_integer_parser,
    make_list_parser,
    parse_dimensions,
)


if TYPE_CHECKING:
    from ..data import ImageDataset


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """
    Add the arguments of `pfgmpp evaluate-restoration`.

    Args:
        parser (`argparse.ArgumentParser`): The parser of the command.
    """
    add = parser.add_argument
    add("model", help="a Hub id or a folder of a restoration pipeline")
    add("--data", required=True, help="data set of images or pairs: a folder or a Hub id")
    add("--split", default="test", help="split of the data set (default: %(default)s)")
    add("--image-column", help="column of the true images (default: the only image column)")
    add("--condition-column", help="column of the degraded images")
    add(
        "--degradation",
        nargs="+",
        metavar="NAME[=LEVEL]",
        help="make the degraded images instead, as in training, such as downscale=4 gaussian=0.1",
    )
    add(
        "--resolution",
        type=make_integer_parser(1),
        help="side in pixels to which images are resized, as in training (default: images keep their size)",
    )
    add(
        "--num-images",
        type=make_integer_parser(1),
        default=100,
        help="number of images, the first of the split (default: %(default)s)",
    )
    add(
        "--D",
        type=parse_dimensions,
        help="augmented dimensions, for a network that is conditioned on D, such as 16,128,inf"
        " (default: the model's)",
    )
    add(
        "--num-inference-steps",
        type=make_list_parser(
            "whole numbers from 1 separated by commas, such as 1,4,18",
            lambda number: number.is_integer() and 1 <= number <= 100_000,
        ),
        help="numbers of steps of the solver, such as 1,4,18 (default: the model's)",
    )
    add("--solver-type", help="the solver, as in pfgmpp restore (default: the model's)")
    add_entry_arguments(parser)
    add_guidance_argument(parser)
    add(
        "--lpips",
        metavar="FILE",
        help="also measure LPIPS, by a TorchScript program such as the vgg16.pt of StyleGAN2-ADA: its path,"
        " or org/name/file on the Hub",
    )
    add_trust_argument(parser)
    add_seed_argument(parser, "the degradations, and of the first image")
    add_variant_argument(parser)
    add_batch_size_argument(parser, 16)
    add(
        "--output",
        help="folder for the results (default: outputs/evaluation/MODEL-DIGEST, where the digest covers"
        " everything that they depend on)",
    )


def run(args: argparse.Namespace) -> None:
    """
    Restore images, measure them and report.

    Args:
        args (`argparse.Namespace`): Arguments of [`add_arguments`].

    Raises:
        OSError: There is no such model or data set.
        ValueError: The arguments contradict each other, or do not fit the model or the data.
    """
    from ..data import Degrader
    from ..evaluation.evaluate import choose_dimensions
    from ..evaluation.features import load_lpips
    from ..evaluation.restoration import evaluate_restoration, format_restoration, list_pairs
    from ..records.digests import default_output, describe
    from ..records.writing import write_json
    from ..scheduler_config import get_default_steps

    if (args.condition_column is None) == (args.degradation is None):
        raise ValueError("give one of --condition-column and --degradation")
    if args.degradation is not None:
        Degrader(args.degradation)  # refused before anything is loaded
    if args.trust_remote_code and args.lpips is None:
        raise ValueError("--trust-remote-code has no effect without --lpips: leave it out.")
    options = {} if args.solver_type is None else {"solver_type": args.solver_type}
    pipeline = load_pipeline(args.model, args.variant, restores=True, **options)
    check_dimensions([pipeline], args.D)
    lpips = None
    if args.lpips is not None:
        lpips = load_lpips(args.lpips, pipeline.device, args.trust_remote_code)
    data = _load_data(args, pipeline)
    pairs = list_pairs(data, args.degradation, args.seed)
    settings: dict[str, Any] = {"blend": args.blend, "guidance_scale": args.guidance_scale}
    if args.start_sigma is not None:
        settings["start_sigma"] = args.start_sigma
    dimensions = choose_dimensions(pipeline, args.D)
    steps = [int(number) for number in args.num_inference_steps or [get_default_steps(pipeline.scheduler)]]
    entries = evaluate_restoration(
        pipeline, pairs, dimensions, steps, args.batch_size, args.seed, lpips, **settings
    )
    measured = {"num_images": len(pairs), "seed": args.seed, "degradation": args.degradation}
    if lpips is not None:
        measured["lpips"] = args.lpips
    description = describe(pipeline, **settings) | measured | {"data_digest": data.digest()}
    report = {"results": entries, "command": args.command_line, "settings": description}
    drawn = {"D": [str(D) for D in dimensions], "steps": steps}
    output = Path(args.output or default_output("evaluation", args.model, description | drawn))
    write_json(output / "restoration.json", report)
    print(format_restoration(entries))


def _load_data(args: argparse.Namespace, pipeline: Any) -> ImageDataset:
    """Load the first images of the split, whole unless they are to be resized."""
    from ..data import load_images, open_dataset

    dataset = open_dataset(args.data, split=args.split)
    dataset = dataset.select(range(min(args.num_images, len(dataset))))
    channels = pipeline.image_channels
    condition_channels = pipeline.condition_channels
    options = {"image_column": args.image_column, "channels": channels}
    if args.condition_column is not None:
        options |= {
            "condition_column": args.condition_column,
            "condition_channels": condition_channels,
        }
    elif condition_channels != channels:
        raise ValueError(
            f"--degradation makes images of {channels} channels, but the network restores them from"
            f" {condition_channels}: give --condition-column."
        )
    value_range = choose_value_range(dataset, pipeline, **options)
    # Images of every size that are to be cropped, even to one pixel, are kept whole.
    size = args.resolution or 1
    return load_images(
        dataset, size, labels=False, crop=args.resolution is None, value_range=value_range, **options
    )
