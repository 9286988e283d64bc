"""Make a data set from public sources, as parquet files."""

import argparse

from .parsing import make_integer_parser


SOURCE = "/usr/share/datasets/fashion-mnist"
OUTPUT = "data/fashion-mnist"
EMOJI_FONT = "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"
EMOJI_NAMES = "/usr/share/unicode/emoji/emoji-test.txt"
EMOJI_OUTPUT = "data/emoji"
CT_OUTPUT = "data/low-dose-ct"


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
    low_dose_ct = data_sets.add_parser(
        "low-dose-ct",
        help="simulated CT: phantoms at full and at low dose",
        description="Draw random phantoms, and reconstruct them from many and from few photons. This needs"
        " scikit-image, from the extra ct.",
    )
    low_dose_ct.set_defaults(make=make_low_dose_ct)
    low_dose_ct.add_argument(
        "output", nargs="?", default=CT_OUTPUT, help="folder for the parquet files (default: %(default)s)"
    )
    for option, least, default, help in (
        ("--train", 1, 480, "pairs to train on"),
        ("--validation", 1, 40, "pairs to choose settings on"),
        ("--test", 1, 60, "pairs in each of the three splits for tests"),
        ("--size", 32, 128, "height and width of the slices in pixels"),
    ):
        low_dose_ct.add_argument(
            option, type=make_integer_parser(least), default=default, help=f"{help} (default: %(default)s)"
        )
    low_dose_ct.add_argument(
        "--seed",
        type=make_integer_parser(0),
        default=0,
        help="seed of phantoms and photons (default: %(default)s)",
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


def make_low_dose_ct(args: argparse.Namespace) -> None:
    """
    Simulate CT.

    Args:
        args (`argparse.Namespace`): Arguments of `pfgmpp data low-dose-ct`.
    """
    from ..data.low_dose_ct import convert_phantoms

    counts = convert_phantoms(args.output, args.train, args.validation, args.test, args.size, seed=args.seed)
    print(
        f"Wrote {sum(counts.values())} pairs of slices, of which {counts['train']} to train on: {args.output}"
    )
