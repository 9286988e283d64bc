"""
Small classifiers of the data sets that `pfgmpp data` makes.

Their features measure generated images where Inception's weights cannot be downloaded, or where images
are too small for it. The weights come with the package; `experiments/classifier.py` trains them.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn


WEIGHTS = Path(__file__).parent / "classifiers"
CLASSIFIERS = ("emoji", "fashion-mnist")


class ImageClassifier(ModelMixin, ConfigMixin):
    """
    A network of stages that halve the sides, each of two convolutions, and a layer of features.

    Args:
        channels (`tuple[int]`, defaults to `(32, 64, 96)`): Channels of the stages.
        num_features (`int`, defaults to 128): Length of a feature vector.
        num_classes (`int`, defaults to 10): Number of classes.
        in_channels (`int`, defaults to 1): Channels of the images.
        sample_size (`int`, defaults to 28): Height and width of the images, in pixels.
    """

    @register_to_config
    def __init__(
        self,
        channels: tuple[int, ...] = (32, 64, 96),
        num_features: int = 128,
        num_classes: int = 10,
        in_channels: int = 1,
        sample_size: int = 28,
    ):
        super().__init__()
        layers: list[nn.Module] = []
        width = in_channels
        side = sample_size
        for stage_width in channels:
            for _ in range(2):
                layers += [
                    nn.Conv2d(width, stage_width, 3, padding=1, bias=False),
                    nn.BatchNorm2d(stage_width),
                    nn.ReLU(),
                ]
                width = stage_width
            layers += [nn.MaxPool2d(2), nn.Dropout(0.2)]
            side //= 2
        self.stages = nn.Sequential(*layers)
        self.to_features = nn.Linear(side * side * width, num_features)
        self.to_logits = nn.Linear(num_features, num_classes)

    def extract(self, images: torch.Tensor) -> torch.Tensor:
        """
        Extract features: the activations before the last layer.

        Args:
            images (`torch.Tensor` of shape `(batch, in_channels, sample_size, sample_size)`): Images in
                [-1, 1].

        Returns:
            `torch.Tensor` of shape `(batch, num_features)`: The features.

        Raises:
            ValueError: The images have another shape.
        """
        side = self.config.sample_size
        expected = (self.config.in_channels, side, side)
        if images.shape[1:] != expected:
            raise ValueError(
                f"`images` must be of shape (batch, {', '.join(map(str, expected))}), but are of shape"
                f" {tuple(images.shape)}."
            )
        return F.relu(self.to_features(self.stages(images).flatten(1)))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """
        Classify images.

        Args:
            images (`torch.Tensor` of shape `(batch, in_channels, sample_size, sample_size)`): Images in
                [-1, 1].

        Returns:
            `torch.Tensor` of shape `(batch, num_classes)`: Logits of the classes.
        """
        return self.to_logits(F.dropout(self.extract(images), 0.3, self.training))


def check_image_shape(features: str, shape: tuple[int, int, int]) -> None:
    """
    Refuse a classifier of this package for images that it was not made for.

    Args:
        features (`str`): Name of the features; others than `CLASSIFIERS` take images of any shape.
        shape (`tuple[int, int, int]`): Channels, height and width of the images.

    Raises:
        ValueError: The classifier takes images of another shape.
    """
    if features not in CLASSIFIERS:
        return
    config = ImageClassifier.load_config(WEIGHTS / features)
    expected = (config["in_channels"], config["sample_size"], config["sample_size"])
    if shape != expected:
        raise ValueError(
            f"{features} compares images of shape {expected} (channels, height, width), but these are of"
            f" shape {shape}; inception, or another model, takes images of any size."
        )


@torch.no_grad()
def measure_accuracy(
    model: nn.Module, images: torch.Tensor, labels: torch.Tensor, batch_size: int = 500
) -> float:
    """
    Measure the share of images that a model assigns to the right class.

    Args:
        model (`nn.Module`): Maps images to logits. It is put into evaluation mode.
        images (`torch.Tensor` of shape `(M, C, H, W)`, uint8): The images.
        labels (`torch.Tensor` of shape `(M,)`): Their classes.
        batch_size (`int`, defaults to 500): Images per batch.

    Returns:
        `float`: The accuracy, in [0, 1].
    """
    model.eval()
    hits = [
        model(batch.float() / 127.5 - 1).argmax(1) == classes
        for batch, classes in zip(images.split(batch_size), labels.split(batch_size))
    ]
    return torch.cat(hits).float().mean().item()
