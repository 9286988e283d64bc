"""Run by torchrun: a grid and a Fréchet distance that fail in one process alone do not stop the training."""

import sys
from functools import partialmethod

import torch
from accelerate import PartialState

from pipeline_pfgmpp import PFGMPPPipeline, PFGMPPScheduler, PFGMPPUNet2DModel
from pipeline_pfgmpp.data import ImageDataset
from pipeline_pfgmpp.training import Trainer, TrainingConfig, loop


def fail(*args, **options):
    if PartialState().process_index == 1:
        raise MemoryError("no memory for images")
    return [([0], torch.zeros(2, 1, 28, 28, dtype=torch.uint8))]


PFGMPPPipeline.__call__ = partialmethod(PFGMPPPipeline.__call__, num_inference_steps=1)
images = torch.randint(0, 256, (16, 1, 28, 28), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
unet = PFGMPPUNet2DModel(
    sample_size=28, in_channels=1, out_channels=1, model_channels=16, num_blocks=1, channel_mult=(1,)
)
config = TrainingConfig(
    sys.argv[1], max_train_steps=2, train_batch_size=4, sample_steps=1, fid_steps=1, fid_images=4,
    checkpointing_steps=0,
)  # fmt: skip
frechet = sys.modules["pipeline_pfgmpp.training.frechet"]
frechet.islice = lambda batches, count: [next(batches)]  # the features of 10,000 images take long
trainer = Trainer(unet, PFGMPPScheduler(D=64), ImageDataset(images), config)
frechet.generate = fail
draw = loop.draw_grid_of_samples
loop.draw_grid_of_samples = lambda *args: fail() and draw(*args)
trainer.run()
sys.stdout.write(f"trained {trainer.global_step} steps\n")
