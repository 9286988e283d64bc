"""
Measure what sampling costs beyond the network's own calls, as ratios from one run:

    python benchmarks/sampling.py

For the full-size NCSN++ at batch 16 and the bundled model at batch 64, the time over that of the bare
calls of the network is measured for the pipeline, diffusers' DDPMPipeline and a plain loop around
diffusers' EDMEulerScheduler with as many calls. Further ratios are the share of scheduler and noise,
the peak memory of sampling over that of one forward pass, and the speed of the network in bfloat16
and compiled over eager float32.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from diffusers import DDPMPipeline, DDPMScheduler, DiffusionPipeline, EDMEulerScheduler
from timing import time_call, time_rounds

from pipeline_pfgmpp import PFGMPPPipeline, PFGMPPScheduler, PFGMPPUNet2DModel
from pipeline_pfgmpp.records.commands import format_command
from pipeline_pfgmpp.records.measurements import write_measurement


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BARE = "bare calls"


class Case(NamedTuple):
    """A model, with the batch size and the number of steps that it is measured with."""

    model: str | None  # None is the full-size NCSN++ with random weights
    batch_size: int
    steps: int


NCSNPP = "NCSN++ (CIFAR-10)"
BUNDLED = "bundled model"
CASES = {NCSNPP: Case(None, 16, 2), BUNDLED: Case("model_cards/pfgmpp-fashion-mnist", 64, 10)}


def load_pipeline(model: str | None) -> PFGMPPPipeline:
    """Load a model onto the device, or build the full-size NCSN++."""
    if model is None:
        unet = PFGMPPUNet2DModel.from_preset("cifar10-ncsnpp", dropout=0.0).eval()
        pipe = PFGMPPPipeline(unet, PFGMPPScheduler())
    else:
        pipe = DiffusionPipeline.from_pretrained(model)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(DEVICE)


def get_shape(pipe: PFGMPPPipeline, batch_size: int) -> tuple[int, int, int, int]:
    config = pipe.unet.config
    return (batch_size, config.in_channels, config.sample_size, config.sample_size)


def make_labels(pipe: PFGMPPPipeline, batch_size: int) -> torch.Tensor | None:
    """Return class labels, or None if the network does not take any."""
    if not pipe.num_classes:
        return None
    return torch.zeros(batch_size, dtype=torch.long, device=DEVICE)


class Stopwatch:
    """A function whose total time is kept."""

    def __init__(self, function: Callable):
        self.function = function
        self.total = 0.0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        result = self.function(*args, **kwargs)
        self.total += time.perf_counter() - start
        return result


def list_contenders(pipe: PFGMPPPipeline, case: Case) -> dict[str, Callable[[], object]]:
    """Return what is compared, by name; each calls the network equally often."""
    unet = pipe.unet
    shape = get_shape(pipe, case.batch_size)
    labels = make_labels(pipe, case.batch_size)
    calls = 2 * case.steps - 1
    x = torch.randn(shape, device=DEVICE)
    ddpm = DDPMPipeline(unet, DDPMScheduler()).to(DEVICE)
    ddpm.set_progress_bar_config(disable=True)
    euler = EDMEulerScheduler.from_config(pipe.scheduler.config)

    def call_network() -> None:
        for _ in range(calls):
            unet(x, torch.zeros((), device=DEVICE), labels)

    def call_pipeline() -> None:
        class_labels = None if labels is None else 0
        pipe(case.batch_size, case.steps, class_labels=class_labels, output_type="latent")

    def call_ddpm_pipeline() -> None:
        ddpm(case.batch_size, num_inference_steps=calls, output_type="pt")

    def loop_over_scheduler() -> None:
        euler.set_timesteps(calls, device=DEVICE)
        sample = torch.randn(shape, device=DEVICE) * euler.init_noise_sigma
        for t in euler.timesteps:
            output = unet(euler.scale_model_input(sample, t), t, labels).sample
            sample = euler.step(output, t, sample).prev_sample

    return {
        BARE: call_network,
        "PFGMPPPipeline": call_pipeline,
        "DDPMPipeline": call_ddpm_pipeline,
        "EDMEulerScheduler": loop_over_scheduler,
    }


def measure_share(pipe: PFGMPPPipeline, case: Case, call_pipeline: Callable[[], object]) -> float:
    """Return the share of the pipeline's time that scheduler and noise take."""
    scheduler = pipe.scheduler
    step = Stopwatch(scheduler.step)
    scale = Stopwatch(scheduler.scale_model_input)
    noise = Stopwatch(scheduler.sample_noise)
    scheduler.step = step
    scheduler.scale_model_input = scale
    noise(get_shape(pipe, case.batch_size), device=DEVICE)
    whole = time_call(call_pipeline)
    return (step.total + scale.total + noise.total) / whole


def measure_memory(title: str) -> float:
    """Return the peak memory of sampling over that of one forward pass, each in its own process."""
    peaks = {}
    for work in ("forward", "sample"):
        command = [sys.executable, __file__, "--peak", title, work]
        peaks[work] = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return peaks["sample"] / peaks["forward"]


@torch.no_grad()
def measure_case(title: str, case: Case, repeats: int) -> dict[str, Any]:
    """Measure one model."""
    pipe = load_pipeline(case.model)
    contenders = list_contenders(pipe, case)
    times = time_rounds(contenders, repeats, title)
    ratios = {}
    for name, values in times.items():
        if name != BARE:
            ratios[name] = statistics.median(value / bare for value, bare in zip(values, times[BARE]))
    return {
        "network": title,
        "batch_size": case.batch_size,
        "over_bare_calls": ratios,
        "share_of_scheduler_and_noise": measure_share(pipe, case, contenders["PFGMPPPipeline"]),
        "peak_memory_over_forward_pass": measure_memory(title),
    }


@torch.no_grad()
def print_peak_memory(title: str, work: str) -> None:
    """Print the peak memory of this process for one forward pass, or for sampling."""
    case = CASES[title]
    pipe = load_pipeline(case.model)
    if work == "forward":
        x = torch.randn(get_shape(pipe, case.batch_size), device=DEVICE)
        pipe.unet(x, torch.zeros((), device=DEVICE))
    else:
        pipe(case.batch_size, case.steps, output_type="latent")
    if DEVICE == "cuda":
        print(torch.cuda.max_memory_allocated())
    else:
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


@torch.no_grad()
def measure_settings(title: str, model: str | None, batch_size: int, repeats: int) -> dict[str, Any]:
    """Measure the speed of the network's call in bfloat16 and compiled, over eager float32."""
    calls = {}
    for dtype in (torch.float32, torch.bfloat16):
        for compiled in (False, True):
            pipe = load_pipeline(model)
            unet = pipe.unet.to(dtype)
            x = torch.randn(get_shape(pipe, batch_size), device=DEVICE, dtype=dtype)
            t = torch.zeros((), device=DEVICE)
            labels = make_labels(pipe, batch_size)
            run = torch.compile(unet, fullgraph=True) if compiled else unet
            name = str(dtype).removeprefix("torch.") + (", compiled" if compiled else "")
            calls[name] = lambda run=run, x=x, t=t, labels=labels: run(x, t, labels)
    times = time_rounds(calls, repeats, "Settings", warm_up=2)  # the first round compiles
    median = {name: statistics.median(values) for name, values in times.items()}
    speeds = {name: median["float32"] / value for name, value in median.items() if name != "float32"}
    result = {"network": title, "batch_size": batch_size, "over_eager_float32": speeds}
    if DEVICE == "cuda":
        result["images_per_second"] = {name: batch_size / value for name, value in median.items()}
    return result


def print_case(result: dict[str, Any]) -> None:
    print(f"{result['network']}, batch {result['batch_size']}, time over the bare calls of the network:")
    for name, ratio in result["over_bare_calls"].items():
        print(f"  {name:34} {ratio:.3f}")
    print(f"  share of scheduler and noise       {result['share_of_scheduler_and_noise']:.2%}")
    print(f"  peak memory over one forward pass  {result['peak_memory_over_forward_pass']:.3f}")


def print_settings(result: dict[str, Any]) -> None:
    print(f"{result['network']}, batch {result['batch_size']}, speed of a call over eager float32:")
    for name, speed in result["over_eager_float32"].items():
        print(f"  {name:34} {speed:.2f}")
    for name, rate in result.get("images_per_second", {}).items():
        print(f"  images per second, {name:15} {rate:,.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--repeats", type=int, default=3, help="rounds, of which the median counts (default: %(default)s)"
    )
    parser.add_argument("--json", metavar="PATH", help="also write the ratios to this file")
    parser.add_argument("--peak", nargs=2, metavar=("CASE", "WORK"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak:
        print_peak_memory(*args.peak)
        return
    cases = []
    for title, case in CASES.items():
        cases.append(measure_case(title, case, args.repeats))
        print_case(cases[-1])
    bundled = CASES[BUNDLED]
    settings = [measure_settings(BUNDLED, bundled.model, bundled.batch_size, args.repeats)]
    if DEVICE == "cuda":
        settings.append(measure_settings(NCSNPP, None, 256, args.repeats))
    for result in settings:
        print_settings(result)
    if args.json:
        command = format_command("python benchmarks/sampling.py", sys.argv[1:])
        write_measurement(args.json, command, {"cases": cases, "settings": settings})


if __name__ == "__main__":
    main()
