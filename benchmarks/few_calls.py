"""
Measure what an image costs with many and with few calls of the network, as ratios from one run:

    python benchmarks/few_calls.py

Each row is the time of the whole pipeline, to PIL images, over that of a single bare call of the
network with the same batch. At one call every fixed cost shows. The network is the bundled one; how
good its images are does not matter here.
"""

import argparse
import statistics
import sys
from collections.abc import Callable

import torch
from diffusers import DiffusionPipeline
from timing import time_rounds

from pipeline_pfgmpp import PFGMPPScheduler
from pipeline_pfgmpp.records.commands import format_command
from pipeline_pfgmpp.records.measurements import write_measurement


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
MODEL = "model_cards/pfgmpp-fashion-mnist"
BARE = "bare call"
SETTINGS = [("heun", 18), ("dpmpp_3m", 16), ("dpmpp_3m", 8), ("consistency", 2), ("consistency", 1)]


@torch.no_grad()
def measure(batch_size: int, repeats: int) -> dict[str, float]:
    """Return the time of each setting over that of one bare call, by solver and number of calls."""
    pipe = DiffusionPipeline.from_pretrained(MODEL).to(DEVICE)
    pipe.set_progress_bar_config(disable=True)
    size = pipe.unet.config.sample_size
    x = torch.randn(batch_size, pipe.unet.config.in_channels, size, size, device=DEVICE)
    labels = torch.zeros(batch_size, dtype=torch.long, device=DEVICE)
    contenders: dict[str, Callable[[], object]] = {}

    def call_network() -> None:
        pipe.unet(x, torch.zeros((), device=DEVICE), labels, D=128.0)

    contenders[BARE] = call_network
    for solver, steps in SETTINGS:
        scheduler = PFGMPPScheduler.from_config(pipe.scheduler.config, solver_type=solver)
        scheduler.set_timesteps(steps)

        def draw(scheduler: PFGMPPScheduler = scheduler, steps: int = steps) -> None:
            pipe.scheduler = scheduler
            pipe(batch_size, num_inference_steps=steps, D=128, class_labels=0)

        calls = len(scheduler.timesteps)
        contenders[f"{solver}, {calls} {'call' if calls == 1 else 'calls'}"] = draw
    times = time_rounds(contenders, repeats, f"Batch of {batch_size}")
    ratios = {}
    for name, values in times.items():
        if name != BARE:
            ratios[name] = statistics.median(value / bare for value, bare in zip(values, times[BARE]))
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--repeats", type=int, default=20, help="rounds, of which the median counts (default: %(default)s)"
    )
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 16], help="(default: 1 16)")
    parser.add_argument("--json", metavar="PATH", help="also write the ratios to this file")
    args = parser.parse_args()
    results = []
    for batch_size in args.batch_sizes:
        ratios = measure(batch_size, args.repeats)
        results.append({"batch_size": batch_size, "over_bare_call": ratios})
        print(f"Batch of {batch_size}, time of the pipeline over one bare call of the network:")
        for name, ratio in ratios.items():
            print(f"  {name:22} {ratio:.3f}")
    if args.json:
        command = format_command("python benchmarks/few_calls.py", sys.argv[1:])
        write_measurement(args.json, command, {"results": results})


if __name__ == "__main__":
    main()
