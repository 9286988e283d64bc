"""
Model cards, all from one template: of pipelines as they are saved, and of published checkpoints,
whose weights are not ours:

    python -m pipeline_pfgmpp.hub.cards model_cards    # writes the cards of the published
    checkpoints and the collection
"""

import argparse
import os
import re
from pathlib import Path

import torch
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HfHubHTTPError

from ..pipeline_pfgmpp import PFGMPPPipeline
from ..records.dimensions import describe_dimensions, format_dimension
from ..unet_pfgmpp import PFGMPPUNet2DModel


TEMPLATE = """---
{{ card_data }}
---

# {{ title }}
{% if picture %}
![Samples](samples.png)
{% endif %}
{{ kind }} image generation at {{ size }}×{{ size }} pixels with [PFGM++](https://huggingface.co/papers/2302.04265) at
{{ dimension }}, as a diffusers pipeline. N = {{ dims }} data dimensions, {{ parameters }} parameters.

## Use

With the package:

```python
import torch
from diffusers import DiffusionPipeline
import pipeline_pfgmpp  # registers the classes

pipe = DiffusionPipeline.from_pretrained("{{ path }}")
images = pipe(batch_size=16, generator=torch.Generator().manual_seed(0)).images
```

With diffusers alone, from the code files of this repository, which are the package's own:

```python
name = "{{ path }}"
pipe = DiffusionPipeline.from_pretrained(name, custom_pipeline=name, trust_remote_code=True)
```

From the command line: `pfgmpp sample {{ path }}`. A folder's path stands wherever a repository's name does, and what was loaded
once loads offline (`HF_HUB_OFFLINE=1`).
{% if any_D %}
`D=` picks the augmented dimension: small D is robust, large D is rigid, `float("inf")` is diffusion.
{% endif %}{% if classes %}
`class_labels` picks a class: {{ classes }}.
{% endif %}
{{ origin }}

## Limits

{{ limits }}

## Licence

{{ licence }}

## Citation

```bibtex
@inproceedings{xu2023pfgmpp,
  title     = {{ '{{' }}PFGM++}: Unlocking the Potential of Physics-Inspired Generative Models},
  author    = {Xu, Yilun and Liu, Ziming and Tian, Yonglong and Tong, Shangyuan and Tegmark, Max and Jaakkola, Tommi},
  booktitle = {International Conference on Machine Learning},
  year      = {2023}
}
```
"""

LIMITS = """The model knows nothing but the images that it was trained on: it repeats their gaps and their biases, and may
come near to single ones of them. It is for research; what it draws is no record of anything."""

LICENCES = {
    None: "Not stated: that of the data and of whoever trained it.",
    "apache-2.0": "The weights are under [Apache-2.0](https://www.apache.org/licenses/LICENSE-2.0), as the code is.",
    "cc-by-nc-sa-4.0": "The weights are under [CC BY-NC-SA 4.0](https://creativecommons.org/licenses/by-nc-sa/4.0/) and belong"
    " to their\nauthors; the code is under Apache-2.0.",
}


def _card(folder, unet, D, num_classes, id2label, origin, limits=LIMITS, D_range=None, **metadata):
    """The card of a network at D in a folder."""
    config, any_D = unet.config, bool(unet.config.get("d_conditioning"))
    dimension = describe_dimensions(D, any_D, D_range)
    return ModelCard.from_template(
        ModelCardData(
            library_name="diffusers",
            pipeline_tag="unconditional-image-generation",
            tags=["pfgmpp", "poisson-flow", "diffusion"],
            **metadata,
        ),
        template_str=TEMPLATE,
        title=folder.name,
        picture=(folder / "samples.png").is_file(),
        path=folder.name,
        kind="Class-conditional" if num_classes else "Unconditional",
        size=config.sample_size,
        any_D=any_D,
        dimension=dimension,
        dims=f"{config.in_channels * config.sample_size**2:,}",
        parameters=f"{unet.num_parameters():,}",
        classes=", ".join(f"{index} {name}" for index, name in (id2label or {}).items()),
        origin=origin.strip(),
        limits=limits,
        licence=_describe_licence(**metadata),
    )


def _describe_licence(license=None, license_name=None, license_link=None, **metadata):
    """The section of the card; `license` is one, a list of them, or `other` with a name and a link."""
    if license is None or (isinstance(license, str) and license in LICENCES):
        return LICENCES[license]
    name = license_name or (", ".join(license) if isinstance(license, list) else license)
    return (
        f"The weights are under [{name}]({license_link})."
        if license_link
        else f"The weights are under {name}."
    )


def write_model_card(folder: str | os.PathLike, pipeline: PFGMPPPipeline, origin: str, **metadata) -> None:
    """
    Writes `README.md` into a pipeline folder; it shows `samples.png` where that is there.

    Args:
        folder (`str` or `os.PathLike`): Where; its name is the card's title.
        pipeline ([`PFGMPPPipeline`]): The pipeline that the folder holds.
        origin (`str`): Markdown section that says where the weights come from.
        metadata: Further entries of the card's front matter, such as `license` and `base_model`,
            and `limits`, the section of that name.
    """
    folder = Path(folder).resolve()
    scheduler = pipeline.scheduler.config
    classes = (pipeline.num_classes, pipeline.config.id2label)
    card = _card(
        folder, pipeline.unet, scheduler.D, *classes, origin, D_range=scheduler.get("D_range"), **metadata
    )
    card.save(folder / "README.md")


MEASURED = ("Evaluation", "Robustness", "Limits")


def describe_base(model: str) -> dict[str, str]:
    """
    Names the model that another one is trained from, and its licence, for the other one's card.

    Args:
        model (`str`): A pipeline folder, which is named by its card or else by its own last name,
            or a Hub id.

    Returns:
        `dict[str, str]`: `base_model`, and `license` with what belongs to it where the model's card
            states one.
    """
    local = Path(model).is_dir()
    try:
        card = ModelCard.load(Path(model, "README.md") if local else model).data
    except (OSError, ValueError, yaml.YAMLError, HfHubHTTPError):  # it has none, or none that can be read
        card = ModelCardData()
    name = (card.model_name or Path(model).resolve().name) if local else model
    licence = {key: card.get(key) for key in ("license", "license_name", "license_link") if card.get(key)}
    return {"base_model": name, **licence}


def put_section(card: ModelCard, title: str, body: str) -> None:
    """
    Puts a section of what was measured into a card: in the place of the one of that title, before
    those that come after it.

    Args:
        card (`ModelCard`): The card.
        title (`str`): `"Evaluation"` or `"Robustness"`.
        body (`str`): The section, as Markdown.
    """
    text = re.sub(rf"^## {title}\n.*?(?=^## |\Z)", "", card.text, flags=re.DOTALL | re.MULTILINE)
    later = re.search(rf"^## (?:{'|'.join(MEASURED[MEASURED.index(title) + 1 :])})\n", text, re.MULTILINE)
    place = later.start() if later else len(text)
    card.text = f"{text[:place].rstrip()}\n\n## {title}\n\n{body.strip()}\n\n{text[place:]}".rstrip() + "\n"


# The published checkpoints: folder, network, D, classes, data, its name, file, FID over 50,000
# images, where that is stated.
PAPER = ("the PFGM++ paper", "https://huggingface.co/papers/2302.04265")
CIFAR10, FFHQ = ("uoft-cs/cifar10", "CIFAR-10"), ("nvidia/ffhq", "FFHQ 64×64")
PUBLISHED = [
    ("pfgmpp-cifar10-uncond-128", "cifar10-ncsnpp", 128, 0, CIFAR10, "training-state-NNNNNN.pt", 1.92, PAPER),
    (
        "pfgmpp-cifar10-uncond-2048",
        "cifar10-ncsnpp",
        2048,
        0,
        CIFAR10,
        "training-state-NNNNNN.pt",
        1.91,
        PAPER,
    ),
    (
        "pfgmpp-cifar10-cond-2048",
        "cifar10-ncsnpp",
        2048,
        10,
        CIFAR10,
        "training-state-NNNNNN.pt",
        1.74,
        PAPER,
    ),
    (
        "edm-cifar10-uncond-inf",
        "cifar10-ncsnpp",
        None,
        0,
        CIFAR10,
        "edm-cifar10-32x32-uncond-ve.pkl",
        1.98,
        PAPER,
    ),
    ("pfgmpp-ffhq64-uncond-128", "ffhq64-ddpmpp", 128, 0, FFHQ, "training-state-NNNNNN.pt", 2.43, PAPER),
    ("edm-ffhq64-uncond-inf", "ffhq64-ddpmpp", None, 0, FFHQ, "edm-ffhq-64x64-uncond-vp.pkl", 2.53, PAPER),
]

ORIGIN = """## Weights

This folder holds no weights: they belong to the authors of {source}. One command makes them from the published file, running
nothing of it:

```bash
pfgmpp convert {file} {name} --dtype float16
```

## Training

As published, on {data}: batches of {batch} images, Adam at {rate:g}, non-leaking augmentation at {augment:g}, an average of the
weights with a half-life of 500,000 images. With this package, 200 million images:

```bash
accelerate launch train_accelerate.py --dataset_name {dataset} --preset {preset} --D {D}{conditional} \\
    --max_train_steps {steps} --output_dir {name}
```

## Evaluation

| FID, 50,000 images | |
|---|---|
| as [published]({url}) ({where}) | {fid} |

It is the paper's number, not measured here.
"""

FACES = """ The
faces are of nobody; FFHQ's people did not ask to be in it, and its faces are no even sample of mankind. Do not use it to
recognise, to judge or to imitate persons."""


def write_published_cards(folder: str | os.PathLike) -> None:
    """
    Writes a folder with a card, and no weights, for each published checkpoint, and
    `collection.yaml`, the family by D.

    Args:
        folder (`str` or `os.PathLike`): Where.
    """
    from ..training.recipes import RECIPES

    folder, items = Path(folder).resolve(), []
    for name, preset, D, classes, (dataset, data), file, fid, (where, url) in PUBLISHED:
        recipe, path = RECIPES[preset], folder / name
        with torch.device("meta"):
            unet = PFGMPPUNet2DModel.from_preset(preset, label_dim=classes, augment_dim=9)
        origin = ORIGIN.format(
            source="EDM" if D is None else "PFGM++", file=file, name=name, data=data, preset=preset, dataset=dataset,
            batch=recipe["train_batch_size"], steps=200_000_000 // recipe["train_batch_size"], rate=recipe["learning_rate"],
            augment=recipe["augment"], D="inf" if D is None else D, conditional=" --class_conditional" if classes else "",
            url=url, where=where, fid=fid,
        )  # fmt: skip
        result = EvalResult(
            task_type="unconditional-image-generation", dataset_type=dataset, dataset_name=data, metric_type="fid",
            metric_name="FID, 50,000 images, as published", metric_value=fid, source_name=where, source_url=url,
        )  # fmt: skip
        limits = LIMITS + (FACES if dataset == FFHQ[0] else "")
        metadata = {
            "license": "cc-by-nc-sa-4.0",
            "datasets": [dataset],
            "model_name": name,
            "eval_results": [result],
        }
        path.mkdir(parents=True, exist_ok=True)
        _card(path, unet, D, classes, None, origin, limits, **metadata).save(path / "README.md")
        note = f"{data}, {'class-conditional' if classes else 'unconditional'}, D = {format_dimension(D)}"
        items.append((D is None, D or 0, {"item_id": f"org/{name}", "item_type": "model", "note": note}))
    items.append(
        (
            False,
            0,
            {"item_id": "org/pfgmpp-fashion-mnist", "item_type": "model", "note": "Fashion-MNIST, bundled"},
        )
    )
    collection = {
        "title": "PFGM++ by augmented dimension",
        "description": "Poisson flow generative models from D = 1 (PFGM) to infinity (diffusion).",
        "items": [item for *_, item in sorted(items, key=lambda each: each[:2])],
    }
    (folder / "collection.yaml").write_text(yaml.safe_dump(collection, sort_keys=False, allow_unicode=True))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", help="where to write them")
    write_published_cards(parser.parse_args().folder)


if __name__ == "__main__":
    main()
