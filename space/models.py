"""The models that the Space offers: loaded when they are first asked for, and kept."""

import base64
import copy
import math
import os
import re
import threading
from pathlib import Path

import yaml
from diffusers import DiffusionPipeline
from huggingface_hub import ModelCard, hf_hub_download

from pipeline_pfgmpp import PFGMPPPipeline, PFGMPPScheduler
from pipeline_pfgmpp.commands import on_device
from pipeline_pfgmpp.generation import quantize
from pipeline_pfgmpp.records.dimensions import format_dimension


HERE = Path(__file__).parent


class Model:
    """
    A network that is told D, or a family of networks, one a D.

    Args:
        name (`str`): What it is called.
        sources (`dict[float | None, str]`): Hub id or folder for each D; for a network that is told
            D, one under None.
    """

    def __init__(self, name: str, sources: dict[float | None, str]):
        self.name = name
        self.sources = sources
        self._loaded = {}
        self._lock = threading.Lock()

    @property
    def trained_range(self) -> tuple[float, float]:
        """
        The range of D that a network which is told D was trained for; all D where it is not loaded
        yet or does not say.
        """
        loaded = self._loaded.get(self.sources.get(None))
        low, high = (loaded and loaded.scheduler.config.D_range) or (1.0, None)
        return low, math.inf if high is None else high

    @property
    def dimensions(self) -> list[float]:
        """The D of a family, ascending; of a network that is told D, none."""
        return sorted(D for D in self.sources if D is not None)

    def load(self) -> "Model":
        """Loads the first network, which says whether it is told D; returns itself."""
        if None in self.sources:
            loaded = self._load(self.sources[None])
            if not loaded.unet.config.get("d_conditioning"):
                own = loaded.scheduler.config.D
                self.sources = {math.inf if own is None else own: self.sources[None]}
        return self

    def source(self, D: float) -> str:
        """Where the network for D comes from."""
        sources = self.load().sources
        if None not in sources and D not in sources:
            raise ValueError(
                f"{self.name} is there for D = {', '.join(map(format_dimension, self.dimensions))} alone."
            )
        return sources.get(D) or sources[None]

    def pipeline(self, D: float, bits: int | None = None, **scheduler) -> PFGMPPPipeline:
        """
        A pipeline of its own for one request; the network, which has no state, is shared.

        Args:
            D (`float`): The augmented dimension.
            bits (`int`, *optional*): Bits that each weight is rounded to, in a copy of the network.
            scheduler: Entries of the scheduler's configuration.

        Returns:
            [`PFGMPPPipeline`]: The pipeline.

        Raises:
            ValueError: The model cannot be loaded.
        """
        loaded = self._load(self.source(D))
        unet = loaded.unet
        if bits is not None:
            unet = copy.deepcopy(unet)
            quantize(unet, bits)
        pipe = PFGMPPPipeline(
            unet,
            PFGMPPScheduler.from_config(loaded.scheduler.config, **scheduler),
            id2label=loaded.config.id2label,
        )
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def card(self) -> str:
        """
        The card of the first network as Markdown, with its pictures inside; empty where there is
        none.
        """
        source = next(iter(self.sources.values()))

        def inside(name):
            return (
                f"](data:image/png;base64,{base64.b64encode(_file(source, name[1]).read_bytes()).decode()})"
            )

        try:
            return re.sub(r"\]\(([\w-]+\.png)\)", inside, ModelCard.load(_file(source, "README.md")).text)
        except (OSError, ValueError):
            return ""

    def _load(self, source):
        with self._lock:
            if source not in self._loaded:
                try:
                    pipe = DiffusionPipeline.from_pretrained(_folder(source) or source)
                except Exception as error:  # whatever the Hub or the files make of it: the others go on
                    raise ValueError(f"{self.name} cannot be loaded: {reason(error)}.") from error
                self._loaded[source] = on_device(pipe)
            return self._loaded[source]


def _folder(source):
    """The folder of that name beside the app or beside its parent, or None: then it is a Hub id."""
    return next((folder / source for folder in (HERE, HERE.parent) if (folder / source).is_dir()), None)


def _file(source, name):
    """The path of a file of a model."""
    folder = _folder(source)
    return folder / name if folder else Path(hf_hub_download(source, name))


def reason(error: BaseException) -> str:
    """Why loading failed, for visitors: no path and no token is in it."""
    while error is not None:
        if status := getattr(getattr(error, "response", None), "status_code", None):
            return f"the Hub answers {status}"
        error = error.__cause__ or error.__context__
    return "there is no such model, or the Hub cannot be reached"


def read_models() -> dict[str, Model]:
    """The models of `SPACE_MODELS`, Hub ids with commas between, or else of models.yaml, by name."""
    ids = [text.strip() for text in os.environ.get("SPACE_MODELS", "").split(",") if text.strip()]
    entries = [{"name": source, "model": source} for source in ids] or yaml.safe_load(
        (HERE / "models.yaml").read_text()
    )
    models = {}
    for entry in entries:
        if "models" in entry:
            models[entry["name"]] = Model(
                entry["name"], {float(D): source for D, source in entry["models"].items()}
            )
        else:
            models[entry["name"]] = Model(entry["name"], {None: entry["model"]})
    return models
