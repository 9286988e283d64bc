"""What the tab Restore does: damage a picture, and restore it at several D in one call each."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from checks import Refusal, check_choice, check_number
from choices import RESTORERS, choose_dimension, choose_model, list_dimensions, load_pipeline
from drawing import check_seed
from models import Restorer
from PIL import Image
from rendering import render_captioned
from sampling import lend_gpu, submit
from uploads import read_upload

from pipeline_pfgmpp import PFGMPPRestorationPipeline
from pipeline_pfgmpp.data import Degrader
from pipeline_pfgmpp.pictures.grid import to_pil
from pipeline_pfgmpp.pixels import EIGHT_BITS
from pipeline_pfgmpp.records.dimensions import format_dimension


class Damage(NamedTuple):
    """
    A degradation that visitors choose, and the levels that its strength goes through.

    Args:
        word (`str`): Its name in `DEGRADATIONS`.
        low (`float`): The level at strength 0.
        high (`float`): The level at strength 1.
    """

    word: str
    low: float
    high: float


# Within what the bundled network has been trained on.
DAMAGES: dict[str, Damage | None] = {
    "Gaussian noise": Damage("gaussian", 0.05, 0.3),
    "4 times smaller": Damage("downscale", 4, 4),
    "A hole": Damage("mask", 0.02, 0.15),
    "None": None,
}


@lend_gpu
def restore(
    model: str, picture: str, damage: str, strength: float, dial: float, fixed: str | None, seed: int
) -> Iterator[str]:
    """
    Damage a picture, and restore it at the chosen D and at the smallest and the largest.

    Args:
        model (`str`): Name of the model.
        picture (`str`): The picture as a data URI of a PNG file.
        damage (`str`): One of `DAMAGES`; `"None"` for a picture that is damaged already.
        strength (`float`): Strength of the damage, 0 to 1.
        dial (`float`): log₂ D; 19 is infinity. It counts for a D-conditioned network.
        fixed (`str`, *optional*): D such as `"128"` or `"inf"`. It counts for a family of networks.
        seed (`int`): Seed of the damage, and of the calls if they begin at the prior.

    Yields:
        `str`: HTML with the picture before and after.
    """
    chosen = choose_model(model, RESTORERS)
    D = choose_dimension(chosen, dial, fixed)
    offered = [float(choice) for choice in list_dimensions(chosen)]
    kind = DAMAGES[check_choice(damage, DAMAGES, "The damage")]
    strength = check_number(strength, 0, 1, "The strength")
    seed = check_seed(seed)
    pipe = load_pipeline(chosen, D)
    values = torch.from_numpy(read_upload(picture, pipe.condition_channels, pipe.image_size))
    damaged = apply_damage(values.movedim(-1, 0), kind, strength, seed)
    restored: dict[float, Image.Image] = {}
    for dimension in (D, offered[0], offered[-1]):
        if dimension not in restored:
            restored[dimension] = restore_once(chosen, dimension, damaged, seed)
    shown = [(to_pil(damaged[None])[0], "Before"), (restored[D], f"After, D = {format_dimension(D)}")]
    for dimension in sorted({offered[0], offered[-1]}):
        shown.append((restored[dimension], f"D = {format_dimension(dimension)}"))
    yield render_captioned(shown)


def apply_damage(picture: torch.Tensor, damage: Damage | None, strength: float, seed: int) -> torch.Tensor:
    """
    Damage a picture.

    Args:
        picture (`torch.Tensor` of shape `(C, H, W)` and type uint8): The picture.
        damage ([`Damage`], *optional*): The damage; None leaves the picture as it is.
        strength (`float`): Where between its lowest and its highest level, 0 to 1.
        seed (`int`): The seed.

    Returns:
        `torch.Tensor` of shape `(C, H, W)` and type uint8: The damaged picture.
    """
    if damage is None:
        return picture
    level = damage.low + strength * (damage.high - damage.low)
    degrade = Degrader([f"{damage.word}={level:g}"])
    return degrade(picture, EIGHT_BITS, torch.Generator().manual_seed(seed))


def restore_once(model: Restorer, D: float, damaged: torch.Tensor, seed: int) -> Image.Image:
    """
    Restore a picture in one call of the network.

    Args:
        model ([`Restorer`]): The model.
        D (`float`): The augmented dimension.
        damaged (`torch.Tensor` of shape `(C, H, W)` and type uint8): The picture.
        seed (`int`): Seed of the prior, from which the call begins unless the model has an entry.

    Returns:
        `PIL.Image.Image`: The restored picture.

    Raises:
        Refusal: The model does not accept the picture or its own entry.
    """
    pipe: PFGMPPRestorationPipeline = load_pipeline(model, D)
    generator = torch.Generator().manual_seed(seed)
    settings = {"num_inference_steps": 1, "D": D, "generator": generator, **model.entry}
    try:
        output = submit(lambda: pipe(damaged[None], **settings)).result()
    except ValueError as error:
        raise Refusal(str(error)) from None
    return output.images[0]
