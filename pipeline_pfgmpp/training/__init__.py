"""What train_accelerate.py is made of."""

from .data import ImageDataset, load_images
from .ema import HalfLifeEMA
from .loss import PFGMPPLoss
from .recipes import RECIPES


__all__ = ["RECIPES", "HalfLifeEMA", "ImageDataset", "PFGMPPLoss", "load_images"]
