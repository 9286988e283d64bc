"""
Denoise low-dose CT in one call of a network, from making the data to a table and a picture:

    pip install '.[train,ct]'
    python examples/low_dose_ct.py --minutes 10

The pairs of slices are simulated. One network for every D from 16 to infinity trains on crops of them. The
validation split says where a single call enters the field lines, and how much of its result counts. Run it
again to train for longer; Ctrl-C ends the training early.
"""

import argparse
import math
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from skimage.restoration import denoise_nl_means
from tqdm import tqdm

from pipeline_pfgmpp import PFGMPPScheduler, PFGMPPUNet2DModel
from pipeline_pfgmpp.data import load_images, open_dataset
from pipeline_pfgmpp.data.low_dose_ct import convert_phantoms
from pipeline_pfgmpp.evaluation import restoration
from pipeline_pfgmpp.training import Trainer, TrainingConfig


COLUMNS = {"image_column": "full_dose", "condition_column": "low_dose"}
DIMENSIONS = {"D = 64": 64.0, "D = ∞": math.inf}
SIGMAS = [0.01, 0.015, 0.02, 0.03, 0.05, 0.1]
STRENGTHS = [0.006, 0.009, 0.013, 0.02]  # of non-local means, where white minus black is 1


def average_locally(image: torch.Tensor, strength: float) -> torch.Tensor:
    """Restore a slice of shape `(1, H, W)` in [0, 1] by non-local means."""
    restored = denoise_nl_means(image[0].numpy(), patch_size=5, patch_distance=7, h=strength)
    return torch.from_numpy(restored).to(image)[None]


def measure(images: list[torch.Tensor], pairs: list[restoration.Pair]) -> dict[str, float]:
    """Measure the mean PSNR and SSIM of slices."""
    values = restoration.measure_distances(torch.stack(images), torch.stack([pair.truth for pair in pairs]))
    return {metric: sum(each) / len(each) for metric, each in values.items()}


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--minutes", type=float, default=10, help="of training (default: %(default)g)")
parser.add_argument("--data", default="data/low-dose-ct", help="made if missing (default: %(default)s)")
parser.add_argument("--output", default="outputs/low-dose-ct", help="(default: %(default)s)")
args = parser.parse_args()
torch.set_num_threads(1)  # the network is too small for more

# Data: the network sees Hounsfield units between the least and the largest of the training split as -1 to 1
if not any(Path(args.data).rglob("*.parquet")):
    convert_phantoms(args.data)
train = load_images(open_dataset(args.data), 64, crop=True, **COLUMNS)
pairs = {}
for split in ("validation", "test"):
    dataset = open_dataset(args.data, split=split)
    data = load_images(dataset, train.images[0].shape[-1], value_range=train.value_range, **COLUMNS)
    pairs[split] = restoration.list_pairs(data)

# Training
torch.manual_seed(0)
unet = PFGMPPUNet2DModel.from_preset(
    "ppfm-ct",
    sample_size=64,
    model_channels=32,
    channel_mult=(1, 1, 2, 2),
    num_blocks=1,
    attn_resolutions=(),
    dropout=0.0,
    d_conditioning=True,
)
scheduler = PFGMPPScheduler(D=64, sigma_data=train.sigma_data(), D_range=(16, None))
config = TrainingConfig(
    output_dir=args.output,
    max_train_steps=1_000_000,
    max_train_time=args.minutes,
    train_batch_size=8,
    learning_rate=1e-3,
    lr_warmup_steps=50,
    P_mean=-2.5,  # one call from a slice with little noise needs low levels
    random_flip=True,
    random_turn=True,
    sample_steps=0,
    checkpointing_steps=100,
    resume_from_checkpoint="latest",
)
trainer = Trainer(unet, scheduler, train, config)
trainer.run()
pipe = trainer.finish()

# Settings: those with the least error on the validation split
known = pairs["validation"]
scores = {}
for strength in tqdm(STRENGTHS, "Non-local means"):
    scores[strength] = measure([average_locally(pair.degraded, strength) for pair in known], known)["psnr"]
strength = max(scores, key=scores.__getitem__)
entries = {name: restoration.choose_entry(pipe, known, SIGMAS, D) for name, D in DIMENSIONS.items()}

# The table
tests = pairs["test"]
rows = [{"images": "low dose", **measure([pair.degraded for pair in tests], tests)}]
averaged = [average_locally(pair.degraded, strength) for pair in tests]
rows.append({"images": "non-local means", **measure(averaged, tests)})
for name, D in DIMENSIONS.items():
    call = {"start_sigma": entries[name].start_sigma, "blend": entries[name].blend}
    print(f"{name}: start_sigma {call['start_sigma']:g}, blend {call['blend']:.2f}")
    rows += restoration.evaluate_restoration(pipe, tests, [D], [1], **call)[-1:]
print(restoration.format_restoration(rows))

# The picture: the first slice in a window for soft tissue, and below how it differs from the full dose
low, high = train.value_range
shown = {"low dose": tests[0].degraded, "non-local means": averaged[0]}
for name, D in DIMENSIONS.items():
    call = {"start_sigma": entries[name].start_sigma, "blend": entries[name].blend}
    degraded = low + (high - low) * tests[0].degraded[None]
    restored = pipe(degraded, num_inference_steps=1, D=D, output_type="pt", **call).images[0]
    shown[name] = (restored - low) / (high - low)
shown["full dose"] = tests[0].truth
figure, axes = plt.subplots(2, len(shown), figsize=(12, 5), layout="constrained")
for (above, below), (name, image) in zip(axes.T, shown.items()):
    above.imshow((low + (high - low) * image[0]).numpy(), "gray", vmin=-200, vmax=300)
    above.set_title(name)
    below.imshow(((high - low) * (image - tests[0].truth)[0]).numpy(), "RdBu", vmin=-80, vmax=80)
for axis in axes.flat:
    axis.set_axis_off()
picture = Path(args.output, "restored.png")
figure.savefig(picture, dpi=110)
print(f"Wrote {picture}")
