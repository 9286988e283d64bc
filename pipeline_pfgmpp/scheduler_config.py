# Copyright 2026 The pipeline_pfgmpp authors. Licensed under the Apache License, Version 2.0.
"""The scheduler's configuration: which values are allowed, and how other schedulers read it."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from diffusers.configuration_utils import FrozenDict

from .arguments import LARGEST, SMALLEST, check_choice, check_integer, check_number, read_number
from .noise import SMALLEST_D_FOR_IMAGES, parse_dimension
from .preconditioning import check_preconditioning


# The solvers, with the options of EDMDPMSolverMultistepScheduler for those that it implements.
SOLVERS: dict[str, dict[str, Any] | None] = {
    "heun": None,
    "euler": None,
    "dpmpp_2m": {"solver_order": 2, "algorithm_type": "dpmsolver++"},
    "dpmpp_3m": {"solver_order": 3, "algorithm_type": "dpmsolver++"},
    "dpmpp_2m_sde": {"solver_order": 2, "algorithm_type": "sde-dpmsolver++"},
    "consistency": None,
}
CHURNING_SOLVERS = ("heun", "euler")
DEFAULT_STEPS = 18  # of networks whose scheduler states no number


class PortableConfig(FrozenDict):
    """
    A configuration that other schedulers can be built from.

    `from_config` asks a configuration for the names that it lists under `_use_default_values`, and
    leaves their values behind. The names of our solvers mean nothing to diffusers' schedulers, one of
    which has a `solver_type` of its own, so this configuration answers with that name as well. The
    answer is not an entry: nothing of it is compared or saved.
    """

    def get(self, name: str, default: Any = None) -> Any:
        """
        Return an entry.

        Args:
            name (`str`): Its name.
            default (*optional*): What to return if there is none.

        Returns:
            The entry.
        """
        value = super().get(name, default)
        if name == "_use_default_values":
            return [*(value or []), "solver_type"]
        return value


def get_default_steps(scheduler: Any) -> int:
    """
    Return the number of steps that a pipeline takes by default.

    Args:
        scheduler (`SchedulerMixin`): The scheduler, whose `default_steps` states it.

    Returns:
        `int`: That number; 18 where nothing is stated.
    """
    return scheduler.config.get("default_steps") or DEFAULT_STEPS


def check_scheduler_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """
    Check the constructor arguments of [`PFGMPPScheduler`].

    Args:
        options (`Mapping[str, Any]`): The arguments by name.

    Returns:
        `dict[str, Any]`: Those that JSON keeps in another form, in that form: None for infinity, and
            Python's numbers for those of NumPy and torch.

    Raises:
        ValueError: An argument is out of range; the message names it.
    """
    checked: dict[str, Any] = {
        "D": _check_dimension(options["D"]),
        "D_range": _check_range(options["D_range"]),
    }
    for name in ("sigma_min", "sigma_max", "sigma_data"):
        checked[name] = check_number(
            name, options[name], f"lie in [{SMALLEST:g}, {LARGEST:g}]", SMALLEST, LARGEST
        )
    checked["rho"] = check_number("rho", options["rho"], "lie in [0.1, 1000]", 0.1, 1000)
    if checked["sigma_min"] >= checked["sigma_max"]:
        raise ValueError(
            f"0 < `sigma_min` < `sigma_max` must hold, but they are {options['sigma_min']} and"
            f" {options['sigma_max']}."
        )
    for name in ("s_churn", "s_tmin", "s_noise"):
        checked[name] = check_number(name, options[name], "not be negative", 0)
    name = "num_train_timesteps"
    checked[name] = check_integer(name, options[name], "be a positive integer", 1)
    checked["max_noise_norm"] = options["max_noise_norm"]
    if options["max_noise_norm"] is not None:
        checked["max_noise_norm"] = check_number(
            "max_noise_norm", options["max_noise_norm"], "be positive", 0, exclude_low=True
        )
    checked["s_tmax"] = options["s_tmax"]
    if read_number(options["s_tmax"]) == math.inf:
        checked["s_tmax"] = None
    if checked["s_tmax"] is not None:
        checked["s_tmax"] = check_number("s_tmax", options["s_tmax"], "not be negative", 0, math.inf)
    solver = check_choice("solver_type", options["solver_type"], list(SOLVERS))
    check_choice("sigma_schedule", options["sigma_schedule"], ["karras", "exponential"])
    check_choice("stochastic_noise", options["stochastic_noise"], ["student-t", "gaussian"])
    check_choice("prediction_type", options["prediction_type"], ["epsilon", "v_prediction"])
    check_choice("final_sigmas_type", options["final_sigmas_type"], ["zero", "sigma_min"])
    if solver == "consistency" and options["final_sigmas_type"] != "zero":
        raise ValueError(
            "`final_sigmas_type` must be 'zero' with `solver_type` 'consistency', which would add noise to"
            f" its images, but is {options['final_sigmas_type']!r}."
        )
    for D in (checked["D"], *(checked["D_range"] or ())):
        check_preconditioning(options["preconditioning"], D)
    checked["default_steps"] = options["default_steps"]
    if options["default_steps"] is not None:
        name = "default_steps"
        checked[name] = check_integer(name, options[name], "be a positive integer", 1)
    checked["sigmas"] = _check_sigmas_by_steps(options["sigmas"])
    if checked["s_churn"] and solver not in CHURNING_SOLVERS:
        raise ValueError(
            f"`s_churn` must be 0 with `solver_type` {solver!r}, but is {options['s_churn']}: churn is for"
            " heun and euler."
        )
    return checked


def check_levels(name: str, levels: Any) -> torch.Tensor:
    """
    Check a list of noise levels.

    Args:
        name (`str`): Name of the argument, for the error.
        levels (`list[float]`, `np.ndarray` or `torch.Tensor`): The noise levels.

    Returns:
        `torch.Tensor` of shape `(n,)`: The levels, in float64 on the CPU.

    Raises:
        ValueError: They are not a decreasing list of positive numbers.
    """
    is_iterable = isinstance(levels, Iterable) and getattr(levels, "ndim", 1) > 0
    numbers = [read_number(level) for level in levels] if is_iterable else []
    is_list = len(numbers) > 0 and None not in numbers
    steps = torch.tensor(numbers if is_list else [], dtype=torch.float64)
    is_inside = bool(((steps >= SMALLEST) & (steps <= LARGEST)).all())
    if not (is_list and is_inside and bool((steps.diff() < 0).all())):
        raise ValueError(
            f"{name} must be a decreasing list of noise levels from {LARGEST:g} to {SMALLEST:g}, but are"
            f" {levels}."
        )
    return steps


def _check_sigmas_by_steps(sigmas: Any) -> dict[str, dict[str, list[float]]] | None:
    """Return the noise levels by solver and number of steps, or refuse what is not such a table."""
    if not sigmas:
        return None
    allowed = "`sigmas` must map solvers to numbers of steps, and those to as many noise levels"
    if not isinstance(sigmas, Mapping) or not all(isinstance(each, Mapping) for each in sigmas.values()):
        raise ValueError(f"{allowed}, but is {sigmas!r}.")
    checked: dict[str, dict[str, list[float]]] = {}
    for solver, by_steps in sigmas.items():
        if solver not in SOLVERS:
            raise ValueError(f"A solver in `sigmas` must be one of {list(SOLVERS)}, but is {solver!r}.")
        checked[solver] = {}
        for steps, values in by_steps.items():
            levels = check_levels(f"`sigmas` of {solver} at {steps} steps", values)
            if str(steps) != str(len(levels)):
                raise ValueError(f"{allowed}, but holds {len(levels)} for {solver} at {steps!r} steps.")
            checked[solver][str(steps)] = levels.tolist()
    return checked


def _check_dimension(D: Any) -> float | int | None:
    """Return D as JSON keeps it: as the number that was given, or None for infinity."""
    dof = parse_dimension(D, SMALLEST_D_FOR_IMAGES)
    if dof.ndim:
        raise ValueError(f"`D` of a scheduler must be one number, inf or None, but is {D}.")
    return None if dof.isinf() else read_number(D)


def _check_range(D_range: Any) -> list[float | None] | None:
    """Return a range of D as JSON keeps it: the smallest D, then the largest, with None for infinity."""
    if D_range is None:
        return None
    try:
        low, high = (parse_dimension(D, SMALLEST_D_FOR_IMAGES).item() for D in D_range)
    except (TypeError, ValueError):
        raise ValueError(
            "`D_range` must be (low, high), two augmented dimensions of at least"
            f" {SMALLEST_D_FOR_IMAGES:g}, but is {D_range!r}."
        ) from None
    if low > high:
        raise ValueError(f"`D_range` must begin with its smaller D, but is {D_range!r}.")
    return [None if math.isinf(D) else D for D in (low, high)]
