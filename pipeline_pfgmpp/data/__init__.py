"""
Images in: decoded once or read while they are trained on, from any data set of the Hugging Face
ecosystem.
"""

from .decoding import ImageDecoder
from .images import ImageDataset, convert_to_bytes, load_images, prefetch
from .sources import open_dataset
from .stream import ImageStream


__all__ = [
    "ImageDataset",
    "ImageDecoder",
    "ImageStream",
    "convert_to_bytes",
    "load_images",
    "open_dataset",
    "prefetch",
]
