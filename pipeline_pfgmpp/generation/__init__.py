"""Generating many images, one per seed, undisturbed or disturbed."""

from .classes import list_classes
from .disturbances import inject_noise, quantize, quantize_temporarily
from .files import load_samples, parse_seeds, sample_to_files
from .generate import generate, split_batches


__all__ = [
    "generate",
    "inject_noise",
    "list_classes",
    "load_samples",
    "parse_seeds",
    "quantize",
    "quantize_temporarily",
    "sample_to_files",
    "split_batches",
]
