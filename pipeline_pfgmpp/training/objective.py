"""The objective of a training run: its arguments of train_accelerate.py, and its loss."""

import argparse
import math
from typing import Any

from accelerate import Accelerator
from diffusers import ModelMixin

from ..conditioning import get_sample_size
from ..data import ImageDataset, ImageStream
from ..images import read_scale
from ..pipeline_pfgmpp import PFGMPPPipeline
from ..pixels import EIGHT_BITS, SIXTEEN_BITS
from ..records.sizes import format_size
from ..scheduling_pfgmpp import PFGMPPScheduler
from .autoencoder import is_same_autoencoder
from .consistency import ConsistencyLoss
from .finetune import load_pretrained, match_classes
from .loss import DimensionRange, PFGMPPLoss
from .matching import MatchingLoss
from .preparation import configure_network
from .teacher import Teacher


HEAVY_TAILED = 2.0  # the largest D at which the squared norm of the noise has no finite mean
SMALL_DEVIATION = 0.1  # that of pictures from black to white is about 0.5
# The arguments that an objective changes, unless they are given.
OBJECTIVES: dict[str, dict[str, Any]] = {
    "perturbation": {"P_mean": -1.2, "P_std": 1.2},
    "consistency": {"P_mean": -1.1, "P_std": 2.0},
    "matching": {"P_mean": 0.0, "P_std": 1.6},
}


def add_objective_arguments(parser: argparse.ArgumentParser) -> None:
    """
    Add the arguments that choose the objective.

    Args:
        parser (`argparse.ArgumentParser`): The parser of train_accelerate.py.
    """
    add = parser.add_argument_group("objective").add_argument
    add(
        "--objective",
        choices=list(OBJECTIVES),
        default="perturbation",
        help="what to train: a denoiser, or a network of 1 to 4 calls, by consistency along field lines or by"
        " matching the images of a teacher (default: as the preset, or %(default)s)",
    )
    add(
        "--P_mean",
        type=float,
        help="mean of ln(sigma) (default: -1.2; -1.1 for consistency, 0 for matching)",
    )
    add(
        "--P_std",
        type=float,
        help="its standard deviation (default: 1.2; 2 for consistency, 1.6 for matching)",
    )
    add(
        "--uncertainty_weighting",
        action="store_true",
        help="weight noise levels by a learned uncertainty, as in EDM2",
    )
    add(
        "--consistency_stages",
        type=int,
        default=8,
        help="stages in which the two noise levels of the consistency loss approach (default: %(default)s)",
    )
    add(
        "--consistency_first_stage",
        type=int,
        default=0,
        help="stage to begin with; a later one suits a pretrained consistency model (default: %(default)s)",
    )
    add(
        "--huber_c",
        type=float,
        default=0.00054,
        help="constant of its pseudo-Huber distance, a root mean square over pixels (default: %(default)s)",
    )
    add(
        "--teacher_model_name_or_path",
        help="pipeline folder or Hub id of a denoiser to distil into a network of few calls",
    )
    add(
        "--guidance_scale",
        type=float,
        default=1.0,
        help="how strongly the teacher is guided; 1 for not at all (default: %(default)s)",
    )
    add(
        "--guidance_interval",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="smallest and largest noise level at which the teacher is guided (default: all)",
    )


def choose_scheduler_options(args: argparse.Namespace, pretrained: PFGMPPPipeline | None) -> dict[str, Any]:
    """
    Choose what the objective changes in the scheduler: a model of few calls is sampled in its own way, and a
    denoiser that is trained from one is not. Matching goes on with the calls that such a model makes.

    Args:
        args (`argparse.Namespace`): The arguments of train_accelerate.py.
        pretrained ([`PFGMPPPipeline`], *optional*): What is fine-tuned.

    Returns:
        `dict`: Entries of the scheduler's configuration.
    """
    config = {} if pretrained is None else pretrained.scheduler.config
    has_few_calls = config.get("solver_type") == "consistency"
    if args.objective == "perturbation":
        return {"solver_type": "heun", "default_steps": None, "sigmas": None} if has_few_calls else {}
    if args.objective == "matching" and has_few_calls:
        return {"default_steps": config.get("default_steps") or 2}
    return {"solver_type": "consistency", "default_steps": 2, "s_churn": 0.0, "sigmas": None}


def build_scheduler(
    args: argparse.Namespace,
    data: ImageDataset | ImageStream,
    pretrained: PFGMPPPipeline | None,
    dimensions: DimensionRange | None,
    accelerator: Accelerator,
) -> PFGMPPScheduler:
    """
    Build the scheduler of a run; what is not given stays as in the pretrained one, if it fits what is given.

    Args:
        args (`argparse.Namespace`): The arguments of train_accelerate.py.
        data ([`ImageDataset`] or [`ImageStream`]): The data.
        pretrained ([`PFGMPPPipeline`], *optional*): What is fine-tuned.
        dimensions ([`DimensionRange`], *optional*): Distribution of D.
        accelerator (`Accelerator`): Prints what a user should know before a long run.

    Returns:
        [`PFGMPPScheduler`]: The scheduler.
    """
    options = choose_scheduler_options(args, pretrained)
    if args.D:
        options["D"] = args.D.middle
    if dimensions:
        options["D_range"] = (dimensions.low, dimensions.high)
    for name in ("max_noise_norm", "sigma_max", "preconditioning"):
        if getattr(args, name) is not None:
            options[name] = getattr(args, name)
    if pretrained:
        config = pretrained.scheduler.config
        if config.sigmas and options.get("sigma_max", config.sigma_max) != config.sigma_max:
            accelerator.print(
                f"--sigma_max {args.sigma_max:g}: the lists of noise levels of the pretrained model, which"
                f" begin at {config.sigma_max:g}, are left out."
            )
        scheduler = PFGMPPScheduler.from_config(config, **options)
    else:
        sigma_data = _choose_sigma_data(data, accelerator) if args.sigma_data is None else args.sigma_data
        scheduler = PFGMPPScheduler(sigma_data=sigma_data, **options)
    lowest = dimensions.low if dimensions else scheduler.config.D
    if lowest is not None and lowest <= HEAVY_TAILED and scheduler.config.max_noise_norm is None:
        accelerator.print(
            f"D = {lowest:g}: a few samples with distant noise will dominate the loss (see --max_noise_norm)."
        )
    return scheduler


def _choose_sigma_data(data: ImageDataset | ImageStream, accelerator: Accelerator) -> float:
    """Measure the standard deviation of the data, and tell if it is that of a small part of their range."""
    deviation = data.sigma_data()
    if deviation >= SMALL_DEVIATION:
        return round(deviation, 4)
    accelerator.print(
        f"The images vary little: of the range of their values, seen as -1 to 1, their standard deviation is"
        f" {deviation:.3g}. If they use only a part of it, name that part with --value_range."
    )
    return float(f"{deviation:.4g}")


def load_teacher(
    args: argparse.Namespace,
    accelerator: Accelerator,
    data: ImageDataset | ImageStream,
    class_names: list[str],
) -> PFGMPPPipeline | None:
    """
    Load the pipeline to distil, if there is one.

    Args:
        args (`argparse.Namespace`): The arguments of train_accelerate.py.
        accelerator (`Accelerator`): Where it will compute.
        data ([`ImageDataset`] or [`ImageStream`]): The data.
        class_names (`list[str]`): The classes that the network is trained on.

    Returns:
        [`PFGMPPPipeline`] or `None`: The teacher.

    Raises:
        ValueError: It cannot be loaded, is no denoiser, or does not fit the data.
    """
    name = args.teacher_model_name_or_path
    if name is None:
        return None
    teacher = load_pretrained(name, accelerator)
    if teacher.scheduler.config.get("solver_type") == "consistency":
        raise ValueError(
            f"--teacher_model_name_or_path must be a denoiser, but {name} is a model of few calls."
        )
    try:
        _match_data(teacher, data, class_names)
    except ValueError as error:
        raise ValueError(f"--teacher_model_name_or_path {name} {error}.") from None
    if not is_same_autoencoder(teacher.vae, data.vae):
        raise ValueError(f"--teacher_model_name_or_path {name} must have the autoencoder of this run.")
    teacher.to(accelerator.device)
    configure_network(teacher.unet, args, accelerator)
    teacher.unet.forward = accelerator.autocast()(teacher.unet.forward)  # in the precision of the training
    return teacher


def _match_data(teacher: PFGMPPPipeline, data: ImageDataset | ImageStream, class_names: list[str]) -> None:
    """Raise an error, which is to follow the name of the teacher, if it does not fit the data."""
    own_channels = teacher.unet.config.get("condition_channels") or 0
    if own_channels != data.condition_channels:
        raise ValueError(
            f"takes degraded images of {own_channels} channels, but the data have {data.condition_channels}"
        )
    shape = (teacher.unet.config.in_channels, *get_sample_size(teacher.unet))
    if shape != (data.channels, *data.size):
        raise ValueError(
            f"takes images of {shape[0]} channels and {format_size(*shape[1:])} pixels, but those to train on"
            f" have {data.channels} channels and {format_size(*data.size)} pixels"
        )
    of_pictures = (None, EIGHT_BITS, SIXTEEN_BITS)  # one scale, at any depth
    theirs = read_scale(teacher.config.value_range)
    ours = data.pixels.value_range
    if theirs != ours and not (theirs in of_pictures and ours in of_pictures):
        raise ValueError(
            "must have seen values on the scale of this run: see --value_range and --standardize"
        )
    if teacher.num_classes:
        match_classes(teacher, class_names)


def create_loss(
    args: argparse.Namespace,
    unet: ModelMixin,
    scheduler: PFGMPPScheduler,
    dimensions: DimensionRange | None,
    teacher: PFGMPPPipeline | None,
) -> PFGMPPLoss:
    """
    Create the loss that the arguments ask for.

    Args:
        args (`argparse.Namespace`): The arguments of train_accelerate.py.
        unet (`ModelMixin`): The network.
        scheduler ([`PFGMPPScheduler`]): Owns D, sigma_data and the preconditioning.
        dimensions ([`DimensionRange`], *optional*): Distribution of D.
        teacher ([`PFGMPPPipeline`], *optional*): The denoiser to distil.

    Returns:
        [`PFGMPPLoss`]: The loss.

    Raises:
        ValueError: The teacher does not fit.
    """
    noise = (args.P_mean, args.P_std, dimensions)
    guidance = (args.guidance_scale, args.guidance_interval or (0.0, math.inf))
    if args.objective == "perturbation":
        return PFGMPPLoss(scheduler, *noise)
    try:
        guided = None if teacher is None else Teacher(teacher, *guidance)
        if args.objective == "consistency":
            return ConsistencyLoss(
                scheduler,
                *noise,
                num_stages=args.consistency_stages,
                huber_c=args.huber_c,
                first_stage=args.consistency_first_stage,
                teacher=guided,
            )
        if guided is None:
            raise ValueError("the matching objective needs a teacher.")
        return MatchingLoss(unet, scheduler, guided, *noise)
    except ValueError as error:
        raise ValueError(f"--teacher_model_name_or_path {args.teacher_model_name_or_path}: {error}") from None
