r"""
Study PFGM in its own terms, D = 1, on a plane (https://huggingface.co/papers/2209.11178): what works
and what breaks.

    python experiments/pfgm.py

The charges lie along a heart. The prior is the hemisphere, the target is the Poisson field of all
charges or a single charge, and the ODE is anchored at z = sigma on the exponential schedule. A small
network learns the field at D = 1 and, for comparison, at D = 128, with and without a limit on the
norm of the noise. Writes results/pfgm.json and pfgm.png next to this file.
"""

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from tables import RESULTS, format_plane
from torch import nn
from tqdm import tqdm

from pipeline_pfgmpp import EmpiricalDenoiser, PFGMPPPipeline, PFGMPPScheduler
from pipeline_pfgmpp.pictures.field_lines import make_shape
from pipeline_pfgmpp.records.commands import format_command
from pipeline_pfgmpp.records.measurements import write_measurement
from pipeline_pfgmpp.training import PFGMPPLoss


LIMIT = 8.0
FAR = 0.1


class Variant(NamedTuple):
    """One way to train and to sample."""

    D: float
    train_limit: float | None
    sample_limit: float | None
    field: bool  # whether the target is the field of all charges instead of one charge

    def name(self) -> str:
        limits = {
            (None, None): "no limit",
            (LIMIT, None): "limit in training",
            (None, LIMIT): "limit in sampling",
            (LIMIT, LIMIT): "limit",
        }
        target = "field" if self.field else "one charge"
        return f"D = {self.D:g}, {target} as target, {limits[self.train_limit, self.sample_limit]}"


VARIANTS = [
    Variant(1.0, None, None, field=False),
    Variant(1.0, None, None, field=True),
    Variant(1.0, None, LIMIT, field=True),
    Variant(1.0, LIMIT, None, field=True),
    Variant(1.0, LIMIT, LIMIT, field=False),
    Variant(1.0, LIMIT, LIMIT, field=True),
    Variant(128.0, None, None, field=False),
    Variant(128.0, None, None, field=True),
]


class PlaneNetwork(ModelMixin, ConfigMixin):
    """A perceptron for points on a plane, given as images with two channels and one pixel."""

    @register_to_config
    def __init__(self, width: int = 128, sample_size: int = 1, in_channels: int = 2):
        super().__init__()
        hidden = [layer for _ in range(3) for layer in (nn.Linear(width, width), nn.SiLU())]
        self.layers = nn.Sequential(nn.Linear(2 + 1 + 16, width), nn.SiLU(), *hidden, nn.Linear(width, 2))

    def forward(self, sample: torch.Tensor, timestep: Any, return_dict: bool = False) -> tuple[torch.Tensor]:
        level = torch.as_tensor(timestep).float().expand(len(sample))[:, None]
        waves = level * torch.arange(1, 9)
        inputs = torch.cat([sample.flatten(1), level, waves.sin(), waves.cos()], dim=1)
        return (self.layers(inputs).view(sample.shape),)


class Study:
    """
    Training and sampling with the charges of one study.

    Args:
        charges (`torch.Tensor` of shape `(M, 2)`): The data.
        args (`argparse.Namespace`): The settings of the command line.
    """

    def __init__(self, charges: torch.Tensor, args: argparse.Namespace):
        self.charges = charges
        self.images = charges[:, :, None, None]
        self.sigma_data = charges.std().item()
        self.args = args

    def make_scheduler(self, D: float, limit: float | None) -> PFGMPPScheduler:
        return PFGMPPScheduler(
            D,
            sigma_min=0.01,
            sigma_max=4.0,
            sigma_data=self.sigma_data,
            solver_type="euler",
            sigma_schedule="exponential",
            max_noise_norm=limit,
        )

    def train(self, variant: Variant, seed: int) -> PlaneNetwork:
        rng = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)  # for the weights
        network = PlaneNetwork()
        loss = PFGMPPLoss(self.make_scheduler(variant.D, variant.train_limit), P_std=1.5)
        references = self.images if variant.field else None
        steps = self.args.train_steps
        optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in tqdm(range(steps), desc="Training", leave=False):
            points = self.images[torch.randint(len(self.images), (256,), generator=rng)]
            perturbation = loss.draw(points.shape, rng)
            error = loss(network, points, perturbation, references=references).mean()
            optimizer.zero_grad()
            error.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        return network

    def sample(self, network: nn.Module, D: float, limit: float | None) -> torch.Tensor:
        """Return samples of shape `(num_samples, 2)`."""
        pipe = PFGMPPPipeline(network, self.make_scheduler(D, limit))
        pipe.set_progress_bar_config(disable=True)
        rng = torch.Generator().manual_seed(0)
        drawn = pipe(
            self.args.num_samples, self.args.num_inference_steps, generator=rng, output_type="latent"
        )
        return drawn.images.flatten(1)

    def measure_share(self, points: torch.Tensor) -> float:
        """Return the share of points that are far from every charge."""
        return (torch.cdist(points, self.charges).amin(1) > FAR).float().mean().item()


def summarize(name: str, shares: list[float]) -> dict[str, Any]:
    """Summarize the shares of several networks."""
    return {
        "name": name,
        "mean": statistics.mean(shares),
        "least": min(shares),
        "most": max(shares),
        "values": shares,
    }


def run_study(study: Study, num_networks: int) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
    """Return the row of the table for each variant, and samples at D = 1 for the picture, by name."""
    rows = []
    pictures = {}
    exact = EmpiricalDenoiser(study.images, study.sigma_data)
    for D in (1.0, 128.0):
        points = study.sample(exact, D, None)
        rows.append(summarize(f"D = {D:g}, exact field", [study.measure_share(points)]))
        if D == 1:
            pictures["exact field"] = points
    for variant in VARIANTS:
        shares = []
        for seed in range(num_networks):
            network = study.train(variant, seed)
            points = study.sample(network, variant.D, variant.sample_limit)
            shares.append(study.measure_share(points))
        rows.append(summarize(variant.name(), shares))
        if variant.D == 1 and variant.train_limit == variant.sample_limit:
            pictures[variant.name().removeprefix("D = 1, ")] = points
    return rows, pictures


def plot(charges: torch.Tensor, pictures: dict[str, torch.Tensor], path: Path) -> None:
    """Plot the samples of each variant over the charges."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.4 * len(pictures), 3.7), layout="constrained")
    axes = figure.subplots(1, len(pictures))
    for axis, (name, points) in zip(axes, pictures.items()):
        axis.plot(*points.T, ".", color="tab:blue", markersize=2, alpha=0.6)
        axis.plot(*charges.T, ".", color="tab:red", markersize=1)
        axis.set(title=name.replace(", ", "\n"), xlim=(-1.6, 1.6), ylim=(-1.6, 1.6), aspect="equal")
        axis.title.set_fontsize(10)
    figure.suptitle("PFGM (D = 1): samples in blue, charges in red")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--train_steps", type=int, default=3000, help="training steps per network (default: %(default)s)"
    )
    parser.add_argument(
        "--num_inference_steps", type=int, default=60, help="steps of Euler's method (default: %(default)s)"
    )
    parser.add_argument(
        "--num_samples", type=int, default=2000, help="samples per network (default: %(default)s)"
    )
    parser.add_argument("--seeds", type=int, default=3, help="networks per row (default: %(default)s)")
    args = parser.parse_args()
    study = Study(make_shape("heart", 400), args)
    rows, pictures = run_study(study, args.seeds)
    write_measurement(RESULTS / "pfgm.json", format_command("python experiments/pfgm.py", sys.argv[1:]), rows)
    plot(study.charges, pictures, Path(__file__).with_suffix(".png"))
    print(format_plane(rows))


if __name__ == "__main__":
    main()
