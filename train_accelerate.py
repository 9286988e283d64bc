#!/usr/bin/env python
# Copyright 2026 The pipeline_pfgmpp authors. Licensed under the Apache License, Version 2.0.
"""
Trains PFGM++ for any augmented dimension D on a Hugging Face data set, on whatever `accelerate` runs on:

    accelerate launch train_accelerate.py --dataset_name cifar10 --preset cifar10-ncsnpp --D 2048
    --output_dir outputs/cifar10

The result is a pipeline folder: `DiffusionPipeline.from_pretrained("outputs/cifar10")`.
"""

import argparse
import json
import math
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import psutil
import torch
import yaml
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import ProjectConfiguration, broadcast_object_list, set_seed
from datasets import load_dataset
from diffusers import DiffusionPipeline
from diffusers.utils import make_image_grid
from tqdm.auto import tqdm

from pipeline_pfgmpp import PFGMPPPipeline, PFGMPPScheduler, PFGMPPUNet2DModel
from pipeline_pfgmpp.data import ImageDecoder, ImageStream, load_images, prefetch
from pipeline_pfgmpp.hub import push_to_hub
from pipeline_pfgmpp.hub.cards import describe_base, write_model_card
from pipeline_pfgmpp.records.commands import format_command
from pipeline_pfgmpp.records.digests import derive_seed, digest_weights
from pipeline_pfgmpp.records.writing import replace_folder
from pipeline_pfgmpp.training import (
    OF_THE_NETWORK,
    RECIPES,
    SCHEDULES,
    Augmentation,
    DimensionRange,
    FrechetDistance,
    HalfLifeEMA,
    JSONLTracker,
    LossMeter,
    PFGMPPLoss,
    PowerFunctionEMA,
    UncertaintyWeighting,
    adapt_network,
    choose_classes,
    identify_run,
    learning_rate_factor,
    lies_in,
    load_checkpoint,
    open_run,
    power_of_width,
    read_run,
    remove_run,
    replace_nonfinite_gradients,
    save_checkpoint,
    trained_range,
    write_run,
)


ORIGIN = """## Training

{images:,} images of `{source}` in {steps:,} optimisation steps, on {hardware}; loss {loss}. The saved weights are the
exponential moving average with a half-life of {halflife:,.0f} images.{base}

```bash
{command}
```
"""

BASE = "\n\nFine-tuned from `{name}`, whose licence is {licence}."


def config_arguments(path):
    """A YAML file of arguments by name as what a command line would say."""
    config = yaml.safe_load(Path(path).read_text())
    if not isinstance(config, dict):
        raise ValueError("it is no list of `name: value`")
    arguments = []
    for name, value in config.items():
        if value is True:
            arguments += [f"--{name}"]
        elif value is False and name == "class_conditional":  # the one argument that is also said to be false
            arguments += ["--no-class_conditional"]
        elif isinstance(value, list):
            arguments += [f"--{name}", *map(str, value)] if value else []
        elif value is not None and value is not False:
            arguments += [f"--{name}={value}"]
    return arguments


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument

    add(
        "--config",
        help="YAML file of arguments by name; the command line overrides it, as it does the preset",
    )
    preset = "network and recipe (default: cifar10-ncsnpp, or with a pretrained network fine-tuning, a recipe alone)"
    add("--preset", choices=sorted(RECIPES), help=f"{preset}; other arguments override it")
    pretrained = (
        "pipeline folder or Hub id to fine-tune: its network, classes, size and D, unless told otherwise"
    )
    add("--pretrained_model_name_or_path", help=pretrained)
    new_classes = (
        "replace the classes of the pretrained network by those of the data, or by none, and keep the rest"
    )
    add("--new_classes", action="store_true", help=new_classes)
    add(
        "--D",
        default="2048",
        help="augmented dimension, any number above 0, or inf; with --d_conditioning a range, 16:inf",
    )
    add(
        "--d_conditioning",
        action="store_true",
        help="tell the network D: one network for every D of the range",
    )
    add(
        "--max_noise_norm",
        type=float,
        help="norm, in units of √N, that longer noise is shortened to; PFGM, D = 1, needs one",
    )
    add(
        "--reference_batch_size",
        type=int,
        help="aim at the field of this many images, over all processes, not at one image",
    )
    classes = "condition the network on the data set's classes (default: the preset's)"
    add("--class_conditional", action=argparse.BooleanOptionalAction, default=False, help=classes)
    add(
        "--label_dropout",
        type=float,
        default=0.0,
        help="probability of training without the class, for guidance",
    )
    add(
        "--uncertainty_weighting",
        action="store_true",
        help="weigh noise levels by a learned uncertainty, as EDM2 does",
    )

    add("--dataset_name", help="data set of the Hub, or a local folder of images or parquet files")
    add("--dataset_config_name", help="configuration of the data set")
    add("--train_data_dir", help="local folder of images or parquet files")
    add("--split", default="train", help="split to train on (default: %(default)s)")
    add("--image_column", help="column of the images (default: found)")
    add("--label_column", help="column of the classes (default: found)")
    add("--resolution", type=int, help="height and width in pixels")
    add(
        "--streaming",
        action="store_true",
        help="read the data set while training instead of decoding it first",
    )
    add(
        "--shuffle_window",
        type=int,
        default=10_000,
        help="images of a stream shuffled at a time (default: %(default)s)",
    )
    add(
        "--strict",
        action="store_true",
        help="let a broken image end the run; otherwise it is named and skipped",
    )
    add(
        "--dataloader_num_workers",
        type=int,
        default=4,
        help="threads that decode images (default: %(default)s)",
    )
    add("--random_flip", action="store_true", help="mirror images at random")
    add(
        "--augment",
        type=float,
        default=0.0,
        help="probability of each non-leaking transform (default: the preset's)",
    )

    add("--output_dir", required=True, help="folder for the pipeline, its checkpoints and sample grids")
    overwrite = "remove what another run left in the folder, when this one begins"
    add("--overwrite_output_dir", action="store_true", help=overwrite)
    add("--train_batch_size", type=int, help="images a process and forward pass")
    add("--gradient_accumulation_steps", type=int, default=1, help="forward passes an optimisation step")
    add("--max_train_steps", type=int, required=True, help="optimisation steps")
    add("--learning_rate", type=float, help="Adam's step size")
    add(
        "--lr_scheduler",
        choices=SCHEDULES,
        default="constant",
        help="after the warm-up (default: %(default)s)",
    )
    add("--lr_warmup_steps", type=int, help="optimisation steps of linear warm-up (default: see the next)")
    add("--lr_warmup_images", type=float, help="the same in images (default: the preset's)")
    add(
        "--lr_decay_images",
        type=float,
        default=35_000_000,
        help="where inverse_sqrt begins to fall (default: %(default)s)",
    )
    add("--adam_beta1", type=float, default=0.9)
    add("--adam_beta2", type=float, default=0.999)
    add("--adam_epsilon", type=float, default=1e-8)
    add(
        "--adam_weight_decay",
        type=float,
        default=0.0,
        help="of AdamW, which at 0 is Adam (default: %(default)s)",
    )
    add("--max_grad_norm", type=float, default=1.0, help="norm to which gradients are clipped; 0 for none")
    ema = "longest half-life of the weights' average, in images; of several the first is sampled and the others become variants"
    add("--ema_halflife", type=float, nargs="+", default=[500_000.0], help=ema)
    add(
        "--ema_width",
        type=float,
        nargs="+",
        default=[],
        help="widths of EDM2's power-function averages, such as 0.05 0.1",
    )
    add(
        "--ema_snapshot_steps",
        type=int,
        default=1000,
        help="optimisation steps between their snapshots in ema/",
    )
    add("--gradient_checkpointing", action="store_true", help="compute activations twice to keep fewer")
    add("--compile", action="store_true", help="compile the network")
    add("--P_mean", type=float, default=-1.2, help="mean of ln(sigma) (default: %(default)s)")
    add("--P_std", type=float, default=1.2, help="standard deviation of ln(sigma) (default: %(default)s)")
    add("--sigma_data", type=float, help="standard deviation of the data in [-1, 1] (default: measured)")
    add("--mixed_precision", choices=["no", "fp16", "bf16"], help="default: accelerate's configuration")
    add("--seed", type=int, default=0, help="seed of everything random (default: %(default)s)")

    add(
        "--max_train_time",
        type=float,
        help="minutes after which it saves a checkpoint and ends, as at SIGTERM and SIGINT",
    )
    add(
        "--checkpointing_steps",
        type=int,
        default=1000,
        help="optimisation steps between checkpoints; 0 for none",
    )
    add(
        "--checkpoints_total_limit",
        type=int,
        default=2,
        help="checkpoints to keep; 0 for all (default: %(default)s)",
    )
    add(
        "--resume_from_checkpoint",
        help="`latest` (with none there it starts afresh), or the path of a checkpoint-N",
    )
    add(
        "--logging_steps",
        type=int,
        default=50,
        help="optimisation steps between lines of log.jsonl (default: %(default)s)",
    )
    add(
        "--report_to", help="a tracker of accelerate besides log.jsonl, such as tensorboard, wandb or trackio"
    )
    add("--sample_steps", type=int, default=1000, help="optimisation steps between sample grids; 0 for none")
    add(
        "--fid_steps",
        type=int,
        default=0,
        help="optimisation steps between Fréchet distances; the best snapshot is kept in best/",
    )
    add("--fid_images", type=int, default=2000, help="images a Fréchet distance (default: %(default)s)")
    add(
        "--fid_features",
        default="fashion-mnist",
        help="features that it is over, as in pfgmpp evaluate (default: %(default)s)",
    )
    add(
        "--save_dtype",
        choices=["float32", "float16", "bfloat16"],
        default="float32",
        help="type of the saved weights",
    )
    add("--push_to_hub", action="store_true", help="upload the result")
    add(
        "--hub_model_id",
        help="repository to upload to (default: the name of the output folder, under your account)",
    )

    argv = sys.argv[1:] if argv is None else list(argv)
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--config")
    early.add_argument("--preset")
    early.add_argument("--pretrained_model_name_or_path")
    path = early.parse_known_args(argv)[0].config
    if path:
        try:
            argv = config_arguments(path) + argv  # what comes last counts
        except (OSError, ValueError, yaml.YAMLError) as error:
            parser.error(f"argument --config: {path} cannot be read: {error}")
    known = early.parse_known_args(argv)[0]
    preset = known.preset or ("fine-tuning" if known.pretrained_model_name_or_path else "cifar10-ncsnpp")
    own = OF_THE_NETWORK if known.pretrained_model_name_or_path else {}
    parser.set_defaults(preset=preset, **RECIPES.get(preset, {}) | own)
    args = parser.parse_args(argv)
    if (args.dataset_name is None) == (args.train_data_dir is None):
        parser.error("give one of --dataset_name and --train_data_dir")
    try:
        args.D = DimensionRange.parse(args.D) if args.D else None
    except ValueError as error:
        parser.error(f"argument --D: {error}")
    if args.pretrained_model_name_or_path:
        if args.sigma_data:
            parser.error("--sigma_data is that of the pretrained network, which cannot have another")
    elif args.new_classes:
        parser.error("--new_classes needs --pretrained_model_name_or_path")
    elif args.D and args.D.low != args.D.high and not args.d_conditioning:
        parser.error(f"--D {args.D} is a range, which needs --d_conditioning")
    if args.report_to and args.report_to not in [str(tracker) for tracker in get_available_trackers()]:
        parser.error(
            f"--report_to {args.report_to}: accelerate finds no such tracker; is its package installed?"
        )
    try:
        [power_of_width(width) for width in args.ema_width]
    except ValueError as error:
        parser.error(f"argument --ema_width: {error}")
    if not 0 <= args.augment <= 1:
        parser.error(f"--augment must lie in [0, 1], but is {args.augment:g}")
    if args.reference_batch_size and (args.class_conditional or args.augment):
        parser.error(
            "--reference_batch_size needs --augment 0 and no --class_conditional: its field is that of the images as they are"
        )
    return args


def build_model(args, data, pretrained):
    """
    The network, its scheduler, the names of its classes (empty for none), and the D that it is
    told, None for one that is not.
    """
    if pretrained:
        names = choose_classes(pretrained, data.class_names, args.class_conditional, args.new_classes)
        num_classes = len(names) if args.new_classes else None
        unet = adapt_network(pretrained.unet, num_classes, args.label_dropout, args.d_conditioning)
        dimensions = args.D or trained_range(pretrained)
        if dimensions.low != dimensions.high and not unet.config.get("d_conditioning"):
            raise ValueError(f"is of one D, and --D {dimensions} is a range, which needs --d_conditioning.")
    else:
        names, dimensions = data.class_names if args.class_conditional else [], args.D
        unet = PFGMPPUNet2DModel.from_preset(
            args.preset,
            sample_size=args.resolution,
            in_channels=data.channels,
            out_channels=data.channels,
            label_dim=len(names),
            label_dropout=args.label_dropout,
            augment_dim=Augmentation.num_labels if args.augment else 0,
            d_conditioning=args.d_conditioning,
        )
    told = bool(unet.config.get("d_conditioning"))
    options = {"D": args.D.middle} if args.D else {}  # what is not given a pretrained scheduler has
    options |= {"D_range": (dimensions.low, dimensions.high)} if told else {}
    options |= {} if args.max_noise_norm is None else {"max_noise_norm": args.max_noise_norm}
    if pretrained:
        scheduler = PFGMPPScheduler.from_config(pretrained.scheduler.config, **options)
    else:
        scheduler = PFGMPPScheduler(sigma_data=args.sigma_data or round(data.sigma_data(), 4), **options)
    return unet, scheduler, names, dimensions if told else None


def sample_grid(args, step):
    """Where the picture of a step is kept."""
    return Path(args.output_dir) / "samples" / f"step-{step:07d}.png"


def save_samples(pipeline, args, step, write):
    """
    Draws a grid with the weights as they are, from the same noise each time: one column a class
    where there are classes. All processes draw, for the network may be sharded, and one writes.
    """
    columns = pipeline.num_classes or 8
    labels = [i % columns for i in range(4 * columns)] if pipeline.num_classes else None
    generators = [torch.Generator().manual_seed(seed) for seed in range(4 * columns)]
    images = pipeline(batch_size=len(generators), class_labels=labels, generator=generators).images
    if not write:
        return
    path = sample_grid(args, step)
    path.parent.mkdir(parents=True, exist_ok=True)
    make_image_grid(images, rows=4, cols=columns).save(path)


def gathered(accelerator, unet, pipeline):
    """
    The pipeline with the whole network as it is, whose weights may be sharded; None but on the main
    process.
    """
    state = accelerator.get_state_dict(unet)
    if not accelerator.is_main_process:
        return None
    config = {
        name: value for name, value in pipeline.unet.config.items() if name != "_name_or_path"
    }  # where it came from
    whole = type(pipeline.unet).from_config(config)
    whole.load_state_dict(state)
    return PFGMPPPipeline(whole.eval(), pipeline.scheduler, id2label=pipeline.config.id2label)


def best_distance(args):
    """The least Fréchet distance of the run so far, over the same features and as many images."""
    path = Path(args.output_dir, "best", "distance.json")
    best = json.loads(path.read_text()) if path.is_file() else {}
    same = (best.get("features"), best.get("num_images")) == (args.fid_features, args.fid_images)
    return best["frechet_distance"] if same else math.inf


def keep_best(pipeline, args, step, distance):
    """Puts the pipeline into `best/`."""
    measured = {"frechet_distance": distance, "features": args.fid_features, "num_images": args.fid_images}
    with replace_folder(Path(args.output_dir, "best")) as best:
        pipeline.save_pretrained(best)
        (best / "distance.json").write_text(json.dumps({**measured, "step": step}))


def memory_in_use(device):
    """GiB that the process holds: on the GPU, where there is one, at most."""
    used = torch.cuda.max_memory_allocated() if device.type == "cuda" else psutil.Process().memory_info().rss
    return round(used / 2**30, 2)


def hardware_name(device):
    """What the run runs on, for the card."""
    return torch.cuda.get_device_name() if device.type == "cuda" else f"a CPU with {os.cpu_count()} cores"


def load_pretrained(args, accelerator):
    """The pipeline to fine-tune."""
    name = args.pretrained_model_name_or_path
    try:
        with accelerator.main_process_first():
            pipeline = DiffusionPipeline.from_pretrained(name)
    except (ValueError, OSError) as error:
        raise SystemExit(f"{name} cannot be loaded: {error}") from None
    if not isinstance(pipeline, PFGMPPPipeline):
        raise SystemExit(
            f"{name} is a {type(pipeline).__name__}: pfgmpp convert --from-diffusers makes a PFGMPPPipeline of a DDPM."
        )
    size = pipeline.unet.config.sample_size
    if args.resolution not in (None, size):
        raise SystemExit(
            f"--resolution {args.resolution}: the network of {name} is for {size}×{size} pixels."
        )
    args.resolution = size
    return pipeline


def load_data(args, accelerator, channels):
    """The images, turned into `channels` channels, or as they are where that is None."""
    source = args.dataset_name or args.train_data_dir
    reading = {
        "image_column": args.image_column,
        "label_column": args.label_column,
        "num_workers": args.dataloader_num_workers,
    }
    try:
        with accelerator.main_process_first():
            dataset = load_dataset(
                source, args.dataset_config_name, split=args.split, streaming=args.streaming
            )
            own = ImageDecoder(dataset, args.resolution, **reading).channels
            reading |= {"strict": args.strict, "channels": channels or own}
            if args.streaming:
                data = ImageStream(dataset, args.resolution, args.shuffle_window, **reading)
            else:
                data = load_images(dataset, args.resolution, **reading)
            digest = data.digest()
    except (ValueError, OSError) as error:
        raise SystemExit(f"The data set {source} cannot be used: {error}") from None
    if args.class_conditional and data.class_names is None:
        raise SystemExit(
            f"--class_conditional needs a class column, but {source} has only {list(dataset.features)}."
        )
    if own != data.channels:
        kinds = {1: "grey", 3: "colour"}
        accelerator.print(
            f"The images of {source} are {kinds[own]}; they are made {kinds[data.channels]}, as the network is."
        )
    return data, {"name": f"{source}, split {args.split}", "digest": digest}


def open_run_or_end(args, identity):
    """The checkpoints to go on from; ends where the folder or one of them is not this run's."""
    inputs = (
        args.pretrained_model_name_or_path,
        args.train_data_dir,
        args.dataset_name,
        args.resume_from_checkpoint,
    )
    try:
        if args.overwrite_output_dir:
            if args.resume_from_checkpoint == "latest":
                raise ValueError(
                    "--overwrite_output_dir removes what --resume_from_checkpoint latest goes on from: give one."
                )
            for path in inputs:
                if lies_in(path, args.output_dir):
                    raise ValueError(
                        f"--overwrite_output_dir: {path}, which the run needs, lies in the folder."
                    )
        return open_run(args.output_dir, identity, args.resume_from_checkpoint, args.overwrite_output_dir)
    except (ValueError, OSError) as error:
        raise SystemExit(str(error)) from None


def main():
    args = parse_args()
    trackers = [JSONLTracker(args.output_dir), *([args.report_to] if args.report_to else [])]
    accelerator = Accelerator(
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        mixed_precision=args.mixed_precision,
        log_with=trackers,
        project_config=ProjectConfiguration(
            project_dir=args.output_dir, logging_dir=os.path.join(args.output_dir, "logs")
        ),
    )
    device, rank, world = accelerator.device, accelerator.process_index, accelerator.num_processes
    set_seed(args.seed)  # the same weights everywhere
    images_per_pass = args.train_batch_size * world
    images_per_step = images_per_pass * args.gradient_accumulation_steps
    total_images = args.max_train_steps * images_per_step

    # Whose the folder is, before anything takes long
    saved = {**vars(args), "D": args.D and str(args.D), "config": None, "resume_from_checkpoint": "latest"}
    saved["overwrite_output_dir"] = False
    identity = identify_run(args, images_per_step)
    open_run_or_end(args, identity)
    if args.lr_warmup_steps is not None:
        args.lr_warmup_images = args.lr_warmup_steps * images_per_step
    if args.lr_warmup_images > total_images / 2:
        accelerator.print(
            f"The learning rate warms up over {args.lr_warmup_images:,.0f} images, and the run has {total_images:,}: little is"
            " learned before its end (see --lr_warmup_images, --max_train_steps)."
        )

    # Data, network, scheduler, loss
    source, pretrained = args.dataset_name or args.train_data_dir, None
    if args.pretrained_model_name_or_path:
        pretrained = load_pretrained(args, accelerator)
        identity["pretrained model"] = {
            "name": args.pretrained_model_name_or_path,
            "digest": digest_weights(pretrained),
        }
        if args.preset != "fine-tuning":
            accelerator.print(
                f"--preset {args.preset} gives the recipe alone: the network is the pretrained one."
            )
    elif args.preset == "fine-tuning":
        raise SystemExit("--preset fine-tuning needs --pretrained_model_name_or_path.")
    data, identity["data"] = load_data(args, accelerator, pretrained and pretrained.unet.config.in_channels)
    try:
        unet, scheduler, class_names, dimensions = build_model(args, data, pretrained)
    except ValueError as error:
        whose = (
            f"The network of {args.pretrained_model_name_or_path}"
            if pretrained
            else f"--preset {args.preset}:"
        )
        raise SystemExit(f"{whose} {error}") from None
    identity["--D"] = str(dimensions or f"{scheduler.config.D or math.inf:g}")
    checkpoints = open_run_or_end(args, identity)
    run = {**identity, "--max_train_steps": args.max_train_steps}
    if args.augment and unet.config.get("augment_dim") != Augmentation.num_labels:
        accelerator.print(
            f"{args.pretrained_model_name_or_path} takes no augmentation labels: training without --augment."
        )
        args.augment = 0.0
    if args.reference_batch_size and class_names:
        raise SystemExit(
            "--reference_batch_size needs a network without classes: its field is that of all images."
        )
    augmentation = Augmentation(args.augment) if args.augment else None
    loss_function = PFGMPPLoss(scheduler, P_mean=args.P_mean, P_std=args.P_std, dimensions=dimensions)
    weighting = UncertaintyWeighting() if args.uncertainty_weighting else None

    # Optimisation
    if device.type == "cpu":
        unet.to(memory_format=torch.channels_last)  # what the CPU's convolutions are fastest in
    if args.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    if args.compile:
        unet.compile()
    optimizer = torch.optim.AdamW(
        [*unet.parameters(), *(weighting.parameters() if weighting else [])],
        lr=args.learning_rate,
        betas=(args.adam_beta1, args.adam_beta2),
        eps=args.adam_epsilon,
        weight_decay=args.adam_weight_decay,
        fused=True,
    )
    schedule = {
        "schedule": args.lr_scheduler,
        "total_images": args.max_train_steps * images_per_step,
        "warmup_images": args.lr_warmup_images,
        "decay_images": args.lr_decay_images,
    }
    if accelerator.state.deepspeed_plugin:
        accelerator.state.deepspeed_plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = (
            args.train_batch_size
        )
    unet, optimizer = accelerator.prepare(unet, optimizer)
    trained = list(unet.parameters())
    if weighting:
        weighting = accelerator.prepare(weighting)
        trained += weighting.parameters()
    models = [unet, weighting] if weighting else [unet]
    averages = [
        HalfLifeEMA(unet.parameters(), batch_size=images_per_step, halflife=value)
        for value in args.ema_halflife
    ]
    powers = [PowerFunctionEMA(unet.parameters(), width) for width in args.ema_width]
    accelerator.register_for_checkpointing(*averages, *powers)
    ema, names = averages[0], [name for name, _ in accelerator.unwrap_model(unet).named_parameters()]

    pipeline = PFGMPPPipeline(
        accelerator.unwrap_model(unet),
        scheduler,
        id2label=dict(enumerate(class_names)) or None,
    )
    pipeline.set_progress_bar_config(disable=True)
    try:
        frechet_distance = (
            FrechetDistance(data, args.fid_images, args.fid_features, accelerator) if args.fid_steps else None
        )
    except (OSError, ValueError) as error:
        raise SystemExit(f"--fid_steps: {error}") from None

    # Resume
    step, data_state = 0, None
    while checkpoints:
        checkpoint = checkpoints.pop()
        try:
            step, data_state = load_checkpoint(accelerator, checkpoint)
        except ValueError as error:
            if not checkpoints:
                raise SystemExit(f"{error}. It cannot be resumed from.") from None
            accelerator.print(f"{error}. The one before it is used.")
            continue
        accelerator.print(f"Resuming from {checkpoint}")
        before = read_run(checkpoint)
        if before is None:
            accelerator.print("It does not say of which run it is: it is taken for this one's.")
        elif (
            args.lr_scheduler in ("cosine", "linear") and before["--max_train_steps"] != args.max_train_steps
        ):
            accelerator.print(
                f"The learning rate falls to 0 at step {args.max_train_steps}, no longer at {before['--max_train_steps']}."
            )
        break
    accelerator.wait_for_everyone()  # who has not looked into the folder yet must find it as it was
    if accelerator.is_main_process:
        if args.overwrite_output_dir:
            remove_run(args.output_dir)
        Path(args.output_dir).mkdir(parents=True, exist_ok=True)
        write_run(args.output_dir, run)
        Path(args.output_dir, "arguments.yaml").write_text(yaml.safe_dump(saved))  # for --config
    (best,) = broadcast_object_list([best_distance(args)])
    accelerator.init_trackers("pfgmpp", config={name: str(value) for name, value in saved.items()})

    # What ends the loop early
    deadline = time.monotonic() + 60 * args.max_train_time if args.max_train_time else math.inf
    stop_requested = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: stop_requested.append(number))

    # The loop. What is random in a step depends on the seed and the step alone and is drawn for all
    # processes and passes at once, of which each takes its part: neither their number nor a restart
    # changes anything.
    rng = torch.Generator(device)
    batch_size = max(args.train_batch_size, (args.reference_batch_size or 0) // world)
    batches = prefetch(
        data.batches(batch_size, args.seed, rank, world, *([] if data_state is None else [data_state]))
    )
    meter, nonfinite, stopped, logs = LossMeter(args.P_mean, args.P_std, device), 0, False, {}
    clock, clock_step = time.monotonic(), step

    def due(interval):
        return bool(interval) and (step % interval == 0 or step == args.max_train_steps)

    progress = tqdm(
        total=args.max_train_steps,
        initial=step,
        desc="Training",
        disable=not accelerator.is_local_main_process,
    )
    unet.train()
    while step < args.max_train_steps and not stopped:
        rng.manual_seed(derive_seed(args.seed, "step", step))
        torch.manual_seed(derive_seed(args.seed, "dropout", step, rank))
        shape = (images_per_step, data.channels, args.resolution, args.resolution)
        perturbation = loss_function.draw(shape, rng, device)
        transforms = augmentation.draw(images_per_step, rng, device) if augmentation else None
        flips = (
            torch.rand(images_per_step, 1, 1, 1, generator=rng, device=device) < 0.5
            if args.random_flip
            else None
        )
        for index in range(args.gradient_accumulation_steps):
            part = slice(index * images_per_pass + rank, (index + 1) * images_per_pass, world)
            try:
                batch, data_state = next(batches)
            except (
                ValueError
            ) as error:  # a stream with a broken image and --strict, or without one that can be read
                raise SystemExit(f"The data set {source} cannot be used: {error}") from None
            with accelerator.accumulate(*models):
                images = batch["images"].to(device, torch.float32) / 127.5 - 1
                references = accelerator.gather(images) if args.reference_batch_size else None
                images = images[: args.train_batch_size]
                conditioning = {"class_labels": batch["class_labels"].to(device)} if class_names else {}
                if flips is not None:
                    images = torch.where(flips[part], images.flip(-1), images)
                if augmentation:
                    images, conditioning["augment_labels"] = augmentation(images, transforms[part])
                loss = loss_function(unet, images, perturbation[part], references, **conditioning)
                meter.add(loss, perturbation[part].sigma)
                if weighting:
                    loss = weighting(loss, perturbation[part].sigma)
                accelerator.backward(loss.mean())
                if accelerator.sync_gradients:
                    if accelerator.scaler is None:  # fp16 skips such a step and lowers its scale
                        nonfinite += replace_nonfinite_gradients(trained)
                    grad_norm = accelerator.clip_grad_norm_(trained, args.max_grad_norm or math.inf)
                    for group in optimizer.param_groups:
                        group["lr"] = args.learning_rate * learning_rate_factor(
                            images=step * images_per_step, **schedule
                        )
                optimizer.step()
                optimizer.zero_grad()

        step += 1
        for average in averages + powers:
            average.step(unet.parameters())
        progress.update()

        if due(args.logging_steps):
            logs = meter.read(accelerator) | {"lr": optimizer.param_groups[0]["lr"]}
            logs |= (
                {} if grad_norm is None else {"grad_norm": float(grad_norm)}
            )  # DeepSpeed may keep it to itself
            logs["images_per_second"] = (step - clock_step) * images_per_step / (time.monotonic() - clock)
            logs["memory_gib"] = memory_in_use(device)
            logs |= {"nonfinite_gradients": nonfinite} if nonfinite else {}
            accelerator.log({**logs, "images": step * images_per_step}, step=step)
            shown = {"loss": "loss", "images_per_second": "images/s", "memory_gib": "GiB"}
            progress.set_postfix({name: f"{logs[key]:.3g}" for key, name in shown.items()})
        if due(args.sample_steps) or due(args.fid_steps):
            ema.store(unet.parameters())
            ema.copy_to(unet.parameters())
            unet.eval()
            if due(args.sample_steps):
                save_samples(pipeline, args, step, accelerator.is_main_process)
            if due(args.fid_steps):
                distance = frechet_distance(pipeline, args.train_batch_size)
                accelerator.log({"frechet_distance": distance}, step=step)
                if distance < best:
                    best, whole = distance, gathered(accelerator, unet, pipeline)
                    if whole:
                        keep_best(whole, args, step, distance)
            unet.train()
            ema.restore(unet.parameters())
        if due(args.ema_snapshot_steps):
            for power in powers:
                power.save_snapshot(args.output_dir, step, names, accelerator.is_main_process)
        if due(args.logging_steps) or due(args.sample_steps) or due(args.fid_steps):
            clock, clock_step = time.monotonic(), step

        if stop_requested or time.monotonic() > deadline:
            accelerator.set_trigger()
        stopped = accelerator.check_trigger() and step < args.max_train_steps  # on any process
        if stopped or due(args.checkpointing_steps):
            try:
                save_checkpoint(
                    accelerator, args.output_dir, step, data_state, args.checkpoints_total_limit, run
                )
            except OSError as error:
                raise SystemExit(str(error)) from None
    progress.close()
    if stopped:
        accelerator.print(f"Stopped after step {step}; --resume_from_checkpoint latest goes on.")
        accelerator.end_training()
        return

    # The result: a pipeline folder with the averaged weights
    for average in reversed(averages):  # the first last, so that it stays
        average.copy_to(unet.parameters())
        whole = gathered(accelerator, unet, pipeline)
        if whole is None:
            continue
        if args.save_dtype != "float32":
            whole.to(getattr(torch, args.save_dtype))
        if average is ema:
            whole.save_pretrained(args.output_dir)
        else:
            whole.unet.save_pretrained(
                os.path.join(args.output_dir, "unet"), variant=f"ema{average.halflife:.0f}"
            )
    if accelerator.is_main_process:
        grid = sample_grid(args, step)
        if grid.is_file():
            shutil.copyfile(grid, Path(args.output_dir) / "samples.png")
        images_seen, local = step * images_per_step, Path(source).exists()
        base = describe_base(args.pretrained_model_name_or_path) if pretrained else {}
        origin = ORIGIN.format(
            images=images_seen,
            source=Path(source).resolve().name if local else source,
            steps=step,
            hardware=f"{world} × {hardware_name(device)}" if world > 1 else hardware_name(device),
            loss=f"{logs['loss']:.4g}" if logs else "not logged",
            halflife=min(ema.halflife, ema.rampup * images_seen),
            base=BASE.format(name=base["base_model"], licence=base.get("license", "not stated"))
            if base
            else "",
            command=format_command("accelerate launch train_accelerate.py", sys.argv[1:]),
        )
        write_model_card(args.output_dir, whole, origin, **base, **({} if local else {"datasets": [source]}))
        print(json.dumps({"output_dir": args.output_dir, "steps": step, "images": images_seen}))
        if args.push_to_hub:
            try:
                print(push_to_hub(args.output_dir, args.hub_model_id or Path(args.output_dir).resolve().name))
            except ValueError as error:
                raise SystemExit(f"{args.output_dir} is complete, but: {error}") from None
    accelerator.end_training()


if __name__ == "__main__":
    main()
