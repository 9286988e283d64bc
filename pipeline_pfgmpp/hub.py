"""What is on the Hub, and what goes there."""

import json
import os
from pathlib import Path

import diffusers
import torch
import yaml
from diffusers import DiffusionPipeline
from huggingface_hub import CommitOperationAdd, HfApi, ModelCard, snapshot_download
from huggingface_hub.errors import HFValidationError, LocalTokenNotFoundError

from .cards import number


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


def push_to_hub(
    folder: str | os.PathLike,
    repo_id: str,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    repo_type: str = "model",
) -> str:
    """
    Uploads a pipeline folder in one commit: weights as safetensors, configurations, the card and its pictures, the package's
    own source files, and nothing else that lies there. Of a Space it uploads the app, with the package's source files and the
    local models of its `models.yaml` beside it, for the package is on no index. What an interrupted upload has sent is not sent
    again.

    Args:
        folder (`str` or `os.PathLike`): The folder.
        repo_id (`str`): Repository to upload to, `name` or `organisation/name`; it is made if it is not there.
        private (`bool`, *optional*): Whether a repository that is made is private; by default as the account has it.
        revision (`str`, *optional*): Branch to commit to, which is made if it is not there; by default the main one.
        create_pr (`bool`, defaults to `False`): Whether to propose the commit instead.
        repo_type (`str`, defaults to `"model"`): What the folder holds: `"model"` or `"space"`.

    Returns:
        `str`: Address of the commit, or of the proposal.

    Raises:
        ValueError: The folder holds no such thing, or it cannot be uploaded; the repository is as it was.
    """
    space, folder = repo_type == "space", Path(folder)
    files = _space_files(folder) if space else _pipeline_files(folder)
    mark = "app.py" if space else "model_index.json"  # what holds something else lacks it
    api = HfApi()
    try:
        sdk = "gradio" if space else None
        repo_id = api.create_repo(repo_id, repo_type=repo_type, space_sdk=sdk, private=private, exist_ok=True).repo_id
        there = set(api.list_repo_files(repo_id, repo_type=repo_type)) - {".gitattributes", "README.md"}
        if there and mark not in there:
            raise ValueError(f"it is taken by something else, which holds {min(there)}")
        if revision:
            api.create_branch(repo_id, repo_type=repo_type, branch=revision, exist_ok=True)
        commit = api.create_commit(
            repo_id,
            [CommitOperationAdd(path, local) for path, local in sorted(files.items())],
            repo_type=repo_type,
            revision=revision,
            create_pr=create_pr,
            commit_message=f"Upload a {'Space' if space else 'pipeline'}",
        )
    except Exception as error:
        raise ValueError(_reason(error, repo_id)) from error
    return commit.pr_url or commit.commit_url


def _space_files(folder):
    """The files of a Space that are uploaded, by their path in the repository."""
    if not (folder / "app.py").is_file():
        raise ValueError(f"{folder} holds no Space: it has no app.py.")
    package, kinds = Path(__file__).parent, {".py", ".md", ".txt", ".yaml", ".png", ".gif"}
    own = [path for path in folder.rglob("*") if path.suffix in kinds and "__pycache__" not in path.parts]
    files = {path.relative_to(folder).as_posix(): path for path in own}
    sources = [path for path in package.rglob("*") if path.suffix in {".py", ".json", ".yaml", ".safetensors"}]
    files |= {f"{package.name}/{path.relative_to(package).as_posix()}": path for path in sources}
    for entry in yaml.safe_load((folder / "models.yaml").read_text()):
        for name in [entry["model"]] if "model" in entry else entry["models"].values():
            for local in (folder / name, folder.resolve().parent / name):
                if local.is_dir():
                    files |= {f"{name}/{path}": file for path, file in _pipeline_files(local).items()}
                    break
    return files


def _pipeline_files(folder):
    """The files of a pipeline that are uploaded, by their path in the repository."""
    if not (folder / "model_index.json").is_file():
        raise ValueError(f"{folder} holds no pipeline: it has no model_index.json.")
    try:
        pipeline = DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} holds no pipeline that can be uploaded: {error}") from None
    names = ("model_index.json", "README.md", "evaluation.json", "robustness.json")
    paths = [folder / name for name in names if (folder / name).is_file()]
    paths += [*pipeline.write_code(folder), *folder.glob("*.png")]
    for part, component in pipeline.components.items():
        if component is not None:
            paths += [path for kind in ("json", "safetensors") for path in (folder / part).glob(f"*.{kind}")]
    return {path.relative_to(folder).as_posix(): path for path in paths}


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
