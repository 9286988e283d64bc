"""
What sampling and training cost beyond the network, as ratios measured in one run:

    python benchmarks/overhead.py model_cards/pfgmpp-fashion-mnist
"""

import argparse
import statistics
import time

import torch
from diffusers import DiffusionPipeline

from pipeline_pfgmpp import field_target, sample_noise


def seconds(function, repeats):
    """Median time of a call, after one to warm up."""
    times = []
    for _ in range(repeats + 1):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        start = time.perf_counter()
        function()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a pipeline folder or a Hub id")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--num_inference_steps", type=int, default=18)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()

    device = "cuda" if torch.cuda.is_available() else "cpu"
    pipe = DiffusionPipeline.from_pretrained(args.model).to(device)
    pipe.set_progress_bar_config(disable=True)
    size, channels = pipe.unet.config.sample_size, pipe.unet.config.in_channels
    shape = (args.batch_size, channels, size, size)
    labels = torch.zeros(args.batch_size, dtype=torch.long, device=device) if pipe.unet.config.get("label_dim") else None

    # Sampling against the bare calls of the network
    pipe.scheduler.set_timesteps(args.num_inference_steps, device=device)
    timesteps = pipe.scheduler.timesteps
    x = torch.randn(shape, device=device, dtype=pipe.unet.dtype)

    def network():
        for t in timesteps:
            pipe.unet(x, t, class_labels=labels)

    def sampling():
        pipe(args.batch_size, args.num_inference_steps, class_labels=labels, output_type="latent")

    # Interleaved, so that both see the same machine
    rounds = [(seconds(network, 1), seconds(sampling, 1)) for _ in range(args.repeats)]
    ratio = statistics.median(whole / bare for bare, whole in rounds)
    print(f"sampling / its {len(timesteps)} network calls, batch {args.batch_size}:        {ratio:.3f}")

    # Noise against torch.randn
    large = (256, 3, 32, 32)
    gauss = seconds(lambda: torch.randn(large, device=device), 50)
    print(f"Student-t noise / torch.randn, {large}: {seconds(lambda: sample_noise(large, 128, device=device), 50) / gauss:.3f}")

    # The field target against the two matrix products it cannot do without
    samples, references = torch.randn(256, 3072, device=device), torch.randn(8192, 3072, device=device)
    wide_samples, wide_references = samples.double(), references.double()
    products = seconds(lambda: (wide_samples @ wide_references.T) @ wide_references, 5)
    target = seconds(lambda: field_target(samples, references, 1.0, 128), 5)
    print(f"field target / its matrix products, 256 × 8,192 × 3,072:     {target / products:.3f}")


if __name__ == "__main__":
    main()
