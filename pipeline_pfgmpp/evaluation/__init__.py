"""Measuring what a model generates."""

from .fashion_mnist_classifier import FashionMNISTClassifier
from .features import image_features, load_features
from .metrics import ImageMetrics, frechet_distance


__all__ = ["FashionMNISTClassifier", "ImageMetrics", "frechet_distance", "image_features", "load_features"]
