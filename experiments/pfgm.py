r"""
PFGM in its own terms, D = 1, on a plane (https://huggingface.co/papers/2209.11178): what works and
what breaks.

    python experiments/pfgm.py

Charges along a heart; the hemisphere prior; the Poisson field of all charges as the target, or one
charge; and the ODE with z = sigma as its anchor on the exponential schedule. A small network learns
the field at D = 1 and, for comparison, at D = 128, with and without a limit on the norm of the
noise. Writes pfgm.md and pfgm.png beside this file.
"""

import argparse
import statistics
from pathlib import Path

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn
from tqdm import tqdm

from pipeline_pfgmpp import EmpiricalDenoiser, PFGMPPPipeline, PFGMPPScheduler
from pipeline_pfgmpp.pictures.field_lines import make_shape
from pipeline_pfgmpp.training import PFGMPPLoss


LIMIT, FAR = 8.0, 0.1


class PlaneNetwork(ModelMixin, ConfigMixin):
    """A perceptron of points on a plane, given as images of two channels and one pixel."""

    @register_to_config
    def __init__(self, width: int = 128, sample_size: int = 1, in_channels: int = 2):
        super().__init__()
        hidden = [layer for _ in range(3) for layer in (nn.Linear(width, width), nn.SiLU())]
        self.layers = nn.Sequential(nn.Linear(2 + 1 + 16, width), nn.SiLU(), *hidden, nn.Linear(width, 2))

    def forward(self, sample, timestep, return_dict=False):
        level = torch.as_tensor(timestep).float().expand(len(sample))[:, None]
        waves = level * torch.arange(1, 9)
        inputs = torch.cat([sample.flatten(1), level, waves.sin(), waves.cos()], dim=1)
        return (self.layers(inputs).view(sample.shape),)


def scheduler_of(D, limit, sigma_data):
    return PFGMPPScheduler(
        D, sigma_min=0.01, sigma_max=4.0, sigma_data=sigma_data, solver_type="euler", sigma_schedule="exponential",
        max_noise_norm=limit,
    )  # fmt: skip


def train(charges, scheduler, field, steps, seed):
    rng = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)  # of the weights
    network, loss = PlaneNetwork(), PFGMPPLoss(scheduler, P_std=1.5)
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in tqdm(range(steps), desc="Training", leave=False):
        points = charges[torch.randint(len(charges), (256,), generator=rng)]
        error = loss(
            network, points, loss.draw(points.shape, rng), references=charges if field else None
        ).mean()
        optimizer.zero_grad()
        error.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return network


def sample(network, scheduler, count, steps):
    pipe = PFGMPPPipeline(network, scheduler)
    pipe.set_progress_bar_config(disable=True)
    rng = torch.Generator().manual_seed(0)
    return pipe(count, steps, generator=rng, output_type="latent").images.flatten(1)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train_steps", type=int, default=3000)
    parser.add_argument("--num_inference_steps", type=int, default=60)
    parser.add_argument("--num_samples", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=3, help="networks a row (default: %(default)s)")
    args = parser.parse_args()
    charges = make_shape("heart", 400)[:, :, None, None]
    sigma_data = charges.std().item()

    def far(points):
        return (torch.cdist(points, charges.flatten(1)).amin(1) > FAR).float().mean().item()

    rows, pictures = [], {}
    for D in (1.0, 128.0):
        points = sample(
            EmpiricalDenoiser(charges, sigma_data),
            scheduler_of(D, None, sigma_data),
            args.num_samples,
            args.num_inference_steps,
        )
        rows.append((f"D = {D:g}, exact field", [far(points)]))
        if D == 1:
            pictures["exact field"] = points
    # D; the limit in training, and in sampling; whether the target is the field
    for D, trained, sampled, field in (
        (1.0, None, None, False),
        (1.0, None, None, True),
        (1.0, None, LIMIT, True),
        (1.0, LIMIT, None, True),
        (1.0, LIMIT, LIMIT, False),
        (1.0, LIMIT, LIMIT, True),
        (128.0, None, None, False),
        (128.0, None, None, True),
    ):
        limits = {
            (None, None): "no limit",
            (LIMIT, None): "limit in training",
            (None, LIMIT): "limit in sampling",
            (LIMIT, LIMIT): "limit",
        }
        name = f"D = {D:g}, {'field' if field else 'one charge'} as target, {limits[trained, sampled]}"
        shares = []
        for seed in range(args.seeds):
            network = train(charges, scheduler_of(D, trained, sigma_data), field, args.train_steps, seed)
            points = sample(
                network, scheduler_of(D, sampled, sigma_data), args.num_samples, args.num_inference_steps
            )
            shares.append(far(points))
        rows.append((name, shares))
        if D == 1 and trained == sampled:
            pictures[name.removeprefix("D = 1, ")] = points
    lines = [f"| samples farther than {FAR} from every charge | mean | least | most |", "|---|---|---|---|"]
    lines += [f"| {name} | {statistics.mean(s):.1%} | {min(s):.1%} | {max(s):.1%} |" for name, s in rows]
    folder = Path(__file__).parent
    (folder / "pfgm.md").write_text("\n".join(lines) + "\n")
    plot(charges.flatten(1), pictures, folder / "pfgm.png")
    print("\n".join(lines))


def plot(charges, pictures, path):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(pictures), figsize=(3.4 * len(pictures), 3.7), constrained_layout=True)
    for axis, (name, points) in zip(axes, pictures.items()):
        axis.plot(*points.T, ".", color="tab:blue", markersize=2, alpha=0.6)
        axis.plot(*charges.T, ".", color="tab:red", markersize=1)
        axis.set(title=name.replace(", ", "\n"), xlim=(-1.6, 1.6), ylim=(-1.6, 1.6), aspect="equal")
        axis.title.set_fontsize(10)
    figure.suptitle("PFGM (D = 1): samples in blue, charges in red")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
