r"""
Study how long to train the emoji network: what more steps do to the pictures, and how much they copy.

    python experiments/emoji_training.py outputs/emoji data/emoji --width 0.08 --steps 500 1500 2000

Reads the averages that a run with `--ema_width --validation_split validation` left in its folder, which also
holds its pipeline. The validation loss of each step stands beside the Fréchet distance of as many pictures
as there are held-out emoji to them, and beside what experiments/emoji_cards.py measures of guided pictures.

Writes results/emoji_training.json next to this file.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from emoji_cards import describe_pictures, draw_groups, find_nearest, load_emoji
from tables import RESULTS, format_emoji_training

from pipeline_pfgmpp import PFGMPPPipeline
from pipeline_pfgmpp.commands.arguments import (
    add_guidance_argument,
    add_interval_argument,
    get_guidance_settings,
)
from pipeline_pfgmpp.evaluation import ImageMetrics, load_features
from pipeline_pfgmpp.evaluation.evaluate import evaluate
from pipeline_pfgmpp.records.commands import format_command
from pipeline_pfgmpp.records.digests import default_output, describe
from pipeline_pfgmpp.records.measurements import write_measurement
from pipeline_pfgmpp.training import read_log
from pipeline_pfgmpp.training.ema import combine_snapshots


def read_validation(entry: dict[str, Any]) -> dict[str, Any]:
    """Read the images seen and the validation loss from an entry of a run's log."""
    return {"images": int(entry["images"]), "validation_loss": entry["validation_loss"]}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("run", type=Path, help="folder of the run")
    add("data", help="data set from `pfgmpp data emoji`")
    add("--width", type=float, required=True, help="width of the averages, as `pfgmpp average` has it")
    add("--steps", type=int, nargs="+", required=True, help="steps at which to look")
    add("--D", type=float, default=128.0, help="(default: %(default)s)")
    add("--per-group", type=int, default=40, help="guided pictures per group (default: %(default)s)")
    add_guidance_argument(parser)
    add_interval_argument(parser)
    parser.set_defaults(guidance_scale=2.0)
    add("--batch-size", type=int, default=64, help="(default: %(default)s)")
    args = parser.parse_args()

    emoji = load_emoji(args.data)
    names = emoji.held_out.class_names
    metrics = ImageMetrics(load_features("emoji"), emoji.held_out.images)
    weights = emoji.count_held_out()
    validated = {entry["step"]: entry for entry in read_log(args.run) if "validation_loss" in entry}
    pipeline = PFGMPPPipeline.from_pretrained(args.run)
    count = len(emoji.held_out)
    rows: list[dict[str, Any]] = []
    for step in args.steps:
        pipeline.unet.load_state_dict(combine_snapshots(args.run, args.width, step), strict=False)
        folder = default_output("samples", args.run.name, describe(pipeline, class_weights=weights))
        (entry,) = evaluate(
            pipeline, metrics, [args.D], folder, count, batch_size=args.batch_size, class_weights=weights
        )
        guidance = get_guidance_settings(args)
        images, asked = draw_groups(pipeline, names, args.per_group, args.batch_size, **guidance)
        distances, _ = find_nearest(images, emoji.train)
        measured = describe_pictures(images, asked, emoji.groups, distances)
        rows.append({**read_validation(validated[step]), "fid": entry["fid"][0], **measured})
    lowest = min(validated.values(), key=lambda entry: entry["validation_loss"])
    results = {"D": args.D, "rows": rows, "lowest": read_validation(lowest)}
    command = format_command("python experiments/emoji_training.py", sys.argv[1:])
    write_measurement(RESULTS / "emoji_training.json", command, results)
    print(format_emoji_training(results))


if __name__ == "__main__":
    main()
