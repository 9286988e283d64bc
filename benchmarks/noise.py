"""
Measure what the noise and the field target cost over the operations that they cannot do without, as
ratios from one run:

    python benchmarks/noise.py
"""

import argparse
import statistics
import sys
from collections.abc import Callable

import torch
from timing import time_call

from pipeline_pfgmpp import field_target, sample_noise
from pipeline_pfgmpp.records.commands import format_command
from pipeline_pfgmpp.records.measurements import write_measurement


def time_median(function: Callable[[], object], repeats: int) -> float:
    """Return the median time of a call, after one call that warms up."""
    time_call(function)
    return statistics.median(time_call(function) for _ in range(repeats))


def compare_noise(device: str) -> float:
    """Return the time of Student-t noise over that of `torch.randn`."""
    shape = (256, 3, 32, 32)
    gauss = time_median(lambda: torch.randn(shape, device=device), 50)
    return time_median(lambda: sample_noise(shape, 128, device=device), 50) / gauss


def compare_field_target(device: str) -> float:
    """Return the time of the field target over that of its two matrix products."""
    samples = torch.randn(256, 3072, device=device)
    references = torch.randn(8192, 3072, device=device)
    wide_samples = samples.double()
    wide_references = references.double()
    products = time_median(lambda: (wide_samples @ wide_references.T) @ wide_references, 5)
    return time_median(lambda: field_target(samples, references, 1.0, 128), 5) / products


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", metavar="PATH", help="also write the ratios to this file")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    results = {
        "Student-t noise over torch.randn, 256 × 3 × 32 × 32": compare_noise(device),
        "field target over its matrix products, 256 × 8,192 × 3,072": compare_field_target(device),
    }
    for name, ratio in results.items():
        print(f"{name}: {ratio:.3f}")
    if args.json:
        write_measurement(args.json, format_command("python benchmarks/noise.py", sys.argv[1:]), results)


if __name__ == "__main__":
    main()
