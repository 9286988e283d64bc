"""What train_accelerate.py is made of."""

from .augment import Augmentation
from .checkpoint import list_checkpoints, load_checkpoint, save_checkpoint
from .data import ImageDataset, ImageStream, derived_seed, load_images, prefetch
from .ema import HalfLifeEMA, PowerFunctionEMA, power_of_width
from .frechet import FrechetDistance
from .gradients import replace_nonfinite_gradients
from .log import JSONLTracker, LossMeter
from .loss import DimensionRange, PFGMPPLoss, UncertaintyWeighting
from .recipes import RECIPES
from .schedule import SCHEDULES, learning_rate_factor


__all__ = [
    "RECIPES",
    "SCHEDULES",
    "Augmentation",
    "DimensionRange",
    "FrechetDistance",
    "HalfLifeEMA",
    "ImageDataset",
    "ImageStream",
    "JSONLTracker",
    "LossMeter",
    "PFGMPPLoss",
    "PowerFunctionEMA",
    "UncertaintyWeighting",
    "derived_seed",
    "learning_rate_factor",
    "list_checkpoints",
    "load_checkpoint",
    "load_images",
    "power_of_width",
    "prefetch",
    "replace_nonfinite_gradients",
    "save_checkpoint",
]
