"""The classes that a model offers."""

from diffusers import DiffusionPipeline

from .. import conditioning


def list_classes(pipeline: DiffusionPipeline) -> dict[int, str]:
    """
    List the classes that a model offers.

    Args:
        pipeline ([`PFGMPPPipeline`]): The model.

    Returns:
        `dict[int, str]`: The names of the classes by their numbers. A class that is missing among the
            model's names never occurred in training; without any names, each class is named by its
            number.
    """
    return conditioning.list_classes(pipeline.config.get("id2label"), pipeline.num_classes)
