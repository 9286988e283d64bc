r"""
How near restored images come to the truth.

With values in [0, 1], an image x of n values and the truth y,

$$\mathrm{PSNR} = -10 \log_{10} \tfrac1n \lVert x - y \rVert^2 \text{ dB},$$

and SSIM is the structural similarity in windows of 11 pixels (Wang et al., 2004,
https://doi.org/10.1109/TIP.2003.819861). Both, and [`~pipeline_pfgmpp.evaluation.features.LPIPS`] where its
network is given, are computed for each image and averaged over images.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch
from tqdm.auto import tqdm

from ..data import Degrader, ImageDataset, split_pairs
from ..data.transforms import make_generator
from ..generation import split_batches
from ..generation.generate import check_finite_images
from ..images import UNIT
from ..pipeline_pfgmpp_restoration import PFGMPPRestorationPipeline
from ..records.dimensions import format_dimension
from .features import LPIPS, find_device


WINDOW = 11  # of SSIM, in pixels


class Metric(NamedTuple):
    """
    A distance between restored images and the truth, in tables.

    Args:
        title (`str`): Its name, with its unit.
        digits (`int`): Digits behind the point.
    """

    title: str
    digits: int


MOST_PSNR = 100.0  # dB; an exact image has an infinite one, and so would every mean with it
METRICS = {"psnr": Metric("PSNR, dB", 2), "ssim": Metric("SSIM", 4), "lpips": Metric("LPIPS", 4)}


class Pair(NamedTuple):
    """
    A degraded image and the truth.

    Args:
        degraded (`torch.Tensor` of shape `(C', H, W)`): The degraded image, in [0, 1] or near it.
        truth (`torch.Tensor` of shape `(C, H, W)`): The image that it was, in [0, 1].
    """

    degraded: torch.Tensor
    truth: torch.Tensor


def list_pairs(data: ImageDataset, degradation: Sequence[str] | None = None, seed: int = 0) -> list[Pair]:
    """
    List pairs, whole and in their order.

    Args:
        data ([`ImageDataset`]): Pairs, or images that are to be degraded.
        degradation (`Sequence[str]`, *optional*): Degradations that make the pairs, as for [`Degrader`].
        seed (`int`, defaults to 0): Seed of the degradations.

    Returns:
        `list[Pair]`: The pairs.

    Raises:
        ValueError: There are neither pairs nor degradations, or an image is smaller than 11 x 11 pixels.
    """
    degrader = Degrader(degradation) if degradation else None
    channels = data.condition_channels
    pairs = []
    for number, image in enumerate(data.images):
        if degrader is not None:
            degraded = degrader(image, data.value_range, make_generator(seed, number))
            image = torch.cat([image, degraded])
            channels = data.channels
        truth, condition = split_pairs(data.normalize(image[None]) / 2 + 0.5, channels)
        if not condition:
            raise ValueError("The images have no degraded versions: name their column, or degradations.")
        if min(truth.shape[2:]) < WINDOW:
            size = "x".join(map(str, truth.shape[2:]))
            raise ValueError(f"SSIM needs at least {WINDOW}x{WINDOW} pixels, but an image has {size}.")
        pairs.append(Pair(condition["condition"][0], truth[0]))
    return pairs


def measure_distances(
    images: torch.Tensor, truth: torch.Tensor, lpips: LPIPS | None = None
) -> dict[str, list[float]]:
    """
    Measure how near images come to the truth.

    Args:
        images (`torch.Tensor` of shape `(batch, C, H, W)`): The images; values outside [0, 1] are clipped.
        truth (`torch.Tensor` of shape `(batch, C, H, W)`): What they should be, in [0, 1].
        lpips ([`~pipeline_pfgmpp.evaluation.features.LPIPS`], *optional*): Network of that distance, for
            images of one or three channels.

    Returns:
        `dict[str, list[float]]`: `psnr` in dB, at most 100, `ssim` and, with its network, `lpips`, of each
            image.
    """
    from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

    images = images.clamp(0, 1).to(truth)
    psnr = peak_signal_noise_ratio(images, truth, data_range=1.0, dim=(1, 2, 3), reduction="none")
    ssim = structural_similarity_index_measure(images, truth, data_range=1.0, reduction="none")
    psnr = psnr.reshape(-1).clamp_max(MOST_PSNR)
    measured = {"psnr": psnr.tolist(), "ssim": ssim.reshape(-1).tolist()}  # type: ignore[union-attr]
    if lpips is not None:
        device = find_device(lpips)
        with torch.no_grad():
            distances = lpips(2 * images.to(device) - 1, 2 * truth.to(device) - 1)
        measured["lpips"] = distances.tolist()
    return measured


def evaluate_restoration(
    pipeline: PFGMPPRestorationPipeline,
    pairs: Sequence[Pair],
    dimensions: Sequence[float],
    numbers_of_steps: Sequence[int],
    batch_size: int = 16,
    seed: int = 0,
    lpips: LPIPS | None = None,
    **settings: Any,
) -> list[dict[str, Any]]:
    """
    Restore images at each D and number of steps, and measure how near they come to the truth.

    Args:
        pipeline ([`PFGMPPRestorationPipeline`]): The model, on its device.
        pairs (`Sequence[Pair]`): Degraded images and the truth.
        dimensions (`Sequence[float]`): Augmented dimensions; `inf` is infinity.
        numbers_of_steps (`Sequence[int]`): Numbers of steps of the solver.
        batch_size (`int`, defaults to 16): Images per call of the pipeline; they are of one size.
        seed (`int`, defaults to 0): Image i is restored with the seed `seed` + i.
        lpips ([`~pipeline_pfgmpp.evaluation.features.LPIPS`], *optional*): Network of that distance.
        settings: Further arguments of the pipeline's call, such as `start_sigma` and `blend`.

    Returns:
        `list[dict]`: The degraded images, if they have the channels of the restored ones, and an entry per D
            and number of steps: `D` as text, `steps`, `calls` of the network, and the means of what
            [`measure_distances`] measures.

    Raises:
        ValueError: An argument does not fit the pipeline, an image has values that are not finite, or the
            images are not of one or three channels with `lpips`.
    """
    channels = len(pairs[0].truth)
    if lpips is not None and channels not in (1, 3):
        raise ValueError(f"LPIPS is a distance between images of 1 or 3 channels, but these have {channels}.")
    entries: list[dict[str, Any]] = []
    if pairs[0].degraded.shape == pairs[0].truth.shape:
        parts = [measure_distances(pair.degraded[None], pair.truth[None], lpips) for pair in pairs]
        entries.append({"images": "degraded", **_average(parts)})
    pipeline.set_progress_bar_config(disable=True)
    for D in dimensions:
        for steps in numbers_of_steps:
            own = {**settings, "D": D, "num_inference_steps": steps}
            name = f"D = {format_dimension(D)}, {steps} steps"
            restored = restore_pairs(pipeline, pairs, batch_size, seed, name, own)
            parts = [
                measure_distances(images, torch.stack([pairs[number].truth for number in numbers]), lpips)
                for numbers, images in restored
            ]
            entry = {"D": format_dimension(D), "steps": steps, "calls": pipeline.num_timesteps}
            entries.append({**entry, **_average(parts)})
    return entries


class Entry(NamedTuple):
    """
    Where one call enters the field lines, and how much of its result counts.

    Args:
        start_sigma (`float`): Noise level at which the degraded image is taken for a noisy one.
        blend (`float`): Weight of the restored image, in [0, 1].
        rmse (`float`): Root mean square error with them, where white minus black is 1.
    """

    start_sigma: float
    blend: float
    rmse: float


def choose_entry(
    pipeline: PFGMPPRestorationPipeline,
    pairs: Sequence[Pair],
    sigmas: Sequence[float],
    D: float | None = None,
    batch_size: int = 16,
) -> Entry:
    r"""
    Choose `start_sigma` and `blend` of one call on images whose truth is known.

    With the restored images F, the degraded ones y and the truth x, the best blend at a noise level is

    $$w = \frac{\langle F - y, x - y \rangle}{\lVert F - y \rVert^2},$$

    limited to [0, 1]. The level with the least error wins.

    Args:
        pipeline ([`PFGMPPRestorationPipeline`]): The model, on its device.
        pairs (`Sequence[Pair]`): Degraded images and the truth.
        sigmas (`Sequence[float]`): Noise levels to try.
        D (`float`, *optional*): Augmented dimension; by default the model's.
        batch_size (`int`, defaults to 16): Images per call of the pipeline.

    Returns:
        [`Entry`]: The choice.

    Raises:
        ValueError: An argument does not fit the pipeline, or an image has values that are not finite.
    """
    pipeline.set_progress_bar_config(disable=True)
    entries = []
    for sigma in sigmas:
        settings = {"D": D, "start_sigma": sigma, "num_inference_steps": 1}
        products = torch.zeros(3, dtype=torch.float64)
        count = 0
        for numbers, images in restore_pairs(
            pipeline, pairs, batch_size, 0, f"start_sigma {sigma:g}", settings
        ):
            degraded = torch.stack([pairs[number].degraded for number in numbers])
            change = (images - degraded).double()
            wanted = (torch.stack([pairs[number].truth for number in numbers]) - degraded).double()
            products += torch.stack([(change * wanted).sum(), change.square().sum(), wanted.square().sum()])
            count += wanted.numel()
        both, ours, theirs = products.tolist()
        blend = min(max(both / ours, 0.0), 1.0) if ours else 1.0
        error = max(theirs - 2 * blend * both + blend**2 * ours, 0.0)
        entries.append(Entry(sigma, blend, math.sqrt(error / count)))
    return min(entries, key=lambda entry: entry.rmse)


def restore_pairs(
    pipeline: PFGMPPRestorationPipeline,
    pairs: Sequence[Pair],
    batch_size: int,
    seed: int,
    name: str,
    settings: dict[str, Any],
) -> Iterator[tuple[list[int], torch.Tensor]]:
    """
    Restore images in batches of one size.

    Args:
        pipeline ([`PFGMPPRestorationPipeline`]): The model, on its device.
        pairs (`Sequence[Pair]`): Degraded images and the truth.
        batch_size (`int`): Images per call of the pipeline.
        seed (`int`): Image i is restored with the seed `seed` + i.
        name (`str`): What the progress bar says.
        settings (`dict`): Further arguments of the pipeline's call.

    Yields:
        `tuple[list[int], torch.Tensor]`: The numbers of the pairs of a batch, and the restored images in
            [0, 1], of shape `(batch, C, H, W)`.

    Raises:
        ValueError: An argument does not fit the pipeline, or an image has values that are not finite.
    """
    low, high = pipeline.config.get("value_range") or UNIT
    ordered = sorted(range(len(pairs)), key=lambda number: tuple(pairs[number].truth.shape))
    groups = groupby(ordered, key=lambda number: tuple(pairs[number].truth.shape))
    with tqdm(total=len(pairs), desc=name, unit="image") as progress:
        for _, group in groups:
            for numbers in split_batches(list(group), batch_size):
                degraded = torch.stack([pairs[number].degraded for number in numbers])
                seeds = [seed + number for number in numbers]
                images = pipeline(
                    image=low + (high - low) * degraded,
                    generator=[torch.Generator().manual_seed(each) for each in seeds],
                    output_type="pt",
                    **settings,
                ).images
                check_finite_images(images, seeds)
                yield numbers, (images.cpu().float() - low) / (high - low)
                progress.update(len(numbers))


def _average(parts: Sequence[dict[str, list[float]]]) -> dict[str, float]:
    """Average over images."""
    means = {}
    for metric in parts[0]:
        values = [value for part in parts for value in part[metric]]
        means[metric] = sum(values) / len(values)
    return means


def format_restoration(entries: Sequence[dict[str, Any]]) -> str:
    """
    Format an evaluation as a Markdown table.

    Args:
        entries (`Sequence[dict]`): From [`evaluate_restoration`].

    Returns:
        `str`: The table.
    """
    metrics = [name for name in METRICS if name in entries[0]]
    titles = " | ".join(METRICS[name].title for name in metrics)
    rows = [f"| images | steps | calls | {titles} |", "|---" * (3 + len(metrics)) + "|"]
    for entry in entries:
        name = entry.get("images") or f"D = {entry['D']}"
        values = " | ".join(f"{entry[metric]:.{METRICS[metric].digits}f}" for metric in metrics)
        rows.append(f"| {name} | {entry.get('steps', '')} | {entry.get('calls', '')} | {values} |")
    return "\n".join(rows) + "\n"
