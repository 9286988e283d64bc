"""The size of images in text."""


def format_size(height: int, width: int) -> str:
    """
    Format the size of images.

    Args:
        height (`int`): Height in pixels.
        width (`int`): Width in pixels.

    Returns:
        `str`: Both sides, and in which order they stand if they differ.
    """
    size = f"{height}×{width}"
    return size if height == width else f"{size} (height × width)"
