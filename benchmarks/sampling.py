"""
What sampling costs beyond the network's own calls, as ratios measured in one run:

    python benchmarks/sampling.py

For the full-size NCSN++ at batch 16 and the bundled model at batch 64: the pipeline over the bare
calls, the share of scheduler and noise, the peak of memory over that of the weights and one forward
pass, diffusers' DDPMPipeline and a plain loop around its EDMEulerScheduler with as many calls, and
the network in other settings over eager float32.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import time

import torch
from diffusers import DDPMPipeline, DDPMScheduler, DiffusionPipeline, EDMEulerScheduler
from timing import seconds
from tqdm import tqdm

from pipeline_pfgmpp import PFGMPPPipeline, PFGMPPScheduler, PFGMPPUNet2DModel


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CASES = {"NCSN++ (CIFAR-10)": (None, 16, 2), "bundled model": ("model_cards/pfgmpp-fashion-mnist", 64, 10)}


def load(model):
    if model is None:
        unet = PFGMPPUNet2DModel.from_preset("cifar10-ncsnpp", dropout=0.0).eval()
        pipe = PFGMPPPipeline(unet, PFGMPPScheduler())
    else:
        pipe = DiffusionPipeline.from_pretrained(model)
    pipe.set_progress_bar_config(disable=True)
    pipe.unet.to(memory_format=torch.channels_last)
    return pipe.to(DEVICE)


class Stopwatch:
    """Time spent in a function, summed over its calls."""

    def __init__(self, function):
        self.function, self.total = function, 0.0

    def __call__(self, *args, **kwargs):
        start = time.perf_counter()
        result = self.function(*args, **kwargs)
        self.total += time.perf_counter() - start
        return result


@torch.no_grad()
def measure(title, model, batch_size, steps, repeats):
    pipe = load(model)
    unet, shape = pipe.unet, (batch_size, pipe.unet.config.in_channels, *[pipe.unet.config.sample_size] * 2)
    labels = torch.zeros(batch_size, dtype=torch.long, device=DEVICE) if pipe.num_classes else None
    x = torch.randn(shape, device=DEVICE).to(memory_format=torch.channels_last)
    calls = 2 * steps - 1
    ddpm = DDPMPipeline(unet, DDPMScheduler()).to(DEVICE)
    ddpm.set_progress_bar_config(disable=True)
    euler = EDMEulerScheduler.from_config(pipe.scheduler.config)

    def bare():
        for _ in range(calls):
            unet(x, torch.zeros((), device=DEVICE), labels)

    def ours():
        pipe(batch_size, steps, class_labels=None if labels is None else 0, output_type="latent")

    def plain_loop():
        euler.set_timesteps(calls, device=DEVICE)
        sample = torch.randn(shape, device=DEVICE) * euler.init_noise_sigma
        for t in euler.timesteps:
            output = unet(euler.scale_model_input(sample, t), t, labels).sample
            sample = euler.step(output, t, sample).prev_sample

    contenders = {
        "the bare calls": bare,
        "PFGMPPPipeline": ours,
        "DDPMPipeline": lambda: ddpm(batch_size, num_inference_steps=calls, output_type="pt"),
        "a loop around EDMEulerScheduler": plain_loop,
    }
    times = {name: [] for name in contenders}
    for _ in tqdm(range(repeats + 1), desc=title, leave=False):  # interleaved; the first round warms up
        for name, contender in contenders.items():
            times[name].append(seconds(contender))
    print(f"{title}, batch {batch_size}, {calls} calls of the network, over the bare calls:")
    for name, values in times.items():
        ratio = statistics.median(
            value / base for value, base in zip(values[1:], times["the bare calls"][1:])
        )
        print(f"  {name:34} {ratio:.3f}")

    # Scheduler and noise alone: the same steps around a network that costs nothing
    watches = [Stopwatch(function) for function in (pipe.scheduler.step, pipe.scheduler.scale_model_input)]
    pipe.scheduler.step, pipe.scheduler.scale_model_input = watches
    draw = Stopwatch(pipe.scheduler.sample_noise)
    draw(shape, device=DEVICE)
    whole = seconds(ours)
    print(
        f"  share of scheduler and noise       {(draw.total + sum(watch.total for watch in watches)) / whole:.2%}"
    )

    command = [sys.executable, __file__, "--peak", title]
    peaks = [
        int(subprocess.run([*command, what], capture_output=True, text=True, check=True).stdout)
        for what in ("1", "0")
    ]
    print(f"  peak memory over one forward pass  {peaks[1] / peaks[0]:.3f}")


@torch.no_grad()
def peak(title, forward_only):
    """Prints the most memory that a process held for one forward pass, or for sampling."""
    model, batch_size, steps = CASES[title]
    pipe = load(model)
    if forward_only:
        config = pipe.unet.config
        x = torch.randn(batch_size, config.in_channels, config.sample_size, config.sample_size, device=DEVICE)
        pipe.unet(x.to(memory_format=torch.channels_last), torch.zeros((), device=DEVICE))
    else:
        pipe(batch_size, steps, output_type="latent")
    print(
        torch.cuda.max_memory_allocated()
        if DEVICE == "cuda"
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    )


@torch.no_grad()
def settings(title, model, batch_size, repeats):
    """The network's call in other types and compiled, over eager float32."""
    calls = {}
    for name, dtype, compiled in (
        ("float32", torch.float32, False),
        ("float32, compiled", torch.float32, True),
        ("bfloat16", torch.bfloat16, False),
        ("bfloat16, compiled", torch.bfloat16, True),
    ):
        unet = load(model).unet.to(dtype)
        config = unet.config
        x = torch.randn(
            batch_size, config.in_channels, config.sample_size, config.sample_size, device=DEVICE, dtype=dtype
        )
        x, t = x.to(memory_format=torch.channels_last), torch.zeros((), device=DEVICE)
        labels = torch.zeros(batch_size, dtype=torch.long, device=DEVICE) if config.label_dim else None
        run = torch.compile(unet, fullgraph=True) if compiled else unet
        calls[name] = lambda run=run, x=x, t=t, labels=labels: run(x, t, labels)
    times = {name: [] for name in calls}
    for _ in tqdm(range(repeats + 2), desc="Settings", leave=False):  # compilation and another round warm up
        for name, call in calls.items():
            times[name].append(seconds(call))
    print(f"{title}, batch {batch_size}, speed of a call over eager float32:")
    for name, values in times.items():
        rate = (
            f", {batch_size / statistics.median(values[2:]):,.0f} images a second" if DEVICE == "cuda" else ""
        )
        print(
            f"  {name:34} {statistics.median(times['float32'][2:]) / statistics.median(values[2:]):.2f}{rate}"
        )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--repeats", type=int, default=3, help="rounds, of which the median counts (default: %(default)s)"
    )
    parser.add_argument("--peak", nargs=2, metavar=("CASE", "FORWARD"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak:
        peak(args.peak[0], args.peak[1] == "1")
        return
    for title, (model, batch_size, steps) in CASES.items():
        measure(title, model, batch_size, steps, args.repeats)
    model, batch_size, _ = CASES["bundled model"]
    settings("bundled model", model, batch_size, args.repeats)
    if DEVICE == "cuda":
        settings("NCSN++ (CIFAR-10)", None, 256, args.repeats)


if __name__ == "__main__":
    main()
