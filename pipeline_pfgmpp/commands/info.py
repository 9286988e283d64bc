"""
Describe a model: its D, noise levels, size, data and licence.

Only a few small files are read: neither weights nor code.
"""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """
    Add the arguments of `pfgmpp info`.

    Args:
        parser (`argparse.ArgumentParser`): The parser of the command.
    """
    parser.add_argument("model", help="a Hub id or a pipeline folder")


def run(args: argparse.Namespace) -> None:
    """
    Print the properties of a model.

    Args:
        args (`argparse.Namespace`): Arguments of [`add_arguments`].
    """
    from ..hub import model_info

    rows = model_info(args.model)
    width = max(map(len, rows))
    for name, value in rows.items():
        print(f"{name:{width}}  {value}")
