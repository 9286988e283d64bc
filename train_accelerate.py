#!/usr/bin/env python
# Copyright 2026 The pipeline_pfgmpp authors. Licensed under the Apache License, Version 2.0.
"""
Trains PFGM++ for any augmented dimension D on a Hugging Face data set, on whatever `accelerate` runs on:

    accelerate launch train_accelerate.py --dataset_name cifar10 --preset cifar10-ncsnpp --D 2048 --output_dir outputs/cifar10

The result is a pipeline folder: `DiffusionPipeline.from_pretrained("outputs/cifar10")`.
"""

import argparse
import json
import math
import os
import shlex
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
from pipeline_pfgmpp.cards import write_model_card
from pipeline_pfgmpp.hub import push_to_hub
from pipeline_pfgmpp.training import (
    RECIPES,
    SCHEDULES,
    Augmentation,
    DimensionRange,
    FrechetDistance,
    HalfLifeEMA,
    ImageStream,
    JSONLTracker,
    LossMeter,
    PFGMPPLoss,
    PowerFunctionEMA,
    UncertaintyWeighting,
    derived_seed,
    learning_rate_factor,
    list_checkpoints,
    load_checkpoint,
    load_images,
    power_of_width,
    prefetch,
    replace_nonfinite_gradients,
    save_checkpoint,
)


ORIGIN = """## Training

{images:,} images of `{source}` in {steps:,} optimisation steps, on {hardware}; loss {loss}. The saved weights are the
exponential moving average with a half-life of {halflife:,.0f} images.

```bash
accelerate launch {command}
```
"""


def config_arguments(path):
    """A YAML file of arguments by name as what a command line would say."""
    config = yaml.safe_load(Path(path).read_text())
    if not isinstance(config, dict):
        raise ValueError("it is no list of `name: value`")
    arguments = []
    for name, value in config.items():
        if value is True:
            arguments += [f"--{name}"]
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

    add("--config", help="YAML file of arguments by name; the command line overrides it, as it does the preset")
    add("--preset", choices=sorted(RECIPES), default="cifar10-ncsnpp", help="network and recipe; other arguments override it")
    add(
        "--pretrained_model_name_or_path",
        help="pipeline folder or Hub id to fine-tune: its network, not the preset's",
    )
    add("--D", default="2048", help="augmented dimension, any number above 0, or inf; with --d_conditioning a range, 16:inf")
    add("--d_conditioning", action="store_true", help="tell the network D: one network for every D of the range")
    add("--max_noise_norm", type=float, help="norm, in units of √N, that longer noise is shortened to; PFGM, D = 1, needs one")
    add("--reference_batch_size", type=int, help="aim at the field of this many images, over all processes, not at one image")
    classes = "condition the network on the data set's classes (default: the preset's)"
    add("--class_conditional", action=argparse.BooleanOptionalAction, default=False, help=classes)
    add("--label_dropout", type=float, default=0.0, help="probability of training without the class, for guidance")
    add("--uncertainty_weighting", action="store_true", help="weigh noise levels by a learned uncertainty, as EDM2 does")

    add("--dataset_name", help="data set of the Hub, or a local folder of images or parquet files")
    add("--dataset_config_name", help="configuration of the data set")
    add("--train_data_dir", help="local folder of images or parquet files")
    add("--split", default="train", help="split to train on (default: %(default)s)")
    add("--image_column", help="column of the images (default: found)")
    add("--label_column", help="column of the classes (default: found)")
    add("--resolution", type=int, help="height and width in pixels")
    add("--streaming", action="store_true", help="read the data set while training instead of decoding it first")
    add("--shuffle_window", type=int, default=10_000, help="images of a stream shuffled at a time (default: %(default)s)")
    add("--strict", action="store_true", help="let a broken image end the run; otherwise it is named and skipped")
    add("--dataloader_num_workers", type=int, default=4, help="threads that decode images (default: %(default)s)")
    add("--random_flip", action="store_true", help="mirror images at random")
    add("--augment", type=float, default=0.0, help="probability of each non-leaking transform (default: the preset's)")

    add("--output_dir", required=True, help="folder for the pipeline, its checkpoints and sample grids")
    add("--train_batch_size", type=int, help="images a process and forward pass")
    add("--gradient_accumulation_steps", type=int, default=1, help="forward passes an optimisation step")
    add("--max_train_steps", type=int, required=True, help="optimisation steps")
    add("--learning_rate", type=float, help="Adam's step size")
    add("--lr_scheduler", choices=SCHEDULES, default="constant", help="after the warm-up (default: %(default)s)")
    add("--lr_warmup_steps", type=int, help="optimisation steps of linear warm-up (default: see the next)")
    add("--lr_warmup_images", type=float, help="the same in images (default: the preset's)")
    add("--lr_decay_images", type=float, default=35_000_000, help="where inverse_sqrt begins to fall (default: %(default)s)")
    add("--adam_beta1", type=float, default=0.9)
    add("--adam_beta2", type=float, default=0.999)
    add("--adam_epsilon", type=float, default=1e-8)
    add("--adam_weight_decay", type=float, default=0.0, help="of AdamW, which at 0 is Adam (default: %(default)s)")
    add("--max_grad_norm", type=float, default=1.0, help="norm to which gradients are clipped; 0 for none")
    ema = "longest half-life of the weights' average, in images; of several the first is sampled and the others become variants"
    add("--ema_halflife", type=float, nargs="+", default=[500_000.0], help=ema)
    add("--ema_width", type=float, nargs="+", default=[], help="widths of EDM2's power-function averages, such as 0.05 0.1")
    add("--ema_snapshot_steps", type=int, default=1000, help="optimisation steps between their snapshots in ema/")
    add("--gradient_checkpointing", action="store_true", help="compute activations twice to keep fewer")
    add("--compile", action="store_true", help="compile the network")
    add("--P_mean", type=float, default=-1.2, help="mean of ln(sigma) (default: %(default)s)")
    add("--P_std", type=float, default=1.2, help="standard deviation of ln(sigma) (default: %(default)s)")
    add("--sigma_data", type=float, help="standard deviation of the data in [-1, 1] (default: measured)")
    add("--mixed_precision", choices=["no", "fp16", "bf16"], help="default: accelerate's configuration")
    add("--seed", type=int, default=0, help="seed of everything random (default: %(default)s)")

    add("--max_train_time", type=float, help="minutes after which it saves a checkpoint and ends, as at SIGTERM and SIGINT")
    add("--checkpointing_steps", type=int, default=1000, help="optimisation steps between checkpoints; 0 for none")
    add("--checkpoints_total_limit", type=int, default=2, help="checkpoints to keep; 0 for all (default: %(default)s)")
    add("--resume_from_checkpoint", help="`latest` (with none there it starts afresh), or the path of a checkpoint-N")
    add("--logging_steps", type=int, default=50, help="optimisation steps between lines of log.jsonl (default: %(default)s)")
    add("--report_to", help="a tracker of accelerate besides log.jsonl, such as tensorboard, wandb or trackio")
    add("--sample_steps", type=int, default=1000, help="optimisation steps between sample grids; 0 for none")
    add(
        "--fid_steps",
        type=int,
        default=0,
        help="optimisation steps between Fréchet distances; the best snapshot is kept in best/",
    )
    add("--fid_images", type=int, default=2000, help="images a Fréchet distance (default: %(default)s)")
    add(
        "--fid_features", default="fashion-mnist", help="features that it is over, as in pfgmpp evaluate (default: %(default)s)"
    )
    add("--save_dtype", choices=["float32", "float16", "bfloat16"], default="float32", help="type of the saved weights")
    add("--push_to_hub", action="store_true", help="upload the result")
    add("--hub_model_id", help="repository to upload to (default: the name of the output folder, under your account)")

    argv = sys.argv[1:] if argv is None else list(argv)
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--config")
    early.add_argument("--preset", default=parser.get_default("preset"))
    path = early.parse_known_args(argv)[0].config
    if path:
        try:
            argv = config_arguments(path) + argv  # what comes last counts
        except (OSError, ValueError, yaml.YAMLError) as error:
            parser.error(f"argument --config: {path} cannot be read: {error}")
    parser.set_defaults(**RECIPES.get(early.parse_known_args(argv)[0].preset, {}))
    args = parser.parse_args(argv)
    if (args.dataset_name is None) == (args.train_data_dir is None):
        parser.error("give one of --dataset_name and --train_data_dir")
    try:
        args.D = DimensionRange.parse(args.D)
    except ValueError as error:
        parser.error(f"argument --D: {error}")
    if args.D.low != args.D.high and not args.d_conditioning:
        parser.error(f"--D {args.D} is a range, which needs --d_conditioning")
    if args.report_to and args.report_to not in [str(tracker) for tracker in get_available_trackers()]:
        parser.error(f"--report_to {args.report_to}: accelerate finds no such tracker; is its package installed?")
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


def sample_grid(args, step):
    """Where the picture of a step is kept."""
    return Path(args.output_dir) / "samples" / f"step-{step:07d}.png"


def save_samples(pipeline, args, step, write):
    """
    Draws a grid with the weights as they are, from the same noise each time: one column a class where there are classes. All
    processes draw, for the network may be sharded, and one writes.
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
    """The pipeline with the whole network as it is, whose weights may be sharded; None but on the main process."""
    state = accelerator.get_state_dict(unet)
    if not accelerator.is_main_process:
        return None
    whole = type(pipeline.unet).from_config(pipeline.unet.config)
    whole.load_state_dict(state)
    return PFGMPPPipeline(whole.eval(), pipeline.scheduler, id2label=pipeline.config.id2label)


def best_distance(output_dir):
    """The least Fréchet distance of the run so far."""
    path = Path(output_dir, "best", "distance.json")
    return json.loads(path.read_text())["frechet_distance"] if path.is_file() else math.inf


def keep_best(pipeline, output_dir, step, distance):
    """Puts the pipeline into `best/`."""
    best, partial = Path(output_dir, "best"), Path(output_dir, ".best.partial")
    pipeline.save_pretrained(partial)
    (partial / "distance.json").write_text(json.dumps({"frechet_distance": distance, "step": step}))
    shutil.rmtree(best, ignore_errors=True)
    os.replace(partial, best)


def memory_in_use(device):
    """GiB that the process holds: on the GPU, where there is one, at most."""
    used = torch.cuda.max_memory_allocated() if device.type == "cuda" else psutil.Process().memory_info().rss
    return round(used / 2**30, 2)


def hardware_name(device):
    """What the run runs on, for the card."""
    return torch.cuda.get_device_name() if device.type == "cuda" else f"a CPU with {os.cpu_count()} cores"


def main():
    args = parse_args()
    trackers = [JSONLTracker(args.output_dir), *([args.report_to] if args.report_to else [])]
    accelerator = Accelerator(
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        mixed_precision=args.mixed_precision,
        log_with=trackers,
        project_config=ProjectConfiguration(project_dir=args.output_dir, logging_dir=os.path.join(args.output_dir, "logs")),
    )
    device, rank, world = accelerator.device, accelerator.process_index, accelerator.num_processes
    set_seed(args.seed)  # the same weights everywhere

    pretrained = None
    if args.pretrained_model_name_or_path:
        try:
            with accelerator.main_process_first():
                pretrained = DiffusionPipeline.from_pretrained(args.pretrained_model_name_or_path)
        except (ValueError, OSError) as error:
            raise SystemExit(f"{args.pretrained_model_name_or_path} cannot be loaded: {error}") from None
        args.resolution = pretrained.unet.config.sample_size

    # Data
    source = args.dataset_name or args.train_data_dir
    reading = {"image_column": args.image_column, "label_column": args.label_column}
    reading |= {"strict": args.strict, "num_workers": args.dataloader_num_workers}
    try:
        with accelerator.main_process_first():
            dataset = load_dataset(source, args.dataset_config_name, split=args.split, streaming=args.streaming)
            if args.streaming:
                data = ImageStream(dataset, args.resolution, args.shuffle_window, **reading)
            else:
                data = load_images(dataset, args.resolution, **reading)
            sigma_data = args.sigma_data or (None if pretrained else round(data.sigma_data(), 4))  # a network has its own
    except (ValueError, OSError) as error:
        raise SystemExit(f"The data set {source} cannot be used: {error}") from None
    if args.class_conditional and data.class_names is None:
        raise SystemExit(f"--class_conditional needs a class column, but {source} has only {list(dataset.features)}.")

    # Network, scheduler, loss
    channels, num_classes = data.channels, len(data.class_names) if args.class_conditional else 0
    own = {"D": args.D.middle}
    if args.max_noise_norm is not None:  # a network has its own
        own["max_noise_norm"] = args.max_noise_norm
    if pretrained:
        unet, scheduler = pretrained.unet, PFGMPPScheduler.from_config(pretrained.scheduler.config, **own)
        if (unet.config.in_channels, pretrained.num_classes) != (channels, num_classes):
            raise SystemExit(
                f"The network of {args.pretrained_model_name_or_path} has {unet.config.in_channels} channels and"
                f" {pretrained.num_classes} classes, but the data have {channels} and {num_classes} (see --class_conditional)."
            )
    else:
        unet = PFGMPPUNet2DModel.from_preset(
            args.preset,
            sample_size=args.resolution,
            in_channels=channels,
            out_channels=channels,
            label_dim=num_classes,
            label_dropout=args.label_dropout,
            augment_dim=Augmentation.num_labels if args.augment else 0,
            d_conditioning=args.d_conditioning,
        )
        scheduler = PFGMPPScheduler(sigma_data=sigma_data, **own)
    if args.d_conditioning and not unet.config.get("d_conditioning"):
        if not isinstance(unet, PFGMPPUNet2DModel):
            raise SystemExit(f"The network of {args.pretrained_model_name_or_path} cannot be told D (see --d_conditioning).")
        known = unet.state_dict()
        unet = PFGMPPUNet2DModel.from_config(unet.config, d_conditioning=True)  # the new layer begins at zero
        unet.load_state_dict(known, strict=False)
    if args.augment and unet.config.get("augment_dim") != Augmentation.num_labels:
        accelerator.print(f"{args.pretrained_model_name_or_path} takes no augmentation labels: training without --augment.")
        args.augment = 0.0
    augmentation = Augmentation(args.augment) if args.augment else None
    loss_function = PFGMPPLoss(
        scheduler, P_mean=args.P_mean, P_std=args.P_std, dimensions=args.D if args.d_conditioning else None
    )
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
    images_per_pass = args.train_batch_size * world
    images_per_step = images_per_pass * args.gradient_accumulation_steps
    if args.lr_warmup_steps is not None:
        args.lr_warmup_images = args.lr_warmup_steps * images_per_step
    schedule = {
        "schedule": args.lr_scheduler,
        "total_images": args.max_train_steps * images_per_step,
        "warmup_images": args.lr_warmup_images,
        "decay_images": args.lr_decay_images,
    }
    if accelerator.state.deepspeed_plugin:
        accelerator.state.deepspeed_plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = args.train_batch_size
    unet, optimizer = accelerator.prepare(unet, optimizer)
    trained = list(unet.parameters())
    if weighting:
        weighting = accelerator.prepare(weighting)
        trained += weighting.parameters()
    models = [unet, weighting] if weighting else [unet]
    averages = [HalfLifeEMA(unet.parameters(), batch_size=images_per_step, halflife=value) for value in args.ema_halflife]
    powers = [PowerFunctionEMA(unet.parameters(), width) for width in args.ema_width]
    accelerator.register_for_checkpointing(*averages, *powers)
    ema, names = averages[0], [name for name, _ in accelerator.unwrap_model(unet).named_parameters()]

    pipeline = PFGMPPPipeline(
        accelerator.unwrap_model(unet),
        scheduler,
        id2label=dict(enumerate(data.class_names)) if args.class_conditional else None,
    )
    pipeline.set_progress_bar_config(disable=True)
    try:
        frechet_distance = FrechetDistance(data, args.fid_images, args.fid_features, accelerator) if args.fid_steps else None
    except (OSError, ValueError) as error:
        raise SystemExit(f"--fid_steps: {error}") from None
    (best,) = broadcast_object_list([best_distance(args.output_dir)])

    # Resume
    step, data_state = 0, None
    if args.resume_from_checkpoint:
        latest = args.resume_from_checkpoint == "latest"
        checkpoints = list_checkpoints(args.output_dir) if latest else [Path(args.resume_from_checkpoint)]
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
            break
    saved = {**vars(args), "D": str(args.D), "config": None, "resume_from_checkpoint": "latest"}
    if accelerator.is_main_process:
        Path(args.output_dir).mkdir(parents=True, exist_ok=True)
        Path(args.output_dir, "arguments.yaml").write_text(yaml.safe_dump(saved))  # for --config
    accelerator.init_trackers("pfgmpp", config={name: str(value) for name, value in saved.items()})

    # What ends the loop early
    deadline = time.monotonic() + 60 * args.max_train_time if args.max_train_time else math.inf
    stop_requested = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: stop_requested.append(number))

    # The loop. What is random in a step depends on the seed and the step alone and is drawn for all processes and passes at
    # once, of which each takes its part: neither their number nor a restart changes anything.
    rng = torch.Generator(device)
    batch_size = max(args.train_batch_size, (args.reference_batch_size or 0) // world)
    batches = prefetch(data.batches(batch_size, args.seed, rank, world, *([] if data_state is None else [data_state])))
    meter, nonfinite, stopped, logs = LossMeter(args.P_mean, args.P_std, device), 0, False, {}
    clock, clock_step = time.monotonic(), step

    def due(interval):
        return bool(interval) and (step % interval == 0 or step == args.max_train_steps)

    progress = tqdm(total=args.max_train_steps, initial=step, desc="Training", disable=not accelerator.is_local_main_process)
    unet.train()
    while step < args.max_train_steps and not stopped:
        rng.manual_seed(derived_seed(args.seed, "step", step))
        torch.manual_seed(derived_seed(args.seed, "dropout", step, rank))
        shape = (images_per_step, channels, args.resolution, args.resolution)
        perturbation = loss_function.draw(shape, rng, device)
        transforms = augmentation.draw(images_per_step, rng, device) if augmentation else None
        flips = torch.rand(images_per_step, 1, 1, 1, generator=rng, device=device) < 0.5 if args.random_flip else None
        for index in range(args.gradient_accumulation_steps):
            part = slice(index * images_per_pass + rank, (index + 1) * images_per_pass, world)
            try:
                batch, data_state = next(batches)
            except ValueError as error:  # a stream with a broken image and --strict, or without one that can be read
                raise SystemExit(f"The data set {source} cannot be used: {error}") from None
            with accelerator.accumulate(*models):
                images = batch["images"].to(device, torch.float32) / 127.5 - 1
                references = accelerator.gather(images) if args.reference_batch_size else None
                images = images[: args.train_batch_size]
                conditioning = {"class_labels": batch["class_labels"].to(device)} if args.class_conditional else {}
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
                        group["lr"] = args.learning_rate * learning_rate_factor(images=step * images_per_step, **schedule)
                optimizer.step()
                optimizer.zero_grad()

        step += 1
        for average in averages + powers:
            average.step(unet.parameters())
        progress.update()

        if due(args.logging_steps):
            logs = meter.read(accelerator) | {"lr": optimizer.param_groups[0]["lr"]}
            logs |= {} if grad_norm is None else {"grad_norm": float(grad_norm)}  # DeepSpeed may keep it to itself
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
                        keep_best(whole, args.output_dir, step, distance)
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
                save_checkpoint(accelerator, args.output_dir, step, data_state, args.checkpoints_total_limit)
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
            whole.unet.save_pretrained(os.path.join(args.output_dir, "unet"), variant=f"ema{average.halflife:.0f}")
    if accelerator.is_main_process:
        grid = sample_grid(args, step)
        if grid.is_file():
            shutil.copyfile(grid, Path(args.output_dir) / "samples.png")
        images_seen = step * images_per_step
        write_model_card(
            args.output_dir,
            whole,
            ORIGIN.format(
                images=images_seen,
                source=source,
                steps=step,
                hardware=f"{world} × {hardware_name(device)}" if world > 1 else hardware_name(device),
                loss=f"{logs['loss']:.4g}" if logs else "not logged",
                halflife=args.ema_halflife[0],
                command=shlex.join(sys.argv),
            ),
        )
        print(json.dumps({"output_dir": args.output_dir, "steps": step, "images": images_seen}))
        if args.push_to_hub:
            try:
                print(push_to_hub(args.output_dir, args.hub_model_id or Path(args.output_dir).resolve().name))
            except ValueError as error:
                raise SystemExit(f"{args.output_dir} is complete, but: {error}") from None
    accelerator.end_training()


if __name__ == "__main__":
    main()
