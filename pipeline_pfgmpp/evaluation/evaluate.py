"""Distance of a model's samples from real images, beside the distance of real images from each other."""

import json
import os
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from huggingface_hub import ModelCard
from tqdm.auto import tqdm

from .fashion_mnist_classifier import WEIGHTS, FashionMNISTClassifier
from .frechet import feature_statistics, frechet_distance


@torch.no_grad()
def image_features(extractor: FashionMNISTClassifier, images: torch.Tensor, batch_size: int = 500) -> torch.Tensor:
    """
    Features of many images.

    Args:
        extractor ([`FashionMNISTClassifier`]): What turns images into features.
        images (`torch.Tensor` of shape `(M, C, H, W)`): Images, uint8 or float in [-1, 1].
        batch_size (`int`, defaults to 500): Images at a time.

    Returns:
        `torch.Tensor` of shape `(M, K)`: The features.
    """
    device = extractor.device
    batches = (batch.to(device) for batch in images.split(batch_size))
    return torch.cat([extractor.features(b.float() / 127.5 - 1 if b.dtype == torch.uint8 else b).cpu() for b in batches])


def generate(
    pipeline: DiffusionPipeline, num_images: int, num_inference_steps: int, batch_size: int, first_seed: int = 0
) -> torch.Tensor:
    """
    Images for the seeds `first_seed`, `first_seed + 1`, …; each depends on its seed alone.

    Args:
        pipeline ([`PFGMPPPipeline`]): What generates.
        num_images (`int`): Number of images.
        num_inference_steps (`int`): Steps of the solver.
        batch_size (`int`): Images at a time.
        first_seed (`int`, defaults to 0): Seed of the first image.

    Returns:
        `torch.Tensor` of shape `(num_images, C, H, W)`: The images as uint8.
    """
    pipeline.set_progress_bar_config(disable=True)
    batches = []
    with tqdm(total=num_images, desc="Sampling", unit="image") as progress:
        for seeds in torch.arange(first_seed, first_seed + num_images).split(batch_size):
            generators = [torch.Generator().manual_seed(seed) for seed in seeds.tolist()]
            images = pipeline(
                len(seeds), num_inference_steps=num_inference_steps, generator=generators, output_type="pt"
            ).images
            batches.append((images * 255).round().to("cpu", torch.uint8))
            progress.update(len(seeds))
    return torch.cat(batches)


def evaluate(
    pipeline: DiffusionPipeline,
    real_images: torch.Tensor,
    num_images: int = 5000,
    num_inference_steps: int = 18,
    batch_size: int = 250,
    first_seed: int = 0,
) -> dict:
    """
    Fréchet distance of samples from one half of the real images, and of the other half from it, at equal numbers.

    Args:
        pipeline ([`PFGMPPPipeline`]): What generates.
        real_images (`torch.Tensor` of shape `(M, 1, 28, 28)`, uint8): Real images, at least `2 * num_images`.
        num_images (`int`, defaults to 5000): Number of samples, and of real images in each half.
        num_inference_steps (`int`, defaults to 18): Steps of the solver.
        batch_size (`int`, defaults to 250): Images at a time.
        first_seed (`int`, defaults to 0): Seed of the first sample.

    Returns:
        `dict`: The distances and the settings, ready for JSON.

    Raises:
        ValueError: There are too few real images.
    """
    if len(real_images) < 2 * num_images:
        raise ValueError(f"{num_images} samples need {2 * num_images} real images, but there are {len(real_images)}.")
    extractor = FashionMNISTClassifier.from_pretrained(WEIGHTS).eval().to(pipeline.device)
    shuffled = real_images[torch.randperm(len(real_images), generator=torch.Generator().manual_seed(0))]
    sets = {
        "reference": shuffled[:num_images],
        "real": shuffled[num_images : 2 * num_images],
        "samples": generate(pipeline, num_images, num_inference_steps, batch_size, first_seed),
    }
    statistics = {name: feature_statistics(image_features(extractor, images)) for name, images in sets.items()}
    D = pipeline.scheduler.config.D
    return {
        "frechet_distance": round(frechet_distance(*statistics["samples"], *statistics["reference"]), 3),
        "frechet_distance_of_real_halves": round(frechet_distance(*statistics["real"], *statistics["reference"]), 3),
        "features": "fashion-mnist",
        "num_images": num_images,
        "num_inference_steps": num_inference_steps,
        "solver_type": pipeline.scheduler.config.get("solver_type"),
        "D": "inf" if D is None else D,
        "first_seed": first_seed,
    }


SECTION = "## Evaluation"


def write_evaluation(folder: str | os.PathLike, results: dict, command: str) -> None:
    """
    Keeps results with a model: as `evaluation.json`, and as the last section of its card.

    Args:
        folder (`str` or `os.PathLike`): The model's folder.
        results (`dict`): What [`evaluate`] returned.
        command (`str`): The command that measured it.
    """
    folder = Path(folder)
    (folder / "evaluation.json").write_text(json.dumps({**results, "command": command}, indent=2) + "\n")
    section = f"""{SECTION}

Fréchet distance over the features of a small Fashion-MNIST classifier, {results["num_images"]:,} images each, against the same
half of the test images:

| images | Fréchet distance |
|---|---|
| samples, {results["num_inference_steps"]} steps of {results["solver_type"]} | {results["frechet_distance"]} |
| the other half of the test images | {results["frechet_distance_of_real_halves"]} |

```bash
{command}
```
"""
    card = ModelCard.load(folder / "README.md")
    card.text = f"{card.text.split(SECTION)[0].rstrip()}\n\n{section}"
    card.save(folder / "README.md")
