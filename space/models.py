"""The models that the Space offers. Each is loaded when it is first asked for, and then kept."""

import base64
import copy
import json
import math
import os
import re
import threading
from pathlib import Path
from typing import Any

import torch
import yaml
from diffusers import DiffusionPipeline
from huggingface_hub import ModelCard, hf_hub_download

from pipeline_pfgmpp import PFGMPPPipeline, PFGMPPRestorationPipeline, PFGMPPScheduler
from pipeline_pfgmpp.conditioning import get_trained_range
from pipeline_pfgmpp.generation import quantize
from pipeline_pfgmpp.pictures.grid import PICTURE_MODES
from pipeline_pfgmpp.pipeline_base import PFGMPPBasePipeline
from pipeline_pfgmpp.records.dimensions import format_dimension
from pipeline_pfgmpp.records.weights import check_finite
from pipeline_pfgmpp.scheduler_config import CHURNING_SOLVERS


HERE = Path(__file__).parent
SOURCES = ("model", "models")
ENTRY = ("start_sigma", "blend")  # settings of a single call that restores


class Model:
    """
    A D-conditioned network, or a family of networks with one for each D.

    Args:
        name (`str`): The name that visitors choose it by.
        sources (`dict[float | None, str]`): Hub id or folder of the network for each D; the one of a
            D-conditioned network stands under None.
    """

    pipeline_class: type[PFGMPPBasePipeline] = PFGMPPPipeline

    def __init__(self, name: str, sources: dict[float | None, str]):
        self.name = name
        self.sources = sources
        self._loaded: dict[str, Any] = {}
        self._lock = threading.Lock()

    @property
    def trained_range(self) -> tuple[float, float]:
        """
        The range of D that a D-conditioned network was trained for; from 1 to infinity if it is not
        loaded yet or does not record its range.
        """
        pipe = self._loaded.get(self.sources.get(None))
        if pipe is None or pipe.scheduler.config.D_range is None:
            return 1.0, math.inf
        low, high = pipe.scheduler.config.D_range
        return low, math.inf if high is None else high

    @property
    def dimensions(self) -> list[float]:
        """The D of each network of a family, ascending; empty for a D-conditioned network."""
        return sorted(D for D in self.sources if D is not None)

    def load(self) -> "Model":
        """
        Load the first network, which shows whether it is D-conditioned.

        Returns:
            [`Model`]: The model itself.

        Raises:
            ValueError: The network cannot be loaded.
        """
        if None in self.sources:
            source = self.sources[None]
            pipe = self._load(source)
            low, high = get_trained_range(pipe.unet, pipe.scheduler)
            if not pipe.unet.config.get("d_conditioning"):
                D = pipe.scheduler.config.D
                self.sources = {math.inf if D is None else D: source}
            elif low == high:
                self.sources = {low: source}
        return self

    def find_source(self, D: float) -> str:
        """
        Find the network for a D.

        Args:
            D (`float`): The augmented dimension.

        Returns:
            `str`: Its Hub id or folder.

        Raises:
            ValueError: The model has no network for this D, or cannot be loaded.
        """
        sources = self.load().sources
        if None in sources:
            return sources[None]
        if D not in sources:
            available = ", ".join(format_dimension(D) for D in self.dimensions)
            raise ValueError(f"{self.name} is available only for D = {available}.")
        return sources[D]

    def make_pipeline(self, D: float, bits: int | None = None, **scheduler_options: object) -> Any:
        """
        Make a pipeline for one request. It shares the network, which has no state, with the others.

        Args:
            D (`float`): The augmented dimension.
            bits (`int`, *optional*): Bits per weight to round a copy of the network to.
            scheduler_options: Entries of the scheduler's configuration to change.

        Returns:
            The pipeline, of the model's `pipeline_class`.

        Raises:
            ValueError: The model has no network for this D, or cannot be loaded.
        """
        loaded = self._load(self.find_source(D))
        unet = loaded.unet
        if bits is not None:
            unet = copy.deepcopy(unet)
            quantize(unet, bits)
        if scheduler_options.get("solver_type") not in (None, *CHURNING_SOLVERS):
            scheduler_options["s_churn"] = 0.0
        scheduler = PFGMPPScheduler.from_config(loaded.scheduler.config, **scheduler_options)
        parts = {"guidance_unet": loaded.guidance_unet, "vae": loaded.vae, "id2label": loaded.config.id2label}
        pipe = self.pipeline_class(unet, scheduler, **parts)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def read_card(self) -> str:
        """
        Read the model card of the first network.

        Returns:
            `str`: The card as Markdown with its pictures embedded; empty if there is no card.
        """
        source = next(iter(self.sources.values()))

        def embed(link: re.Match) -> str:
            try:
                picture = _find_file(source, link[1]).read_bytes()
            except (OSError, ValueError):
                return link[0]
            return f"](data:image/png;base64,{base64.b64encode(picture).decode()})"

        try:
            text = ModelCard.load(_find_file(source, "README.md")).text
            return re.sub(r"\]\(([\w-]+\.png)\)", embed, text)
        except (OSError, ValueError, yaml.YAMLError):
            return ""

    def _load(self, source: str) -> Any:
        with self._lock:
            if source not in self._loaded:
                try:
                    pipe = DiffusionPipeline.from_pretrained(_find_folder(source) or source)
                except Exception as error:  # whatever is wrong with this model, the others must go on working
                    raise ValueError(f"{self.name} cannot be loaded: {explain_failure(error)}.") from error
                if not isinstance(pipe, self.pipeline_class):
                    raise ValueError(
                        f"{self.name} is a {type(pipe).__name__}, not a {self.pipeline_class.__name__}."
                    )
                self._check_pictures(pipe)
                check_finite(pipe, self.name)
                if torch.cuda.is_available():
                    pipe.to("cuda")
                self._loaded[source] = pipe
            return self._loaded[source]

    def _check_pictures(self, pipe: Any) -> None:
        """Refuse a network whose images cannot be shown."""
        channels = pipe.image_channels
        if channels not in PICTURE_MODES:
            raise ValueError(
                f"{self.name} draws images of {channels} channels, but only images of 1, 3 or 4"
                " channels can be shown."
            )
        if pipe.makes_fields:
            raise ValueError(f"{self.name} draws fields, but only pictures can be shown.")


class Restorer(Model):
    """
    A network, or a family of them, that restores degraded images.

    Args:
        name (`str`), sources (`dict[float | None, str]`): As of a [`Model`].
        entry (`dict[str, float]`, *optional*): `start_sigma` and `blend` of a single call; without them
            a call begins at the prior.
    """

    pipeline_class = PFGMPPRestorationPipeline

    def __init__(self, name: str, sources: dict[float | None, str], entry: dict[str, float] | None = None):
        super().__init__(name, sources)
        self.entry = entry or {}

    def _check_pictures(self, pipe: Any) -> None:
        """Refuse a network whose images cannot be shown, or that restores what is no picture."""
        super()._check_pictures(pipe)
        if pipe.condition_channels not in PICTURE_MODES:
            raise ValueError(
                f"{self.name} restores images of {pipe.condition_channels} channels, but only images of 1, 3"
                " or 4 channels can be chosen."
            )


def _find_folder(source: str) -> Path | None:
    """Find a model's folder next to the app or next to the app's folder; None if it is a Hub id."""
    for folder in (HERE, HERE.parent):
        if (folder / source).is_dir():
            return folder / source
    return None


def _find_file(source: str, name: str) -> Path:
    """Find a file of a model, and download it if the model is on the Hub."""
    folder = _find_folder(source)
    return folder / name if folder else Path(hf_hub_download(source, name))


def explain_failure(error: BaseException | None) -> str:
    """
    Explain to visitors why a model could not be loaded.

    Args:
        error (`BaseException`): What was raised.

    Returns:
        `str`: Half a sentence, which contains no path and no token.
    """
    while error is not None:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status:
            return f"the Hub answers {status}"
        error = error.__cause__ or error.__context__
    return "there is no such model, or the Hub cannot be reached"


def find_class(source: str) -> type[Model]:
    """
    Find out from a model's `model_index.json` whether it restores images.

    Args:
        source (`str`): Hub id or folder of a network.

    Returns:
        `type[Model]`: [`Restorer`] for a network that restores; [`Model`] for others, and for what cannot be
            read, which is told when it is loaded.
    """
    try:
        index = json.loads(_find_file(source, "model_index.json").read_bytes())
        restores = index["_class_name"] == Restorer.pipeline_class.__name__
    except Exception:  # whatever is wrong with this model, the others must go on working
        restores = False
    return Restorer if restores else Model


def read_entries() -> list[dict[str, Any]]:
    """
    Read models.yaml.

    Returns:
        `list[dict[str, Any]]`: Its entries, each with a name and with `model` or `models`.

    Raises:
        ValueError: The file does not say what it should.
    """
    try:
        entries = yaml.safe_load((HERE / "models.yaml").read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"models.yaml is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError("models.yaml must be a list of models, each with a `name` and a `model`.")
    for number, entry in enumerate(entries, 1):
        place = f"models.yaml, model {number}"
        if not isinstance(entry.get("name"), str):
            raise ValueError(f"{place}: `name` must be a text, but is {entry.get('name')!r}.")
        unknown = sorted(map(str, entry.keys() - {"name", *SOURCES, *ENTRY}))
        if unknown:
            allowed = ", ".join(("name", *SOURCES, *ENTRY))
            raise ValueError(f"{place}, {entry['name']}: `{unknown[0]}` is none of {allowed}.")
        if len(entry.keys() & set(SOURCES)) != 1:
            raise ValueError(f"{place}, {entry['name']}: it needs either `model` or `models`.")
    return entries


def read_sources(entry: dict[str, Any]) -> dict[float | None, str]:
    """
    Read where the networks of a model are.

    Args:
        entry (`dict[str, Any]`): An entry of models.yaml.

    Returns:
        `dict[float | None, str]`: The `sources` of a [`Model`].

    Raises:
        ValueError: They are no names of models, or a D is no positive number.
    """
    place = f"models.yaml, {entry['name']}"
    family = entry.get("models")
    if "models" in entry and not (isinstance(family, dict) and family):
        raise ValueError(f"{place}: `models` must give a Hub id or a folder for each D.")
    sources = (
        {None: entry["model"]} if family is None else {_read_dimension(D, place): family[D] for D in family}
    )
    for source in sources.values():
        if not isinstance(source, str):
            raise ValueError(f"{place}: a model must be a Hub id or a folder, but is {source!r}.")
    return sources


def _read_dimension(text: Any, place: str) -> float:
    """Read a D of models.yaml."""
    try:
        D = float(text)
    except (TypeError, ValueError):
        D = math.nan
    if not D > 0:
        raise ValueError(f"{place}: D must be a positive number or inf, but is {text!r}.")
    return D


def read_models() -> tuple[dict[str, Model], dict[str, Restorer]]:
    """
    Read which models to offer.

    Returns:
        `tuple[dict[str, Model], dict[str, Restorer]]`: By name, those that draw images and those that
            restore them: those of the environment variable `SPACE_MODELS`, which holds Hub ids separated by
            commas, or else those of models.yaml.

    Raises:
        ValueError: None of them draws images, or models.yaml does not say what it should.
    """
    ids = [text.strip() for text in os.environ.get("SPACE_MODELS", "").split(",") if text.strip()]
    entries = [{"name": source, "model": source} for source in ids]
    models: dict[str, Model] = {}
    restorers: dict[str, Restorer] = {}
    for entry in entries or read_entries():
        name = entry["name"]
        sources = read_sources(entry)
        has_entry = any(key in entry for key in ENTRY)
        kind = Restorer if has_entry else find_class(next(iter(sources.values())))
        if name in (restorers if kind is Restorer else models):
            raise ValueError(f"models.yaml: two models are named {name}.")
        if kind is Restorer:
            restorers[name] = Restorer(name, sources, {key: entry[key] for key in ENTRY if key in entry})
        else:
            models[name] = Model(name, sources)
    if not models:
        raise ValueError("The Space needs at least one model that draws images, but models.yaml lists none.")
    return models, restorers
