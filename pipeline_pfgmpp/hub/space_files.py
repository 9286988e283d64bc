"""
The files that a Space consists of.

The package is not on a package index, so a Space carries its sources, and the local models that its
`models.yaml` names.
"""

import os
import re
from pathlib import Path, PurePosixPath
from typing import Any

from .pipeline_files import PACKAGE, PICTURE_TYPES, list_pipeline_files
from .reading import read_text, read_yaml
from .safety import find_file, find_files


SOURCES = Path(__file__).parents[1]
PACKAGE_DATA = (
    "evaluation/classifiers/*/*.json",
    "evaluation/classifiers/*/*.safetensors",
    "training/configs/*.yaml",
    "py.typed",
)
SPACE_FILES = ("README.md", "about.md", "models.yaml", "requirements.txt")
PICTURE = re.compile(rf"\bpictures/([\w.-]+{PICTURE_TYPES})\b", re.IGNORECASE)


def list_space_files(folder: Path) -> dict[str, Path]:
    """
    List the files of a Space, including the package and local models.

    Args:
        folder (`Path`): The folder of the Space, itself resolved.

    Returns:
        `dict[str, Path]`: The files by their path in the repository.

    Raises:
        ValueError: The folder is not a Space, its `models.yaml` is wrong, or a file may not be uploaded.
    """
    if find_file(folder, "app.py") is None:
        raise ValueError(f"{folder} is not a Space: it has no app.py.")
    modules = [path.name for path in folder.glob("*.py") if path.stem.isidentifier()]
    files = find_files(folder, [*modules, *SPACE_FILES])
    pictures = set()
    for name, path in files.items():
        if name.endswith((".py", ".md")):
            pictures |= set(PICTURE.findall(read_text(path.parent, path.name)))
    files |= find_files(folder, [f"pictures/{name}" for name in pictures])
    for name, path in _list_package().items():
        files[f"{PACKAGE}/{name}"] = path
    for model in _list_models(folder):
        local = _find_model(folder, model)
        if local is None:
            continue
        for name, path in list_pipeline_files(local).items():
            files[f"{model}/{name}"] = path
    return files


def _list_package() -> dict[str, Path]:
    """List the package's sources: the modules of its packages, and its data."""
    folder = Path(os.path.realpath(SOURCES))
    paths = []
    for marker in folder.rglob("__init__.py"):
        package = marker.parent
        if all(part.isidentifier() for part in package.relative_to(folder).parts):
            paths += [path for path in package.glob("*.py") if path.stem.isidentifier()]
    for pattern in PACKAGE_DATA:
        paths += folder.glob(pattern)
    return find_files(folder, [path.relative_to(folder).as_posix() for path in paths])


def _list_models(folder: Path) -> list[str]:
    """List the models that models.yaml names, Hub ids and local folders alike."""
    try:
        entries = read_yaml(read_text(folder, "models.yaml"), "models.yaml")
    except ValueError as error:
        raise ValueError(f"{folder} cannot be uploaded: {error}") from None
    if not isinstance(entries, list) or not entries:
        raise ValueError(
            f"models.yaml in {folder} must hold a list of models, but holds a {type(entries).__name__}."
        )
    names = []
    for position, entry in enumerate(entries, 1):
        sources = _list_sources(entry)
        if not sources or not all(isinstance(source, str) and source for source in sources):
            raise ValueError(
                f"Entry {position} of models.yaml in {folder} must hold `name` and either `model`, a Hub id"
                " or a folder, or `models`, one for each D."
            )
        names += sources
    return names


def _list_sources(entry: Any) -> list:
    """List the models of one entry of models.yaml; empty if the entry is malformed."""
    if not isinstance(entry, dict):
        return []
    if "model" in entry:
        return [entry["model"]]
    family = entry.get("models")
    return list(family.values()) if isinstance(family, dict) else []


def _find_model(folder: Path, name: str) -> Path | None:
    """Find the folder of a local model, next to app.py or one level up; None for a Hub id."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    path = PurePosixPath(name)
    if not path.parts or path.is_absolute() or ".." in path.parts or path.as_posix() != name:
        raise ValueError(
            f"models.yaml names the model {name!r}, which must be a Hub id or a relative path next to app.py."
        )
    for base in (folder, folder.parent):
        if not (base / name).is_dir():
            continue
        if Path(os.path.realpath(base / name)) != base / name:
            raise ValueError(f"models.yaml names the model {name}, which is a link and is not uploaded.")
        return base / name
    try:
        validate_repo_id(name)
    except HFValidationError:
        raise ValueError(
            f"models.yaml names the model {name!r}, which is neither a local folder nor a Hub id."
        ) from None
    return None
