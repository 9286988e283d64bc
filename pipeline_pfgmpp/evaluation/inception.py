"""
The Inception-v3 network (https://huggingface.co/papers/1512.00567) that FID is measured with.

It is the graph of 2015-12-05, with its own pooling, 1,008 classes and way of resizing, under the
names of the state dict that is in circulation.
"""

from collections import OrderedDict
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


# A step of a branch: its name, then the arguments `out_channels`, `kernel`, `stride` and `padding` of
# its convolution.
Step = tuple[Any, ...]
# For each branch its steps, of which those in a list run in parallel.
Branches = list[list[Step | list[Step]]]


def make_convolution(
    in_channels: int,
    out_channels: int,
    kernel: int | tuple[int, int] = 1,
    stride: int = 1,
    padding: int | tuple[int, int] = 0,
) -> nn.Sequential:
    """
    Make a convolution followed by batch normalisation and a ReLU.

    Args:
        in_channels (`int`): Channels of the input.
        out_channels (`int`): Channels of the output.
        kernel (`int` or `tuple[int, int]`, defaults to 1): Size of the kernel.
        stride (`int`, defaults to 1): Stride.
        padding (`int` or `tuple[int, int]`, defaults to 0): Padding.

    Returns:
        `nn.Sequential`: The layers, named as in the state dict.
    """
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(in_channels, out_channels, kernel, stride, padding, bias=False),
            bn=nn.BatchNorm2d(out_channels, eps=0.001),
            relu=nn.ReLU(),
        )
    )


class Mixed(nn.Module):
    """
    A block of parallel branches, the results of which are concatenated.

    Args:
        in_channels (`int`): Channels of the input.
        branches (`list`): For each branch its steps. A list of steps in place of a step runs them
            in parallel and concatenates their results.
        pool (`nn.Module`): The pooling of the last branch.
        pool_channels (`int`, defaults to 0): Channels of the convolution after the pooling; with 0
            there is none.
    """

    def __init__(
        self,
        in_channels: int,
        branches: Branches,
        pool: nn.Module,
        pool_channels: int = 0,
    ):
        super().__init__()
        self.branches: list[list[list[str]]] = []
        self.pool = pool
        self.out_channels = pool_channels or in_channels
        for steps in branches:
            channels = in_channels
            names = []
            for step in steps:
                parallel = step if isinstance(step, list) else [step]
                for name, *arguments in parallel:
                    self.add_module(name, make_convolution(channels, *arguments))
                names.append([name for name, *_ in parallel])
                channels = sum(arguments[0] for _, *arguments in parallel)
            self.branches.append(names)
            self.out_channels += channels
        if pool_channels:
            self.branch_pool = make_convolution(in_channels, pool_channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """
        Apply the branches.

        Args:
            x (`torch.Tensor` of shape `(batch, in_channels, H, W)`): The input.

        Returns:
            `torch.Tensor`: The concatenated results.
        """
        results = []
        for names in self.branches:
            y = x
            for parallel in names:
                y = torch.cat([self.get_submodule(name)(y) for name in parallel], dim=1)
            results.append(y)
        pooled = self.pool(x)
        if hasattr(self, "branch_pool"):
            pooled = self.branch_pool(pooled)
        return torch.cat([*results, pooled], dim=1)


def _make_average() -> nn.AvgPool2d:
    return nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)


def _make_mixed_35(channels: int, pool_channels: int) -> Mixed:
    """Make a block at 35 by 35 pixels."""
    branches: Branches = [
        [("branch1x1", 64)],
        [("branch5x5_1", 48), ("branch5x5_2", 64, 5, 1, 2)],
        [("branch3x3dbl_1", 64), ("branch3x3dbl_2", 96, 3, 1, 1), ("branch3x3dbl_3", 96, 3, 1, 1)],
    ]
    return Mixed(channels, branches, _make_average(), pool_channels)


def _make_reduction_17(channels: int) -> Mixed:
    """Make the block that leads from 35 by 35 to 17 by 17 pixels."""
    branches: Branches = [
        [("branch3x3", 384, 3, 2)],
        [("branch3x3dbl_1", 64), ("branch3x3dbl_2", 96, 3, 1, 1), ("branch3x3dbl_3", 96, 3, 2)],
    ]
    return Mixed(channels, branches, nn.MaxPool2d(3, 2))


def _make_mixed_17(channels: int, width: int) -> Mixed:
    """Make a block at 17 by 17 pixels."""
    row = ((1, 7), 1, (0, 3))
    column = ((7, 1), 1, (3, 0))
    branches: Branches = [
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
    return Mixed(channels, branches, _make_average(), 192)


def _make_reduction_8(channels: int) -> Mixed:
    """Make the block that leads from 17 by 17 to 8 by 8 pixels."""
    branches: Branches = [
        [("branch3x3_1", 192), ("branch3x3_2", 320, 3, 2)],
        [
            ("branch7x7x3_1", 192),
            ("branch7x7x3_2", 192, (1, 7), 1, (0, 3)),
            ("branch7x7x3_3", 192, (7, 1), 1, (3, 0)),
            ("branch7x7x3_4", 192, 3, 2),
        ],
    ]
    return Mixed(channels, branches, nn.MaxPool2d(3, 2))


def _make_mixed_8(channels: int, pool: nn.Module) -> Mixed:
    """Make a block at 8 by 8 pixels."""
    row = (384, (1, 3), 1, (0, 1))
    column = (384, (3, 1), 1, (1, 0))
    branches: Branches = [
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
    Resize images bilinearly as TensorFlow 1 did.

    Pixel i of the result is read at i · (old size / new size), without antialiasing.

    Args:
        images (`torch.Tensor` of shape `(batch, C, H, W)`): Images.
        size (`int`): Height and width of the result, in pixels.

    Returns:
        `torch.Tensor` of shape `(batch, C, size, size)`: The resized images.
    """

    def make_weights(length: int) -> torch.Tensor:
        places = torch.arange(size, dtype=torch.float64) * (length / size)
        pixels = torch.arange(length, dtype=torch.float64)
        distances = (places.clamp_max(length - 1)[:, None] - pixels).abs()
        return (1 - distances).clamp_min(0).to(images)

    return make_weights(images.shape[-2]) @ images @ make_weights(images.shape[-1]).T


class InceptionV3(nn.Module):
    """The network up to its 2,048 features, and the layer that maps them to logits."""

    num_features = 2048

    def __init__(self):
        super().__init__()
        self.Conv2d_1a_3x3 = make_convolution(3, 32, 3, 2)
        self.Conv2d_2a_3x3 = make_convolution(32, 32, 3)
        self.Conv2d_2b_3x3 = make_convolution(32, 64, 3, 1, 1)
        self.maxpool1 = nn.MaxPool2d(3, 2)
        self.Conv2d_3b_1x1 = make_convolution(64, 80)
        self.Conv2d_4a_3x3 = make_convolution(80, 192, 3)
        self.maxpool2 = nn.MaxPool2d(3, 2)
        self.Mixed_5b = _make_mixed_35(192, 32)
        self.Mixed_5c = _make_mixed_35(256, 64)
        self.Mixed_5d = _make_mixed_35(288, 64)
        self.Mixed_6a = _make_reduction_17(288)
        self.Mixed_6b = _make_mixed_17(768, 128)
        self.Mixed_6c = _make_mixed_17(768, 160)
        self.Mixed_6d = _make_mixed_17(768, 160)
        self.Mixed_6e = _make_mixed_17(768, 192)
        self.Mixed_7a = _make_reduction_8(768)
        self.Mixed_7b = _make_mixed_8(1280, _make_average())
        self.Mixed_7c = _make_mixed_8(2048, nn.MaxPool2d(3, 1, 1))
        self.fc = nn.Linear(self.num_features, 1008)

    def extract(self, images: torch.Tensor) -> torch.Tensor:
        """
        Extract features: the activations before the last layer.

        Args:
            images (`torch.Tensor` of shape `(batch, 1 or 3, H, W)`): Images in [-1, 1].

        Returns:
            `torch.Tensor` of shape `(batch, 2048)`: The features.
        """
        x = resize((images.expand(-1, 3, -1, -1) + 1) * 127.5, 299)
        x = (x - 128) / 128
        for name, module in self.named_children():
            if name != "fc":
                x = module(x)
        return x.mean((2, 3))

    def to_logits(self, features: torch.Tensor) -> torch.Tensor:
        """
        Compute the logits that the Inception score is taken over, which leave out the bias.

        Args:
            features (`torch.Tensor` of shape `(batch, 2048)`): The features.

        Returns:
            `torch.Tensor` of shape `(batch, 1008)`: The logits.
        """
        return F.linear(features, self.fc.weight)
