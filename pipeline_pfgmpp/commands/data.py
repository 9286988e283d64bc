"""Make a data set from public sources, as parquet files."""

import argparse

from .parsing import make_integer_parser


SOURCE = "/usr/share/datasets/fashion-mnist"
OUTPUT = "data/fashion-mnist"
EMOJI_FONT = "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"
EMOJI_NAMES = "/usr/share/unicode/emoji/emoji-test.txt"
EMOJI_OUTPUT = "data/emoji"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """
    Add the data sets of `pfgmpp data` and their arguments.

    Args:
        parser (`argparse.ArgumentParser`): The parser of the command.
    """
    data_sets = parser.add_subparsers(required=True, metavar="DATA_SET")
    fashion_mnist = data_sets.add_parser(
        "fashion-mnist",
        help="Fashion-MNIST from Debian's package dataset-fashion-mnist, or other IDX files",
        description="Convert Fashion-MNIST, or any data set in MNIST's IDX files, into parquet files.",
    )
    fashion_mnist.set_defaults(make=make_fashion_mnist)
    fashion_mnist.add_argument(
        "source",
        nargs="?",
        default=SOURCE,
        help="folder with the four IDX files (default: %(default)s, where Debian installs them)",
    )
    fashion_mnist.add_argument(
        "output",
        nargs="?",
        default=OUTPUT,
        help="folder for train.parquet and test.parquet (default: %(default)s)",
    )
    fashion_mnist.add_argument(
        "--class-names", nargs="+", help="names of the classes (default: those of Fashion-MNIST)"
    )
    emoji = data_sets.add_parser(
        "emoji",
        help="emoji from Debian's packages fonts-noto-color-emoji and unicode-data",
        description="Draw all emoji on white, with their names, groups and subgroups, into parquet files.",
    )
    emoji.set_defaults(make=make_emoji)
    emoji.add_argument(
        "font",
        nargs="?",
        default=EMOJI_FONT,
        help="colour bitmap font (default: %(default)s, where Debian's fonts-noto-color-emoji installs it)",
    )
    emoji.add_argument(
        "names",
        nargs="?",
        default=EMOJI_NAMES,
        metavar="emoji_test_txt",
        help="Unicode's list of emoji (default: %(default)s, where Debian's unicode-data installs it)",
    )
    emoji.add_argument(
        "output",
        nargs="?",
        default=EMOJI_OUTPUT,
        help="folder for train.parquet, validation.parquet and a card (default: %(default)s)",
    )
    emoji.add_argument(
        "--size",
        type=make_integer_parser(8, 512),
        default=64,
        help="height and width of the pictures, which have 136 pixels in the font (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> None:
    """
    Make the data set that was asked for.

    Args:
        args (`argparse.Namespace`): Arguments of [`add_arguments`].
    """
    args.make(args)


def make_fashion_mnist(args: argparse.Namespace) -> None:
    """
    Convert IDX files.

    Args:
        args (`argparse.Namespace`): Arguments of `pfgmpp data fashion-mnist`.
    """
    from ..data.fashion_mnist import FASHION_MNIST_CLASSES, convert_idx

    sizes = convert_idx(args.source, args.output, args.class_names or FASHION_MNIST_CLASSES)
    counts = " and ".join(f"{size} {split} images" for split, size in sizes.items())
    print(f"Wrote {counts}: {args.output}")


def make_emoji(args: argparse.Namespace) -> None:
    """
    Draw emoji.

    Args:
        args (`argparse.Namespace`): Arguments of `pfgmpp data emoji`.
    """
    from ..data.emoji import convert_emoji

    counts = convert_emoji(args.font, args.names, args.output, args.size, args.command_line)
    print(
        f"Wrote {counts['train']} train emoji and {counts['validation']} validation emoji, and left out"
        f" {counts['left_out']} that the font does not have: {args.output}"
    )
