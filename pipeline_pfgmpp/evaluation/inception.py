"""
The Inception-v3 network (https://huggingface.co/papers/1512.00567) whose features FID is measured
over: the graph of 2015-12-05, with its pooling, its 1,008 classes and its way of resizing, under
the names of the state dict that circulates.
"""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn


def convolution(
    in_channels: int, out_channels: int, kernel: int | tuple[int, int] = 1, stride: int = 1, padding=0
):
    """A convolution, its normalisation and a ReLU."""
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(in_channels, out_channels, kernel, stride, padding, bias=False),
            bn=nn.BatchNorm2d(out_channels, eps=0.001),
            relu=nn.ReLU(),
        )
    )


class Mixed(nn.Module):
    """
    Branches side by side, their results one after the other.

    Args:
        in_channels (`int`): Channels of the input.
        branches (`list`): For each branch its steps, tuples of a name, `out_channels`, `kernel`,
            `stride` and `padding`; where two stand in a list, both take what came before.
        pool (`nn.Module`): The pooling of the last branch.
        pool_channels (`int`): Channels of the convolution after it; 0 is none.
    """

    def __init__(self, in_channels: int, branches: list[list], pool: nn.Module, pool_channels: int = 0):
        super().__init__()
        self.branches, self.pool, self.out_channels = [], pool, pool_channels or in_channels
        for steps in branches:
            channels, names = in_channels, []
            for step in steps:
                sides = step if isinstance(step, list) else [step]
                for name, *shape in sides:
                    self.add_module(name, convolution(channels, *shape))
                names.append([name for name, *_ in sides])
                channels = sum(shape[0] for _, *shape in sides)
            self.branches.append(names)
            self.out_channels += channels
        if pool_channels:
            self.branch_pool = convolution(in_channels, pool_channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        results = []
        for names in self.branches:
            y = x
            for sides in names:
                y = torch.cat([self.get_submodule(name)(y) for name in sides], dim=1)
            results.append(y)
        pooled = self.pool(x)
        results.append(self.branch_pool(pooled) if hasattr(self, "branch_pool") else pooled)
        return torch.cat(results, dim=1)


def _average():
    return nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)


def _mixed_35(channels, pool_channels):
    branches = [
        [("branch1x1", 64)],
        [("branch5x5_1", 48), ("branch5x5_2", 64, 5, 1, 2)],
        [("branch3x3dbl_1", 64), ("branch3x3dbl_2", 96, 3, 1, 1), ("branch3x3dbl_3", 96, 3, 1, 1)],
    ]
    return Mixed(channels, branches, _average(), pool_channels)


def _to_17(channels):
    branches = [
        [("branch3x3", 384, 3, 2)],
        [("branch3x3dbl_1", 64), ("branch3x3dbl_2", 96, 3, 1, 1), ("branch3x3dbl_3", 96, 3, 2)],
    ]
    return Mixed(channels, branches, nn.MaxPool2d(3, 2))


def _mixed_17(channels, width):
    row, column = ((1, 7), 1, (0, 3)), ((7, 1), 1, (3, 0))
    branches = [
        [("branch1x1", 192)],
        [("branch7x7_1", width), ("branch7x7_2", width, *row), ("branch7x7_3", 192, *column)],
        [
            ("branch7x7dbl_1", width),
            ("branch7x7dbl_2", width, *column),
            ("branch7x7dbl_3", width, *row),
            ("branch7x7dbl_4", width, *column),
            ("branch7x7dbl_5", 192, *row),
        ],
    ]
    return Mixed(channels, branches, _average(), 192)


def _to_8(channels):
    branches = [
        [("branch3x3_1", 192), ("branch3x3_2", 320, 3, 2)],
        [
            ("branch7x7x3_1", 192),
            ("branch7x7x3_2", 192, (1, 7), 1, (0, 3)),
            ("branch7x7x3_3", 192, (7, 1), 1, (3, 0)),
            ("branch7x7x3_4", 192, 3, 2),
        ],
    ]
    return Mixed(channels, branches, nn.MaxPool2d(3, 2))


def _mixed_8(channels, pool):
    row, column = (384, (1, 3), 1, (0, 1)), (384, (3, 1), 1, (1, 0))
    branches = [
        [("branch1x1", 320)],
        [("branch3x3_1", 384), [("branch3x3_2a", *row), ("branch3x3_2b", *column)]],
        [
            ("branch3x3dbl_1", 448),
            ("branch3x3dbl_2", 384, 3, 1, 1),
            [("branch3x3dbl_3a", *row), ("branch3x3dbl_3b", *column)],
        ],
    ]
    return Mixed(channels, branches, pool, 192)


def resize(images: torch.Tensor, size: int) -> torch.Tensor:
    """
    Bilinear interpolation as TensorFlow 1 did it: pixel i of the result lies at i · (old size / new
    size); no antialiasing.

    Args:
        images (`torch.Tensor` of shape `(batch, C, H, W)`): Images.
        size (`int`): Height and width of the result.

    Returns:
        `torch.Tensor` of shape `(batch, C, size, size)`: The resized images.
    """

    def weights(length):
        places = torch.arange(size, dtype=torch.float64) * (length / size)
        pixels = torch.arange(length, dtype=torch.float64)
        matrix = (1 - (places.clamp_max(length - 1)[:, None] - pixels).abs()).clamp_min(0)
        return matrix.to(images)

    return weights(images.shape[-2]) @ images @ weights(images.shape[-1]).T


class InceptionV3(nn.Module):
    """The network up to its 2,048 features, and the layer that turns them into logits."""

    num_features = 2048

    def __init__(self):
        super().__init__()
        self.Conv2d_1a_3x3 = convolution(3, 32, 3, 2)
        self.Conv2d_2a_3x3 = convolution(32, 32, 3)
        self.Conv2d_2b_3x3 = convolution(32, 64, 3, 1, 1)
        self.maxpool1 = nn.MaxPool2d(3, 2)
        self.Conv2d_3b_1x1 = convolution(64, 80)
        self.Conv2d_4a_3x3 = convolution(80, 192, 3)
        self.maxpool2 = nn.MaxPool2d(3, 2)
        self.Mixed_5b = _mixed_35(192, 32)
        self.Mixed_5c = _mixed_35(256, 64)
        self.Mixed_5d = _mixed_35(288, 64)
        self.Mixed_6a = _to_17(288)
        self.Mixed_6b = _mixed_17(768, 128)
        self.Mixed_6c = _mixed_17(768, 160)
        self.Mixed_6d = _mixed_17(768, 160)
        self.Mixed_6e = _mixed_17(768, 192)
        self.Mixed_7a = _to_8(768)
        self.Mixed_7b = _mixed_8(1280, _average())
        self.Mixed_7c = _mixed_8(2048, nn.MaxPool2d(3, 1, 1))
        self.fc = nn.Linear(self.num_features, 1008)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """
        Args:
            images (`torch.Tensor` of shape `(batch, 1 or 3, H, W)`): Images in [-1, 1].

        Returns:
            `torch.Tensor` of shape `(batch, 2048)`: The activations before the last layer.
        """
        x = resize((images.expand(-1, 3, -1, -1) + 1) * 127.5, 299)
        x = (x - 128) / 128
        for name, module in self.named_children():
            if name != "fc":
                x = module(x)
        return x.mean((2, 3))

    def to_logits(self, features: torch.Tensor) -> torch.Tensor:
        """Logits without their bias, which the Inception score is taken over."""
        return F.linear(features, self.fc.weight)
