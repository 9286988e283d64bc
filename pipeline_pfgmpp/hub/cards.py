"""Model cards, all from one template."""

import os
import re
from pathlib import Path
from typing import Any

import yaml
from diffusers import ModelMixin
from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.errors import HfHubHTTPError

from ..conditioning import get_sample_size
from ..latents import count_image_channels, get_factor
from ..pipeline_pfgmpp import PFGMPPPipeline
from ..records.dimensions import describe_dimensions
from ..records.sizes import format_size
from ..scheduler_config import get_default_steps


TEMPLATE = """---
{{ card_data }}
---

# {{ name }}
{% if has_picture %}
![Samples](samples.png)
{% endif %}
{{ kind }} at {{ size }} pixels{{ channels }} with
[PFGM++](https://huggingface.co/papers/2302.04265) at {{ dimension }}, as a diffusers pipeline.
N = {{ data_dimensions }} data dimensions, {{ parameters }} parameters.
{% if preconditioning == "t-edm" %}
Inputs and outputs of the network are scaled by the variance of Student-t noise
([t-EDM](https://huggingface.co/papers/2410.14171)), which it has at D above 2.
{% endif %}{% if latents %}
The network works on latents: {{ latents }}
{% endif %}{% if few_steps %}
This model was trained for few calls: the network makes an image in one call, and by default it is called
{{ few_steps }} time{{ "s" if few_steps > 1 }}.
{% endif %}
## Use

`{{ name }}` stands for the {{ place }}. With the package:

```python
import torch
from diffusers import DiffusionPipeline
import pipeline_pfgmpp  # registers the classes

pipe = DiffusionPipeline.from_pretrained("{{ name }}")
{{ call }}
```

With diffusers alone, which then runs the code in this repository, a copy of the package's own:

```python
name = "{{ name }}"
pipe = DiffusionPipeline.from_pretrained(name, custom_pipeline=name, trust_remote_code=True)
```

{{ command }}A model that has been loaded once from the Hub also loads
offline (`HF_HUB_OFFLINE=1`).
{% if any_D %}
`D=` selects the augmented dimension; `float("inf")` is diffusion. The paper finds that a small D bears more
disturbances. {{ bears }}
{% endif %}{% if classes %}
`class_labels` selects a class: {{ classes }}.
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
  author    = {Xu, Yilun and Liu, Ziming and Tian, Yonglong and Tong, Shangyuan and Tegmark, Max and
               Jaakkola, Tommi},
  booktitle = {International Conference on Machine Learning},
  year      = {2023}
}
```
"""

CALL = "images = pipe(batch_size=16, generator=torch.Generator().manual_seed(0)).images"
FIELDS_CALL = """generator = torch.Generator().manual_seed(0)
fields = pipe(batch_size=16, output_type="np", generator=generator).images  # in the units of the data"""
PLACE = """model: in a clone of the package write `model_cards/{name}`, for the Hub
`org/{name}`, or else any folder that holds it"""
RESTORING_CALL = """degraded = ...  # PIL images, arrays or tensors
restored = pipe(image=degraded, {settings}).images"""
UNITS_CALL = """degraded = ...  # floats in units of the data, of shape (batch, height, width, channels)
restored = pipe(image=degraded, {settings}, output_type="np").images"""

# What a card says of the paper's claim about a small D
UNMEASURED = "Whether that holds for this network is something to measure (`pfgmpp robustness`)."
MEASURED = "For this network, see [Robustness](#robustness)."
UNMEASURED_RESTORATION = "What D changes in restoration, `pfgmpp evaluate-restoration` measures."
MEASURED_RESTORATION = "What D changes in restoration is measured in [Evaluation](#evaluation)."

LIMITS = """The model reproduces its training data: it inherits their gaps and biases, and samples may
resemble individual training images. It is meant for research, and generated images are no evidence
of anything."""

LICENCES = {
    None: "Not stated: it depends on the data and on whoever trained the model.",
    "apache-2.0": "The weights, like the code, are under"
    " [Apache-2.0](https://www.apache.org/licenses/LICENSE-2.0).",
    "cc-by-nc-sa-4.0": "The weights belong to their authors and are under\n"
    "[CC BY-NC-SA 4.0](https://creativecommons.org/licenses/by-nc-sa/4.0/); the code is under Apache-2.0.",
}

# In the order in which a card has them
MEASURED_SECTIONS = ("Evaluation", "Recognition and copies", "Robustness", "Limits")


def build_card(
    name: str,
    unet: ModelMixin,
    D: float | None,
    origin: str,
    num_classes: int = 0,
    id2label: dict[int, str] | None = None,
    D_range: list[float | None] | None = None,
    has_picture: bool = False,
    limits: str = LIMITS,
    few_steps: int | None = None,
    vae: ModelMixin | None = None,
    sigma_data: float | None = None,
    preconditioning: str = "edm",
    makes_fields: bool = False,
    restoring: str = "generator=torch.Generator().manual_seed(0)",
    has_units: bool = False,
    place: str = PLACE,
    **metadata: Any,
) -> ModelCard:
    """
    Build the card of a model.

    Args:
        name (`str`): The model's name, which is the title and the name in the examples.
        unet (`ModelMixin`): The network; it may be on the meta device.
        D (`float` or `None`): The augmented dimension; None is infinity.
        origin (`str`): Markdown sections that say where the weights come from.
        num_classes (`int`, defaults to 0): Number of classes; 0 for an unconditional network.
        id2label (`dict`, *optional*): Names of the classes.
        D_range (`list`, *optional*): Least and largest D that the network was trained for.
        has_picture (`bool`, defaults to `False`): Whether `samples.png` is shown.
        limits (`str`): Text of the section "Limits".
        few_steps (`int`, *optional*): Calls of the network that a model of few calls makes by default; None
            for a denoiser.
        vae (`ModelMixin`, *optional*): The autoencoder.
        sigma_data (`float`, *optional*): The standard deviation of the data, which is stated for latents.
        preconditioning (`str`, defaults to `"edm"`): That of the scheduler, which is stated if it is another.
        makes_fields (`bool`, defaults to `False`): Whether the images are fields in units of their own.
        restoring (`str`): Arguments with which a model that restores is called.
        has_units (`bool`, defaults to `False`): Whether the data have a range of their own, such as that of
            Hounsfield units.
        place (`str`): What the name in the examples stands for.
        metadata: Further entries of the front matter, such as `license` and `base_model`.

    Returns:
        `ModelCard`: The card.
    """
    config = unet.config
    height, width = get_sample_size(unet)
    factor = get_factor(vae)
    channels = count_image_channels(vae, config.in_channels)
    any_D = bool(config.get("d_conditioning"))
    restores = bool(config.get("condition_channels"))
    kind = "Image restoration, trained"
    if not restores:
        kind = f"{'Class-conditional' if num_classes else 'Unconditional'} image generation"
    bears = UNMEASURED
    if restores:
        is_measured = "## Evaluation\n" in origin
        bears = MEASURED_RESTORATION if is_measured else UNMEASURED_RESTORATION
    call = (UNITS_CALL if has_units else RESTORING_CALL).format(settings=restoring)
    if not restores:
        call = FIELDS_CALL if makes_fields else CALL
    card_data = ModelCardData(
        library_name="diffusers",
        pipeline_tag="image-to-image" if restores else "unconditional-image-generation",
        tags=["pfgmpp", "poisson-flow", "diffusion"],
        **metadata,
    )
    card = ModelCard.from_template(
        card_data,
        template_str=TEMPLATE,
        name=name,
        place=place.format(name=name),
        has_picture=has_picture,
        kind=kind,
        command="" if restores else f"From the command line: `pfgmpp sample {name}`. ",
        call=call,
        size=format_size(height * factor, width * factor),
        channels="" if channels in (1, 3) else f" of {channels} channels",
        latents=_describe_latents(unet, vae, sigma_data),
        preconditioning=preconditioning,
        any_D=any_D,
        bears=bears,
        dimension=describe_dimensions(D, any_D, D_range),
        data_dimensions=f"{config.in_channels * height * width:,}",
        parameters=f"{unet.num_parameters():,}",
        classes=", ".join(f"{index} {label}" for index, label in (id2label or {}).items()),
        origin=origin.strip(),
        limits=limits,
        few_steps=few_steps,
        licence=_describe_licence(
            metadata.get("license"), metadata.get("license_name"), metadata.get("license_link")
        ),
    )
    card.text = card.text.rstrip() + "\n"  # the template engine drops the last line's end
    return card


def _describe_latents(unet: ModelMixin, vae: ModelMixin | None, sigma_data: float | None) -> str:
    """Describe latents in a sentence after a colon; nothing without an autoencoder."""
    if vae is None:
        return ""
    size = format_size(*get_sample_size(unet))
    return (
        f"{unet.config.in_channels} channels of {size}, which the `{type(vae).__name__}` in `vae`"
        f" ({vae.num_parameters():,} parameters)\nencodes and decodes. Their standard deviation, σ_data, is"
        f" {sigma_data:g}."
    )


def _describe_licence(licence: str | list[str] | None, name: str | None, link: str | None) -> str:
    """Describe a licence, several, or one called `other` that has a name and a link."""
    if licence is None:
        return LICENCES[None]
    if isinstance(licence, list):
        licence = ", ".join(licence)
    if licence in LICENCES:
        return LICENCES[licence]
    name = name or licence
    return f"The weights are under [{name}]({link})." if link else f"The weights are under {name}."


def write_model_card(
    folder: str | os.PathLike, pipeline: PFGMPPPipeline, origin: str, **metadata: Any
) -> None:
    """
    Write the card of a pipeline folder, with its `samples.png` if there is one.

    Args:
        folder (`str` or `os.PathLike`): The folder; its name is the title of the card.
        pipeline ([`PFGMPPPipeline`]): The pipeline that the folder holds.
        origin (`str`): Markdown sections that say where the weights come from.
        metadata: Further entries of the front matter, such as `license` and `base_model`, and `limits` and
            `restoring`, as for [`build_card`].
    """
    folder = Path(folder).resolve()
    scheduler = pipeline.scheduler.config
    is_consistency = scheduler.get("solver_type") == "consistency"
    card = build_card(
        folder.name,
        pipeline.unet,
        scheduler.D,
        origin,
        num_classes=pipeline.num_classes,
        id2label=pipeline.config.id2label,
        D_range=scheduler.get("D_range"),
        has_picture=(folder / "samples.png").is_file(),
        few_steps=get_default_steps(pipeline.scheduler) if is_consistency else None,
        vae=pipeline.vae,
        sigma_data=scheduler.sigma_data,
        preconditioning=scheduler.get("preconditioning", "edm"),
        makes_fields=pipeline.makes_fields,
        has_units=pipeline.config.value_range is not None,
        **metadata,
    )
    card.save(folder / "README.md")


def describe_base(model: str) -> dict[str, str]:
    """
    Name the model that another one is trained from, and its licence, for the other one's card.

    Args:
        model (`str`): A Hub id or a pipeline folder. A folder is named by its card, or else by its own
            last name.

    Returns:
        `dict[str, str]`: `base_model`, and the entries of the licence if the model's card states one.
    """
    is_folder = Path(model).is_dir()
    try:
        data = ModelCard.load(Path(model, "README.md") if is_folder else model).data
    except (OSError, ValueError, yaml.YAMLError, HfHubHTTPError):  # no card, or an unreadable one
        data = ModelCardData()
    name = model
    if is_folder:
        name = data.model_name or Path(model).resolve().name
    base = {"base_model": name}
    for entry in ("license", "license_name", "license_link"):
        if data.get(entry):
            base[entry] = data.get(entry)
    return base


def read_card(folder: str | os.PathLike) -> ModelCard:
    """
    Read the card of a model folder; its lines end as Python's do, whatever the system wrote.

    Args:
        folder (`str` or `os.PathLike`): The folder.

    Returns:
        `ModelCard`: The card.

    Raises:
        OSError: The folder has no card that can be read.
    """
    return ModelCard((Path(folder) / "README.md").read_text(encoding="utf-8"))


def put_section(card: ModelCard, title: str, body: str) -> None:
    """
    Put a section of measurements into a card, replacing an earlier section of that title.

    Args:
        card (`ModelCard`): The card, which is changed.
        title (`str`): One of `MEASURED_SECTIONS`.
        body (`str`): The section's text, as Markdown.
    """
    if title == "Robustness":
        card.text = card.text.replace(UNMEASURED, MEASURED)
    text = re.sub(rf"^## {title}\n.*?(?=^## |\Z)", "", card.text, flags=re.DOTALL | re.MULTILINE)
    following = MEASURED_SECTIONS[MEASURED_SECTIONS.index(title) + 1 :]
    found = re.search(rf"^## (?:{'|'.join(following)})\n", text, re.MULTILINE)
    position = found.start() if found else len(text)
    before = text[:position].rstrip()
    after = text[position:]
    card.text = f"{before}\n\n## {title}\n\n{body.strip()}\n\n{after}".rstrip() + "\n"
