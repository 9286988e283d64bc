"""
Measure what a training step costs beyond the network, as ratios from one run:

    python benchmarks/training.py                             # NCSN++ of CIFAR-10 at batch 64
    python benchmarks/training.py --preset fashion-mnist-small --channels 1

The step is the `Trainer`'s own, as a whole and part by part. It is compared with forward pass, backward
pass and Adam on the same network, and with diffusers' loop for unconditional images, written plainly.
Under `torchrun --nproc_per_node 2`, the speed of the processes is compared with twice that of one alone.
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator

import numpy as np
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import EMAModel
from timing import time_rounds

from pipeline_pfgmpp import PFGMPPScheduler, PFGMPPUNet2DModel, sample_noise
from pipeline_pfgmpp.data import ImageDataset
from pipeline_pfgmpp.records.commands import format_command
from pipeline_pfgmpp.records.measurements import write_measurement
from pipeline_pfgmpp.training import RECIPES, Trainer, TrainingConfig


PARTS = {
    "data": "data",
    "noise": "noise",
    "loss": "loss without the network",
    "average": "moving average",
    "gradients": "checking and clipping gradients",
    "adam": "Adam",
}


def create_trainer(preset: str, channels: int, batch_size: int, output_dir: str) -> Trainer:
    """Create a trainer on random images, ready for its first step."""
    size = RECIPES[preset]["resolution"]
    images = torch.randint(0, 256, (10_000, channels, size, size), dtype=torch.uint8)
    unet = PFGMPPUNet2DModel.from_preset(preset, in_channels=channels, out_channels=channels)
    config = TrainingConfig(
        output_dir, max_train_steps=10**6, train_batch_size=batch_size, learning_rate=1e-4
    )
    trainer = Trainer(unet, PFGMPPScheduler(D=2048), ImageDataset(images), config)
    trainer.start()
    return trainer


def list_parts(trainer: Trainer) -> dict[str, Callable[[], object]]:
    """Return the parts of a step by name. They are called in this order: the later ones need gradients."""
    draws = trainer.draw()
    world = trainer.accelerator.num_processes
    part = slice(trainer.accelerator.process_index, None, world)
    images, _, _ = trainer.prepare_batch(trainer.read_batch(), draws, part)
    perturbation = draws.perturbation[part]

    def read_data() -> None:
        trainer.prepare_batch(trainer.read_batch(), draws, part)

    def compute_loss() -> None:
        loss = trainer.loss(lambda x, t, return_dict: (x,), images, perturbation)
        trainer.meter.add(loss, perturbation.sigma)

    def compute_gradients() -> None:
        trainer.accelerator.backward(trainer.loss(trainer.unet, images, perturbation).mean())

    def update_weights() -> None:
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()

    return {
        "data": read_data,
        "noise": trainer.draw,
        "loss": compute_loss,
        "passes": compute_gradients,
        "gradients": trainer.clip_gradients,
        "adam": update_weights,
        "average": trainer.update_averages,
    }


def create_bare_step(trainer: Trainer) -> Callable[[], None]:
    """Return forward pass, backward pass and Adam."""
    batch_size = trainer.config.train_batch_size
    image = torch.randn(batch_size, *trainer.image_shape, device=trainer.device)
    c_noise = torch.zeros(batch_size, device=trainer.device)

    def step() -> None:
        output = trainer.unet(image, c_noise, return_dict=False)[0]
        trainer.accelerator.backward(output.square().mean())
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()

    return step


def read_one_by_one(shape: tuple[int, ...], batch_size: int) -> Iterator[torch.Tensor]:
    """Yield batches as diffusers' example does: images are converted one by one."""
    pixels = [torch.randint(0, 256, shape, dtype=torch.uint8) for _ in range(1000)]

    def collate(items: list[torch.Tensor]) -> torch.Tensor:
        return torch.stack([item.float() / 127.5 - 1 for item in items])

    loader = torch.utils.data.DataLoader(pixels, batch_size, shuffle=True, drop_last=True, collate_fn=collate)
    while True:
        yield from loader


def create_diffusers_step(trainer: Trainer) -> Callable[[], None]:
    """Return a step of diffusers' loop for unconditional images: DDPM noise, error of the noise, EMA."""
    accelerator = trainer.accelerator
    scheduler = DDPMScheduler()
    batches = read_one_by_one(trainer.image_shape, trainer.config.train_batch_size)
    ema = EMAModel(trainer.unet.parameters(), decay=0.9999)

    def step() -> None:
        clean = next(batches).to(accelerator.device)
        noise = torch.randn_like(clean)
        timesteps = torch.randint(0, 1000, (len(clean),), device=clean.device)
        noisy = scheduler.add_noise(clean, noise, timesteps)
        output = trainer.unet(noisy, timesteps.float(), return_dict=False)[0]
        accelerator.backward(torch.nn.functional.mse_loss(output, noise))
        accelerator.clip_grad_norm_(trainer.unet.parameters(), 1.0)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()
        ema.step(trainer.unet.parameters())

    return step


def draw_beta_noise(shape: tuple[int, ...], D: float, rng: np.random.Generator) -> torch.Tensor:
    """Draw noise as it is published: radius from NumPy's Beta distribution, direction from a Gaussian."""
    dims = int(np.prod(shape[1:]))
    inverse = rng.beta(dims / 2, D / 2, shape[0])
    radius = np.sqrt(D * inverse / (1 - inverse))
    gauss = rng.standard_normal((shape[0], dims))
    noise = radius[:, None] * gauss / np.linalg.norm(gauss, axis=1, keepdims=True)
    return torch.from_numpy(noise).float().view(shape)


def compare_noise(device: torch.device) -> float:
    """Return the speed of the package's noise over that of NumPy's Beta distribution and a copy."""
    shape = (512, 3, 32, 32)
    rng = np.random.default_rng(0)
    generator = torch.Generator(device).manual_seed(0)
    contenders = {
        "beta": lambda: draw_beta_noise(shape, 2048, rng).to(device),
        "ours": lambda: sample_noise(shape, 2048, generator, device),
    }
    times = time_rounds(contenders, 7, "Noise")
    return statistics.median(times["beta"]) / statistics.median(times["ours"])


def compare_processes(trainer: Trainer, together: float, repeats: int) -> float:
    """Return the speed of N processes over N times that of one; only the main process calls this."""
    unet = trainer.accelerator.unwrap_model(trainer.unet)
    trainer.unet = unet
    trainer.models = [unet]
    alone = time_rounds({"step": trainer.step}, repeats, "One process")["step"]
    return statistics.median(alone) / together


def measure(trainer: Trainer, repeats: int) -> dict[str, object]:
    """Measure all ratios; the processes call this together."""
    accelerator = trainer.accelerator
    contenders = {
        "step": trainer.step,
        "bare": create_bare_step(trainer),
        "diffusers": create_diffusers_step(trainer),
        **list_parts(trainer),
    }
    times = time_rounds(contenders, repeats, "Measuring")
    median = {name: statistics.median(values) for name, values in times.items()}
    results: dict[str, object] = {
        "processes": accelerator.num_processes,
        "step_over_bare": median["step"] / median["bare"],
        "diffusers_over_bare": median["diffusers"] / median["bare"],
        "shares": {title: median[name] / median["step"] for name, title in PARTS.items()},
    }
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        results["noise_over_beta"] = compare_noise(trainer.device)
        if accelerator.num_processes > 1:
            results["parallel_efficiency"] = compare_processes(trainer, median["step"], repeats)
    accelerator.wait_for_everyone()
    return results


def print_results(results: dict) -> None:
    print(f"{results['preset']}, batch {results['batch_size']}, {results['processes']} process(es):")
    print(f"  step over forward, backward and Adam       {results['step_over_bare']:.3f}")
    print(f"  step of diffusers' loop over the same      {results['diffusers_over_bare']:.3f}")
    for title, share in results["shares"].items():
        print(f"  share of {title:33} {share:.2%}")
    print(f"  speed of noise over NumPy's Beta           {results['noise_over_beta']:.1f}")
    if "parallel_efficiency" in results:
        print(f"  speed over that of as many single ones     {results['parallel_efficiency']:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="cifar10-ncsnpp", choices=sorted(set(RECIPES) - {"fine-tuning"}))
    parser.add_argument("--channels", type=int, default=3, help="channels per image (default: %(default)s)")
    parser.add_argument(
        "--batch_size", type=int, default=64, help="images per process (default: %(default)s)"
    )
    parser.add_argument(
        "--repeats", type=int, default=3, help="rounds, of which the median counts (default: %(default)s)"
    )
    parser.add_argument("--json", metavar="PATH", help="also write the ratios to this file")
    args = parser.parse_args()

    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        trainer = create_trainer(args.preset, args.channels, args.batch_size, folder)
        results = {"preset": args.preset, "batch_size": args.batch_size} | measure(trainer, args.repeats)
    if trainer.accelerator.is_main_process:
        print_results(results)
        if args.json:
            command = format_command("python benchmarks/training.py", sys.argv[1:])
            write_measurement(args.json, command, results)


if __name__ == "__main__":
    main()
