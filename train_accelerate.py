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

import torch
import yaml
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.utils import ProjectConfiguration, set_seed
from datasets import load_dataset
from diffusers import DiffusionPipeline
from diffusers.optimization import get_scheduler
from diffusers.utils import make_image_grid
from safetensors import SafetensorError
from tqdm.auto import tqdm

from pipeline_pfgmpp import PFGMPPPipeline, PFGMPPScheduler, PFGMPPUNet2DModel
from pipeline_pfgmpp.hub import write_model_card
from pipeline_pfgmpp.training import (
    RECIPES,
    Augmentation,
    DimensionRange,
    HalfLifeEMA,
    PFGMPPLoss,
    load_images,
    replace_nonfinite_gradients,
)


ORIGIN = """## Training

{:,} images of `{}`; the saved weights are the exponential moving average.

```bash
accelerate launch {}
```
"""


def config_arguments(path):
    """A YAML file of arguments by name as what a command line would say."""
    config = yaml.safe_load(Path(path).read_text())
    if not isinstance(config, dict):
        raise ValueError("it is no list of `name: value`")
    given = {name: value for name, value in config.items() if value is not None and value is not False}
    return [f"--{name}" if value is True else f"--{name}={value}" for name, value in given.items()]


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
    add("--reference_batch_size", type=int, help="aim at the field of this many images, over all processes, not at one image")
    classes = "condition the network on the data set's classes (default: the preset's)"
    add("--class_conditional", action=argparse.BooleanOptionalAction, default=False, help=classes)
    add("--label_dropout", type=float, default=0.0, help="probability of training without the class, for guidance")

    add("--dataset_name", help="data set of the Hub, or a local folder of images or parquet files")
    add("--dataset_config_name", help="configuration of the data set")
    add("--train_data_dir", help="local folder of images or parquet files")
    add("--split", default="train", help="split to train on (default: %(default)s)")
    add("--image_column", help="column of the images (default: found)")
    add("--label_column", help="column of the classes (default: found)")
    add("--resolution", type=int, help="height and width in pixels")
    add("--random_flip", action="store_true", help="mirror images at random")
    add("--augment", type=float, default=0.0, help="probability of each non-leaking transform (default: the preset's)")

    add("--output_dir", required=True, help="folder for the pipeline, its checkpoints and sample grids")
    add("--train_batch_size", type=int, help="images a process and forward pass")
    add("--gradient_accumulation_steps", type=int, default=1, help="forward passes an optimisation step")
    add("--max_train_steps", type=int, required=True, help="optimisation steps")
    add("--learning_rate", type=float, help="Adam's step size")
    add("--lr_scheduler", default="constant_with_warmup", help="schedule of diffusers.optimization (default: %(default)s)")
    add("--lr_warmup_steps", type=int, default=200, help="optimisation steps of linear warm-up (default: %(default)s)")
    add("--lr_warmup_images", type=float, help="the same in images; it goes before --lr_warmup_steps (default: the preset's)")
    add("--adam_beta1", type=float, default=0.9)
    add("--adam_beta2", type=float, default=0.999)
    add("--adam_epsilon", type=float, default=1e-8)
    add("--max_grad_norm", type=float, default=1.0, help="norm to which gradients are clipped; 0 for none")
    add("--ema_halflife", type=float, default=500_000, help="longest half-life of the weights' average, in images")
    add("--P_mean", type=float, default=-1.2, help="mean of ln(sigma) (default: %(default)s)")
    add("--P_std", type=float, default=1.2, help="standard deviation of ln(sigma) (default: %(default)s)")
    add("--sigma_data", type=float, help="standard deviation of the data in [-1, 1] (default: measured)")
    add("--mixed_precision", choices=["no", "fp16", "bf16"], help="default: accelerate's configuration")
    add("--seed", type=int, default=0, help="seed of everything random (default: %(default)s)")

    add("--max_train_time", type=float, help="minutes after which it saves a checkpoint and ends, as at SIGTERM and SIGINT")

    add("--sample_steps", type=int, default=1000, help="optimisation steps between sample grids; 0 for none")
    add("--checkpointing_steps", type=int, default=1000, help="optimisation steps between checkpoints; 0 for none")
    add("--checkpoints_total_limit", type=int, default=2, help="checkpoints to keep; 0 for all (default: %(default)s)")
    add("--resume_from_checkpoint", help="`latest` (with none there it starts afresh), or the path of a checkpoint-N")
    add("--save_dtype", choices=["float32", "float16", "bfloat16"], default="float32", help="type of the saved weights")
    add("--report_to", help="tracker of accelerate, such as tensorboard or wandb")

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
    if not 0 <= args.augment <= 1:
        parser.error(f"--augment must lie in [0, 1], but is {args.augment:g}")
    if args.reference_batch_size and (args.class_conditional or args.augment):
        parser.error(
            "--reference_batch_size needs --augment 0 and no --class_conditional: its field is that of the images as they are"
        )
    return args


def step_of(checkpoint):
    """N of a folder `checkpoint-N`."""
    return int(checkpoint.name.removeprefix("checkpoint-"))


def list_checkpoints(output_dir):
    """The folders `checkpoint-N` of a run, oldest first."""
    return sorted(Path(output_dir).glob("checkpoint-*"), key=step_of)


def save_checkpoint(accelerator, args, step):
    """Writes `checkpoint-N` beside its place, moves it there, then removes what is over the limit."""
    final = Path(args.output_dir) / f"checkpoint-{step}"
    partial = final.with_name(f".{final.name}.partial")
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)  # what an interrupted run left
    accelerator.wait_for_everyone()
    try:
        accelerator.save_state(str(partial))
    except (OSError, RuntimeError, SafetensorError) as error:  # a full disk comes as any of them
        shutil.rmtree(partial, ignore_errors=True)
        raise SystemExit(
            f"The checkpoint of step {step} cannot be written, the ones before it are as they were: {error}"
        ) from None
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        shutil.rmtree(final, ignore_errors=True)
        os.replace(partial, final)
        for old in list_checkpoints(args.output_dir)[: -args.checkpoints_total_limit]:
            shutil.rmtree(old)


def sample_grid(args, step):
    """Where the picture of a step is kept."""
    return Path(args.output_dir) / "samples" / f"step-{step:07d}.png"


def save_samples(pipeline, args, step):
    """Draws a grid with the weights as they are, from the same noise each time: one column a class where there are classes."""
    columns = pipeline.num_classes or 8
    labels = [i % columns for i in range(4 * columns)] if pipeline.num_classes else None
    generators = [torch.Generator().manual_seed(seed) for seed in range(4 * columns)]
    images = pipeline(batch_size=len(generators), class_labels=labels, generator=generators).images
    path = sample_grid(args, step)
    path.parent.mkdir(parents=True, exist_ok=True)
    make_image_grid(images, rows=4, cols=columns).save(path)


def main():
    args = parse_args()
    accelerator = Accelerator(
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        mixed_precision=args.mixed_precision,
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True),
        log_with=args.report_to,
        project_config=ProjectConfiguration(project_dir=args.output_dir, logging_dir=os.path.join(args.output_dir, "logs")),
    )
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
    try:
        with accelerator.main_process_first():
            dataset = load_dataset(source, args.dataset_config_name, split=args.split)
            data = load_images(dataset, args.resolution, args.image_column, args.label_column)
    except (ValueError, OSError) as error:
        raise SystemExit(f"The data set {source} cannot be used: {error}") from None
    data.random_flip = args.random_flip
    if args.class_conditional and data.labels is None:
        raise SystemExit(f"--class_conditional needs a class column, but {source} has only {dataset.column_names}.")
    dataloader = torch.utils.data.DataLoader(
        data,
        batch_size=max(args.train_batch_size, (args.reference_batch_size or 0) // accelerator.num_processes),
        shuffle=True,
        drop_last=True,
        generator=torch.Generator().manual_seed(args.seed),  # so that starting an epoch takes nothing from the other draws
    )

    # Network, scheduler, loss
    channels, num_classes = data.images.shape[1], len(data.class_names) if args.class_conditional else 0
    if pretrained:
        unet, scheduler = pretrained.unet, PFGMPPScheduler.from_config(pretrained.scheduler.config, D=args.D.middle)
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
        scheduler = PFGMPPScheduler(D=args.D.middle, sigma_data=args.sigma_data or round(data.sigma_data(), 4))
    if args.d_conditioning and not unet.config.get("d_conditioning"):
        raise SystemExit(f"The network of {args.pretrained_model_name_or_path} is not conditioned on D (see --d_conditioning).")
    if args.augment and unet.config.get("augment_dim") != Augmentation.num_labels:
        accelerator.print(f"{args.pretrained_model_name_or_path} takes no augmentation labels: training without --augment.")
        args.augment = 0.0
    augmentation = Augmentation(args.augment) if args.augment else None
    loss_function = PFGMPPLoss(
        scheduler, P_mean=args.P_mean, P_std=args.P_std, dimensions=args.D if args.d_conditioning else None
    )

    # Optimisation
    optimizer = torch.optim.Adam(
        unet.parameters(), lr=args.learning_rate, betas=(args.adam_beta1, args.adam_beta2), eps=args.adam_epsilon
    )
    images_per_step = args.train_batch_size * args.gradient_accumulation_steps * accelerator.num_processes
    if args.lr_warmup_images is not None:
        args.lr_warmup_steps = round(args.lr_warmup_images / images_per_step)
    lr_scheduler = get_scheduler(
        args.lr_scheduler,
        optimizer,
        num_warmup_steps=args.lr_warmup_steps * accelerator.num_processes,
        num_training_steps=args.max_train_steps * accelerator.num_processes,
    )
    ema = HalfLifeEMA(unet.parameters(), batch_size=images_per_step, halflife=args.ema_halflife)
    ema.to(accelerator.device)
    unet, optimizer, dataloader, lr_scheduler = accelerator.prepare(unet, optimizer, dataloader, lr_scheduler)
    accelerator.register_for_checkpointing(ema)
    set_seed(args.seed, device_specific=True)  # other noise on each process

    pipeline = PFGMPPPipeline(
        accelerator.unwrap_model(unet),
        scheduler,
        id2label=dict(enumerate(data.class_names)) if args.class_conditional else None,
    )
    pipeline.set_progress_bar_config(disable=True)
    if args.report_to:
        accelerator.init_trackers("pfgmpp", config={k: v for k, v in {**vars(args), "D": str(args.D)}.items() if v is not None})

    # Resume
    step = 0
    if args.resume_from_checkpoint:
        latest = args.resume_from_checkpoint == "latest"
        checkpoints = list_checkpoints(args.output_dir) if latest else [Path(args.resume_from_checkpoint)]
        while checkpoints:
            checkpoint = checkpoints.pop()
            try:
                accelerator.load_state(str(checkpoint))
            except Exception as error:  # whatever a damaged file makes of itself
                if not checkpoints:
                    raise SystemExit(f"{checkpoint} is damaged and cannot be resumed from: {error}") from None
                accelerator.print(f"{checkpoint} is damaged, so the one before it is used: {error}")
                continue
            step = step_of(checkpoint)
            accelerator.print(f"Resuming from {checkpoint}")
            break
    passes_per_epoch = len(dataloader)
    if passes_per_epoch == 0:
        raise SystemExit(
            f"--train_batch_size {args.train_batch_size} is larger than the share of a process in {len(data)} images."
        )
    first_epoch, skipped = divmod(step * args.gradient_accumulation_steps, passes_per_epoch)

    # What ends the loop early
    deadline = time.monotonic() + 60 * args.max_train_time if args.max_train_time else math.inf
    stop_requested = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: stop_requested.append(number))

    # The loop
    nonfinite, stopped = 0, False
    progress = tqdm(total=args.max_train_steps, initial=step, desc="Training", disable=not accelerator.is_local_main_process)
    unet.train()
    for epoch in range(first_epoch, math.ceil(args.max_train_steps * args.gradient_accumulation_steps / passes_per_epoch)):
        dataloader.set_epoch(epoch)
        batches = accelerator.skip_first_batches(dataloader, skipped) if epoch == first_epoch and skipped else dataloader
        for batch in batches:
            with accelerator.accumulate(unet):
                conditioning = {"class_labels": batch["class_labels"]} if args.class_conditional else {}
                references = accelerator.gather(batch["images"]) if args.reference_batch_size else None
                images = batch["images"][: args.train_batch_size]
                if augmentation:
                    images, conditioning["augment_labels"] = augmentation(images)
                loss = loss_function(unet, images, references=references, **conditioning).mean()
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    if accelerator.scaler is None:  # fp16 skips such a step and lowers its scale
                        nonfinite += replace_nonfinite_gradients(unet.parameters())
                    if args.max_grad_norm:
                        accelerator.clip_grad_norm_(unet.parameters(), args.max_grad_norm)
                optimizer.step()
                lr_scheduler.step()
                optimizer.zero_grad()
            if not accelerator.sync_gradients:
                continue

            step += 1
            ema.step(unet.parameters())
            progress.update()
            logs = {"loss": loss.item(), "lr": lr_scheduler.get_last_lr()[0]}
            if nonfinite:
                logs["nonfinite_gradients"] = nonfinite
            progress.set_postfix(**{name: f"{value:.3g}" for name, value in logs.items()})
            accelerator.log(logs, step=step)

            last = step == args.max_train_steps
            if stop_requested or time.monotonic() > deadline:
                accelerator.set_trigger()
            stopped = accelerator.check_trigger() and not last  # on any process
            if accelerator.is_main_process and args.sample_steps and (step % args.sample_steps == 0 or last):
                ema.store(unet.parameters())
                ema.copy_to(unet.parameters())
                unet.eval()
                save_samples(pipeline, args, step)
                unet.train()
                ema.restore(unet.parameters())
            if stopped or (args.checkpointing_steps and (step % args.checkpointing_steps == 0 or last)):
                save_checkpoint(accelerator, args, step)
            if stopped or last:
                break
        if stopped:
            break
    progress.close()
    if stopped:
        accelerator.print(f"Stopped after step {step}; --resume_from_checkpoint latest goes on.")
        accelerator.end_training()
        return

    # The result: a pipeline folder with the averaged weights
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        ema.copy_to(unet.parameters())
        pipeline.unet.eval()
        pipeline.to(getattr(torch, args.save_dtype)).save_pretrained(args.output_dir)
        grid = sample_grid(args, step)
        if grid.is_file():
            shutil.copyfile(grid, Path(args.output_dir) / "samples.png")
        images_seen = step * images_per_step
        write_model_card(args.output_dir, pipeline, ORIGIN.format(images_seen, source, shlex.join(sys.argv)))
        print(json.dumps({"output_dir": args.output_dir, "steps": step, "images": images_seen}))
    accelerator.end_training()


if __name__ == "__main__":
    main()
