r"""
Train a network that restores emoji: it removes noise, enlarges, and fills holes, and is told nothing but the
picture.

    pip install '.[train]'
    pfgmpp data emoji
    python experiments/emoji_restore.py --model model_cards/pfgmpp-emoji-restore

One network for every D from 16 to infinity sees the damaged picture beside the noisy one. Interrupted runs
resume. Half of the held-out emoji say where a single call enters
the field lines and how much of its result counts, for all kinds of damage alike; the other half is measured.

Writes results/emoji_restore.json and emoji_restore.png next to this file, and with --model the network in
float16 and with its card. `--mixed_precision bf16 --compile` is faster where the processor or the GPU has
matrix units.
"""

import argparse
import math
import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from restorers import list_results, save_restorer
from tables import RESULTS, format_emoji_restore

from pipeline_pfgmpp import PFGMPPRestorationPipeline, PFGMPPScheduler, PFGMPPUNet2DModel
from pipeline_pfgmpp.data import load_images, open_dataset
from pipeline_pfgmpp.evaluation.restoration import (
    Pair,
    choose_entry,
    evaluate_restoration,
    list_pairs,
    restore_pairs,
)
from pipeline_pfgmpp.records.commands import format_command
from pipeline_pfgmpp.records.measurements import write_measurement
from pipeline_pfgmpp.training import DimensionRange, Trainer, TrainingConfig


PICTURE = Path(__file__).with_suffix(".png")
DIMENSIONS = [16.0, 128.0, math.inf]
TRAINED = DimensionRange(16, math.inf)
SHOWN = 128.0  # the D of the picture, and of the model by default
DAMAGES = {
    "noise": "gaussian=0.05:0.3",
    "4x smaller": "downscale=4",
    "a hole": "mask=0.02:0.15",
}
MEASURED = {"noise": "gaussian=0.2", "4x smaller": "downscale=4", "a hole": "mask=0.1"}
SIGMAS = [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 5.0, 20.0]
EMOJI_SHOWN = 4

ORIGIN = """## One call

From the command line, for pictures of any size:

```bash
pfgmpp restore {name} picture.png --output restored --num-inference-steps 1 \\
    --start-sigma {start_sigma:g} --blend {blend:g}
```

Without `start_sigma` the pipeline samples what the picture may have been, in as many calls as are asked for.

## Training

Trained for every D from 16 to infinity on {count:,} emoji of 64x64 pixels, in {steps:,} steps of
{batch_size}, each picture damaged anew by one of `{degradation}`.
These commands make the data and the network:

```bash
pfgmpp data emoji
{command}
```

## Evaluation

One call for each of {tests} emoji that the network has not seen. The level and the blend were chosen on other
held-out emoji, damaged as in training. The command above measured this table, `experiments/emoji_restore.py`.
PSNR and SSIM hardly depend on D.

{table}

The next command measures one damage, here noise, on the first 100 held-out emoji. Half of them chose the
settings, and the noise is other noise, so its figures differ a little from the table:

```bash
pfgmpp evaluate-restoration model_cards/{name} --data data/emoji --split validation --resolution 64 \\
    --degradation gaussian=0.2 --D 16,128,inf --num-inference-steps 1 \\
    --start-sigma {start_sigma:g} --blend {blend:g}
```
"""
LIMITS = """The model has seen emoji alone, and three kinds of damage. What it paints into a hole is what one
call can know: the mean of what fits. Photographs, and damage that it has not seen, are outside of what it can
do."""


def train(args: argparse.Namespace) -> PFGMPPRestorationPipeline:
    """Train the network, from the last checkpoint on."""
    degradation = [",".join(DAMAGES.values())]
    data = load_images(open_dataset(args.data), 64, labels=False, degradation=degradation)
    torch.manual_seed(0)  # for the weights
    network = PFGMPPUNet2DModel.from_preset(
        "ppfm-ct",
        sample_size=64,
        in_channels=3,
        out_channels=3,
        condition_channels=3,
        model_channels=32,
        channel_mult=(1, 2, 2, 4),
        num_blocks=1,
        attn_resolutions=(8,),
        dropout=0.0,
        d_conditioning=True,
    )
    scheduler = PFGMPPScheduler(
        TRAINED.middle, sigma_data=round(data.sigma_data(), 3), D_range=(TRAINED.low, None)
    )
    config = TrainingConfig(
        output_dir=args.output,
        max_train_steps=args.steps,
        train_batch_size=args.batch_size,
        learning_rate=1e-3,
        lr_warmup_images=3_200,
        P_mean=args.P_mean,
        ema_halflife=[32_000.0],
        random_flip=True,
        mixed_precision=args.mixed_precision,
        compile=args.compile,
        checkpointing_steps=200,
        sample_steps=0,
        resume_from_checkpoint="latest",
    )
    pipeline = Trainer(network, scheduler, data, config, dimensions=TRAINED).run()
    if pipeline is None:
        raise SystemExit("The training was stopped; run the command again to go on.")
    return pipeline


def split_held_out(args: argparse.Namespace) -> tuple[list[Pair], dict[str, list[Pair]]]:
    """Damage the held-out emoji: one half as in training, and the other by each damage that is measured."""
    dataset = open_dataset(args.data, split="validation")
    held_out = load_images(dataset.select(range(0, len(dataset), 2)), 64, labels=False)
    known = list_pairs(held_out, [",".join(DAMAGES.values())])
    held_out = load_images(dataset.select(range(1, len(dataset), 2)), 64, labels=False)
    return known, {name: list_pairs(held_out, [word]) for name, word in MEASURED.items()}


def draw_picture(
    pipeline: PFGMPPRestorationPipeline, pairs: dict[str, list[Pair]], settings: dict[str, Any], path: Path
) -> None:
    """Draw emoji before and after, over the truth, a row of them per damage."""
    figure, axes = plt.subplots(
        3, EMOJI_SHOWN * len(pairs), figsize=(EMOJI_SHOWN * len(pairs) * 0.75, 2.4), layout="constrained"
    )
    for place, (name, both) in enumerate(pairs.items()):
        stride = len(both) // EMOJI_SHOWN
        shown = both[place * stride // len(pairs) :: stride][:EMOJI_SHOWN]
        [(_, restored)] = restore_pairs(pipeline, shown, len(shown), 0, name, settings)
        columns = axes[:, place * EMOJI_SHOWN : (place + 1) * EMOJI_SHOWN]
        columns[0, EMOJI_SHOWN // 2].set_title(name, x=0)
        for column, pair, image in zip(columns.T, shown, restored):
            for axis, values in zip(column, (pair.degraded, image, pair.truth)):
                axis.imshow(values.clamp(0, 1).permute(1, 2, 0).numpy(), interpolation="nearest")
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
        axis.spines[:].set_visible(False)
    for axis, name in zip(axes[:, 0], ("damaged", "restored", "truth")):
        axis.set_ylabel(name)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", default="data/emoji", help="(default: %(default)s)")
    add("--output", default="outputs/emoji-restore", help="folder of the run (default: %(default)s)")
    add("--steps", type=int, default=3600, help="of training (default: %(default)s)")
    add("--P_mean", type=float, default=0.5, help="mean of ln(sigma) in training (default: %(default)s)")
    add("--batch_size", type=int, default=16, help="pictures per step (default: %(default)s)")
    add("--mixed_precision", choices=("no", "bf16"), default="no", help="(default: %(default)s)")
    add("--compile", action="store_true", help="compile the network")
    add("--model", type=Path, help="folder for the model, such as model_cards/pfgmpp-emoji-restore")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    command = format_command("python experiments/emoji_restore.py", sys.argv[1:])
    pipeline = train(args)
    pipeline.scheduler.register_to_config(D=SHOWN)
    pipeline.unet.half().float()  # what is measured is what is saved
    known, pairs = split_held_out(args)
    entry = choose_entry(pipeline, known, SIGMAS)
    settings = {"start_sigma": entry.start_sigma, "blend": round(entry.blend, 3)}
    rows = {
        name: evaluate_restoration(pipeline, both, DIMENSIONS, [1], **settings)
        for name, both in pairs.items()
    }
    results = {"steps": args.steps, "settings": settings, "damages": MEASURED, "rows": rows}
    write_measurement(RESULTS / "emoji_restore.json", command, results)
    draw_picture(pipeline, pairs, {**settings, "num_inference_steps": 1}, PICTURE)
    table = format_emoji_restore(results)
    print(table)
    if args.model is not None:
        origin = ORIGIN.format(
            **settings,
            **vars(args),
            name=args.model.name,
            count=len(load_images(open_dataset(args.data), 64, labels=False)),
            degradation=",".join(DAMAGES.values()),
            command=command,
            tests=len(pairs["noise"]),
            table=table,
        )
        evaluations = [
            result
            for name, measured in rows.items()
            for result in list_results(measured, "emoji", "Emoji of Noto Color Emoji", name)
        ]
        save_restorer(args.model, pipeline, PICTURE, settings, origin, evaluations, "emoji", LIMITS)


if __name__ == "__main__":
    main()
