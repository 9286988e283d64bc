r"""
Study whether small D bears rounded weights better, as the PFGM++ paper says
(https://huggingface.co/papers/2302.04265, sec. 6).

    pip install '.[train,evaluate]' scikit-learn
    python experiments/rounding.py

Rounding to the nearest value happens to a network once, so that it tells of this network alone. Here each
weight is rounded up or down at random, many times. For each seed, one network for every D and one network
per D train on the digits of scikit-learn for the same number of steps. Each is rounded to a few bits, and
draws the same seeds with and without. Measured is the Fréchet distance of pixels to all digits, and what the
rounding adds to it.

The network for every D is rounded once for all D, which are compared within one rounding.

Writes results/rounding.json next to this file. Networks and distances are kept in outputs/rounding, so an
interrupted study resumes.
"""

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

import torch
from consistency import load_digit_images
from small_networks import load_or_train
from tables import RESULTS, format_rounding
from tqdm.auto import tqdm

from pipeline_pfgmpp import PFGMPPPipeline, PFGMPPScheduler
from pipeline_pfgmpp.data import ImageDataset
from pipeline_pfgmpp.evaluation.metrics import frechet_distance
from pipeline_pfgmpp.generation import generate, quantize_temporarily
from pipeline_pfgmpp.records.commands import format_command
from pipeline_pfgmpp.records.digests import derive_seed
from pipeline_pfgmpp.records.dimensions import format_dimension
from pipeline_pfgmpp.records.measurements import write_measurement
from pipeline_pfgmpp.records.writing import write_json
from pipeline_pfgmpp.training import DimensionRange


DIMENSIONS = [16.0, 128.0, math.inf]
BITS = [6, 5, 4]
EVERY = "one network for every D"
SINGLE = "a network per D"
CALLS = 10  # of the network for an image


def train(folder: Path, images: torch.Tensor, D: float | None, seed: int, steps: int) -> PFGMPPPipeline:
    """Train a network for a D, or for every D if it is None; or load what an earlier run trained."""
    data = ImageDataset(((images + 1) * 127.5).round().to(torch.uint8))
    options = {"D_range": (DIMENSIONS[0], None)} if D is None else {}
    scheduler = PFGMPPScheduler(
        D=D or DIMENSIONS[1], sigma_data=data.sigma_data(), solver_type="dpmpp_2m", **options
    )
    dimensions = DimensionRange(DIMENSIONS[0], math.inf) if D is None else None
    return load_or_train(folder, data, scheduler, steps, seed, dimensions)


def measure_distance(
    pipeline: PFGMPPPipeline, real: torch.Tensor, D: float, args: argparse.Namespace
) -> float:
    """Measure the Fréchet distance of the pixels that a network draws at a D."""
    seeds = list(range(args.images))
    batches = generate(pipeline, seeds, args.images, None, D=D, num_inference_steps=CALLS)
    drawn = torch.cat([images for _, images in batches]).double() / 127.5 - 1
    return frechet_distance(drawn.flatten(1), real.double().flatten(1))


def measure_network(
    pipeline: PFGMPPPipeline,
    dimensions: list[float],
    real: torch.Tensor,
    path: Path,
    args: argparse.Namespace,
) -> dict[str, dict[str, list[float]]]:
    """
    Measure what rounding adds to the distances of a network.

    Args:
        pipeline ([`PFGMPPPipeline`]): The network.
        dimensions (`list[float]`): The D that it draws at.
        real (`torch.Tensor` of shape `(M, 1, 8, 8)`): The digits.
        path (`Path`): A file that keeps the distances, so that an interrupted run resumes.
        args (`argparse.Namespace`): The settings of the command line.

    Returns:
        `dict`: By bits and D, both as text, what each rounding adds.
    """
    distances = json.loads(path.read_text()) if path.is_file() else {}
    roundings = [(None, 0), *((bits, draw) for bits in BITS for draw in range(args.draws))]
    for bits, draw in tqdm(roundings, desc=f"Rounding, {path.stem}", unit="rounding"):
        key = f"{bits} bits, {draw}"
        if key in distances:
            continue
        rng = torch.Generator().manual_seed(derive_seed(draw, f"{bits} bits"))
        with quantize_temporarily(pipeline.unet, bits, rng):
            distances[key] = [measure_distance(pipeline, real, D, args) for D in dimensions]
        write_json(path, distances)
    before = distances["None bits, 0"]
    return {
        str(bits): {
            format_dimension(D): [
                round(distances[f"{bits} bits, {draw}"][place] - before[place], 4)
                for draw in range(args.draws)
            ]
            for place, D in enumerate(dimensions)
        }
        for bits in BITS
    }


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """
    Train, round and measure all networks.

    Args:
        args (`argparse.Namespace`): The settings of the command line.

    Returns:
        `list[dict]`: For each kind of network, number of bits and D what the roundings add: a list per seed.
    """
    images = load_digit_images()
    rows: dict[tuple[str, str, str], list[list[float]]] = {}
    for seed in range(args.seeds):
        kinds = [(EVERY, None, DIMENSIONS), *((SINGLE, D, [D]) for D in DIMENSIONS)]
        for kind, D, dimensions in kinds:
            name = "every-D" if D is None else f"D-{D:g}"
            folder = Path(args.output) / f"{name}-seed-{seed}-of-{args.steps}-steps"
            pipeline = train(folder, images, D, seed, args.steps)
            path = folder.with_name(f"{folder.name}-{args.images}-images.json")
            added = measure_network(pipeline, dimensions, images, path, args)
            for bits, by_dimension in added.items():
                for label, values in by_dimension.items():
                    rows.setdefault((kind, bits, label), []).append(values)
    return [
        {"network": kind, "bits": int(bits), "D": label, "added": values}
        for (kind, bits, label), values in rows.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--seeds", type=int, default=3, help="networks of each kind (default: %(default)s)")
    add("--steps", type=int, default=1500, help="of 64 digits, per network (default: %(default)s)")
    add("--draws", type=int, default=20, help="roundings per network and bits (default: %(default)s)")
    add("--images", type=int, default=500, help="drawn per distance (default: %(default)s)")
    add("--output", default="outputs/rounding", help="folder of the networks (default: %(default)s)")
    args = parser.parse_args()
    rows = measure(args)
    settings = {name: value for name, value in vars(args).items() if name != "output"}
    results = {"settings": settings, "rows": rows}
    command = format_command("python experiments/rounding.py", sys.argv[1:])
    write_measurement(RESULTS / "rounding.json", command, results)
    print(format_rounding(results))


if __name__ == "__main__":
    main()
