"""
Measure whether a reader can name the groups of the emoji that a model draws.

    python experiments/emoji_names.py model_cards/pfgmpp-emoji-fast data/emoji
    python experiments/emoji_names.py model_cards/pfgmpp-emoji-fast data/emoji --answers answers.txt

The first command draws pictures of each group, mixes them with held-out emoji, as many of each group or all
that there are, and writes sheets of numbered rows and a key to outputs/emoji_names/MODEL. The reader, who
has not seen the key, writes down the number of the group of each picture, in order. The second command
compares these answers with the key and writes results/MODEL-names.json next to this file. Several readers
may read the same sheets, each for itself; their answers are files of their own, and are counted together.
"""

import argparse
import json
import random
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import load_dataset
from emoji_cards import draw_groups
from tables import RESULTS, format_emoji_names

from pipeline_pfgmpp import PFGMPPPipeline
from pipeline_pfgmpp.commands.arguments import (
    add_guidance_argument,
    add_interval_argument,
    get_guidance_settings,
)
from pipeline_pfgmpp.data import ImageDataset, load_images
from pipeline_pfgmpp.pictures.grid import draw_grid, to_pil
from pipeline_pfgmpp.records.commands import format_command
from pipeline_pfgmpp.records.measurements import write_measurement
from pipeline_pfgmpp.records.writing import write_json


COLUMNS = 10  # of a sheet
ROWS = 6
PIXELS = 128  # of a picture on a sheet


def mix_pictures(
    pipeline: PFGMPPPipeline, held_out: ImageDataset, per_group: int, **settings: Any
) -> tuple[torch.Tensor, list[dict[str, Any]]]:
    """
    Mix pictures of each group that are drawn with held-out ones, in an order that nobody knows.

    Args:
        pipeline ([`PFGMPPPipeline`]): The model.
        held_out ([`ImageDataset`]): The held-out emoji.
        per_group (`int`): Pictures of each kind and group; fewer where there are fewer held-out emoji.
        settings: Further arguments of the pipeline's call, such as `guidance_scale`.

    Returns:
        `tuple[torch.Tensor, list[dict]]`: The pictures, and what each of them is.
    """
    names = held_out.class_names
    drawn, groups = draw_groups(pipeline, names, per_group, per_group, **settings)
    pictures = list(drawn)
    key = [{"kind": "drawn", "group": int(group)} for group in groups]
    shuffle = random.SystemRandom().shuffle
    for group in range(len(names)):
        rows = (held_out.labels == group).nonzero().flatten().tolist()
        shuffle(rows)
        pictures += [held_out.images[row] for row in rows[:per_group]]
        key += [{"kind": "held-out emoji", "group": group} for _ in rows[:per_group]]
    order = list(range(len(key)))
    shuffle(order)
    return torch.stack([pictures[index] for index in order]), [key[index] for index in order]


def write_sheets(pictures: torch.Tensor, folder: Path) -> None:
    """Write pictures on sheets, in rows that begin with the number of their first picture."""
    for sheet, part in enumerate(pictures.split(COLUMNS * ROWS)):
        first = sheet * COLUMNS * ROWS
        labels = [str(first + number) for number in range(0, len(part), COLUMNS)]
        draw_grid(to_pil(part), COLUMNS, labels, cell=PIXELS).save(folder / f"sheet-{sheet}.png")


def count_named(key: list[dict[str, Any]], answers: list[list[int]], names: list[str]) -> dict[str, Any]:
    """Count by kind and group how many pictures all readers saw, and how many of them they named."""
    counts = {kind: {name: [0, 0] for name in names} for kind in ("drawn", "held-out emoji")}
    for reading in answers:
        for picture, answer in zip(key, reading, strict=True):
            count = counts[picture["kind"]][names[picture["group"]]]
            count[0] += answer == picture["group"]
            count[1] += 1
    return counts


def count_readings(key: list[dict[str, Any]], answers: list[list[int]]) -> list[int]:
    """Count how many of the drawn pictures each reader named."""
    drawn = [number for number, picture in enumerate(key) if picture["kind"] == "drawn"]
    return [sum(reading[number] == key[number]["group"] for number in drawn) for reading in answers]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="folder of the model")
    parser.add_argument("data", help="data set from `pfgmpp data emoji`")
    parser.add_argument("--per-group", type=int, default=10, help="pictures per group (default: %(default)s)")
    add_guidance_argument(parser)
    add_interval_argument(parser)
    parser.add_argument(
        "--answers", type=Path, nargs="+", help="file of each reader with the numbers of the groups, in order"
    )
    parser.add_argument("--reader", default="a person", help="who read the sheets (default: %(default)s)")
    args = parser.parse_args()

    held_out = load_images(load_dataset(args.data, split="validation"), 64)
    folder = Path("outputs/emoji_names", args.model.name)
    path = folder / "key.json"
    if args.answers is None:
        folder.mkdir(parents=True, exist_ok=True)
        pipeline = PFGMPPPipeline.from_pretrained(args.model)
        pictures, key = mix_pictures(pipeline, held_out, args.per_group, **get_guidance_settings(args))
        write_sheets(pictures, folder)
        write_json(path, key)
        print(
            f"{folder} holds the sheets. Write down the group of each of the {len(key)} pictures, in order:"
        )
        print(", ".join(f"{number} {name}" for number, name in enumerate(held_out.class_names)))
        return
    key = json.loads(path.read_text(encoding="utf-8"))
    answers = []
    for file in args.answers:
        answers.append([int(word) for word in file.read_text(encoding="utf-8").split()])
        if len(answers[-1]) != len(key):
            parser.error(f"{file} must hold {len(key)} numbers, but it holds {len(answers[-1])}.")
    results = {"reader": args.reader, "counts": count_named(key, answers, held_out.class_names)}
    results["readings"] = count_readings(key, answers)
    command = format_command("python experiments/emoji_names.py", sys.argv[1:])
    write_measurement(RESULTS / f"{args.model.name}-names.json", command, results)
    print(format_emoji_names(results))


if __name__ == "__main__":
    main()
