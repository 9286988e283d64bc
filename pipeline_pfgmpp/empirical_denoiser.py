# Copyright 2026 The pipeline_pfgmpp authors. Licensed under the Apache License, Version 2.0.
r"""
The exact denoiser over a data set, without a network.

It is the posterior mean over the data points $y_j$,

$$F(x, \sigma) = \sum_j w_j(x)\, y_j, \qquad
  w_j \propto \bigl(\lVert x - y_j \rVert^2 + \sigma^2 D\bigr)^{-(N+D)/2}$$

(https://huggingface.co/papers/2302.04265, eq. 8). Tests measure solvers against it, and pictures show
its field lines.
"""

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.unets.unet_2d import UNet2DOutput

from .arguments import check_tensor
from .noise import field_target
from .preconditioning import check_preconditioning, compute_deviation


class EmpiricalDenoiser(ModelMixin, ConfigMixin):
    r"""
    Posterior mean $\mathbb{E}[y \mid x, \sigma]$ over a data set, in the place of a network in the
    pipeline.

    If the data points are seen as electric charges, this is their field: following its lines leads
    back to the data, to each point with equal probability. It works at every D, which
    `pipe(D=...)` chooses.

    Args:
        data (`torch.Tensor` of shape `(M, C, H, W)`, *optional*): The data set, floats in [-1, 1]. Saved
            data are loaded as weights.
        sigma_data (`float`, defaults to 0.5): The scheduler's `sigma_data`, so that the
            preconditioning cancels.
        preconditioning (`str`, defaults to `"edm"`): The scheduler's `preconditioning`.
        data_shape (`tuple[int, ...]`, *optional*): The shape of data to be loaded.

    Raises:
        ValueError: `data` holds no finite floats of that shape, or there is no such preconditioning.
    """

    ignore_for_config = ["data"]

    @register_to_config
    def __init__(
        self,
        data: torch.Tensor | None = None,
        sigma_data: float = 0.5,
        preconditioning: str = "edm",
        data_shape: tuple[int, ...] | None = None,
    ):
        super().__init__()
        data = torch.zeros(data_shape) if data is None and data_shape else check_tensor("data", data)
        if data.ndim != 4 or not len(data):
            raise ValueError(
                f"`data` must be of shape (M, C, H, W) with M > 0, but is of shape {tuple(data.shape)}."
            )
        self.register_to_config(
            data_shape=tuple(data.shape),
            sample_size=tuple(data.shape[2:]),
            in_channels=data.shape[1],
            sigma_data=sigma_data,
            preconditioning=check_preconditioning(preconditioning, None),
            d_conditioning=True,
        )
        self.register_buffer("data", data)

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float,
        D: float | torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> UNet2DOutput | tuple[torch.Tensor]:
        r"""
        Compute the raw output of which the preconditioning makes the posterior mean.

        Args:
            sample (`torch.Tensor` of shape `(batch, C, H, W)`): The scaled input c_in * x.
            timestep (`torch.Tensor` or `float`): c_noise = ln(sigma) / 4, one for all images or one
                per image.
            D (`float`, `torch.Tensor` or `None`): The augmented dimension; None is infinity.
            return_dict (`bool`, defaults to `True`): Whether to return a `UNet2DOutput` or a tuple.

        Returns:
            `UNet2DOutput` or `tuple`: The raw output (E[y | x, sigma] - c_skip * x) / c_out.
        """
        c_noise = torch.as_tensor(timestep, device=sample.device).float().expand(len(sample))
        sigma = (4 * c_noise).exp().view(-1, 1, 1, 1)
        sigma_data = self.config.sigma_data
        x = sample.to(torch.promote_types(sample.dtype, torch.float32))
        deviation = compute_deviation(self.config.preconditioning, sigma, D, x)
        norm = (deviation**2 + sigma_data**2).sqrt()
        x = x * norm
        mean = field_target(x, self.data, sigma.flatten(), D)
        output = (mean - sigma_data**2 / norm**2 * x) * norm / (deviation * sigma_data)
        output = output.to(sample.dtype)
        if not return_dict:
            return (output,)
        return UNet2DOutput(sample=output)
