r"""
The matching objective of PFGM++: images of one call or a few, distributed as a denoiser's images of many.

The network f makes images as consistency sampling makes them. A second network, the critic, learns to
denoise these images while they change. Where its denoiser F differs from that of the teacher, the images
are not yet distributed as the teacher's, and the difference tells how they have to move:

$$\nabla_x L = \mathbb{E}_{\sigma, \varepsilon}\; \frac{F_{critic}(x_\sigma, \sigma)
  - F_{teacher}(x_\sigma, \sigma)}{\langle |x - F_{teacher}(x_\sigma, \sigma)| \rangle}, \qquad
  x_\sigma = x + \sigma\varepsilon,$$

with $\varepsilon$ the Student-t noise of D degrees of freedom. At D = infinity the numerator is
$\sigma^2$ times a difference of two scores, and this is distribution matching distillation
(https://huggingface.co/papers/2311.18828), trained on what the calls of sampling make
(https://huggingface.co/papers/2405.14867). At any D, $(x_\sigma - F) / \sigma$ is the direction of the
Poisson field of the images, and images whose fields agree everywhere are distributed alike. Inverse Poisson
flow matching (https://huggingface.co/papers/2509.22454) has the same aim, but differentiates both denoisers.

No image of the data is looked at: only their classes, and the degraded images that are restored.
"""

import copy
from dataclasses import dataclass

import torch
from diffusers import ModelMixin

from ..scheduler_config import get_default_steps
from ..scheduling_pfgmpp import PFGMPPScheduler
from .loss import DimensionRange, Perturbation, PFGMPPLoss, denoise
from .preparation import rebuild_network
from .teacher import Teacher, to_rows


SMALLEST_ERROR = 1e-3  # by which a difference of denoisers is divided, as a share of sigma_data
# What networks are conditioned on, by the entry of their configuration
CONDITIONS = {
    "label_dim": "classes",
    "num_class_embeds": "classes",
    "d_conditioning": "D",
    "augment_dim": "augmentation",
    "condition_channels": "degraded images",
}


@dataclass(frozen=True)
class Generation(Perturbation):
    """
    What is random in the images that a network makes, and in how they are perturbed afterwards.

    Args:
        sigma, D, noise, target_sigma: As for [`Perturbation`]; the last is not used.
        starts (`torch.Tensor` of shape `(batch, calls, C, H, W)`): Unit noise before each call.
        has_class (`torch.Tensor` of shape `(batch,)`): Which images have a class.
    """

    starts: torch.Tensor
    has_class: torch.Tensor


class MatchingLoss(PFGMPPLoss):
    """
    The matching loss of a network under a scheduler of consistency sampling, for its default steps.

    Args:
        unet (`ModelMixin`): The network. With `label_dropout` in its configuration, as many images are made
            without a class.
        scheduler ([`PFGMPPScheduler`]): As in [`PFGMPPLoss`], with `solver_type="consistency"`. Its
            `default_steps` and their noise levels are those that the network is trained for.
        teacher ([`Teacher`]): The denoiser whose images are to be made. Network and teacher must be
            conditioned on the same.
        P_mean (`float`, defaults to 0.0): Mean of ln(sigma), the noise at which the denoisers are compared.
        P_std (`float`, defaults to 1.6): Standard deviation of ln(sigma).
        dimensions ([`DimensionRange`], *optional*): As in [`PFGMPPLoss`].

    Attributes:
        critic (`ModelMixin`): The critic, which begins as a copy of the teacher. It is trained by the same
            optimiser as the network.

    Raises:
        ValueError: The teacher denoises at other D than the network or is conditioned on something else, or
            the scheduler is not one of consistency sampling.
    """

    uses_dropout = False  # the teacher would not see what the network drops

    def __init__(
        self,
        unet: ModelMixin,
        scheduler: PFGMPPScheduler,
        teacher: Teacher,
        P_mean: float = 0.0,
        P_std: float = 1.6,
        dimensions: DimensionRange | None = None,
    ):
        super().__init__(scheduler, P_mean, P_std, dimensions)
        if scheduler.config.solver_type != "consistency":
            raise ValueError(
                "`scheduler` must have the solver_type 'consistency', whose calls are trained, but has"
                f" {scheduler.config.solver_type!r}."
            )
        teacher.check_dimensions(dimensions, scheduler.config.D)
        check_conditions(unet, teacher.unet)
        self.teacher = teacher
        self.label_dropout = unet.config.get("label_dropout") or 0.0
        sampler = copy.deepcopy(scheduler)
        sampler.set_timesteps(get_default_steps(sampler))
        self.levels = sampler.sigmas[:-1].tolist()
        self.critic = rebuild_network(teacher.unet, teacher.unet.state_dict()).to(teacher.unet.device)

    def draw(
        self,
        shape: tuple[int, ...],
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        progress: float = 1.0,
    ) -> Generation:
        """
        Draw what is random.

        Args:
            shape, generator, device, dtype, progress: As for [`PFGMPPLoss.draw`].

        Returns:
            [`Generation`]: The draws.
        """
        drawn = super().draw(shape, generator, device, dtype)
        config = self.teacher.scheduler.config
        starts = [self.scheduler.sample_noise(shape, generator, device, dtype, drawn.D) for _ in self.levels]
        return Generation(
            sigma=drawn.sigma.clamp(config.sigma_min, config.sigma_max),
            D=drawn.D,
            noise=drawn.noise,
            target_sigma=drawn.target_sigma,
            starts=torch.stack(starts, 1),
            has_class=torch.rand(shape[0], generator=generator, device=device) >= self.label_dropout,
        )

    def __call__(  # type: ignore[override]  # takes what it has drawn itself
        self,
        unet: torch.nn.Module,
        images: torch.Tensor,
        perturbation: Generation,
        references: torch.Tensor | None = None,
        **conditioning: torch.Tensor,
    ) -> torch.Tensor:
        """
        Compute the losses of network and critic for each image.

        Args:
            unet (`torch.nn.Module`): The network, called as `unet(c_in * x, c_noise, **conditioning)` as
                often as in sampling.
            images (`torch.Tensor` of shape `(batch, C, H, W)`): Not looked at.
            perturbation ([`Generation`]): What is random, from [`~MatchingLoss.draw`].
            references: There are none for this objective.
            conditioning (`torch.Tensor`): Further inputs of the network, such as `class_labels`.

        Returns:
            `torch.Tensor` of shape `(batch,)`: The critic's error, and a term whose gradient with respect to
                the image is the direction above, averaged over the calls.

        Raises:
            ValueError: There are references.
        """
        if references is not None:
            raise ValueError("`references` must be None: the matching objective has no field target.")
        if self.label_dropout and "class_labels" in conditioning:
            rows = to_rows(conditioning["class_labels"], self.teacher.unet)
            conditioning["class_labels"] = rows * perturbation.has_class[:, None]
        image = torch.zeros_like(images)
        losses = []
        for level, start in zip(self.levels, perturbation.starts.unbind(1)):
            sigma = torch.full_like(perturbation.sigma, level)
            x = image.detach() + level * start
            image = denoise(unet, self.scheduler, x, sigma, perturbation.D, **conditioning)
            losses.append(self._compare(image, perturbation, **conditioning))
        return torch.stack(losses).mean(0)

    def _compare(
        self, images: torch.Tensor, perturbation: Perturbation, **conditioning: torch.Tensor
    ) -> torch.Tensor:
        """Compare what the critic knows of the images that were made with what the teacher expects."""
        sigma = perturbation.sigma
        D = perturbation.D
        levels = sigma.view(-1, 1, 1, 1)
        made = images.detach()
        x = made + levels * perturbation.noise
        known = denoise(self.critic, self.teacher.scheduler, x, sigma, D, **conditioning)
        wanted = self.teacher.denoise(
            x, levels, D, conditioning.get("class_labels"), conditioning.get("condition")
        )
        error = (made - wanted).abs().mean((1, 2, 3), keepdim=True)
        error = error.clamp_min(SMALLEST_ERROR * self.teacher.scheduler.config.sigma_data)
        moved = made - (known.detach() - wanted) / error
        weight = self.teacher.scheduler.weigh_loss(sigma, D)
        of_critic = weight * (known - made).square().flatten(1).mean(1)
        of_network = (images - moved).square().flatten(1).mean(1) / 2
        return of_critic + of_network


def check_conditions(unet: ModelMixin, teacher: ModelMixin) -> None:
    """
    Check that a network and its teacher are conditioned on the same.

    Args:
        unet (`ModelMixin`): The network.
        teacher (`ModelMixin`): The network of the teacher.

    Raises:
        ValueError: They are not, or the teacher does not know images without a class.
    """
    for name, condition in CONDITIONS.items():
        ours = unet.config.get(name) or 0
        theirs = teacher.config.get(name) or 0
        if ours != theirs:
            raise ValueError(
                f"The teacher must be conditioned on {condition} as the network is: {name} is {theirs} there"
                f" and {ours} here."
            )
    if unet.config.get("label_dropout") and not teacher.config.get("label_dropout"):
        raise ValueError(
            "The teacher was trained with a class always, so `label_dropout` must be 0, but is"
            f" {unet.config['label_dropout']:g}."
        )
