r"""
Study the restoration of low-dose CT in one call of the network, on phantoms.

    pip install '.[train,ct]'
    pfgmpp data low-dose-ct
    python experiments/low_dose_ct.py

For each seed two networks of the same shape train on the same crops for the same number of steps: one for
every D, and one that is supervised, whose loss is the squared error of the restored image (`SupervisedLoss`).
The settings of every method are chosen on the validation split: where to enter the field lines and the blend
at each D, and the filter strength and the size of the patches for non-local means. With these settings the
test split is restored, and the two splits whose dose and whose kernel the networks have never seen.

Writes results/low_dose_ct.json and low_dose_ct.png next to this file, and with --model the network that is
best on the validation split, in float16 and with its card. Networks and measurements are kept in
outputs/low_dose_ct, so an interrupted study resumes.
"""

import argparse
import math
import sys
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from restorers import list_results, save_restorer
from tables import RESULTS, format_low_dose_ct, format_low_dose_ct_differences
from tqdm import tqdm

from pipeline_pfgmpp import PFGMPPRestorationPipeline, PFGMPPScheduler, PFGMPPUNet2DModel
from pipeline_pfgmpp.data import ImageDataset, load_images, open_dataset
from pipeline_pfgmpp.evaluation.restoration import (
    Entry,
    Pair,
    choose_entry,
    evaluate_restoration,
    format_restoration,
    list_pairs,
    measure_distances,
    restore_pairs,
)
from pipeline_pfgmpp.records.commands import format_command
from pipeline_pfgmpp.records.digests import default_output
from pipeline_pfgmpp.records.dimensions import format_dimension
from pipeline_pfgmpp.records.measurements import recall, write_measurement
from pipeline_pfgmpp.training import DimensionRange, PFGMPPLoss, Trainer, TrainingConfig
from pipeline_pfgmpp.training.loss import Perturbation


PICTURE = Path(__file__).with_suffix(".png")
COLUMNS = {"image_column": "full_dose", "condition_column": "low_dose"}
DIMENSIONS = [16.0, 64.0, 128.0, math.inf]
TRAINED = DimensionRange(16, math.inf)
SIGMAS = [0.01, 0.015, 0.02, 0.03, 0.04, 0.06, 0.1, 0.2]
STRENGTHS = [0.004, 0.006, 0.009, 0.013, 0.02, 0.03]  # of non-local means, where white minus black is 1
PATCHES = [3, 5, 7]
SCALE = 0.05  # of what the supervised network adds to an image in [-1, 1]
SHOWN = 64.0  # the D of the picture, and of the model by default
TESTS = ("test", "test_dose", "test_kernel")
WINDOW = (-200, 300)  # of the picture, in HU

ORIGIN = """## One call

The network was trained for small noise levels, so it restores in one call that starts at the slice itself.
From the largest level, where the pipeline starts without `start_sigma`, it makes slices worse. Floats go in
and come out in Hounsfield units, in slices of any size. In Python, values outside the range of the training
data, from {low:,.0f} to {high:,.0f} HU (`pipe.config.value_range`), are clipped. The command line leaves
such pixels as they are:

```bash
pfgmpp restore {name} slice.npy --output restored --num-inference-steps 1 \\
    --start-sigma {start_sigma:g} --blend {blend:g}
```

## Training

Trained for every D from 16 to infinity, in {steps:,} steps of {batch_size} crops of {crop_size}x{crop_size}
pixels from {count} pairs of simulated slices with many and with few photons. Of {seeds} networks, this is the
one with the least error on the validation split (seed {seed}). These commands make the data and the networks:

```bash
pfgmpp data low-dose-ct
{command}
```

## Evaluation

One call for each of the {tests} slices of the test split. The settings were chosen on the validation split at
D = 64. Black and white are the least and the largest value of the training split. PSNR and SSIM hardly depend
on D. The picture above was drawn with the network of seed 0; its greys go from {window[0]} to {window[1]} HU.

{table}
```bash
pfgmpp evaluate-restoration model_cards/{name} --data {data} --image-column full_dose \\
    --condition-column low_dose --num-images {tests} --D {dimensions} --num-inference-steps 1 \\
    --start-sigma {start_sigma:g} --blend {blend:g}
```
"""
LIMITS = """The model has seen phantoms of ellipses, and the noise of one simulated scanner. It is meant for
research, and as a start for training on real slices. It is no medical device: do not use what it makes for a
diagnosis."""


def regress(network: torch.nn.Module, degraded: torch.Tensor) -> torch.Tensor:
    """Restore images in [-1, 1] by a network that sees them alone: no noise, one level, one D."""
    count = len(degraded)
    correction = network(
        torch.zeros_like(degraded),
        torch.zeros(count),
        D=torch.full((count,), TRAINED.middle),
        condition=2 * degraded,  # about unit deviation
    ).sample
    return degraded + SCALE * correction


class SupervisedLoss(PFGMPPLoss):
    """The squared error of the restored image, in place of the loss of a denoiser."""

    def __call__(
        self,
        unet: torch.nn.Module,
        images: torch.Tensor,
        perturbation: Perturbation,
        references: torch.Tensor | None = None,
        **conditioning: torch.Tensor,
    ) -> torch.Tensor:
        """Compute the loss of each image."""
        error = regress(unet, conditioning["condition"]) - images
        return (error / SCALE).square().flatten(1).mean(1)


def average_locally(degraded: torch.Tensor, strength: float, patch: int) -> torch.Tensor:
    """Restore an image of shape `(1, H, W)` in [0, 1] by scikit-image's non-local means."""
    from skimage.restoration import denoise_nl_means

    restored = denoise_nl_means(degraded[0].numpy(), patch, patch_distance=7, h=strength, fast_mode=True)
    return torch.from_numpy(restored).to(degraded)[None]


class Study:
    """
    Training and measuring on the pairs of one data set.

    Args:
        args (`argparse.Namespace`): The settings of the command line.
    """

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.data = load_images(open_dataset(args.data), args.crop_size, crop=True, **COLUMNS)
        size = self.data.images[0].shape[-1]
        self.pairs = {name: list_pairs(self.load_split(name, size)) for name in ("validation", *TESTS)}
        names = ("steps", "batch_size", "crop_size", "learning_rate", "P_mean")
        settings = {name: getattr(args, name) for name in names}
        self.folder = default_output("low_dose_ct", args.data, {**settings, "data": self.data.digest()})

    def load_split(self, name: str, size: int) -> ImageDataset:
        """Load another split, whole and in the units of the training."""
        source = open_dataset(self.args.data, split=name)
        return load_images(source, size, value_range=self.data.value_range, **COLUMNS)

    def train(self, name: str, seed: int) -> tuple[PFGMPPRestorationPipeline, float]:
        """Train a network or load what an earlier run trained, with the seconds of CPU time."""
        folder = self.folder / f"{name}-{seed}"
        seconds = recall(folder.with_suffix(".json"), lambda: self.optimize(name, seed, folder))
        pipeline = PFGMPPRestorationPipeline.from_pretrained(folder)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline, seconds

    def optimize(self, name: str, seed: int, folder: Path) -> float:
        """Train a network, resumably, and return the seconds of CPU time since the last start."""
        torch.manual_seed(seed)  # for the weights
        network = PFGMPPUNet2DModel.from_preset(
            "ppfm-ct",
            sample_size=self.args.crop_size,
            model_channels=32,
            channel_mult=(1, 1, 2, 2),
            num_blocks=1,
            attn_resolutions=(),
            dropout=0.0,
            d_conditioning=True,
        )
        scheduler = PFGMPPScheduler(
            TRAINED.middle,
            sigma_data=round(self.data.sigma_data(), 3),
            D_range=(TRAINED.low, None),
        )
        config = TrainingConfig(
            output_dir=folder,
            max_train_steps=self.args.steps,
            train_batch_size=self.args.batch_size,
            learning_rate=self.args.learning_rate,
            lr_scheduler="cosine",
            lr_warmup_images=self.args.steps * self.args.batch_size / 20,
            P_mean=self.args.P_mean,
            random_flip=True,
            random_turn=True,
            seed=seed,
            checkpointing_steps=100,
            sample_steps=0,
            resume_from_checkpoint="latest",
        )
        loss = SupervisedLoss(scheduler, dimensions=TRAINED) if name == "supervised" else None
        start = time.process_time()
        if Trainer(network, scheduler, self.data, config, dimensions=TRAINED, loss=loss).run() is None:
            raise SystemExit("Stopped. Run the same command again to resume.")
        return time.process_time() - start

    @torch.no_grad()
    def restore_supervised(self, network: torch.nn.Module, pairs: Sequence[Pair]) -> list[torch.Tensor]:
        """Restore images by the supervised network."""
        return [regress(network, 2 * pair.degraded[None] - 1)[0] / 2 + 0.5 for pair in pairs]

    def choose_means(self) -> tuple[float, int]:
        """Choose the strength of non-local means and the size of its patches on the validation split."""
        pairs = self.pairs["validation"]

        def measure(options: tuple[float, int]) -> float:
            restored = [average_locally(pair.degraded, *options) for pair in pairs]
            return sum(compare(restored, pairs)["psnr"])

        return max(tqdm(list(product(STRENGTHS, PATCHES)), desc="Non-local means"), key=measure)

    def measure_references(self) -> dict[str, Any]:
        """Measure what needs no training, by split: the degraded images and non-local means."""
        strength, patch = self.choose_means()
        measured: dict[str, Any] = {"non-local means": {"settings": {"strength": strength, "patch": patch}}}
        measured["low dose"] = {}
        for name in TESTS:
            pairs = self.pairs[name]
            measured["low dose"][name] = compare([pair.degraded for pair in pairs], pairs)
            restored = [average_locally(pair.degraded, strength, patch) for pair in pairs]
            measured["non-local means"][name] = compare(restored, pairs)
        return measured

    def measure_seed(self, seed: int) -> dict[str, Any]:
        """Train the networks of a seed, and measure them by method and split."""
        pipeline, seconds = self.train("every_d", seed)
        supervised, supervised_seconds = self.train("supervised", seed)
        measured: dict[str, Any] = {"seconds": {"every D": seconds, "U-Net": supervised_seconds}}
        measured["U-Net"] = {
            name: compare(self.restore_supervised(supervised.unet, self.pairs[name]), self.pairs[name])
            for name in TESTS
        }
        for D in DIMENSIONS:
            entry = choose_entry(pipeline, self.pairs["validation"], SIGMAS, D)
            settings = {"start_sigma": entry.start_sigma, "blend": round(entry.blend, 3)}
            row: dict[str, Any] = {"settings": settings}
            for name in TESTS:
                row[name] = compare(restore(pipeline, self.pairs[name], D, settings), self.pairs[name])
            measured[f"D = {format_dimension(D)}"] = row
        return measured

    def draw_picture(self, path: Path) -> None:
        """Draw a slice of the test split as each method restores it, over what is left of the errors."""
        pair = self.pairs["test"][self.args.shown]
        pipeline, _ = self.train("every_d", 0)
        seed = self.recall_seed(0)
        means = self.recall_references()["non-local means"]["settings"]
        images = {"low dose": pair.degraded}
        images["non-local means"] = average_locally(pair.degraded, means["strength"], means["patch"])
        for D in (SHOWN, math.inf):
            name = f"D = {format_dimension(D)}"
            images[name] = restore(pipeline, [pair], D, seed[name]["settings"])[0]
        images["full dose"] = pair.truth
        draw_comparison(images, self.data.value_range, path)

    def find_best(self) -> tuple[int, Entry]:
        """Find the seed whose network for every D is the best on the validation split, at D = 64."""
        entries = {}
        for seed in range(self.args.seeds):
            pipeline, _ = self.train("every_d", seed)
            entries[seed] = choose_entry(pipeline, self.pairs["validation"], SIGMAS, SHOWN)
        seed = min(entries, key=lambda seed: entries[seed].rmse)
        return seed, entries[seed]

    def write_model(self, folder: Path) -> None:
        """Write the best network in float16, with a card that says how good it is in this type."""
        seed, entry = self.find_best()
        pipeline, _ = self.train("every_d", seed)
        pipeline.scheduler.register_to_config(D=SHOWN)
        pipeline.unet.half().float()
        settings = {"start_sigma": entry.start_sigma, "blend": round(entry.blend, 3)}
        rows = evaluate_restoration(pipeline, self.pairs["test"], DIMENSIONS, [1], **settings)
        results = list_results(rows, "low-dose-ct", "Simulated low-dose CT")
        origin = ORIGIN.format(
            seed=seed,
            **vars(self.args) | settings,
            count=len(self.data),
            table=format_restoration(rows),
            name=folder.name,
            command=format_command("python experiments/low_dose_ct.py", sys.argv[1:]),
            tests=len(self.pairs["test"]),
            dimensions=",".join(f"{D:g}" for D in DIMENSIONS),
            low=self.data.value_range[0],
            high=self.data.value_range[1],
            window=WINDOW,
        )
        save_restorer(folder, pipeline, PICTURE, settings, origin, results, "low-dose-ct", LIMITS)

    def recall_references(self) -> dict[str, Any]:
        """Measure what needs no training, unless an earlier run did."""
        return recall(self.folder / "references.json", self.measure_references)

    def recall_seed(self, seed: int) -> dict[str, Any]:
        """Measure the networks of a seed, unless an earlier run did."""
        return recall(self.folder / f"seed-{seed}.json", lambda: self.measure_seed(seed))


def compare(restored: Sequence[torch.Tensor], pairs: Sequence[Pair]) -> dict[str, list[float]]:
    """Measure restored images of shape `(1, H, W)` in [0, 1] against the truth."""
    return measure_distances(torch.stack(list(restored)), torch.stack([pair.truth for pair in pairs]))


def restore(
    pipeline: PFGMPPRestorationPipeline, pairs: Sequence[Pair], D: float, settings: dict[str, Any]
) -> list[torch.Tensor]:
    """Restore images in one call, in their order."""
    options = {**settings, "D": D, "num_inference_steps": 1}
    restored = {}
    for numbers, images in restore_pairs(pipeline, pairs, 4, 0, f"D = {format_dimension(D)}", options):
        restored.update(zip(numbers, images))
    return [restored[number] for number in range(len(pairs))]


def draw_comparison(images: dict[str, torch.Tensor], value_range: tuple[float, float], path: Path) -> None:
    """Draw images in a soft-tissue window, and below them how they differ from the last one."""
    low, high = value_range
    slices = {name: low + (high - low) * image[0].numpy() for name, image in images.items()}
    truth = list(slices.values())[-1]
    figure, axes = plt.subplots(2, len(slices), figsize=(2.4 * len(slices), 5), layout="constrained")
    for column, (name, values) in enumerate(slices.items()):
        axes[0, column].imshow(values, "gray", vmin=WINDOW[0], vmax=WINDOW[1])
        axes[0, column].set_title(name)
        shown = axes[1, column].imshow(values - truth, "RdBu", vmin=-80, vmax=80)
    for axis in axes.flat:
        axis.set_axis_off()
    figure.colorbar(shown, ax=axes[1], label="difference, HU", shrink=0.8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def summarize(seeds: Sequence[dict[str, Any]], references: dict[str, Any]) -> dict[str, Any]:
    """
    Summarize the measurements.

    Args:
        seeds (`Sequence[dict]`): From [`Study.measure_seed`].
        references (`dict`): From [`Study.measure_references`].

    Returns:
        `dict`: `rows` with the means over images, one per seed, and `differences` between finite D and
            infinity, in dB, averaged over the seeds: the mean over images and its 95 % interval.
    """
    rows = []
    for name in (*sorted(references), *(name for name in seeds[0] if name != "seconds")):
        groups = [references] if name in references else seeds
        row: dict[str, Any] = {"name": name}
        if "settings" in groups[0][name]:
            row["settings"] = [group[name]["settings"] for group in groups]
        for split in TESTS:
            row[split] = {
                metric: [round(float(np.mean(group[name][split][metric])), 4) for group in groups]
                for metric in ("psnr", "ssim")
            }
        rows.append(row)
    largest = f"D = {format_dimension(math.inf)}"
    differences = []
    for name in (f"D = {format_dimension(D)}" for D in DIMENSIONS if math.isfinite(D)):
        row = {"name": name}
        for split in TESTS:
            gains = [np.subtract(seed[name][split]["psnr"], seed[largest][split]["psnr"]) for seed in seeds]
            per_image = np.mean(gains, axis=0)
            margin = 1.96 * per_image.std(ddof=1) / math.sqrt(len(per_image))
            row[split] = {
                "mean": round(float(per_image.mean()), 4),
                "margin": round(float(margin), 4),
                "seeds": [round(float(gain.mean()), 4) for gain in gains],
            }
        differences.append(row)
    return {"rows": rows, "differences": differences, "seconds": [seed["seconds"] for seed in seeds]}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", default="data/low-dose-ct", help="(default: %(default)s)")
    add("--steps", type=int, default=1000, help="per network (default: %(default)s)")
    add("--batch_size", type=int, default=8, help="crops per step (default: %(default)s)")
    add("--crop_size", type=int, default=64, help="side of a crop in pixels (default: %(default)s)")
    add("--learning_rate", type=float, default=1e-3, help="(default: %(default)s)")
    add("--P_mean", type=float, default=-2.5, help="mean of ln(sigma) in training (default: %(default)s)")
    add("--seeds", type=int, default=3, help="networks per method (default: %(default)s)")
    add("--shown", type=int, default=1, help="slice of the test split to draw (default: %(default)s)")
    add("--model", type=Path, help="folder for the best network, such as model_cards/pfgmpp-low-dose-ct")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(1)  # the network is too small for more
    study = Study(args)
    references = study.recall_references()
    seeds = [study.recall_seed(seed) for seed in range(args.seeds)]
    settings = {name: value for name, value in vars(args).items() if name != "model"}
    results = {"settings": settings, **summarize(seeds, references)}
    command = format_command("python experiments/low_dose_ct.py", sys.argv[1:])
    write_measurement(RESULTS / "low_dose_ct.json", command, results)
    study.draw_picture(PICTURE)
    if args.model is not None:
        study.write_model(args.model)
    print(format_low_dose_ct(results), format_low_dose_ct_differences(results), sep="\n\n")


if __name__ == "__main__":
    main()
