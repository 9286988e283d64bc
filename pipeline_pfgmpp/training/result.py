"""What a run leaves besides its checkpoints: sample grids, the best snapshot, the pipeline and its card."""

import copy
import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from ..hub.cards import describe_base, write_model_card
from ..pipeline_pfgmpp import PFGMPPPipeline
from ..records.writing import replace_folder
from .config import TrainingConfig
from .preparation import rebuild_network
from .run import RunRecord
from .samples import locate_grid


ORIGIN = """## Training

Trained for {steps:,} optimisation steps on {images:,} images of `{source}`, on {hardware}.
Final loss: {loss}. The saved weights are an exponential moving average with a half-life of
{halflife:,.0f} images.
"""
BASE = "\nFine-tuned from `{name}` (licence: {licence}).\n"
TEACHER = "\nDistilled from `{name}` (licence: {licence}).\n"
AUTOENCODER = "\nThe autoencoder is that of `{name}` (licence: {licence}), as it was.\n"
COMMAND = "\n```bash\n{command}\n```\n"


def gather_pipeline(
    accelerator: Accelerator, unet: torch.nn.Module, pipeline: PFGMPPPipeline
) -> PFGMPPPipeline | None:
    """
    Copy the current network, whose weights may be sharded, into a pipeline on the CPU.

    Args:
        accelerator (`Accelerator`): The processes; each of them must call this.
        unet (`torch.nn.Module`): The network as accelerate prepared it.
        pipeline ([`PFGMPPPipeline`]): The pipeline of the network.

    Returns:
        [`PFGMPPPipeline`] or `None`: The copy; None on all processes but the main one.
    """
    state = accelerator.get_state_dict(unet)
    if not accelerator.is_main_process:
        return None
    vae = None if pipeline.vae is None else copy.deepcopy(pipeline.vae).to("cpu")
    return type(pipeline)(
        rebuild_network(pipeline.unet, state),
        pipeline.scheduler,
        vae=vae,
        id2label=pipeline.config.id2label,
        value_range=pipeline.config.value_range,
    )


def read_best_distance(config: TrainingConfig) -> float:
    """
    Read the smallest Fréchet distance of the run so far.

    Args:
        config ([`TrainingConfig`]): The settings.

    Returns:
        `float`: The distance; infinity if none was measured over the same features, number of images and
            number of steps.
    """
    path = Path(config.output_dir, "best", "distance.json")
    if not path.is_file():
        return math.inf
    best = json.loads(path.read_text())
    if any(best.get(name) != value for name, value in _describe_distance(config).items()):
        return math.inf
    return best["frechet_distance"]


def _describe_distance(config: TrainingConfig) -> dict[str, Any]:
    """Describe what makes Fréchet distances comparable."""
    steps = config.fid_num_inference_steps
    described: dict[str, Any] = {"features": config.fid_features, "num_images": config.fid_images}
    return {**described, "num_inference_steps": steps[0]} if steps else described


def save_best(pipeline: PFGMPPPipeline, config: TrainingConfig, step: int, distance: float) -> None:
    """
    Save a pipeline to `best/`, with its Fréchet distance.

    Args:
        pipeline ([`PFGMPPPipeline`]): The pipeline.
        config ([`TrainingConfig`]): The settings.
        step (`int`): Number of optimisation steps done.
        distance (`float`): Its Fréchet distance.
    """
    measured = {"frechet_distance": distance, "step": step, **_describe_distance(config)}
    with replace_folder(Path(config.output_dir, "best")) as best:
        pipeline.save_pretrained(best)
        (best / "distance.json").write_text(json.dumps(measured))


def save_result(pipeline: PFGMPPPipeline, config: TrainingConfig, variant: str | None = None) -> None:
    """
    Save a pipeline, or its network alone as a variant, in the type that the settings ask for.

    Args:
        pipeline ([`PFGMPPPipeline`]): The pipeline; it is converted in place.
        config ([`TrainingConfig`]): The settings.
        variant (`str`, *optional*): Name of the variant.
    """
    if config.save_dtype != "float32":
        pipeline.to(getattr(torch, config.save_dtype))
    if variant is None:
        pipeline.save_pretrained(config.output_dir)
    else:
        pipeline.unet.save_pretrained(Path(config.output_dir, "unet"), variant=variant)


def write_card(
    pipeline: PFGMPPPipeline,
    config: TrainingConfig,
    record: RunRecord,
    *,
    steps: int,
    images: int,
    loss: float | None,
    halflife: float,
    accelerator: Accelerator,
) -> None:
    """
    Write the model card of a finished run.

    Args:
        pipeline ([`PFGMPPPipeline`]): The result.
        config ([`TrainingConfig`]): The settings.
        record ([`RunRecord`]): Data, command and pretrained model.
        steps (`int`): Number of optimisation steps done.
        images (`int`): Number of images trained on.
        loss (`float`, *optional*): The last loss that was logged.
        halflife (`float`): Half-life of the saved average, in images.
        accelerator (`Accelerator`): What the run ran on.
    """
    grid = locate_grid(config.output_dir, steps)
    if grid.is_file():
        shutil.copyfile(grid, Path(config.output_dir) / "samples.png")
    local = Path(record.source).exists()
    origin = ORIGIN.format(
        images=images,
        source=Path(record.source).resolve().name if local else record.source,
        steps=steps,
        hardware=_describe_hardware(accelerator),
        loss="not logged" if loss is None else f"{loss:.4g}",
        halflife=halflife,
    )
    metadata: dict = {"datasets": [record.dataset_id]} if record.dataset_id else {}
    if record.pretrained:
        base = describe_base(record.pretrained)
        origin += BASE.format(name=base["base_model"], licence=base.get("license", "not stated"))
        metadata |= base
    for sentence, name in ((TEACHER, record.teacher), (AUTOENCODER, record.autoencoder)):
        if name:
            source = describe_base(name)
            origin += sentence.format(name=source["base_model"], licence=source.get("license", "not stated"))
    if record.command:
        origin += COMMAND.format(command=record.command)
    write_model_card(config.output_dir, pipeline, origin, **metadata)


def _describe_hardware(accelerator: Accelerator) -> str:
    """Name what a run runs on, and how many processes there are."""
    device = f"a CPU with {os.cpu_count()} cores"
    if accelerator.device.type == "cuda":
        device = torch.cuda.get_device_name()
    if accelerator.num_processes == 1:
        return device
    return f"{accelerator.num_processes} × {device}"
