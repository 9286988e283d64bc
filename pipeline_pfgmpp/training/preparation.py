"""What a run is put together from, before its first step."""

import argparse
import datetime
import os
from collections.abc import Collection
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, DynamoBackend, InitProcessGroupKwargs, ProjectConfiguration
from diffusers import ModelMixin

from ..conditioning import get_sample_size
from ..data import ImageDataset, ImageStream
from ..data.images import describe_condition
from ..images import Standardization
from ..pipeline_pfgmpp import PFGMPPPipeline
from ..pipeline_pfgmpp_restoration import PFGMPPRestorationPipeline
from ..scheduling_pfgmpp import PFGMPPScheduler
from .augment import Augmentation
from .config import TrainingConfig
from .frechet import FrechetDistance
from .log import JSONLTracker
from .loss import PFGMPPLoss, UncertaintyWeighting


# The learning rate of a critic over that of the network, whose images it must keep up with
CRITIC_PACE = 4.0
# While the main process downloads, decodes and encodes the data, the others wait.
LONGEST_WAIT = datetime.timedelta(days=1)


def create_accelerator(config: TrainingConfig) -> Accelerator:
    """
    Create the `Accelerator` of a run, which logs to `log.jsonl` and to `config.report_to`.

    Args:
        config ([`TrainingConfig`]): The settings.

    Returns:
        `Accelerator`: The accelerator.

    Raises:
        ValueError: accelerate is configured for an Apple GPU, for DeepSpeed, for its own compilation, or for
            FSDP with `uncertainty_weighting`.
    """
    trackers: list[Any] = [JSONLTracker(config.output_dir)]
    if config.report_to:
        trackers.append(config.report_to)
    accelerator = Accelerator(
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        mixed_precision=config.mixed_precision,
        log_with=trackers,
        project_config=ProjectConfiguration(
            project_dir=str(config.output_dir), logging_dir=os.path.join(config.output_dir, "logs")
        ),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=LONGEST_WAIT)],
    )
    if accelerator.device.type == "mps":  # which draws no gamma variates and has no float64
        raise ValueError(
            "Training on an Apple GPU is not supported: give accelerate launch --cpu, or set"
            " ACCELERATE_USE_CPU=1."
        )
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        raise ValueError("accelerate is configured for DeepSpeed, which steps by itself: use FSDP instead.")
    if accelerator.distributed_type == DistributedType.FSDP and config.uncertainty_weighting:
        raise ValueError("accelerate is configured for FSDP, which cannot train `--uncertainty_weighting`.")
    if accelerator.state.dynamo_plugin.backend != DynamoBackend.NO:
        raise ValueError("accelerate is configured to compile (`dynamo_backend`): use `--compile` instead.")
    return accelerator


def name_classes(
    count: int, names: list[str] | None, data: ImageDataset | ImageStream, config: TrainingConfig
) -> list[str]:
    """
    Name the classes of a network.

    Args:
        count (`int`): Number of the network's classes.
        names (`list[str]`, *optional*): Their names; by default those of the data.
        data ([`ImageDataset`] or [`ImageStream`]): The images.
        config ([`TrainingConfig`]): The settings.

    Returns:
        `list[str]`: The names, empty for a network without classes.

    Raises:
        ValueError: There are more or fewer names than classes, or the settings allow no classes.
    """
    if names is None:
        names = (data.class_names or []) if count else []
    if len(names) != count:
        raise ValueError(f"The network has {count} classes, but {len(names)} class names are given.")
    if count and config.reference_batch_size:
        raise ValueError(
            "`reference_batch_size` needs a network without classes: its field is that of all images."
        )
    return names


def choose_offered_classes(
    names: list[str], data: ImageDataset | ImageStream, trained: Collection[int]
) -> dict[int, str] | None:
    """
    Choose the classes that the result offers: those that occur in training.

    Args:
        names (`list[str]`): The names of the network's classes.
        data ([`ImageDataset`] or [`ImageStream`]): The images.
        trained (`Collection[int]`): Classes that the network has learnt already.

    Returns:
        `dict[int, str]` or `None`: Their names by number; None for a network without classes.
    """
    if not names:
        return None
    offered = {*data.present_classes, *trained}
    return {label: name for label, name in enumerate(names) if label in offered}


def build_pipeline(unet: ModelMixin, scheduler: PFGMPPScheduler, **options: Any) -> PFGMPPPipeline:
    """
    Build the pipeline for a network: one that restores images if it is conditioned on them.

    Args:
        unet (`ModelMixin`): The network.
        scheduler ([`PFGMPPScheduler`]): The scheduler.
        options: Further arguments of the pipeline, such as `id2label`.

    Returns:
        [`PFGMPPPipeline`] or [`PFGMPPRestorationPipeline`]: The pipeline.
    """
    kind: Any = PFGMPPRestorationPipeline if unet.config.get("condition_channels") else PFGMPPPipeline
    return kind(unet, scheduler, **options)


def check_images(
    unet: ModelMixin, data: ImageDataset | ImageStream, config: TrainingConfig
) -> tuple[int, int, int]:
    """
    Check that the images are of the network's size and channels, and fit the settings.

    Args:
        unet (`ModelMixin`): The network.
        data ([`ImageDataset`] or [`ImageStream`]): The images or pairs.
        config ([`TrainingConfig`]): The settings.

    Returns:
        `tuple[int, int, int]`: The shape of the images, (channels, height, width).

    Raises:
        ValueError: They are not, or do not.
    """
    condition_channels = unet.config.get("condition_channels") or 0
    if data.condition_channels != condition_channels:
        raise ValueError(
            f"The data hold {describe_condition(data.condition_channels)}, but the network takes"
            f" {describe_condition(condition_channels)} (`condition_channels`)."
        )
    if condition_channels:
        if config.reference_batch_size:
            raise ValueError("`reference_batch_size` must be left out for pairs.")
        if config.fid_steps:
            raise ValueError(
                "`fid_steps` must be 0 for pairs: a network that restores images generates none of its own."
            )
    elif config.condition_dropout:
        raise ValueError("`condition_dropout` must be 0 without pairs, whose degraded images it leaves out.")
    if data.vae is not None:
        _check_latents(data, config)
    if isinstance(data.value_range, Standardization) and config.fid_steps:
        raise ValueError("`fid_steps` must be 0 for fields, which are no pictures.")
    if config.random_turn and data.size[0] != data.size[1]:
        raise ValueError(
            f"`random_turn` needs square images, but these have {'x'.join(map(str, data.size))} pixels."
        )
    channels = unet.config.in_channels
    if data.channels != channels:
        raise ValueError(f"The images have {data.channels} channels, but the network takes {channels}.")
    height, width = get_sample_size(unet)
    if data.size != (height, width):
        raise ValueError(
            f"The images have {'x'.join(map(str, data.size))} pixels, but the network is for"
            f" {height}x{width}."
        )
    return channels, height, width


def check_references(config: TrainingConfig, num_processes: int) -> None:
    """
    Check that the reference images are those of a pass of all processes, or more, in equal shares.

    Args:
        config ([`TrainingConfig`]): The settings.
        num_processes (`int`): Number of processes.

    Raises:
        ValueError: They are not.
    """
    count = config.reference_batch_size
    images_per_pass = config.train_batch_size * num_processes
    if count is None:
        return
    if count < images_per_pass:
        raise ValueError(
            f"`reference_batch_size` must be at least the {images_per_pass} images of a pass of all"
            f" processes, but is {count}."
        )
    if count % num_processes:
        raise ValueError(
            f"`reference_batch_size` must be a multiple of the {num_processes} processes, but is {count}."
        )


def _check_latents(data: ImageDataset | ImageStream, config: TrainingConfig) -> None:
    """Refuse to move latents, since a moved image has others."""
    for name in ("random_turn", "augment"):
        if getattr(config, name):
            raise ValueError(f"`{name}` must be left out for latents: a moved image has others.")
    if config.random_flip != data.flips:
        raise ValueError(
            f"`random_flip` is {config.random_flip}, but must be that of `load_latents`, {data.flips}:"
            " mirrored images have latents of their own."
        )


def create_augmentation(
    unet: ModelMixin, config: TrainingConfig, accelerator: Accelerator
) -> Augmentation | None:
    """
    Create the augmentation, if the settings ask for it and the network takes its labels.

    Args:
        unet (`ModelMixin`): The network.
        config ([`TrainingConfig`]): The settings.
        accelerator (`Accelerator`): Prints if the network takes no labels.

    Returns:
        [`Augmentation`] or `None`: The augmentation.
    """
    if not config.augment:
        return None
    if unet.config.get("augment_dim") != Augmentation.num_labels:
        accelerator.print("The network takes no augmentation labels: training without augmentation.")
        return None
    return Augmentation(config.augment)


def create_frechet_distance(
    data: ImageDataset | ImageStream, config: TrainingConfig, accelerator: Accelerator
) -> FrechetDistance | None:
    """
    Create the Fréchet distance, if the settings ask for it.

    Args:
        data ([`ImageDataset`] or [`ImageStream`]): The images.
        config ([`TrainingConfig`]): The settings.
        accelerator (`Accelerator`): The processes.

    Returns:
        [`FrechetDistance`] or `None`: The distance.

    Raises:
        ValueError: The features cannot be loaded, or are not of such images.
    """
    if not config.fid_steps:
        return None
    try:
        steps = config.fid_num_inference_steps
        return FrechetDistance(data, config.fid_images, config.fid_features, accelerator, steps)
    except (OSError, ValueError) as error:
        raise ValueError(f"`fid_features`: {error}") from None


def configure_network(
    unet: ModelMixin, config: TrainingConfig | argparse.Namespace, accelerator: Accelerator
) -> None:
    """
    Set how a network is computed.

    Args:
        unet (`ModelMixin`): The network, which is changed in place.
        config ([`TrainingConfig`] or `argparse.Namespace`): The settings.
        accelerator (`Accelerator`): What the network will run on.
    """
    if accelerator.device.type == "cpu" and accelerator.distributed_type != DistributedType.FSDP:
        unet.to(memory_format=torch.channels_last)  # the fastest layout there, which FSDP cannot shard
    if config.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    if config.compile:
        unet.compile()


def rebuild_network(unet: ModelMixin, state: dict[str, torch.Tensor]) -> ModelMixin:
    """
    Build a network anew on the CPU, without what was changed in the object.

    Args:
        unet (`ModelMixin`): The network.
        state (`dict[str, torch.Tensor]`): The weights that the new one is to have.

    Returns:
        `ModelMixin`: The new network, in float32 and in evaluation mode.
    """
    # The path that the network was loaded from does not belong to it, and diffusers takes positional
    # arguments for defaults, which `from_config` would replace.
    left_out = ("_name_or_path", "_use_default_values")
    config = {name: value for name, value in unet.config.items() if name not in left_out}
    network = type(unet).from_config(config)
    network.load_state_dict(state)
    return network.eval()


def list_companions(
    loss: PFGMPPLoss, config: TrainingConfig, accelerator: Accelerator
) -> dict[str, torch.nn.Module]:
    """
    List what is trained together with the network.

    Args:
        loss ([`PFGMPPLoss`]): The objective, which may have a critic.
        config ([`TrainingConfig`]): The settings, which may ask for a learned weighting.
        accelerator (`Accelerator`): What they will run on.

    Returns:
        `dict[str, torch.nn.Module]`: At most `critic` and `weighting`.

    Raises:
        ValueError: The processes cannot train them.
    """
    companions: dict[str, torch.nn.Module] = {}
    critic = getattr(loss, "critic", None)
    if critic is not None:
        if accelerator.distributed_type == DistributedType.FSDP:
            raise ValueError("accelerate is configured for FSDP, which cannot train `--objective matching`.")
        configure_network(critic, config, accelerator)
        companions["critic"] = critic
    if config.uncertainty_weighting:
        companions["weighting"] = UncertaintyWeighting()
    return companions


def create_optimizer(
    unet: ModelMixin, companions: dict[str, torch.nn.Module], config: TrainingConfig
) -> torch.optim.Optimizer:
    """
    Create the optimiser.

    Args:
        unet (`ModelMixin`): The network.
        companions (`dict[str, torch.nn.Module]`): What is trained together with it, from
            [`list_companions`].
        config ([`TrainingConfig`]): The settings.

    Returns:
        `torch.optim.Optimizer`: Adam, or AdamW with weight decay.
    """
    groups: list[dict[str, Any]] = [{"params": list(unet.parameters())}]
    if weighting := companions.get("weighting"):
        groups[0]["params"] += weighting.parameters()
    if critic := companions.get("critic"):
        groups.append({"params": list(critic.parameters()), "pace": CRITIC_PACE})
    return torch.optim.AdamW(
        groups,
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_epsilon,
        weight_decay=config.adam_weight_decay,
        fused=True,
    )
