# Copyright 2026 The pipeline_pfgmpp authors. Licensed under the Apache License, Version 2.0.
"""
The source files that travel with a saved pipeline, and load it where only diffusers is installed.

diffusers looks for `pipeline.py` in the pipeline's folder, and in a component's folder for the module
that `model_index.json` names. The files that must lie next to each are found from its imports: the
modules that travel import nothing from this package but each other, by `from .name import ...`.
"""

import inspect
import json
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path


# Where classes with code of this package come from: the package, or its copy that diffusers runs.
PACKAGES = ("pipeline_pfgmpp", "diffusers_modules")
LICENCE = b"# Copyright 2026 The pipeline_pfgmpp authors."  # how the files that travel begin


def list_code(
    pipeline_class: type,
    components: Mapping[str, tuple[str | None, type]],
    origins: Mapping[str, str | None] | None = None,
) -> dict[str, Path]:
    """
    List the source files that load a pipeline where only diffusers is installed.

    Args:
        pipeline_class (`type`): The pipeline's class.
        components (`Mapping[str, tuple[str | None, type]]`): For each component, the library that
            `model_index.json` names and the class.
        origins (`Mapping[str, str | None]`, *optional*): The folders from which the components were loaded,
            and that of the `"pipeline"`.

    Returns:
        `dict[str, Path]`: The files, by their path in the pipeline's folder.

    Raises:
        ValueError: The source of a class is found nowhere.
    """
    origins = origins or {}
    # Of a pipeline that a user's program derives, that program stays at home.
    own_class = next(base for base in pipeline_class.__mro__ if _is_own(base))
    files = _list_modules(_find_source(own_class, origins.get("pipeline")), Path("pipeline.py"))
    for name, (library, cls) in components.items():
        if _is_own(cls):
            files |= _list_modules(_find_source(cls, origins.get(name)), Path(name, f"{library}.py"))
    return files


def _is_own(cls: type) -> bool:
    return cls.__module__.split(".")[0] in PACKAGES


def copy_files(files: Mapping[str, Path], folder: Path) -> list[Path]:
    """
    Copy files into a folder.

    Args:
        files (`Mapping[str, Path]`): The files, by their path in the folder.
        folder (`Path`): The folder.

    Returns:
        `list[Path]`: The copies.

    Raises:
        ValueError: A file of another kind stands where one would be written.
    """
    for name, source in files.items():
        target = folder / name
        if target.is_file() and not target.is_symlink() and not _may_replace(target, source):
            raise ValueError(f"{target} is in the way of a file of the pipeline's: save to another folder.")
    copies = []
    for name, source in files.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        unlink_links([target])
        if source.resolve() != target.resolve():
            shutil.copyfile(source, target)
        copies.append(target)
    return copies


def _may_replace(target: Path, source: Path) -> bool:
    """Tell whether a file is the same, or one that an earlier version of this package has written."""
    content = target.read_bytes()
    return content.startswith(LICENCE) or content == source.read_bytes()


def unlink_links(paths: list[Path]) -> None:
    """
    Remove those paths that are links, so that writing to them leaves alone what they lead to.

    Args:
        paths (`list[Path]`): The paths. A folder from the Hub's cache consists of links into it.
    """
    for path in paths:
        if path.is_symlink():
            path.unlink()


def remove_origins(folder: Path, components: Iterable[str]) -> None:
    """
    Remove from the configurations of a saved pipeline where it came from, which may be a folder of this
    machine and is nobody else's business.

    Args:
        folder (`Path`): The pipeline's folder.
        components (`Iterable[str]`): The names of its components.
    """
    configs = [path for name in components for path in (folder / name).glob("*config.json")]
    for path in [folder / "model_index.json", *configs]:
        entries = json.loads(path.read_text(encoding="utf-8"))
        if entries.pop("_name_or_path", None):
            path.write_text(json.dumps(entries, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _find_source(cls: type, origin: str | None) -> Path:
    """
    Find the file that defines a class.

    diffusers copies custom code of all components to one file, which holds that of the last. The others are
    found where they were loaded from, or by their own names beside that file.
    """
    source = Path(inspect.getsourcefile(cls) or "")
    definition = re.compile(rf"^\s*class {cls.__name__}\b", re.MULTILINE)
    for path in (source, *Path(origin or source.parent).glob("*.py"), *source.parent.glob("*.py")):
        if path.is_file() and definition.search(path.read_text(encoding="utf-8")):
            return path
    raise ValueError(
        f"The source of {cls.__name__} must be saved with the pipeline, but is no longer in {origin}: load"
        " the pipeline again."
    )


def _list_modules(source: Path, target: Path) -> dict[str, Path]:
    """List a module and those that it imports relatively, by their paths when it goes to `target`."""
    files = {target.as_posix(): source}
    for name in re.findall(r"^from \.(\w+) import", source.read_text(encoding="utf-8"), re.MULTILINE):
        files |= _list_modules(source.with_name(f"{name}.py"), target.with_name(f"{name}.py"))
    return files
