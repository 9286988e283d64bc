#!/usr/bin/env python
# Copyright 2026 The pipeline_pfgmpp authors. Licensed under the Apache License, Version 2.0.
"""
Train PFGM++ for any augmented dimension D on a Hugging Face data set, on whatever `accelerate` runs on:

    accelerate launch train_accelerate.py --dataset_name cifar10 --preset cifar10-ncsnpp --D 2048 \\
        --output_dir outputs/cifar10 --max_train_steps 400000

The result is a pipeline folder: `DiffusionPipeline.from_pretrained("outputs/cifar10")`.
"""

import argparse
import json
import math
import sys
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import set_seed
from diffusers import ModelMixin

from pipeline_pfgmpp import PFGMPPPipeline, PFGMPPUNet2DModel
from pipeline_pfgmpp.commands.extras import check_modules
from pipeline_pfgmpp.data import ImageDataset, ImageStream
from pipeline_pfgmpp.generation import list_classes
from pipeline_pfgmpp.hub import push_to_hub
from pipeline_pfgmpp.latents import get_factor
from pipeline_pfgmpp.preconditioning import PRECONDITIONINGS
from pipeline_pfgmpp.records.commands import format_command
from pipeline_pfgmpp.records.digests import digest_network, digest_weights
from pipeline_pfgmpp.records.errors import is_out_of_memory
from pipeline_pfgmpp.training import (
    INHERITED,
    RECIPES,
    SCHEDULES,
    TUNING,
    Augmentation,
    DimensionRange,
    RunRecord,
    Trainer,
    TrainingConfig,
    adapt_network,
    choose_autoencoder,
    choose_classes,
    create_accelerator,
    identify_run,
    is_inside,
    load_pretrained,
    open_run,
    read_trained_range,
)
from pipeline_pfgmpp.training.arguments import (
    check_arguments,
    check_effects,
    check_file,
    check_ranges,
    format_arguments,
    list_names,
    read_config,
)
from pipeline_pfgmpp.training.config import MIXED_PRECISIONS, SAVE_DTYPES
from pipeline_pfgmpp.training.inputs import (
    add_data_arguments,
    format_size,
    load_data,
    load_validation_data,
)
from pipeline_pfgmpp.training.objective import (
    OBJECTIVES,
    add_objective_arguments,
    build_scheduler,
    create_loss,
    load_teacher,
)
from pipeline_pfgmpp.training.run import find_checkpoint


def add_network_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("network").add_argument
    add(
        "--preset",
        choices=sorted(RECIPES),
        help="network and recipe, which other arguments override; with a pretrained network, only the recipe"
        " (default: cifar10-ncsnpp, or with a pretrained network the recipe of the objective)",
    )
    add(
        "--pretrained_model_name_or_path",
        help="pipeline folder or Hub id to fine-tune; its network, classes, size and D are kept by default",
    )
    add(
        "--new_classes",
        action="store_true",
        help="replace the classes of the pretrained network by those of the data, or by none",
    )
    add(
        "--vae_model_name_or_path",
        help="autoencoder whose latents the network learns, for large images: its folder or Hub id, or those"
        " of a pipeline with a `vae` (default: that of the pretrained network, or none)",
    )
    add(
        "--D",
        default="2048",
        help="augmented dimension: any number from 0.5, or inf; with --d_conditioning a range such as 16:inf"
        " (default: 2048, or that of the pretrained network)",
    )
    add(
        "--d_conditioning",
        action="store_true",
        help="condition the network on D: one network for a range of D",
    )
    add(
        "--max_noise_norm",
        type=float,
        help="norm to which longer noise is shortened, in units of the square root of the data dimension;"
        " PFGM (D = 1) needs it",
    )
    add(
        "--class_conditional",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="condition the network on the classes of the data (default: as the preset)",
    )
    add(
        "--label_dropout",
        type=float,
        default=0.0,
        help="probability of training without the class, for classifier-free guidance (default: %(default)s)",
    )
    add("--dropout", type=float, help="dropout (default: as the preset, or that of the pretrained network)")
    add(
        "--sigma_max",
        type=float,
        help="noise level where sampling begins; large images need more, and --P_mean more by as much in"
        " logarithms (default: as the preset, 80, or that of the pretrained network)",
    )
    add("--sigma_data", type=float, help="standard deviation of the data in [-1, 1] (default: measured)")
    add(
        "--preconditioning",
        choices=PRECONDITIONINGS,
        help="t-edm scales by the variance of Student-t noise, for D above 2 (default: edm, or that of the"
        " pretrained network)",
    )
    add("--gradient_checkpointing", action="store_true", help="compute activations twice to store fewer")
    add("--compile", action="store_true", help="compile the network")


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("training").add_argument
    add("--max_train_steps", type=int, required=True, help="length of the training, in optimisation steps")
    add("--max_train_time", type=float, help="minutes after which to save a checkpoint and stop")
    add("--train_batch_size", type=int, help="images per process and forward pass (default: as the preset)")
    add(
        "--gradient_accumulation_steps",
        type=int,
        help="forward passes per optimisation step (default: %(default)s)",
    )
    add("--learning_rate", type=float, help="Adam's step size (default: as the preset)")
    add(
        "--lr_scheduler",
        choices=SCHEDULES,
        help="schedule after the warm-up (default: as the preset, or constant)",
    )
    add("--lr_warmup_steps", type=int, help="linear warm-up, in optimisation steps")
    add("--lr_warmup_images", type=float, help="linear warm-up, in images (default: as the preset)")
    add("--lr_decay_images", type=float, help="images after which inverse_sqrt falls (default: %(default)s)")
    add("--adam_beta1", type=float, help="decay of the mean of the gradients (default: %(default)s)")
    add("--adam_beta2", type=float, help="decay of the mean of their squares (default: %(default)s)")
    add("--adam_epsilon", type=float, help="Adam's epsilon (default: %(default)s)")
    add("--adam_weight_decay", type=float, help="decoupled weight decay, as in AdamW (default: %(default)s)")
    add(
        "--max_grad_norm",
        type=float,
        help="norm to which gradients are clipped; 0 for none (default: as the preset, or 1)",
    )
    add(
        "--nonfinite_patience",
        type=int,
        help="steps in a row with a loss of NaN or infinity after which to stop (default: %(default)s)",
    )
    add("--mixed_precision", choices=MIXED_PRECISIONS, help="(default: accelerate's configuration)")
    add("--seed", type=int, help="seed of everything random (default: %(default)s)")


def add_average_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("moving averages of the weights").add_argument
    add(
        "--ema_halflife",
        type=float,
        nargs="+",
        help="longest half-lives, in images; samples and result use the first, the others become variants"
        " (default: 500000)",
    )
    add(
        "--ema_rampup",
        type=float,
        help="half-life at first, as a fraction of the images seen so far (default: as the preset, or 0.05)",
    )
    add(
        "--ema_width",
        type=float,
        nargs="+",
        help="widths of EDM2's power-function averages, such as 0.05 0.1 (default: none)",
    )
    add(
        "--ema_snapshot_steps",
        type=int,
        help="optimisation steps between snapshots of power-function averages (default: %(default)s)",
    )


def add_output_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("output").add_argument
    add(
        "--output_dir",
        required=True,
        help="folder for the pipeline, its checkpoints, its log and its sample grids",
    )
    add(
        "--overwrite_output_dir",
        action="store_true",
        help="remove what another run left in the folder once this one begins",
    )
    add(
        "--checkpointing_steps",
        type=int,
        help="optimisation steps between checkpoints; 0 for none (default: %(default)s)",
    )
    add("--checkpoints_total_limit", type=int, help="checkpoints to keep; 0 for all (default: %(default)s)")
    add(
        "--resume_from_checkpoint",
        help="`latest`, which starts afresh if there is no checkpoint; or a checkpoint-N, by its path or its"
        " name in the output folder",
    )
    add(
        "--logging_steps",
        type=int,
        help="optimisation steps between lines of log.jsonl; 0 for none (default: %(default)s)",
    )
    add(
        "--report_to",
        help="a tracker of accelerate in addition to log.jsonl, such as tensorboard, wandb or trackio",
    )
    add(
        "--sample_steps",
        type=int,
        help="optimisation steps between sample grids; 0 for none (default: %(default)s)",
    )
    add(
        "--fid_steps",
        type=int,
        help="optimisation steps between Fréchet distances; the best network is kept in best/; 0 for none"
        " (default: %(default)s)",
    )
    add("--fid_images", type=int, help="images per Fréchet distance (default: %(default)s)")
    add(
        "--fid_num_inference_steps",
        type=int,
        nargs="+",
        help="numbers of steps to measure Fréchet distances at; the first decides which network is the best"
        " (default: the pipeline's own)",
    )
    add("--fid_features", help="features to compare, as in pfgmpp evaluate (default: %(default)s)")
    add("--save_dtype", choices=SAVE_DTYPES, help="type of the saved weights (default: %(default)s)")
    add("--push_to_hub", action="store_true", help="upload the result")
    add(
        "--hub_model_id",
        help="repository to upload to (default: the name of the output folder, under your account)",
    )


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--config",
        help="YAML file of arguments by name; it overrides the preset, and the command line overrides it",
    )
    add_network_arguments(parser)
    add_data_arguments(parser)
    add_objective_arguments(parser)
    add_training_arguments(parser)
    add_average_arguments(parser)
    add_output_arguments(parser)
    settings = {field.name: field.default for field in fields(TrainingConfig) if field.default is not MISSING}
    parser.set_defaults(**settings)
    return parser


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line over the file of arguments, over the preset, over the defaults."""
    parser = build_parser()
    argv = sys.argv[1:] if argv is None else list(argv)
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("--config", "--preset", "--pretrained_model_name_or_path", "--objective"):
        early.add_argument(name)
    path = early.parse_known_args(argv)[0].config
    config: dict[str, Any] = {}
    if path:
        try:
            config = read_config(path)
        except (OSError, ValueError, yaml.YAMLError) as error:
            parser.error(f"argument --config: {path} cannot be read: {error}")
    file_argv = format_arguments(config, parser)
    known = early.parse_known_args(file_argv + argv)[0]  # the last one counts
    inherited = INHERITED if known.pretrained_model_name_or_path else {}
    preset = known.preset or choose_preset(bool(inherited), known.objective)
    recipe = RECIPES.get(preset, {})
    objective = OBJECTIVES.get(known.objective or recipe.get("objective", "perturbation"), {})
    defaults = objective | recipe | inherited
    parser.set_defaults(preset=preset, **defaults)
    args = parser.parse_args(file_argv + argv)
    # The file that a run leaves holds all arguments; only those that are not the default are meant.
    changed = {name for name in list_names(file_argv) if getattr(args, name) != parser.get_default(name)}
    try:
        args.D = None if args.D is None else DimensionRange.parse(args.D)
    except ValueError as error:
        parser.error(f"argument --D: {error}")
    try:
        check_file(config, defaults, list_names(file_argv + argv))
        check_arguments(args)
        check_ranges(args)
        build_config(args)
        check_effects(args, list_names(argv) | changed)
    except ValueError as error:
        parser.error(str(error))
    if args.crop_size is not None:
        args.resolution = args.crop_size
    return args


def choose_preset(is_pretrained: bool, objective: str | None) -> str:
    """Choose the preset of a command line that names none."""
    if not is_pretrained:
        return "cifar10-ncsnpp"
    return {"consistency": "consistency-tuning", "matching": "matching"}.get(objective or "", "fine-tuning")


def build_config(args: argparse.Namespace) -> TrainingConfig:
    """Build the settings of the loop from the arguments of the same names."""
    return TrainingConfig(**{field.name: getattr(args, field.name) for field in fields(TrainingConfig)})


def load_model(args: argparse.Namespace, accelerator: Accelerator) -> PFGMPPPipeline | None:
    """Load the pipeline to fine-tune, if there is one, and take over its resolution."""
    name = args.pretrained_model_name_or_path
    if name is None:
        return None
    pipeline = load_pretrained(name, accelerator)
    if pipeline.guidance_unet is not None:
        accelerator.print(f"The guiding network of {name} is not trained, and will not be in the result.")
    height, width = pipeline.image_size
    size = height if height == width else (height, width)
    if args.resolution not in (None, size):
        option = "resolution" if args.crop_size is None else "crop_size"
        raise ValueError(
            f"--{option} is {format_size(args.resolution)}, but the network of {name} is for"
            f" {height}x{width} pixels: give that, or train a new network."
        )
    channels = pipeline.image_channels
    if args.channels not in (None, channels):
        raise ValueError(
            f"--channels is {args.channels}, but the network of {name} takes {channels}: leave it out, or"
            " train a new network."
        )
    args.resolution = size
    args.channels = channels
    if args.condition_column:
        taken = getattr(pipeline, "condition_channels", None)
        if args.condition_channels not in (None, taken):
            raise ValueError(f"--condition_channels must be {taken}, which {name} takes, or be left out.")
        args.condition_channels = taken
    if args.preset not in TUNING:
        accelerator.print(f"--preset {args.preset} only gives the recipe: the network is the pretrained one.")
    return pipeline


def check_resolution(args: argparse.Namespace, vae: ModelMixin | None) -> None:
    """Raise an error, before data are loaded, if the new network cannot take images of that size."""
    factor = get_factor(vae)
    sides = [args.resolution] if isinstance(args.resolution, int) else args.resolution
    try:
        if any(side % factor for side in sides):
            raise ValueError(f"the autoencoder needs sides that {factor} divides.")
        size = [side // factor for side in sides]
        with torch.device("meta"):
            PFGMPPUNet2DModel.from_preset(args.preset, sample_size=size if len(size) == 2 else size[0])
    except ValueError as error:
        name = "resolution" if args.crop_size is None else "crop_size"
        raise ValueError(
            f"--{name} is {format_size(args.resolution)}, which --preset {args.preset} cannot take: {error}"
        ) from None


def build_network(args: argparse.Namespace, data: ImageDataset | ImageStream) -> tuple[ModelMixin, list[str]]:
    """Build a new network, and name its classes, if it has any."""
    class_names = (data.class_names or []) if args.class_conditional else []
    height, width = data.size
    unet = PFGMPPUNet2DModel.from_preset(
        args.preset,
        sample_size=height if height == width else (height, width),
        in_channels=data.channels,
        out_channels=data.channels,
        condition_channels=data.condition_channels,
        label_dim=len(class_names),
        label_dropout=args.label_dropout,
        augment_dim=Augmentation.num_labels if args.augment else 0,
        d_conditioning=args.d_conditioning,
        **({} if args.dropout is None else {"dropout": args.dropout}),
    )
    return unet, class_names


def adapt_pretrained(
    args: argparse.Namespace, data: ImageDataset | ImageStream, pretrained: PFGMPPPipeline
) -> tuple[ModelMixin, list[str], DimensionRange]:
    """Adapt the pretrained network to the data, name its classes, and find the range of its D."""
    try:
        class_names = choose_classes(pretrained, data.class_names, args.class_conditional, args.new_classes)
        num_classes = len(class_names) if args.new_classes else None
        unet = adapt_network(
            pretrained.unet, num_classes, args.label_dropout, args.d_conditioning, args.dropout
        )
        for name in ("label_dropout", "label_column", "balance_classes"):
            if getattr(args, name) and not class_names:
                raise ValueError(f"has no classes, so that --{name} would have no effect: leave it out.")
        dimensions = args.D or read_trained_range(pretrained)
        if dimensions.low != dimensions.high and not unet.config.get("d_conditioning"):
            raise ValueError(
                f"is for a single D, but --D {dimensions} is a range, which needs --d_conditioning."
            )
    except ValueError as error:
        raise ValueError(f"The network of {args.pretrained_model_name_or_path} {error}") from None
    return unet, class_names, dimensions


def check_inputs(args: argparse.Namespace) -> None:
    """Raise an error if there are no data, or if --overwrite_output_dir would remove what the run needs."""
    if args.train_data_dir is not None and not Path(args.train_data_dir).is_dir():
        raise ValueError(
            f"--train_data_dir {args.train_data_dir}: there is no such folder; --dataset_name takes a data"
            " set on the Hub."
        )
    if not args.overwrite_output_dir:
        return
    if args.resume_from_checkpoint == "latest":
        raise ValueError(
            "--overwrite_output_dir removes the checkpoints that --resume_from_checkpoint latest looks for."
        )
    needed = [args.pretrained_model_name_or_path, args.teacher_model_name_or_path]
    needed += [args.vae_model_name_or_path, args.train_data_dir, args.dataset_name]
    if args.resume_from_checkpoint:
        needed.append(find_checkpoint(args.resume_from_checkpoint, args.output_dir))
    for path in needed:
        if is_inside(path, args.output_dir):
            raise ValueError(f"--overwrite_output_dir would remove {path}, which the run needs.")


def warn_of_long_warmup(config: TrainingConfig, images_per_step: int, accelerator: Accelerator) -> None:
    """Tell if the warm-up takes more than half of the run."""
    warmup = config.count_warmup_images(images_per_step)
    total = config.max_train_steps * images_per_step
    if warmup > total / 2:
        accelerator.print(
            f"The learning rate warms up over {warmup:,.0f} images, but the run has only {total:,}: it will"
            " learn little (see --lr_warmup_images and --max_train_steps)."
        )


def describe_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """Describe the arguments for `arguments.yaml`, with which `--config` resumes the run."""
    changed = {
        "D": args.D and str(args.D),
        "resolution": format_size(args.resolution),
        "crop_size": format_size(args.crop_size),
        "config": None,
        "resume_from_checkpoint": "latest",
        "overwrite_output_dir": False,
    }
    return vars(args) | changed


def train(args: argparse.Namespace) -> None:
    config = build_config(args)
    accelerator = create_accelerator(config)
    set_seed(args.seed)  # the same initial weights in all processes
    images_per_step = config.train_batch_size * config.gradient_accumulation_steps * accelerator.num_processes
    source = args.dataset_name or args.train_data_dir
    record = RunRecord(
        identity=identify_run(vars(args), images_per_step),
        arguments=describe_arguments(args),
        source=source,
        dataset_id=None if Path(source).exists() else source,
        pretrained=args.pretrained_model_name_or_path,
        teacher=args.teacher_model_name_or_path,
        autoencoder=args.vae_model_name_or_path,
        command=format_command("accelerate launch train_accelerate.py", sys.argv[1:]),
    )
    # May the run use the folder? The trainer asks again once it knows data and network.
    check_inputs(args)
    open_run(args.output_dir, record.identity, args.resume_from_checkpoint, args.overwrite_output_dir)
    warn_of_long_warmup(config, images_per_step, accelerator)

    pretrained = load_model(args, accelerator)
    vae = choose_autoencoder(args, accelerator, pretrained)
    if vae is not None:
        name = args.vae_model_name_or_path or args.pretrained_model_name_or_path
        record.identity["autoencoder"] = {"name": name, "digest": digest_network(vae)}
    if pretrained is None:
        check_resolution(args, vae)
    data, record.identity["data"] = load_data(args, accelerator, pretrained, vae)
    validation_data = load_validation_data(args, accelerator, pretrained, data, vae)
    if pretrained:
        record.identity["pretrained model"] = {
            "name": record.pretrained,
            "digest": digest_weights(pretrained),
        }
        unet, class_names, dimensions = adapt_pretrained(args, data, pretrained)
    else:
        dimensions = args.D
        unet, class_names = build_network(args, data)
    if not unet.config.get("d_conditioning"):
        dimensions = None
    # Said before the first step, which may be more than a machine can do.
    batch = f"{images_per_step:,} images per step"
    accelerator.print(f"Preset {args.preset}: {unet.num_parameters():,} parameters, {batch}.")
    scheduler = build_scheduler(args, data, pretrained, dimensions, accelerator)
    teacher = load_teacher(args, accelerator, data, class_names)
    if teacher:
        name = args.teacher_model_name_or_path
        record.identity["teacher"] = {"name": name, "digest": digest_weights(teacher)}
    record.identity["--D"] = str(dimensions or f"{scheduler.config.D or math.inf:g}")
    record.identity["--preconditioning"] = scheduler.config.preconditioning

    trainer = Trainer(
        unet,
        scheduler,
        data,
        config,
        class_names=class_names,
        trained_classes=list_classes(pretrained) if pretrained and not args.new_classes else (),
        dimensions=dimensions,
        loss=create_loss(args, unet, scheduler, dimensions, teacher),
        accelerator=accelerator,
        record=record,
        validation_data=validation_data,
    )
    trainer.run()
    if accelerator.is_main_process and not trainer.stopped:
        summary = {"output_dir": args.output_dir, "steps": trainer.global_step, "images": trainer.images_seen}
        print(json.dumps(summary))
        if args.push_to_hub:
            push(args)


def push(args: argparse.Namespace) -> None:
    repository = args.hub_model_id or Path(args.output_dir).resolve().name
    try:
        print(push_to_hub(args.output_dir, repository))
    except ValueError as error:
        raise ValueError(f"{args.output_dir} is complete, but: {error}") from None


def main() -> None:
    args = parse_args()
    try:
        check_modules("train", "train_accelerate.py")
        train(args)
    except (FloatingPointError, OSError, ValueError) as error:
        raise SystemExit(str(error)) from None
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise SystemExit(
            "There is not enough memory: use a smaller --train_batch_size with more"
            " --gradient_accumulation_steps, or --gradient_checkpointing."
        ) from None


if __name__ == "__main__":
    main()
