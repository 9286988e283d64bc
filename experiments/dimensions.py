"""
Study how the images of one network for every D change with D.

    python experiments/dimensions.py model_cards/pfgmpp-fashion-mnist

Draws the same seeds along D, and writes results/dimensions.json and dimensions.png next to this file.
"""

import argparse
import math
import sys
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from tables import RESULTS, format_continuity
from tqdm import tqdm

from pipeline_pfgmpp import PFGMPPPipeline, PFGMPPScheduler
from pipeline_pfgmpp.generation import generate
from pipeline_pfgmpp.pictures.grid import draw_grid, to_pil
from pipeline_pfgmpp.records.commands import format_command
from pipeline_pfgmpp.records.measurements import write_measurement


LOWEST = 16
OCTAVES = 14  # up to 2^18
STEPS_PER_OCTAVE = 8
DIMENSIONS = [
    *(LOWEST * 2 ** (step / STEPS_PER_OCTAVE) for step in range(STEPS_PER_OCTAVE * OCTAVES + 1)),
    math.inf,
]


def draw_along_dimensions(pipe: PFGMPPPipeline, num_seeds: int) -> torch.Tensor:
    """
    Draw the same seeds at each of `DIMENSIONS`.

    Returns:
        `torch.Tensor` of shape `(len(DIMENSIONS), num_seeds, C, H, W)`, uint8: The images.
    """
    labels = [seed % pipe.num_classes for seed in range(num_seeds)] if pipe.num_classes else None
    seeds = list(range(num_seeds))
    images = []
    for D in tqdm(DIMENSIONS, desc="Along D"):
        drawn = generate(pipe, seeds, num_seeds, None, D=D, num_inference_steps=16, class_labels=labels)
        images.append(next(drawn)[1])
    return torch.stack(images)


def compare_neighbours(images: torch.Tensor) -> list[dict[str, Any]]:
    """Measure how far images of the same seeds are apart at neighbouring D, for finer and finer steps."""
    pixels = images.float() / 127.5 - 1
    finite = pixels[:-1]
    rows = []
    for stride in (8, 4, 2, 1):
        chosen = finite[::stride]
        distances = (chosen[1:] - chosen[:-1]).square().mean((2, 3, 4)).sqrt()
        rows.append(summarize(f"× {2 ** (stride / STEPS_PER_OCTAVE):.2f}", distances))
    last = (pixels[-1] - pixels[-2]).square().mean((1, 2, 3)).sqrt()
    rows.append(summarize(f"2^{round(math.log2(DIMENSIONS[-2]))} to ∞", last))
    other_seeds = (pixels[0] - pixels[0].roll(1, 0)).square().mean().sqrt().item()
    rows.append({"step": "images of other seeds", "root_mean_square": other_seeds})
    return rows


def summarize(step: str, distances: torch.Tensor) -> dict[str, Any]:
    return {
        "step": step,
        "root_mean_square": distances.mean().item(),
        "largest": distances.max().item(),
    }


def draw_picture(images: torch.Tensor, path: Path) -> None:
    """Draw ten seeds at every second octave and at infinity."""
    rows = [*range(0, len(DIMENSIONS) - 1, 2 * STEPS_PER_OCTAVE), len(DIMENSIONS) - 1]
    names = [f"D = {DIMENSIONS[row]:g}" for row in rows]
    draw_grid(to_pil(images[rows, :10].flatten(0, 1)), 10, names).save(path)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="a pipeline folder or a Hub id, of a network for every D")
    parser.add_argument("--seeds", type=int, default=30, help="images per D (default: %(default)s)")
    args = parser.parse_args()
    pipe = DiffusionPipeline.from_pretrained(args.model)
    pipe.scheduler = PFGMPPScheduler.from_config(
        pipe.scheduler.config, solver_type="dpmpp_3m", rho=10.0, sigma_min=0.06
    )
    images = draw_along_dimensions(pipe, args.seeds)
    results = compare_neighbours(images)
    command = format_command("python experiments/dimensions.py", sys.argv[1:])
    write_measurement(RESULTS / "dimensions.json", command, results)
    draw_picture(images, Path(__file__).with_suffix(".png"))
    print(format_continuity(results))


if __name__ == "__main__":
    main()
