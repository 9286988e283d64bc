r"""
The consistency objective of PFGM++, for one call of the network instead of many.

A consistency function $f(x, \sigma)$ maps every point of a field line to the line's end, which is an
image. It is the same function of the network as the denoiser, so that $f(x, 0) = x$ holds and training
starts from a denoiser. For points $x_t$ and $x_r$ of one line, $r < t$, it must give the same image:

$$\mathbb{E}\; \frac{1}{t - r} \Bigl(\sqrt{d^2 + c^2} - c\Bigr), \qquad
  d^2 = \tfrac1N \lVert f(x_t, t) - f^-(x_r, r) \rVert^2,$$

where $f^-$ is f without a gradient, and the image itself at r = 0
(https://huggingface.co/papers/2303.01469; https://huggingface.co/papers/2310.14189).

- Without a teacher, $x_t = y + t\varepsilon$ and $x_r = y + r\varepsilon$ share their noise. The line's
  slope $(x_t - \mathbb{E}[y|x_t])/t$ is the mean of $\varepsilon$ given $x_t$, for Student-t noise of
  any D as for Gaussian noise, so that in the mean $x_r$ lies on the line
  (https://huggingface.co/papers/2402.08159, https://huggingface.co/papers/2510.21857).
- With a teacher, $x_r$ is the end of its Heun step from $x_t$ (consistency distillation).

The gap closes in stages: $r = t\,(1 - (1 + 8/(1 + e^t))/2^{s+1})$, at least 0, in stage s = 0, 1, …
(https://huggingface.co/papers/2406.14548). At first r is 0 for most t, where the objective is that of a
denoiser.
"""

from dataclasses import replace

import torch

from ..scheduling_pfgmpp import PFGMPPScheduler
from .loss import DimensionRange, Perturbation, PFGMPPLoss, denoise
from .teacher import Teacher


class ConsistencyLoss(PFGMPPLoss):
    """
    The consistency loss of a network under a scheduler, which owns D, sigma_data and the preconditioning.

    Args:
        scheduler ([`PFGMPPScheduler`]): As in [`PFGMPPLoss`]. Noise levels are drawn between its
            `sigma_min` and `sigma_max`; smaller r count as 0.
        P_mean (`float`, defaults to -1.1): Mean of ln(t).
        P_std (`float`, defaults to 2.0): Standard deviation of ln(t).
        dimensions ([`DimensionRange`], *optional*): As in [`PFGMPPLoss`].
        num_stages (`int`, defaults to 8): Number of stages, equal parts of the training, in which r
            approaches t.
        first_stage (`int`, defaults to 0): The stage to begin with; a later one suits a network that is a
            consistency function already.
        huber_c (`float`, defaults to 0.00054): The c of the pseudo-Huber distance, as a root mean square
            over pixels in units of the data in [-1, 1]. At 0 it is the distance itself, and far above
            the distances their square.
        teacher ([`Teacher`], *optional*): A pretrained denoiser to distil.

    Raises:
        ValueError: There is no first stage, or the teacher denoises at other D than the network.
    """

    def __init__(
        self,
        scheduler: PFGMPPScheduler,
        P_mean: float = -1.1,
        P_std: float = 2.0,
        dimensions: DimensionRange | None = None,
        num_stages: int = 8,
        huber_c: float = 0.00054,
        teacher: Teacher | None = None,
        first_stage: int = 0,
    ):
        if not 0 <= first_stage < num_stages:
            raise ValueError(f"`first_stage` must lie in [0, {num_stages - 1}], but is {first_stage}.")
        super().__init__(scheduler, P_mean, P_std, dimensions)
        self.num_stages = num_stages
        self.first_stage = first_stage
        self.huber_c = huber_c
        self.teacher = teacher
        if teacher is not None:
            teacher.check_dimensions(dimensions, scheduler.config.D)

    def draw(
        self,
        shape: tuple[int, ...],
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        progress: float = 1.0,
    ) -> Perturbation:
        """
        Draw what is random, and choose r for each t.

        Args:
            shape, generator, device, dtype: As for [`PFGMPPLoss.draw`].
            progress (`float`, defaults to 1): Fraction of the training that is done, which decides the
                stage; by default the last one.

        Returns:
            [`Perturbation`]: The draws.
        """
        drawn = super().draw(shape, generator, device, dtype)
        low = self.scheduler.config.sigma_min
        t = drawn.sigma.clamp(low, self.scheduler.config.sigma_max)
        stage = self.first_stage + int(progress * (self.num_stages - self.first_stage))
        stage = min(stage, self.num_stages - 1)
        r = t * (1 - (1 + 8 * torch.sigmoid(-t)) / 2 ** (stage + 1))
        r = torch.where(r < low, 0.0, r)
        return replace(drawn, sigma=t, target_sigma=r)

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
            unet (`torch.nn.Module`): Called as `unet(c_in * x, c_noise, **conditioning)`, twice.
            images (`torch.Tensor` of shape `(batch, C, H, W)`): Data in [-1, 1].
            perturbation ([`Perturbation`]): What is random, from [`~ConsistencyLoss.draw`].
            references: There are none for this objective.
            conditioning (`torch.Tensor`): Further inputs of the network, such as `class_labels`.

        Returns:
            `torch.Tensor` of shape `(batch,)`: The weighted distance of each image.

        Raises:
            ValueError: There are references.
        """
        if references is not None:
            raise ValueError("`references` must be None: the consistency objective has no field target.")
        t = perturbation.sigma
        r = perturbation.target_sigma
        D = perturbation.D
        x = images + t.view(-1, 1, 1, 1) * perturbation.noise
        # Both calls see the same dropout, so that only the noise levels differ.
        devices = [x.device] if x.device.type == "cuda" else []
        with torch.no_grad(), torch.random.fork_rng(devices):
            if self.teacher is None:
                target = images + r.view(-1, 1, 1, 1) * perturbation.noise
            else:
                labels = conditioning.get("class_labels")
                target = self.teacher.step(x, perturbation, labels, conditioning.get("condition"))
            end = denoise(unet, self.scheduler, target, torch.where(r > 0, r, t), D, **conditioning)
            target = torch.where(r.view(-1, 1, 1, 1) > 0, end, target)
        difference = denoise(unet, self.scheduler, x, t, D, **conditioning) - target
        c = self.huber_c
        distance = (difference.square().flatten(1).mean(1) + c**2).sqrt() - c
        return distance / (t - r)
