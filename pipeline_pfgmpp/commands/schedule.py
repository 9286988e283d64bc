"""
Search the noise levels for a number of steps, and write them into the model.

The levels lower the error of a solver against a fine solution from the same latents, and are judged on
latents that were not searched on. Whoever loads the model and asks for this solver and this number of
steps samples with them. Nothing is trained. Interrupted searches resume.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING

from .arguments import (
    add_guidance_argument,
    add_interval_argument,
    add_variant_argument,
    get_guidance_settings,
)
from .loading import check_dimensions, list_trained_dimensions, load_pipeline
from .parsing import make_integer_parser, parse_dimensions, parse_positive


if TYPE_CHECKING:
    from ..generation.noise_levels import Outcome
    from ..pipeline_pfgmpp import PFGMPPPipeline


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """
    Add the arguments of `pfgmpp schedule`.

    Args:
        parser (`argparse.ArgumentParser`): The parser of the command.
    """
    parser.add_argument("model", help="a pipeline folder, whose scheduler is changed")
    add_variant_argument(parser)
    parser.add_argument(
        "--num-inference-steps",
        type=make_integer_parser(2, 32),
        required=True,
        help="steps of the solver, from 2 to 32; heun calls the network twice per step",
    )
    parser.add_argument(
        "--solver-type",
        default="dpmpp_3m",
        help="heun, euler, dpmpp_2m or dpmpp_3m (default: %(default)s)",
    )
    parser.add_argument(
        "--D",
        type=parse_dimensions,
        help="augmented dimensions to search for, one schedule for all, for a network that is conditioned on"
        " D (default: those of 16,128,2048,inf that it was trained for)",
    )
    add_guidance_argument(parser)
    add_interval_argument(parser)
    parser.add_argument(
        "--num-latents",
        type=make_integer_parser(2, 10_000),
        default=32,
        help="latents to search on, which the network sees in one batch; as many others judge what is found"
        " (default: %(default)s)",
    )
    parser.add_argument(
        "--max-time",
        type=parse_positive,
        default=15.0,
        metavar="MINUTES",
        help="when to end the refinement of the levels with what it has; two fine solutions of 64 steps come"
        " before it (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> None:
    """
    Search the levels, and write them if they are better at every D.

    Args:
        args (`argparse.Namespace`): Arguments of [`add_arguments`].

    Raises:
        ValueError: The model is not a folder with a PFGMPPScheduler, an argument does not fit it, or no
            better levels were found.
    """
    from ..generation.noise_levels import get_entries, search_levels, write_levels
    from ..records.digests import default_output, describe
    from ..scheduling_pfgmpp import PFGMPPScheduler

    path = _locate_config(args.model)
    pipeline = load_pipeline(args.model, args.variant)
    check_dimensions([pipeline], args.D)
    dimensions = _choose_dimensions(pipeline, args.D)
    settings = get_guidance_settings(args)
    own = pipeline.scheduler
    # What the search depends on, which the levels that it writes are no part of
    pipeline.scheduler = PFGMPPScheduler.from_config(own.config, sigmas=None, **get_entries(args.solver_type))
    description = describe(
        pipeline,
        solver_type=args.solver_type,
        num_inference_steps=args.num_inference_steps,
        num_latents=args.num_latents,
        dimensions=[str(D) for D in dimensions],
        **settings,
    )
    pipeline.scheduler = own
    folder = default_output("schedule", args.model, description)
    end = time.monotonic() + 60 * args.max_time
    outcome = search_levels(
        pipeline,
        args.solver_type,
        args.num_inference_steps,
        folder,
        dimensions,
        args.num_latents,
        lambda: time.monotonic() > end,
        **settings,
    )
    print(_format_outcome(outcome))
    if not outcome.is_finished:
        print(f"The search ended after {args.max_time:g} minutes; the same command continues it.")
    current = (own.config.sigmas or {}).get(args.solver_type, {}).get(str(args.num_inference_steps))
    if current != outcome.levels and any(outcome.after[D] >= outcome.before[D] for D in outcome.after):
        raise ValueError(
            "These levels are not better at every D than those that the model has, so nothing was written;"
            " search on more latents with --num-latents."
        )
    write_levels(path, args.solver_type, outcome.levels)
    print(
        f"Wrote {path}. Draw with `pfgmpp sample {shlex.quote(args.model)} --solver-type {args.solver_type}"
        f" --num-inference-steps {args.num_inference_steps}`."
    )


def _locate_config(model: str) -> Path:
    """Return the configuration of a model's scheduler, or refuse a model that cannot be changed here."""
    if not Path(model).is_dir():
        raise ValueError(
            f"{model} is not a local folder: download it with `hf download {model} --local-dir FOLDER`, then"
            " search in FOLDER."
        )
    path = Path(model, "scheduler", "scheduler_config.json")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        name = config["_class_name"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(f"{model} is not a pipeline folder: it has no readable {path.name}.") from None
    if name != "PFGMPPScheduler":
        raise ValueError(f"The scheduler of {model} must be a PFGMPPScheduler to keep levels, but is {name}.")
    if config.get("solver_type") == "consistency":
        raise ValueError(
            f"{model} is a model of few calls, which follows no field lines: search for the denoiser that it"
            " was tuned from."
        )
    return path


def _choose_dimensions(pipeline: PFGMPPPipeline, asked: list[float] | None) -> list[float]:
    """Return the augmented dimensions to search for."""
    own = pipeline.scheduler.config.D
    own = math.inf if own is None else own
    if not pipeline.unet.config.get("d_conditioning"):
        return [own]
    return asked or list_trained_dimensions([pipeline]) or [own]


def _format_outcome(outcome: Outcome) -> str:
    """Format the levels and a table of the errors."""
    from ..records.dimensions import format_dimension

    lines = [
        "Noise levels: " + ", ".join(f"{level:g}" for level in outcome.levels),
        "Root mean square error to the fine solution, on latents that were not searched on:",
        f"{'D':>6}  {'before':>8}  {'found':>8}",
    ]
    for D, error in outcome.after.items():
        lines.append(f"{format_dimension(D):>6}  {outcome.before[D]:8.4f}  {error:8.4f}")
    return "\n".join(lines)
