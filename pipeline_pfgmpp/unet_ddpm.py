# Copyright 2026 The pipeline_pfgmpp authors. Licensed under the Apache License, Version 2.0.
r"""
A DDPM network as a starting point for PFGM++.

DDPM diffuses $\hat x = \sqrt{\bar\alpha_t}\,y + \sqrt{1 - \bar\alpha_t}\,\varepsilon$ and predicts
$\varepsilon$. Divided by $\sqrt{\bar\alpha_t} = 1/\sqrt{1 + \sigma^2}$ that is $x = y +
\sigma\varepsilon$ with $\sigma_t = \sqrt{(1 - \bar\alpha_t) / \bar\alpha_t}$, so a DDPM network
denoises by $x - \sigma\,\varepsilon(x/\sqrt{1 + \sigma^2}, t(\sigma))$. With $r = \sigma\sqrt{D}$
fine-tuning starts from this denoiser at every D (https://huggingface.co/papers/2302.04265, sec. 4).
"""

from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DModel
from diffusers.models.unets.unet_2d import UNet2DOutput


class DDPMUNet2DModel(UNet2DModel):
    r"""
    A `UNet2DModel` trained as a DDPM, with the inputs and outputs of the networks of EDM and PFGM++.

    It maps $(c_{in} x, c_{noise})$ to the raw output F of $c_{skip}\,x + c_{out}\,F$. Its weights are
    those of the `UNet2DModel`, unchanged.

    Args:
        ddpm_schedule (`dict`): The options of `DDPMScheduler` that define its noise levels, such as
            `beta_schedule`.
        sigma_data (`float`, defaults to 1): The scheduler's `sigma_data`, so that the
            preconditioning cancels.
        unet: The options of `UNet2DModel`.
    """

    def __init__(self, ddpm_schedule: dict, sigma_data: float = 1.0, **unet: Any):
        super().__init__(**unet)
        self.register_to_config(ddpm_schedule=ddpm_schedule, sigma_data=sigma_data)
        alphas_cumprod = DDPMScheduler.from_config(ddpm_schedule).alphas_cumprod.double()
        self._log_sigmas: torch.Tensor = ((1 - alphas_cumprod) / alphas_cumprod).log() / 2

    @staticmethod
    def _get_init_keys(input_class: type) -> set[str]:
        # diffusers asks here which entries of a configuration to pass on, and reads them from the
        # signature by default. `**unet` stands for those of `UNet2DModel`.
        return UNet2DModel._get_init_keys(UNet2DModel) | {"ddpm_schedule", "sigma_data"}

    @property
    def sigma_range(self) -> tuple[float, float]:
        """
        Smallest and largest noise level that the DDPM was trained at, in units of the data in
        [-1, 1].
        """
        return self._log_sigmas[0].exp().item(), self._log_sigmas[-1].exp().item()

    def _find_time(self, log_sigma: torch.Tensor) -> torch.Tensor:
        """Return DDPM's time, a real number in 0 ... T - 1, by interpolation in log(sigma)."""
        levels = self._log_sigmas.to(log_sigma)
        above = torch.searchsorted(levels, log_sigma).clamp(1, len(levels) - 1)
        fraction = (log_sigma - levels[above - 1]) / (levels[above] - levels[above - 1])
        return above - 1 + fraction.clamp(0, 1)

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float,
        class_labels: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> UNet2DOutput | tuple[torch.Tensor]:
        r"""
        Compute the raw output F from DDPM's prediction of the noise.

        Args:
            sample (`torch.Tensor` of shape `(batch, in_channels, height, width)`): The scaled input
                c_in * x.
            timestep (`torch.Tensor` or `float`): c_noise = ln(sigma) / 4, one for all images or one
                per image.
            class_labels (`torch.Tensor` of shape `(batch,)`, *optional*): Classes, with
                `num_class_embeds`.
            return_dict (`bool`, defaults to `True`): Whether to return a `UNet2DOutput` or a tuple.

        Returns:
            `UNet2DOutput` or `tuple`: The raw output F.
        """
        c_noise = torch.as_tensor(timestep, dtype=torch.float32, device=sample.device)
        log_sigma = 4 * c_noise.expand(len(sample))
        time = self._find_time(log_sigma)
        sigma = log_sigma.exp().view(-1, 1, 1, 1)
        sigma_data = self.config.sigma_data
        norm = (sigma**2 + sigma_data**2).sqrt()
        variance_preserving = (sample * (norm / (1 + sigma**2).sqrt())).to(sample.dtype)
        epsilon = super().forward(variance_preserving, time, class_labels, return_dict=False)[0]
        output = ((sigma * sample - norm * epsilon) / sigma_data).to(sample.dtype)
        if not return_dict:
            return (output,)
        return UNet2DOutput(sample=output)
