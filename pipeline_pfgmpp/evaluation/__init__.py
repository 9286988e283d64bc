"""Measuring the images that a model generates."""

from .fashion_mnist_classifier import FashionMNISTClassifier
from .features import extract_features, load_features
from .metrics import ImageMetrics, frechet_distance


__all__ = ["FashionMNISTClassifier", "ImageMetrics", "extract_features", "frechet_distance", "load_features"]
