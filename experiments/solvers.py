"""
Study which solver needs the fewest calls of the network: two distances against the number of calls,
with one line per solver.

    python experiments/solvers.py model_cards/pfgmpp-fashion-mnist --data data/fashion-mnist

The Fréchet distance is from the test images, over the features of a classifier. The root mean square
error is from 256 steps of Heun's method with the same latents. Writes results/solvers.json and
solvers.png next to this file. The drawn images are kept in outputs/solvers, so an interrupted run
resumes. Under `torchrun --nproc_per_node N` the processes share the drawing.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import load_dataset
from diffusers import DiffusionPipeline
from tables import RESULTS, format_solvers

from pipeline_pfgmpp import PFGMPPPipeline, PFGMPPScheduler
from pipeline_pfgmpp.data import load_images
from pipeline_pfgmpp.evaluation import ImageMetrics, load_features
from pipeline_pfgmpp.generation import load_samples, sample_to_files
from pipeline_pfgmpp.records.commands import format_command
from pipeline_pfgmpp.records.digests import default_output, describe
from pipeline_pfgmpp.records.measurements import write_measurement
from pipeline_pfgmpp.records.writing import replace_file


SOLVERS = {
    "heun": {"solver_type": "heun"},
    "euler": {"solver_type": "euler"},
    "dpmpp_2m": {"solver_type": "dpmpp_2m"},
    "dpmpp_3m": {"solver_type": "dpmpp_3m"},
    "dpmpp_3m, rho 10, sigma_min 0.06": {"solver_type": "dpmpp_3m", "rho": 10.0, "sigma_min": 0.06},
}
CALLS = [7, 11, 15, 19, 27]
# The fast setting of the README, and what it is compared with: a solver and its number of calls.
BASELINE = ("heun", 35)
FAST = ("dpmpp_3m, rho 10, sigma_min 0.06", 16)
REFERENCE_STEPS = 256
SEEDS_PER_GROUP = 10_000
CURVE = [(solver, calls) for solver in SOLVERS for calls in CALLS]


def count_steps(solver: str, calls: int) -> int:
    """Return the number of steps in which a solver makes so many calls of the network."""
    return (calls + 1) // 2 if solver == "heun" else calls


class Study:
    """
    Drawing with each solver, and the two distances of what it draws.

    Args:
        pipe ([`PFGMPPPipeline`]): The model, on its device.
        folder (`Path`): Where the images are kept.
        args (`argparse.Namespace`): The settings of the command line.
    """

    def __init__(self, pipe: PFGMPPPipeline, folder: Path, args: argparse.Namespace):
        self.pipe = pipe
        self.config = pipe.scheduler.config
        self.folder = folder
        self.args = args
        self.state = PartialState()
        # The first seed and the number of images of each group
        self.groups = [(group * SEEDS_PER_GROUP, args.num_images) for group in range(args.num_groups)]

    def use_solver(self, solver: str) -> None:
        self.pipe.scheduler = PFGMPPScheduler.from_config(self.config, **SOLVERS[solver])

    def get_path(self, solver: str, calls: int, first: int, count: int) -> Path:
        name = solver.replace(", ", "-").replace(" ", "")
        return self.folder / f"{name}-{calls}-{first}-{first + count - 1}.npz"

    def draw(self, solver: str, calls: int, first: int, count: int) -> None:
        """Draw images of consecutive seeds, unless an earlier run drew them."""
        path = self.get_path(solver, calls, first, count)
        if not path.exists():
            self.use_solver(solver)
            seeds = list(range(first, first + count))
            sample_to_files(
                self.pipe,
                seeds,
                path,
                self.args.batch_size,
                num_inference_steps=count_steps(solver, calls),
                guidance_scale=1.0,
            )
        self.state.wait_for_everyone()

    def draw_all(self) -> None:
        for first, count in self.groups:
            for solver, calls in (FAST, BASELINE):
                self.draw(solver, calls, first, count)
        for solver, calls in CURVE:
            self.draw(solver, calls, 0, self.args.curve_images)

    def solve(self, steps: int) -> torch.Tensor:
        """Return what the current solver makes of the latents of the error, before it is rounded."""
        count = self.args.latents
        generators = [torch.Generator().manual_seed(seed) for seed in range(count)]
        drawn = self.pipe(count, num_inference_steps=steps, generator=generators, output_type="latent")
        return drawn.images.cpu()

    def load_fine_solution(self) -> torch.Tensor:
        """Return the solution of `REFERENCE_STEPS` steps, which is computed once."""
        path = self.folder / f"reference-{self.args.latents}.pt"
        if not path.exists():
            self.use_solver("heun")
            with replace_file(path) as partial:
                torch.save(self.solve(REFERENCE_STEPS), partial)
        return torch.load(path, weights_only=True)

    def measure_errors(self) -> dict[tuple[str, int], float]:
        """Return the root mean square error of each solver at each number of calls."""
        fine = self.load_fine_solution()
        self.pipe.set_progress_bar_config(disable=True)
        errors = {}
        for solver, calls in [*CURVE, BASELINE, FAST]:
            self.use_solver(solver)
            solution = self.solve(count_steps(solver, calls))
            errors[solver, calls] = (solution - fine).square().mean().sqrt().item()
        return errors

    def load_metrics(self) -> ImageMetrics:
        real = load_images(load_dataset(self.args.data, split="test"), self.pipe.unet.config.sample_size)
        return ImageMetrics(load_features("fashion-mnist", self.state.device), real.images)

    def measure(self) -> dict[str, Any]:
        """Return both distances of everything that was drawn."""
        errors = self.measure_errors()
        metrics = self.load_metrics()

        def measure_distance(solver: str, calls: int, first: int, count: int) -> float:
            images, _ = load_samples(self.get_path(solver, calls, first, count))
            return round(metrics(images)["fid"], 3)

        compared = {}
        for solver, calls in (BASELINE, FAST):
            compared[f"{solver} at {calls} calls"] = {
                "frechet_distances": [measure_distance(solver, calls, *group) for group in self.groups],
                "rmse": round(errors[solver, calls], 4),
            }
        lines = {}
        for solver in SOLVERS:
            lines[solver] = {
                "calls": CALLS,
                "frechet_distance": [
                    measure_distance(solver, calls, 0, self.args.curve_images) for calls in CALLS
                ],
                "rmse": [round(errors[solver, calls], 4) for calls in CALLS],
            }
        names = ("num_images", "num_groups", "curve_images", "latents", "batch_size")
        settings = {name: getattr(self.args, name) for name in names}
        return {"settings": settings, "compared": compared, "lines": lines}


def plot(results: dict[str, Any], path: Path) -> None:
    """Plot both distances against the number of calls."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    axes = figure.subplots(1, 2)
    count = results["settings"]["curve_images"]
    titles = {
        "frechet_distance": f"Fréchet distance from the test images ({count:,} samples)",
        "rmse": f"RMSE to {REFERENCE_STEPS} steps of Heun with the same latents",
    }
    for axis, (key, title) in zip(axes, titles.items()):
        for solver, line in results["lines"].items():
            axis.plot(line["calls"], line[key], marker="o", markersize=4, label=solver)
        axis.set(xlabel="calls of the network", title=title, yscale="log", xticks=CALLS)
        axis.grid(alpha=0.3)
    name, baseline = next(iter(results["compared"].items()))
    axes[1].axhline(baseline["rmse"], color="0.5", linestyle=":", zorder=0)
    axes[1].text(CALLS[0], baseline["rmse"], name, color="0.5", va="bottom", fontsize=9)
    axes[0].legend(fontsize=9)
    figure.savefig(path, dpi=110)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="a pipeline folder or a Hub id")
    parser.add_argument("--data", required=True, help="data set with a test split")
    parser.add_argument(
        "--num_images", type=int, default=10_000, help="images per group of seeds (default: %(default)s)"
    )
    parser.add_argument(
        "--num_groups", type=int, default=3, help="groups that are compared (default: %(default)s)"
    )
    parser.add_argument(
        "--curve_images", type=int, default=250, help="images per point of the plot (default: %(default)s)"
    )
    parser.add_argument(
        "--latents", type=int, default=40, help="latents for the error (default: %(default)s)"
    )
    parser.add_argument(
        "--batch_size", type=int, default=50, help="images per call, in each process (default: %(default)s)"
    )
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    state = PartialState(cpu=not torch.cuda.is_available())
    pipe = DiffusionPipeline.from_pretrained(args.model).to(state.device)
    folder = default_output("solvers", args.model, describe(pipe))  # one folder per network
    folder.mkdir(parents=True, exist_ok=True)
    study = Study(pipe, folder, args)
    study.draw_all()
    if not state.is_main_process:
        return
    results = study.measure()
    command = format_command("python experiments/solvers.py", sys.argv[1:])
    write_measurement(RESULTS / "solvers.json", command, results)
    plot(results, Path(__file__).with_suffix(".png"))
    print(format_solvers(results))


if __name__ == "__main__":
    main()
