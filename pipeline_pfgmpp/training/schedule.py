"""Learning rates as functions of the images seen, so that there is no state to restore."""

import math


SCHEDULES = ("constant", "cosine", "linear", "inverse_sqrt")


def compute_learning_rate_factor(
    schedule: str,
    images: float,
    total_images: float,
    warmup_images: float = 0.0,
    decay_images: float = math.inf,
) -> float:
    r"""
    Compute the factor of the learning rate: a linear warm-up, then the schedule.

    Args:
        schedule (`str`): `"constant"`; `"cosine"` or `"linear"`, which fall to 0 at the end; or
            `"inverse_sqrt"`, EDM2's $1/\sqrt{\max(\text{images} / \text{decay\_images}, 1)}$
            (https://huggingface.co/papers/2312.02696, eq. 67).
        images (`float`): Images seen before this step.
        total_images (`float`): Images of the whole training.
        warmup_images (`float`, defaults to 0): Images over which the factor rises from 0.
        decay_images (`float`, defaults to infinity): Images after which `"inverse_sqrt"` falls.

    Returns:
        `float`: The factor, in [0, 1].

    Raises:
        ValueError: There is no such schedule.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"`schedule` must be one of {', '.join(SCHEDULES)}, but is {schedule!r}.")
    if images < warmup_images:
        return images / warmup_images
    progress = min((images - warmup_images) / max(total_images - warmup_images, 1), 1.0)
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    if schedule == "linear":
        return 1 - progress
    if schedule == "inverse_sqrt":
        return max(images / decay_images, 1.0) ** -0.5
    return 1.0
