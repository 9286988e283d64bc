r"""
Study objectives for few calls of the network, on the handwritten digits of scikit-learn.

    pip install scikit-learn
    python experiments/consistency.py

One small network for every D learns to denoise 1,797 images of 8 by 8 pixels. From its weights, four
objectives make a network of few calls; the first three a consistency function $f(x, t)$:

- tuning: `ConsistencyLoss`, without a teacher (https://huggingface.co/papers/2406.14548);
- distillation: `ConsistencyLoss` with the pretrained network as its `Teacher`;
- continuous time: `ContinuousLoss` below, the limit of tuning as the two noise levels meet
  (https://huggingface.co/papers/2410.11081);
- matching: `MatchingLoss` with that teacher, for two calls.

All four cost the same, counted in forward passes of a network. A backward pass counts 2, and the
derivative along a line, in forward mode, 5 together with its own forward pass, which is what it takes on a
CPU. The CPU time that was measured is stored with the results.

The measure is the Fréchet distance from all images of the data over pixel values in [-1, 1]. Writes
results/consistency.json next to this file. Networks and distances are kept in
outputs/consistency_objectives, so an interrupted study resumes.
"""

import argparse
import contextlib
import copy
import json
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from small_networks import make_network
from tables import RESULTS, format_consistency
from tqdm import tqdm

from pipeline_pfgmpp import PFGMPPPipeline, PFGMPPScheduler, PFGMPPUNet2DModel
from pipeline_pfgmpp.evaluation.metrics import frechet_distance
from pipeline_pfgmpp.records.commands import format_command
from pipeline_pfgmpp.records.digests import default_output
from pipeline_pfgmpp.records.dimensions import format_dimension
from pipeline_pfgmpp.records.measurements import recall, write_measurement
from pipeline_pfgmpp.records.writing import replace_folder
from pipeline_pfgmpp.training import ConsistencyLoss, DimensionRange, MatchingLoss, PFGMPPLoss, Teacher
from pipeline_pfgmpp.training.ema import PowerFunctionEMA
from pipeline_pfgmpp.training.loss import Perturbation, denoise
from pipeline_pfgmpp.training.preparation import CRITIC_PACE


DIMENSIONS = [16.0, 128.0, math.inf]
TRAINED = DimensionRange(16, math.inf)
LEVELS = {"1": [80.0], "2": [80.0, 0.8], "4": [80.0, 2.5, 0.8, 0.25]}
# Forward passes per step: of the targets, and 3 of training itself. Matching has two calls, and a critic.
PASSES = {"tuning": 1 + 3, "distillation": 3 + 3, "continuous time": 5 + 3, "matching": 2 * (1 + 3 + 3)}
PRETRAINING_RATE = 2e-3
TUNING_RATE = 5e-4
HUBER_C = 0.03
EMA_WIDTH = 0.1
TANGENT_FLOOR = 0.1  # the c of the paper's tangent normalisation, here for a root mean square over pixels
CHUNK = 250  # images drawn at once


@contextlib.contextmanager
def make_norms_contiguous(network: torch.nn.Module) -> Iterator[None]:
    """Give normalisations contiguous inputs, without which torch has no forward-mode derivative of them."""
    norms = [module for module in network.modules() if isinstance(module, torch.nn.GroupNorm)]
    hooks = [norm.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(),)) for norm in norms]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def compute_tangent(
    network: torch.nn.Module, scheduler: PFGMPPScheduler, x: torch.Tensor, perturbation: Perturbation
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""
    Compute $f(x_t, t)$ and its derivative $df/dt$ along the line $x_t = y + t\varepsilon$.

    Args:
        network (`torch.nn.Module`): The network of f.
        scheduler ([`PFGMPPScheduler`]): Owns the preconditioning.
        x (`torch.Tensor` of shape `(batch, C, H, W)`): The points $x_t$.
        perturbation ([`Perturbation`]): Holds t, the noise and D.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: Both in the shape of `x`.
    """

    def evaluate(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return denoise(network, scheduler, x, t, perturbation.D)

    t = perturbation.sigma
    with make_norms_contiguous(network):
        return torch.func.jvp(evaluate, (x, t), (perturbation.noise, torch.ones_like(t)))


class ContinuousLoss(PFGMPPLoss):
    r"""
    The consistency loss in continuous time, for Student-t noise of any D in EDM's parametrisation.

    With $f = c_{skip} x + c_{out} F$ and $s = \sqrt{t^2 + \sigma_d^2}$, it is

    $$\lVert F - F^- + g / (\lVert g \rVert + c) \rVert^2, \qquad
      g = s \Bigl((1 - w) \frac{c_{skip}}{t} (f^- - y) + w \frac{df^-}{dt}\Bigr),$$

    where the minus sign marks what has no gradient, and norms are root mean squares over pixels. At w = 1
    this is the paper's g (https://huggingface.co/papers/2410.11081, sec. 4): its angle is $\arctan(t /
    \sigma_d)$. At w = 0 its gradient is that of a denoiser, which is its warm-up.

    Args:
        scheduler ([`PFGMPPScheduler`]): As in [`PFGMPPLoss`].
        warmup (`float`): Part of the training in which w grows from 0 to 1.
        dimensions ([`DimensionRange`]): Distribution of D.
    """

    def __init__(self, scheduler: PFGMPPScheduler, warmup: float, dimensions: DimensionRange):
        super().__init__(scheduler, P_mean=-1.0, P_std=1.4, dimensions=dimensions)
        self.warmup = warmup

    def draw(self, *args: Any, progress: float = 1.0, **kwargs: Any) -> Perturbation:
        """Draw what is random. The target's noise level is w·t: 0 at first, where the image is the target."""
        drawn = super().draw(*args, **kwargs)
        t = drawn.sigma.clamp(self.scheduler.config.sigma_min, self.scheduler.config.sigma_max)
        return replace(drawn, sigma=t, target_sigma=min(progress / self.warmup, 1.0) * t)

    def __call__(
        self, unet: torch.nn.Module, images: torch.Tensor, perturbation: Perturbation
    ) -> torch.Tensor:
        """Compute the loss of each image."""
        sigma_data = self.scheduler.config.sigma_data
        t = perturbation.sigma.view(-1, 1, 1, 1)
        share = perturbation.target_sigma.view(-1, 1, 1, 1) / t
        scale = (t**2 + sigma_data**2).sqrt()
        c_skip = (sigma_data / scale) ** 2
        c_out = t * sigma_data / scale
        x = images + t * perturbation.noise
        end, slope = compute_tangent(unet, self.scheduler, x, perturbation)
        tangent = scale * ((1 - share) * c_skip / t * (end - images) + share * slope)
        norm = tangent.square().mean((1, 2, 3), keepdim=True).sqrt()
        change = (denoise(unet, self.scheduler, x, perturbation.sigma, perturbation.D) - end) / c_out
        return (change + tangent / (norm + TANGENT_FLOOR)).square().flatten(1).mean(1)


def load_digit_images() -> torch.Tensor:
    """Load the digits as images of shape `(1797, 1, 8, 8)` in [-1, 1]."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise SystemExit(
            "The digits come with scikit-learn, which is missing: pip install scikit-learn"
        ) from None
    return torch.from_numpy(load_digits().images).float()[:, None] / 8 - 1


class Study:
    """
    Training and measuring on the images of one study.

    Args:
        images (`torch.Tensor` of shape `(M, 1, 8, 8)`): The data, in [-1, 1].
        args (`argparse.Namespace`): The settings of the command line.
    """

    def __init__(self, images: torch.Tensor, args: argparse.Namespace):
        self.images = images
        self.args = args
        shared = ("pretraining_steps", "batch_size", "seed", "warmup")
        settings = {name: getattr(args, name) for name in shared}
        self.folder = default_output("consistency_objectives", "digits", settings)
        self.scheduler = PFGMPPScheduler(
            TRAINED.middle, sigma_data=round(images.std().item(), 3), D_range=(TRAINED.low, None)
        )

    def pretrain(self) -> PFGMPPUNet2DModel:
        """Train a denoiser from scratch."""
        network = make_network(self.args.seed, d_conditioning=True)
        loss = PFGMPPLoss(self.scheduler, dimensions=TRAINED)
        self.train("pretrained", network, loss, self.args.pretraining_steps, PRETRAINING_RATE)
        return network

    def make_loss(self, name: str, network: PFGMPPUNet2DModel) -> PFGMPPLoss:
        """Make one of the objectives for a network that was pretrained."""
        if name == "continuous time":
            return ContinuousLoss(self.scheduler, self.args.warmup, TRAINED)
        if name == "tuning":
            return ConsistencyLoss(self.scheduler, dimensions=TRAINED, huber_c=HUBER_C)
        teacher = Teacher(PFGMPPPipeline(copy.deepcopy(network), self.scheduler))
        if name == "distillation":
            return ConsistencyLoss(self.scheduler, dimensions=TRAINED, huber_c=HUBER_C, teacher=teacher)
        levels = {"consistency": {"2": LEVELS["2"]}}
        options = {"solver_type": "consistency", "default_steps": 2, "sigmas": levels}
        sampler = PFGMPPScheduler.from_config(self.scheduler.config, **options)
        return MatchingLoss(network, sampler, teacher, dimensions=TRAINED)

    def train(
        self, name: str, network: PFGMPPUNet2DModel, loss: PFGMPPLoss, steps: int, learning_rate: float
    ) -> float:
        """Train a network, or load what an earlier run trained, and return the seconds of CPU time."""
        folder = self.folder / f"{name.replace(' ', '_')}-{steps}"
        if not folder.exists():
            seconds = self.optimize(name, network, loss, steps, learning_rate)
            with replace_folder(folder) as partial:
                network.save_pretrained(partial)
                (partial / "seconds.json").write_text(json.dumps(seconds))
        network.load_state_dict(PFGMPPUNet2DModel.from_pretrained(folder).state_dict())
        return json.loads((folder / "seconds.json").read_text())

    def optimize(
        self, name: str, network: PFGMPPUNet2DModel, loss: PFGMPPLoss, steps: int, learning_rate: float
    ) -> float:
        """Train a network, leave it with its averaged weights, and return the seconds of CPU time."""
        rng = torch.Generator().manual_seed(self.args.seed)
        parameters = list(network.parameters())
        groups = [{"params": parameters}]
        if loss.critic is not None:
            groups.append({"params": list(loss.critic.parameters()), "lr": CRITIC_PACE * learning_rate})
        optimizer = torch.optim.Adam(groups, lr=learning_rate)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
        average = PowerFunctionEMA(network.parameters(), EMA_WIDTH)
        start = time.process_time()
        progress = tqdm(range(steps), desc=name.capitalize())
        for step in progress:
            batch = self.images[torch.randint(len(self.images), (self.args.batch_size,), generator=rng)]
            perturbation = loss.draw(batch.shape, rng, progress=step / steps)
            error = loss(network, batch, perturbation).mean()
            optimizer.zero_grad()
            error.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            average.step(network.parameters())
            progress.set_postfix(loss=f"{error.item():.3f}", refresh=False)
        average.copy_to(network.parameters())
        return time.process_time() - start

    def draw(self, network: PFGMPPUNet2DModel, D: float, calls: str, **options: Any) -> torch.Tensor:
        """Draw images of a network in some solver's calls, in [-1, 1]."""
        pipe = PFGMPPPipeline(network, PFGMPPScheduler.from_config(self.scheduler.config, **options))
        pipe.set_progress_bar_config(disable=True)
        rng = torch.Generator().manual_seed(self.args.seed)
        order = pipe.scheduler.order
        steps = (int(calls) + order - 1) // order
        counts = [len(part) for part in torch.arange(self.args.num_images).split(CHUNK)]
        progress = tqdm(counts, desc=f"{calls} calls, D = {format_dimension(D)}", leave=False)
        images = [pipe(count, steps, D, generator=rng, output_type="pt").images for count in progress]
        return torch.cat(images) * 2 - 1

    def measure(self, name: str, steps: int, network: PFGMPPUNet2DModel) -> dict[str, dict[str, float]]:
        """Measure the distances of a network by the number of calls and D, unless an earlier run did."""
        solvers: dict[str, dict[str, Any]] = {
            calls: {"solver_type": "consistency", "sigmas": {"consistency": {calls: levels}}}
            for calls, levels in LEVELS.items()
        }
        if name == "pretrained":
            solvers = {"35": {"solver_type": "heun"}, "1": solvers["1"]}

        def compute() -> dict[str, dict[str, float]]:
            distances: dict[str, dict[str, float]] = {}
            for calls, options in solvers.items():
                drawn = {D: self.draw(network, D, calls, **options) for D in DIMENSIONS}
                distances[calls] = {format_dimension(D): self.compare(images) for D, images in drawn.items()}
            return distances

        file_name = f"{name.replace(' ', '_')}-{steps}-{self.args.num_images}.json"
        return recall(self.folder / file_name, compute)

    def compare(self, images: torch.Tensor) -> float:
        """Measure the distance between images and the data."""
        return round(frechet_distance(images.flatten(1), self.images.flatten(1)), 4)


def run_study(study: Study) -> dict[str, Any]:
    """Return the settings, the distance of real images, and a row for each network."""
    args = study.args
    pretrained = study.pretrain()
    rows = [
        {
            "name": "pretrained",
            "steps": args.pretraining_steps,
            "distances": study.measure("pretrained", args.pretraining_steps, pretrained),
        }
    ]
    for name, passes in PASSES.items():
        network = copy.deepcopy(pretrained)
        steps = args.passes // passes
        seconds = study.train(name, network, study.make_loss(name, pretrained), steps, TUNING_RATE)
        distances = study.measure(name, steps, network)
        rows.append({"name": name, "steps": steps, "cpu_seconds": round(seconds, 1), "distances": distances})
    rng = torch.Generator().manual_seed(args.seed)
    half = study.images[torch.randperm(len(study.images), generator=rng)[: len(study.images) // 2]]
    return {"settings": vars(args), "half_of_the_data": study.compare(half), "rows": rows}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--pretraining_steps", type=int, default=800, help="(default: %(default)s)")
    add("--passes", type=int, default=2400, help="forward passes per objective (default: %(default)s)")
    add("--batch_size", type=int, default=64, help="images per step (default: %(default)s)")
    add(
        "--warmup",
        type=float,
        default=0.5,
        help="part of the training in continuous time (default: %(default)s)",
    )
    add("--num_images", type=int, default=3000, help="images per distance (default: %(default)s)")
    add("--seed", type=int, default=0, help="(default: %(default)s)")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(1)  # the network is too small for more
    results = run_study(Study(load_digit_images(), args))
    command = format_command("python experiments/consistency.py", sys.argv[1:])
    write_measurement(RESULTS / "consistency.json", command, results)
    print(format_consistency(results))


if __name__ == "__main__":
    main()
