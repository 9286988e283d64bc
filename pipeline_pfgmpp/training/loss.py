r"""
The perturbation objective of PFGM++ (https://huggingface.co/papers/2302.04265, eq. 10) in EDM's
variables:

$$\mathbb{E}_{y, \sigma, \varepsilon}\;
  \lambda(\sigma)\, \lVert F(y + \sigma\varepsilon, \sigma) - y \rVert^2, \qquad
  \ln\sigma \sim \mathcal{N}(P_{mean}, P_{std}^2), \quad
  \lambda(\sigma) = \frac{\sigma^2 + \sigma_d^2}{(\sigma\sigma_d)^2},$$

with $\varepsilon$ the Student-t noise of D degrees of freedom. At D = infinity it is EDM's.

With a reference batch, the posterior mean over the batch replaces $y$: this is PFGM's Poisson field
at D = 1 (https://huggingface.co/papers/2209.11178) and the stable target field at D = infinity
(https://huggingface.co/papers/2302.00670). Its expectation is nearly the same, and its variance smaller.
"""

import math
from dataclasses import dataclass, fields
from typing import TypeVar

import torch
from diffusers import ModelMixin

from ..noise import SMALLEST_D_FOR_IMAGES, field_target, parse_dimension
from ..scheduling_pfgmpp import PFGMPPScheduler


# Beyond this D the kernel of an image is practically Gaussian, so larger ones are drawn as infinity.
LARGEST_FINITE_D = 2.0**18
SHARE_OF_INFINITY = 0.1


@dataclass(frozen=True)
class DimensionRange:
    """
    The distribution of D for networks that are conditioned on it: log-uniform from `low` to `high`.

    If `high` is infinite, D is log-uniform up to 2^18 for 90 % of the images, and infinite for the rest.

    Args:
        low (`float`): The smallest D.
        high (`float`): The largest D, `inf` for infinity; equal to `low` for a single D.

    Raises:
        ValueError: The two do not form a range, or D is too small for a pipeline.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        for D in (self.low, self.high):
            parse_dimension(D, SMALLEST_D_FOR_IMAGES)
        is_open = self.low < self.high == math.inf
        if not self.low <= self.high or (is_open and self.low >= LARGEST_FINITE_D):
            raise ValueError(
                f"`D` must be a range low:high with low < high, but is {self.low:g}:{self.high:g}."
            )

    @classmethod
    def parse(cls, text: str) -> "DimensionRange":
        """
        Parse a D or a range.

        Args:
            text (`str`): Such as `"128"`, `"inf"`, `"16:2048"` or `"16:inf"`.

        Returns:
            [`DimensionRange`]: The range.

        Raises:
            ValueError: The text is not of this form.
        """
        low, *high = text.split(":", 1)
        try:
            return cls(float(low), float(high[0] if high else low))
        except ValueError:
            raise ValueError(
                f"`D` must be a number of at least {SMALLEST_D_FOR_IMAGES}, inf, or a range such as 16:inf,"
                f" but is {text!r}."
            ) from None

    def __str__(self) -> str:
        return f"{self.low:g}" if self.low == self.high else f"{self.low:g}:{self.high:g}"

    @property
    def middle(self) -> float:
        """The D to sample at by default: the geometric mean of the finite part."""
        if self.low == self.high:
            return self.low
        return math.sqrt(self.low * min(self.high, LARGEST_FINITE_D))

    def draw(
        self,
        count: int,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> torch.Tensor:
        """
        Draw one D per image.

        Args:
            count (`int`): Number of images.
            generator (`torch.Generator`, *optional*): Source of randomness, on `device`.
            device (`torch.device` or `str`, *optional*): Where the numbers are drawn.

        Returns:
            `torch.Tensor` of shape `(count,)`: The dimensions, in float64 on the CPU.
        """
        if self.low == self.high:
            return torch.full((count,), self.low, dtype=torch.float64)
        top = min(self.high, LARGEST_FINITE_D)
        position, chance = torch.rand(2, count, generator=generator, device=device).double().cpu()
        D = self.low * (top / self.low) ** position
        if self.high < math.inf:
            return D
        return torch.where(chance < SHARE_OF_INFINITY, math.inf, D)


Drawn = TypeVar("Drawn", bound="Perturbation")


@dataclass(frozen=True)
class Perturbation:
    """
    What is random in the loss of a batch; `perturbation[part]` belongs to a slice of the batch.

    Args:
        sigma (`torch.Tensor` of shape `(batch,)`): The noise levels.
        D (`torch.Tensor` of shape `(batch,)`, `float` or `None`): The augmented dimension of each
            image, or of all of them; None is infinity.
        noise (`torch.Tensor` of shape `(batch, C, H, W)`): Unit noise.
        target_sigma (`torch.Tensor` of shape `(batch,)`): The smaller noise levels of the targets; 0 is the
            image itself.
    """

    sigma: torch.Tensor
    D: torch.Tensor | float | None
    noise: torch.Tensor
    target_sigma: torch.Tensor

    def __getitem__(self: Drawn, part: slice) -> Drawn:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        tensors = {name: value[part] for name, value in values.items() if isinstance(value, torch.Tensor)}
        return type(self)(**(values | tensors))


@dataclass(frozen=True)
class StepDraws:
    """
    What is random in one optimisation step besides dropout, for the images of all processes and passes.

    Args:
        perturbation ([`Perturbation`]): What the loss draws.
        transforms (`torch.Tensor` of shape `(batch, 8)`, *optional*): Transforms of [`Augmentation`].
        symmetries (`torch.Tensor` of shape `(batch,)`, *optional*): How images are turned and mirrored.
        kept (`torch.Tensor` of shape `(batch,)`, *optional*): Which degraded images the network is shown;
            None is all.
    """

    perturbation: Perturbation
    transforms: torch.Tensor | None
    symmetries: torch.Tensor | None
    kept: torch.Tensor | None


class PFGMPPLoss:
    """
    The training loss of a network under a scheduler, which owns D, sigma_data and the preconditioning.

    Args:
        scheduler ([`PFGMPPScheduler`]): Its D determines the noise; its preconditioning wraps the
            network.
        P_mean (`float`, defaults to -1.2): Mean of ln(sigma).
        P_std (`float`, defaults to 1.2): Standard deviation of ln(sigma).
        dimensions ([`DimensionRange`], *optional*): Distribution of D for a network conditioned on
            it, which receives the D of each image.

    Attributes:
        critic (`ModelMixin` or `None`): A network that learns along with the one that is trained, if the
            objective needs one.
        uses_dropout (`bool`): Whether the network drops activations and classes in training.
    """

    critic: ModelMixin | None = None
    uses_dropout = True

    def __init__(
        self,
        scheduler: PFGMPPScheduler,
        P_mean: float = -1.2,
        P_std: float = 1.2,
        dimensions: DimensionRange | None = None,
    ):
        self.scheduler = scheduler
        self.P_mean = P_mean
        self.P_std = P_std
        self.dimensions = dimensions

    def draw(
        self,
        shape: tuple[int, ...],
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        progress: float = 1.0,
    ) -> Perturbation:
        """
        Draw what is random: noise levels, dimensions and noise.

        Args:
            shape (`tuple[int, ...]`): Shape of the images, `(batch, C, H, W)`.
            generator (`torch.Generator`, *optional*): Source of randomness, on `device`.
            device (`torch.device` or `str`, *optional*): Where the noise is drawn. A tensor of
                dimensions is on the CPU.
            dtype (`torch.dtype`, *optional*): Type of noise levels and noise; by default torch's
                default type.
            progress (`float`, defaults to 1): Fraction of the training that is done. This objective is the
                same throughout; others follow a curriculum.

        Returns:
            [`Perturbation`]: The draws.
        """
        normal = torch.randn(shape[0], generator=generator, device=device, dtype=dtype)
        sigma = (self.P_mean + self.P_std * normal).exp()
        D = self.scheduler.config.D
        if self.dimensions is not None:
            D = self.dimensions.draw(shape[0], generator, device)
        noise = self.scheduler.sample_noise(shape, generator, device, dtype, D)
        return Perturbation(sigma, D, noise, torch.zeros_like(sigma))

    def __call__(
        self,
        unet: torch.nn.Module,
        images: torch.Tensor,
        perturbation: Perturbation,
        references: torch.Tensor | None = None,
        **conditioning: torch.Tensor,
    ) -> torch.Tensor:
        """
        Compute the loss of each image.

        Args:
            unet (`torch.nn.Module`): Called as `unet(c_in * x, c_noise, **conditioning)`.
            images (`torch.Tensor` of shape `(batch, C, H, W)`): Data in [-1, 1].
            perturbation ([`Perturbation`]): What is random, from [`~PFGMPPLoss.draw`].
            references (`torch.Tensor` of shape `(M, C, H, W)`, *optional*): A larger batch that
                contains the images. The posterior mean over it is then the target.
            conditioning (`torch.Tensor`): Further inputs of the network, such as `class_labels`.

        Returns:
            `torch.Tensor` of shape `(batch,)`: The weighted squared error of each image, averaged
                over its pixels and channels.
        """
        sigma = perturbation.sigma
        x = images + sigma.view(-1, 1, 1, 1) * perturbation.noise
        target = images
        if references is not None:
            target = field_target(x, references, sigma, perturbation.D)
        denoised = denoise(unet, self.scheduler, x, sigma, perturbation.D, **conditioning)
        weight = self.scheduler.weigh_loss(sigma, perturbation.D)
        return weight * (denoised - target).square().flatten(1).mean(1)


def denoise(
    unet: torch.nn.Module,
    scheduler: PFGMPPScheduler,
    x: torch.Tensor,
    sigma: torch.Tensor,
    D: torch.Tensor | float | None,
    **conditioning: torch.Tensor,
) -> torch.Tensor:
    r"""
    Compute $F(x, \sigma) = c_{skip} x + c_{out} \, net(c_{in} x, c_{noise})$ of a network.

    Args:
        unet (`torch.nn.Module`): Called as `unet(c_in * x, c_noise, **conditioning)`.
        scheduler ([`PFGMPPScheduler`]): Owns the preconditioning.
        x (`torch.Tensor` of shape `(batch, C, H, W)`): Perturbed images.
        sigma (`torch.Tensor` of shape `(batch,)`): Their noise levels, which must be positive.
        D (`torch.Tensor` of shape `(batch,)`, `float` or `None`): A tensor is an input of the network.
        conditioning (`torch.Tensor`): Further inputs of the network, such as `class_labels`; `condition`, a
            degraded image, is scaled by c_in as the perturbed images are.

    Returns:
        `torch.Tensor`: F, in the type of `x`.
    """
    if isinstance(D, torch.Tensor):
        conditioning["D"] = D.to(x)
    levels = sigma.view(-1, 1, 1, 1)
    if "condition" in conditioning:
        conditioning["condition"] = scheduler.precondition_inputs(conditioning["condition"], levels, D)
    model_input = scheduler.precondition_inputs(x, levels, D)
    output = unet(model_input, scheduler.precondition_noise(sigma), return_dict=False, **conditioning)[0]
    return scheduler.precondition_outputs(x, output.to(x.dtype), levels, D)


class UncertaintyWeighting(torch.nn.Module):
    r"""
    Weights noise levels by the network's uncertainty about them, which is learned together with it
    (https://huggingface.co/papers/2312.02696, eq. 14 and 21).

    The loss becomes $L e^{-u(\sigma)} + u(\sigma)$. It is smallest if $u$ is the logarithm of the mean
    loss at that level, so that every level contributes equally.

    Args:
        num_frequencies (`int`, defaults to 64): Number of random Fourier features of ln(sigma) / 4,
            of which u is a linear function.
    """

    frequencies: torch.Tensor
    phases: torch.Tensor

    def __init__(self, num_frequencies: int = 64):
        super().__init__()
        rng = torch.Generator().manual_seed(0)
        self.register_buffer("frequencies", 2 * math.pi * torch.randn(num_frequencies, generator=rng))
        self.register_buffer("phases", 2 * math.pi * torch.rand(num_frequencies, generator=rng))
        self.linear = torch.nn.Linear(num_frequencies, 1)
        torch.nn.init.zeros_(self.linear.weight)
        torch.nn.init.zeros_(self.linear.bias)

    def forward(self, loss: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """
        Weight the losses of a batch.

        Args:
            loss (`torch.Tensor` of shape `(batch,)`): The loss of each image.
            sigma (`torch.Tensor` of shape `(batch,)`): Its noise level.

        Returns:
            `torch.Tensor` of shape `(batch,)`: The weighted loss.
        """
        features = (sigma.log()[:, None] / 4 * self.frequencies + self.phases).cos()
        u = self.linear(features).squeeze(1)
        return loss * (-u).exp() + u
