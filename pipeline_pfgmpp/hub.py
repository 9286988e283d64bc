"""What goes to the Hub: the model card, and the upload."""

import json
import os
from pathlib import Path

import diffusers
import torch
from diffusers import DiffusionPipeline
from huggingface_hub import HfApi, ModelCard, ModelCardData, snapshot_download
from huggingface_hub.errors import HFValidationError, LocalTokenNotFoundError

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
        D=number(D),
        dims=f"{config.in_channels * config.sample_size**2:,}",
        parameters=f"{pipeline.unet.num_parameters():,}",
        classes=", ".join(f"{number} {name}" for number, name in (pipeline.config.id2label or {}).items()),
        origin=origin.strip(),
    )
    card.save(folder / "README.md")


def model_info(model: str | os.PathLike) -> dict[str, str]:
    """
    What a model is, from its configurations and its card; no weights are downloaded.

    Args:
        model (`str` or `os.PathLike`): A pipeline folder or a Hub id.

    Returns:
        `dict[str, str]`: Names and values, for people.

    Raises:
        ValueError: There is no such model, or it is no PFGM++ pipeline.
    """
    try:
        local = Path(model).is_dir()
        folder = Path(model if local else snapshot_download(str(model), allow_patterns=["*.json", "README.md"]))
        index, scheduler, unet = (
            json.loads((folder / name).read_text())
            for name in ("model_index.json", "scheduler/scheduler_config.json", "unet/config.json")
        )
        network = getattr(diffusers, index["unet"][1])
        D, sigmas = scheduler["D"], (scheduler["sigma_min"], scheduler["sigma_max"])
    except (OSError, ValueError, KeyError, AttributeError, HFValidationError) as error:
        raise ValueError(f"{model} is no PFGM++ pipeline that can be read: {_first_line(error)}") from None
    with torch.device("meta"):
        parameters = network.from_config(unet).num_parameters()
    card = ModelCard.load(folder / "README.md").data if (folder / "README.md").is_file() else {}
    size, names, datasets = unet["sample_size"], index.get("id2label") or {}, card.get("datasets") or []
    return {
        "D": f"any, {number(D)} when none is asked for" if unet.get("d_conditioning") else number(D),
        "noise levels": f"{sigmas[0]:g} to {sigmas[1]:g}, data {scheduler['sigma_data']:g}",
        "images": f"{size}×{size}, {'grey' if unet['in_channels'] == 1 else 'RGB'}",
        "network": f"{index['unet'][1]}, {parameters:,} parameters",
        "classes": ", ".join(names.values()) or "none",
        "trained on": ", ".join([datasets] if isinstance(datasets, str) else datasets) or "not stated",
        "licence": card.get("license") or "not stated",
    }


def number(D: float | None) -> str:
    """An augmented dimension for people."""
    return "∞" if D is None else f"{D:g}"


def push_to_hub(
    folder: str | os.PathLike,
    repo_id: str,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
) -> str:
    """
    Uploads a pipeline folder in one commit: weights as safetensors, configurations, the card and its pictures, the package's
    own source files, and nothing else that lies there. What an interrupted upload has sent is not sent again.

    Args:
        folder (`str` or `os.PathLike`): The folder.
        repo_id (`str`): Repository to upload to, `name` or `organisation/name`; it is made if it is not there.
        private (`bool`, *optional*): Whether a repository that is made is private; by default as the account has it.
        revision (`str`, *optional*): Branch to commit to, which is made if it is not there; by default the main one.
        create_pr (`bool`, defaults to `False`): Whether to propose the commit instead.

    Returns:
        `str`: Address of the commit, or of the proposal.

    Raises:
        ValueError: The folder holds no pipeline, or it cannot be uploaded; the repository is as it was.
    """
    folder = Path(folder)
    if not (folder / "model_index.json").is_file():
        raise ValueError(f"{folder} holds no pipeline: it has no model_index.json.")
    try:
        pipeline = DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} holds no pipeline that can be uploaded: {error}") from None
    code = [path.relative_to(folder).as_posix() for path in pipeline.write_code(folder)]
    parts = [name for name, component in pipeline.components.items() if component is not None]
    patterns = ["model_index.json", "README.md", "evaluation.json", *code]
    files = [path.name for path in folder.glob("*.png")]
    for part in parts:
        files += [f"{part}/{path.name}" for kind in ("json", "safetensors") for path in (folder / part).glob(f"*.{kind}")]
    api = HfApi()
    try:
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        there = set(api.list_repo_files(repo_id)) - {".gitattributes", "README.md"}
        if there and "model_index.json" not in there:
            raise ValueError(f"it is taken by something else, which holds {min(there)}")
        if revision:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            allow_patterns=[*patterns, *files],
            revision=revision,
            create_pr=create_pr,
            commit_message=f"Upload {type(pipeline).__name__}",
        )
    except Exception as error:
        raise ValueError(_reason(error, repo_id)) from error
    return commit.pr_url or commit.commit_url


def _reason(error, repo_id):
    """Why an upload failed, in one sentence."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, LocalTokenNotFoundError) or status == 401:
        return "You are not logged in to the Hub: run `hf auth login`, or set HF_TOKEN to a token that may write."
    if status == 403:
        return f"Your token may not write to {repo_id}: use one that may, or name a repository of your own."
    if status == 409:
        return f"{repo_id} was changed at the same time, and nothing was uploaded: try again."
    if status and status >= 500:
        return f"The Hub cannot answer ({status}); nothing was changed, and a second try sends what is missing."
    return f"The upload to {repo_id} failed, and nothing was changed: {_first_line(error)}"


def _first_line(error):
    return next(iter(str(error).splitlines()), repr(error))
