"""EDM's exponential moving average: a half-life counted in images."""

from collections.abc import Iterable

import torch
from diffusers.training_utils import EMAModel


class HalfLifeEMA(EMAModel):
    r"""
    diffusers' [`EMAModel`] with EDM's decay $2^{-B/h}$ for batches of B images and a half-life of
    $h = \min(h_{max}, \text{rampup} \cdot \text{images seen})$ (https://huggingface.co/papers/2206.00364, app. F.1).

    Args:
        parameters (`Iterable[torch.nn.Parameter]`): The parameters to average.
        batch_size (`int`): Images in an optimisation step, over all processes and accumulated batches.
        halflife (`float`, defaults to 500_000): Longest half-life, in images.
        rampup (`float`, defaults to 0.05): Half-life as a part of the images seen so far.
    """

    def __init__(
        self,
        parameters: Iterable[torch.nn.Parameter],
        batch_size: int,
        halflife: float = 500_000,
        rampup: float = 0.05,
    ):
        super().__init__(parameters, foreach=True)
        self.batch_size, self.halflife, self.rampup = batch_size, halflife, rampup

    def get_decay(self, optimization_step: int) -> float:
        """Decay of the given step, counted from 1."""
        images_seen = optimization_step * self.batch_size
        return 0.5 ** (self.batch_size / min(self.halflife, self.rampup * images_seen))
