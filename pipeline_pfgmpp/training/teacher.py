"""A pretrained denoiser as the teacher of a network of few calls."""

import math

import torch

from ..conditioning import call_guided, check_guidance, choose_dimension, count_classes, get_trained_range
from ..pipeline_checks import check_interval
from ..pipeline_pfgmpp import PFGMPPPipeline
from .loss import DimensionRange, Perturbation


class Teacher:
    """
    A pretrained denoiser, guided or not, that another network learns from.

    Args:
        pipeline ([`PFGMPPPipeline`]): The denoiser; its network must be on the device of the images.
        guidance_scale (`float`, defaults to 1): How strongly it is guided, as in [`PFGMPPPipeline`].
        guidance_interval (`tuple[float, float]`, defaults to `(0, inf)`): The noise levels at which it is
            guided.

    Raises:
        ValueError: It cannot be guided, or the interval is none.
    """

    def __init__(
        self,
        pipeline: PFGMPPPipeline,
        guidance_scale: float = 1.0,
        guidance_interval: tuple[float, float] = (0.0, math.inf),
    ):
        self.unet = pipeline.unet.eval()
        self.dtype = pipeline.unet.dtype
        self.guidance_unet = pipeline.guidance_unet
        self.scheduler = pipeline.scheduler
        self.guidance_scale = check_guidance(guidance_scale, self.unet, self.guidance_unet)
        self.guidance_interval = check_interval("guidance_interval", guidance_interval)

    def check_dimensions(self, dimensions: DimensionRange | None, D: float | None) -> None:
        """
        Refuse augmented dimensions for which the denoiser was not trained.

        Args:
            dimensions ([`DimensionRange`], *optional*): Those that the network learns.
            D (`float` or `None`): The one that it learns, if there are no `dimensions`; None is infinity.

        Raises:
            ValueError: The denoiser was trained for others.
        """
        low, high = get_trained_range(self.unet, self.scheduler)
        single = math.inf if D is None else D
        for asked in (dimensions.low, dimensions.high) if dimensions else (single,):
            choose_dimension(asked, self.unet, self.scheduler)
            if not low <= asked <= high:
                raise ValueError(
                    f"The teacher was trained for D from {low:g} to {high:g}, not for {asked:g}."
                )

    @torch.no_grad()
    def step(
        self,
        x: torch.Tensor,
        perturbation: Perturbation,
        class_labels: torch.Tensor | None = None,
        condition: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """
        Take a step of Heun's method from t to r, or of Euler's to r = 0.

        Args:
            x (`torch.Tensor` of shape `(batch, C, H, W)`): Samples at t.
            perturbation ([`Perturbation`]): Holds t, r and D.
            class_labels (`torch.Tensor` of shape `(batch,)`, *optional*): Their classes.
            condition (`torch.Tensor`, *optional*): The degraded images that they are restored from.

        Returns:
            `torch.Tensor`: The samples at r.
        """
        t = perturbation.sigma.view(-1, 1, 1, 1)
        r = perturbation.target_sigma.view(-1, 1, 1, 1)
        conditions = (perturbation.D, class_labels, condition)
        slope = (x - self.denoise(x, t, *conditions)) / t
        end = x + (r - t) * slope
        is_last = r == 0
        start = torch.where(is_last, t, r)
        end_slope = (end - self.denoise(end, start, *conditions)) / start
        return torch.where(is_last, end, x + (r - t) * (slope + end_slope) / 2)

    @torch.no_grad()
    def denoise(
        self,
        x: torch.Tensor,
        sigma: torch.Tensor,
        D: torch.Tensor | float | None,
        class_labels: torch.Tensor | None = None,
        condition: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """
        Denoise samples, guided.

        Args:
            x (`torch.Tensor` of shape `(batch, C, H, W)`): The samples.
            sigma (`torch.Tensor` of shape `(batch, 1, 1, 1)`): Their noise levels, which must be positive.
            D (`torch.Tensor` of shape `(batch,)`, `float` or `None`): Their augmented dimensions.
            class_labels (`torch.Tensor` of shape `(batch,)` or `(batch, classes)`, *optional*): Their
                classes; a row of zeros is none.
            condition (`torch.Tensor`, *optional*): The degraded images that they are restored from.

        Returns:
            `torch.Tensor`: F, in the shape and type of `x`.
        """
        model_input = self.scheduler.precondition_inputs(x, sigma, D).to(self.dtype)
        c_noise = self.scheduler.precondition_noise(sigma.flatten())
        if condition is not None:
            condition = self.scheduler.precondition_inputs(condition, sigma, D)
        if self.guidance_scale != 1 and class_labels is not None and self.unet.config.get("label_dim"):
            class_labels = to_rows(class_labels, self.unet)
        inputs = (model_input, c_noise, class_labels, D, condition)
        output = call_guided(self.unet, self.guidance_unet, self._choose_scale(sigma), *inputs)
        return self.scheduler.precondition_outputs(x, output.to(x.dtype), sigma, D)

    def _choose_scale(self, sigma: torch.Tensor) -> float | torch.Tensor:
        """Choose how strongly each sample is guided: within the interval of noise levels alone."""
        if self.guidance_scale == 1:
            return 1.0
        low, high = self.guidance_interval
        return torch.where((low <= sigma) & (sigma <= high), self.guidance_scale, 1.0)


def to_rows(class_labels: torch.Tensor, unet: torch.nn.Module) -> torch.Tensor:
    """
    Write classes in the form in which a row of zeros is no class.

    Args:
        class_labels (`torch.Tensor` of shape `(batch,)` or `(batch, classes)`): The classes.
        unet (`torch.nn.Module`): The network that knows them.

    Returns:
        `torch.Tensor` of shape `(batch, classes)`: A row with a single 1 for each class.
    """
    if class_labels.ndim == 2:
        return class_labels
    return torch.nn.functional.one_hot(class_labels, count_classes(unet)).float()
