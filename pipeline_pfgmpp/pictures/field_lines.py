r"""
Pictures of what the method does, from the exact field of a few charges, without a network:

    python -m pipeline_pfgmpp.pictures.field_lines pictures

Data are charges on the hyperplane at height $r = \sigma\sqrt{D} = 0$. Their field lines lead from
the prior home: $dx/d\sigma = (x - F(x, \sigma))/\sigma$, with F the posterior mean
(https://huggingface.co/papers/2302.04265).
"""

import argparse
import math
import os
from pathlib import Path

import torch

from ..empirical_denoiser import EmpiricalDenoiser
from ..noise import log_density, sample_noise
from ..pipeline_pfgmpp import PFGMPPPipeline
from ..records.dimensions import format_dimension
from ..scheduling_pfgmpp import PFGMPPScheduler


DIMENSIONS = (1.0, 8.0, 128.0, None)
SHAPES = ("heart", "spiral", "moons", "ring")
SIGMA_MAX = 4.0


def shape(name: str, count: int = 200) -> torch.Tensor:
    """
    Charges on the plane.

    Args:
        name (`str`): `"heart"`, `"spiral"`, `"moons"` or `"ring"`.
        count (`int`, defaults to 200): How many.

    Returns:
        `torch.Tensor` of shape `(count, 2)`: Their places, in [-1, 1].

    Raises:
        ValueError: There is no such shape.
    """
    t = torch.linspace(0, 1, count)
    angle = 2 * math.pi * t
    half, second = math.pi * (2 * t % 1), t >= 0.5
    shapes = {
        "heart": (
            angle.sin() ** 3,
            (13 * angle.cos() - 5 * (2 * angle).cos() - 2 * (3 * angle).cos() - (4 * angle).cos()) / 16,
        ),
        "spiral": (t * (2 * angle).cos(), t * (2 * angle).sin()),
        "moons": (
            torch.where(second, 0.33 - 0.6 * half.cos(), 0.6 * half.cos() - 0.33),
            torch.where(second, 0.15 - 0.6 * half.sin(), 0.6 * half.sin() - 0.15),
        ),
        "ring": (angle.cos() * 0.9, angle.sin() * 0.9),
    }
    if name not in SHAPES:
        raise ValueError(f"`name` must be one of {list(SHAPES)}, but is {name!r}.")
    return torch.stack(shapes[name], dim=1)


def trajectories(
    charges: torch.Tensor,
    D: float | None,
    latents: torch.Tensor,
    num_steps: int = 60,
    sigma_max: float = SIGMA_MAX,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Follows field lines of the exact field from the prior to the charges.

    Args:
        charges (`torch.Tensor` of shape `(M, N)`): The data.
        D (`float` or `None`): The augmented dimension; None is infinity.
        latents (`torch.Tensor` of shape `(K, N)`): Unit noise, where the lines begin, in units of
            `sigma_max`.
        num_steps (`int`, defaults to 60): Steps of Heun.
        sigma_max (`float`, defaults to 4): Height at which they begin.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: Points of shape `(num_steps + 1, K, N)` and their
            heights sigma, of shape `(num_steps + 1,)`, the last of them 0.
    """
    scheduler = PFGMPPScheduler(D=D, sigma_max=sigma_max, sigma_min=0.005, rho=3.0)
    pipe = PFGMPPPipeline(EmpiricalDenoiser(charges[:, :, None, None]), scheduler)
    pipe.set_progress_bar_config(disable=True)
    points = [sigma_max * latents]

    def keep(pipe, index, timestep, tensors):
        if (index + 1) % scheduler.order == 0 or index + 1 == len(scheduler.timesteps):
            points.append(tensors["latents"].flatten(1))
        return tensors

    pipe(
        len(latents),
        num_steps,
        latents=latents[:, :, None, None],
        output_type="latent",
        callback_on_step_end=keep,
    )
    heights = torch.cat([scheduler.sigmas[: -1 : scheduler.order][:num_steps], torch.zeros(1)])
    return torch.stack(points), heights


def _figure(columns, height=3.9, **kwargs):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt.subplots(1, columns, figsize=(3.4 * columns, height), constrained_layout=True, **kwargs)


def plot_field_lines(path: str | os.PathLike, dimensions: tuple = DIMENSIONS) -> None:
    """
    Three charges on a line and their field lines up to the prior, a panel a D, over the density of
    the perturbed data in units of the noise.

    Args:
        path (`str` or `os.PathLike`): The picture.
        dimensions (`tuple`): The panels; None is infinity.
    """
    charges, width = torch.tensor([[-1.0], [-0.6], [0.9]]), 6.0
    latents = torch.linspace(-width, width, 41)[:, None] / SIGMA_MAX
    figure, axes = _figure(len(dimensions), sharey=True)
    x, sigma = torch.linspace(-width, width, 161), torch.linspace(0.05, SIGMA_MAX, 120)
    for axis, D in zip(axes, dimensions):
        residuals = (x[None, :, None] - charges[:, 0]) / sigma[:, None, None]
        density = log_density(residuals.reshape(-1, 1), D).reshape(residuals.shape).exp().mean(-1)
        axis.imshow(
            density.numpy(),
            extent=(-width, width, sigma[0].item(), SIGMA_MAX),
            origin="lower",
            aspect="auto",
            cmap="Blues",
            vmax=0.45,
        )
        points, heights = trajectories(charges, D, latents)
        axis.plot(points[:, :, 0], heights, color="0.25", linewidth=0.7)
        axis.plot(
            charges[:, 0],
            torch.zeros(len(charges)),
            "o",
            color="tab:red",
            markersize=5,
            clip_on=False,
            zorder=3,
        )
        axis.set(title=f"D = {format_dimension(D)}", xlabel="x", xlim=(-width, width), ylim=(0, SIGMA_MAX))
    axes[0].set_ylabel("height σ = r / √D")
    figure.savefig(path, dpi=110)


def plot_norms(
    path: str | os.PathLike, dimensions: tuple = (1.0, 16.0, 128.0, 2048.0, None), num_dims: int = 784
) -> None:
    """
    How the norm of the noise is spread at one height, a line a D: it narrows from D = 1 to
    infinity, where a network sees nothing but one shell. That is what makes small D robust, and
    large D rigid.

    Args:
        path (`str` or `os.PathLike`): The picture.
        dimensions (`tuple`): The lines; None is infinity.
        num_dims (`int`, defaults to 784): N.
    """
    figure, axis = _figure(1)
    figure.set_size_inches(6, 3.6)
    radius = torch.logspace(-0.7, 1, 1000, dtype=torch.float64)
    points = torch.zeros(len(radius), num_dims, dtype=torch.float64)
    points[:, 0] = radius * math.sqrt(num_dims)
    log_sphere = (
        math.log(2) + num_dims / 2 * math.log(math.pi) - math.lgamma(num_dims / 2)
    )  # area of the unit sphere
    for D in dimensions:
        density = (log_density(points, D) + log_sphere + num_dims * points[:, 0].log()).exp()
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


def _plane_latents(count, D):
    return sample_noise((count, 2), D, torch.Generator().manual_seed(0))


def plot_trajectories(path: str | os.PathLike, name: str = "heart", dimensions: tuple = DIMENSIONS) -> None:
    """
    Paths on the plane from the prior to a shape, a panel a D; the same directions in each.

    Args:
        path (`str` or `os.PathLike`): The picture.
        name (`str`, defaults to `"heart"`): A [`shape`].
        dimensions (`tuple`): The panels; None is infinity.
    """
    charges = shape(name)
    figure, axes = _figure(len(dimensions), sharex=True, sharey=True)
    for axis, D in zip(axes, dimensions):
        points, _ = trajectories(charges, D, _plane_latents(60, D), sigma_max=2.0)
        axis.plot(points[:, :, 0], points[:, :, 1], color="tab:blue", linewidth=0.6, alpha=0.7)
        axis.plot(*points[0].T, ".", color="0.4", markersize=3)
        axis.plot(*charges.T, ".", color="tab:red", markersize=2)
        axis.set(title=f"D = {format_dimension(D)}", xlim=(-5, 5), ylim=(-5, 5), aspect="equal")
    figure.savefig(path, dpi=110)


def animate(
    path: str | os.PathLike, name: str = "heart", dimensions: tuple = DIMENSIONS, count: int = 300
) -> None:
    """
    An animation of samples that follow the field lines home, a panel a D.

    Args:
        path (`str` or `os.PathLike`): The `.gif`.
        name (`str`, defaults to `"heart"`): A [`shape`].
        dimensions (`tuple`): The panels; None is infinity.
        count (`int`, defaults to 300): Samples.
    """
    from matplotlib.animation import FuncAnimation, PillowWriter

    charges = shape(name)
    figure, axes = _figure(len(dimensions), sharex=True, sharey=True)
    paths = [trajectories(charges, D, _plane_latents(count, D)) for D in dimensions]
    dots = []
    for axis, D in zip(axes, dimensions):
        axis.plot(*charges.T, ".", color="tab:red", markersize=1.5, alpha=0.5)
        dots += axis.plot([], [], ".", color="tab:blue", markersize=3)
        axis.set(title=f"D = {format_dimension(D)}", aspect="equal")

    def frame(index):
        index = min(index, len(paths[0][1]) - 1)
        for (points, heights), dot in zip(paths, dots):
            dot.set_data(*points[index].T)
            reach = 1.3 + 1.5 * heights[index].item()  # the view closes in with the noise
        axes[0].set(xlim=(-reach, reach), ylim=(-reach, reach))
        figure.suptitle(f"σ = {heights[index]:.3f}", fontsize=10)
        return dots

    FuncAnimation(figure, frame, frames=len(paths[0][1]) + 15).save(path, writer=PillowWriter(fps=15), dpi=70)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path, help="folder for the pictures")
    parser.add_argument(
        "--shape", default="heart", help="heart, spiral, moons or ring (default: %(default)s)"
    )
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    try:
        shape(args.shape)
    except ValueError as error:
        parser.error(str(error))
    plot_field_lines(args.output / "field_lines.png")
    plot_trajectories(args.output / "trajectories.png", args.shape)
    plot_norms(args.output / "norms.png")
    animate(args.output / "trajectories.gif", args.shape)
    print(f"Wrote field_lines.png, trajectories.png, trajectories.gif and norms.png to {args.output}")


if __name__ == "__main__":
    main()
