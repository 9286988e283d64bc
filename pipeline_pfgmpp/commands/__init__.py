"""
The command line `pfgmpp`, with one module per subcommand.

A module's docstring is its description in `--help`. Its `add_arguments` and its `run` import nothing
heavy before they have to, so that `--help` answers at once.
"""

import argparse
import io
import sys
from collections.abc import Sequence

from ..records.commands import format_command
from ..records.errors import is_out_of_memory
from . import (
    average,
    choose_d,
    convert,
    data,
    evaluate,
    evaluate_restoration,
    field_lines,
    info,
    plot,
    push,
    restore,
    robustness,
    sample,
    schedule,
    verify,
)
from .extras import check_extra
from .parsing import CommandParser


COMMANDS = {
    "sample": sample,
    "restore": restore,
    "convert": convert,
    "evaluate": evaluate,
    "evaluate-restoration": evaluate_restoration,
    "choose-D": choose_d,
    "robustness": robustness,
    "verify": verify,
    "push": push,
    "info": info,
    "data": data,
    "plot": plot,
    "average": average,
    "schedule": schedule,
    "field-lines": field_lines,
}


def build_parser() -> argparse.ArgumentParser:
    """
    Build the parser of the whole command tree.

    Returns:
        `argparse.ArgumentParser`: The parser. What it returns names the command in `command`.
    """
    parser = CommandParser(prog="pfgmpp", description="PFGM++ for the Hugging Face ecosystem.")
    subparsers = parser.add_subparsers(required=True, dest="command", metavar="COMMAND")
    for name, module in COMMANDS.items():
        description = (module.__doc__ or "").strip()
        summary = description.partition("\n")[0]
        command_parser = subparsers.add_parser(
            name, help=summary[0].lower() + summary[1:].rstrip("."), description=description
        )
        module.add_arguments(command_parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """
    Run a command; exit with code 1 and a message if it cannot do what it was asked to.

    Args:
        argv (`Sequence[str]`, *optional*): The command line without the program's name; by default
            that of this process.

    Raises:
        SystemExit: The command failed, or the command line is wrong.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # not every terminal knows all signs of the tables
    arguments = list(sys.argv[1:] if argv is None else argv)
    args = build_parser().parse_args(arguments)
    args.command_line = format_command("pfgmpp", arguments)
    try:
        check_extra(args.command)
        COMMANDS[args.command].run(args)
    except (OSError, ValueError) as error:
        _print_error(str(error))
        sys.exit(1)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        _print_error("There is not enough memory: choose a smaller --batch-size, or smaller tiles.")
        sys.exit(1)
    except KeyboardInterrupt:
        _print_error("Interrupted.")
        sys.exit(130)  # as a shell has it


def _print_error(text: str) -> None:
    """Print an error on a line of its own, even if a progress bar is shown."""
    from tqdm.auto import tqdm

    from ..hub.reading import escape_controls

    # A repository may have written part of the message.
    message = "\n".join(escape_controls(line) for line in text.splitlines())
    tqdm.write(f"pfgmpp: {message}", file=sys.stderr)
