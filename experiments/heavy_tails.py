r"""
Study data with heavy tails: does noise with tails like theirs (t-EDM, https://huggingface.co/papers/2410.14171)
draw their extremes, where Gaussian noise does not?

    pip install '.[train,plot]'
    python experiments/heavy_tails.py

The fields are smooth Gaussian ones times a Student-t amplitude, so the tail index of their values is 4 by
construction. For each seed one network per D trains on the same fields for the same number of steps, with the
preconditioning "t-edm". What they draw is compared with fields that none has seen:

- tail index: Hill's estimate from the largest thousandth of the absolute values;
- the 99.99th percentile of the absolute values;
- distance of the tails: the Kolmogorov-Smirnov distance of the values beyond the 99th percentile of the data;
- extremes: how often a value exceeds the 99.99th percentile of the data, where 1 is as often as in the data.

Writes results/heavy_tails.json and heavy_tails.png next to this file. Networks are kept in
outputs/heavy_tails, so an interrupted study resumes.
"""

import argparse
import math
import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from small_networks import SIDE, load_or_train
from tables import RESULTS, format_heavy_tails

from pipeline_pfgmpp import PFGMPPPipeline, PFGMPPScheduler, sample_noise
from pipeline_pfgmpp.data import ImageDataset, measure_standardization
from pipeline_pfgmpp.generation.generate import generate_values
from pipeline_pfgmpp.records.commands import format_command
from pipeline_pfgmpp.records.dimensions import format_dimension
from pipeline_pfgmpp.records.measurements import write_measurement


PICTURE = Path(__file__).with_suffix(".png")
TAIL_INDEX = 4.0
DIMENSIONS = [TAIL_INDEX, 16.0, math.inf]
HELD_OUT = 1_000_000  # seed of the fields that nothing trains on
QUANTILES = 1 - np.logspace(-0.3, -4, 60)  # from the median to the 99.99th percentile


def make_fields(count: int, seed: int) -> torch.Tensor:
    """
    Make fields with heavy tails.

    Args:
        count (`int`): How many.
        seed (`int`): Their seed.

    Returns:
        `torch.Tensor` of shape `(count, 1, SIDE, SIDE)`: Gaussian fields with a spectrum that falls with
            the cube of the frequency, each times an amplitude.
    """
    rng = torch.Generator().manual_seed(seed)
    frequency = torch.fft.fftfreq(SIDE) * SIDE
    power = (1 + frequency[:, None] ** 2 + frequency**2) ** -1.5
    white = torch.fft.fft2(torch.randn(count, 1, SIDE, SIDE, generator=rng))
    smooth = torch.fft.ifft2(white * (power / power.mean()).sqrt()).real
    return smooth * sample_noise((count, 1, 1, 1), TAIL_INDEX, rng)


def train(args: argparse.Namespace, D: float, seed: int) -> PFGMPPPipeline:
    """Train the network of a D and a seed, or load what an earlier run trained."""
    folder = Path(args.output) / f"{args.steps}-steps-of-{args.fields}" / f"D-{D:g}-seed-{seed}"
    fields = make_fields(args.fields, seed)
    data = ImageDataset(fields, value_range=measure_standardization([fields]))
    scheduler = PFGMPPScheduler(D=D, sigma_data=data.sigma_data(), preconditioning="t-edm")
    return load_or_train(folder, data, scheduler, args.steps, seed)


def sort_magnitudes(fields: torch.Tensor) -> np.ndarray:
    """Sort the absolute values of fields, the least one first."""
    return np.sort(fields.double().abs().flatten().numpy())


def describe_tails(values: np.ndarray, data: np.ndarray) -> dict[str, float]:
    """
    Describe the tails of values beside those of the data.

    Args:
        values (`np.ndarray`): Sorted absolute values.
        data (`np.ndarray`): Those of the data.

    Returns:
        `dict[str, float]`: `index`, `percentile`, `distance` and `extremes`, see above.
    """
    largest = values[-max(2, len(values) // 1000) :]
    tails = [each[each > np.quantile(data, 0.99)] for each in (values, data)]
    points = np.concatenate(tails)
    shares = [np.searchsorted(tail, points, "right") / max(len(tail), 1) for tail in tails]
    beyond = (values > np.quantile(data, 0.9999)).mean()
    measured = {
        "index": 1 / np.log(largest[1:] / largest[0]).mean(),
        "percentile": np.quantile(values, 0.9999),
        "distance": np.abs(shares[0] - shares[1]).max(),
        "extremes": beyond / 1e-4,
    }
    return {name: round(float(value), 4) for name, value in measured.items()}


def draw_quantiles(quantiles: dict[str, list[np.ndarray]], path: Path) -> None:
    """
    Draw the quantiles of what was drawn over those of the data.

    Args:
        quantiles (`dict[str, list[np.ndarray]]`): By name, one array per seed; the data are the first.
        path (`Path`): The PNG file.
    """
    (name, (data, *others)), *drawn = quantiles.items()
    figure, axis = plt.subplots(figsize=(5.5, 5), layout="constrained")
    axis.plot(data, data, color="black", linewidth=1, label=name)
    for seed, other in enumerate(others):
        label = "other fields of the data" if seed == 0 else None
        axis.plot(data, other, color="black", linewidth=0.5, linestyle=":", label=label)
    for number, (name, curves) in enumerate(drawn):
        for seed, curve in enumerate(curves):
            axis.plot(data, curve, color=f"C{number}", alpha=0.8, label=name if seed == 0 else None)
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlabel("quantile of the data's absolute values")
    axis.set_ylabel("the same quantile of what was drawn")
    axis.set_title("From the median to the 99.99th percentile")
    axis.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def measure(args: argparse.Namespace) -> tuple[list[dict[str, Any]], dict[str, list[np.ndarray]]]:
    """
    Train and measure the networks of every D and seed.

    Args:
        args (`argparse.Namespace`): The settings of the command line.

    Returns:
        `tuple`: A row per D with lists of values, one per seed, after the row of other fields; and the
            quantiles, after those of the data.
    """
    data = sort_magnitudes(make_fields(10 * args.drawn, HELD_OUT))
    names = ["data", *(f"D = {format_dimension(D)}" for D in DIMENSIONS)]
    rows = {name: [] for name in names}
    quantiles = {name: [] for name in names}
    quantiles["data"].append(np.quantile(data, QUANTILES))
    for seed in range(args.seeds):
        drawn = {"data": make_fields(args.drawn, HELD_OUT + 1 + seed)}
        for name, D in zip(names[1:], DIMENSIONS):
            pipeline = train(args, D, seed)
            seeds = list(range(seed * args.drawn, (seed + 1) * args.drawn))
            batches = generate_values(pipeline, seeds, args.batch_size, f"{name}, seed {seed}")
            drawn[name] = torch.cat([images for _, images in batches])
        for name, fields in drawn.items():
            values = sort_magnitudes(fields)
            rows[name].append(describe_tails(values, data))
            quantiles[name].append(np.quantile(values, QUANTILES))
    measured = [
        {"name": name, **{key: [entry[key] for entry in entries] for key in entries[0]}}
        for name, entries in rows.items()
    ]
    return measured, quantiles


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--seeds", type=int, default=3, help="networks per D (default: %(default)s)")
    add("--steps", type=int, default=1500, help="of 64 fields, per network (default: %(default)s)")
    add("--fields", type=int, default=5000, help="to train on (default: %(default)s)")
    add("--drawn", type=int, default=5000, help="fields to draw per network (default: %(default)s)")
    add("--batch-size", type=int, default=1000, help="of drawing (default: %(default)s)")
    add("--output", default="outputs/heavy_tails", help="folder of the networks (default: %(default)s)")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    rows, quantiles = measure(args)
    settings = {name: value for name, value in vars(args).items() if name != "output"}
    command = format_command("python experiments/heavy_tails.py", sys.argv[1:])
    results = {"settings": settings, "tail_index": TAIL_INDEX, "rows": rows}
    write_measurement(RESULTS / "heavy_tails.json", command, results)
    draw_quantiles(quantiles, PICTURE)
    print(format_heavy_tails(results))


if __name__ == "__main__":
    main()
