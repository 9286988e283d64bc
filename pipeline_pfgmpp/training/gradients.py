"""The published rule for gradients that are not finite, and their norm."""

from collections.abc import Iterable, Sequence

import torch
from accelerate import Accelerator
from torch.distributed.tensor import DTensor


@torch.no_grad()
def replace_nonfinite_gradients(parameters: Iterable[torch.nn.Parameter]) -> int:
    """
    Replace NaN by 0 and infinities by ±1e5 in the gradients
    (https://huggingface.co/papers/2206.00364, app. F).

    Args:
        parameters (`Iterable[torch.nn.Parameter]`): The parameters, whose gradients are changed in
            place.

    Returns:
        `int`: How many numbers were replaced.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if torch.nn.utils.get_total_norm(gradients).isfinite():
        return 0
    count = sum((~gradient.isfinite()).sum() for gradient in gradients)
    if isinstance(count, DTensor):
        count = count.full_tensor()  # over all shards of FSDP
    for gradient in gradients:
        gradient.nan_to_num_(nan=0.0, posinf=1e5, neginf=-1e5)
    return int(count)


def clip_norms(
    accelerator: Accelerator, models: Sequence[torch.nn.Module], largest: float
) -> torch.Tensor | None:
    """
    Clip the norm of the gradients of each network.

    Args:
        accelerator (`Accelerator`): What they are trained on.
        models (`Sequence[torch.nn.Module]`): The networks.
        largest (`float`): The largest norm.

    Returns:
        `torch.Tensor` or `None`: The norm of the first network's gradients before.
    """
    first, *others = models
    norm = accelerator.clip_grad_norm_(first.parameters(), largest)  # which unscales the gradients of all
    for model in others:
        torch.nn.utils.clip_grad_norm_(model.parameters(), largest)
    return norm
