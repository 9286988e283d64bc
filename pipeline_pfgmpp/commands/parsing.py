"""
The parser of the command line.

Numbers are checked where they are read, before anything is loaded, and no option may be given twice,
because the first value would be lost without a word.
"""

import argparse
import math
from collections.abc import Callable, Sequence
from typing import Any, NoReturn


LARGEST = 10_000_000  # whole number on a command line, unless an option says otherwise
LARGEST_SEED = 2**62


class StoreOnce(argparse.Action):
    """Store a value that is not empty, record that its option was given, and refuse it a second time."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        """
        Store the value.

        Args:
            parser, namespace, values, option_string: As for [`argparse.Action`]. The names of all
                options that were given are collected in `namespace.given`.
        """
        if option_string is not None:
            given: frozenset[str] = getattr(namespace, "given", frozenset())
            if self.dest in given:
                raise argparse.ArgumentError(self, "may be given only once")
            namespace.given = given | {self.dest}
        if values == "" or (isinstance(values, list) and "" in values):
            raise argparse.ArgumentError(self, "must not be empty")
        setattr(namespace, self.dest, values)


class CommandParser(argparse.ArgumentParser):
    """
    A parser whose options may be given once, and whose errors are one sentence each.

    Args:
        options: As for [`argparse.ArgumentParser`].
    """

    def __init__(self, **options: Any):
        super().__init__(**options)
        self.register("action", None, StoreOnce)
        self.register("action", "store", StoreOnce)
        self.set_defaults(given=frozenset())

    def error(self, message: str) -> NoReturn:
        """
        Print what is wrong with the command line, and exit with code 2.

        Args:
            message (`str`): What is wrong.
        """
        line = " ".join(message.split())
        self.exit(2, f"{self.prog}: {line} (see {self.prog} --help)\n")


def make_integer_parser(low: int, high: int = LARGEST) -> Callable[[str], int]:
    """
    Make a parser for whole numbers within bounds.

    Args:
        low (`int`): The smallest number allowed.
        high (`int`, defaults to 10,000,000): The largest number allowed.

    Returns:
        `Callable`: A `type` of an argument, which raises `argparse.ArgumentTypeError` for other text.
    """

    def parse_integer(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = low - 1
        if not low <= number <= high:
            raise argparse.ArgumentTypeError(
                f"must be a whole number from {low:,} to {high:,}, but is {text!r}"
            )
        return number

    return parse_integer


def make_number_parser(allowed: str, is_allowed: Callable[[float], bool]) -> Callable[[str], float]:
    """
    Make a parser for numbers that fulfil a condition.

    Args:
        allowed (`str`): The condition in words, such as `"a positive number"`.
        is_allowed (`Callable`): The condition. NaN is never allowed.

    Returns:
        `Callable`: A `type` of an argument, which raises `argparse.ArgumentTypeError` for other text.
    """

    def parse_number(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if math.isnan(number) or not is_allowed(number):
            raise argparse.ArgumentTypeError(f"must be {allowed}, but is {text!r}")
        return number

    return parse_number


def parse_interval(text: str) -> list[float]:
    """
    Parse an interval of noise levels, such as `0.3,6`.

    Args:
        text (`str`): Its ends, separated by a comma.

    Returns:
        `list[float]`: Its ends.

    Raises:
        argparse.ArgumentTypeError: The text is something else.
    """
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        low = high = math.nan
    if not 0 <= low <= high < math.inf:
        raise argparse.ArgumentTypeError(f"must be two noise levels in order, such as 0.3,6, but is {text!r}")
    return [low, high]


def make_list_parser(
    allowed: str, is_allowed: Callable[[float], bool], may_be_empty: bool = False
) -> Callable[[str], list[float]]:
    """
    Make a parser for different numbers, separated by commas.

    Args:
        allowed (`str`): What each number must be, in words and with an example, such as
            `"positive numbers separated by commas, such as 16,128,inf"`.
        is_allowed (`Callable`): The condition for each number. NaN is never allowed.
        may_be_empty (`bool`, defaults to `False`): Whether an empty text is an empty list.

    Returns:
        `Callable`: A `type` of an argument, which raises `argparse.ArgumentTypeError` for other text.
    """

    def parse_numbers(text: str) -> list[float]:
        if may_be_empty and not text:
            return []
        try:
            numbers = [float(part) for part in text.split(",")]
        except ValueError:
            numbers = [math.nan]
        if not all(is_allowed(number) and not math.isnan(number) for number in numbers):
            raise argparse.ArgumentTypeError(f"expected {allowed}, but got {text!r}")
        if len(set(numbers)) < len(numbers):
            raise argparse.ArgumentTypeError(f"names a number twice: {text!r}")
        return numbers

    return parse_numbers


parse_positive = make_number_parser("a positive number", lambda number: 0 < number < math.inf)
parse_dimension = make_number_parser("a positive number or inf", lambda number: number > 0)
parse_dimensions = make_list_parser(
    "positive numbers separated by commas, such as 16,128,inf", lambda number: number > 0
)
