"""
Study what an image of few calls of the network is worth: quality against calls, for the solvers of a
denoiser, for noise levels that were searched for it, and for a model of few calls made from it.

    python experiments/few_calls.py model_cards/pfgmpp-fashion-mnist model_cards/pfgmpp-fashion-mnist-fast \
        --data data/fashion-mnist

The Fréchet distance is from the test images, over the features of a classifier, with the same seeds
everywhere. The root mean square error of the denoiser's solvers is from a fine solution, on latents that no
levels were searched on, in equal parts at each D: the mean over the latents, and that of all together.
Writes results/few_calls.json, few_calls.png (distance against calls) and few_calls_images.png (the same
seeds at few and at many calls) next to this file. The drawn images are kept in outputs/few_calls, so an
interrupted run resumes, and figures of a network and a way to draw that have not changed since the last
results are taken from them. Where the package has changed so that seeds draw other images, remove both first.
"""

import argparse
import datetime
import math
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
from datasets import load_dataset
from diffusers import DiffusionPipeline
from tables import RESULTS, format_few_calls

from pipeline_pfgmpp import PFGMPPPipeline, PFGMPPScheduler
from pipeline_pfgmpp.data import load_images
from pipeline_pfgmpp.evaluation import ImageMetrics, load_features
from pipeline_pfgmpp.generation import load_samples, sample_to_files
from pipeline_pfgmpp.generation.noise_levels import Latents, measure_errors
from pipeline_pfgmpp.pictures.grid import draw_grid, to_pil
from pipeline_pfgmpp.records.commands import format_command
from pipeline_pfgmpp.records.digests import default_output, describe
from pipeline_pfgmpp.records.dimensions import format_dimension
from pipeline_pfgmpp.records.measurements import read_measurement, write_measurement


DIMENSIONS = [16, 128, 2048, math.inf]
CURVE_DIMENSION = 128
FIRST_LATENT = 100_000  # a seed far from those of `pfgmpp schedule`
# What a model has without a search, which writes more into its configuration than levels
SPACED = {
    "solver_type": "dpmpp_3m",
    "rho": 10.0,
    "sigma_min": 0.06,
    "sigmas": None,
    "lower_order_final": True,
}
COLUMNS = 12  # of the picture
CALL_TICKS = [1, 2, 4, 8, 16, 35]  # of the plot
DISTANCE_TICKS = [7, 10, 15, 30, 60, 150]


class Setting(NamedTuple):
    """
    A way to draw.

    Args:
        line (`str`): The line of the plot that it belongs to.
        calls (`int`): Calls of the network per image.
        steps (`int`): Steps of the solver.
        is_fast (`bool`): Whether the fast model draws, instead of the denoiser.
        entries (`dict`): Entries of the scheduler's configuration.
        everywhere (`bool`): Whether the distance is measured at all of `DIMENSIONS`.
    """

    line: str
    calls: int
    steps: int
    is_fast: bool
    entries: dict[str, Any]
    everywhere: bool = False

    @property
    def name(self) -> str:
        return f"{self.line}, {self.calls} call{'s' if self.calls > 1 else ''}"


def list_settings(config: Any) -> list[Setting]:
    """List what is compared, given the configuration of the denoiser's scheduler."""
    heun = {"solver_type": "heun", "sigmas": None}
    settings = [Setting("Heun", 2 * steps - 1, steps, False, heun, steps == 18) for steps in (18, 10, 6, 4)]
    line = "dpmpp_3m, rho 10, sigma_min 0.06"
    settings += [Setting(line, steps, steps, False, SPACED) for steps in (16, 12, 8, 6)]
    line = f"{line}, order kept"
    kept = {**SPACED, "lower_order_final": False}
    settings += [Setting(line, steps, steps, False, kept) for steps in (12, 8, 6)]
    for solver, by_steps in (config.get("sigmas") or {}).items():
        line = f"{solver}, searched levels"
        counts = sorted(map(int, by_steps), reverse=True)
        settings += [Setting(line, steps, steps, False, {"solver_type": solver}) for steps in counts]
    settings += [Setting("fast model", steps, steps, True, {}, steps <= 2) for steps in (4, 2, 1)]
    return settings


class Study:
    """
    Drawing in every way, and measuring what is drawn.

    Args:
        denoiser, fast ([`PFGMPPPipeline`]): The models.
        args (`argparse.Namespace`): The settings of the command line.
    """

    def __init__(self, denoiser: PFGMPPPipeline, fast: PFGMPPPipeline, args: argparse.Namespace):
        self.pipes = (denoiser, fast)
        self.configs = tuple(pipe.scheduler.config for pipe in self.pipes)
        self.args = args
        real = load_images(load_dataset(args.data, split="test"), denoiser.unet.config.sample_size)
        self.metrics = ImageMetrics(load_features("fashion-mnist", denoiser.device), real.images)

    def prepare(self, setting: Setting) -> tuple[PFGMPPPipeline, Path]:
        """Set up the pipeline of a setting, and name the folder of its images."""
        pipe = self.pipes[setting.is_fast]
        config = self.configs[setting.is_fast]
        pipe.scheduler = PFGMPPScheduler.from_config(config, **setting.entries)
        described = describe(pipe, num_inference_steps=setting.steps, data=self.args.data)
        name = (self.args.model, self.args.fast_model)[setting.is_fast]
        return pipe, default_output("few_calls", name, described)

    def draw(self, setting: Setting, D: float, count: int) -> torch.Tensor:
        """Draw the images of the first seeds, or load them if an earlier run drew them."""
        pipe, folder = self.prepare(setting)
        path = folder / f"{format_dimension(D)}-{count}.npz"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            seeds = list(range(count))
            sample_to_files(pipe, seeds, path, self.args.batch_size, num_inference_steps=setting.steps, D=D)
        images, _ = load_samples(path)
        return images

    def measure(self, settings: list[Setting], last: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
        """Return a row for each setting: the one of the last results, by its origin, or a new one."""
        origins = {setting.name: self.prepare(setting)[1].name for setting in settings}
        new = [setting for setting in settings if origins[setting.name] not in last]
        errors = self.measure_errors([setting for setting in new if not setting.is_fast])
        rows = []
        for setting in settings:
            named = {"line": setting.line, "calls": setting.calls, "origin": origins[setting.name]}
            row = last.get(named["origin"])
            if row is None:
                row = {
                    "date": datetime.date.today().isoformat(),
                    "distances": self.measure_distances(setting),
                    "errors": errors.get(setting.name),
                }
            rows.append({**row, **named})
        return rows

    def measure_distances(self, setting: Setting) -> dict[str, float]:
        """Return the Fréchet distance by D."""
        dimensions = DIMENSIONS if setting.everywhere else [CURVE_DIMENSION]
        images = {format_dimension(D): self.draw(setting, D, self.args.num_images) for D in dimensions}
        return {D: round(self.metrics(drawn)["fid"], 3) for D, drawn in images.items()}

    def measure_errors(self, settings: list[Setting]) -> dict[str, dict[str, float]]:
        """Return the errors of the denoiser's solvers, summed up in two ways, by the setting's name."""
        if not settings:
            return {}
        pipe = self.pipes[False]
        pipe.scheduler = PFGMPPScheduler.from_config(self.configs[False])
        seeds = list(range(FIRST_LATENT, FIRST_LATENT + self.args.latents))
        latents = Latents(pipe, seeds, DIMENSIONS)
        fine = latents.trace("Fine solution").ends
        errors = {}
        for setting in settings:
            latents.use_solver(**setting.entries)
            of_latents = measure_errors(latents.solve(setting.steps), fine)
            together = of_latents.square().mean().sqrt()
            errors[setting.name] = {
                "mean": round(of_latents.mean().item(), 4),
                "together": round(together.item(), 4),
            }
        return errors

    def picture(self, settings: list[Setting], path: Path) -> None:
        """Show the same seeds in several settings, a row each."""
        images = [self.draw(setting, CURVE_DIMENSION, COLUMNS) for setting in settings]
        labels = [setting.name for setting in settings]
        draw_grid(to_pil(torch.cat(images)), COLUMNS, labels).save(path)


def read_last_rows(counts: dict[str, int]) -> dict[str, dict[str, Any]]:
    """Read the rows of the last results by their origin; none if they had other settings."""
    path = RESULTS / "few_calls.json"
    if not path.is_file():
        return {}
    results = read_measurement(path)["results"]
    return {row["origin"]: row for row in results["rows"]} if results["settings"] == counts else {}


def plot(rows: list[dict[str, Any]], num_images: int, path: Path) -> None:
    """Plot the distance against the number of calls, a line per solver or network."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.6), layout="constrained")
    axis = figure.subplots()
    for line in dict.fromkeys(row["line"] for row in rows):
        points = sorted(
            (row["calls"], row["distances"][str(CURVE_DIMENSION)]) for row in rows if row["line"] == line
        )
        axis.plot(*zip(*points), marker="o", markersize=4, label=line)
    axis.set(xlabel="calls of the network", xscale="log", yscale="log")
    axis.set_title(f"Quality at D = {CURVE_DIMENSION}, {num_images:,} images", fontsize=11)
    axis.set_ylabel("Fréchet distance to the test images")
    axis.set_xticks(CALL_TICKS, [str(calls) for calls in CALL_TICKS])
    axis.set_yticks(DISTANCE_TICKS, [str(distance) for distance in DISTANCE_TICKS])
    axis.minorticks_off()
    axis.grid(alpha=0.3)
    figure.legend(fontsize=9, loc="outside lower center", ncols=2)
    figure.savefig(path, dpi=110)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="the denoiser: a pipeline folder or a Hub id")
    parser.add_argument("fast_model", help="the model of few calls that was made from it")
    parser.add_argument("--data", required=True, help="data set with a test split")
    parser.add_argument("--num_images", type=int, default=1000, help="(default: %(default)s)")
    parser.add_argument("--latents", type=int, default=128, help="for the error (default: %(default)s)")
    parser.add_argument("--batch_size", type=int, default=25, help="(default: %(default)s)")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    denoiser = DiffusionPipeline.from_pretrained(args.model).to(device)
    fast = DiffusionPipeline.from_pretrained(args.fast_model).to(device)
    settings = list_settings(denoiser.scheduler.config)
    study = Study(denoiser, fast, args)
    counts = {name: getattr(args, name) for name in ("num_images", "latents", "batch_size")}
    results = {"settings": counts, "rows": study.measure(settings, read_last_rows(counts))}
    command = format_command("python experiments/few_calls.py", sys.argv[1:])
    write_measurement(RESULTS / "few_calls.json", command, results)
    here = Path(__file__)
    plot(results["rows"], args.num_images, here.with_suffix(".png"))
    shown = [setting for setting in settings if setting.everywhere]
    study.picture(shown[::-1], here.with_name("few_calls_images.png"))
    print(format_few_calls(results))


if __name__ == "__main__":
    main()
