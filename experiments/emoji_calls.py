r"""
Compare the emoji model of many calls with its fast form of two calls and of one.

    python experiments/emoji_calls.py model_cards/pfgmpp-emoji model_cards/pfgmpp-emoji-fast data/emoji

Each draws as many pictures as there are held-out emoji, of the same seeds at each D and with the same groups
as often. Measured is the Fréchet distance to the held-out emoji, over the features `emoji`. The row of real
emoji holds as many pictures of the training data. The arguments guide the model of many calls, as it was
guided as a teacher; the fast model is guided in its second call alone, with a scale of 3.

Writes results/emoji_calls.json and emoji_calls.png next to this file. Pictures are kept in outputs/samples,
so an interrupted comparison resumes.
"""

import argparse
import math
import sys
from pathlib import Path
from typing import Any

import torch
from emoji_cards import load_emoji
from tables import RESULTS, format_emoji_calls

from pipeline_pfgmpp import PFGMPPPipeline
from pipeline_pfgmpp.commands.arguments import (
    add_guidance_argument,
    add_interval_argument,
    get_guidance_settings,
)
from pipeline_pfgmpp.evaluation import ImageMetrics, load_features
from pipeline_pfgmpp.evaluation.evaluate import evaluate, evaluate_real
from pipeline_pfgmpp.generation import load_samples
from pipeline_pfgmpp.generation.generate import draw_class
from pipeline_pfgmpp.pictures.grid import draw_grid, to_pil
from pipeline_pfgmpp.records.commands import format_command
from pipeline_pfgmpp.records.digests import default_output, describe
from pipeline_pfgmpp.records.measurements import write_measurement


PICTURE = Path(__file__).with_suffix(".png")
DIMENSIONS = [16.0, 128.0, 2048.0, math.inf]
SHOWN_D = "128"
SECOND_GUIDED = {"guidance_scale": 3.0, "guidance_interval": [0.05, 10.0]}


def list_ways(many: PFGMPPPipeline, fast: PFGMPPPipeline, guidance: dict[str, Any]) -> dict[str, tuple]:
    """
    List the ways to draw that are compared.

    Args:
        many ([`PFGMPPPipeline`]): The model of many calls.
        fast ([`PFGMPPPipeline`]): The fast model.
        guidance (`dict`): How its teacher was guided, as arguments of the pipeline's call.

    Returns:
        `dict[str, tuple]`: By name, the model and the arguments of its call.
    """
    steps = many.scheduler.config.default_steps
    return {
        f"{steps} calls": (many, {"num_inference_steps": steps}),
        f"{steps} guided calls": (many, {"num_inference_steps": steps, **guidance}),
        "fast, 2 calls": (fast, {"num_inference_steps": 2}),
        "fast, 2 calls, the second guided": (fast, {"num_inference_steps": 2, **SECOND_GUIDED}),
        "fast, 1 call": (fast, {"num_inference_steps": 1}),
    }


def draw_ways(folders: dict[str, Path], groups: torch.Tensor) -> None:
    """Draw the first picture of each group, a row for each way."""
    chosen = [int((groups == group).nonzero()[0]) for group in groups.unique()]
    rows = [load_samples(folder / f"D-{SHOWN_D}", chosen)[0] for folder in folders.values()]
    draw_grid(to_pil(torch.cat(rows)), len(chosen), list(folders)).save(PICTURE, "PNG")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("many", type=Path, help="folder of the model of many calls")
    parser.add_argument("fast", type=Path, help="folder of the fast model")
    parser.add_argument("data", help="data set from `pfgmpp data emoji`")
    add_guidance_argument(parser)
    add_interval_argument(parser)
    parser.set_defaults(guidance_scale=2.0)
    parser.add_argument("--batch-size", type=int, default=64, help="(default: %(default)s)")
    args = parser.parse_args()

    emoji = load_emoji(args.data)
    count = len(emoji.held_out)
    metrics = ImageMetrics(load_features("emoji"), emoji.held_out.images)
    weights = emoji.count_held_out()
    many, fast = (PFGMPPPipeline.from_pretrained(folder) for folder in (args.many, args.fast))
    rows: list[dict[str, Any]] = []
    folders = {}
    for name, (pipeline, options) in list_ways(many, fast, get_guidance_settings(args)).items():
        settings = {"class_weights": weights, **options}
        folders[name] = default_output(
            "samples", pipeline.config._name_or_path, describe(pipeline, **settings)
        )
        entries = evaluate(
            pipeline, metrics, DIMENSIONS, folders[name], count, batch_size=args.batch_size, **settings
        )
        rows.append({"name": name, **{entry["D"]: entry["fid"][0] for entry in entries}})
    real = evaluate_real(emoji.train, metrics, count, "train")["fid"][0]
    results = {"count": count, "real": real, "rows": rows}
    command = format_command("python experiments/emoji_calls.py", sys.argv[1:])
    write_measurement(RESULTS / "emoji_calls.json", command, results)
    groups = torch.tensor([draw_class(weights, seed) for seed in range(count)])
    draw_ways(folders, groups)
    print(format_emoji_calls(results))


if __name__ == "__main__":
    main()
