"""
What a push sends: a list of what belongs, made from what a pipeline or a Space names, never from
what lies in a folder.

A file counts where it lies. A link that leads out of its folder is refused, except those of the
Hub's own cache, which leads from `snapshots/COMMIT/NAME` to `blobs/ETAG` of the same repository.
What is named like a secret is refused, listed or not.
"""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from .reading import (
    NETWORKS,
    build_network,
    find_class,
    get_entry,
    list_components,
    printable,
    read_metadata,
    read_object,
    read_text,
    read_yaml,
)


PACKAGE = Path(__file__).parents[1]
PACKAGE_DATA = (
    "evaluation/fashion_mnist_classifier/*.json",
    "evaluation/fashion_mnist_classifier/*.safetensors",
)
PACKAGE_DATA += ("training/configs/*.yaml", "py.typed")
REPORTS = {"evaluation.json", "robustness.json"}  # they name the weights that were measured
DESCRIPTIONS = (
    "README.md",
    "evaluation.json",
    "robustness.json",
)  # beside model_index.json, where they are there
CONFIGS = ("config.json", "scheduler_config.json")
SPACE_FILES = ("README.md", "about.md", "models.yaml", "requirements.txt")
WEIGHTS = re.compile(r"(diffusion_pytorch_model|model)(\.[\w-]+)?\.safetensors")  # with a variant or without
SHARD = re.compile(r"(diffusion_pytorch_model|model)(\.[\w-]+)?-\d{5}-of-\d{5}(\.[\w-]+)?\.safetensors")
WEIGHTS_INDEX = re.compile(r"(diffusion_pytorch_model|model)\.safetensors\.index(\.[\w-]+)?\.json")
PICTURE_TYPES = r"\.(?:png|jpe?g|gif|webp)"
PICTURE = re.compile(rf"""(?:\]\(\s*<?|\bsrc\s*=\s*["']?)([^\s"'<>()?#]+{PICTURE_TYPES})\b""", re.IGNORECASE)
SPACE_PICTURE = re.compile(rf"\bpictures/([\w.-]+{PICTURE_TYPES})\b", re.IGNORECASE)
SECRET = re.compile(
    r"(^|[^a-z])(token|secret|credential|password|passwd|passphrase|(api|access|private)[_-]?key)s?([^a-z]|$)"
    r"|(^|[^a-z])(id_(rsa|dsa|ecdsa|ed25519)|netrc|kubeconfig|authorized_keys|service[_-]?account)([^a-z]|$)|(^|/)\."
    r"|\.(env|pem|key|p12|pfx|ppk|jks|keystore|kdbx|gpg|asc)$"
)


def list_files(folder: str | os.PathLike, repo_type: str = "model") -> dict[str, Path]:
    """
    Lists what a push of a folder sends, and checks it as far as that can be done here; nothing is
    sent or written.

    Args:
        folder (`str` or `os.PathLike`): A pipeline folder, or that of the Space.
        repo_type (`str`, defaults to `"model"`): What the folder holds: `"model"` or `"space"`.

    Returns:
        `dict[str, Path]`: The files, by their path in the repository. Code is that of the package
            itself.

    Raises:
        ValueError: The folder holds no such thing, a listed file is a link out of its folder or
            named like a secret, or the weights do not fit the network.
    """
    if repo_type not in ("model", "space"):
        raise ValueError(f"`repo_type` must be 'model' or 'space', but is {repo_type!r}.")
    folder = Path(os.path.realpath(folder))
    files = _list_space(folder) if repo_type == "space" else _list_pipeline(folder)
    for name in files:
        _check_name(name, folder)
    return dict(sorted(files.items()))


def describe_files(files: Mapping[str, Path]) -> str:
    """
    Writes a list of files with their sizes.

    Args:
        files (`Mapping[str, Path]`): The files, by their path in the repository.

    Returns:
        `str`: One line per file, and the sum.
    """
    sizes = {name: path.stat().st_size for name, path in files.items()}
    rows = [f"{_format_size(size):>9}  {printable(name)}" for name, size in sizes.items()]
    return "\n".join([*rows, f"{_format_size(sum(sizes.values())):>9}  in {len(files)} files"])


def _format_size(size):
    for unit, bytes_each in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= bytes_each:
            return f"{size / bytes_each:.1f} {unit}"
    return f"{size} B"


def _check_name(name, folder):
    words = re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()
    if SECRET.search(words):
        raise ValueError(
            f"{name} in {folder} is named like a secret, and nothing was sent: rename it, or take it out."
        )


def _find_file(folder, name):
    """The file of that name in a folder without links, None where there is none."""
    path = folder / name
    if not os.path.lexists(path):
        return None
    real = Path(os.path.realpath(path))
    if real.is_relative_to(folder):
        _check_name(real.relative_to(folder).as_posix(), folder)
    elif not _is_of_the_cache(path, folder):
        raise ValueError(
            f"{path} is a link out of its folder, which a push does not follow: put the file itself there."
        )
    if not real.is_file():
        raise ValueError(f"{path} is no regular file.")
    return real


def _is_of_the_cache(path, folder):
    """
    Whether `path` in `folder` is a link of the Hub's cache: of a snapshot to a blob of the same
    repository.
    """
    repository = folder.parents[1] if len(folder.parents) > 1 else folder
    if folder.parent.name != "snapshots" or not re.fullmatch(r"[0-9a-f]{40}", folder.name):
        return False
    if not re.match(r"(models|spaces)--", repository.name) or not path.is_symlink():
        return False
    beside = Path(os.path.realpath(path.parent))
    target = Path(os.path.normpath(beside / os.readlink(path)))
    named_as_blob = (
        re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", target.name) and target.parent == repository / "blobs"
    )
    return bool(named_as_blob) and beside.is_relative_to(folder) and Path(os.path.realpath(target)) == target


def _find_files(folder, names):
    found = {name: _find_file(folder, name) for name in names}
    return {name: path for name, path in found.items() if path is not None}


# Pipelines


def _list_pipeline(folder):
    """The files of a pipeline, by their path in its folder."""
    from ..pipeline_pfgmpp import list_code

    if _find_file(folder, "model_index.json") is None:
        raise ValueError(f"{folder} holds no pipeline: it has no model_index.json.")
    try:
        index = read_object(folder, "model_index.json")
        components = list_components(index)
        _check_pipeline_class(get_entry(index, "_class_name", str, "model_index.json"))
        classes = {part: (library, find_class(name)) for part, (library, name) in components.items()}
        files = _find_files(folder, ["model_index.json", *DESCRIPTIONS])
        if "README.md" in files:
            files |= _list_pictures(folder)
        for part, (_, cls) in classes.items():
            files |= _list_component(folder, part, cls)
    except ValueError as error:
        raise ValueError(f"{folder} holds no pipeline that can be uploaded: {error}") from None
    for name in REPORTS & files.keys():
        _check_report(folder, name)
    return files | list_code(classes)


def _check_report(folder, name):
    """
    Refuses figures of other weights than those that lie beside them; older reports do not name any.
    """
    from diffusers import DiffusionPipeline

    from ..records.digests import digest_weights

    try:
        report = json.loads(read_text(folder, name))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{folder / name} cannot be read: {error}") from None
    entries = [report["settings"]] if isinstance(report, dict) and "settings" in report else report
    if not isinstance(entries, list):
        raise ValueError(f"{folder / name} is no report of `pfgmpp evaluate` or `pfgmpp robustness`.")
    measured = {
        entry["weights"]
        for entry in entries
        if isinstance(entry, dict) and isinstance(entry.get("weights"), str)
    }
    if measured and measured != {
        digest_weights(DiffusionPipeline.from_pretrained(folder, local_files_only=True))
    }:
        raise ValueError(
            f"{folder / name} is of other weights than those beside it: measure them again, or take it out."
        )


def _check_pipeline_class(name):
    from diffusers import DiffusionPipeline

    if not find_class(name).__module__.startswith(PACKAGE.name) or not issubclass(
        find_class(name), DiffusionPipeline
    ):
        raise ValueError(
            f"model_index.json names the pipeline {name[:100]!r}, which is none of {PACKAGE.name}."
        )


def _list_pictures(folder):
    """The pictures of a pipeline's folder that its card shows."""
    text = read_text(folder, "README.md")
    read_metadata(text)
    names = set()
    for address in PICTURE.findall(text):
        name = PurePosixPath(unquote(address))
        if ".." in name.parts:
            raise ValueError(f"README.md shows the picture {address}, which lies outside of the folder.")
        if not name.is_absolute() and ":" not in address:
            names.add(name.as_posix())
    return _find_files(folder, names)


def _list_component(folder, part, cls):
    """Configuration and weights of a component, checked against each other."""
    from diffusers import ModelMixin

    configs = _find_files(folder, [f"{part}/{name}" for name in CONFIGS])
    if not configs:
        raise ValueError(f"{part} has none of {', '.join(CONFIGS)}.")
    if not issubclass(cls, ModelMixin):
        return configs
    names = [path.name for path in sorted((folder / part).iterdir())]
    single = [[name] for name in names if WEIGHTS.fullmatch(name) and not SHARD.fullmatch(name)]
    indices = [name for name in names if WEIGHTS_INDEX.fullmatch(name)]
    sharded = [_list_shards(folder, part, name) for name in indices]
    files = dict(configs)
    for name in indices:
        files |= _find_files(folder, [f"{part}/{name}"])
    for group in single + sharded:
        shards = _find_files(folder, [f"{part}/{name}" for name in group])
        missing = [name for name in group if f"{part}/{name}" not in shards]
        if missing:
            raise ValueError(f"{part} lacks {missing[0]}, which the index of its weights names.")
        _check_weights(folder, part, cls.__name__, shards)
        files |= shards
    if not single + sharded:
        raise ValueError(f"{part} has no weights as safetensors.")
    return files


def _list_shards(folder, part, index):
    _find_file(folder, f"{part}/{index}")  # no link out of the folder is read
    shards = get_entry(read_object(folder, f"{part}/{index}"), "weight_map", dict, f"{part}/{index}")
    names = sorted({str(name) for name in shards.values()})
    for name in names:
        if not SHARD.fullmatch(name):
            raise ValueError(f"{part}/{index} names {name[:100]!r}, which is no file of weights.")
    return names


def _check_weights(folder, part, network, files):
    """Checks that files of weights are whole and hold what the network's configuration declares."""
    from safetensors import SafetensorError, safe_open

    shapes = {}
    for name, path in files.items():
        try:
            with safe_open(path, "pt") as file:
                shapes |= {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{name} cannot be read: {error}") from None
    if network not in NETWORKS:
        return
    config = f"{part}/config.json"
    for key, tensor in build_network(network, read_object(folder, config), config).state_dict().items():
        if shapes.get(key) != tuple(tensor.shape):
            found = f"is of shape {shapes[key]}" if key in shapes else "is missing"
            raise ValueError(
                f"`{key}` of {part} {found} among the weights, but is of shape {tuple(tensor.shape)} by {config}."
            )


# Spaces


def _list_space(folder):
    """
    The files of the Space, with the package and the local models beside it, for the package is on
    no index.
    """
    if _find_file(folder, "app.py") is None:
        raise ValueError(f"{folder} holds no Space: it has no app.py.")
    modules = [path.name for path in folder.glob("*.py") if path.stem.isidentifier()]
    files = _find_files(folder, [*modules, *SPACE_FILES])
    pictures = set()
    for name, path in files.items():
        if name.endswith((".py", ".md")):
            pictures |= set(SPACE_PICTURE.findall(read_text(path.parent, path.name)))
    files |= _find_files(folder, [f"pictures/{name}" for name in pictures])
    files |= {f"{PACKAGE.name}/{name}": path for name, path in _list_package().items()}
    for name in _list_models(folder):
        local = _find_model(folder, name)
        if local is not None:
            files |= {f"{name}/{path}": file for path, file in _list_pipeline(local).items()}
    return files


def _list_package():
    """The package's own sources: modules in its packages, and the data that it declares."""
    folder = Path(os.path.realpath(PACKAGE))
    packages = [path.parent for path in folder.rglob("__init__.py")]
    packages = [
        path for path in packages if all(part.isidentifier() for part in path.relative_to(folder).parts)
    ]
    paths = [path for package in packages for path in package.glob("*.py") if path.stem.isidentifier()]
    paths += [path for pattern in PACKAGE_DATA for path in folder.glob(pattern)]
    return _find_files(folder, [path.relative_to(folder).as_posix() for path in paths])


def _list_models(folder):
    """The models that models.yaml names: Hub ids, and folders beside app.py or beside its parent."""
    try:
        entries = read_yaml(read_text(folder, "models.yaml"), "models.yaml")
    except ValueError as error:
        raise ValueError(f"{folder} holds no Space that can be uploaded: {error}") from None
    if not isinstance(entries, list) or not entries:
        raise ValueError(
            f"models.yaml in {folder} must hold a list of models, but holds a {type(entries).__name__}."
        )
    names = []
    for place, entry in enumerate(entries, 1):
        sources = []
        if isinstance(entry, dict):
            family = entry.get("models", {})
            sources = (
                [entry["model"]]
                if "model" in entry
                else list(family.values() if isinstance(family, dict) else ())
            )
        if not sources or not all(isinstance(source, str) and source for source in sources):
            raise ValueError(
                f"Entry {place} of models.yaml in {folder} must hold `name` and either `model`, a Hub id or a folder, or"
                " `models`, one for each D."
            )
        names += sources
    return names


def _find_model(folder, name):
    """The folder of a local model, None for a Hub id."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    parts = PurePosixPath(name).parts
    if (
        not parts
        or PurePosixPath(name).is_absolute()
        or ".." in parts
        or PurePosixPath(name).as_posix() != name
    ):
        raise ValueError(
            f"models.yaml names the model {name!r}, which must be a Hub id, or a plain path beside app.py."
        )
    for base in (folder, folder.parent):
        if (base / name).is_dir():
            if Path(os.path.realpath(base / name)) != base / name:
                raise ValueError(
                    f"models.yaml names the model {name}, which is a link: a push does not follow it."
                )
            return base / name
    try:
        validate_repo_id(name)
    except HFValidationError:
        raise ValueError(
            f"models.yaml names the model {name!r}, which is neither a folder here nor a Hub id."
        ) from None
    return None
