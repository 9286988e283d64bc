"""Fine-tuning: a pretrained network made to fit other data, with all that it can keep kept."""

import math
import re

import torch
from diffusers import ModelMixin

from ..pipeline_pfgmpp import PFGMPPPipeline
from ..unet_pfgmpp import PFGMPPUNet2DModel
from .loss import DimensionRange


CLASS_EMBEDDINGS = ("map_label.weight", "class_embedding.weight")  # of our networks, and of diffusers'


def choose_classes(
    pipeline: PFGMPPPipeline,
    class_names: list[str] | None,
    class_conditional: bool | None = None,
    new_classes: bool = False,
) -> list[str]:
    """
    Decides which classes a pretrained network is trained on.

    Args:
        pipeline ([`PFGMPPPipeline`]): Holds the network.
        class_names (`list[str]`, *optional*): The classes of the data.
        class_conditional (`bool`, *optional*): Whether there are to be classes; None is what fits.
        new_classes (`bool`, defaults to `False`): Whether the network's classes give way to those
            of the data, to none where these have none.

    Returns:
        `list[str]`: Their names; empty for a network without classes.

    Raises:
        ValueError: The network's classes are not those of the data, or it has none.
    """
    count = pipeline.num_classes
    names = list((pipeline.config.id2label or {}).values())
    found = class_names or []
    if new_classes:
        return [] if class_conditional is False else found
    if not count and class_conditional:
        raise ValueError(f"has no classes, but the data have {len(found)}: --new_classes gives it theirs.")
    if count and class_conditional is False:
        raise ValueError(
            f"has {count} classes: to leave them out, give --new_classes as well as --no-class_conditional."
        )
    if count and (len(found) != count or (names and _spell(names) != _spell(found))):
        raise ValueError(
            f"has {_list_classes(count, names)}, but the data have {_list_classes(len(found), found)}: --new_classes gives it"
            " theirs and keeps the rest of the network."
        )
    return (names or found) if count else []


def _spell(names):
    """Names in one spelling: `T-shirt/top` is `T - shirt / top`."""
    return [re.sub(r"[\W_]", "", name).lower() for name in names]


def _list_classes(count, names):
    if not count:
        return "no classes"
    return f"{count} classes" + (f" ({', '.join(names[:3])}{', …' if count > 3 else ''})" if names else "")


def adapt_network(
    unet: ModelMixin,
    num_classes: int | None = None,
    label_dropout: float | None = None,
    d_conditioning: bool = False,
) -> ModelMixin:
    """
    Changes what a network is told, and keeps its weights: a new embedding begins at zero, where the
    network is what it was without a class, or at D = infinity.

    Args:
        unet (`ModelMixin`): The network.
        num_classes (`int`, *optional*): Classes, with a fresh embedding; 0 for none, None to leave
            those that it has.
        label_dropout (`float`, *optional*): Probability of training without the class; None leaves it.
        d_conditioning (`bool`, defaults to `False`): Whether it is told D; what is told it already
            stays so.

    Returns:
        `ModelMixin`: The network, itself where there is nothing to change.

    Raises:
        ValueError: A network of diffusers takes no such option.
    """
    own, options = isinstance(unet, PFGMPPUNet2DModel), {}
    if num_classes is not None:
        options["label_dim" if own else "num_class_embeds"] = num_classes if own else num_classes or None
    if label_dropout is not None:
        options["label_dropout"] = label_dropout
    if d_conditioning and not unet.config.get("d_conditioning"):
        options["d_conditioning"] = True
    if not own and "d_conditioning" in options:
        raise ValueError("cannot be told D (see --d_conditioning).")
    if not own and "label_dropout" in options:
        raise ValueError("cannot be trained without the class now and then (see --label_dropout).")
    if not options:
        return unet
    adapted, known = type(unet).from_config(unet.config, **options), unet.state_dict()
    for name, tensor in adapted.state_dict().items():
        fresh = name in CLASS_EMBEDDINGS and (num_classes is not None or name not in known)
        if fresh:
            torch.nn.init.zeros_(tensor)
        elif name in known:
            tensor.copy_(known[name])
    return adapted


def trained_range(pipeline: PFGMPPPipeline) -> DimensionRange:
    """
    Reads what D a pretrained network was trained at.

    Args:
        pipeline ([`PFGMPPPipeline`]): Holds the network and the scheduler.

    Returns:
        [`DimensionRange`]: The range of a network that is told D, else the scheduler's D.

    Raises:
        ValueError: The network is told D, and its range is not stated.
    """
    config = pipeline.scheduler.config
    low, high = config.D, config.D
    if pipeline.unet.config.get("d_conditioning"):
        if not config.get("D_range"):
            raise ValueError(
                "is told D, but does not state for which it was trained: give --D, such as 16:inf."
            )
        low, high = config.D_range
    return DimensionRange(*(math.inf if D is None else D for D in (low, high)))
