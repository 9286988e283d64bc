"""
Which solver needs the fewest calls of the network: two distances against the number of calls, a
line a solver.

    python experiments/solvers.py model_cards/pfgmpp-fashion-mnist --data data/fashion-mnist

The Fréchet distance is that of a classifier's features from the test images, and the root mean
square error that from 256 steps of Heun with the same latents. Writes solvers.json, solvers.md and
solvers.png beside this file; what is drawn is kept in outputs/solvers, so an interrupted run goes
on. Under `torchrun --nproc_per_node N` the drawing is shared among processes.
"""

import argparse
import json
import os
from pathlib import Path

import torch
from accelerate import PartialState
from datasets import load_dataset
from diffusers import DiffusionPipeline

from pipeline_pfgmpp import PFGMPPScheduler
from pipeline_pfgmpp.data import load_images
from pipeline_pfgmpp.evaluation import ImageMetrics, load_features
from pipeline_pfgmpp.generation import load_samples, sample_to_files
from pipeline_pfgmpp.records.digests import default_output, describe


SOLVERS = {
    "heun": {"solver_type": "heun"},
    "euler": {"solver_type": "euler"},
    "dpmpp_2m": {"solver_type": "dpmpp_2m"},
    "dpmpp_3m": {"solver_type": "dpmpp_3m"},
    "dpmpp_3m, rho 10, sigma_min 0.06": {"solver_type": "dpmpp_3m", "rho": 10.0, "sigma_min": 0.06},
}
CALLS = [7, 11, 15, 19, 27]
# What the README calls the fast setting, and what it is compared with.
BASELINE, FAST = ("heun", 35), ("dpmpp_3m, rho 10, sigma_min 0.06", 16)
REFERENCE_STEPS = 256
SEEDS_A_GROUP = 10_000


def steps_of(solver, calls):
    return (calls + 1) // 2 if solver == "heun" else calls


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="a pipeline folder or a Hub id")
    parser.add_argument("--data", required=True, help="data set with a test split")
    parser.add_argument(
        "--num_images", type=int, default=10_000, help="images a group of seeds (default: %(default)s)"
    )
    parser.add_argument(
        "--num_groups", type=int, default=3, help="groups of the comparison (default: %(default)s)"
    )
    parser.add_argument(
        "--curve_images", type=int, default=250, help="images a point of the lines (default: %(default)s)"
    )
    parser.add_argument("--latents", type=int, default=40, help="latents of the error (default: %(default)s)")
    parser.add_argument("--batch_size", type=int, default=50)
    args = parser.parse_args()

    state = PartialState(cpu=not torch.cuda.is_available())
    folder = Path(__file__).parent
    pipe = DiffusionPipeline.from_pretrained(args.model).to(state.device)
    pipe.unet.to(memory_format=torch.channels_last)
    config = pipe.scheduler.config
    kept = default_output("solvers", args.model, describe(pipe))  # of other weights nothing is found there
    kept.mkdir(parents=True, exist_ok=True)

    def use(solver):
        pipe.scheduler = PFGMPPScheduler.from_config(config, **SOLVERS[solver])

    def path_of(solver, calls, first, count):
        return kept / f"{solver.replace(', ', '-').replace(' ', '')}-{calls}-{first}-{first + count - 1}.npz"

    def draw(solver, calls, first, count):
        path = path_of(solver, calls, first, count)
        if not path.exists():
            use(solver)
            steps = steps_of(solver, calls)
            seeds = list(range(first, first + count))
            sample_to_files(pipe, seeds, path, args.batch_size, num_inference_steps=steps, guidance_scale=1.0)
        state.wait_for_everyone()

    groups = [(group * SEEDS_A_GROUP, args.num_images) for group in range(args.num_groups)]
    curve = [(solver, calls) for solver in SOLVERS for calls in CALLS]
    for first, count in groups:
        for solver, calls in (FAST, BASELINE):
            draw(solver, calls, first, count)
    for solver, calls in curve:
        draw(solver, calls, 0, args.curve_images)
    if not state.is_main_process:
        return

    # Error against a fine solution of the same latents
    seeds = range(args.latents)

    def solution(steps):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return pipe(
            args.latents, num_inference_steps=steps, generator=generators, output_type="latent"
        ).images.cpu()

    reference = kept / f"reference-{args.latents}.pt"
    if not reference.exists():
        use("heun")
        torch.save(solution(REFERENCE_STEPS), reference.with_suffix(".partial"))
        os.replace(reference.with_suffix(".partial"), reference)
    fine = torch.load(reference, weights_only=True)
    pipe.set_progress_bar_config(disable=True)
    errors = {}
    for solver, calls in [*curve, BASELINE, FAST]:
        use(solver)
        errors[solver, calls] = (solution(steps_of(solver, calls)) - fine).square().mean().sqrt().item()

    # Fréchet distance from the test images
    real = load_images(load_dataset(args.data, split="test"), pipe.unet.config.sample_size).images
    metrics = ImageMetrics(load_features("fashion-mnist", state.device), real)

    def distance(solver, calls, first, count):
        return metrics(load_samples(path_of(solver, calls, first, count))[0])["fid"]

    compared = {
        f"{solver} at {calls} calls": {
            "frechet_distances": [round(distance(solver, calls, *group), 3) for group in groups],
            "rmse": round(errors[solver, calls], 4),
        }
        for solver, calls in (BASELINE, FAST)
    }
    lines = {
        solver: {
            "calls": CALLS,
            "frechet_distance": [round(distance(solver, calls, 0, args.curve_images), 3) for calls in CALLS],
            "rmse": [round(errors[solver, calls], 4) for calls in CALLS],
        }
        for solver in SOLVERS
    }
    results = {"settings": vars(args), "compared": compared, "lines": lines}
    (folder / "solvers.json").write_text(json.dumps(results, indent=2) + "\n")
    (folder / "solvers.md").write_text(table(results))
    plot(results, folder / "solvers.png")
    print(f"Wrote solvers.json, solvers.md and solvers.png to {folder}")


def table(results):
    settings, rows = results["settings"], []
    baseline = next(iter(results["compared"].values()))
    for name, row in results["compared"].items():
        distances = ", ".join(f"{value:.2f}" for value in row["frechet_distances"])
        ratio = sum(row["frechet_distances"]) / sum(baseline["frechet_distances"])
        rows.append(f"| {name} | {distances} | {ratio:.3f} | {row['rmse']:.4f} |")
    header = f"| setting | Fréchet distance, {settings['num_images']:,} images each | to the first | RMSE to a fine solution |"
    return "\n".join([header, "|---|---|---|---|", *rows, ""])


def plot(results, path):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), constrained_layout=True)
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


if __name__ == "__main__":
    main()
