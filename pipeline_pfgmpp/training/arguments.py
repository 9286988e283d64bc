"""
The arguments of train_accelerate.py: how a file gives them, and checks that none is out of range and
none is ignored.
"""

import argparse
import json
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from ..data import Degrader
from ..preconditioning import check_preconditioning
from ..unet_pfgmpp import PRESETS
from .recipes import LATENT, TUNING


class _Need(NamedTuple):
    """What some arguments need, in words and as a test, so that they have an effect."""

    names: tuple[str, ...]
    reason: str
    is_met: Callable[[argparse.Namespace], object]


_NEEDS = (
    _Need(
        ("label_dropout", "label_column", "balance_classes"),
        "without --class_conditional",
        lambda args: args.class_conditional or args.pretrained_model_name_or_path,
    ),
    _Need(("condition_channels",), "without --condition_column", lambda args: args.condition_column),
    _Need(
        ("condition_dropout",),
        "without --condition_column or --degradation",
        lambda args: args.condition_column or args.degradation,
    ),
    _Need(
        ("resolution",),
        "together with --crop_size, which a preset may set",
        lambda args: args.crop_size in (None, args.resolution),
    ),
    _Need(("shuffle_window",), "without --streaming", lambda args: args.streaming),
    _Need(("balance_classes",), "with --streaming", lambda args: not args.streaming),
    _Need(
        ("lr_decay_images",),
        "without --lr_scheduler inverse_sqrt",
        lambda args: args.lr_scheduler == "inverse_sqrt",
    ),
    _Need(
        ("lr_warmup_images",), "together with --lr_warmup_steps", lambda args: args.lr_warmup_steps is None
    ),
    _Need(
        ("consistency_stages", "consistency_first_stage", "huber_c"),
        "without --objective consistency",
        lambda args: args.objective == "consistency",
    ),
    _Need(
        ("teacher_model_name_or_path",),
        "without --objective consistency or matching",
        lambda args: args.objective != "perturbation",
    ),
    _Need(
        ("dropout", "uncertainty_weighting"),
        "with --objective matching",
        lambda args: args.objective != "matching",
    ),
    _Need(
        ("random_flip", "random_turn", "validation_split"),
        "with --objective matching, which looks at no images but degraded ones",
        lambda args: args.objective != "matching" or args.condition_column or args.degradation,
    ),
    _Need(
        ("guidance_scale",),
        "without --teacher_model_name_or_path",
        lambda args: args.teacher_model_name_or_path,
    ),
    _Need(("guidance_interval",), "without --guidance_scale", lambda args: args.guidance_scale != 1),
    _Need(
        ("fid_images", "fid_features", "fid_num_inference_steps"),
        "without --fid_steps",
        lambda args: args.fid_steps,
    ),
    _Need(("ema_snapshot_steps",), "without --ema_width", lambda args: args.ema_width),
    _Need(("hub_model_id",), "without --push_to_hub", lambda args: args.push_to_hub),
    _Need(("validation_split",), "with --logging_steps 0", lambda args: args.logging_steps),
    _Need(
        ("report_to",),
        "with --logging_steps 0 and without --fid_steps",
        lambda args: args.logging_steps or args.fid_steps,
    ),
)

# Arguments that are no settings of the loop, which checks its own.
_RANGES: dict[str, tuple[str, Callable[[float], bool]]] = {
    "label_dropout": ("in [0, 1]", lambda value: 0 <= value <= 1),
    "dropout": ("in [0, 1)", lambda value: 0 <= value < 1),
    "consistency_stages": ("at least 1", lambda value: value >= 1),
    "huber_c": ("at least 0", lambda value: 0 <= value < math.inf),
    "guidance_scale": ("in [-1000, 1000]", lambda value: -1000 <= value <= 1000),
    "sigma_max": ("positive", lambda value: 0 < value < math.inf),
    "sigma_data": ("positive", lambda value: 0 < value < math.inf),
    "max_noise_norm": ("positive", lambda value: 0 < value < math.inf),
    "shuffle_window": ("at least 1", lambda value: value >= 1),
    "dataloader_num_workers": ("at least 1", lambda value: value >= 1),
    "channels": ("at least 1", lambda value: value >= 1),
    "condition_channels": ("at least 1", lambda value: value >= 1),
}


def read_config(path: str) -> dict[str, Any]:
    """
    Read a YAML file of arguments by name.

    Args:
        path (`str`): The file.

    Returns:
        `dict[str, Any]`: Values by name.

    Raises:
        OSError: The file cannot be opened.
        ValueError: It holds something else.
        yaml.YAMLError: It is no YAML.
    """
    config = yaml.safe_load(Path(path).read_text())
    if not isinstance(config, dict):
        raise ValueError("it does not hold `name: value` pairs")
    return config


def format_arguments(config: Mapping[str, Any], parser: argparse.ArgumentParser) -> list[str]:
    """
    Format arguments by name as a command line.

    What is null, an empty list or false is left out, except for switches with a negative form.

    Args:
        config (`Mapping[str, Any]`): Values by name.
        parser (`argparse.ArgumentParser`): The parser of the command line.

    Returns:
        `list[str]`: The command line.
    """
    negatives = re.findall(r"--no-(\w+)", parser.format_usage())
    arguments: list[str] = []
    for name, value in config.items():
        if value is True:
            arguments.append(f"--{name}")
        elif value is False and name in negatives:
            arguments.append(f"--no-{name}")
        elif isinstance(value, list):
            arguments += [f"--{name}", *map(_format_value, value)] if value else []
        elif value is not None and value is not False:
            arguments.append(f"--{name}={_format_value(value)}")
    return arguments


def _format_value(value: Any) -> str:
    """Format a number without an exponent: argparse takes -1e-05 for the name of an argument."""
    return f"{Decimal(repr(value)):f}" if isinstance(value, float) else str(value)


def check_file(config: Mapping[str, Any], defaults: Mapping[str, Any], written: Collection[str]) -> None:
    """
    Check that a file of arguments does not try to undo what a preset sets by a null or false.

    Args:
        config (`Mapping[str, Any]`): What the file holds.
        defaults (`Mapping[str, Any]`): What the preset sets.
        written (`Collection[str]`): Names of the arguments on the whole command line.

    Raises:
        ValueError: It does.
    """
    for name, value in config.items():
        preset = defaults.get(name)
        if name not in written and preset is not None and preset != value:
            raise ValueError(
                f"argument --config: `{name}: {json.dumps(value)}` cannot undo the preset, which sets"
                f" {preset}: give a value, or another preset"
            )


def list_names(argv: Sequence[str]) -> set[str]:
    """
    List the arguments that a command line gives.

    Args:
        argv (`Sequence[str]`): The command line.

    Returns:
        `set[str]`: Their names, without dashes, also of negative forms such as `--no-random_flip`.
    """
    options = [text.partition("=")[0] for text in argv if text.startswith("--")]
    return {option.removeprefix("--").removeprefix("no-") for option in options}


def check_ranges(args: argparse.Namespace) -> None:
    """
    Check the numbers that are no settings of the training loop.

    Args:
        args (`argparse.Namespace`): The arguments of train_accelerate.py.

    Raises:
        ValueError: One is out of range.
    """
    for name, (allowed, test) in _RANGES.items():
        value = getattr(args, name)
        if value is not None and not test(value):
            raise ValueError(f"--{name} must be {allowed}, but is {value:g}")


def check_effects(args: argparse.Namespace, given: Collection[str]) -> None:
    """
    Check that every argument that was given has an effect.

    Args:
        args (`argparse.Namespace`): The arguments of train_accelerate.py.
        given (`Collection[str]`): Names of those that were given, not left at their defaults.

    Raises:
        ValueError: One would be ignored.
    """
    for need in _NEEDS:
        for name in need.names:
            value = getattr(args, name)
            if name in given and not need.is_met(args):
                values = value if isinstance(value, list) else [value]
                stated = f"--{name}" if value is True else f"--{name} {' '.join(map(str, values))}"
                raise ValueError(f"{stated} has no effect {need.reason}: leave it out")


def check_arguments(args: argparse.Namespace) -> None:
    """
    Check that arguments do not contradict each other.

    Args:
        args (`argparse.Namespace`): The arguments of train_accelerate.py.

    Raises:
        ValueError: Some do.
    """
    if (args.dataset_name is None) == (args.train_data_dir is None):
        raise ValueError("give one of --dataset_name and --train_data_dir")
    if args.validation_split is not None and args.validation_split == args.split:
        raise ValueError(f"--validation_split {args.split} is the split that is trained on")
    _check_pairs(args)
    if args.standardize:
        _check_fields(args)
    if args.vae_model_name_or_path:
        check_encoded(args)
    if args.reference_batch_size and args.class_conditional:
        raise ValueError(
            "--reference_batch_size needs a network without classes: its field is that of all images"
        )
    if args.reference_batch_size and args.objective != "perturbation":
        raise ValueError("--reference_batch_size needs --objective perturbation")
    if args.objective == "matching":
        for name in ("teacher_model_name_or_path", "pretrained_model_name_or_path"):
            if not getattr(args, name):
                raise ValueError(f"--objective matching needs --{name}")
    if not 0 <= args.consistency_first_stage < args.consistency_stages:
        raise ValueError(
            f"--consistency_first_stage must lie in [0, {args.consistency_stages - 1}], but is"
            f" {args.consistency_first_stage}"
        )
    if args.teacher_model_name_or_path and args.augment:
        raise ValueError(
            "--augment must be 0 with --teacher_model_name_or_path, whose network is not told how an image"
            " was changed (a preset may have set it)"
        )
    low, high = args.guidance_interval or (0, math.inf)
    if not 0 <= low <= high:
        raise ValueError(f"--guidance_interval must be two noise levels in order, but is {low:g} {high:g}")
    if args.pretrained_model_name_or_path:
        for name in ("sigma_data", "preconditioning"):
            if getattr(args, name) is not None:
                raise ValueError(f"--{name} belongs to the pretrained network and cannot be changed")
        return
    if args.preconditioning:
        check_preconditioning(args.preconditioning, args.D.low)
    if args.preset in TUNING:
        raise ValueError(f"--preset {args.preset} needs --pretrained_model_name_or_path")
    if args.preset in LATENT and not args.vae_model_name_or_path:
        raise ValueError(f"--preset {args.preset} needs --vae_model_name_or_path: its network is for latents")
    if args.new_classes:
        raise ValueError("--new_classes needs --pretrained_model_name_or_path")
    if args.D.low != args.D.high and not args.d_conditioning:
        raise ValueError(f"--D {args.D} is a range, which needs --d_conditioning")


def check_encoded(args: argparse.Namespace) -> None:
    """
    Check that images stay what they are, so that they can be encoded once.

    Args:
        args (`argparse.Namespace`): The arguments of train_accelerate.py.

    Raises:
        ValueError: An argument changes each image whenever it is read.
    """
    for name in ("streaming", "crop_size", "degradation", "augment", "random_turn"):
        if getattr(args, name):
            rule = "be 0" if name == "augment" else "be left out"
            raise ValueError(
                f"--{name} must {rule} with an autoencoder, which encodes images once, as they are"
                " (a preset may have set it)"
            )


def _check_fields(args: argparse.Namespace) -> None:
    """Raise an error if an argument needs pictures, and not fields."""
    pictures = ("streaming", "value_range", "condition_column", "degradation", "fid_steps")
    for name in (*pictures, "vae_model_name_or_path"):
        if getattr(args, name):
            raise ValueError(f"--{name} must be left out with --standardize, for fields that are no pictures")


def _check_pairs(args: argparse.Namespace) -> None:
    """Raise an error if arguments about degraded images contradict each other."""
    if args.degradation and args.condition_column:
        raise ValueError("give one of --condition_column and --degradation, not both")
    if args.degradation:
        Degrader(args.degradation)
    has_pairs = args.degradation or args.condition_column
    if PRESETS.get(args.preset, {}).get("condition_channels") and not has_pairs:
        raise ValueError(f"--preset {args.preset} needs --condition_column or --degradation")
    for name in ("reference_batch_size", "fid_steps"):
        if has_pairs and getattr(args, name):
            raise ValueError(f"--{name} needs images that are not restored from others")
