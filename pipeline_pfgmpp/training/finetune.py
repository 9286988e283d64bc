"""Fine-tuning: adapt a pretrained network to other data, and keep whatever can be kept."""

import math

import torch
from accelerate import Accelerator
from diffusers import DiffusionPipeline, ModelMixin

from ..data.labels import normalize_name
from ..pipeline_pfgmpp import PFGMPPPipeline
from ..pipeline_pfgmpp_restoration import PFGMPPRestorationPipeline
from ..scheduling_pfgmpp import PFGMPPScheduler
from ..unet_pfgmpp import PFGMPPUNet2DModel
from .loss import DimensionRange


CLASS_EMBEDDINGS = ("map_label.weight", "class_embedding.weight")  # of our networks, and of diffusers'
CLASS_BIAS = "map_label.bias"


def load_pretrained(name: str, accelerator: Accelerator) -> PFGMPPPipeline:
    """
    Load a pretrained pipeline, in the main process first.

    Args:
        name (`str`): Pipeline folder or Hub id.
        accelerator (`Accelerator`): The processes.

    Returns:
        [`PFGMPPPipeline`]: The pipeline.

    Raises:
        ValueError: It cannot be loaded, or is another kind of pipeline.
    """
    try:
        with accelerator.main_process_first():
            pipeline = DiffusionPipeline.from_pretrained(name)
    except Exception as error:  # also damaged weights, or a configuration that its class does not accept
        reason = str(error) or type(error).__name__
        raise ValueError(f"{name} cannot be loaded: {reason}") from None
    if not isinstance(pipeline, (PFGMPPPipeline, PFGMPPRestorationPipeline)):
        raise ValueError(
            f"{name} is a {type(pipeline).__name__}. pfgmpp convert --from-diffusers turns a DDPM into a"
            " PFGMPPPipeline."
        )
    pipeline.scheduler = PFGMPPScheduler.from_config(pipeline.scheduler.config)  # if it is one of diffusers
    return pipeline


def choose_classes(
    pipeline: PFGMPPPipeline,
    class_names: list[str] | None,
    class_conditional: bool | None = None,
    new_classes: bool = False,
) -> list[str]:
    """
    Decide which classes a pretrained network is trained on.

    Args:
        pipeline ([`PFGMPPPipeline`]): The pipeline with the network.
        class_names (`list[str]`, *optional*): The classes of the data.
        class_conditional (`bool`, *optional*): Whether there are to be classes; by default if the
            network has them.
        new_classes (`bool`, defaults to `False`): Whether to replace the network's classes by those
            of the data, or by none if the data have none.

    Returns:
        `list[str]`: Their names; empty for a network without classes.

    Raises:
        ValueError: The classes of the network and of the data differ, or only one of them has
            classes. The message is to follow the name of the network.
    """
    count = pipeline.num_classes
    found = class_names or []
    if new_classes:
        return [] if class_conditional is False else found
    if not count and class_conditional:
        raise ValueError(
            f"has no classes, but the data have {len(found)}: --new_classes adds the classes of the data."
        )
    if count and class_conditional is False:
        raise ValueError(
            f"has {count} classes: to remove them, give --new_classes together with --no-class_conditional."
        )
    if not count:
        return []
    try:
        return match_classes(pipeline, found)
    except ValueError as error:
        raise ValueError(
            f"{error}: --new_classes replaces its classes by those of the data and keeps the rest of the"
            " network."
        ) from None


def match_classes(pipeline: PFGMPPPipeline, class_names: list[str]) -> list[str]:
    """
    Match the classes of a network with those of the data.

    Args:
        pipeline ([`PFGMPPPipeline`]): The pipeline with the network.
        class_names (`list[str]`): The classes of the data.

    Returns:
        `list[str]`: Their names. A class that never occurred in training has no name in the pipeline, and
            gets the name that the data have.

    Raises:
        ValueError: They differ. The message is to follow the name of the network.
    """
    count = pipeline.num_classes
    names = {int(label): name for label, name in (pipeline.config.id2label or {}).items()}
    agree = len(class_names) == count and all(
        normalize_name(class_names[label]) == normalize_name(name) for label, name in names.items()
    )
    if not agree:
        known = _list_classes(count, list(names.values()))
        raise ValueError(f"has {known}, but the data have {_list_classes(len(class_names), class_names)}")
    return [names.get(label, class_names[label]) for label in range(count)]


def _list_classes(count: int, names: list[str]) -> str:
    if not count:
        return "no classes"
    if not names:
        return f"{count} classes"
    more = ", …" if count > 3 else ""
    return f"{count} classes ({', '.join(names[:3])}{more})"


def adapt_network(
    unet: ModelMixin,
    num_classes: int | None = None,
    label_dropout: float | None = None,
    d_conditioning: bool = False,
    dropout: float | None = None,
) -> ModelMixin:
    """
    Change what a network is conditioned on, and keep its weights.

    A new embedding starts at zero, so that the network starts as it was without a class, or at
    D = infinity.

    Args:
        unet (`ModelMixin`): The network.
        num_classes (`int`, *optional*): Number of classes, with a new embedding; 0 for none. By
            default the classes stay as they are.
        label_dropout (`float`, *optional*): Probability of training without the class; by default
            it stays as it is.
        d_conditioning (`bool`, defaults to `False`): Whether to condition the network on D. A network
            that is conditioned on D already stays so.
        dropout (`float`, *optional*): Dropout probability; by default it stays as it is.

    Returns:
        `ModelMixin`: The adapted network, or `unet` itself if there is nothing to change.

    Raises:
        ValueError: A network of diffusers does not have such an option. The message is to follow the
            name of the network.
    """
    options = _list_options(unet, num_classes, label_dropout, d_conditioning)
    if dropout is not None:
        options["dropout"] = dropout
    if not options:
        return unet
    adapted = type(unet).from_config(unet.config, **options)
    known = unet.state_dict()
    for name, tensor in adapted.state_dict().items():
        is_new = name in CLASS_EMBEDDINGS and (num_classes is not None or name not in known)
        if is_new or (name == CLASS_BIAS and name not in known):
            torch.nn.init.zeros_(tensor)
        elif name in known:
            tensor.copy_(known[name])
    return adapted


def _list_options(
    unet: ModelMixin, num_classes: int | None, label_dropout: float | None, d_conditioning: bool
) -> dict[str, object]:
    """List the entries of the network's configuration that change."""
    options: dict[str, object] = {}
    if label_dropout is not None:
        options["label_dropout"] = label_dropout
    if d_conditioning and not unet.config.get("d_conditioning"):
        options["d_conditioning"] = True
    if isinstance(unet, PFGMPPUNet2DModel):
        if num_classes is not None:
            options["label_dim"] = num_classes
        return options
    if "d_conditioning" in options:
        raise ValueError("cannot be conditioned on D (see --d_conditioning).")
    if "label_dropout" in options:
        raise ValueError("cannot be trained without the class at random (see --label_dropout).")
    if num_classes is not None:
        options["num_class_embeds"] = num_classes or None
    return options


def read_trained_range(pipeline: PFGMPPPipeline) -> DimensionRange:
    """
    Read for which D a pretrained network was trained.

    Args:
        pipeline ([`PFGMPPPipeline`]): The pipeline with the network and the scheduler.

    Returns:
        [`DimensionRange`]: The range of a network conditioned on D, else the scheduler's D.

    Raises:
        ValueError: The network is conditioned on D, but its range is not known. The message is to
            follow the name of the network.
    """
    config = pipeline.scheduler.config
    low = config.D
    high = config.D
    if pipeline.unet.config.get("d_conditioning"):
        if not config.get("D_range"):
            raise ValueError(
                "is conditioned on D, but does not state the range that it was trained for: give --D,"
                " such as 16:inf."
            )
        low, high = config.D_range
    return DimensionRange(*(math.inf if D is None else D for D in (low, high)))
