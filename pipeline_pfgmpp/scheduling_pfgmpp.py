# Copyright 2026 The pipeline_pfgmpp authors. Licensed under the Apache License, Version 2.0.
r"""
The PFGM++ sampler as a diffusers scheduler.

With $r = \sigma\sqrt{D}$ a field line of PFGM++ (https://huggingface.co/papers/2302.04265, sec. 4)
is EDM's probability flow,

$$\frac{dx}{d\sigma} = \frac{x - F(x, \sigma)}{\sigma}, \qquad
  F(x, \sigma) \approx \mathbb{E}[y \mid x, \sigma],$$

started from Student-t noise at $\sigma_{max}$. The scheduler is therefore diffusers' EDM scheduler
plus three things: `D`, the noise that belongs to it, and a choice of solvers. These are EDM's Heun
with churn (https://huggingface.co/papers/2206.00364, alg. 2), Euler, and diffusers' implementation
of the multistep DPM-Solver++ (https://huggingface.co/papers/2211.01095). For networks that map every
point of a field line to the line's end, it has multistep consistency sampling
(https://huggingface.co/papers/2303.01469, alg. 1): each output is perturbed to the next noise level.
"""

import math
from dataclasses import dataclass
from types import EllipsisType
from typing import Any

import numpy as np
import torch
from diffusers import EDMDPMSolverMultistepScheduler
from diffusers.configuration_utils import FrozenDict, register_to_config
from diffusers.utils import BaseOutput

from .arguments import check_integer, describe
from .noise import sample_noise, sample_noise_given
from .preconditioning import PreconditionedScheduler
from .scheduler_config import SOLVERS, PortableConfig, check_levels, check_scheduler_options


# How far timesteps of `add_noise` may lie outside the noise levels: training draws some there.
TOLERANCE = 10.0
TIMESTEPS = "`timesteps` must be c_noise = ln(sigma) / 4"


@dataclass
class PFGMPPSchedulerOutput(BaseOutput):
    """
    Output of [`PFGMPPScheduler.step`].

    Args:
        prev_sample (`torch.Tensor`): The sample at the next timestep, where the network is called next.
        pred_original_sample (`torch.Tensor`): The denoised image F(x, sigma) at the current
            timestep, for previews.
    """

    prev_sample: torch.Tensor
    pred_original_sample: torch.Tensor


# The options that EDMEulerScheduler has as well.
EDM_OPTIONS = [
    "sigma_min",
    "sigma_max",
    "sigma_data",
    "sigma_schedule",
    "num_train_timesteps",
    "prediction_type",
    "rho",
    "final_sigmas_type",
]
SPACING = ("sigma_min", "sigma_max", "rho", "sigma_schedule")


class PFGMPPScheduler(PreconditionedScheduler):
    r"""
    Scheduler of PFGM++ for any augmented dimension D, from PFGM (D = 1) to diffusion (D = infinity).

    It prepares inputs and outputs as diffusers' EDM schedulers do, so the network sees $c_{in} x$
    and $c_{noise} = \ln(\sigma)/4$ and any `UNet2DModel` fits. `from_config` converts between them
    and keeps `D`. Heun's method appears as 2n - 1 timesteps, one for each call of the network.

    Args:
        D (`float` or `None`, defaults to 2048): Augmented dimension, any real D of at least 0.5; `None`
            is infinity, that is, diffusion.
        sigma_min (`float`, defaults to 0.002): Smallest noise level of the steps, in units of the
            data in [-1, 1].
        sigma_max (`float`, defaults to 80): Largest noise level, where sampling starts.
        sigma_data (`float`, defaults to 0.5): Standard deviation of the data, for the
            preconditioning.
        rho (`float`, defaults to 7): Exponent of the step spacing; larger values put more steps near
            `sigma_min`.
        num_train_timesteps (`int`, defaults to 1000): Length of the schedule before `set_timesteps`
            is called.
        solver_type (`str`, defaults to `"heun"`): `"heun"` (order 2, two calls of the network per
            step) or, with one call per step, `"euler"` (order 1), `"dpmpp_2m"` (order 2),
            `"dpmpp_3m"` (order 3) or the stochastic `"dpmpp_2m_sde"`; `"consistency"` for networks
            trained for few calls.
        s_churn (`float`, defaults to 0): Amount of noise that Heun or Euler adds back over all
            steps; 0 is deterministic.
        s_tmin (`float`, defaults to 0): Noise level below which no noise is added back.
        s_tmax (`float` or `None`, defaults to `None`): Noise level above which no noise is added
            back; `None` is infinity.
        s_noise (`float`, defaults to 1): Factor on the noise that is added back.
        stochastic_noise (`str`, defaults to `"student-t"`): Noise of churn and of stochastic
            solvers. `"student-t"` keeps the marginal of PFGM++ at every D (see
            [`~pipeline_pfgmpp.noise.sample_noise_given`]). `"gaussian"` is the published form, which
            keeps it only at D = infinity, where the two are the same.
        sigma_schedule (`str`, defaults to `"karras"`): `"karras"` (with `rho`) or `"exponential"`.
        prediction_type (`str`, defaults to `"epsilon"`): As in `EDMEulerScheduler`; `"epsilon"` is
            EDM's preconditioning.
        final_sigmas_type (`str`, defaults to `"zero"`): Where the last step ends: `"zero"` or
            `"sigma_min"`, of given noise levels the last; consistency sampling ends at zero.
        lower_order_final (`bool`, defaults to `True`): Whether multistep solvers lower their order
            in the last steps when there are fewer than 15.
        max_noise_norm (`float` or `None`, defaults to `None`): Largest norm of unit noise, in units
            of $\sqrt N$, in training and in the prior; longer noise is shortened to it. `None` sets
            no limit, which is exact. A limit helps training at D up to 2: there the squared norm of
            the noise has no finite mean, so a few distant samples dominate the loss.
        D_range (`tuple[float, float | None]` or `None`, defaults to `None`): Smallest and largest D
            that a network conditioned on D was trained for, the second `None` for infinity. `None`
            alone means that the range is unknown.
        default_steps (`int` or `None`, defaults to `None`): Number of steps that suits the network, which
            pipelines take by default; `None` leaves it to them.
        sigmas (`dict[str, dict[str, list[float]]]` or `None`, defaults to `None`): Noise levels that
            suit the network, by solver and number of steps, such as `{"consistency": {"2": [80.0, 0.8]}}`.
            They take the place of `sigma_schedule` and `rho` for these numbers of steps; `from_config` with
            another spacing leaves them out.
        preconditioning (`str`, defaults to `"edm"`): `"edm"`, as the published networks of PFGM++, or
            `"t-edm"`, which scales by the variance of Student-t noise and needs D above 2; see
            [`~pipeline_pfgmpp.preconditioning`]. It belongs to the network, which was trained with it.

    Raises:
        ValueError: An argument is out of range; the message names it.
    """

    _compatibles = ["EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"]

    @register_to_config
    def __init__(
        self,
        D: float | None = 2048,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        sigma_data: float = 0.5,
        rho: float = 7.0,
        num_train_timesteps: int = 1000,
        solver_type: str = "heun",
        s_churn: float = 0.0,
        s_tmin: float = 0.0,
        s_tmax: float | None = None,
        s_noise: float = 1.0,
        stochastic_noise: str = "student-t",
        sigma_schedule: str = "karras",
        prediction_type: str = "epsilon",
        final_sigmas_type: str = "zero",
        lower_order_final: bool = True,
        max_noise_norm: float | None = None,
        D_range: tuple[float, float | None] | None = None,
        default_steps: int | None = None,
        sigmas: dict[str, dict[str, list[float]]] | None = None,
        preconditioning: str = "edm",
    ):
        # JSON has no infinity, and numbers from NumPy or torch are not JSON either.
        self.register_to_config(**check_scheduler_options(self.config))
        super().__init__(**{name: self.config[name] for name in EDM_OPTIONS})
        # The noise levels between which the solver steps. They differ from `sigmas`, where the network
        # is called, by the noise that churn adds.
        self._levels: torch.Tensor = self.sigmas
        self._reset()

    def register_to_config(self, **entries: Any) -> None:
        """
        Add entries to the configuration.

        Args:
            entries: The entries and their values.
        """
        # diffusers lists here the arguments that were not given, and `from_config` of another scheduler
        # drops their values. D decides the noise, so it must never be dropped.
        if "_use_default_values" in entries:
            entries["_use_default_values"] = sorted(set(entries["_use_default_values"]) - {"D"})
        super().register_to_config(**entries)
        self._internal_dict = PortableConfig(self.config)  # diffusers offers no other way to set it

    @classmethod
    def extract_init_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> tuple[dict, dict, dict]:
        """
        Split a configuration into what this class takes and what it keeps for other schedulers.

        Args:
            config_dict (`dict`): The configuration.
            kwargs: Values that replace those of the configuration.

        Returns:
            `tuple[dict, dict, dict]`: As in [`~diffusers.ConfigMixin.extract_init_dict`].
        """
        # A plain dictionary holds only entries: this class does know its own solvers.
        entries = dict(config_dict)
        # EDMDPMSolverMultistepScheduler, which alone has an `algorithm_type`, means something else by this.
        if "algorithm_type" in entries and entries.get("solver_type") == "midpoint":
            entries["solver_type"] = "heun"
        # Only a scheduler of diffusers has a configuration without D, and it is one of D = infinity.
        if isinstance(config_dict, FrozenDict):
            entries.setdefault("D", None)
        # Levels that were chosen for a spacing would take the place of another one that is asked for.
        if any(name in kwargs and kwargs[name] != entries.get(name) for name in SPACING):
            entries["sigmas"] = None
        return super().extract_init_dict(entries, **kwargs)

    @property
    def order(self) -> int:
        """Calls of the network per step: 2 for Heun, 1 for the others."""
        return 2 if self.config.solver_type == "heun" else 1

    @property
    def init_noise_sigma(self) -> float:
        """
        Factor from unit noise to the first sample: the first noise level, which is `sigma_max`
        unless `set_timesteps` was given other levels. With churn before the first step it is the
        raised level, since the prior can be drawn there directly.
        """
        return self.sigmas[0].item()

    def sample_noise(
        self,
        shape: tuple[int, ...],
        generator: torch.Generator | list[torch.Generator] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        D: float | torch.Tensor | EllipsisType | None = ...,
    ) -> torch.Tensor:
        """
        Draw unit noise for this scheduler's `D`; see [`~pipeline_pfgmpp.noise.sample_noise`].

        Args:
            shape (`tuple[int, ...]`): Shape of the noise, `(batch, ...)`.
            generator (`torch.Generator` or a list of them, *optional*): One for all images, or one
                per image.
            device (`torch.device`, *optional*): Device of the result.
            dtype (`torch.dtype`, *optional*): Type of the result.
            D (`float`, `torch.Tensor` or `None`, *optional*): Another augmented dimension; the
                scheduler's by default.

        Returns:
            `torch.Tensor`: Student-t noise of scale 1.
        """
        D = self._choose_dimension(D)
        return sample_noise(shape, D, generator, device, dtype, self.config.max_noise_norm)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
        sigmas: list[float] | torch.Tensor | None = None,
        timesteps: list[float] | torch.Tensor | None = None,
        reverse: bool = False,
    ) -> None:
        r"""
        Set the noise levels of the steps, by default

        $$\sigma_i = \Bigl(\sigma_{max}^{1/\rho} + \frac{i}{n-1} (\sigma_{min}^{1/\rho} -
          \sigma_{max}^{1/\rho})\Bigr)^\rho$$

        for i < n, and then 0 (https://huggingface.co/papers/2206.00364, eq. 5). Consistency sampling
        takes the first n of n + 1 such levels, since a call at `sigma_min` would change nothing.
        Where the configuration has `sigmas` for the solver and for n, these are the levels.

        Args:
            num_inference_steps (`int`, *optional*): Number n of steps. Heun calls the network 2n -
                1 times, the others n times.
            device (`torch.device`, *optional*): Device of `timesteps`; `sigmas` stay on the CPU.
            sigmas (`list[float]` or `torch.Tensor`, *optional*): The n noise levels themselves,
                decreasing and positive.
            timesteps (`list[float]` or `torch.Tensor`, *optional*): The same levels as c_noise =
                ln(sigma) / 4.
            reverse (`bool`, defaults to `False`): Whether to step the other way, from the smallest
                of the n noise levels up to the largest, which inverts sampling. No noise is added
                back on the way, and the configuration's `sigmas` are not used.

        Raises:
            ValueError: Not exactly one of the three is given, its values are not as described, or
                consistency sampling is to be reversed.
        """
        given = [value for value in (num_inference_steps, sigmas, timesteps) if value is not None]
        if len(given) != 1:
            raise ValueError("Give exactly one of `num_inference_steps`, `sigmas` and `timesteps`.")
        if reverse and self._is_consistency:
            raise ValueError("`reverse` must be False for the consistency solver, which follows no line up.")
        if timesteps is not None:
            sigmas = self._read_timesteps(timesteps)
        if sigmas is None:
            steps = self._space_steps(num_inference_steps, reverse)
            smallest = min(self.config.sigma_min, steps[-1].item())
        else:
            steps = check_levels("`sigmas` or `timesteps`", sigmas)
            smallest = steps[-1].item()

        if reverse:
            levels = steps.flip(0)
            last = steps[:0]
        else:
            levels = steps
            end = smallest if self.config.final_sigmas_type == "sigma_min" else 0.0
            last = steps.new_tensor([end])
        # Heun meets each level after the first twice: to correct the step to it, and to leave it.
        self._levels = torch.cat([levels[:1], levels[1:].repeat_interleave(self.order), last]).float()

        # Churn adds noise before a step, so the network is first called at the raised level.
        s_tmax = math.inf if self.config.s_tmax is None else self.config.s_tmax
        starts = self._levels[: -1 : self.order]
        gamma = 0.0 if reverse else min(self.config.s_churn / len(steps), 2**0.5 - 1)
        churned = (self.config.s_tmin <= starts) & (starts <= s_tmax)
        self.sigmas = self._levels.clone()
        self.sigmas[: -1 : self.order] = torch.where(churned, starts * (1 + gamma), starts)

        self.num_inference_steps = len(steps)
        self.timesteps = self.precondition_noise(self.sigmas[:-1]).to(device)
        self._step_index: int | None = None
        self._begin_index: int | None = None
        self._reset()

    def _reset(self) -> None:
        """Forget the steps that were taken, so that nothing is shared with a copy of this scheduler."""
        # The first half of a step of Heun: where it began, at which noise level and with which slope, and
        # where it ended.
        self._half_step: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor] | None = None
        # The last denoised images, for multistep solvers.
        self._recent_denoised: list[torch.Tensor] = []
        # diffusers' implementation of the multistep solvers, which keeps its position in itself.
        self._multistep: Any = None
        options = SOLVERS[self.config.solver_type]
        if options is not None:
            self._multistep = EDMDPMSolverMultistepScheduler(num_train_timesteps=2, **options)

    @property
    def _is_consistency(self) -> bool:
        return self.config.solver_type == "consistency"

    def _space_steps(self, num_inference_steps: Any, reverse: bool) -> torch.Tensor:
        """Return n noise levels from `sigma_max` down, in float64."""
        n = check_integer("num_inference_steps", num_inference_steps, "be a positive integer", 1)
        tuned = (self.config.sigmas or {}).get(self.config.solver_type, {}).get(str(n))
        if tuned and not reverse:
            return torch.tensor(tuned, dtype=torch.float64)
        ramp = torch.linspace(0, 1, n + self._is_consistency, dtype=torch.float64)[:n]
        if self.config.sigma_schedule == "karras":
            return self._compute_karras_sigmas(ramp)
        # diffusers' own function reads of the ramp only how long it is.
        log_max = math.log(self.config.sigma_max)
        return (log_max + ramp * (math.log(self.config.sigma_min) - log_max)).exp()

    def set_begin_index(self, begin_index: int = 0) -> None:
        """
        Start sampling midway, at `timesteps[begin_index]`.

        Args:
            begin_index (`int`, defaults to 0): Index of the timestep that begins a step: a
                multiple of `order`.

        Raises:
            ValueError: The index is that of no timestep, or falls in the middle of a step of Heun.
        """
        last = len(self.timesteps) - 1
        requirement = f"be a multiple of the solver's order {self.order}, from 0 to {last}"
        begin_index = check_integer("begin_index", begin_index, requirement, 0, last)
        if begin_index % self.order:
            raise ValueError(f"`begin_index` must {requirement}, but is {begin_index}.")
        self._begin_index = begin_index

    def index_for_timestep(
        self, timestep: float | torch.Tensor, schedule_timesteps: torch.Tensor | None = None
    ) -> int:
        """
        Find the step that begins nearest to a timestep.

        Args:
            timestep (`float` or `torch.Tensor`): A value of c_noise = ln(sigma) / 4.
            schedule_timesteps (`torch.Tensor`, *optional*): Timesteps to search; by default the
                scheduler's.

        Returns:
            `int`: Index into the timesteps, a multiple of `order`.
        """
        candidates = self.timesteps if schedule_timesteps is None else schedule_timesteps
        return self.order * (candidates[:: self.order] - timestep).abs().argmin().item()

    def step(
        self,
        model_output: torch.Tensor,
        timestep: float | torch.Tensor,
        sample: torch.Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
        D: float | torch.Tensor | EllipsisType | None = ...,
    ) -> PFGMPPSchedulerOutput | tuple[torch.Tensor, torch.Tensor]:
        """
        Take one step along the field line, to the next timestep.

        The state is computed in at least float32. Keep samples in float32 between steps, whatever
        the network's type. Samples may be changed between calls. What is changed after the first half of a
        step of Heun stays as it is in the second half, which would correct it by the line that it left.

        Args:
            model_output (`torch.Tensor`): Output of the network for `scale_model_input(sample,
                timestep)`.
            timestep (`float` or `torch.Tensor`): The current entry of `timesteps`. Only the first
                step looks it up; later ones follow.
            sample (`torch.Tensor`): The current sample x.
            generator (`torch.Generator` or a list of them, *optional*): Source of the noise of
                churn and of stochastic solvers, which the consistency solver is.
            return_dict (`bool`, defaults to `True`): Whether to return a [`PFGMPPSchedulerOutput`]
                or a tuple.
            D (`float`, `torch.Tensor` or `None`, *optional*): Augmented dimension of the samples; the
                scheduler's by default.

        Returns:
            [`PFGMPPSchedulerOutput`] or `tuple`: The next sample and the denoised image, in the type
                of `sample`.

        Raises:
            ValueError: `set_timesteps` was not called, or all its steps have been taken.
        """
        if self.num_inference_steps is None:
            raise ValueError("Call `set_timesteps` before `step`: the number of inference steps is not set.")
        if self.step_index is None:
            self._init_step_index(timestep)
        index = self.step_index
        if index >= len(self.timesteps):
            raise ValueError("All timesteps are used up; call `set_timesteps` to sample again.")

        x = sample.to(torch.promote_types(sample.dtype, torch.float32))
        denoised = self.precondition_outputs(x, model_output.to(x.dtype), self.sigmas[index], D)
        if self._is_consistency:
            prev_sample = self._step_consistency(denoised, index, generator, D)
        elif self._multistep is not None:
            prev_sample = self._step_multistep(x, denoised, index, generator, D)
        else:
            prev_sample = self._step_single(x, denoised, index, sample.dtype)

        raised = self.sigmas[index + 1]
        target = self._levels[index + 1]
        if raised > target:
            churn = self._sample_step_noise(prev_sample, denoised, target, generator, D)
            prev_sample = prev_sample + self.config.s_noise * (raised**2 - target**2).sqrt() * churn

        self._step_index = index + 1
        prev_sample = prev_sample.to(sample.dtype)
        denoised = denoised.to(sample.dtype)
        if not return_dict:
            return prev_sample, denoised
        return PFGMPPSchedulerOutput(prev_sample=prev_sample, pred_original_sample=denoised)

    def _step_consistency(self, denoised: torch.Tensor, index: int, generator: Any, D: Any) -> torch.Tensor:
        """Perturb the end of the field line to the next noise level, with fresh noise."""
        target = self.sigmas[index + 1]
        if target == 0:
            return denoised
        shape = tuple(denoised.shape)
        return denoised + target * self.sample_noise(shape, generator, denoised.device, denoised.dtype, D)

    def _step_single(
        self, x: torch.Tensor, denoised: torch.Tensor, index: int, dtype: torch.dtype
    ) -> torch.Tensor:
        """Take a step of Euler, or the first or second half of a step of Heun."""
        sigma = self.sigmas[index]
        target = self._levels[index + 1]
        slope = (x - denoised) / sigma
        if self._half_step is not None:
            start, start_sigma, start_slope, end = self._half_step
            self._half_step = None
            corrected = start + (target - start_sigma) * (start_slope + slope) / 2
            return torch.where(x == end.to(dtype), corrected, x)
        end = x + (target - sigma) * slope
        if self.order == 2 and index + 1 < len(self.timesteps):
            self._half_step = (x, sigma, slope, end.to(dtype))
        return end

    def _step_multistep(
        self, x: torch.Tensor, denoised: torch.Tensor, index: int, generator: Any, D: Any
    ) -> torch.Tensor:
        """Take a step of DPM-Solver++ from as many of the last denoised images as its order needs."""
        solver = self._multistep
        sigma = self.sigmas[index]
        target = self.sigmas[index + 1]
        # diffusers' updates read the noise levels and the position from the solver itself.
        solver.sigmas = self.sigmas
        solver._step_index = index
        self._recent_denoised = [*self._recent_denoised, denoised][-solver.config.solver_order :]
        order = len(self._recent_denoised)
        if target in (0, sigma):
            order = 1  # at sigma = 0 this gives the denoised image itself
        elif self.config.lower_order_final and len(self.timesteps) < 15:
            order = min(order, len(self.timesteps) - index)
        noise = None
        if solver.config.algorithm_type == "sde-dpmsolver++":
            noise = torch.zeros_like(x)
            if target > 0:
                noise = self._sample_step_noise(x, denoised, sigma, generator, D)
            noise = self.config.s_noise * noise
        if order == 1:
            return solver.dpm_solver_first_order_update(denoised, sample=x, noise=noise)
        if order == 2:
            return solver.multistep_dpm_solver_second_order_update(
                self._recent_denoised, sample=x, noise=noise
            )
        return self._update_third_order(x, index)

    def _update_third_order(self, x: torch.Tensor, index: int) -> torch.Tensor:
        r"""
        Integrate the parabola in $\lambda = -\ln\sigma$ through the last three denoised images.

        With $h$ the length of the step and $P$ the parabola, $x(h) = e^{-h} x + \int_0^h e^{u - h}
        P(u)\, du$. We do not use diffusers' third-order update: like DPM-Solver++'s own, it takes
        the divided difference for the second derivative, which is twice as large, and is therefore
        of order 2.
        """
        oldest, older, newest = self._recent_denoised
        lambda2, lambda1, lambda0, target = (-self.sigmas[index - 2 : index + 2].double().log()).tolist()
        h = target - lambda0
        h0 = lambda0 - lambda1
        h1 = lambda1 - lambda2
        slope0 = (newest - older) / h0
        slope1 = (older - oldest) / h1
        curvature = (slope0 - slope1) / (h0 + h1)  # half of the second derivative
        slope = slope0 + h0 * curvature
        decay = math.expm1(-h)
        # The integrals of 1, u and u^2 against exp(u - h) over 0 ... h.
        return math.exp(-h) * x - decay * newest + (decay + h) * slope + (h * h - 2 * (decay + h)) * curvature

    def _sample_step_noise(
        self, x: torch.Tensor, denoised: torch.Tensor, sigma: torch.Tensor, generator: Any, D: Any
    ) -> torch.Tensor:
        """Draw the noise of churn or of a stochastic step, given the sample that it is added to."""
        D = self._choose_dimension(D)
        if self.config.stochastic_noise == "gaussian":
            D = None
        return sample_noise_given((x - denoised) / sigma, D, generator)

    def add_noise(
        self,
        original_samples: torch.Tensor,
        noise: torch.Tensor,
        timesteps: float | list[float] | torch.Tensor,
    ) -> torch.Tensor:
        r"""
        Perturb data to $x = y + \sigma\varepsilon$ with $\sigma = e^{4 c_{noise}}$, at any noise level.

        Args:
            original_samples (`torch.Tensor` of shape `(batch, ...)`): The data y.
            noise (`torch.Tensor`): Unit noise of the same shape, as from [`sample_noise`].
            timesteps (`float`, `list[float]` or `torch.Tensor`): c_noise, one for all
                images or one per image. Steps counted by integers, as other schedulers take them, are
                refused, as are noise levels beyond ten times `sigma_max` or below a tenth of
                `sigma_min`.

        Returns:
            `torch.Tensor`: The perturbed data, in the type of `original_samples`.

        Raises:
            ValueError: The number of timesteps does not fit the batch, or they are no noise levels of
                this scheduler.
        """
        sigma = self._check_timesteps(timesteps).to(original_samples.device).flatten()
        if len(sigma) not in (1, len(original_samples)):
            raise ValueError(f"{len(sigma)} `timesteps` do not fit a batch of {len(original_samples)}.")
        if not original_samples.is_floating_point():
            raise ValueError(f"`original_samples` must be floats, but are {describe(original_samples)}.")
        if noise.shape != original_samples.shape:
            raise ValueError(
                f"`noise` must be of shape {tuple(original_samples.shape)}, but is of {tuple(noise.shape)}."
            )
        sigma = sigma.view(-1, *[1] * (original_samples.ndim - 1))
        return (original_samples + sigma * noise).to(original_samples.dtype)

    def _check_timesteps(self, timesteps: Any) -> torch.Tensor:
        """Return the noise levels of timesteps, or refuse what is none of this scheduler's."""
        is_tensor = isinstance(timesteps, (torch.Tensor, np.ndarray)) and timesteps.ndim > 0
        if is_tensor and not torch.as_tensor(timesteps).is_floating_point():
            raise ValueError(f"{TIMESTEPS}, as floats, but are {describe(timesteps)}.")
        sigma = self._read_timesteps(timesteps)
        low = min(self.config.sigma_min, self._levels[self._levels > 0].min().item()) / TOLERANCE
        high = max(self.config.sigma_max, self._levels.max().item()) * TOLERANCE
        if not bool(((sigma >= low) & (sigma <= high)).all()):
            raise ValueError(
                f"{TIMESTEPS} in [{math.log(low) / 4:.3g}, {math.log(high) / 4:.3g}], for noise levels from"
                f" {low:g} to {high:g}, but are {timesteps}."
            )
        return sigma

    @staticmethod
    def _read_timesteps(timesteps: Any) -> torch.Tensor:
        """Convert c_noise to noise levels, in at least float32."""
        try:
            numbers = torch.as_tensor(timesteps)
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(f"{TIMESTEPS}, but are {timesteps!r}.") from None
        return (4 * numbers.to(torch.promote_types(numbers.dtype, torch.float32))).exp()
