"""
A small classifier of Fashion-MNIST whose features measure generated clothes where Inception's
cannot be had.

Its weights lie in the package; this trains them again, in a few minutes of CPU:

    python -m pipeline_pfgmpp.evaluation.fashion_mnist_classifier data/fashion-mnist
    outputs/fashion_mnist_classifier
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn
from tqdm.auto import tqdm


WEIGHTS = Path(__file__).parent / "fashion_mnist_classifier"


class FashionMNISTClassifier(ModelMixin, ConfigMixin):
    """
    Three stages of two convolutions and a layer of features.

    Args:
        channels (`tuple[int]`, defaults to `(32, 64, 96)`): Channels of the stages.
        num_features (`int`, defaults to 128): Length of a feature vector.
        num_classes (`int`, defaults to 10): Number of classes.
    """

    @register_to_config
    def __init__(
        self, channels: tuple[int, ...] = (32, 64, 96), num_features: int = 128, num_classes: int = 10
    ):
        super().__init__()
        layers, width = [], 1
        for stage_width in channels:
            for _ in range(2):
                layers += [
                    nn.Conv2d(width, stage_width, 3, padding=1, bias=False),
                    nn.BatchNorm2d(stage_width),
                    nn.ReLU(),
                ]
                width = stage_width
            layers += [nn.MaxPool2d(2), nn.Dropout(0.2)]
        self.stages = nn.Sequential(*layers)
        self.to_features = nn.Linear(9 * width, num_features)
        self.to_logits = nn.Linear(num_features, num_classes)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """
        Args:
            images (`torch.Tensor` of shape `(batch, 1, 28, 28)`): Images in [-1, 1].

        Returns:
            `torch.Tensor` of shape `(batch, num_features)`: The activations before the last layer.

        Raises:
            ValueError: The images are of another shape.
        """
        if images.shape[1:] != (1, 28, 28):
            raise ValueError(
                f"`images` must be of shape (batch, 1, 28, 28), but are of shape {tuple(images.shape)}."
            )
        return F.relu(self.to_features(self.stages(images).flatten(1)))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """
        Args:
            images (`torch.Tensor` of shape `(batch, 1, 28, 28)`): Images in [-1, 1].

        Returns:
            `torch.Tensor` of shape `(batch, num_classes)`: Logits of the classes.
        """
        return self.to_logits(F.dropout(self.features(images), 0.3, self.training))


@torch.no_grad()
def accuracy(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, batch_size: int = 500) -> float:
    """
    Share of images whose likeliest class is their label.

    Args:
        model (`nn.Module`): Maps images to logits; put into evaluation mode.
        images (`torch.Tensor` of shape `(M, 1, 28, 28)`, uint8): The images.
        labels (`torch.Tensor` of shape `(M,)`): Their classes.
        batch_size (`int`, defaults to 500): Images at a time.

    Returns:
        `float`: The accuracy, in [0, 1].
    """
    model.eval()
    hits = [
        model(batch.float() / 127.5 - 1).argmax(1) == classes
        for batch, classes in zip(images.split(batch_size), labels.split(batch_size))
    ]
    return torch.cat(hits).float().mean().item()


def main():
    from datasets import load_dataset

    from ..data import load_images

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", help="data set with a train and a test split")
    parser.add_argument("output", help="folder for the weights")
    parser.add_argument("--epochs", type=int, default=8, help="passes over the data (default: %(default)s)")
    parser.add_argument("--batch_size", type=int, default=128, help="images a step (default: %(default)s)")
    parser.add_argument(
        "--learning_rate", type=float, default=3e-3, help="largest step size (default: %(default)s)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of everything random (default: %(default)s)"
    )
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    train, test = (
        load_images(load_dataset(args.data, split=split), resolution=28) for split in ("train", "test")
    )
    model = FashionMNISTClassifier(num_classes=len(train.class_names))
    loader = torch.utils.data.DataLoader(train, args.batch_size, shuffle=True, drop_last=True)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, args.learning_rate, total_steps=args.epochs * len(loader)
    )
    for epoch in range(args.epochs):
        model.train()
        for batch in tqdm(loader, desc=f"Epoch {epoch + 1} of {args.epochs}"):
            images, labels = batch["images"], batch["class_labels"]
            flipped = torch.where(
                (torch.rand(len(images)) < 0.5)[:, None, None, None], images.flip(-1), images
            )
            loss = F.cross_entropy(model(flipped), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"Test accuracy after epoch {epoch + 1}: {accuracy(model, test.images, test.labels):.4f}")
    model.save_pretrained(args.output)


if __name__ == "__main__":
    main()
