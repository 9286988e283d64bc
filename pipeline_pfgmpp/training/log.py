"""The log of a run: `log.jsonl` in its folder, one JSON object per line."""

import json
import os
from pathlib import Path

import psutil
import torch
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker, on_main_process


LOG = "log.jsonl"


class JSONLTracker(GeneralTracker):
    """
    A tracker of accelerate that needs no further package: it appends to `log.jsonl`.

    Args:
        folder (`str` or `os.PathLike`): The run's folder.
    """

    name = "jsonl"
    requires_logging_directory = False

    def __init__(self, folder: str | os.PathLike):
        super().__init__()
        self.folder = Path(folder)

    @property
    def tracker(self) -> Path:
        """The log file."""
        return self.folder / LOG

    @on_main_process
    def log(self, values: dict, step: int | None = None, **kwargs: object) -> None:
        """
        Append a line.

        Args:
            values (`dict`): Numbers by name.
            step (`int`, *optional*): Number of optimisation steps done.
            kwargs: Options of other trackers, ignored.
        """
        rounded = {name: float(f"{value:.6g}") for name, value in values.items()}
        with open(self.tracker, "a") as file:
            file.write(json.dumps({"step": step, **rounded}) + "\n")


def read_log(folder: str | os.PathLike) -> list[dict]:
    """
    Read a run's log in the order of its steps.

    If a resumed run logged a step twice, the later values count.

    Args:
        folder (`str` or `os.PathLike`): The run's folder.

    Returns:
        `list[dict]`: One entry per logged step.

    Raises:
        OSError: There is no log.
    """
    entries: dict[int, dict] = {}
    for line in (Path(folder) / LOG).read_text().splitlines():
        try:
            entry = json.loads(line)
            step = entry["step"]
        except (ValueError, KeyError, TypeError):  # cut off when the run was killed
            continue
        entries[step] = {**entries.get(step, {}), **entry}
    return [entries[step] for step in sorted(entries)]


def read_last_loss(folder: str | os.PathLike, step: int) -> float | None:
    """
    Read the last loss that a run logged up to a step.

    Args:
        folder (`str` or `os.PathLike`): The run's folder.
        step (`int`): Number of optimisation steps done.

    Returns:
        `float` or `None`: The loss; None if none was logged.
    """
    try:
        entries = read_log(folder)
    except OSError:
        return None
    losses = [entry["loss"] for entry in entries if entry["step"] <= step and "loss" in entry]
    return losses[-1] if losses else None


def measure_memory(device: torch.device) -> float:
    """
    Measure the memory that this process uses.

    Args:
        device (`torch.device`): Where it computes.

    Returns:
        `float`: GiB, rounded to two decimals: the peak on a GPU, the current use on a CPU.
    """
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated() / 2**30, 2)
    return round(psutil.Process().memory_info().rss / 2**30, 2)


class LossMeter:
    """
    Mean loss since the last reading, over all images and by noise level.

    The sums stay on the device, so that only a reading waits for it.

    Args:
        P_mean (`float`): Mean of ln(sigma).
        P_std (`float`): Standard deviation of ln(sigma). The noise levels are divided at -1.5,
            -0.75, 0, 0.75 and 1.5 standard deviations from the mean.
        device (`torch.device`): Where the losses are.
    """

    def __init__(self, P_mean: float, P_std: float, device: torch.device):
        self.edges = P_mean + P_std * torch.tensor([-1.5, -0.75, 0.0, 0.75, 1.5], device=device)
        bounds = [f"{edge:.2g}" for edge in self.edges.exp().tolist()]
        self.names = [f"sigma_{low}-{high}" for low, high in zip(["0", *bounds], [*bounds, "inf"])]
        self.sums = torch.zeros(2, len(self.names), device=device)

    def add(self, loss: torch.Tensor, sigma: torch.Tensor) -> None:
        """
        Add the losses of a batch.

        Args:
            loss (`torch.Tensor` of shape `(batch,)`): The loss of each image.
            sigma (`torch.Tensor` of shape `(batch,)`): The noise level of each image.
        """
        values = torch.stack([loss.detach().float(), torch.ones_like(loss, dtype=torch.float32)])
        self.sums.index_add_(1, torch.bucketize(sigma.log(), self.edges), values)

    def read(self, accelerator: Accelerator) -> dict[str, float]:
        """
        Return the means over all processes, and start again from zero; every process must call this.

        Args:
            accelerator (`Accelerator`): The processes.

        Returns:
            `dict[str, float]`: `loss`, and `loss/sigma_LOW-HIGH` for each interval that had images.
        """
        totals, counts = accelerator.reduce(self.sums, "sum").tolist()
        self.sums.zero_()
        means = {"loss": sum(totals) / sum(counts)}
        for name, total, count in zip(self.names, totals, counts):
            if count:
                means[f"loss/{name}"] = total / count
        return means
