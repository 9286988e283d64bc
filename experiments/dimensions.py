"""
How the pictures of one network for every D change with D.

    python experiments/dimensions.py model_cards/pfgmpp-fashion-mnist

Draws the same seeds along D, and writes dimensions.md and dimensions.png beside this file.
"""

import argparse
import math
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from tqdm import tqdm

from pipeline_pfgmpp import PFGMPPScheduler
from pipeline_pfgmpp.generation import generate
from pipeline_pfgmpp.pictures.grid import draw_grid, to_pil


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="the network of every D")
    parser.add_argument("--seeds", type=int, default=30, help="pictures a D (default: %(default)s)")
    args = parser.parse_args()
    folder = Path(__file__).parent
    pipe = DiffusionPipeline.from_pretrained(args.model)
    pipe.unet.to(memory_format=torch.channels_last)
    pipe.scheduler = PFGMPPScheduler.from_config(
        pipe.scheduler.config, solver_type="dpmpp_3m", rho=10.0, sigma_min=0.06
    )
    text = continuity(pipe, args.seeds, folder / "dimensions.png")
    (folder / "dimensions.md").write_text(text)
    print(text)


def continuity(pipe, count, path):
    """How far pictures of the same seeds are apart at neighbouring D, for finer and finer steps of D."""
    finest, octaves = 8, 14  # steps an octave, from 16 up to 2^18
    dimensions = [16 * 2 ** (step / finest) for step in range(finest * octaves + 1)]
    # Classes are given: where they are drawn, it is after the noise, which takes less of the
    # generator at infinity.
    labels = [seed % pipe.num_classes for seed in range(count)] if pipe.num_classes else None
    settings = {"num_inference_steps": 16, "class_labels": labels}
    drawn = torch.stack(
        [
            next(generate(pipe, list(range(count)), count, None, D=D, **settings))[1]
            for D in tqdm([*dimensions, math.inf], desc="Along D")
        ]
    )
    pictures = drawn.float() / 127.5 - 1
    strangers = (pictures[0] - pictures[0].roll(1, 0)).square().mean().sqrt().item()
    lines = ["| step of D | root mean square between neighbours | largest of one picture |", "|---|---|---|"]
    for factor in (8, 4, 2, 1):
        chosen = pictures[:-1][::factor]
        apart = (chosen[1:] - chosen[:-1]).square().mean((2, 3, 4)).sqrt()
        lines.append(f"| × {2 ** (factor / finest):.2f} | {apart.mean():.4f} | {apart.max():.4f} |")
    last = (pictures[-1] - pictures[-2]).square().mean((1, 2, 3)).sqrt()
    lines.append(f"| 2^18 to ∞ | {last.mean():.4f} | {last.max():.4f} |")
    lines.append(f"| pictures of other seeds | {strangers:.4f} | |")

    rows = [*range(0, len(dimensions), 2 * finest), len(dimensions)]
    names = [f"D = {[*dimensions, math.inf][row]:g}" for row in rows]
    draw_grid(to_pil(drawn[rows, :10].flatten(0, 1)), 10, names).save(path)
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
