"""The classes that a model offers."""

from diffusers import DiffusionPipeline


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
    named = pipeline.config.get("id2label")
    if not named:
        return {number: str(number) for number in range(pipeline.num_classes)}
    names = {int(number): str(name) for number, name in named.items()}
    return {number: name for number, name in sorted(names.items()) if number < pipeline.num_classes}
