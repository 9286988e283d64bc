r"""
Study how to guide an emoji model: what scales and intervals of noise levels do to its pictures.

    python experiments/emoji_guidance.py model_cards/pfgmpp-emoji data/emoji
    python experiments/emoji_guidance.py model_cards/pfgmpp-emoji-fast data/emoji

For each way to guide, the Fréchet distance of as many pictures as there are held-out emoji to them stands
beside what experiments/emoji_cards.py measures. Of a consistency model the noise level of the second call
varies as well.

Writes results/emoji_guidance.json or, of a consistency model, results/emoji_fast_guidance.json next to this
file. Pictures are kept in outputs/samples, so an interrupted study resumes.
"""

import argparse
import sys
from typing import Any

from emoji_cards import describe_pictures, draw_groups, find_nearest, load_emoji
from tables import RESULTS, format_emoji_guidance

from pipeline_pfgmpp import PFGMPPPipeline
from pipeline_pfgmpp.evaluation import ImageMetrics, load_features
from pipeline_pfgmpp.evaluation.evaluate import evaluate
from pipeline_pfgmpp.records.commands import format_command
from pipeline_pfgmpp.records.digests import default_output, describe
from pipeline_pfgmpp.records.measurements import write_measurement


WAYS: list[dict[str, Any]] = [{"guidance_scale": scale} for scale in (1.0, 2.0, 4.0)]
WAYS += [
    {"guidance_scale": scale, "guidance_interval": [0.05, high]} for scale, high in ((5.0, 8.0), (5.0, 12.0))
]
# Of two calls: the noise level of the second, and how that call alone or both are guided
IN_SECOND = {"guidance_interval": [0.05, 10.0]}
FAST_WAYS: list[dict[str, Any]] = [
    {"sigmas": [80.0, 0.5], "guidance_scale": 1.0},
    {"sigmas": [80.0, 0.5], "guidance_scale": 3.0, **IN_SECOND},
    {"sigmas": [80.0, 0.8], "guidance_scale": 1.0},
    {"sigmas": [80.0, 0.8], "guidance_scale": 3.0, **IN_SECOND},
    {"sigmas": [80.0, 0.8], "guidance_scale": 2.0, **IN_SECOND},
    {"sigmas": [80.0, 0.8], "guidance_scale": 2.0},
    {"sigmas": [80.0, 1.5], "guidance_scale": 1.0},
    {"sigmas": [80.0, 1.5], "guidance_scale": 3.0, **IN_SECOND},
]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("model", help="folder of the model")
    add("data", help="data set from `pfgmpp data emoji`")
    add("--D", type=float, default=128.0, help="(default: %(default)s)")
    add("--per-group", type=int, default=40, help="pictures per group (default: %(default)s)")
    add("--batch-size", type=int, default=64, help="(default: %(default)s)")
    args = parser.parse_args()

    emoji = load_emoji(args.data)
    names = emoji.held_out.class_names
    count = len(emoji.held_out)
    metrics = ImageMetrics(load_features("emoji"), emoji.held_out.images)
    pipeline = PFGMPPPipeline.from_pretrained(args.model)
    is_fast = pipeline.scheduler.config.solver_type == "consistency"
    rows: list[dict[str, Any]] = []
    for way in FAST_WAYS if is_fast else WAYS:
        settings = {"class_weights": emoji.count_held_out(), **way}
        folder = default_output("samples", args.model, describe(pipeline, **settings))
        (entry,) = evaluate(
            pipeline, metrics, [args.D], folder, count, batch_size=args.batch_size, **settings
        )
        images, asked = draw_groups(pipeline, names, args.per_group, args.batch_size, D=args.D, **way)
        distances, _ = find_nearest(images, emoji.train)
        rows.append(
            {**way, "fid": entry["fid"][0], **describe_pictures(images, asked, emoji.groups, distances)}
        )
    results = {"D": args.D, "rows": rows}
    command = format_command("python experiments/emoji_guidance.py", sys.argv[1:])
    name = "emoji_fast_guidance" if is_fast else "emoji_guidance"
    write_measurement(RESULTS / f"{name}.json", command, results)
    print(format_emoji_guidance(results))


if __name__ == "__main__":
    main()
