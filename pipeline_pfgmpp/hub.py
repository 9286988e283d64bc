"""What goes to the Hub beside the weights: the model card."""

import json
import os
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from .pipeline_pfgmpp import PFGMPPPipeline


TEMPLATE = """---
{{ card_data }}
---

# {{ title }}

{{ kind }} image generation at {{ size }}×{{ size }} pixels with [PFGM++](https://huggingface.co/papers/2302.04265) at augmented
dimension D = {{ D }}, as a diffusers pipeline. N = {{ dims }} data dimensions, {{ parameters }} parameters.

## Use

```python
import torch
from diffusers import DiffusionPipeline
import pipeline_pfgmpp  # registers the classes

pipe = DiffusionPipeline.from_pretrained("{{ path }}")
images = pipe(batch_size=16, generator=torch.Generator().manual_seed(0)).images
```
{% if classes %}
`class_labels` picks a class: {{ classes }}.
{% endif %}
## Training

{{ images_seen }} images of `{{ dataset }}`; the saved weights are the exponential moving average.

```bash
{{ command }}
```
"""


def write_model_card(folder: str | os.PathLike, dataset: str, command: str, images_seen: int, **metadata) -> None:
    """
    Writes `README.md` into a pipeline folder; what the folder's configs say is read from them.

    Args:
        folder (`str` or `os.PathLike`): A pipeline folder, as written by `save_pretrained`.
        dataset (`str`): Name of the training data.
        command (`str`): The command that trained it.
        images_seen (`int`): Training images, counted with repetition.
        metadata: Further entries of the card's front matter, such as `license`.
    """
    folder = Path(folder)
    unet = json.loads((folder / "unet" / "config.json").read_text())
    scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    id2label = json.loads((folder / "model_index.json").read_text()).get("id2label") or {}

    parameters = PFGMPPPipeline.from_pretrained(folder).unet.num_parameters()
    card = ModelCard.from_template(
        ModelCardData(
            library_name="diffusers",
            pipeline_tag="unconditional-image-generation",
            tags=["pfgmpp", "poisson-flow", "diffusion"],
            **metadata,
        ),
        template_str=TEMPLATE,
        title=folder.resolve().name,
        path=folder.name,
        kind="Class-conditional" if unet["label_dim"] else "Unconditional",
        size=unet["sample_size"],
        D="∞" if scheduler["D"] is None else f"{scheduler['D']:g}",
        dims=f"{unet['in_channels'] * unet['sample_size'] ** 2:,}",
        parameters=f"{parameters:,}",
        classes=", ".join(f"{number} {name}" for number, name in id2label.items()),
        dataset=dataset,
        command=command,
        images_seen=f"{images_seen:,}",
    )
    card.save(folder / "README.md")
