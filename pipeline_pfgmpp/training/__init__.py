"""What train_accelerate.py is made of."""

from .augment import Augmentation
from .checkpoint import load_checkpoint, save_checkpoint
from .ema import HalfLifeEMA, PowerFunctionEMA, power_of_width
from .finetune import adapt_network, choose_classes, trained_range
from .frechet import FrechetDistance
from .gradients import replace_nonfinite_gradients
from .log import JSONLTracker, LossMeter
from .loss import DimensionRange, PFGMPPLoss, UncertaintyWeighting
from .recipes import OF_THE_NETWORK, RECIPES
from .run import identify_run, lies_in, list_checkpoints, open_run, read_run, remove_run, write_run
from .schedule import SCHEDULES, learning_rate_factor


__all__ = [
    "OF_THE_NETWORK",
    "RECIPES",
    "SCHEDULES",
    "Augmentation",
    "DimensionRange",
    "FrechetDistance",
    "HalfLifeEMA",
    "JSONLTracker",
    "LossMeter",
    "PFGMPPLoss",
    "PowerFunctionEMA",
    "UncertaintyWeighting",
    "adapt_network",
    "choose_classes",
    "identify_run",
    "learning_rate_factor",
    "lies_in",
    "list_checkpoints",
    "load_checkpoint",
    "open_run",
    "power_of_width",
    "read_run",
    "remove_run",
    "replace_nonfinite_gradients",
    "save_checkpoint",
    "trained_range",
    "write_run",
]
