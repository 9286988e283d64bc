"""The small networks of 8x8 values that the studies train."""

from pathlib import Path

import torch

from pipeline_pfgmpp import PFGMPPPipeline, PFGMPPScheduler, PFGMPPUNet2DModel
from pipeline_pfgmpp.data import ImageDataset
from pipeline_pfgmpp.training import DimensionRange, Trainer, TrainingConfig


SIDE = 8


def make_network(seed: int, d_conditioning: bool = False) -> PFGMPPUNet2DModel:
    """
    Make a network for images of 8x8 pixels and one channel, with new weights.

    Args:
        seed (`int`): Seed of the weights; torch's own generator is left where they end.
        d_conditioning (`bool`, defaults to `False`): Whether it serves every D.

    Returns:
        [`PFGMPPUNet2DModel`]: The network.
    """
    torch.manual_seed(seed)
    return PFGMPPUNet2DModel(
        sample_size=SIDE,
        in_channels=1,
        out_channels=1,
        model_channels=32,
        channel_mult=(1, 2),
        num_blocks=1,
        attn_resolutions=(),
        dropout=0.0,
        d_conditioning=d_conditioning,
    )


def load_or_train(
    folder: Path,
    data: ImageDataset,
    scheduler: PFGMPPScheduler,
    steps: int,
    seed: int,
    dimensions: DimensionRange | None = None,
) -> PFGMPPPipeline:
    """
    Train a small network, go on where an earlier run stopped, or load what it trained.

    Args:
        folder (`Path`): Where the pipeline and its checkpoints are written.
        data ([`ImageDataset`]): What it learns.
        scheduler ([`PFGMPPScheduler`]): Owns D.
        steps (`int`): Steps of 64 images.
        seed (`int`): Seed of the weights and of the training.
        dimensions ([`DimensionRange`], *optional*): Distribution of D, for a network that serves every D.

    Returns:
        [`PFGMPPPipeline`]: The pipeline.

    Raises:
        SystemExit: The training was stopped.
    """
    if (folder / "model_index.json").is_file():
        return PFGMPPPipeline.from_pretrained(folder)
    network = make_network(seed, d_conditioning=dimensions is not None)
    config = TrainingConfig(
        folder,
        steps,
        seed=seed,
        sample_steps=0,
        checkpointing_steps=500,
        checkpoints_total_limit=1,
        resume_from_checkpoint="latest",
    )
    pipeline = Trainer(network, scheduler, data, config, dimensions=dimensions).run()
    if pipeline is None:
        raise SystemExit("The training was stopped; run the command again to go on.")
    return pipeline
