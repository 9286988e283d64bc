"""The clock of the benchmarks, and rounds in which all contenders see the same machine."""

import time
from collections.abc import Callable

import torch
from tqdm import tqdm


def time_call(function: Callable[[], object]) -> float:
    """Time one call in seconds, including what it left running on a GPU."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def time_rounds(
    contenders: dict[str, Callable[[], object]], repeats: int, title: str, warm_up: int = 1
) -> dict[str, list[float]]:
    """
    Time each contender once per round, so that a change of the machine's speed affects all alike.

    Args:
        contenders (`dict`): Functions by name.
        repeats (`int`): Rounds that count.
        title (`str`): Title of the progress bar.
        warm_up (`int`, defaults to 1): Rounds before them that do not count.

    Returns:
        `dict[str, list[float]]`: Seconds of each contender, one value per round.
    """
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in tqdm(range(warm_up + repeats), desc=title, leave=False):
        for name, function in contenders.items():
            times[name].append(time_call(function))
    return {name: values[warm_up:] for name, values in times.items()}
