"""
What a training step costs beyond the network, as ratios measured in one run:

    python benchmarks/training.py                             # NCSN++ of CIFAR-10 at batch 64
    python benchmarks/training.py --preset fashion-mnist-small --channels 1

The step is that of train_accelerate.py, part by part; the bare step is forward, backward and Adam
on the same network, and diffusers' is its loop for unconditional images, written plainly. Under
`torchrun --nproc_per_node 2` it prints the speed of the processes together over that of one alone
as well.
"""

import argparse
import statistics

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler
from diffusers.training_utils import EMAModel
from timing import time_call
from tqdm import tqdm

from pipeline_pfgmpp import PFGMPPScheduler, PFGMPPUNet2DModel, sample_noise
from pipeline_pfgmpp.training import (
    RECIPES,
    HalfLifeEMA,
    ImageDataset,
    LossMeter,
    PFGMPPLoss,
    derive_seed,
    prefetch,
    replace_nonfinite_gradients,
)


class Ours:
    """A step as in train_accelerate.py."""

    def __init__(self, accelerator, preset, channels, batch_size):
        self.accelerator, self.batch_size, self.steps = accelerator, batch_size, 0
        size, device = RECIPES[preset]["resolution"], accelerator.device
        self.shape = (batch_size * accelerator.num_processes, channels, size, size)
        images = torch.randint(0, 256, (10_000, *self.shape[1:]), dtype=torch.uint8)
        rank, world = accelerator.process_index, accelerator.num_processes
        self.part = slice(rank, None, world)
        self.batches = prefetch(ImageDataset(images).batches(batch_size, 0, rank, world))
        unet = PFGMPPUNet2DModel.from_preset(preset, in_channels=channels, out_channels=channels)
        optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-4, weight_decay=0.0, fused=True)
        self.unet, self.optimizer = accelerator.prepare(unet, optimizer)
        self.loss = PFGMPPLoss(PFGMPPScheduler(D=2048))
        self.ema = HalfLifeEMA(self.unet.parameters(), self.shape[0])
        self.rng, self.meter = torch.Generator(device), LossMeter(-1.2, 1.2, device)

    def data(self):
        self.images = next(self.batches)[0]["images"].to(self.accelerator.device, torch.float32) / 127.5 - 1

    def draw(self):
        self.rng.manual_seed(derive_seed(0, self.steps))
        self.perturbation = self.loss.draw(self.shape, self.rng, self.accelerator.device)[self.part]

    def loss_only(self):
        """The loss without the network."""
        loss = self.loss(lambda x, t, return_dict: (x,), self.images, self.perturbation)
        self.meter.add(loss, self.perturbation.sigma)

    def network(self):
        loss = self.loss(self.unet, self.images, self.perturbation)
        self.meter.add(loss, self.perturbation.sigma)
        self.accelerator.backward(loss.mean())

    def gradients(self):
        replace_nonfinite_gradients(self.unet.parameters())
        self.accelerator.clip_grad_norm_(self.unet.parameters(), 1.0)

    def adam(self):
        self.optimizer.step()
        self.optimizer.zero_grad()

    def average(self):
        self.ema.step(self.unet.parameters())

    def __call__(self):
        for part in (self.data, self.draw, self.network, self.gradients, self.adam, self.average):
            part()
        self.steps += 1


def bare_step(ours):
    """Forward, backward, Adam."""
    image, c_noise = torch.randn_like(ours.images), torch.zeros(ours.batch_size, device=ours.images.device)

    def step():
        ours.accelerator.backward(ours.unet(image, c_noise, return_dict=False)[0].square().mean())
        ours.optimizer.step()
        ours.optimizer.zero_grad()

    return step


def diffusers_step(ours):
    """
    The loop of diffusers for unconditional images: images one by one, DDPM noise, error of the
    noise, its average.
    """
    accelerator, scheduler = ours.accelerator, DDPMScheduler()
    pixels = [torch.randint(0, 256, ours.shape[1:], dtype=torch.uint8) for _ in range(1000)]
    loader = torch.utils.data.DataLoader(pixels, ours.batch_size, shuffle=True, collate_fn=lambda items: torch.stack(
        [item.float() / 127.5 - 1 for item in items]))  # fmt: skip
    batches = (batch for _ in iter(int, 1) for batch in loader if len(batch) == ours.batch_size)
    ema = EMAModel(ours.unet.parameters(), decay=0.9999)

    def step():
        clean = next(batches).to(accelerator.device)
        noise = torch.randn_like(clean)
        timesteps = torch.randint(0, 1000, (len(clean),), device=clean.device)
        noisy = scheduler.add_noise(clean, noise, timesteps)
        output = ours.unet(noisy, timesteps.float(), return_dict=False)[0]
        accelerator.backward(torch.nn.functional.mse_loss(output, noise))
        accelerator.clip_grad_norm_(ours.unet.parameters(), 1.0)
        ours.optimizer.step()
        ours.optimizer.zero_grad()
        ema.step(ours.unet.parameters())

    return step


def beta_noise(shape, D, rng):
    """
    Noise as it is published: the radius from NumPy's Beta, the direction from a Gaussian, copied to
    the device.
    """
    dims = int(np.prod(shape[1:]))
    inverse = rng.beta(dims / 2, D / 2, shape[0])
    radius = np.sqrt(D * inverse / (1 - inverse))
    gauss = rng.standard_normal((shape[0], dims))
    return (
        torch.from_numpy(radius[:, None] * gauss / np.linalg.norm(gauss, axis=1, keepdims=True))
        .float()
        .view(shape)
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="cifar10-ncsnpp", choices=sorted(RECIPES))
    parser.add_argument("--channels", type=int, default=3)
    parser.add_argument("--batch_size", type=int, default=64, help="images a process (default: 64)")
    parser.add_argument(
        "--repeats", type=int, default=3, help="interleaved rounds, of which the median counts (default: 3)"
    )
    args = parser.parse_args()

    accelerator = Accelerator()
    torch.manual_seed(0)
    ours = Ours(accelerator, args.preset, args.channels, args.batch_size)
    ours()
    contenders = {"ours": ours, "bare": bare_step(ours), "diffusers": diffusers_step(ours)}
    for name in ("data", "draw", "loss_only", "gradients", "adam", "average"):
        contenders[name] = getattr(ours, name)
    times = {name: [] for name in contenders}
    for _ in tqdm(
        range(args.repeats + 1), desc="Measuring", leave=False, disable=not accelerator.is_main_process
    ):
        for (
            name,
            contender,
        ) in contenders.items():  # interleaved, so that all see the same machine; the first warms up
            if name == "gradients":
                ours.network()
            accelerator.wait_for_everyone()
            times[name].append(time_call(contender))
    median = {name: statistics.median(values[1:]) for name, values in times.items()}
    if accelerator.is_main_process:
        print(f"{args.preset}, batch {args.batch_size}, {accelerator.num_processes} process(es):")
        print(f"  step over forward, backward and Adam: {median['ours'] / median['bare']:.3f}")
        print(f"  step of diffusers' loop over the same: {median['diffusers'] / median['bare']:.3f}")
        for name, title in (
            ("data", "data"), ("draw", "noise"), ("loss_only", "loss"), ("average", "moving average"),
            ("gradients", "check and clip gradients"), ("adam", "Adam"),
        ):  # fmt: skip
            print(f"  share of {title}: {median[name] / median['ours']:.2%}")
        shape, rng = (512, 3, 32, 32), np.random.default_rng(0)
        generator = torch.Generator(accelerator.device).manual_seed(0)
        slow = statistics.median(
            time_call(lambda: beta_noise(shape, 2048, rng).to(accelerator.device)) for _ in range(7)
        )
        fast = statistics.median(
            time_call(lambda: sample_noise(shape, 2048, generator, accelerator.device)) for _ in range(7)
        )
        print(f"noise of 512 × 3,072: {slow / fast:.1f} × as fast as NumPy's Beta and a copy")
    if accelerator.num_processes > 1:
        # the same images a process, alone and together
        together = median["ours"]
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            alone = Ours.__new__(Ours)
            alone.__dict__.update(ours.__dict__, unet=accelerator.unwrap_model(ours.unet))
            single = statistics.median([time_call(alone) for _ in range(args.repeats + 1)][1:])
            print(f"{accelerator.num_processes} processes over that many times one: {single / together:.2f}")
        accelerator.wait_for_everyone()


if __name__ == "__main__":
    main()
