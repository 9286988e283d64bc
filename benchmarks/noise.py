"""
What the noise and the field target cost beside the operations they cannot do without, as ratios
measured in one run:

    python benchmarks/noise.py
"""

import statistics

import torch
from timing import seconds

from pipeline_pfgmpp import field_target, sample_noise


def median(function, repeats):
    """Median time of a call, after one to warm up."""
    return statistics.median([seconds(function) for _ in range(repeats + 1)][1:])


def main():
    device = "cuda" if torch.cuda.is_available() else "cpu"
    large = (256, 3, 32, 32)
    gauss = median(lambda: torch.randn(large, device=device), 50)
    print(
        f"Student-t noise / torch.randn, {large}: {median(lambda: sample_noise(large, 128, device=device), 50) / gauss:.3f}"
    )

    samples, references = torch.randn(256, 3072, device=device), torch.randn(8192, 3072, device=device)
    wide_samples, wide_references = samples.double(), references.double()
    products = median(lambda: (wide_samples @ wide_references.T) @ wide_references, 5)
    target = median(lambda: field_target(samples, references, 1.0, 128), 5)
    print(f"field target / its matrix products, 256 × 8,192 × 3,072: {target / products:.3f}")


if __name__ == "__main__":
    main()
