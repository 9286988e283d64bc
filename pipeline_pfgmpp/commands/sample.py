"""
Draw images: a grid in one PNG, or many images in a folder or an .npz file.

The grid has one labelled row per class, or per D if several are given. With --num-images or --seeds,
one image is drawn per seed, into a folder of PNGs or an .npz file. Processes share that work under
`accelerate launch -m pipeline_pfgmpp sample ...`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .arguments import add_drawing_arguments, add_noise_argument, get_call_settings, get_scheduler_settings
from .loading import check_dimensions, load_pipeline
from .parsing import make_integer_parser, parse_dimensions


if TYPE_CHECKING:
    import PIL.Image
    import torch

    from ..pipeline_pfgmpp import PFGMPPPipeline


DEFAULT_ROWS = 8  # of a grid in which rows are not classes
MOST_ROWS = 1000  # and columns


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """
    Add the arguments of `pfgmpp sample`.

    Args:
        parser (`argparse.ArgumentParser`): The parser of the command.
    """
    parser.add_argument("model", help="a Hub id or a pipeline folder")
    parser.add_argument(
        "--output",
        default="samples.png",
        help="the .png file of the grid, or for many images a folder or an .npz file (default: %(default)s)",
    )
    parser.add_argument(
        "--num-images",
        type=make_integer_parser(1),
        help="draw this many images, with consecutive seeds from --seed on",
    )
    parser.add_argument("--seeds", help="draw one image per seed: a list such as 0-49999 or 3,5,10-12")
    parser.add_argument(
        "--columns",
        type=make_integer_parser(1, MOST_ROWS),
        default=10,
        help="images per row of the grid (default: %(default)s)",
    )
    parser.add_argument(
        "--rows",
        type=make_integer_parser(1, MOST_ROWS),
        help=f"rows of the grid, if they are neither classes nor D (default: {DEFAULT_ROWS})",
    )
    parser.add_argument(
        "--D",
        type=parse_dimensions,
        help="augmented dimension, for a network that is conditioned on D; inf is diffusion;"
        " several, such as 16,128,inf, are the rows of the grid (default: the model's)",
    )
    add_noise_argument(
        parser,
        "0",
        "strength α of the noise that is injected before each step; for several, such as 0,0.2,"
        " grids are stacked (default: %(default)s)",
    )
    add_drawing_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """
    Draw a grid, or many images.

    Args:
        args (`argparse.Namespace`): Arguments of [`add_arguments`].
    """
    if args.num_images is None and args.seeds is None:
        sample_grid(args)
    else:
        sample_many(args)


def sample_many(args: argparse.Namespace) -> None:
    """
    Draw one image per seed into a folder or an `.npz` file.

    Args:
        args (`argparse.Namespace`): Arguments of [`add_arguments`].

    Raises:
        ValueError: The arguments contradict each other, or do not fit the model.
    """
    from ..generation import sample_to_files

    if args.output.lower().endswith(".png"):
        raise ValueError(f"--output must be a folder or end in .npz for many images, but is {args.output}.")
    if len(args.D or []) > 1 or len(args.noise) > 1:
        raise ValueError("Many images are drawn at only one --D and one --noise.")
    for option in ("columns", "rows"):
        if option in args.given:
            raise ValueError(f"--{option} belongs to a grid: leave it out with --num-images or --seeds.")
    seeds = _list_seeds(args)
    pipeline = _load_pipeline(args)
    settings = get_call_settings(args, pipeline)
    if args.D:
        settings["D"] = args.D[0]
    if args.noise[0]:
        settings["noise"] = args.noise[0]
    sample_to_files(pipeline, seeds, args.output, args.batch_size, args.command_line, **settings)
    print(f"Drew {len(seeds)} images: {Path(args.output).resolve()}")


def _load_pipeline(args: argparse.Namespace) -> PFGMPPPipeline:
    """Load the model, and refuse a D that it does not have."""
    pipeline = load_pipeline(args.model, args.variant, **get_scheduler_settings(args))
    check_dimensions([pipeline], args.D)
    return pipeline


def _list_seeds(args: argparse.Namespace) -> list[int]:
    """List the seeds that `--seeds`, or `--seed` and `--num-images`, name."""
    from ..generation import parse_seeds

    if args.seeds is None:
        return list(range(args.seed, args.seed + args.num_images))
    if "seed" in args.given:
        raise ValueError("--seed and --seeds contradict each other: leave one of them out.")
    seeds = parse_seeds(args.seeds)
    if args.num_images not in (None, len(seeds)):
        raise ValueError(
            f"--num-images is {args.num_images}, but --seeds names {len(seeds)}; leave one of them out."
        )
    return seeds


class Row(NamedTuple):
    """
    A row of a grid.

    Args:
        label (`str` or `None`): What to write to the left of it.
        seeds (`list[int]`): Seeds of its images.
        settings (`dict`): Arguments of the pipeline's call that only this row has.
    """

    label: str | None
    seeds: list[int]
    settings: dict[str, Any]


def sample_grid(args: argparse.Namespace) -> None:
    """
    Draw a grid into one PNG.

    Args:
        args (`argparse.Namespace`): Arguments of [`add_arguments`].

    Raises:
        ValueError: An argument is out of range, or does not fit the model.
    """
    from ..pictures.grid import PICTURE_MODES
    from ..records.writing import replace_file

    if not args.output.lower().endswith(".png"):
        raise ValueError(
            f"--output must end in .png for a grid, but is {args.output}; --num-images draws many images."
        )
    pipeline = _load_pipeline(args)
    channels = pipeline.image_channels
    if channels not in PICTURE_MODES:
        raise ValueError(
            f"A grid shows images of 1, 3 or 4 channels, but {args.model} has {channels}: draw them into an"
            " .npz file with --num-images and --output."
        )
    if len(args.D or []) > 1:
        rows = _plan_rows_by_dimension(pipeline, args)
    else:
        rows = _plan_rows_by_class(pipeline, args)
    images = _draw_rows(pipeline, rows, args)
    picture = _arrange_panels(images, rows, args)
    output = Path(args.output).resolve()
    with replace_file(output) as partial:
        picture.save(partial, format="PNG")
    print(f"Drew {len(args.noise) * len(rows) * args.columns} images: {output}")


def _plan_rows_by_dimension(pipeline: PFGMPPPipeline, args: argparse.Namespace) -> list[Row]:
    """Plan one row per D, with the same seeds and classes in each."""
    from ..generation import list_classes

    if args.rows is not None:
        raise ValueError("--rows has no effect with several --D, which are the rows: leave it out.")
    seeds = [args.seed + column for column in range(args.columns)]
    settings = {}
    classes = list(list_classes(pipeline))
    if classes and args.class_label is None:
        settings["class_labels"] = [classes[column % len(classes)] for column in range(args.columns)]
    return [Row(f"D = {D:g}", seeds, {"D": D, **settings}) for D in args.D]


def _plan_rows_by_class(pipeline: PFGMPPPipeline, args: argparse.Namespace) -> list[Row]:
    """Plan one row per class; rows of one class, or of an unconditional model, differ by their seeds."""
    from ..generation import list_classes

    names = list_classes(pipeline)
    classes: list[int | None]
    if names and args.class_label is None:
        if args.rows is not None:
            raise ValueError(
                "--rows has no effect on this model, whose classes are the rows: leave it out, or choose one"
                " class with --class-label."
            )
        classes = list(names)
    else:
        chosen = get_call_settings(args, pipeline).get("class_labels")
        classes = [chosen] * (args.rows or DEFAULT_ROWS)
    D = args.D[0] if args.D else None
    rows = []
    for index, label in enumerate(classes):
        start = args.seed + index * args.columns
        settings: dict[str, Any] = {"D": D}
        text = None
        if label is not None:
            settings["class_labels"] = label
            text = names[label]
        rows.append(Row(text, list(range(start, start + args.columns)), settings))
    return rows


def _draw_rows(pipeline: PFGMPPPipeline, rows: list[Row], args: argparse.Namespace) -> list[torch.Tensor]:
    """Draw the images of each row, at one noise after the other."""
    import torch
    from tqdm.auto import tqdm

    from ..generation import generate

    call_settings = get_call_settings(args, pipeline)
    panels = [(noise, row) for noise in args.noise for row in rows]
    drawn = []
    for noise, row in tqdm(panels, "Sampling", unit="row"):
        settings = call_settings | row.settings
        batches = generate(pipeline, row.seeds, args.batch_size, None, noise, **settings)
        drawn.append(torch.cat([images for _, images in batches]))
    return drawn


def _arrange_panels(images: list[torch.Tensor], rows: list[Row], args: argparse.Namespace) -> PIL.Image.Image:
    """Arrange the images of all rows in one grid per noise, and stack the grids if there are several."""
    import torch

    from ..pictures.grid import draw_grid, stack_panels, to_pil

    labels = [row.label for row in rows if row.label is not None]
    panels = {}
    for index, noise in enumerate(args.noise):
        panel = torch.cat(images[index * len(rows) : (index + 1) * len(rows)])
        title = f"noise of {noise:g} injected before each step" if noise else "undisturbed"
        panels[title] = draw_grid(to_pil(panel), args.columns, labels or None)
    if len(panels) > 1:
        return stack_panels(panels)
    (grid,) = panels.values()
    return grid
