"""What goes to the Hub beside the weights: the model card."""

import os
from pathlib import Path

from huggingface_hub import HfApi, ModelCard, ModelCardData

from .pipeline_pfgmpp import PFGMPPPipeline


TEMPLATE = """---
{{ card_data }}
---

# {{ title }}
{% if picture %}
![Samples](samples.png)
{% endif %}
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
{{ origin }}

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


def write_model_card(folder: str | os.PathLike, pipeline: PFGMPPPipeline, origin: str, **metadata) -> None:
    """
    Writes `README.md` into a pipeline folder; it shows `samples.png` where that is there.

    Args:
        folder (`str` or `os.PathLike`): Where; its name is the card's title.
        pipeline ([`PFGMPPPipeline`]): The pipeline that the folder holds.
        origin (`str`): Markdown section that says where the weights come from.
        metadata: Further entries of the card's front matter, such as `license`.
    """
    folder = Path(folder).resolve()
    config, D = pipeline.unet.config, pipeline.scheduler.config.D
    card = ModelCard.from_template(
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
        kind="Class-conditional" if pipeline.num_classes else "Unconditional",
        size=config.sample_size,
        D="∞" if D is None else f"{D:g}",
        dims=f"{config.in_channels * config.sample_size**2:,}",
        parameters=f"{pipeline.unet.num_parameters():,}",
        classes=", ".join(f"{number} {name}" for number, name in (pipeline.config.id2label or {}).items()),
        origin=origin.strip(),
    )
    card.save(folder / "README.md")


def push_to_hub(folder: str | os.PathLike, repo_id: str) -> str:
    """
    Uploads a pipeline folder: weights as safetensors, configurations, the card and its picture, and nothing else.

    Args:
        folder (`str` or `os.PathLike`): The folder.
        repo_id (`str`): Repository to upload to, which is made if it is not there.

    Returns:
        `str`: Address of the commit.
    """
    api = HfApi()
    repo_id = api.create_repo(repo_id, exist_ok=True).repo_id
    patterns = ["*.json", "*.safetensors", "README.md", "*.png"]
    return api.upload_folder(repo_id=repo_id, folder_path=folder, allow_patterns=patterns, ignore_patterns=["checkpoint-*"])
