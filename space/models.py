"""The models that the Space offers. Each is loaded when it is first asked for, and then kept."""

import base64
import copy
import math
import os
import re
import threading
from pathlib import Path

import torch
import yaml
from diffusers import DiffusionPipeline
from huggingface_hub import ModelCard, hf_hub_download

from pipeline_pfgmpp import PFGMPPPipeline, PFGMPPScheduler
from pipeline_pfgmpp.generation import quantize
from pipeline_pfgmpp.pictures.grid import PICTURE_MODES
from pipeline_pfgmpp.records.dimensions import format_dimension
from pipeline_pfgmpp.records.weights import check_finite


HERE = Path(__file__).parent


class Model:
    """
    A D-conditioned network, or a family of networks with one for each D.

    Args:
        name (`str`): The name that visitors choose it by.
        sources (`dict[float | None, str]`): Hub id or folder of the network for each D; the one of a
            D-conditioned network stands under None.
    """

    def __init__(self, name: str, sources: dict[float | None, str]):
        self.name = name
        self.sources = sources
        self._loaded: dict[str, PFGMPPPipeline] = {}
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
            if not pipe.unet.config.get("d_conditioning"):
                D = pipe.scheduler.config.D
                self.sources = {math.inf if D is None else D: source}
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

    def make_pipeline(self, D: float, bits: int | None = None, **scheduler_options: object) -> PFGMPPPipeline:
        """
        Make a pipeline for one request. It shares the network, which has no state, with the others.

        Args:
            D (`float`): The augmented dimension.
            bits (`int`, *optional*): Bits per weight to round a copy of the network to.
            scheduler_options: Entries of the scheduler's configuration to change.

        Returns:
            [`PFGMPPPipeline`]: The pipeline.

        Raises:
            ValueError: The model has no network for this D, or cannot be loaded.
        """
        loaded = self._load(self.find_source(D))
        unet = loaded.unet
        if bits is not None:
            unet = copy.deepcopy(unet)
            quantize(unet, bits)
        scheduler = PFGMPPScheduler.from_config(loaded.scheduler.config, **scheduler_options)
        pipe = PFGMPPPipeline(unet, scheduler, vae=loaded.vae, id2label=loaded.config.id2label)
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
            picture = _find_file(source, link[1]).read_bytes()
            return f"](data:image/png;base64,{base64.b64encode(picture).decode()})"

        try:
            text = ModelCard.load(_find_file(source, "README.md")).text
            return re.sub(r"\]\(([\w-]+\.png)\)", embed, text)
        except (OSError, ValueError):
            return ""

    def _load(self, source: str) -> PFGMPPPipeline:
        with self._lock:
            if source not in self._loaded:
                try:
                    pipe = DiffusionPipeline.from_pretrained(_find_folder(source) or source)
                except Exception as error:  # whatever is wrong with this model, the others must go on working
                    raise ValueError(f"{self.name} cannot be loaded: {explain_failure(error)}.") from error
                if not isinstance(pipe, PFGMPPPipeline):
                    raise ValueError(f"{self.name} is a {type(pipe).__name__}, not a PFGMPPPipeline.")
                channels = pipe.image_channels
                if channels not in PICTURE_MODES:
                    raise ValueError(
                        f"{self.name} draws images of {channels} channels, but only images of 1, 3 or 4"
                        " channels can be shown."
                    )
                check_finite(pipe, self.name)
                if torch.cuda.is_available():
                    pipe.to("cuda")
                self._loaded[source] = pipe
            return self._loaded[source]


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


def read_models() -> dict[str, Model]:
    """
    Read which models to offer.

    Returns:
        `dict[str, Model]`: By name, those of the environment variable `SPACE_MODELS`, which holds Hub
            ids separated by commas, or else those of models.yaml.
    """
    ids = [text.strip() for text in os.environ.get("SPACE_MODELS", "").split(",") if text.strip()]
    if ids:
        return {source: Model(source, {None: source}) for source in ids}
    models = {}
    for entry in yaml.safe_load((HERE / "models.yaml").read_text()):
        name = entry["name"]
        if "models" in entry:
            models[name] = Model(name, {float(D): source for D, source in entry["models"].items()})
        else:
            models[name] = Model(name, {None: entry["model"]})
    return models
