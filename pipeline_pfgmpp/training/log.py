"""
What a run tells of itself: one JSON object a line in `log.jsonl`, and their plot:

    python -m pipeline_pfgmpp.training.log outputs/run    # writes outputs/run/log.png
"""

import argparse
import json
import os
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker, on_main_process


LOG = "log.jsonl"


class JSONLTracker(GeneralTracker):
    """
    A tracker of accelerate that needs nothing: it appends to `log.jsonl`.

    Args:
        folder (`str` or `os.PathLike`): The run's folder.
    """

    name, requires_logging_directory = "jsonl", False

    def __init__(self, folder: str | os.PathLike):
        super().__init__()
        self.folder = Path(folder)

    @property
    def tracker(self) -> Path:
        """The file."""
        return self.folder / LOG

    @on_main_process
    def log(self, values: dict, step: int | None = None, **kwargs) -> None:
        """Appends a line."""
        with open(self.tracker, "a") as file:
            file.write(
                json.dumps({"step": step, **{name: float(f"{value:.6g}") for name, value in values.items()}})
                + "\n"
            )


def read_log(folder: str | os.PathLike) -> list[dict]:
    """
    Reads a run's log in the order of its steps; of what was logged twice, because the run was
    resumed, the later counts.

    Args:
        folder (`str` or `os.PathLike`): The run's folder.

    Returns:
        `list[dict]`: An entry a step.

    Raises:
        OSError: There is no log.
    """
    entries = {}
    for line in (Path(folder) / LOG).read_text().splitlines():
        try:
            entry = json.loads(line)
        except ValueError:  # cut off where the run was killed
            continue
        entries[entry["step"]] = {**entries.get(entry["step"], {}), **entry}
    return [entries[step] for step in sorted(entries)]


class LossMeter:
    """
    Mean loss since it was last read, of all images and by noise level, summed on the device:
    reading it is the one time that waits for the device.

    Args:
        P_mean (`float`): Mean of ln(sigma).
        P_std (`float`): Standard deviation of ln(sigma); the bins end at -1.5, -0.75, 0, 0.75 and
            1.5 of them from the mean.
        device (`torch.device`): Where the losses are.
    """

    def __init__(self, P_mean: float, P_std: float, device: torch.device):
        self.edges = P_mean + P_std * torch.tensor([-1.5, -0.75, 0.0, 0.75, 1.5], device=device)
        bounds = [f"{edge:.2g}" for edge in self.edges.exp().tolist()]
        self.names = [f"sigma_{low}-{high}" for low, high in zip(["0", *bounds], [*bounds, "inf"])]
        self.sums = torch.zeros(2, len(self.names), device=device)

    def add(self, loss: torch.Tensor, sigma: torch.Tensor) -> None:
        """Takes the losses of shape `(batch,)` at noise levels of shape `(batch,)`."""
        values = torch.stack([loss.detach().float(), torch.ones_like(loss, dtype=torch.float32)])
        self.sums.index_add_(1, torch.bucketize(sigma.log(), self.edges), values)

    def read(self, accelerator: Accelerator) -> dict[str, float]:
        """The means over all processes, which then begin anew; every process calls it."""
        total, count = accelerator.reduce(self.sums, "sum").tolist()
        self.sums.zero_()
        means = {
            f"loss/{name}": value / number for name, value, number in zip(self.names, total, count) if number
        }
        return {"loss": sum(total) / sum(count), **means}


def plot(entries: list[dict], path: str | os.PathLike) -> None:
    """
    Draws what a log holds: loss, also by noise level, gradient norm and learning rate, speed, and
    distance if measured.

    Args:
        entries (`list[dict]`): What [`read_log`] returned.
        path (`str` or `os.PathLike`): The picture.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    bins = [
        name
        for name in dict.fromkeys(name for entry in entries for name in entry)
        if name.startswith("loss/")
    ]
    panels = [
        ("loss", {"loss": "mean"}),
        ("loss by noise level", {name: name.removeprefix("loss/sigma_") for name in bins}),
        ("gradient norm, learning rate", {"grad_norm": "gradient norm", "lr": "learning rate"}),
        ("images a second", {"images_per_second": ""}),
        ("Fréchet distance", {"frechet_distance": ""}),
    ]
    panels = [
        (title, names) for title, names in panels if any(name in entry for name in names for entry in entries)
    ]
    figure, axes = plt.subplots(
        1, len(panels), figsize=(4 * len(panels), 3.4), constrained_layout=True, squeeze=False
    )
    for axis, (title, names) in zip(axes[0], panels):
        for name, label in names.items():
            points = [(entry["step"], entry[name]) for entry in entries if name in entry]
            axis.plot(*zip(*points), label=label, marker="." if len(points) < 30 else None)
        axis.set(xlabel="optimisation steps", title=title)
        axis.grid(alpha=0.3)
        if title != "images a second":
            axis.set_yscale("log")
        if len(names) > 1:
            axis.legend(fontsize=8, title="σ" if title == "loss by noise level" else None)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="the --output_dir of a training")
    args = parser.parse_args()
    try:
        plot(read_log(args.run), args.run / "log.png")
    except OSError as error:
        parser.exit(1, f"{args.run} holds no log of a training: {error}\n")
    print(f"Wrote {args.run / 'log.png'}")


if __name__ == "__main__":
    main()
