"""
Train the autoencoder whose latents the emoji model draws: 64² pixels of three colours to 16² values of four
channels. Interrupted runs resume; `--minutes` counts the time of training over all of them.

    python experiments/emoji_autoencoder.py data/emoji outputs/emoji-vae --minutes 60

The encoder's last channels are normalised while it trains, so that latents have mean 0 and deviation 1, and
noise is added to them, so that what is drawn with small errors still decodes. The normalisation is folded
into the encoder's last layer when the weights are saved.
"""

import argparse
import copy
import math
import time
from pathlib import Path

import torch
from datasets import load_dataset
from diffusers import AutoencoderDC
from torch import nn
from tqdm.auto import tqdm

from pipeline_pfgmpp.data import load_images
from pipeline_pfgmpp.evaluation.restoration import measure_distances
from pipeline_pfgmpp.records.writing import replace_file, replace_folder


LEARNING_RATE = 1.5e-3
LATENT_NOISE = 0.03  # against a deviation of 1
AVERAGED_STEPS = 1000


class Autoencoder(nn.Module):
    """
    An AutoencoderDC that does its work at a quarter of the images' sides, and a norm on its latents.

    Args:
        latent_channels (`int`, defaults to 4): Channels of the latents.
    """

    def __init__(self, latent_channels: int = 4):
        super().__init__()
        self.network = AutoencoderDC(
            in_channels=3,
            latent_channels=latent_channels,
            encoder_block_out_channels=(32, 32, 128),
            decoder_block_out_channels=(32, 32, 128),
            encoder_layers_per_block=(0, 1, 3),
            decoder_layers_per_block=(0, 2, 4),
            encoder_qkv_multiscales=((), (), ()),
            decoder_qkv_multiscales=((), (), ()),
            encoder_out_shortcut=False,
        )
        self.norm = nn.BatchNorm2d(latent_channels, momentum=0.02, affine=False)
        self.to(memory_format=torch.channels_last)

    def forward(self, images: torch.Tensor, noise: float = 0.0) -> torch.Tensor:
        """
        Encode and decode images.

        Args:
            images (`torch.Tensor` of shape `(batch, 3, height, width)`): Images in [-1, 1].
            noise (`float`, defaults to 0.0): Standard deviation of noise on the latents.

        Returns:
            `torch.Tensor`: Images of the same shape.
        """
        latents = self.norm(self.network.encode(images).latent)
        latents = latents + noise * torch.randn_like(latents)
        return self.network.decode(latents).sample

    @torch.no_grad()
    def fold(self) -> AutoencoderDC:
        """
        Fold the norm into the encoder's last layer.

        Returns:
            `AutoencoderDC`: A copy of the network whose latents are normalised.
        """
        network = copy.deepcopy(self.network)
        scale = (self.norm.running_var + self.norm.eps).rsqrt()
        last = network.encoder.conv_out
        last.weight.mul_(scale[:, None, None, None])
        last.bias.sub_(self.norm.running_mean).mul_(scale)
        return network


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("data", help="data set with the splits `train` and `validation`")
    add("output", help="folder for the weights and the state of the training")
    add("--minutes", type=float, default=60.0, help="time of training (default: %(default)s)")
    add("--resolution", type=int, default=64, help="height and width in pixels (default: %(default)s)")
    add("--latent-channels", type=int, default=4, help="channels of the latents (default: %(default)s)")
    add("--batch-size", type=int, default=32, help="images per step (default: %(default)s)")
    add("--seed", type=int, default=0, help="seed of the training (default: %(default)s)")
    return parser.parse_args()


def to_images(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Convert bytes to images in [-1, 1]."""
    images = values.to(device).float() / 127.5 - 1
    return images.contiguous(memory_format=torch.channels_last)


def vary(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Mirror a batch half of the time, and exchange its colours a quarter of the time."""
    mirror, exchange = torch.rand(2, generator=generator).tolist()
    if mirror < 0.5:
        images = images.flip(3)
    if exchange < 0.25:
        images = images[:, torch.randperm(3, generator=generator).to(images.device)]
    return images


@torch.no_grad()
def measure_psnr(model: nn.Module, values: torch.Tensor, device: torch.device) -> float:
    """Measure the mean over images of the peak signal-to-noise ratio, in dB."""
    model.eval()
    ratios: list[float] = []
    for part in values.split(64):
        images = to_images(part, device)
        ratios += measure_distances(model(images) / 2 + 0.5, images / 2 + 0.5)["psnr"]
    return sum(ratios) / len(ratios)


def train_step(
    model: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer, images: torch.Tensor, step: int
) -> float:
    """Take a step, follow it with the average of the weights, and return the loss."""
    model.train()
    error = model(images, LATENT_NOISE) - images
    loss = 0.5 * error.abs().mean() + 2 * error.square().mean()
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    weight = max(1 / AVERAGED_STEPS, 9 / (step + 10))
    for averaged, trained in zip(average.parameters(), model.parameters()):
        averaged.data.lerp_(trained.data, weight)
    for averaged, trained in zip(average.buffers(), model.buffers()):
        averaged.copy_(trained)
    return loss.item()


def main() -> None:
    args = parse_arguments()
    output = Path(args.output)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    train = load_images(load_dataset(args.data, split="train"), args.resolution, labels=False).images
    held_out = load_images(load_dataset(args.data, split="validation"), args.resolution, labels=False).images
    model = Autoencoder(args.latent_channels).to(device)
    average = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, betas=(0.9, 0.95), weight_decay=1e-2)
    parts = {"model": model, "average": average, "optimizer": optimizer}
    step = 0
    seconds = 0.0
    state_file = output / "state.pt"
    if state_file.is_file():
        state = torch.load(state_file, map_location=device, weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(state[name])
        step = state["step"]
        seconds = state["seconds"]
        generator.manual_seed(args.seed + step)

    limit = 60 * args.minutes
    bar = tqdm(total=round(limit), initial=round(seconds), unit="s", desc="Training")
    while seconds < limit:
        began = time.monotonic()
        share = seconds / limit
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, step / 100) * (1 + math.cos(math.pi * share)) / 2
        rows = torch.randint(len(train), (args.batch_size,), generator=generator)
        images = vary(to_images(train[rows], device), generator)
        loss = train_step(model, average, optimizer, images, step)
        step += 1
        seconds += time.monotonic() - began
        bar.update(round(seconds) - bar.n)
        if step % 250 == 0 or seconds >= limit:
            psnr = measure_psnr(average, held_out, device)
            tqdm.write(f"Step {step:,}: loss {loss:.4f}, PSNR of held-out emoji {psnr:.2f} dB")
            states = {name: part.state_dict() for name, part in parts.items()}
            with replace_file(state_file) as partial:
                torch.save({**states, "step": step, "seconds": seconds}, partial)
    with replace_folder(output / "vae") as folder:
        average.fold().save_pretrained(folder)
    print(f"PSNR of held-out emoji: {measure_psnr(average, held_out, device):.2f} dB")


if __name__ == "__main__":
    main()
