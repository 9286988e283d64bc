"""Measuring the images that a model generates."""

from .classifier import ImageClassifier
from .features import extract_features, load_features
from .metrics import ImageMetrics, frechet_distance


__all__ = ["ImageClassifier", "ImageMetrics", "extract_features", "frechet_distance", "load_features"]
