"""What visitors choose from: models, their D, and their classes."""

import math
import sys
from collections.abc import Mapping
from typing import Any

from checks import Refusal, check_choice, check_number
from dial import find_ends, read_dial
from models import Model, read_models

from pipeline_pfgmpp import PFGMPPPipeline
from pipeline_pfgmpp.generation import list_classes
from pipeline_pfgmpp.records.dimensions import format_dimension
from pipeline_pfgmpp.scheduler_config import get_default_steps


try:
    MODELS, RESTORERS = read_models()
except ValueError as error:
    sys.exit(str(error))
ANY_CLASS = "any"
SOLVERS = ["heun", "dpmpp_3m", "dpmpp_2m", "euler", "dpmpp_2m_sde"]  # of denoisers
FEW_STEPS = 4  # of a model of few calls, so few that the dial is live
# D to compare with a D-conditioned network, beside the smallest and the largest that it was trained for
COMPARED = ["16", "64", "128", "512", "2048", "16384", "inf"]


def choose_model(name: str, models: Mapping[str, Any] = MODELS) -> Any:
    """
    Load the model of a name far enough to know which D it serves.

    Args:
        name (`str`): Name of one of the models.
        models (`Mapping[str, Model]`, *optional*): `MODELS` or `RESTORERS`.

    Returns:
        [`Model`]: The model.

    Raises:
        Refusal: There is no such model, or it cannot be loaded.
    """
    model = models[check_choice(name, list(models), "The model")]
    try:
        return model.load()
    except ValueError as error:
        raise Refusal(str(error)) from None


def list_dimensions(model: Model) -> list[str]:
    """
    List the D that a model offers to compare.

    Args:
        model ([`Model`]): The model.

    Returns:
        `list[str]`: As text, because JSON has no infinity.
    """
    if model.dimensions:
        return [_write_dimension(D) for D in model.dimensions]
    low, high = model.trained_range
    between = [D for D in COMPARED if low < float(D) < high]
    return [_write_dimension(low), *between, _write_dimension(high)]


def _write_dimension(D: float) -> str:
    """Write a D as `float` reads it."""
    return "inf" if math.isinf(D) else format_dimension(D)


def choose_dimension(model: Model, position: Any, choice: Any) -> float:
    """
    Return the D that was asked for.

    Args:
        model ([`Model`]): The model.
        position: The position of the dial, for a D-conditioned network.
        choice: The D chosen, for a family of networks.

    Returns:
        `float`: D.

    Raises:
        Refusal: The model does not serve this D.
    """
    if model.dimensions:
        return choose_listed_dimension(model, choice)
    low, high = model.trained_range
    first, last = find_ends(low, high)
    position = check_number(position, first, last, "The dial (log₂ D)")
    if position == last:
        return high
    return min(max(read_dial(position), low), high)  # three digits may round to just outside the range


def choose_listed_dimension(model: Model, choice: Any) -> float:
    """
    Return a D that was chosen from a list.

    Args:
        model ([`Model`]): The model.
        choice: One of [`list_dimensions`].

    Returns:
        `float`: D.

    Raises:
        Refusal: The model does not offer this D.
    """
    return float(check_choice(choice, list_dimensions(model), "D"))


def list_solvers(pipe: PFGMPPPipeline) -> list[str]:
    """
    List the solvers that fit a model.

    Args:
        pipe ([`PFGMPPPipeline`]): The pipeline.

    Returns:
        `list[str]`: The model's own first; the only one of a model of few calls.
    """
    own = pipe.scheduler.config.solver_type
    if own == "consistency":
        return [own]
    return [own, *(solver for solver in SOLVERS if solver != own)]


def count_live_steps(pipe: PFGMPPPipeline) -> int:
    """
    Count the steps up to which a model draws while the dial moves.

    Args:
        pipe ([`PFGMPPPipeline`]): The pipeline.

    Returns:
        `int`: The number of steps; 0 for a model that needs many calls.
    """
    is_fast = pipe.scheduler.config.solver_type == "consistency"
    return FEW_STEPS if is_fast and get_default_steps(pipe.scheduler) <= FEW_STEPS else 0


def choose_classes(pipe: PFGMPPPipeline, name: Any, count: int) -> list[int] | None:
    """
    Choose the class of each image.

    Args:
        pipe ([`PFGMPPPipeline`]): The pipeline.
        name: The name of one of [`~pipeline_pfgmpp.generation.list_classes`], or `"any"` to go through
            all classes.
        count (`int`): Images.

    Returns:
        `list[int]` or `None`: One class per image; None if the model has no classes.

    Raises:
        Refusal: There is no such class.
    """
    names = list_classes(pipe)
    if not names:
        return None
    check_choice(name, [ANY_CLASS, *names.values()], "The class")
    chosen = [number for number, own in names.items() if name in (own, ANY_CLASS)]
    return [chosen[index % len(chosen)] for index in range(count)]


def load_pipeline(model: Model, D: float, **options: Any) -> Any:
    """
    Make a pipeline of a model, with a message for the visitor if that fails.

    Args:
        model ([`Model`]): The model.
        D (`float`): The augmented dimension.
        options: Further arguments of [`Model.make_pipeline`].

    Returns:
        The pipeline, of the model's `pipeline_class`.

    Raises:
        Refusal: The model cannot be loaded.
    """
    try:
        return model.make_pipeline(D, **options)
    except ValueError as error:
        raise Refusal(str(error)) from None
