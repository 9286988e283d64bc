"""Saves the restoration networks that the studies train, with cards that say how good they are."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult

from pipeline_pfgmpp import PFGMPPRestorationPipeline
from pipeline_pfgmpp.evaluation.restoration import METRICS
from pipeline_pfgmpp.hub.cards import write_model_card
from pipeline_pfgmpp.records.writing import replace_folder


def list_results(
    rows: Sequence[dict[str, Any]], dataset: str, title: str, damage: str = ""
) -> list[EvalResult]:
    """
    List what was measured, as a card holds it.

    Args:
        rows (`Sequence[dict]`): From
            [`~pipeline_pfgmpp.evaluation.restoration.evaluate_restoration`]; those without a D are left out.
        dataset (`str`): Name of the data set.
        title (`str`): Its title.
        damage (`str`, defaults to none): What was done to the images, if they were damaged in several ways.

    Returns:
        `list[EvalResult]`: A result per metric and row.
    """
    return [
        EvalResult(
            task_type="image-to-image",
            dataset_type=dataset,
            dataset_name=title,
            metric_type=name,
            metric_value=round(row[name], metric.digits),
            metric_name=", ".join(filter(None, [metric.title, damage, "one call", f"D = {row['D']}"])),
        )
        for row in rows
        if "D" in row
        for name, metric in METRICS.items()
        if name in row
    ]


def save_restorer(
    folder: Path,
    pipeline: PFGMPPRestorationPipeline,
    picture: Path,
    settings: dict[str, float],
    origin: str,
    results: list[EvalResult],
    dataset: str,
    limits: str,
) -> None:
    """
    Save a network in float16, with its card.

    Args:
        folder (`Path`): Where to; what is there is replaced.
        pipeline ([`PFGMPPRestorationPipeline`]): The model.
        picture (`Path`): PNG file of what it restores.
        settings (`dict[str, float]`): `start_sigma` and `blend` of its one call.
        origin (`str`): The card's sections on how it is used, was trained and measured.
        results (`list[EvalResult]`): What was measured.
        dataset (`str`): Name of the data set.
        limits (`str`): The card's section on what the model is not good for.
    """
    calls = {"num_inference_steps": 1, **settings}
    with replace_folder(folder) as partial:
        pipeline.unet.half()
        pipeline.save_pretrained(partial)
        shutil.copyfile(picture, partial / "samples.png")
        write_model_card(
            partial,
            pipeline,
            origin,
            license="apache-2.0",
            datasets=[dataset],
            eval_results=results,
            model_name=folder.name,
            limits=limits,
            restoring=", ".join(f"{name}={value:g}" for name, value in calls.items()),
        )
        for code in partial.rglob("*.py"):  # they are written when it is pushed
            code.unlink()
