# Copyright 2026 The pipeline_pfgmpp authors. Licensed under the Apache License, Version 2.0.
r"""
The preconditioning: how a network's input and output are scaled, and its loss weighted.

$$F(x, \sigma) = c_{skip}\, x + c_{out}\, net(c_{in}\, x,\; \tfrac14 \ln\sigma), \qquad
  c_{in} = \frac{1}{\sqrt{s^2 + \sigma_d^2}}, \quad
  c_{skip} = \frac{\sigma_d^2}{s^2 + \sigma_d^2}, \quad
  c_{out} = \frac{s\,\sigma_d}{\sqrt{s^2 + \sigma_d^2}}, \quad
  \lambda = \frac{1}{c_{out}^2}$$

(https://huggingface.co/papers/2206.00364, table 1). For data of standard deviation $\sigma_d$ and noise of
standard deviation $s$, what the network sees and what it is to return then have unit variance. The
preconditionings differ in $s$ alone:

- `"edm"` has $s = \sigma$ at every D, as PFGM++ has it (https://huggingface.co/papers/2302.04265);
- `"t-edm"` has $s = \sigma\sqrt{D/(D-2)}$, the standard deviation of Student-t noise
  (https://huggingface.co/papers/2410.14171). It needs D above 2, and at D = infinity it is `"edm"`.

The ODE $dx/d\sigma = (x - F)/\sigma$ and its solvers are the same for both.
"""

import inspect
from types import EllipsisType
from typing import Any

import torch
from diffusers import EDMEulerScheduler

from .arguments import check_choice
from .noise import parse_dimension


PRECONDITIONINGS = ["edm", "t-edm"]


def check_preconditioning(preconditioning: Any, D: float | torch.Tensor | None) -> str:
    """
    Refuse a preconditioning that there is not, or that an augmented dimension has not.

    Args:
        preconditioning (`str`): `"edm"` or `"t-edm"`.
        D (`float`, `torch.Tensor` or `None`): The augmented dimension; None is infinity.

    Returns:
        `str`: The preconditioning.

    Raises:
        ValueError: It is another one, or `"t-edm"` at D up to 2.
    """
    check_choice("preconditioning", preconditioning, PRECONDITIONINGS)
    if preconditioning == "t-edm" and bool((parse_dimension(D) <= 2).any()):
        raise ValueError(
            f"`D` must be above 2 with `preconditioning` 't-edm', but is {D}: at D up to 2 the noise has no"
            " variance, by which that would scale."
        )
    return preconditioning


def compute_deviation(
    preconditioning: str,
    sigma: float | torch.Tensor,
    D: float | torch.Tensor | None,
    like: torch.Tensor,
) -> float | torch.Tensor:
    r"""
    Compute the standard deviation $s$ of noise that a preconditioning scales by, see above.

    Args:
        preconditioning (`str`): `"edm"` or `"t-edm"`.
        sigma (`float` or `torch.Tensor`): The noise level, of a shape that broadcasts over the samples.
        D (`float`, `torch.Tensor` of shape `(batch,)` or `None`): The augmented dimension.
        like (`torch.Tensor` of shape `(batch, ...)`): The samples, for the number of their dimensions, their
            type and their device.

    Returns:
        `float` or `torch.Tensor`: The standard deviation, of a shape that broadcasts over the samples.

    Raises:
        ValueError: There is none, since D is at most 2.
    """
    if preconditioning == "edm":
        return sigma
    check_preconditioning(preconditioning, D)
    dof = parse_dimension(D)
    scale = torch.where(dof.isinf(), 1.0, dof / (dof - 2)).sqrt()
    if not scale.ndim:
        return sigma * scale.item()
    return sigma * scale.to(like).view(-1, *[1] * (like.ndim - 1))


class PreconditionedScheduler(EDMEulerScheduler):
    """
    Scales the inputs and outputs of a network, and weights its loss, as its configuration says: by
    `preconditioning`, `sigma_data` and `D`, for which its methods take another one, or one per sample.
    """

    def _choose_dimension(self, D: float | torch.Tensor | EllipsisType | None) -> float | torch.Tensor | None:
        return self.config.D if isinstance(D, EllipsisType) else D

    def _compute_deviation(
        self,
        sigma: float | torch.Tensor,
        D: float | torch.Tensor | EllipsisType | None,
        like: torch.Tensor,
    ) -> float | torch.Tensor:
        """Compute the standard deviation of noise at which EDM's coefficients are those of this scheduler."""
        return compute_deviation(self.config.preconditioning, sigma, self._choose_dimension(D), like)

    def scale_model_input(
        self,
        sample: torch.Tensor,
        timestep: float | torch.Tensor,
        D: float | torch.Tensor | EllipsisType | None = ...,
    ) -> torch.Tensor:
        """
        Scale a sample by c_in at the current timestep.

        Args:
            sample (`torch.Tensor`): The current sample x.
            timestep (`float` or `torch.Tensor`): The current entry of `timesteps`.
            D (`float`, `torch.Tensor` or `None`, *optional*): Augmented dimension of the samples; the
                scheduler's by default. It matters to `preconditioning="t-edm"`.

        Returns:
            `torch.Tensor`: The network's input, c_in * x.
        """
        if self.step_index is None:
            self._init_step_index(timestep)
        self.is_scale_input_called = True
        return self.precondition_inputs(sample, self.sigmas[self.step_index], D)

    def precondition_inputs(
        self,
        sample: torch.Tensor,
        sigma: float | torch.Tensor,
        D: float | torch.Tensor | EllipsisType | None = ...,
    ) -> torch.Tensor:
        """
        Scale samples by c_in.

        Args:
            sample (`torch.Tensor`): The samples x.
            sigma (`float` or `torch.Tensor`): Their noise level, of a shape that broadcasts over them.
            D (`float`, `torch.Tensor` or `None`, *optional*): As for [`scale_model_input`].

        Returns:
            `torch.Tensor`: The network's input, c_in * x.
        """
        return super().precondition_inputs(sample, self._compute_deviation(sigma, D, sample))

    def precondition_outputs(
        self,
        sample: torch.Tensor,
        model_output: torch.Tensor,
        sigma: float | torch.Tensor,
        D: float | torch.Tensor | EllipsisType | None = ...,
    ) -> torch.Tensor:
        """
        Make denoised images of the network's output.

        Args:
            sample (`torch.Tensor`): The samples x.
            model_output (`torch.Tensor`): The network's output for their scaled form.
            sigma (`float` or `torch.Tensor`): Their noise level, of a shape that broadcasts over them.
            D (`float`, `torch.Tensor` or `None`, *optional*): As for [`scale_model_input`].

        Returns:
            `torch.Tensor`: F = c_skip * x + c_out * output.
        """
        deviation = self._compute_deviation(sigma, D, sample)
        return super().precondition_outputs(sample, model_output, deviation)

    def weigh_loss(
        self, sigma: torch.Tensor, D: float | torch.Tensor | EllipsisType | None = ...
    ) -> torch.Tensor:
        r"""
        Compute the weight of the squared error, $\lambda = 1/c_{out}^2$.

        Args:
            sigma (`torch.Tensor` of shape `(batch,)`): The noise levels.
            D (`float`, `torch.Tensor` of shape `(batch,)` or `None`, *optional*): As for
                [`scale_model_input`].

        Returns:
            `torch.Tensor` of shape `(batch,)`: The weights.
        """
        deviation = self._compute_deviation(sigma, D, sigma)
        sigma_data = self.config.sigma_data
        return (deviation**2 + sigma_data**2) / (deviation * sigma_data) ** 2


def takes_dimension(scheduler: Any) -> bool:
    """
    Tell whether a scheduler's methods take D, as ours do and those of diffusers do not.

    Args:
        scheduler (`SchedulerMixin`): The scheduler.

    Returns:
        `bool`: Whether they do.
    """
    return "D" in inspect.signature(scheduler.step).parameters


def name_dimension(scheduler: Any, D: float | torch.Tensor | EllipsisType | None) -> dict[str, Any]:
    """
    Name the augmented dimension as an argument of the scheduler's methods, if they take it.

    Args:
        scheduler (`SchedulerMixin`): The scheduler. Those of diffusers know no D.
        D (`float`, `torch.Tensor` or `None`): The augmented dimension.

    Returns:
        `dict[str, Any]`: `{"D": D}`, or nothing.
    """
    return {"D": D} if takes_dimension(scheduler) else {}


def find_output(
    scheduler: Any,
    x: torch.Tensor,
    denoised: torch.Tensor,
    sigma: torch.Tensor | float,
    **dimension: Any,
) -> torch.Tensor:
    """
    Find the raw output by which a network would denoise samples to given images.

    Args:
        scheduler (`SchedulerMixin`): Owns the preconditioning, which is affine in the output.
        x (`torch.Tensor` of shape `(batch, channels, height, width)`): The samples.
        denoised (`torch.Tensor`): The images, of a shape that broadcasts to it.
        sigma (`torch.Tensor` or `float`): The noise level.
        dimension: The augmented dimension, as from [`name_dimension`].

    Returns:
        `torch.Tensor`: The output, in the shape of `x`.
    """
    skipped = scheduler.precondition_outputs(x, torch.zeros_like(x), sigma, **dimension)
    scale = scheduler.precondition_outputs(torch.zeros_like(x), torch.ones_like(x), sigma, **dimension)
    return (denoised - skipped) / scale
