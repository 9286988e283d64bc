"""
Writes the cards of the published checkpoints, whose weights are not ours, and the collection:

    python experiments/published_cards.py
"""

import argparse
import math
import os
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from huggingface_hub import EvalResult

from pipeline_pfgmpp import PFGMPPUNet2DModel
from pipeline_pfgmpp.hub.cards import LIMITS, build_card
from pipeline_pfgmpp.records.dimensions import format_dimension
from pipeline_pfgmpp.training.recipes import RECIPES


CARDS = Path(__file__).resolve().parents[1] / "model_cards"
PAPER = "https://huggingface.co/papers/2302.04265"
TRAINING_IMAGES = 200_000_000

FFHQ_LIMITS = """

The people in FFHQ were not asked whether they want to be part of it, and they do not represent people in
general; the generated faces belong to nobody. Do not use the model to recognise, judge or imitate people."""


class Checkpoint(NamedTuple):
    """A published checkpoint; `fid` is the paper's, over 50,000 images."""

    name: str
    preset: str
    D: float | None
    num_classes: int
    dataset: str
    file: str
    fid: float


PUBLISHED = [
    Checkpoint(
        "pfgmpp-cifar10-uncond-128",
        "cifar10-ncsnpp",
        128,
        0,
        "uoft-cs/cifar10",
        "training-state-NNNNNN.pt",
        1.92,
    ),
    Checkpoint(
        "pfgmpp-cifar10-uncond-2048",
        "cifar10-ncsnpp",
        2048,
        0,
        "uoft-cs/cifar10",
        "training-state-NNNNNN.pt",
        1.91,
    ),
    Checkpoint(
        "pfgmpp-cifar10-cond-2048",
        "cifar10-ncsnpp",
        2048,
        10,
        "uoft-cs/cifar10",
        "training-state-NNNNNN.pt",
        1.74,
    ),
    Checkpoint(
        "edm-cifar10-uncond-inf",
        "cifar10-ncsnpp",
        None,
        0,
        "uoft-cs/cifar10",
        "edm-cifar10-32x32-uncond-ve.pkl",
        1.98,
    ),
    Checkpoint(
        "pfgmpp-ffhq64-uncond-128", "ffhq64-ddpmpp", 128, 0, "nvidia/ffhq", "training-state-NNNNNN.pt", 2.43
    ),
    Checkpoint(
        "edm-ffhq64-uncond-inf", "ffhq64-ddpmpp", None, 0, "nvidia/ffhq", "edm-ffhq-64x64-uncond-vp.pkl", 2.53
    ),
]
DATA_NAMES = {"uoft-cs/cifar10": "CIFAR-10", "nvidia/ffhq": "FFHQ 64×64"}


def write_published_cards(folder: str | os.PathLike) -> None:
    """
    Write a folder with a card for each published checkpoint, and `collection.yaml`, the family by D.

    Args:
        folder (`str` or `os.PathLike`): Where to write.
    """
    folder = Path(folder).resolve()
    for checkpoint in PUBLISHED:
        path = folder / checkpoint.name
        path.mkdir(parents=True, exist_ok=True)
        write_card(path, checkpoint)
    text = yaml.safe_dump(describe_collection(), sort_keys=False, allow_unicode=True)
    (folder / "collection.yaml").write_text(text)


def write_card(folder: Path, checkpoint: Checkpoint) -> None:
    """Write the card of a published checkpoint into its folder."""
    with torch.device("meta"):
        unet = PFGMPPUNet2DModel.from_preset(
            checkpoint.preset, label_dim=checkpoint.num_classes, augment_dim=9
        )
    result = EvalResult(
        task_type="unconditional-image-generation",
        dataset_type=checkpoint.dataset,
        dataset_name=DATA_NAMES[checkpoint.dataset],
        metric_type="fid",
        metric_name="FID, 50,000 images, as published",
        metric_value=checkpoint.fid,
        source_name="the PFGM++ paper",
        source_url=PAPER,
    )
    card = build_card(
        checkpoint.name,
        unet,
        checkpoint.D,
        describe_origin(checkpoint),
        num_classes=checkpoint.num_classes,
        place="folder that the command under [Weights](#weights) writes",
        limits=LIMITS + (FFHQ_LIMITS if checkpoint.dataset == "nvidia/ffhq" else ""),
        license="cc-by-nc-sa-4.0",
        datasets=[checkpoint.dataset],
        model_name=checkpoint.name,
        eval_results=[result],
    )
    card.save(folder / "README.md")


def describe_origin(checkpoint: Checkpoint) -> str:
    """Describe where the weights come from, how they were trained and what the paper measured."""
    authors = "EDM" if checkpoint.D is None else "PFGM++"
    recipe = RECIPES[checkpoint.preset]
    batch_size = recipe["train_batch_size"]
    D = "inf" if checkpoint.D is None else checkpoint.D
    data = DATA_NAMES[checkpoint.dataset]
    rate = f"{recipe['learning_rate']:g}"
    augment = f"{recipe['augment']:g}"
    network = f"--preset {checkpoint.preset} --D {D}"
    if checkpoint.num_classes:
        network += " --class_conditional"
    return f"""## Weights

This folder contains no weights: they belong to the authors of {authors}. One command converts the published
file, without running any of the code in it:

```bash
pfgmpp convert {checkpoint.file} {checkpoint.name} --dtype float16
```

## Training

As published, on {data}: batches of {batch_size} images, Adam with a learning rate of
{rate}, non-leaking augmentation with probability {augment}, and a moving average of the weights
with a half-life of 500,000 images. To train on 200 million images with this package:

```bash
accelerate launch train_accelerate.py --dataset_name {checkpoint.dataset} {network} \\
    --max_train_steps {TRAINING_IMAGES // batch_size} --output_dir {checkpoint.name}
```

## Evaluation

| FID, 50,000 images | |
|---|---|
| as [published]({PAPER}) (the PFGM++ paper) | {checkpoint.fid} |

This is the paper's figure; it was not measured here.
"""


def describe_collection() -> dict[str, Any]:
    """Describe the collection of all models, sorted by D."""
    items = []
    for checkpoint in sorted(PUBLISHED, key=lambda each: math.inf if each.D is None else each.D):
        kind = "class-conditional" if checkpoint.num_classes else "unconditional"
        note = f"{DATA_NAMES[checkpoint.dataset]}, {kind}, D = {format_dimension(checkpoint.D)}"
        items.append({"item_id": f"org/{checkpoint.name}", "item_type": "model", "note": note})
    notes = {
        "pfgmpp-fashion-mnist": "Fashion-MNIST, bundled",
        "pfgmpp-fashion-mnist-fast": "Fashion-MNIST, bundled, two calls per image",
        "pfgmpp-emoji": "Emoji at 64×64 in nine groups, bundled",
        "pfgmpp-emoji-fast": "Emoji at 64×64 in nine groups, bundled, two calls per image",
        "pfgmpp-emoji-restore": "Restoration of emoji: noise, 4x smaller, holes; bundled, one call",
        "pfgmpp-low-dose-ct": "Restoration of simulated low-dose CT, bundled, one call",
    }
    bundled = [{"item_id": f"org/{name}", "item_type": "model", "note": note} for name, note in notes.items()]
    return {
        "title": "PFGM++ by augmented dimension",
        "description": "Poisson flow generative models from D = 1 (PFGM) to infinity (diffusion).",
        "items": [*bundled, *items],
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", default=CARDS, help="where to write (default: model_cards)")
    write_published_cards(parser.parse_args().folder)
