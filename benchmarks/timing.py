"""The clock of the benchmarks."""

import time
from collections.abc import Callable

import torch


def seconds(function: Callable[[], object]) -> float:
    """Time of one call, with what it left running on a GPU."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start
