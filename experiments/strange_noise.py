"""
Study whether a small D bears noise of a kind that the network never saw.

    python experiments/strange_noise.py model_cards/pfgmpp-fashion-mnist \
        model_cards/pfgmpp-fashion-mnist-fast --data data/fashion-mnist

Test images with Gaussian, Poisson or salt-and-pepper noise, all of the same root mean square, enter the
field lines as they are at the noise level of that size ("hijacking", https://huggingface.co/papers/2402.08159),
and a single call of the network, which is told their class, leads to the end. Measures the peak
signal-to-noise ratio of the result at several D. Writes results/strange_noise.json next to this file.
"""

import argparse
import math
import sys
from collections.abc import Callable
from typing import Any

import torch
from datasets import load_dataset
from diffusers import DiffusionPipeline
from tables import RESULTS, format_strange_noise
from tqdm import tqdm

from pipeline_pfgmpp import PFGMPPPipeline
from pipeline_pfgmpp.data import load_images
from pipeline_pfgmpp.data.degradations import add_gaussian_noise, add_poisson_noise
from pipeline_pfgmpp.records.commands import format_command
from pipeline_pfgmpp.records.dimensions import format_dimension
from pipeline_pfgmpp.records.measurements import write_measurement


DIMENSIONS = [16, 128, 2048, math.inf]


def count_photons(images: torch.Tensor, size: float, generator: torch.Generator) -> torch.Tensor:
    """Count as many photons as make noise of this size; bright pixels are noisier."""
    brightness = (images + 1) / 2
    photons = 4 * brightness.mean() / size**2  # of a white pixel
    return add_poisson_noise(brightness, photons.item(), generator) * 2 - 1


def add_salt_and_pepper(images: torch.Tensor, size: float, generator: torch.Generator) -> torch.Tensor:
    """Set pixels to black or white at random."""
    share = size**2 / (images.square() + 1).mean()
    noisy = torch.where(torch.rand(images.shape, generator=generator) < 0.5, -1.0, 1.0)
    return torch.where(torch.rand(images.shape, generator=generator) < share, noisy, images)


NOISES: dict[str, Callable[[torch.Tensor, float, torch.Generator], torch.Tensor]] = {
    "Gaussian": add_gaussian_noise,
    "Poisson": count_photons,
    "salt and pepper": add_salt_and_pepper,
}


def measure_psnr(result: torch.Tensor, images: torch.Tensor) -> float:
    """Return the mean peak signal-to-noise ratio in decibels of images in [-1, 1]."""
    errors = (result - images).square().flatten(1).mean(1)
    return (10 * torch.log10(4 / errors)).mean().item()


def restore(
    pipe: PFGMPPPipeline, noisy: torch.Tensor, labels: torch.Tensor, size: float, D: float
) -> torch.Tensor:
    """Call the network once with noisy images at their own noise level."""
    parts = []
    for batch, classes in zip(noisy.split(50), labels.split(50)):
        output = pipe(latents=batch / size, sigmas=[size], class_labels=classes, D=D, output_type="latent")
        parts.append(output.images.clamp(-1, 1))
    return torch.cat(parts)


def measure(pipes: dict[str, PFGMPPPipeline], data: Any, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row per size and kind of noise and per network: the ratio before and after, by D, per seed."""
    images = data.images[: args.num_images].float() / 127.5 - 1
    labels = torch.as_tensor(data.labels[: args.num_images])
    rows = []
    cases = [(size, noise, name) for size in args.sizes for noise in NOISES for name in pipes]
    for size, noise, name in tqdm(cases, desc="Kinds of noise"):
        row: dict[str, Any] = {"size": size, "noise": noise, "network": name, "before": []}
        row["after"] = {format_dimension(D): [] for D in DIMENSIONS}
        for seed in range(args.seeds):
            noisy = NOISES[noise](images, size, torch.Generator().manual_seed(seed))
            row["before"].append(round(measure_psnr(noisy, images), 3))
            for D in DIMENSIONS:
                result = restore(pipes[name], noisy, labels, size, D)
                row["after"][format_dimension(D)].append(round(measure_psnr(result, images), 3))
        rows.append(row)
    return rows


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="the denoiser: a pipeline folder or a Hub id")
    parser.add_argument("fast_model", help="the model of few calls that was made from it")
    parser.add_argument("--data", required=True, help="data set with a test split")
    parser.add_argument("--num_images", type=int, default=300, help="(default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="draws of the noise (default: %(default)s)")
    parser.add_argument(
        "--sizes", type=float, nargs="+", default=[0.3, 0.8], help="of the noise (default: %(default)s)"
    )
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    models = {"denoiser": args.model, "fast model": args.fast_model}
    pipes = {name: DiffusionPipeline.from_pretrained(model) for name, model in models.items()}
    for pipe in pipes.values():
        pipe.set_progress_bar_config(disable=True)
    data = load_images(load_dataset(args.data, split="test"), pipes["denoiser"].unet.config.sample_size)
    rows = measure(pipes, data, args)
    settings = {name: getattr(args, name) for name in ("num_images", "seeds", "sizes")}
    results = {"settings": settings, "rows": rows}
    command = format_command("python experiments/strange_noise.py", sys.argv[1:])
    write_measurement(RESULTS / "strange_noise.json", command, results)
    print(format_strange_noise(results))


if __name__ == "__main__":
    main()
