"""
Train PFGM++ on a folder of images, whose subfolders, if it has any, become classes:

    python examples/train_folder.py my_images outputs/mine --max-train-steps 5000

Interrupted runs resume. Under `accelerate launch` all GPUs take part.
"""

import argparse

from datasets import load_dataset

from pipeline_pfgmpp import PFGMPPScheduler, PFGMPPUNet2DModel
from pipeline_pfgmpp.data import load_images
from pipeline_pfgmpp.training import Trainer, TrainingConfig


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("folder", help="folder of images")
parser.add_argument("output_dir", help="folder for the pipeline and its checkpoints")
parser.add_argument("--D", type=float, default=128.0, help="augmented dimension (default: %(default)g)")
parser.add_argument("--resolution", type=int, default=32, help="in pixels (default: %(default)s)")
parser.add_argument("--model-channels", type=int, default=64, help="network width (default: %(default)s)")
parser.add_argument("--train-batch-size", type=int, default=64, help="images per step and process")
parser.add_argument("--max-train-steps", type=int, default=5000, help="steps of the optimiser")
args = parser.parse_args()

data = load_images(load_dataset("imagefolder", data_dir=args.folder, split="train"), args.resolution)
unet = PFGMPPUNet2DModel.from_preset(
    "cifar10-ddpmpp",
    sample_size=args.resolution,
    in_channels=data.channels,
    out_channels=data.channels,
    model_channels=args.model_channels,
    label_dim=len(data.class_names or []),
)
scheduler = PFGMPPScheduler(D=args.D, sigma_data=data.sigma_data())
config = TrainingConfig(
    output_dir=args.output_dir,
    max_train_steps=args.max_train_steps,
    train_batch_size=args.train_batch_size,
    learning_rate=2e-4,
    resume_from_checkpoint="latest",
)
Trainer(unet, scheduler, data, config).run()
