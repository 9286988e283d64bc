r"""
Search the noise levels of a solver for a given number of steps, without training.

The error of levels $\sigma_0 > \dots > \sigma_{n-1}$ is that of what the solver makes of a few latents,
against a fine solution from the same latents. It is searched in two stages.

**Plan.** The fine solution leaves states $x_g$ and denoised images $F_g$ on a grid of levels. From them the
local error of any step between levels of the grid is known without a call of the network: a multistep
solver integrates the polynomial in $\lambda = -\ln\sigma$ through its last denoised images,

$$x_l \approx e^{-h} x_k + \sum_m w_m F_m, \qquad w_m = \int_0^h e^{u - h} \ell_m(u)\, du, \qquad
  h = \lambda_l - \lambda_k,$$

where $\ell_m$ are Lagrange's polynomials (https://huggingface.co/papers/2211.01095). An error at $\sigma$
shrinks by $c / \sqrt{c^2 + \sigma^2}$ on its way to the data, which is exact along a direction in which the
data are normal with standard deviation c; we take the direction in which the fine solutions vary most,
since errors of large steps lie there. Dynamic programming finds the levels with the least sum of squares
(compare https://huggingface.co/papers/2405.18326, which takes one step of Euler at a time). Its state is
the last three levels.

**Refinement.** Local errors from exact denoised images are not the whole error. From the planned levels on,
the Levenberg-Marquardt method lowers the error itself. The derivatives by $\ln\sigma_i$ come from finite
differences, n runs of the solver per round, and from Broyden's updates in between. The residuals are
weighted by the inverse norm of each latent's error, so that the mean of the norms falls and not that of
their squares. The squares depend on a few latents that decide late what they become, and so would the
levels.

Levels are judged on latents that were not searched on.
"""

import copy
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from diffusers import DiffusionPipeline
from tqdm.auto import tqdm

from ..arguments import check_choice, check_integer
from ..records.writing import replace_file, write_json
from ..scheduling_pfgmpp import PFGMPPScheduler


# The solvers that follow field lines, and how many denoised images a step of theirs uses.
ORDERS = {"heun": 1, "euler": 1, "dpmpp_2m": 2, "dpmpp_3m": 3}
FINE_STEPS = 64
LEAST_STEPS = 2
MOST_STEPS = 32
# Neighbouring levels are at least this far apart in ln(sigma): nearer ones amplify rounding errors.
GAP = 0.1
DIFFERENCE = GAP / 3  # of ln(sigma), for derivatives
MOST_ROUNDS = 12
TRIALS = 5  # steps of a round
LEAST_GAIN = 0.01  # of a round, relative to the error


class Trace(NamedTuple):
    """
    A fine solution.

    Args:
        levels (`torch.Tensor` of shape `(G,)`): The noise levels of its steps.
        states (`torch.Tensor` of shape `(G, batch, N)`): The samples at these levels.
        denoised (`torch.Tensor` of shape `(G, batch, N)`): Their denoised images.
        ends (`torch.Tensor` of shape `(batch, N)`): The samples at noise level 0.
    """

    levels: torch.Tensor
    states: torch.Tensor
    denoised: torch.Tensor
    ends: torch.Tensor


class Latents:
    """
    A few latents of a pipeline, each drawn from its own seed, and what solvers make of them.

    Args:
        pipeline ([`PFGMPPPipeline`]): The model. Only its networks and its scheduler's configuration are
            used; it is not changed.
        seeds (`list[int]`): One seed per latent.
        dimensions (`list[float]`): Augmented dimensions, which the latents take in turn; `inf` is infinity.
        settings: Further arguments of the pipeline's call, such as `guidance_scale`.
    """

    def __init__(
        self, pipeline: DiffusionPipeline, seeds: list[int], dimensions: list[float], **settings: Any
    ):
        self.pipeline = copy.copy(pipeline)
        self.pipeline.set_progress_bar_config(disable=True)
        self.config = pipeline.scheduler.config
        self.seeds = seeds
        self.settings = settings
        self.dimensions = torch.tensor(dimensions, dtype=torch.float64).repeat(len(seeds))[: len(seeds)]
        if pipeline.unet.config.get("d_conditioning"):
            self.settings = {"D": self.dimensions, **settings}

    def solve(self, num_inference_steps: int | None = None, **settings: Any) -> torch.Tensor:
        """
        Follow the field lines with the pipeline's scheduler.

        Args:
            num_inference_steps (`int`, *optional*): Number of steps at the scheduler's own levels.
            settings: Further arguments of the pipeline's call, such as `sigmas`.

        Returns:
            `torch.Tensor` of shape `(batch, N)`: The samples at noise level 0, on the CPU.
        """
        output = self.pipeline(
            batch_size=len(self.seeds),
            num_inference_steps=num_inference_steps,
            generator=[torch.Generator().manual_seed(seed) for seed in self.seeds],
            output_type="latent",
            **self.settings,
            **settings,
        )
        return output.images.flatten(1).float().cpu()

    def use_solver(self, solver_type: str, **settings: Any) -> None:
        """
        Choose the solver, in its deterministic form.

        Args:
            solver_type (`str`): The solver.
            settings: Further entries of the scheduler's configuration to replace.
        """
        options = {"s_churn": 0.0, **settings}
        self.pipeline.scheduler = PFGMPPScheduler.from_config(self.config, solver_type=solver_type, **options)

    def judge(self, solution: torch.Tensor, fine: torch.Tensor) -> dict[float, float]:
        """
        Measure the root mean square error by augmented dimension.

        Args:
            solution (`torch.Tensor` of shape `(batch, N)`): The samples.
            fine (`torch.Tensor` of shape `(batch, N)`): Those of the fine solution.

        Returns:
            `dict[float, float]`: The errors by D.
        """
        squares = measure_errors(solution, fine).square()
        return {
            D: squares[self.dimensions == D].mean().sqrt().item() for D in self.dimensions.unique().tolist()
        }

    def trace(self, title: str | None = None) -> Trace:
        """
        Compute the fine solution.

        It takes 64 steps of the third-order solver. They are nearer to the exact solution than as many
        steps of Heun's method, which call the network twice as often.

        Args:
            title (`str`, *optional*): Label of the progress bar; with None no bar is shown.

        Returns:
            [`Trace`]: The solution.

        Raises:
            ValueError: It holds values that are not finite.
        """
        self.use_solver("dpmpp_3m", sigmas=None, final_sigmas_type="zero")
        progress = tqdm(total=FINE_STEPS, desc=title, unit="step", disable=title is None)
        states = []
        denoised = []

        def keep(pipe: DiffusionPipeline, step: int, timestep: Any, tensors: dict) -> dict:
            states.append(tensors["latents"].flatten(1).float().cpu())
            denoised.append(tensors["pred_original_sample"].flatten(1).float().cpu())
            progress.update()
            return {}

        with progress:
            ends = self.solve(
                FINE_STEPS,
                callback_on_step_end=keep,
                callback_on_step_end_tensor_inputs=["latents", "pred_original_sample"],
            )
        if not bool(ends.isfinite().all()):
            raise ValueError("The fine solution holds NaN or infinities: the network does not denoise.")
        levels = self.pipeline.scheduler.sigmas[:-1].double()
        # The first step is Euler's, so the sample before it follows from what comes out of it.
        ratio = (levels[1] / levels[0]).item()
        first = (states[0] - (1 - ratio) * denoised[0]) / ratio
        return Trace(levels, torch.stack([first, *states[:-1]]), torch.stack(denoised), ends)


def _weigh_history(log_levels: torch.Tensor, places: torch.Tensor, order: int) -> torch.Tensor:
    """
    Return the weights of the denoised images i, j and k in steps from level k to level l.

    `places` is of shape `(steps, 4)`, with i = j or j = k where there are fewer older images.
    """
    oldest, older, newest, target = -log_levels[places].T
    h = target - newest
    # The integrals of 1, u and u^2 against exp(u - h) over 0 ... h.
    constant = -torch.expm1(-h)
    linear = h - constant
    square = h * h - 2 * linear
    h0 = newest - older
    h1 = newest - oldest
    one = torch.stack([torch.zeros_like(h), torch.zeros_like(h), constant])
    slope = linear / h0
    two = torch.stack([torch.zeros_like(h), -slope, constant + slope])
    at_oldest = (square + h0 * linear) / (h1 * (h1 - h0))
    at_older = -(square + h1 * linear) / (h0 * (h1 - h0))
    three = torch.stack([at_oldest, at_older, constant - at_oldest - at_older])
    weights = one
    if order >= 2:
        weights = torch.where(h0 > 0, two, weights)
    if order >= 3:
        weights = torch.where((h0 > 0) & (h1 > h0), three, weights)
    return weights.T


def _measure_steps(trace: Trace, solver_type: str, places: torch.Tensor) -> torch.Tensor:
    """Return the mean squares of the local errors of steps; `places` is as for `_weigh_history`."""
    count = len(trace.levels)
    vectors = torch.cat([trace.states, trace.denoised]).flatten(1).double()
    products = vectors @ vectors.T / vectors.shape[1]
    errors = []
    for part in places.split(100_000):
        start = part[:, 2]
        target = part[:, 3]
        ratio = trace.levels[target] / trace.levels[start]
        if solver_type == "heun":
            half = (1 - ratio) / 2
            opposite = (1 / ratio - 1) / 2
            weights = torch.stack([1 - half, -1 - opposite, 0 * half, 0 * half, half, opposite], 1)
        else:
            history = _weigh_history(trace.levels.log(), part, ORDERS[solver_type])
            rest = torch.stack([ratio, -torch.ones_like(ratio)], 1)
            weights = torch.cat([rest, history, 0 * rest[:, :1]], 1)
        columns = torch.stack([start, target, *(count + part).T], 1)
        gram = products[columns[:, :, None], columns[:, None, :]]
        errors.append(torch.einsum("sa,sab,sb->s", weights, gram, weights))
    return torch.cat(errors).clamp_min(0)


def _find_spread(ends: torch.Tensor) -> float:
    """Return the standard deviation of samples along the direction in which they vary most."""
    centred = (ends - ends.mean(0)).double()
    return torch.linalg.matrix_norm(centred, 2).item() / math.sqrt(max(1, len(ends) - 1))


def plan_levels(trace: Trace, solver_type: str, num_inference_steps: int) -> torch.Tensor:
    """
    Choose noise levels among those of a fine solution by dynamic programming.

    Args:
        trace ([`Trace`]): The fine solution.
        solver_type (`str`): The solver.
        num_inference_steps (`int`): Number n of steps, from 2 to 32.

    Returns:
        `torch.Tensor` of shape `(n,)`, float64: The levels, the first of which is that of the fine
            solution.
    """
    count = len(trace.levels)
    grid = torch.arange(count)
    quadruples = torch.combinations(grid, 4)
    # A solver begins at level 0 without older denoised images: its states are (0, 0, 0), then (0, 0, k).
    pairs = torch.combinations(grid[1:], 2)
    second = torch.cat([torch.zeros_like(pairs), pairs], 1)
    first = torch.zeros(count - 1, 4, dtype=torch.long)
    first[:, 3] = grid[1:]
    steps = torch.cat([first, second, quadruples])
    near = trace.levels[steps[:, 2]] < math.exp(GAP) * trace.levels[steps[:, 3]]
    steps = steps[~near]

    spread = _find_spread(trace.ends)
    shrinking = spread**2 / (spread**2 + trace.levels[steps[:, 3]] ** 2)
    costs = shrinking * _measure_steps(trace, solver_type, steps)
    base = torch.tensor([count * count, count, 1])
    before = (steps[:, :3] * base).sum(1)
    after = (steps[:, 1:] * base).sum(1)
    values = torch.full((count**3,), math.inf, dtype=torch.float64)
    values[0] = 0
    arrivals = []
    for _ in range(num_inference_steps - 1):
        reached = values[before] + costs
        values = torch.full_like(values, math.inf).scatter_reduce(0, after, reached, "amin")
        best = (reached == values[after]) & reached.isfinite()
        arrival = torch.zeros(count**3, dtype=torch.long)
        arrival[after[best]] = before[best]
        arrivals.append(arrival)
    # The last step ends at 0, where it gives the denoised image.
    last = (trace.denoised - trace.ends).double().square().mean((1, 2))
    state = int((values.view(-1, count) + last).argmin())
    path = [state % count]
    for arrival in reversed(arrivals):
        state = int(arrival[state])
        path.append(state % count)
    return trace.levels[path[::-1]]


def measure_errors(solution: torch.Tensor, fine: torch.Tensor) -> torch.Tensor:
    """
    Measure the error of each latent's sample.

    Args:
        solution (`torch.Tensor` of shape `(batch, N)`): The samples.
        fine (`torch.Tensor` of shape `(batch, N)`): Those of the fine solution.

    Returns:
        `torch.Tensor` of shape `(batch,)`: The root mean square over each sample.
    """
    return (solution - fine).double().square().mean(1).sqrt()


class Refinement:
    r"""
    The Levenberg-Marquardt method on the logarithms of the levels.

    Args:
        run (`Callable`): Returns what the solver makes of the latents at a list of levels.
        fine (`torch.Tensor` of shape `(batch, N)`): What it should make of them.
        levels (`list[float]`): Where to begin.
        bounds (`tuple[float, float]`): The lowest and the highest level allowed.
        damping (`float`, defaults to 0.01): Weight of the damping, relative to the mean of the diagonal.
    """

    def __init__(
        self,
        run: Callable[[list[float]], torch.Tensor],
        fine: torch.Tensor,
        levels: list[float],
        bounds: tuple[float, float],
        damping: float = 0.01,
    ):
        self.run = run
        self.fine = fine
        self.levels = levels
        self.lowest, self.highest = map(math.log, bounds)
        self.damping = damping

    def advance(self) -> float:
        """
        Take one round, which lowers the mean error or leaves the levels as they are.

        Returns:
            `float`: By how much the error fell, relative to the error before.
        """
        logarithms = torch.tensor(self.levels, dtype=torch.float64).log()
        solution = self.run(self.levels)
        errors = measure_errors(solution, self.fine)
        before = errors.mean().item()
        weights = errors.clamp_min(1e-9).rsqrt()[:, None]
        columns = []
        for place in range(len(logarithms)):
            moved = logarithms.clone()
            moved[place] -= DIFFERENCE
            change = self.run(moved.exp().tolist()) - solution
            columns.append((weights * change.double()).flatten() / -DIFFERENCE)
        jacobian = torch.stack(columns, 1)
        error = before
        for _ in range(TRIALS):
            residuals = (weights * (solution - self.fine).double()).flatten()
            trial = self._confine(logarithms + self._choose_step(jacobian, residuals))
            step = trial - logarithms
            if not bool(step.any()):
                break
            reached = self.run(trial.exp().tolist())
            reached_error = measure_errors(reached, self.fine).mean().item()
            if reached_error >= error:
                self.damping *= 8
                continue
            # Broyden's update: the step also tells how the samples change along it.
            change = (weights * (reached - solution).double()).flatten() - jacobian @ step
            jacobian += change[:, None] * (step / (step @ step))
            solution = reached
            logarithms = trial
            error = reached_error
            self.damping /= 4
        self.levels = logarithms.exp().tolist()
        return (before - error) / max(before, 1e-12)

    def _choose_step(self, jacobian: torch.Tensor, residuals: torch.Tensor) -> torch.Tensor:
        """Return the damped step of Gauss and Newton, at most 1 in each logarithm."""
        normal = jacobian.T @ jacobian
        scale = normal.diagonal().mean().clamp_min(1e-12) * torch.eye(len(normal), dtype=normal.dtype)
        gradient = jacobian.T @ residuals
        return -torch.linalg.solve(normal + self.damping * scale, gradient).clamp(-1, 1)

    def _confine(self, logarithms: torch.Tensor) -> torch.Tensor:
        """Keep levels in order, apart from each other and within the bounds."""
        confined = []
        highest = self.highest
        for below, value in zip(range(len(logarithms) - 1, -1, -1), logarithms.tolist()):
            confined.append(max(min(value, highest), self.lowest + GAP * below))
            highest = confined[-1] - GAP
        return torch.tensor(confined, dtype=torch.float64)


class Outcome(NamedTuple):
    """
    What a search found.

    Args:
        levels (`list[float]`): The noise levels.
        is_finished (`bool`): Whether the search converged. If not, it can be continued.
        before (`dict[float, float]`): The root mean square error on latents that were not searched on, by
            augmented dimension, with the levels that the pipeline has without the search.
        after (`dict[float, float]`): That with the levels that were found.
    """

    levels: list[float]
    is_finished: bool
    before: dict[float, float]
    after: dict[float, float]


def search_levels(
    pipeline: DiffusionPipeline,
    solver_type: str,
    num_inference_steps: int,
    folder: str | os.PathLike,
    dimensions: list[float],
    num_latents: int = 32,
    should_stop: Callable[[], bool] = lambda: False,
    **settings: Any,
) -> Outcome:
    """
    Search the noise levels of a solver for a number of steps.

    Interrupted searches resume, and then find the same.

    Args:
        pipeline ([`PFGMPPPipeline`]): The model, on its device.
        solver_type (`str`): `"heun"`, `"euler"`, `"dpmpp_2m"` or `"dpmpp_3m"`.
        num_inference_steps (`int`): Number of steps, from 2 to 32.
        folder (`str` or `os.PathLike`): Where to keep the state of this search, and of no other.
        dimensions (`list[float]`): Augmented dimensions to search for, `inf` for infinity; only the
            scheduler's for a network that is not conditioned on D.
        num_latents (`int`, defaults to 32): Latents to search on; as many others judge what is found.
        should_stop (`Callable`, *optional*): Asked before each round of the refinement whether to end the
            search with what it has.
        settings: Further arguments of the pipeline's call, such as `guidance_scale`.

    Returns:
        [`Outcome`]: The levels and their errors.

    Raises:
        ValueError: An argument is out of range, or the network does not denoise.
    """
    config = pipeline.scheduler.config
    check_choice("solver_type", solver_type, list(ORDERS))
    requirement = f"lie in {LEAST_STEPS} ... {MOST_STEPS}"
    check_integer("num_inference_steps", num_inference_steps, requirement, LEAST_STEPS, MOST_STEPS)
    least = max(2, len(dimensions))
    check_integer("num_latents", num_latents, f"be at least {least}, one for each D", least)
    if math.log(config.sigma_max / config.sigma_min) < 2 * GAP * num_inference_steps:
        raise ValueError(
            f"`num_inference_steps` is {num_inference_steps}, which is too many for noise levels from"
            f" {config.sigma_min:g} to {config.sigma_max:g}."
        )
    folder = Path(folder)
    searched = Latents(pipeline, list(range(num_latents)), dimensions, **settings)
    held_out = Latents(pipeline, list(range(num_latents, 2 * num_latents)), dimensions, **settings)

    def plan() -> dict[str, torch.Tensor]:
        trace = searched.trace("Fine solution")
        return {"ends": trace.ends, "levels": plan_levels(trace, solver_type, num_inference_steps)}

    planned = _load_or_compute(folder / "plan.safetensors", plan)
    fine = _load_or_compute(
        folder / "held_out.safetensors", lambda: {"ends": held_out.trace("Fine solution, held out").ends}
    )
    searched.use_solver(solver_type, **get_entries(solver_type))
    levels, is_finished = _refine(
        searched, planned, folder / "refinement.json", (config.sigma_min, config.sigma_max), should_stop
    )
    held_out.use_solver(solver_type)
    before = held_out.judge(held_out.solve(num_inference_steps), fine["ends"])
    held_out.use_solver(solver_type, **get_entries(solver_type))
    after = held_out.judge(held_out.solve(sigmas=levels), fine["ends"])
    return Outcome(levels, is_finished, before, after)


def get_entries(solver_type: str) -> dict[str, Any]:
    """
    Return the entries of a scheduler's configuration with which its levels are searched.

    The third-order solver keeps its order to the last step but one, which is more accurate at levels that
    are chosen for it, and at others as well. No entry makes a difference to other solvers.

    Args:
        solver_type (`str`): The solver.

    Returns:
        `dict[str, Any]`: The entries.
    """
    return {"lower_order_final": False} if solver_type == "dpmpp_3m" else {}


def _refine(
    latents: Latents,
    planned: dict[str, torch.Tensor],
    path: Path,
    bounds: tuple[float, float],
    should_stop: Callable[[], bool],
) -> tuple[list[float], bool]:
    """Refine planned levels, and return them rounded, and whether the search converged."""
    state = {"levels": planned["levels"].tolist(), "damping": 0.01, "rounds": 0, "is_finished": False}
    if path.is_file():
        state = json.loads(path.read_text(encoding="utf-8"))
    runs_per_round = 1 + len(state["levels"]) + TRIALS
    progress = tqdm(
        total=MOST_ROUNDS * runs_per_round,
        initial=state["rounds"] * runs_per_round,
        desc="Refinement, at most",
        unit="run",
    )

    def run(levels: list[float]) -> torch.Tensor:
        progress.update()
        return latents.solve(sigmas=levels)

    refinement = Refinement(run, planned["ends"], state["levels"], bounds, state["damping"])
    with progress:
        while not state["is_finished"] and not should_stop():
            gain = refinement.advance()
            rounds = state["rounds"] + 1
            state = {
                "levels": refinement.levels,
                "damping": refinement.damping,
                "rounds": rounds,
                "is_finished": gain < LEAST_GAIN or rounds == MOST_ROUNDS,
            }
            write_json(path, state)
            progress.set_postfix(gain=f"{gain:.1%}")
    return [float(f"{level:.5g}") for level in state["levels"]], state["is_finished"]


def _load_or_compute(path: Path, compute: Callable[[], dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Return tensors from a file, which is written if it is missing."""
    if not path.is_file():
        tensors = compute()
        with replace_file(path) as partial:
            safetensors.torch.save_file(tensors, partial)
    return safetensors.torch.load_file(path)


def write_levels(path: str | os.PathLike, solver_type: str, levels: list[float]) -> None:
    """
    Write noise levels into a scheduler's configuration.

    Args:
        path (`str` or `os.PathLike`): The `scheduler_config.json`; levels for other solvers and other
            numbers of steps stay in it. The entries of [`get_entries`] are for all numbers of steps.
        solver_type (`str`): The solver.
        levels (`list[float]`): The levels.
    """
    entries = json.loads(Path(path).read_text(encoding="utf-8"))
    sigmas = entries.get("sigmas") or {}
    sigmas[solver_type] = {**sigmas.get(solver_type, {}), str(len(levels)): levels}
    entries |= {"sigmas": sigmas, **get_entries(solver_type)}
    with replace_file(path) as partial:
        partial.write_text(json.dumps(entries, indent=2, sort_keys=True) + "\n", encoding="utf-8")
