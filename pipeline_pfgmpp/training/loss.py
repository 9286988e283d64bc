r"""
The perturbation objective of PFGM++ (https://huggingface.co/papers/2302.04265, eq. 10) in EDM's variables:

$$\mathbb{E}_{y, \sigma, \varepsilon}\; \lambda(\sigma)\, \lVert F(y + \sigma\varepsilon, \sigma) - y \rVert^2, \qquad
  \ln\sigma \sim \mathcal{N}(P_{mean}, P_{std}^2), \quad \lambda(\sigma) = \frac{\sigma^2 + \sigma_d^2}{(\sigma\sigma_d)^2},$$

with $\varepsilon$ the Student-t noise of D degrees of freedom. At D = infinity it is EDM's.
"""

import torch

from ..scheduling_pfgmpp import PFGMPPScheduler


class PFGMPPLoss:
    """
    The training loss of a network under a scheduler, which owns D, sigma_data and the preconditioning.

    Args:
        scheduler ([`PFGMPPScheduler`]): Its D draws the noise, its preconditioning wraps the network.
        P_mean (`float`, defaults to -1.2): Mean of ln(sigma).
        P_std (`float`, defaults to 1.2): Standard deviation of ln(sigma).
    """

    def __init__(self, scheduler: PFGMPPScheduler, P_mean: float = -1.2, P_std: float = 1.2):
        self.scheduler, self.P_mean, self.P_std = scheduler, P_mean, P_std

    def __call__(
        self,
        unet: torch.nn.Module,
        images: torch.Tensor,
        generator: torch.Generator | None = None,
        **conditioning: torch.Tensor,
    ) -> torch.Tensor:
        """
        Args:
            unet (`torch.nn.Module`): Called as `unet(c_in * x, c_noise, **conditioning)`.
            images (`torch.Tensor` of shape `(batch, C, H, W)`): Data in [-1, 1].
            generator (`torch.Generator`, *optional*): Source of sigma and of the noise.
            conditioning (`torch.Tensor`): What else the network takes, such as `class_labels`.

        Returns:
            `torch.Tensor` of shape `(batch,)`: The weighted squared error of each image, averaged over its pixels.
        """
        scheduler = self.scheduler
        draw = {"generator": generator, "device": images.device, "dtype": images.dtype}
        sigma = (self.P_mean + self.P_std * torch.randn(len(images), 1, 1, 1, **draw)).exp()
        x = images + sigma * scheduler.sample_noise(images.shape, **draw)

        model_input, c_noise = scheduler.precondition_inputs(x, sigma), scheduler.precondition_noise(sigma.flatten())
        output = unet(model_input, c_noise, return_dict=False, **conditioning)[0]
        denoised = scheduler.precondition_outputs(x, output.to(x.dtype), sigma)

        sigma_data = scheduler.config.sigma_data
        weight = (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2
        return (weight * (denoised - images) ** 2).flatten(1).mean(1)
