"""
Images in: decoded once or read while they are trained on, from any data set of the Hugging Face
ecosystem.
"""

from .decoding import ImageDecoder
from .images import ImageDataset, load_images, prefetch
from .stream import ImageStream


__all__ = ["ImageDataset", "ImageDecoder", "ImageStream", "load_images", "prefetch"]
