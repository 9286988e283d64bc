r"""
Pictures of what the method does: the exact field of a few charges, without a network.

    pfgmpp field-lines pictures

The data are charges on the hyperplane at height $r = \sigma\sqrt{D} = 0$. Field lines lead from the
prior down to them: $dx/d\sigma = (x - F(x, \sigma))/\sigma$, where F is the posterior mean
(https://huggingface.co/papers/2302.04265).
"""

import math
import os
from collections.abc import Sequence
from typing import Any

import torch

from ..empirical_denoiser import EmpiricalDenoiser
from ..noise import log_density, sample_noise
from ..pipeline_pfgmpp import PFGMPPPipeline
from ..records.dimensions import format_dimension
from ..scheduling_pfgmpp import PFGMPPScheduler


DIMENSIONS = (1.0, 8.0, 128.0, None)
SHAPES = ("heart", "spiral", "moons", "ring")
SIGMA_MAX = 4.0


def make_shape(name: str, count: int = 200) -> torch.Tensor:
    """
    Place charges on a curve in the plane.

    Args:
        name (`str`): `"heart"`, `"spiral"`, `"moons"` or `"ring"`.
        count (`int`, defaults to 200): Number of charges.

    Returns:
        `torch.Tensor` of shape `(count, 2)`: Their positions, in [-1, 1] up to a small margin.

    Raises:
        ValueError: There is no shape of that name.
    """
    t = torch.linspace(0, 1, count)
    angle = 2 * math.pi * t
    if name == "heart":
        x = angle.sin() ** 3
        y = 13 * angle.cos() - 5 * (2 * angle).cos() - 2 * (3 * angle).cos() - (4 * angle).cos()
        return torch.stack([x, y / 16], dim=1)
    if name == "spiral":
        return torch.stack([t * (2 * angle).cos(), t * (2 * angle).sin()], dim=1)
    if name == "ring":
        return torch.stack([angle.cos() * 0.9, angle.sin() * 0.9], dim=1)
    if name == "moons":
        half = math.pi * (2 * t % 1)
        second = t >= 0.5
        x = torch.where(second, 0.33 - 0.6 * half.cos(), 0.6 * half.cos() - 0.33)
        y = torch.where(second, 0.15 - 0.6 * half.sin(), 0.6 * half.sin() - 0.15)
        return torch.stack([x, y], dim=1)
    raise ValueError(f"`name` must be one of {list(SHAPES)}, but is {name!r}.")


def trace_field_lines(
    charges: torch.Tensor,
    D: float | None,
    latents: torch.Tensor,
    num_steps: int = 60,
    sigma_max: float = SIGMA_MAX,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Trace field lines of the exact field from the prior to the charges.

    Args:
        charges (`torch.Tensor` of shape `(M, N)`): The data.
        D (`float` or `None`): The augmented dimension; None is infinity.
        latents (`torch.Tensor` of shape `(K, N)`): Unit noise; each line starts at `sigma_max` times
            one row.
        num_steps (`int`, defaults to 60): Steps of Heun's method.
        sigma_max (`float`, defaults to 4): Height at which the lines start.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: Points of shape `(num_steps + 1, K, N)`, and their heights
            sigma of shape `(num_steps + 1,)`, of which the last is 0.
    """
    scheduler = PFGMPPScheduler(D=D, sigma_max=sigma_max, sigma_min=0.005, rho=3.0)
    pipe = PFGMPPPipeline(EmpiricalDenoiser(charges[:, :, None, None]), scheduler)
    pipe.set_progress_bar_config(disable=True)
    points = [sigma_max * latents]

    def keep_points(pipe: PFGMPPPipeline, index: int, timestep: Any, tensors: dict) -> dict:
        calls = index + 1
        if calls % scheduler.order == 0 or calls == len(scheduler.timesteps):
            points.append(tensors["latents"].flatten(1))
        return tensors

    pipe(
        len(latents),
        num_steps,
        latents=latents[:, :, None, None],
        output_type="latent",
        callback_on_step_end=keep_points,
    )
    heights = torch.cat([scheduler.sigmas[: -1 : scheduler.order][:num_steps], torch.zeros(1)])
    return torch.stack(points), heights


def plot_field_lines(path: str | os.PathLike, dimensions: Sequence[float | None] = DIMENSIONS) -> None:
    """
    Plot three charges on a line and their field lines up to the prior, one panel per D.

    The background is the density of the perturbed data, in units of the noise.

    Args:
        path (`str` or `os.PathLike`): The picture to write.
        dimensions (`Sequence`): The D of the panels; None is infinity.
    """
    charges = torch.tensor([[-1.0], [-0.6], [0.9]])
    width = 6.0
    latents = torch.linspace(-width, width, 41)[:, None] / SIGMA_MAX
    x = torch.linspace(-width, width, 161)
    sigma = torch.linspace(0.05, SIGMA_MAX, 120)
    residuals = (x[None, :, None] - charges[:, 0]) / sigma[:, None, None]
    figure, axes = _make_figure(len(dimensions), sharey=True)
    for axis, D in zip(axes, dimensions):
        density = log_density(residuals.reshape(-1, 1), D).reshape(residuals.shape).exp().mean(-1)
        axis.imshow(
            density.numpy(),
            extent=(-width, width, sigma[0].item(), SIGMA_MAX),
            origin="lower",
            aspect="auto",
            cmap="Blues",
            vmax=0.45,
        )
        points, heights = trace_field_lines(charges, D, latents)
        axis.plot(points[:, :, 0], heights, color="0.25", linewidth=0.7)
        ground = torch.zeros(len(charges))
        axis.plot(charges[:, 0], ground, "o", color="tab:red", markersize=5, clip_on=False, zorder=3)
        axis.set(title=f"D = {format_dimension(D)}", xlabel="x", xlim=(-width, width), ylim=(0, SIGMA_MAX))
    axes[0].set_ylabel("height σ = r / √D")
    figure.savefig(path, dpi=110)


def plot_norms(
    path: str | os.PathLike,
    dimensions: Sequence[float | None] = (1.0, 16.0, 128.0, 2048.0, None),
    num_dims: int = 784,
) -> None:
    """
    Plot how the norm of the noise is distributed at one height, one curve per D.

    The distribution narrows from D = 1 to infinity, where a network sees nothing but one shell. That is how
    the paper explains that small D tolerates noise better.

    Args:
        path (`str` or `os.PathLike`): The picture to write.
        dimensions (`Sequence`): The D of the curves; None is infinity.
        num_dims (`int`, defaults to 784): Dimension N of the data.
    """
    figure, axes = _make_figure(1)
    figure.set_size_inches(6, 3.6)
    axis = axes[0]
    radius = torch.logspace(-0.7, 1, 1000, dtype=torch.float64)
    points = torch.zeros(len(radius), num_dims, dtype=torch.float64)
    points[:, 0] = radius * math.sqrt(num_dims)
    # The area of the unit sphere turns the density at a point into that of the norm.
    log_area = math.log(2) + num_dims / 2 * math.log(math.pi) - math.lgamma(num_dims / 2)
    for D in dimensions:
        density = (log_density(points, D) + log_area + num_dims * points[:, 0].log()).exp()
        axis.plot(radius, density, label=f"D = {format_dimension(D)}")
    axis.set(
        xscale="log",
        yscale="log",
        ylim=(1e-2, 30),
        xlabel=f"‖x − y‖ / σ√N,  N = {num_dims}",
        ylabel="density of its logarithm",
    )
    axis.legend()
    axis.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def plot_trajectories(
    path: str | os.PathLike, name: str = "heart", dimensions: Sequence[float | None] = DIMENSIONS
) -> None:
    """
    Plot paths in the plane from the prior to a shape, one panel per D, from the same seed.

    Args:
        path (`str` or `os.PathLike`): The picture to write.
        name (`str`, defaults to `"heart"`): The shape, see [`make_shape`].
        dimensions (`Sequence`): The D of the panels; None is infinity.
    """
    charges = make_shape(name)
    figure, axes = _make_figure(len(dimensions), sharex=True, sharey=True)
    for axis, D in zip(axes, dimensions):
        points, _ = trace_field_lines(charges, D, _draw_latents(60, D), sigma_max=2.0)
        axis.plot(points[:, :, 0], points[:, :, 1], color="tab:blue", linewidth=0.6, alpha=0.7)
        axis.plot(*points[0].T, ".", color="0.4", markersize=3)
        axis.plot(*charges.T, ".", color="tab:red", markersize=2)
        axis.set(title=f"D = {format_dimension(D)}", xlim=(-5, 5), ylim=(-5, 5), aspect="equal")
    figure.savefig(path, dpi=110)


def animate_trajectories(
    path: str | os.PathLike,
    name: str = "heart",
    dimensions: Sequence[float | None] = DIMENSIONS,
    count: int = 300,
) -> None:
    """
    Animate samples that follow field lines from the prior to a shape, one panel per D.

    Args:
        path (`str` or `os.PathLike`): The `.gif` file to write.
        name (`str`, defaults to `"heart"`): The shape, see [`make_shape`].
        dimensions (`Sequence`): The D of the panels; None is infinity.
        count (`int`, defaults to 300): Samples per panel.
    """
    from matplotlib.animation import FuncAnimation, PillowWriter

    charges = make_shape(name)
    figure, axes = _make_figure(len(dimensions), sharex=True, sharey=True)
    lines = [trace_field_lines(charges, D, _draw_latents(count, D)) for D in dimensions]
    dots = []
    for axis, D in zip(axes, dimensions):
        axis.plot(*charges.T, ".", color="tab:red", markersize=1.5, alpha=0.5)
        dots += axis.plot([], [], ".", color="tab:blue", markersize=3)
        axis.set(title=f"D = {format_dimension(D)}", aspect="equal")
    last = len(lines[0][1]) - 1

    def draw_frame(index: int) -> list:
        index = min(index, last)
        for (points, _), dot in zip(lines, dots):
            dot.set_data(*points[index].T)
        height = lines[0][1][index].item()
        reach = 1.3 + 1.5 * height  # the view zooms in as the noise falls
        axes[0].set(xlim=(-reach, reach), ylim=(-reach, reach))
        figure.suptitle(f"σ = {height:.3f}", fontsize=10)
        return dots

    animation = FuncAnimation(figure, draw_frame, frames=last + 16)  # the last frame stays for a second
    animation.save(path, writer=PillowWriter(fps=15), dpi=70)


def _make_figure(columns: int, **options: Any) -> tuple[Any, Any]:
    """Make a figure of panels side by side, and return it and the axes of the panels."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.4 * columns, 3.9), layout="constrained")
    return figure, figure.subplots(1, columns, squeeze=False, **options)[0]


def _draw_latents(count: int, D: float | None) -> torch.Tensor:
    """Draw unit noise in the plane, always the same."""
    return sample_noise((count, 2), D, torch.Generator().manual_seed(0))
