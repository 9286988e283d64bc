"""
Write your own sampling loop from a scheduler and a network:

    python examples/sampling_loop.py

This is everything that happens between the prior and an image. Change what you like.
"""

import torch
from diffusers.utils import make_image_grid

from pipeline_pfgmpp import PFGMPPPipeline, PFGMPPScheduler, PFGMPPUNet2DModel


MODEL = "model_cards/pfgmpp-fashion-mnist"


@torch.no_grad()
def sample(labels: list[int], D: float, steps: int, seed: int) -> torch.Tensor:
    """Draw one image per class label, of shape (batch, 1, 28, 28) in about [-1, 1]."""
    unet = PFGMPPUNet2DModel.from_pretrained(MODEL, subfolder="unet")
    scheduler = PFGMPPScheduler.from_pretrained(MODEL, subfolder="scheduler")
    classes = torch.nn.functional.one_hot(torch.tensor(labels), unet.config.label_dim).float()

    scheduler.set_timesteps(steps)
    noise = scheduler.sample_noise((len(labels), 1, 28, 28), torch.Generator().manual_seed(seed), D=D)
    images = noise * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:  # Heun's method has two for each step
        network_input = scheduler.scale_model_input(images, timestep, D=D)
        output = unet(network_input, timestep, class_labels=classes, D=D).sample
        images = scheduler.step(output, timestep, images, D=D).prev_sample
    return images


if __name__ == "__main__":
    images = sample(labels=list(range(10)), D=16, steps=18, seed=0)
    pixels = (images / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    make_image_grid(PFGMPPPipeline.numpy_to_pil(pixels), rows=2, cols=5).save("clothes.png")
    print("Wrote clothes.png")
