r"""
Non-leaking augmentation (https://huggingface.co/papers/2206.00364, app. F.2;
https://huggingface.co/papers/2006.06676).

Images are transformed at random and the network is told how, by nine labels that are zero where
nothing was done. So it learns from more images than there are, and with all labels zero it draws
the data as they are.

| transform | drawn | labels | strength |
|---|---|---|---|
| x-flip (always tried) | {0, 1} | w | |
| y-flip | {0, 1} | w | |
| isotropic scale | w ~ N(0, 1) | w | factor 2^(0.2 w) |
| rotation | w ~ U(-π, π) | cos w - 1, sin w | |
| anisotropic scale | w ~ N(0, 1), axis r ~ U(-π, π) in half of the cases, else 0 | w cos r, w sin r | factors 2^(±0.2 w) |
| translation | w ~ N(0, 1)² | w_x, w_y | 0.125 size w |
"""

import math

import torch
import torch.nn.functional as F


# The orthonormal wavelet filter sym6: its shifts by two are orthonormal, so going up and down by
# two with it changes nothing.
SYM6 = (
    0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633,
    0.4910559419267466, 0.787641141030194, 0.3379294217276218, -0.07263752278646252,
    -0.021060292512300564, 0.04472490177066578, 0.0017677118642428036, -0.007800708325034148,
)  # fmt: skip


class Augmentation:
    """
    Draws transforms for a batch and applies them.

    Args:
        p (`float`): Probability of each transform but the x-flip, which is tried for every image
            unless `p` is 0.

    Raises:
        ValueError: `p` is no probability.
    """

    num_labels = 9

    def __init__(self, p: float):
        if not 0 <= p <= 1:
            raise ValueError(f"`p` must lie in [0, 1], but is {p}.")
        self.p = p

    def draw(
        self, count: int, generator: torch.Generator | None = None, device: torch.device | str | None = None
    ) -> torch.Tensor:
        """
        Draws the transforms of some images.

        Args:
            count (`int`): Number of images.
            generator (`torch.Generator`, *optional*): Source of randomness, on the device.
            device (`torch.device`, *optional*): Where it draws.

        Returns:
            `torch.Tensor` of shape `(count, 8)`: Flips along x and y, scale, rotation, stretch and
                its axis, and shifts along x and y; zero where nothing is done.
        """

        def chance(p):
            return torch.rand(count, generator=generator, device=device) < p

        def normal():
            return torch.randn(count, generator=generator, device=device)

        def angle():
            return (2 * torch.rand(count, generator=generator, device=device) - 1) * math.pi

        x_flip = (chance(1.0 if self.p else 0.0) & chance(0.5)).float()
        y_flip = (chance(self.p) & chance(0.5)).float()
        scale = normal() * chance(self.p)
        rotation = angle() * chance(self.p)
        stretch = normal() * chance(self.p)
        axis = angle() * chance(0.5)
        shift = torch.stack([normal(), normal()]) * chance(self.p)
        return torch.stack([x_flip, y_flip, scale, rotation, stretch, axis, *shift], dim=1)

    def __call__(self, images: torch.Tensor, transforms: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            images (`torch.Tensor` of shape `(batch, C, H, W)`): The images.
            transforms (`torch.Tensor` of shape `(batch, 8)`): What is done to each, from
                [`~Augmentation.draw`].

        Returns:
            `tuple[torch.Tensor, torch.Tensor]`: The transformed images, and labels of shape
                `(batch, 9)`.
        """
        x_flip, y_flip, scale, rotation, stretch, axis, *shift = transforms.to(images).unbind(1)
        labels = torch.stack(
            [
                x_flip, y_flip, scale, rotation.cos() - 1, rotation.sin(),
                stretch * axis.cos(), stretch * axis.sin(), *shift,
            ],
            dim=1,
        )  # fmt: skip

        # Flips are exact; the rest is one affine map and one resampling, of the images that have any.
        for column, dim in ((0, -1), (1, -2)):
            images = torch.where(labels[:, column].bool()[:, None, None, None], images.flip(dim), images)
        moved = (labels[:, 2:] != 0).any(1).nonzero().squeeze(1)
        if len(moved):
            size = labels.new_tensor([images.shape[-1], images.shape[-2]])
            matrix = (
                _stretched(stretch, axis) @ _rotated(rotation) * (2 ** (0.2 * labels[:, 2]))[:, None, None]
            )
            images = images.index_copy(
                0, moved, resample(images[moved], matrix[moved], (0.125 * size * labels[:, 7:])[moved])
            )
        return images, labels


def _rotated(angle):
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([cos, -sin, sin, cos], dim=1).view(-1, 2, 2)


def _stretched(weight, axis):
    factors = torch.stack([2 ** (0.2 * weight), 2 ** (-0.2 * weight)], dim=1)
    return _rotated(axis) @ torch.diag_embed(factors) @ _rotated(-axis)


def resample(images: torch.Tensor, matrix: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """
    Moves what is at v to `matrix` v + `shift`, both from the centre in pixels, with mirrored
    borders and without aliasing: by bilinear interpolation at twice the resolution, to which and
    from which the wavelet filter sym6 leads.

    Args:
        images (`torch.Tensor` of shape `(batch, C, H, W)`): The images.
        matrix (`torch.Tensor` of shape `(batch, 2, 2)`): Linear maps of (x, y).
        shift (`torch.Tensor` of shape `(batch, 2)`): Translations (x, y), in pixels.

    Returns:
        `torch.Tensor` of shape `(batch, C, H, W)`: The moved images; unchanged by the identity.
    """
    count, channels, height, width = images.shape
    taps = images.new_tensor(SYM6)
    delay = (
        (taps * torch.arange(len(taps), device=taps.device)).sum() / taps.sum()
    ).item()  # where a pixel lies among its taps
    kernel = taps.outer(taps).expand(channels, 1, -1, -1)

    padding = (height // 2, width // 2)
    padded = F.pad(images, (padding[1], padding[1], padding[0], padding[0]), mode="reflect")
    fine = 2 * F.conv_transpose2d(padded, kernel, stride=2, groups=channels)

    # Where each fine pixel of the result comes from, among the fine pixels of the padded images
    rows, columns = (torch.arange(2 * n + len(taps) - 2, device=images.device) for n in (height, width))
    y, x = ((index - delay) / 2 - (n - 1) / 2 for index, n in ((rows, height), (columns, width)))
    target = torch.stack([x.expand(len(y), -1), y[:, None].expand(-1, len(x))], dim=-1).to(images)
    source = torch.einsum("bij,hwj->bhwi", torch.linalg.inv(matrix), target) - torch.einsum(
        "bij,bj->bi", torch.linalg.inv(matrix), shift
    ).view(count, 1, 1, 2)
    centre = source.new_tensor([(width - 1) / 2 + padding[1], (height - 1) / 2 + padding[0]])
    index = 2 * (source + centre) + delay
    grid = 2 * index / (source.new_tensor([fine.shape[3], fine.shape[2]]) - 1) - 1
    moved = F.grid_sample(fine, grid, mode="bilinear", padding_mode="reflection", align_corners=True)
    return F.conv2d(moved, kernel / 2, stride=2, groups=channels)
