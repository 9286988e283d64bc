r"""
Non-leaking augmentation (https://huggingface.co/papers/2206.00364, app. F.2;
https://huggingface.co/papers/2006.06676).

Images are transformed at random, and the network receives nine labels that describe the transform
and are zero if there is none. So the network learns from more images than the data hold, and
with all labels zero it generates images like the original ones.

| transform | drawn | labels | strength |
|---|---|---|---|
| x-flip (always tried) | {0, 1} | w | |
| y-flip | {0, 1} | w | |
| isotropic scale | w ~ N(0, 1) | w | factor 2^(0.2 w) |
| rotation | w ~ U(-π, π) | cos w - 1, sin w | |
| anisotropic scale | w ~ N(0, 1), axis r | w cos r, w sin r | factors 2^(±0.2 w) |
| translation | w ~ N(0, 1)² | w_x, w_y | 0.125 size w |

The axis r is drawn from U(-π, π) in half of the cases, and is 0 in the others.
"""

import math

import torch
import torch.nn.functional as F


# The orthonormal wavelet filter sym6: its shifts by two are orthonormal, so upsampling and
# downsampling by two with it changes nothing.
SYM6 = (
    0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633,
    0.4910559419267466, 0.787641141030194, 0.3379294217276218, -0.07263752278646252,
    -0.021060292512300564, 0.04472490177066578, 0.0017677118642428036, -0.007800708325034148,
)  # fmt: skip


def draw_symmetries(
    count: int,
    flip: bool,
    turn: bool,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> torch.Tensor | None:
    """
    Draw symmetries of the square for a batch.

    Args:
        count (`int`): Number of images.
        flip (`bool`): Whether images are mirrored, each with probability 1/2.
        turn (`bool`): Whether they are turned by 0 to 3 quarters.
        generator (`torch.Generator`, *optional*): Source of randomness, on `device`.
        device (`torch.device` or `str`, *optional*): Where the numbers are drawn.

    Returns:
        `torch.Tensor` of shape `(count,)` or `None`: The number of quarter turns of each image, plus 4 if
            it is then mirrored; None if nothing is drawn.
    """
    symmetries = None
    if flip:
        symmetries = 4 * (torch.rand(count, generator=generator, device=device) < 0.5)
    if turn:
        turns = torch.randint(4, (count,), generator=generator, device=device)
        symmetries = turns if symmetries is None else symmetries + turns
    return symmetries


def apply_symmetries(images: torch.Tensor, symmetries: torch.Tensor) -> torch.Tensor:
    """
    Turn and mirror images.

    Args:
        images (`torch.Tensor` of shape `(batch, C, H, W)`): The images, squares if they are turned.
        symmetries (`torch.Tensor` of shape `(batch,)`): From [`draw_symmetries`].

    Returns:
        `torch.Tensor`: The images in their new positions.
    """
    moved = images.clone()
    for symmetry in symmetries.unique().tolist():
        chosen = symmetries == symmetry
        turned = images[chosen].rot90(symmetry % 4, (-2, -1))
        moved[chosen] = turned.flip(-1) if symmetry >= 4 else turned
    return moved


class Augmentation:
    """
    Draws random transforms for a batch and applies them.

    Args:
        p (`float`): Probability of each transform except the x-flip, which half of the images
            undergo unless `p` is 0.

    Raises:
        ValueError: `p` is not a probability.
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
        Draw the transforms of a batch.

        Args:
            count (`int`): Number of images.
            generator (`torch.Generator`, *optional*): Source of randomness, on `device`.
            device (`torch.device` or `str`, *optional*): Where the numbers are drawn.

        Returns:
            `torch.Tensor` of shape `(count, 8)`: Flips along x and y, scale, rotation, stretch and
                its axis, and shifts along x and y; zero for no transform.
        """

        def draw_chance(p: float) -> torch.Tensor:
            return torch.rand(count, generator=generator, device=device) < p

        def draw_normal() -> torch.Tensor:
            return torch.randn(count, generator=generator, device=device)

        def draw_angle() -> torch.Tensor:
            return (2 * torch.rand(count, generator=generator, device=device) - 1) * math.pi

        x_flip = (draw_chance(1.0 if self.p else 0.0) & draw_chance(0.5)).float()
        y_flip = (draw_chance(self.p) & draw_chance(0.5)).float()
        scale = draw_normal() * draw_chance(self.p)
        rotation = draw_angle() * draw_chance(self.p)
        stretch = draw_normal() * draw_chance(self.p)
        axis = draw_angle() * draw_chance(0.5)
        shift = torch.stack([draw_normal(), draw_normal()]) * draw_chance(self.p)
        return torch.stack([x_flip, y_flip, scale, rotation, stretch, axis, *shift], dim=1)

    def __call__(self, images: torch.Tensor, transforms: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Apply transforms to images.

        Args:
            images (`torch.Tensor` of shape `(batch, C, H, W)`): The images.
            transforms (`torch.Tensor` of shape `(batch, 8)`): From [`~Augmentation.draw`].

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

        # Flips are exact. The rest is one affine map and one resampling of the images that need it.
        for column, dim in ((0, -1), (1, -2)):
            images = torch.where(labels[:, column].bool()[:, None, None, None], images.flip(dim), images)
        moved = (labels[:, 2:] != 0).any(1).nonzero().squeeze(1)
        if len(moved):
            size = labels.new_tensor([images.shape[-1], images.shape[-2]])
            factor = (2 ** (0.2 * labels[:, 2]))[:, None, None]
            matrix = _build_stretch(stretch, axis) @ _build_rotation(rotation) * factor
            pixels = 0.125 * size * labels[:, 7:]
            resampled = resample(images[moved], matrix[moved], pixels[moved])
            images = images.index_copy(0, moved, resampled)
        return images, labels


def _build_rotation(angle: torch.Tensor) -> torch.Tensor:
    """Build matrices of shape `(batch, 2, 2)`."""
    cos = angle.cos()
    sin = angle.sin()
    return torch.stack([cos, -sin, sin, cos], dim=1).view(-1, 2, 2)


def _build_stretch(weight: torch.Tensor, axis: torch.Tensor) -> torch.Tensor:
    """Build matrices of shape `(batch, 2, 2)` that stretch along an axis and shrink across it."""
    factors = torch.stack([2 ** (0.2 * weight), 2 ** (-0.2 * weight)], dim=1)
    return _build_rotation(axis) @ torch.diag_embed(factors) @ _build_rotation(-axis)


def resample(images: torch.Tensor, matrix: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """
    Move the pixel at v to `matrix` v + `shift`, where both positions count from the centre.

    Borders are mirrored. To avoid aliasing, images are upsampled to twice the resolution with the
    wavelet filter sym6, interpolated bilinearly there, and downsampled with the same filter.

    Args:
        images (`torch.Tensor` of shape `(batch, C, H, W)`): The images.
        matrix (`torch.Tensor` of shape `(batch, 2, 2)`): Linear maps of (x, y).
        shift (`torch.Tensor` of shape `(batch, 2)`): Translations (x, y), in pixels.

    Returns:
        `torch.Tensor` of shape `(batch, C, H, W)`: The moved images; the identity changes nothing.
    """
    count, channels, height, width = images.shape
    taps = images.new_tensor(SYM6)
    positions = torch.arange(len(taps), device=taps.device)
    delay = ((taps * positions).sum() / taps.sum()).item()  # where a pixel lies among its taps
    kernel = taps.outer(taps).expand(channels, 1, -1, -1)

    pad_y = height // 2
    pad_x = width // 2
    padded = F.pad(images, (pad_x, pad_x, pad_y, pad_y), mode="reflect")
    fine = 2 * F.conv_transpose2d(padded, kernel, stride=2, groups=channels)

    # Where each fine pixel of the result comes from, among the fine pixels of the padded images
    y = _place_fine_pixels(height, delay, images.device)
    x = _place_fine_pixels(width, delay, images.device)
    target = torch.stack([x.expand(len(y), -1), y[:, None].expand(-1, len(x))], dim=-1).to(images)
    inverse = torch.linalg.inv(matrix)
    offset = torch.einsum("bij,bj->bi", inverse, shift).view(count, 1, 1, 2)
    source = torch.einsum("bij,hwj->bhwi", inverse, target) - offset
    centre = source.new_tensor([(width - 1) / 2 + pad_x, (height - 1) / 2 + pad_y])
    index = 2 * (source + centre) + delay
    grid = 2 * index / (source.new_tensor([fine.shape[3], fine.shape[2]]) - 1) - 1
    moved = F.grid_sample(fine, grid, mode="bilinear", padding_mode="reflection", align_corners=True)
    return F.conv2d(moved, kernel / 2, stride=2, groups=channels)


def _place_fine_pixels(size: int, delay: float, device: torch.device) -> torch.Tensor:
    """Compute the positions of the fine pixels along one side, in pixels from the centre."""
    index = torch.arange(2 * size + len(SYM6) - 2, device=device)
    return (index - delay) / 2 - (size - 1) / 2
