r"""
Which D is best, and is that beyond doubt?

Groups of images are drawn from the same seeds at each D, so that what a group's seeds add to its distance
is added at every D, and goes out of the difference between two of them. Over n groups a difference is

$$\bar d \pm t_{n-1}\, s / \sqrt n,$$

with $\bar d$ and $s$ the mean and the standard deviation of the groups' differences. The quantile of
Student's t is that of 95 % for all pairs of D together (Bonferroni: 5 % is shared among the pairs), so that
choosing the best D after looking at all of them does not make it look better than it is.
"""

import functools
import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .reports import format_error, round_figure


CONFIDENCE = 0.95


@dataclass(frozen=True)
class Difference:
    """
    The difference between the distances at two D, with its confidence interval.

    Args:
        mean (`float`): Its mean over the groups.
        margin (`float`): Half the width of the interval.
    """

    mean: float
    margin: float

    @property
    def is_certain(self) -> bool:
        """Whether the interval leaves out 0."""
        return abs(self.mean) > self.margin

    @property
    def bound(self) -> float:
        """The largest absolute value in the interval."""
        return abs(self.mean) + self.margin

    def __str__(self) -> str:
        return format_error(self.mean, self.margin)


@dataclass(frozen=True)
class Choice:
    """
    The best D, and what is known of the others.

    Args:
        best (`str`): The D of the smallest mean distance.
        differences (`dict[str, Difference]`): What each other D adds to the distance of the best.
        rivals (`list[str]`): Those whose difference may be 0.
        within (`float`): The largest difference that there may be between any two of the best and its rivals.
    """

    best: str
    differences: dict[str, Difference]
    rivals: list[str]
    within: float

    def __str__(self) -> str:
        worse = [D for D in self.differences if D not in self.rivals]
        if not self.rivals:
            nearest = min(worse, key=lambda D: self.differences[D].mean)
            return (
                f"D = {self.best} is the best beyond doubt: D = {nearest} comes next, and adds"
                f" {self.differences[nearest]} to the distance."
            )
        text = f"No difference among D = {', '.join([self.best, *self.rivals])} within ± {self.within:.2g}"
        if not worse:
            return f"{text}."
        verb = "is" if len(worse) == 1 else "are"
        return f"{text}; D = {', '.join(worse)} {verb} worse beyond doubt."


@functools.cache
def compute_quantile(confidence: float, degrees: int) -> float:
    r"""
    Compute how far Student's t strays from 0 with a given probability.

    With $t = \sqrt{\nu}\tan\varphi$, the density of $\varphi$ is proportional to $\cos^{\nu-1}\varphi$, which
    is integrated on a grid.

    Args:
        confidence (`float`): The probability of a smaller absolute value, in (0, 1).
        degrees (`int`): The degrees of freedom $\nu$, at least 1.

    Returns:
        `float`: The absolute value.
    """
    angle = torch.linspace(0, math.pi / 2, 1_000_001, dtype=torch.float64)
    mass = torch.cumulative_trapezoid(angle.cos() ** (degrees - 1), angle)
    index = int(torch.searchsorted(mass, confidence * mass[-1]))
    return math.sqrt(degrees) * math.tan(angle[index + 1])


def choose_best(distances: Mapping[str, Sequence[float]], confidence: float = CONFIDENCE) -> Choice:
    """
    Choose the D of the smallest distance, and find out which others may be as good.

    Args:
        distances (`Mapping[str, Sequence[float]]`): By D, the distances of the same groups of seeds.
        confidence (`float`, defaults to 0.95): Probability that all intervals together hold.

    Returns:
        [`Choice`]: The choice.

    Raises:
        ValueError: There are fewer than two D or two groups, or not as many groups at each D.
    """
    counts = {len(values) for values in distances.values()}
    if len(distances) < 2 or len(counts) != 1 or min(counts) < 2:
        raise ValueError(
            "`distances` must hold at least two D, and the same number of groups at each, at least two, but"
            f" holds {len(distances)} D with {sorted(counts)} groups."
        )
    (count,) = counts
    pairs = list(itertools.combinations(distances, 2))
    quantile = compute_quantile(1 - (1 - confidence) / len(pairs), count - 1)

    def compare(D: str, other: str) -> Difference:
        values = [theirs - own for own, theirs in zip(distances[D], distances[other])]
        return Difference(statistics.mean(values), quantile * statistics.stdev(values) / math.sqrt(count))

    best = min(distances, key=lambda D: statistics.mean(distances[D]))
    differences = {D: compare(best, D) for D in distances if best != D}
    rivals = [D for D, difference in differences.items() if not difference.is_certain]
    bounds = [compare(*pair).bound for pair in itertools.combinations([best, *rivals], 2)]
    return Choice(best, differences, rivals, max(bounds, default=0.0))


def describe_choice(choice: Choice) -> dict[str, Any]:
    """
    Describe a choice for JSON.

    Args:
        choice ([`Choice`]): The choice.

    Returns:
        `dict[str, Any]`: The best D, the differences with their margins, and the choice in words.
    """
    return {
        "best": choice.best,
        "differences": {
            D: {"mean": round_figure(each.mean), "margin": round_figure(each.margin)}
            for D, each in choice.differences.items()
        },
        "confidence": CONFIDENCE,
        "choice": str(choice),
    }


def format_choice(choice: Choice, distances: Mapping[str, Sequence[float]], title: str) -> str:
    """
    Format a choice as a Markdown table and a sentence.

    Args:
        choice ([`Choice`]): The choice.
        distances (`Mapping[str, Sequence[float]]`): The distances, as for [`choose_best`].
        title (`str`): What was measured.

    Returns:
        `str`: The table, with the differences to the best D, and the sentence.
    """
    rows = [f"| images | {title} | more than D = {choice.best} |", "|---|---|---|"]
    for D, values in distances.items():
        difference = choice.differences.get(D, "")
        rows.append(f"| D = {D} | {statistics.mean(values):.5g} | {difference} |")
    return "\n".join([*rows, "", str(choice)])
