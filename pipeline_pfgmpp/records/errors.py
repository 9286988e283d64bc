"""What an error says, and what it means."""


def get_first_line(error: BaseException) -> str:
    """
    Return the first line of what an error says, or the name of its class if it says nothing.

    Args:
        error (`BaseException`): The error.

    Returns:
        `str`: The line.
    """
    return next(iter(str(error).splitlines()), type(error).__name__)


def is_out_of_memory(error: Exception) -> bool:
    """
    Tell whether Python or torch ran out of memory, on a GPU or a CPU.

    Args:
        error (`Exception`): The error.

    Returns:
        `bool`: Whether it did.
    """
    if isinstance(error, MemoryError):
        return True
    return "out of memory" in str(error) or "can't allocate memory" in str(error)
