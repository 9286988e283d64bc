"""Errors of a computation that needs more memory than there is."""


def is_out_of_memory(error: RuntimeError) -> bool:
    """
    Tell whether torch ran out of memory, on a GPU or a CPU.

    Args:
        error (`RuntimeError`): The error.

    Returns:
        `bool`: Whether it did.
    """
    return "out of memory" in str(error) or "can't allocate memory" in str(error)
