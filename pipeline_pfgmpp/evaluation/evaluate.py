"""Distance of a model's samples from real images, beside the distance of real images from each other."""

import json
import os
import re
from pathlib import Path

import torch
from huggingface_hub import EvalResult, ModelCard

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


def evaluate(samples: torch.Tensor, real_images: torch.Tensor, device: torch.device | str = "cpu") -> dict:
    """
    Fréchet distance of samples from one half of the real images, and of the other half from it, at equal numbers.

    Args:
        samples (`torch.Tensor` of shape `(M, 1, 28, 28)`, uint8): What a model drew.
        real_images (`torch.Tensor` of shape `(R, 1, 28, 28)`, uint8): Real images, at least twice as many.
        device (`torch.device`, defaults to the CPU): Where features are computed.

    Returns:
        `dict`: The distances and what they are distances of, ready for JSON.

    Raises:
        ValueError: There are too few real images.
    """
    count = len(samples)
    if len(real_images) < 2 * count:
        raise ValueError(f"{count} samples need {2 * count} real images, but there are {len(real_images)}.")
    extractor = FashionMNISTClassifier.from_pretrained(WEIGHTS).eval().to(device)
    shuffled = real_images[torch.randperm(len(real_images), generator=torch.Generator().manual_seed(0))]
    sets = (samples, shuffled[:count], shuffled[count : 2 * count])
    drawn, reference, real = (feature_statistics(image_features(extractor, images)) for images in sets)
    return {
        "frechet_distance": round(frechet_distance(*drawn, *reference), 3),
        "frechet_distance_of_real_halves": round(frechet_distance(*real, *reference), 3),
        "features": "fashion-mnist",
        "num_images": count,
    }


SECTION, NEXT_SECTION = "## Evaluation", "## Limits"


def write_evaluation(folder: str | os.PathLike, results: dict, command: str) -> None:
    """
    Keeps results with a model: as `evaluation.json`, and as a section of its card.

    Args:
        folder (`str` or `os.PathLike`): The model's folder.
        results (`dict`): What [`evaluate`] returned, with the `settings` that the samples were drawn with.
        command (`str`): The command that measured it; before it stands the one that drew the samples, where it was another.
    """
    folder, settings = Path(folder), results["settings"]
    commands = "\n".join(filter(None, (settings.get("command"), command)))
    (folder / "evaluation.json").write_text(json.dumps({**results, "command": command}, indent=2) + "\n")
    section = f"""{SECTION}

Fréchet distance over the features of a small Fashion-MNIST classifier, {results["num_images"]:,} images each, against the same
half of the test images:

| images | Fréchet distance |
|---|---|
| samples, {settings["num_inference_steps"]} steps of {settings["scheduler"]["solver_type"]} | {results["frechet_distance"]} |
| the other half of the test images | {results["frechet_distance_of_real_halves"]} |

```bash
{commands}
```
"""
    card = ModelCard.load(folder / "README.md")
    text = re.sub(rf"^{SECTION}\n.*?(?=^## |\Z)", "", card.text, flags=re.DOTALL | re.MULTILINE)
    before, found, after = text.partition(NEXT_SECTION)
    card.text = f"{before.rstrip()}\n\n{section}\n{found}{after}".rstrip() + "\n"
    card.data.model_name = folder.resolve().name
    card.data.eval_results = [
        EvalResult(
            task_type="unconditional-image-generation", dataset_type=next(iter(card.data.datasets or [results["features"]])),
            dataset_name="Fashion-MNIST", dataset_split="test", metric_type="frechet_distance",
            metric_name=f"Fréchet distance of a classifier's features, {results['num_images']:,} images",
            metric_value=results["frechet_distance"],
        )
    ]  # fmt: skip
    card.save(folder / "README.md")
