"""What train_accelerate.py is made of."""

from .data import ImageDataset, load_images
from .ema import HalfLifeEMA
from .loss import PFGMPPLoss
from .presets import PRESETS


__all__ = ["PRESETS", "HalfLifeEMA", "ImageDataset", "PFGMPPLoss", "load_images"]
