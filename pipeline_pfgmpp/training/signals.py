"""Signals that ask a run to stop."""

import contextlib
import signal
import threading
from collections.abc import Iterator, Sequence


@contextlib.contextmanager
def record_signals(
    requests: list[int], numbers: Sequence[int] = (signal.SIGTERM, signal.SIGINT)
) -> Iterator[None]:
    """
    Record signals for a while instead of acting on them; outside the main thread, do nothing.

    Args:
        requests (`list[int]`): The signals that came are appended here.
        numbers (sequence of `int`, defaults to SIGTERM and SIGINT): The signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.getsignal(number) for number in numbers}
    for number in numbers:
        signal.signal(number, lambda number, frame: requests.append(number))
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler or signal.SIG_DFL)
