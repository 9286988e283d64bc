"""Arguments of several commands: for drawing and for measuring, and what they mean for a call."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from .parsing import (
    LARGEST_SEED,
    make_integer_parser,
    make_list_parser,
    make_number_parser,
    parse_interval,
    parse_positive,
)


if TYPE_CHECKING:
    from ..pipeline_pfgmpp import PFGMPPPipeline
MAX_LISTED = 100  # classes that an error message lists
READING = ("dataset_config_name", "image_column", "background", "crop")  # how real images are read


def add_drawing_arguments(parser: argparse.ArgumentParser) -> None:
    """
    Add the arguments that say how images are drawn.

    Args:
        parser (`argparse.ArgumentParser`): The parser of a command that draws images.
    """
    add_solver_arguments(parser)
    add_guidance_argument(parser)
    add_interval_argument(parser)
    add_seed_argument(parser, "the first image")
    add_batch_size_argument(parser, 64)


def add_solver_arguments(parser: argparse.ArgumentParser) -> None:
    """
    Add the arguments that choose the weights, the steps and the class.

    Args:
        parser (`argparse.ArgumentParser`): The parser of a command that draws or restores images.
    """
    add_variant_argument(parser)
    parser.add_argument(
        "--num-inference-steps",
        type=make_integer_parser(1, 100_000),
        help="steps of the solver (default: the model's)",
    )
    parser.add_argument(
        "--solver-type",
        help="heun, euler, dpmpp_2m, dpmpp_3m, dpmpp_2m_sde or, for models of few calls, consistency"
        " (default: the model's)",
    )
    parser.add_argument(
        "--rho",
        type=make_number_parser("a number from 0.1 to 1000", lambda rho: 0.1 <= rho <= 1000),
        help="exponent of the step spacing (default: the model's)",
    )
    parser.add_argument(
        "--sigma-schedule", help="spacing of the steps: karras or exponential (default: the model's)"
    )
    parser.add_argument(
        "--sigma-min",
        type=parse_positive,
        help="smallest noise level of the steps (default: the model's)",
    )
    parser.add_argument(
        "--class-label",
        metavar="CLASS",
        help="class of all images, by its name, such as 'Ankle boot', or by its number"
        " (default: drawn at random for each image)",
    )


def add_variant_argument(parser: argparse.ArgumentParser) -> None:
    """
    Add the argument that chooses the variant of the weights.

    Args:
        parser (`argparse.ArgumentParser`): The parser of a command that loads a model.
    """
    parser.add_argument(
        "--variant", help="variant of the weights, such as fp16 or ema500 (default: the weights without one)"
    )


def add_guidance_argument(parser: argparse.ArgumentParser) -> None:
    """
    Add the argument that says how strongly the network is guided.

    Args:
        parser (`argparse.ArgumentParser`): The parser of a command that calls the network.
    """
    parser.add_argument(
        "--guidance-scale",
        type=make_number_parser("a number from 0 to 100", lambda scale: 0 <= scale <= 100),
        default=1.0,
        help="scale of guidance; 1 means no guidance (default: %(default)s)",
    )


def add_interval_argument(parser: argparse.ArgumentParser) -> None:
    """
    Add the argument that says where the network is guided.

    Args:
        parser (`argparse.ArgumentParser`): The parser of a command that follows field lines.
    """
    parser.add_argument(
        "--guidance-interval",
        type=parse_interval,
        metavar="LOW,HIGH",
        help="smallest and largest noise level at which the network is guided, such as 0.3,6 (default: all)",
    )


def add_entry_arguments(parser: argparse.ArgumentParser) -> None:
    """
    Add the arguments that say where a degraded image enters the field lines, and how much of it stays.

    Args:
        parser (`argparse.ArgumentParser`): The parser of a command that restores images.
    """
    parser.add_argument(
        "--start-sigma",
        type=parse_positive,
        help="noise level at which to enter the field lines at the degraded image itself (default: start from"
        " the prior, which gives samples of the posterior)",
    )
    parser.add_argument(
        "--blend",
        type=make_number_parser("a number from 0 to 1", lambda blend: 0 <= blend <= 1),
        default=1.0,
        help="weight of the restored image after each step; the rest is the degraded one"
        " (default: %(default)s)",
    )


def add_seed_argument(parser: argparse.ArgumentParser, owner: str) -> None:
    """
    Add the argument that chooses the random numbers.

    Args:
        parser (`argparse.ArgumentParser`): The parser of a command that draws at random.
        owner (`str`): What the seed belongs to, for the help.
    """
    parser.add_argument(
        "--seed",
        type=make_integer_parser(0, LARGEST_SEED),
        default=0,
        help=f"seed of {owner} (default: %(default)s)",
    )


def add_batch_size_argument(parser: argparse.ArgumentParser, default: int) -> None:
    """
    Add the argument that says how many images the network sees at a time.

    Args:
        parser (`argparse.ArgumentParser`): The parser of a command that draws images.
        default (`int`): The default.
    """
    parser.add_argument(
        "--batch-size",
        type=make_integer_parser(1),
        default=default,
        help="images per batch and process (default: %(default)s)",
    )


def add_noise_argument(
    parser: argparse.ArgumentParser, default: str, description: str, may_be_empty: bool = False
) -> None:
    """
    Add the argument that says how strong the injected noise is.

    Args:
        parser (`argparse.ArgumentParser`): The parser of a command that disturbs sampling.
        default (`str`): The default.
        description (`str`): The description in `--help`.
        may_be_empty (`bool`, defaults to `False`): Whether no strength may be given.
    """
    parser.add_argument(
        "--noise",
        type=make_list_parser(
            "numbers from 0 to 100 separated by commas, such as 0,0.2",
            lambda noise: 0 <= noise <= 100,
            may_be_empty,
        ),
        default=default,
        help=description,
    )


def add_features_arguments(parser: argparse.ArgumentParser) -> None:
    """
    Add the arguments that say which features images are compared by.

    Args:
        parser (`argparse.ArgumentParser`): The parser of a command that measures images.
    """
    parser.add_argument(
        "--features",
        default="fashion-mnist",
        help="fashion-mnist, emoji, inception, a file with Inception's weights or a TorchScript program (a"
        " path, or org/name/file on the Hub), or a vision model of transformers such as facebook/dinov2-large"
        " (default: %(default)s)",
    )
    add_trust_argument(parser)


def add_trust_argument(parser: argparse.ArgumentParser) -> None:
    """
    Add the argument that lets a program from elsewhere run.

    Args:
        parser (`argparse.ArgumentParser`): The parser of a command that loads features.
    """
    parser.add_argument("--trust-remote-code", action="store_true", help="allow a TorchScript program to run")


def add_measuring_arguments(
    parser: argparse.ArgumentParser, num_images: int, groups: int, may_write: bool = True
) -> None:
    """
    Add the arguments that say what images are measured against, how many there are and what is written.

    Args:
        parser (`argparse.ArgumentParser`): The parser of a command that measures images.
        num_images (`int`): Default number of images per value.
        groups (`int`): Default number of values per figure.
        may_write (`bool`, defaults to `True`): Whether the model's card has a place for the results.
    """
    parser.add_argument("--data", required=True, help="data set of real images: a folder or a Hub id")
    parser.add_argument(
        "--split", default="test", help="split of the data set to measure against (default: %(default)s)"
    )
    add_reading_arguments(parser)
    add_features_arguments(parser)
    parser.add_argument(
        "--num-images",
        type=make_integer_parser(2),
        default=num_images,
        help="images per value (default: %(default)s)",
    )
    parser.add_argument(
        "--groups",
        type=make_integer_parser(1, 10_000),
        default=groups,
        help="values per figure, each from images of its own, for its error (default: %(default)s)",
    )
    if may_write:
        parser.add_argument(
            "--write", action="store_true", help="also store the results in the model's folder and card"
        )


def add_reading_arguments(parser: argparse.ArgumentParser) -> None:
    """
    Add the arguments that say how real images are read, which should be as in training.

    Args:
        parser (`argparse.ArgumentParser`): The parser of a command that measures images.
    """
    add = parser.add_argument_group("real images, as in training").add_argument
    add("--dataset-config-name", help="configuration of the data set")
    add("--image-column", help="column of the images (default: the only image column)")
    add("--background", help="colour behind transparent pictures (default: white)")
    add(
        "--crop",
        action="store_true",
        default=None,
        help="cut a random place out of each image, for a model that was trained with --crop_size (default:"
        " shrink images to the model's size)",
    )


def get_reading(args: argparse.Namespace, pipeline: PFGMPPPipeline) -> dict[str, Any]:
    """
    Return how the command line has real images read.

    Args:
        args (`argparse.Namespace`): Arguments that include those of [`add_reading_arguments`].
        pipeline ([`PFGMPPPipeline`]): The model.

    Returns:
        `dict`: Arguments of [`~pipeline_pfgmpp.commands.loading.load_real_images`]; without those that were
            not given.

    Raises:
        ValueError: The pipeline does not have the class that is asked for, or a column of classes is named
            and no class is.
    """
    reading = {name: getattr(args, name) for name in READING if getattr(args, name) is not None}
    options = vars(args)  # of which not every command has all
    if options.get("class_label") is not None:
        from ..generation import list_classes

        reading["class_name"] = list_classes(pipeline)[choose_class(pipeline, args.class_label)]
        reading["label_column"] = args.label_column
    elif options.get("label_column") is not None and not args.match_classes:
        raise ValueError(
            "--label-column has no effect without --class-label or --match-classes: leave it out."
        )
    return reading


def get_call_settings(args: argparse.Namespace, pipeline: PFGMPPPipeline) -> dict[str, Any]:
    """
    Return the command line's arguments for the call of the pipeline.

    Args:
        args (`argparse.Namespace`): Arguments that include those of [`add_drawing_arguments`].
        pipeline ([`PFGMPPPipeline`]): The pipeline.

    Returns:
        `dict`: Arguments of [`PFGMPPPipeline.__call__`].

    Raises:
        ValueError: The pipeline does not have this class.
    """
    from ..scheduler_config import get_default_steps

    settings: dict[str, Any] = {
        "num_inference_steps": args.num_inference_steps or get_default_steps(pipeline.scheduler),
        **get_guidance_settings(args),
    }
    if args.class_label is not None:
        settings["class_labels"] = choose_class(pipeline, args.class_label)
    return settings


def get_guidance_settings(args: argparse.Namespace) -> dict[str, Any]:
    """
    Return how the command line guides the network.

    Args:
        args (`argparse.Namespace`): Arguments that include those of [`add_guidance_argument`] and
            [`add_interval_argument`].

    Returns:
        `dict`: Arguments of [`PFGMPPPipeline.__call__`].

    Raises:
        ValueError: There is an interval, but no guidance.
    """
    settings: dict[str, Any] = {"guidance_scale": args.guidance_scale}
    if args.guidance_interval is not None:
        if args.guidance_scale == 1:
            raise ValueError("--guidance-interval has no effect without --guidance-scale: leave it out.")
        settings["guidance_interval"] = args.guidance_interval
    return settings


def choose_class(pipeline: PFGMPPPipeline, text: str) -> int:
    """
    Find a class by its name or its number. A name counts before a number.

    Args:
        pipeline ([`PFGMPPPipeline`]): The model.
        text (`str`): The name, of which the case counts only where it must, or the number.

    Returns:
        `int`: The number of the class.

    Raises:
        ValueError: There is no such class, or several have this name.
    """
    from ..conditioning import find_classes
    from ..generation import list_classes

    classes = list_classes(pipeline)
    if not classes:
        raise ValueError(f"--class-label is {text!r}, but this model is unconditional: leave it out.")
    found = find_classes(text, classes)
    if not found and text.isdecimal() and int(text) in classes:
        found = [int(text)]
    if len(found) == 1:
        return found[0]
    listed = [
        name if name == str(number) else f"{number} ({name})"
        for number, name in list(classes.items())[:MAX_LISTED]
    ]
    more = ", ..." if len(classes) > MAX_LISTED else ""
    raise ValueError(f"--class-label must be one of {', '.join(listed)}{more}, but is {text!r}.")


def get_scheduler_settings(args: argparse.Namespace) -> dict[str, Any]:
    """
    Return the entries of the scheduler's configuration that the command line replaces.

    Args:
        args (`argparse.Namespace`): Arguments that include those of [`add_solver_arguments`].

    Returns:
        `dict`: Arguments of [`PFGMPPScheduler`]; without those that were not given.
    """
    spacing = ("sigma_schedule", "rho", "sigma_min")
    names = ("solver_type", *spacing)
    settings = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if not settings.keys().isdisjoint(spacing):
        settings["sigmas"] = None  # a spacing that is asked for comes before levels that the model lists
    return settings
