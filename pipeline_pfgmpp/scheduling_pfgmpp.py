# Copyright 2026 The pipeline_pfgmpp authors. Licensed under the Apache License, Version 2.0.
r"""
The PFGM++ sampler as a diffusers scheduler.

With $r = \sigma\sqrt{D}$ a field line of PFGM++ (https://huggingface.co/papers/2302.04265, sec. 4)
is EDM's probability flow,

$$\frac{dx}{d\sigma} = \frac{x - F(x, \sigma)}{\sigma}, \qquad F(x, \sigma) \approx \mathbb{E}[y \mid x, \sigma],$$

started from Student-t noise at $\sigma_{max}$. So the scheduler is diffusers' EDM scheduler with
three things added: `D`, the noise that belongs to it, and a choice of solvers: EDM's Heun with
churn (https://huggingface.co/papers/2206.00364, alg. 2), Euler, and the multistep solvers of
DPM-Solver++ (https://huggingface.co/papers/2211.01095) as diffusers has them.
"""

import math
from dataclasses import dataclass

import torch
from diffusers import EDMDPMSolverMultistepScheduler, EDMEulerScheduler
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput

from .noise import degrees_of_freedom, sample_noise, sample_noise_given


# What each solver is in EDMDPMSolverMultistepScheduler, where it is one of those.
SOLVERS = {
    "heun": None,
    "euler": None,
    "dpmpp_2m": {"solver_order": 2, "algorithm_type": "dpmsolver++"},
    "dpmpp_3m": {"solver_order": 3, "algorithm_type": "dpmsolver++"},
    "dpmpp_2m_sde": {"solver_order": 2, "algorithm_type": "sde-dpmsolver++"},
}


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


def _check_range(D_range):
    """
    Returns a range of D as JSON keeps it: a list of the least D and of the largest, None for
    infinity.
    """
    if D_range is None:
        return None
    try:
        low, high = (degrees_of_freedom(D).item() for D in D_range)
    except (TypeError, ValueError):
        raise ValueError(
            f"`D_range` must be (low, high), two augmented dimensions, but is {D_range!r}."
        ) from None
    if low > high:
        raise ValueError(f"`D_range` must begin at its least D, but is {D_range!r}.")
    return [None if math.isinf(D) else D for D in (low, high)]


class PFGMPPScheduler(EDMEulerScheduler):
    r"""
    Scheduler of PFGM++ for any augmented dimension D, from PFGM (D = 1) to diffusion (D = infinity).

    It prepares inputs and outputs as diffusers' EDM schedulers do, so the network sees $c_{in} x$
    and $c_{noise} = \ln(\sigma)/4$ and any `UNet2DModel` fits; `from_config` turns the one into the
    other and keeps `D`. Heun's method is spelled as 2n - 1 timesteps, one for each call of the
    network.

    Args:
        D (`float` or `None`, defaults to 2048):
            Augmented dimension, any real D > 0; `None` is infinity, that is diffusion.
        sigma_min (`float`, defaults to 0.002): Smallest noise level of the steps, in units of the
            data in [-1, 1].
        sigma_max (`float`, defaults to 80): Largest noise level, where sampling starts.
        sigma_data (`float`, defaults to 0.5): Standard deviation of the data, for the preconditioning.
        rho (`float`, defaults to 7): Exponent of the step spacing; larger puts more steps near
            `sigma_min`.
        num_train_timesteps (`int`, defaults to 1000): Length of the schedule before `set_timesteps`
            is called.
        solver_type (`str`, defaults to `"heun"`): `"heun"` (order 2, two calls of the network a
            step) or, with one call a step, `"euler"` (order 1), `"dpmpp_2m"` (order 2),
            `"dpmpp_3m"` (order 3) or the stochastic `"dpmpp_2m_sde"`.
        lower_order_final (`bool`, defaults to `True`): Whether multistep solvers lower their order
            in the last steps of fewer than 15.
        s_churn (`float`, defaults to 0): Amount of noise put back over all steps of Heun or Euler;
            0 is deterministic.
        s_tmin (`float`, defaults to 0): Noise level below which nothing is put back.
        s_tmax (`float` or `None`, defaults to `None`): Noise level above which nothing is put back;
            `None` is infinity.
        s_noise (`float`, defaults to 1): Factor on the noise that is put back.
        stochastic_noise (`str`, defaults to `"student-t"`): Noise of churn and of stochastic
            solvers: `"student-t"` keeps the marginal of PFGM++ at every D (see
            [`~pipeline_pfgmpp.noise.sample_noise_given`]); `"gaussian"` is the published form,
            which does so at D = infinity, where the two are the same.
        sigma_schedule (`str`, defaults to `"karras"`): `"karras"` (with `rho`) or `"exponential"`.
        prediction_type (`str`, defaults to `"epsilon"`): As in `EDMEulerScheduler`; `"epsilon"` is
            EDM's preconditioning.
        final_sigmas_type (`str`, defaults to `"zero"`): Where the last step ends: `"zero"` or
            `"sigma_min"`.
        max_noise_norm (`float` or `None`, defaults to `None`): Norm, in units of $\sqrt N$, that
            longer unit noise is shortened to, in training and in the prior. For D up to 2 the
            squared norm has no mean, and so neither has the loss: a network learns little near the
            data and is lost far out without a limit. `None` is none, and exact.
        D_range (`tuple[float, float | None]` or `None`, defaults to `None`): Least and largest D
            that a network conditioned on D was trained for; `None` as the second is infinity.
            `None` alone says that nobody has stated it.

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
    ):
        dof = degrees_of_freedom(D)
        if dof.ndim:
            raise ValueError(f"`D` of a scheduler must be one number, inf or None, but is {D}.")
        if not 0 < sigma_min < sigma_max:
            raise ValueError(
                f"0 < `sigma_min` < `sigma_max` must hold, but they are {sigma_min} and {sigma_max}."
            )
        for name, value in (
            ("sigma_data", sigma_data),
            ("rho", rho),
            ("num_train_timesteps", num_train_timesteps),
            ("max_noise_norm", max_noise_norm or 1),
        ):
            if not value > 0:
                raise ValueError(f"`{name}` must be positive, but is {value}.")
        if not s_churn >= 0:
            raise ValueError(f"`s_churn` must not be negative, but is {s_churn}.")
        if solver_type == "midpoint":  # EDMDPMSolverMultistepScheduler's default, met in its configs
            solver_type = "heun"
        for name, value, allowed in (
            ("solver_type", solver_type, list(SOLVERS)),
            ("sigma_schedule", sigma_schedule, ["karras", "exponential"]),
            ("stochastic_noise", stochastic_noise, ["student-t", "gaussian"]),
        ):
            if value not in allowed:
                raise ValueError(f"`{name}` must be one of {allowed}, but is {value!r}.")
        if s_churn and SOLVERS[solver_type]:
            raise ValueError(
                f"`s_churn` must be 0 with `solver_type` {solver_type!r}, but is {s_churn}: churn is for heun and euler."
            )

        default_names = self.config.get("_use_default_values", [])
        super().__init__(
            sigma_min=sigma_min,
            sigma_max=sigma_max,
            sigma_data=sigma_data,
            sigma_schedule=sigma_schedule,
            num_train_timesteps=num_train_timesteps,
            prediction_type=prediction_type,
            rho=rho,
            final_sigmas_type=final_sigmas_type,
        )
        self.register_to_config(
            D=None if dof.isinf() else D if isinstance(D, int) else dof.item(),  # JSON has no infinity
            D_range=_check_range(D_range),
            s_tmax=None if s_tmax in (None, float("inf")) else s_tmax,
            solver_type=solver_type,
            # When diffusers converts configs it drops these values. D must outlive that; our
            # solvers' names it does not know.
            _use_default_values=sorted((set(default_names) | {"solver_type"}) - {"D"}),
        )
        self._multistep = None
        if SOLVERS[solver_type]:
            self._multistep = EDMDPMSolverMultistepScheduler(num_train_timesteps=2, **SOLVERS[solver_type])
        self._levels = self.sigmas
        self._history = []

    @classmethod
    def extract_init_dict(cls, config_dict, **kwargs):
        # This class does know them (see `_use_default_values` above).
        defaults = [name for name in config_dict.get("_use_default_values", []) if name != "solver_type"]
        return super().extract_init_dict({**config_dict, "_use_default_values": defaults}, **kwargs)

    @property
    def order(self) -> int:
        """Calls of the network in a step: 2 for Heun, 1 for the others."""
        return 2 if self.config.solver_type == "heun" else 1

    @property
    def init_noise_sigma(self) -> float:
        """
        Factor from unit noise to the first sample: the first noise level, `sigma_max` unless
        `set_timesteps` was given others. Where churn would put noise back before the first step it
        is the raised level, since the prior can be drawn there.
        """
        return self.sigmas[0].item()

    def sample_noise(
        self,
        shape: tuple[int, ...],
        generator: torch.Generator | list[torch.Generator] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        D: float | torch.Tensor | None = ...,
    ) -> torch.Tensor:
        """
        Draws unit noise for this scheduler's `D`; see [`~pipeline_pfgmpp.noise.sample_noise`].

        Args:
            shape (`tuple[int, ...]`): Shape of the noise, `(batch, ...)`.
            generator (`torch.Generator` or a list of them, *optional*): One for all, or one an image.
            device (`torch.device`, *optional*): Device of the result.
            dtype (`torch.dtype`, *optional*): Type of the result.
            D (`float`, `torch.Tensor` or `None`, *optional*): Another augmented dimension; by
                default the scheduler's own.

        Returns:
            `torch.Tensor`: Student-t noise of scale 1.
        """
        D = self.config.D if D is ... else D
        return sample_noise(shape, D, generator, device, dtype, self.config.max_noise_norm)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
        sigmas: list[float] | torch.Tensor | None = None,
        timesteps: list[float] | torch.Tensor | None = None,
        reverse: bool = False,
    ):
        r"""
        Sets the noise levels of the steps, by default $\sigma_i = (\sigma_{max}^{1/\rho} + \frac{i}{n-1}
        (\sigma_{min}^{1/\rho} - \sigma_{max}^{1/\rho}))^\rho$ for i < n and then 0.

        Args:
            num_inference_steps (`int`, *optional*): Number n of steps. Heun calls the network 2n -
                1 times, the others n times.
            device (`torch.device`, *optional*): Device of `timesteps`; `sigmas` stay on the CPU.
            sigmas (`list[float]` or `torch.Tensor`, *optional*): The n noise levels themselves,
                falling and positive.
            timesteps (`list[float]` or `torch.Tensor`, *optional*): The same as c_noise = ln(sigma) / 4.
            reverse (`bool`, defaults to `False`): Whether to go the other way, from the least of
                the n noise levels up to the largest, which inverts sampling. Nothing is put back on
                the way.

        Raises:
            ValueError: Not just one of the three is given, or its values are not as described.
        """
        if sum(given is not None for given in (num_inference_steps, sigmas, timesteps)) != 1:
            raise ValueError("Give just one of `num_inference_steps`, `sigmas` and `timesteps`.")
        if timesteps is not None:
            sigmas = self._sigmas_of(timesteps)
        if sigmas is not None:
            steps = torch.as_tensor(sigmas, dtype=torch.float64, device="cpu")
            if (
                steps.ndim != 1
                or not len(steps)
                or not bool((steps > 0).all())
                or not bool((steps.diff() < 0).all())
            ):
                raise ValueError(
                    f"`sigmas` or `timesteps` must be a falling list of positive noise levels, but are {sigmas}."
                )
        else:
            if int(num_inference_steps) != num_inference_steps or num_inference_steps < 1:
                raise ValueError(
                    f"`num_inference_steps` must be a positive integer, but is {num_inference_steps}."
                )
            ramp = torch.linspace(0, 1, int(num_inference_steps), dtype=torch.float64)
            karras = self.config.sigma_schedule == "karras"
            steps = self._compute_karras_sigmas(ramp) if karras else self._compute_exponential_sigmas(ramp)

        if reverse:
            steps, last = steps.flip(0), steps[:0]
        else:
            last = steps[-1:] if self.config.final_sigmas_type == "sigma_min" else steps.new_zeros(1)
        # Heun meets each level after the first twice: to correct the step to it, and to leave it.
        self._levels = torch.cat([steps[:1], steps[1:].repeat_interleave(self.order), last]).float()

        # Churn puts noise back before a step, so the network is first called at the raised level.
        s_tmax = float("inf") if self.config.s_tmax is None else self.config.s_tmax
        starts = self._levels[: -1 : self.order]
        gamma = 0.0 if reverse else min(self.config.s_churn / len(steps), 2**0.5 - 1)
        churned = (self.config.s_tmin <= starts) & (starts <= s_tmax)
        self.sigmas = self._levels.clone()
        self.sigmas[: -1 : self.order] = torch.where(churned, starts * (1 + gamma), starts)

        self.num_inference_steps = len(steps)
        self.timesteps = self.precondition_noise(self.sigmas[:-1]).to(device)
        self._step_index = self._begin_index = None
        self._history = []

    def set_begin_index(self, begin_index: int = 0):
        """
        Starts sampling midway, at `timesteps[begin_index]`.

        Args:
            begin_index (`int`, defaults to 0): Index of a timestep that begins a step: a multiple
                of `order`.

        Raises:
            ValueError: The index is negative or in the middle of a step of Heun.
        """
        if begin_index < 0 or begin_index % self.order:
            raise ValueError(
                f"`begin_index` must be a multiple of the solver's order {self.order}, but is {begin_index}."
            )
        self._begin_index = begin_index

    def index_for_timestep(
        self, timestep: float | torch.Tensor, schedule_timesteps: torch.Tensor | None = None
    ) -> int:
        """
        Index of the step that begins nearest to a timestep.

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
        D: float | torch.Tensor | None = ...,
    ) -> PFGMPPSchedulerOutput | tuple[torch.Tensor, torch.Tensor]:
        """
        Goes from one timestep to the next along the field line.

        The state is computed in float32 at least; keep samples in float32 between steps, whatever
        the network's type.

        Args:
            model_output (`torch.Tensor`): What the network returned for `scale_model_input(sample,
                timestep)`.
            timestep (`float` or `torch.Tensor`): The current entry of `timesteps`; it places the
                first step, later ones follow.
            sample (`torch.Tensor`): The current sample x.
            generator (`torch.Generator` or a list of them, *optional*): Source of the noise of
                churn and stochastic solvers.
            return_dict (`bool`, defaults to `True`): Whether to return a [`PFGMPPSchedulerOutput`]
                or a tuple.
            D (`float`, `torch.Tensor` or `None`, *optional*): Augmented dimension of that noise;
                the scheduler's by default.

        Returns:
            [`PFGMPPSchedulerOutput`] or `tuple`: The next sample in the type of `sample`, and the
                denoised image.

        Raises:
            ValueError: `set_timesteps` was not called, or its steps are used up.
        """
        if self.num_inference_steps is None:
            raise ValueError("Call `set_timesteps` before `step`: the number of inference steps is not set.")
        if self.step_index is None:
            self._init_step_index(timestep)
        index = self.step_index
        if index >= len(self.timesteps):
            raise ValueError("All timesteps are used up; call `set_timesteps` to sample again.")

        dtype = torch.promote_types(sample.dtype, torch.float32)
        x, sigma, target = sample.to(dtype), self.sigmas[index], self._levels[index + 1]
        denoised = self.precondition_outputs(x, model_output.to(dtype), sigma)
        if self._multistep is not None:
            prev_sample = self._multistep_update(x, denoised, index, generator, D)
        elif self._history:  # the second half of a step of Heun
            start, start_sigma, start_slope = self._history.pop()
            prev_sample = start + (target - start_sigma) * (start_slope + (x - denoised) / sigma) / 2
        else:
            slope = (x - denoised) / sigma
            prev_sample = x + (target - sigma) * slope
            if self.order == 2 and index + 1 < len(self.timesteps):
                self._history.append((x, sigma, slope))

        raised = self.sigmas[index + 1]
        if raised > target:
            churn = self._stochastic_noise(prev_sample, denoised, target, generator, D)
            prev_sample = prev_sample + self.config.s_noise * (raised**2 - target**2).sqrt() * churn

        self._step_index += 1
        prev_sample, denoised = prev_sample.to(sample.dtype), denoised.to(sample.dtype)
        if not return_dict:
            return prev_sample, denoised
        return PFGMPPSchedulerOutput(prev_sample=prev_sample, pred_original_sample=denoised)

    def _multistep_update(self, x, denoised, index, generator, D):
        """A step of DPM-Solver++ with as many of the last denoised images as its order takes."""
        solver, sigma, target = self._multistep, self.sigmas[index], self.sigmas[index + 1]
        solver.sigmas, solver._step_index = self.sigmas, index
        remaining = len(self.timesteps) - index
        self._history = [*self._history, denoised][-solver.config.solver_order :]
        order = len(self._history)
        if target in (0, sigma):
            order = 1  # at sigma = 0 the denoised image itself
        elif self.config.lower_order_final and len(self.timesteps) < 15:
            order = min(order, remaining)
        noise = None
        if solver.config.algorithm_type == "sde-dpmsolver++":
            noise = (
                self._stochastic_noise(x, denoised, sigma, generator, D)
                if target > 0
                else torch.zeros_like(x)
            )
            noise = self.config.s_noise * noise
        if order == 1:
            return solver.dpm_solver_first_order_update(denoised, sample=x, noise=noise)
        if order == 2:
            return solver.multistep_dpm_solver_second_order_update(self._history, sample=x, noise=noise)
        return self._third_order_update(x, index)

    def _third_order_update(self, x, index):
        r"""
        The exponential integral of the parabola in $\lambda = -\ln\sigma$ through the last three
        denoised images.

        diffusers' third order, like DPM-Solver++'s own, takes the divided difference for the second
        derivative, which is twice as large, and so is of order 2.
        """
        oldest, older, newest = self._history
        lambda2, lambda1, lambda0, target = (-self.sigmas[index - 2 : index + 2].double().log()).tolist()
        h, h0, h1 = target - lambda0, lambda0 - lambda1, lambda1 - lambda2
        slope0, slope1 = (newest - older) / h0, (older - oldest) / h1
        curvature = (slope0 - slope1) / (h0 + h1)  # half of the second derivative
        slope = slope0 + h0 * curvature
        decay = math.expm1(-h)
        # the integrals of 1, u and u^2 against exp(u - h) over 0 ... h
        return math.exp(-h) * x - decay * newest + (decay + h) * slope + (h * h - 2 * (decay + h)) * curvature

    def _stochastic_noise(self, x, denoised, sigma, generator, D):
        D = self.config.D if D is ... else D
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
        Perturbs data to $x = y + \sigma\varepsilon$ with $\sigma = e^{4 c_{noise}}$, at any noise level.

        Args:
            original_samples (`torch.Tensor` of shape `(batch, ...)`): The data y.
            noise (`torch.Tensor`): Unit noise of the same shape, as from [`sample_noise`].
            timesteps (`float`, `list[float]` or `torch.Tensor`): c_noise, one for all or one an image.

        Returns:
            `torch.Tensor`: The perturbed data, in the type of `original_samples`.

        Raises:
            ValueError: The number of timesteps does not fit the batch.
        """
        sigma = self._sigmas_of(timesteps).to(original_samples.device).flatten()
        if len(sigma) not in (1, len(original_samples)):
            raise ValueError(f"{len(sigma)} `timesteps` do not fit a batch of {len(original_samples)}.")
        sigma = sigma.view(-1, *[1] * (original_samples.ndim - 1))
        return (original_samples + sigma * noise).to(original_samples.dtype)

    @staticmethod
    def _sigmas_of(timesteps):
        """Noise levels from c_noise, in float32 at least."""
        timesteps = torch.as_tensor(timesteps)
        return (4 * timesteps.to(torch.promote_types(timesteps.dtype, torch.float32))).exp()
