r"""
Measure whether an emoji model draws what it is asked for and whether it copies, and put both into its card.

    python experiments/emoji_cards.py model_cards/pfgmpp-emoji data/emoji

Draws pictures of each group. The classifier that `--features emoji` uses names the subgroup of each, which
belongs to one group: the share of pictures that land in the group that was asked for is set beside that of
held-out emoji. For each picture the nearest training picture is found by the root mean square difference of
their values, where white minus black is 1, and set beside the same for held-out emoji, which nothing can
have copied.

Writes results/NAME.json next to this file, and into the model's folder neighbours.png and a section of the
card.
"""

import argparse
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
from datasets import load_dataset
from tables import RESULTS, format_recognition

from pipeline_pfgmpp import PFGMPPPipeline
from pipeline_pfgmpp.commands.arguments import (
    add_guidance_argument,
    add_interval_argument,
    get_guidance_settings,
)
from pipeline_pfgmpp.data import ImageDataset, load_images
from pipeline_pfgmpp.evaluation.classifier import WEIGHTS, ImageClassifier
from pipeline_pfgmpp.generation import generate
from pipeline_pfgmpp.hub.cards import put_section, read_card
from pipeline_pfgmpp.pictures.grid import draw_grid, to_pil
from pipeline_pfgmpp.records.commands import format_command
from pipeline_pfgmpp.records.measurements import write_measurement
from pipeline_pfgmpp.records.writing import replace_file


SHOWN = 2  # pictures of each group beside their nearest training pictures
SECTION = """Of the pictures drawn for a group, the share in which a classifier of subgroups sees that group,
and how far they are from the nearest of the {count:,} training pictures: the root mean square difference,
where white minus black is 1. Held-out emoji, which no model has seen, stand beside.

{table}

Nearest training pictures: each row of pictures drawn by the model stands over the row of what is nearest to
them.

![Pictures drawn by the model over the nearest training pictures](neighbours.png)

```bash
{command}
```"""


class EmojiPictures(NamedTuple):
    """
    The pictures of emoji, and what the classifier's subgroups belong to.

    Args:
        train (`torch.Tensor` of shape `(M, 3, 64, 64)`, uint8): The training pictures.
        held_out ([`ImageDataset`]): The held-out emoji.
        groups (`torch.Tensor`): The group of each subgroup.
    """

    train: torch.Tensor
    held_out: ImageDataset
    groups: torch.Tensor

    def count_held_out(self) -> list[int]:
        """Count the held-out emoji of each group."""
        return self.held_out.labels.bincount(minlength=len(self.held_out.class_names)).tolist()


def load_emoji(data: str) -> EmojiPictures:
    """Load the data set that `pfgmpp data emoji` wrote."""
    sources = {split: load_dataset(data, split=split) for split in ("train", "validation")}
    train, held_out = (load_images(source, 64) for source in sources.values())
    groups = torch.full((ImageClassifier.load_config(WEIGHTS / "emoji")["num_classes"],), -1)
    for source in sources.values():
        groups[source["subgroup"]] = torch.tensor(source["label"])
    return EmojiPictures(torch.stack(list(train.images)), held_out, groups)


def draw_groups(
    pipeline: PFGMPPPipeline, names: list[str], per_group: int, batch_size: int, **settings: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Draw pictures of each group, of the same seeds whenever it is called.

    Args:
        pipeline ([`PFGMPPPipeline`]): The model.
        names (`list[str]`): Names of the groups.
        per_group (`int`): How many pictures of each.
        batch_size (`int`): How many at once.
        settings: Further arguments of the pipeline's call, such as `guidance_scale`.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: The pictures and their groups.
    """
    drawn = []
    for group, name in enumerate(names):
        seeds = [per_group * group + number for number in range(per_group)]
        options = {"class_labels": group, **settings}
        drawn += [images for _, images in generate(pipeline, seeds, batch_size, name, **options)]
    return torch.cat(drawn), torch.arange(len(names)).repeat_interleave(per_group)


def name_groups(images: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """
    Name the groups that the classifier sees in pictures.

    Args:
        images (`torch.Tensor` of shape `(M, 3, 64, 64)`, uint8): The pictures.
        groups (`torch.Tensor`): The group of each subgroup.

    Returns:
        `torch.Tensor` of shape `(M,)`: The groups.
    """
    classifier = ImageClassifier.from_pretrained(WEIGHTS / "emoji")
    with torch.no_grad():
        subgroups = [classifier(part.float() / 127.5 - 1).argmax(1) for part in images.split(100)]
    return groups[torch.cat(subgroups)]


def find_nearest(images: torch.Tensor, others: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Find the nearest of other pictures for each picture.

    Args:
        images (`torch.Tensor` of shape `(M, C, H, W)`, uint8): The pictures.
        others (`torch.Tensor` of shape `(M', C, H, W)`, uint8): The others.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: The root mean square differences, and the rows of the nearest.
    """
    values = images.flatten(1).float() / 255
    # Differences of squares, the faster way, would not be 0 for equal pictures.
    exact = {"compute_mode": "donot_use_mm_for_euclid_dist"}
    distances = torch.cdist(values, others.flatten(1).float() / 255, **exact) / values.shape[1] ** 0.5
    nearest = distances.min(1)
    return nearest.values, nearest.indices


def describe_pictures(
    images: torch.Tensor, asked: torch.Tensor, groups: torch.Tensor, distances: torch.Tensor
) -> dict:
    """Describe pictures: their number, the share in the right group, and the quantiles of the distances."""
    quantiles = torch.tensor([0.05, 0.5])
    least, median = distances.quantile(quantiles).tolist()
    right = (name_groups(images, groups) == asked).float().mean().item()
    return {
        "count": len(images),
        "right": round(right, 4),
        "least": round(least, 4),
        "median": round(median, 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="folder of the model")
    parser.add_argument("data", help="data set from `pfgmpp data emoji`")
    parser.add_argument("--per-group", type=int, default=40, help="pictures per group (default: %(default)s)")
    add_guidance_argument(parser)
    add_interval_argument(parser)
    parser.add_argument("--batch-size", type=int, default=40, help="(default: %(default)s)")
    args = parser.parse_args()

    emoji = load_emoji(args.data)
    names = emoji.held_out.class_names
    pipeline = PFGMPPPipeline.from_pretrained(args.model)
    guidance = get_guidance_settings(args)
    images, asked = draw_groups(pipeline, names, args.per_group, args.batch_size, **guidance)

    distances, rows = find_nearest(images, emoji.train)
    known = torch.stack(list(emoji.held_out.images))
    known_distances, _ = find_nearest(known, emoji.train)
    measured: dict[str, Any] = {
        "drawn": describe_pictures(images, asked, emoji.groups, distances),
        "held-out emoji": describe_pictures(known, emoji.held_out.labels, emoji.groups, known_distances),
    }
    command = format_command("python experiments/emoji_cards.py", sys.argv[1:])
    write_measurement(RESULTS / f"{args.model.name}.json", command, measured)

    shown = torch.cat([torch.arange(SHOWN) + args.per_group * group for group in range(len(names))])
    halves = shown.split(len(names))
    pairs = torch.cat([part for half in halves for part in (images[half], emoji.train[rows[half]])])
    with replace_file(args.model / "neighbours.png") as partial:
        draw_grid(to_pil(pairs), len(names), ["drawn", "nearest"] * len(halves)).save(partial, "PNG")
    card = read_card(args.model)
    table = format_recognition(measured)
    put_section(
        card, "Recognition and copies", SECTION.format(count=len(emoji.train), table=table, command=command)
    )
    card.save(args.model / "README.md")
    print(table)


if __name__ == "__main__":
    main()
