"""Make a data set from public sources, as parquet files."""

import argparse


SOURCE = "/usr/share/datasets/fashion-mnist"
OUTPUT = "data/fashion-mnist"


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
