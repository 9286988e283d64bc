"""What train_accelerate.py is made of."""

from .augment import Augmentation
from .data import ImageDataset, load_images
from .ema import HalfLifeEMA
from .gradients import replace_nonfinite_gradients
from .loss import DimensionRange, PFGMPPLoss
from .recipes import RECIPES


__all__ = [
    "RECIPES",
    "Augmentation",
    "DimensionRange",
    "HalfLifeEMA",
    "ImageDataset",
    "PFGMPPLoss",
    "load_images",
    "replace_nonfinite_gradients",
]
