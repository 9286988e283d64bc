"""Divergence: a run whose loss is not finite any more stops, instead of training NaN to the end."""

import os

import torch
from accelerate import Accelerator
from torch.distributed.tensor import DTensor

from .run import list_checkpoints


class LossWatch:
    """
    Counts the steps in a row whose loss is NaN or infinite.

    The counts stay on the device, so that only a check waits for it.

    Args:
        patience (`int`): Such steps in a row after which a run has diverged.
        device (`torch.device`): Where the losses are.
    """

    def __init__(self, patience: int, device: torch.device):
        self.patience = patience
        self.is_nonfinite = torch.zeros((), dtype=torch.bool, device=device)
        self.count = torch.zeros((), dtype=torch.int64, device=device)
        self.longest = torch.zeros((), dtype=torch.int64, device=device)

    def add(self, loss: torch.Tensor) -> None:
        """
        Add the losses of a batch to those of the current step.

        Args:
            loss (`torch.Tensor` of shape `(batch,)`): The loss of each image.
        """
        self.is_nonfinite |= ~loss.detach().isfinite().all()

    def end_step(self) -> None:
        """End the current step."""
        self.count = (self.count + 1) * self.is_nonfinite
        self.longest = torch.maximum(self.longest, self.count)
        self.is_nonfinite.zero_()

    def check(self, accelerator: Accelerator) -> bool:
        """
        Tell whether the run has diverged in any process; every process must call this.

        Args:
            accelerator (`Accelerator`): The processes.

        Returns:
            `bool`: Whether there were as many steps in a row without a finite loss as the patience.
        """
        longest = accelerator.gather(self.longest.view(1)).max()
        return bool(longest >= self.patience)


def are_finite(accelerator: Accelerator, tensors: list[torch.Tensor]) -> bool:
    """
    Tell whether tensors are finite in all processes; every process must call this.

    Args:
        accelerator (`Accelerator`): The processes.
        tensors (`list[torch.Tensor]`): Weights, which may be sharded, or losses.

    Returns:
        `bool`: Whether they hold neither NaN nor infinity.
    """
    finite = torch.ones((), dtype=torch.bool, device=accelerator.device)
    for tensor in tensors:
        local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        finite &= local.detach().isfinite().all()
    return bool(accelerator.gather(finite.view(1)).all())


def describe_divergence(output_dir: str | os.PathLike, step: int, problem: str) -> str:
    """
    Put into words that a run has diverged, and what is left of it.

    Args:
        output_dir (`str` or `os.PathLike`): The run's folder.
        step (`int`): Number of optimisation steps done.
        problem (`str`): What is not finite.

    Returns:
        `str`: The sentences.
    """
    checkpoints = list_checkpoints(output_dir)
    left = "There is no checkpoint from before."
    if checkpoints:
        left = f"{checkpoints[-1]} is the last checkpoint from before."
    return (
        f"The run has diverged: at step {step} {problem}. {left} Train with a smaller `learning_rate` or a"
        " longer warm-up, in another `output_dir`."
    )
