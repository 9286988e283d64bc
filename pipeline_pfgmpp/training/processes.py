"""Processes that fail together, so that none of them waits for another one for ever."""

import contextlib
from collections.abc import Iterator

from accelerate.utils import gather_object


@contextlib.contextmanager
def fail_together() -> Iterator[None]:
    """
    Let what fails in one process fail in all; every process must enter this.

    What is done inside must not wait for other processes where it may fail.

    Raises:
        RuntimeError: It failed in this or another process, for the reason that the message tells.
    """
    reason: str | None = None
    try:
        yield
    except Exception as error:  # whatever it is, such as too little memory
        reason = str(error) or type(error).__name__
    reasons = gather_object([reason])
    failed = [each for each in [reason, *reasons] if each is not None]  # what failed here comes first
    if failed:
        raise RuntimeError(failed[0])
