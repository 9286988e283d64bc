"""
Metrics of a model's samples at each D, beside those of other real images, as JSON, as a table and
in the model's card.
"""

import json
import math
import os
import statistics
from pathlib import Path

import torch
from huggingface_hub import EvalResult, ModelCard

from ..generation import load_samples, sample_to_files
from ..hub.cards import put_section
from ..pipeline_pfgmpp import PFGMPPPipeline
from ..records.digests import describe
from ..records.dimensions import format_dimension
from ..records.reports import check_weights, list_weights
from .metrics import ImageMetrics


def choose_dimensions(pipeline: PFGMPPPipeline, dimensions: list[float] | None = None) -> list[float]:
    """
    The given dimensions for a network that is conditioned on D; otherwise, and by default, that of
    the scheduler.
    """
    own = pipeline.scheduler.config.D
    return (
        dimensions
        if dimensions and pipeline.unet.config.get("d_conditioning")
        else [math.inf if own is None else own]
    )


def evaluate(
    pipeline: PFGMPPPipeline,
    metrics: ImageMetrics,
    dimensions: list[float] | None,
    output: str | os.PathLike,
    num_images: int = 10_000,
    num_groups: int = 1,
    first_seed: int = 0,
    batch_size: int = 64,
    command: str | None = None,
    **settings,
) -> list[dict]:
    """
    Draws images at every D, shared among the processes, and measures them. What an interrupted run
    drew is not drawn again.

    Args:
        pipeline ([`PFGMPPPipeline`]): What generates, on its device.
        metrics ([`ImageMetrics`]): What measures.
        dimensions (`list[float]`, *optional*): Augmented dimensions, `inf` for infinity, for a
            network that is conditioned on D; any other is measured at its own.
        output (`str` or `os.PathLike`): Folder for the images, a folder a D.
        num_images (`int`, defaults to 10,000): Images a value.
        num_groups (`int`, defaults to 1): Values a metric, of other seeds.
        first_seed (`int`, defaults to 0): Seed of the first image.
        batch_size (`int`, defaults to 64): Images at a time, in each process.
        command (`str`, *optional*): The command that draws them, kept with the images.
        settings: Further arguments of the pipeline's call.

    Returns:
        `list[dict]`: For each D a `dict` of `D` and the lists of values of the metrics.

    Raises:
        ValueError: The folder holds images drawn with other settings, or an argument does not fit
            the pipeline.
    """
    from accelerate import PartialState

    state, entries = PartialState(cpu=pipeline.device.type == "cpu"), []
    for D in choose_dimensions(pipeline, dimensions):
        folder = Path(output) / f"D-{format_dimension(D)}"
        seeds = list(range(first_seed, first_seed + num_groups * num_images))
        sample_to_files(pipeline, seeds, folder, batch_size, command, D=D, **settings)
        entry = {"D": format_dimension(D)}
        for group in range(num_groups):
            mine = seeds[group * num_images : (group + 1) * num_images][
                state.process_index :: state.num_processes
            ]
            for name, value in metrics(load_samples(folder, mine)[0]).items():
                entry.setdefault(name, []).append(_rounded(value))
        entries.append(entry)
    return entries


def evaluate_real(images: torch.Tensor, metrics: ImageMetrics, num_images: int, split: str) -> dict:
    """
    Measures as many other real images, for comparison; processes share the work.

    Args:
        images (`torch.Tensor` of shape `(M, C, H, W)`, uint8): Real images, of which some are chosen.
        metrics ([`ImageMetrics`]): What measures.
        num_images (`int`): How many.
        split (`str`): What split they are of.

    Returns:
        `dict`: What they are, as `images`, and the lists of values of the metrics.
    """
    from accelerate import PartialState

    state = PartialState()
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:num_images]
    found = metrics(images[chosen[state.process_index :: state.num_processes]])
    name = f"{len(chosen):,} real ones, {split} split"
    return {"images": name, **{metric: [_rounded(value)] for metric, value in found.items()}}


def _rounded(value):
    return float(f"{value:.5g}")


def gather_features(features: torch.Tensor) -> torch.Tensor:
    """The features that all processes computed, for [`ImageMetrics`]."""
    from accelerate.utils import gather_object

    return torch.cat(gather_object([features]))


def report(
    entries: list[dict],
    pipeline: PFGMPPPipeline,
    features: str,
    num_images: int,
    reference: str,
    command: str,
    **settings,
) -> dict:
    """
    Results with all that they depend on, ready for JSON.

    Args:
        entries (`list[dict]`): What [`evaluate`] returned, and perhaps one with `images` for real
            images in place of `D`.
        pipeline ([`PFGMPPPipeline`]): What generated.
        features (`str`): Name of the features.
        num_images (`int`): Images a value.
        reference (`str`): What the images were measured against.
        command (`str`): The command that measured.
        settings: The arguments of the pipeline's call.

    Returns:
        `dict`: The report.
    """
    measured = {"features": features, "num_images": num_images, "reference": reference, "command": command}
    return {"results": entries, **measured, "settings": describe(pipeline, **settings)}


def mean_and_deviation(values: list[float]) -> str:
    """
    The mean of values for people: as exact as their standard deviation, which stands beside it
    where there are several.

    Args:
        values (`list[float]`): One or more values.

    Returns:
        `str`: Such as `"6.60 ± 0.44"`.
    """
    mean = statistics.mean(values)
    deviation = statistics.stdev(values) if len(values) > 1 else None
    if not deviation:
        return f"{mean:.5g}" + (" ± 0" if deviation == 0 else "")
    decimals = max(0, 1 - math.floor(math.log10(deviation)))
    return f"{mean:.{decimals}f} ± {deviation:.{decimals}f}"


def title(metric: str, features: str) -> str:
    """What a metric is called over these features."""
    names = {
        "fid": "FID" if features == "inception" else "Fréchet distance",
        "kid": "KID",
        "inception_score": "Inception score",
    }
    return names.get(metric, metric)


def table(results: dict) -> str:
    """
    Results as Markdown: a row a D, with the standard deviation where there are several values.

    Args:
        results (`dict`): A [`report`].

    Returns:
        `str`: The table.
    """
    entries = results["results"]
    metrics = [name for name, values in entries[0].items() if isinstance(values, list)]
    rows = [
        f"| images | {' | '.join(title(name, results['features']) for name in metrics)} |",
        "|---" * (len(metrics) + 1) + "|",
    ]
    for entry in entries:
        cells = [mean_and_deviation(entry[name]) for name in metrics]
        rows.append(f"| {entry.get('images') or 'D = ' + entry['D']} | {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"



def write_evaluation(folder: str | os.PathLike, results: dict) -> None:
    """
    Keeps results with a model: as `evaluation.json`, and as a section and metadata of its card.

    Args:
        folder (`str` or `os.PathLike`): The model's folder.
        results (`dict`): A [`report`].

    Raises:
        ValueError: The folder holds other weights than those that were measured.
    """
    check_weights(list_weights(results), "evaluation.json", folder)
    folder, settings, count = Path(folder), results["settings"], f"{results['num_images']:,} images"
    (folder / "evaluation.json").write_text(json.dumps(results, indent=1) + "\n")
    steps, solver, guidance = (
        settings["num_inference_steps"],
        settings["scheduler"]["solver_type"],
        settings["guidance_scale"],
    )
    section = f"""
Over the features `{results["features"]}`, {count} a value, against {results["reference"]};
{steps} steps of {solver}{f", guidance {guidance:g}" if guidance != 1 else ""}.

{table(results)}
```bash
{results["command"]}
```
"""
    card = ModelCard.load(folder / "README.md")
    put_section(card, "Evaluation", section)
    card.data.model_name = folder.resolve().name
    dataset = next(iter(card.data.datasets or [results["reference"]]))
    kinds = (
        {} if results["features"] == "inception" else {"fid": "frechet_distance"}
    )  # the Hub takes `fid` for Inception's
    card.data.eval_results = [
        EvalResult(
            task_type="unconditional-image-generation", dataset_type=dataset, dataset_name=dataset.rpartition("/")[2],
            metric_type=kinds.get(name, name), metric_value=float(mean_and_deviation(values).split()[0]),  # as in the table
            metric_name=f"{title(name, results['features'])} over {results['features']} features, {count}, D = {entry['D']}",
        )
        for entry in results["results"] if "D" in entry
        for name, values in entry.items() if isinstance(values, list)
    ]  # fmt: skip
    card.save(folder / "README.md")
