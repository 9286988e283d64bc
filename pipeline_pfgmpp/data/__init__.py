"""
Images in: decoded once or read while they are trained on, from any data set of the Hugging Face
ecosystem.
"""

from .cache import load_images
from .decoding import ImageDecoder
from .degradations import DEGRADATIONS, Degrader, register_degradation
from .images import ImageDataset, convert_to_bytes, measure_standardization, prefetch
from .latents import LatentDataset, load_latents
from .sources import open_dataset
from .stream import ImageStream
from .transforms import ImageTransform, split_pairs


__all__ = [
    "DEGRADATIONS",
    "Degrader",
    "ImageDataset",
    "ImageDecoder",
    "ImageStream",
    "ImageTransform",
    "LatentDataset",
    "convert_to_bytes",
    "load_images",
    "load_latents",
    "measure_standardization",
    "open_dataset",
    "prefetch",
    "register_degradation",
    "split_pairs",
]
