"""Measuring what a model generates."""

from .fashion_mnist_classifier import FashionMNISTClassifier
from .frechet import feature_statistics, frechet_distance


__all__ = ["FashionMNISTClassifier", "feature_statistics", "frechet_distance"]
