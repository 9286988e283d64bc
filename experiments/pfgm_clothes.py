"""
Compare PFGM, D = 1, on Fashion-MNIST with and without a limit on the norm of the noise, and with a
network of D = 128.

    python experiments/pfgm_clothes.py outputs/evaluation/pfgm outputs/evaluation/pfgm-limit \\
        outputs/evaluation/pfgmpp-control

Reads what `pfgmpp evaluate` measured and drew, and measures how far the norm of the noise spreads. Writes
results/pfgm_clothes.json and pfgm_clothes.png next to this file, or others by `--name`.
"""

import argparse
import json
import math
import sys
from pathlib import Path

import torch
from PIL import Image
from tables import RESULTS, format_clothes

from pipeline_pfgmpp import sample_noise
from pipeline_pfgmpp.pictures.grid import draw_grid
from pipeline_pfgmpp.records.commands import format_command
from pipeline_pfgmpp.records.measurements import write_measurement


COLUMNS = 16
SHAPE = (1, 28, 28)
NORMS = 10_000  # draws of noise


def measure_norms(D: float, limit: float | None) -> list[float]:
    """Measure between which norms, in units of √N, nine tenths of the noise of a level lie."""
    noise = sample_noise((NORMS, *SHAPE), D, torch.Generator().manual_seed(0), max_norm=limit)
    norms = noise.flatten(1).norm(dim=1) / math.prod(SHAPE) ** 0.5
    return [round(value, 3) for value in norms.quantile(torch.tensor([0.05, 0.95])).tolist()]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("evaluations", nargs="+", type=Path, help="folders that pfgmpp evaluate wrote")
    parser.add_argument("--name", default="pfgm_clothes", help="name of the results (default: %(default)s)")
    args = parser.parse_args()
    results = []
    pictures = []
    for folder in args.evaluations:
        evaluation = json.loads((folder / "evaluation.json").read_text())
        limit = evaluation["settings"]["scheduler"]["max_noise_norm"]
        limited = f"limit {limit:g}" if limit else "no limit"
        for entry in evaluation["results"]:
            D = entry.pop("D")
            norms = measure_norms(math.inf if D == "∞" else float(D), limit)
            results.append({"images": f"D = {D}, {limited}", **entry, "norms": norms})
            drawn = sorted((folder / f"D-{D}").glob("*.png"))[:COLUMNS]
            pictures += [Image.open(image) for image in drawn]
    command = format_command("python experiments/pfgm_clothes.py", sys.argv[1:])
    write_measurement(RESULTS / f"{args.name}.json", command, results)
    names = [row["images"] for row in results]
    draw_grid(pictures, COLUMNS, names).save(Path(__file__).with_name(f"{args.name}.png"))
    print(format_clothes(results))


if __name__ == "__main__":
    main()
