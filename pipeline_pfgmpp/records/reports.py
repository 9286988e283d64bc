"""
Reports stored next to a model: `evaluation.json` and `robustness.json`.

Reports name the weights that they were measured with, so that figures are never written, verified
or uploaded with a model that they do not belong to.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


REPORTS = ("evaluation.json", "robustness.json")

# The entries of a report, and of a point of one, that every reader relies on.
EVALUATION_ENTRIES = {"results": list, "settings": dict, "features": str, "num_images": int}
ROBUSTNESS_ENTRIES = {
    "D": str,
    "noise": (int, float),
    "bits": (int, type(None)),
    "nfe": int,
    "num_images": int,
    "distances": list,
}


def parse_report(content: str | bytes, name: str, model: str | os.PathLike) -> Any:
    """
    Parse a report and check its form.

    Args:
        content (`str` or `bytes`): The JSON text.
        name (`str`): File name, `"evaluation.json"` or `"robustness.json"`.
        model (`str` or `os.PathLike`): The model that the report comes with, for error messages.

    Returns:
        `dict` or `list[dict]`: The report: one object for `evaluation.json`, a list of measured points
            for `robustness.json`.

    Raises:
        ValueError: The content is not JSON, or not such a report.
    """
    try:
        report = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} of {model} cannot be read: {error}") from None
    if name == "evaluation.json":
        _check_entries([report], EVALUATION_ENTRIES, "pfgmpp evaluate", name, model)
    else:
        points = report if isinstance(report, list) else [None]
        _check_entries(points, ROBUSTNESS_ENTRIES, "pfgmpp robustness", name, model)
    return report


def _check_entries(
    objects: list, required: dict[str, Any], command: str, name: str, model: str | os.PathLike
) -> None:
    reason = f"{name} of {model} is not a report of `{command}`"
    for each in objects:
        if not isinstance(each, dict) or not required.keys() <= each.keys():
            raise ValueError(f"{reason}: it must hold {', '.join(sorted(required))}.")
        for entry, types in required.items():
            if not isinstance(each[entry], types):
                raise ValueError(f"{reason}: `{entry}` is of the wrong type.")
        if each["num_images"] < 1:
            raise ValueError(f"{reason}: `num_images` must be positive, but is {each['num_images']}.")
        results = each.get("results", [])
        if not all(isinstance(result, dict) for result in results):
            raise ValueError(f"{reason}: `results` must hold objects.")
        figures = [result.get("fid", []) for result in results] + [each.get("distances", [])]
        if not all(isinstance(values, list) and all(map(_is_number, values)) for values in figures):
            raise ValueError(f"{reason}: its distances must be lists of numbers.")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def read_report(model: str | os.PathLike, name: str) -> Any:
    """
    Read a report from a model's folder or repository.

    Args:
        model (`str` or `os.PathLike`): A pipeline folder or a Hub id.
        name (`str`): `"evaluation.json"` or `"robustness.json"`.

    Returns:
        `dict`, `list[dict]` or `None`: The report, as [`parse_report`] returns it; None if the model
            has no such report.

    Raises:
        OSError: There is no such model, or the Hub does not answer.
        ValueError: The file is not JSON, or not such a report.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    if Path(model).is_dir():
        path = Path(model, name)
    else:
        try:
            path = Path(hf_hub_download(str(model), name))
        except LocalEntryNotFoundError:  # the Hub does not answer
            raise
        except EntryNotFoundError:
            return None
    if not path.is_file():
        return None
    return parse_report(path.read_bytes(), name, model)


def list_weights(report: dict | list[dict]) -> set[str | None]:
    """
    List the weights that a report was measured with.

    Args:
        report (`dict` or `list[dict]`): The report.

    Returns:
        `set`: Digests from [`~pipeline_pfgmpp.records.digests.digest_weights`]. None is among them if
            an entry does not name its weights, as in reports of early versions.
    """
    descriptions = [report["settings"]] if isinstance(report, dict) else report
    weights = (description.get("weights") for description in descriptions)
    return {digest if isinstance(digest, str) else None for digest in weights}


def check_weights(
    measured: set[str | None],
    name: str,
    model: str | os.PathLike,
    pipeline: DiffusionPipeline | None = None,
) -> None:
    """
    Refuse figures that were measured with other weights than a model's.

    Args:
        measured (`set`): Digests of the weights that were measured, from [`list_weights`]. If it is
            empty, there is nothing to compare.
        name (`str`): Name of the report, for the error message.
        model (`str` or `os.PathLike`): A pipeline folder or a Hub id.
        pipeline ([`~diffusers.DiffusionPipeline`], *optional*): The model, if it is loaded already;
            otherwise it is loaded from the local folder `model`, of which any variant may have been
            measured.

    Raises:
        ValueError: The model has other weights.
    """
    if not measured:
        return
    from diffusers import DiffusionPipeline

    from .digests import digest_weights
    from .weights import list_folder_variants

    if pipeline is not None:
        digests = {digest_weights(pipeline)}
    else:
        digests = {
            digest_weights(DiffusionPipeline.from_pretrained(model, variant=variant, local_files_only=True))
            for variant in list_folder_variants(model)
        }
    if len(measured) > 1 or not measured <= digests:
        raise ValueError(
            f"The figures of {name} were measured with other weights than those of {model}:"
            " measure this model again, or choose the variant that was measured."
        )
