"""
Train on fields with heavy tails, at D = infinity (Gaussian noise) and at the D that is their tail index:

    python examples/heavy_tails.py outputs/heavy-tails

Each field is a smooth Gaussian one times a Student-t amplitude, so the tail index of its values is 4.
"""

import argparse

import torch

from pipeline_pfgmpp import PFGMPPScheduler, PFGMPPUNet2DModel, sample_noise
from pipeline_pfgmpp.data import ImageDataset, measure_standardization
from pipeline_pfgmpp.training import Trainer, TrainingConfig


TAIL_INDEX = 4.0
SMALL = {"in_channels": 1, "out_channels": 1, "model_channels": 32, "channel_mult": (1, 2), "num_blocks": 1}
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("output_dir", help="folder for the two pipelines")
parser.add_argument("--steps", type=int, default=2000, help="of each training (default: %(default)s)")
parser.add_argument("--fields", type=int, default=5000, help="to train on (default: %(default)s)")
args = parser.parse_args()


def make_fields(seed: int) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    frequency = torch.fft.fftfreq(8) * 8
    power = (1 + frequency[:, None] ** 2 + frequency**2) ** -1.5
    white = torch.fft.fft2(torch.randn(args.fields, 1, 8, 8, generator=rng))
    smooth = torch.fft.ifft2(white * (power / power.mean()).sqrt()).real
    return smooth * sample_noise((args.fields, 1, 1, 1), TAIL_INDEX, rng)


def describe_tails(fields: torch.Tensor) -> str:
    values = fields.abs().flatten().sort(descending=True).values
    index = 1 / (values[: len(values) // 1000 + 1] / values[len(values) // 1000]).log().mean()  # Hill's
    return f"tail index {index:.1f}, 99.99th percentile {values[len(values) // 10_000]:.1f}"


fields = make_fields(seed=0)
data = ImageDataset(fields, value_range=measure_standardization([fields]))
print("data:", describe_tails(make_fields(seed=1)))
for D in (float("inf"), TAIL_INDEX):
    scheduler = PFGMPPScheduler(D=D, sigma_data=data.sigma_data(), preconditioning="t-edm")
    config = TrainingConfig(f"{args.output_dir}/D-{D:g}", args.steps, resume_from_checkpoint="latest")
    pipeline = Trainer(PFGMPPUNet2DModel(sample_size=8, dropout=0.0, **SMALL), scheduler, data, config).run()
    if pipeline is not None:  # a run that is interrupted returns none, and continues next time
        print(f"D = {D:g}:", describe_tails(pipeline(min(args.fields, 1000), output_type="pt").images))
