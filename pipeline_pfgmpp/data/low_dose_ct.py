r"""
Low-dose CT that anyone can make: pairs of slices of random phantoms, with few and with many photons.

A phantom is a sum of ellipses (a body with fat, lungs, organs, bones, vessels and faint lesions), whose
line integrals p are known in closed form. A ray of $I_0$ photons that passes through it is counted as

$$n \sim \mathrm{Poisson}(I_0 e^{-p}) + \mathcal{N}(0, s^2), \qquad \hat p = \ln(I_0 / \max(n, 1)),$$

where s is the noise of the electronics. Filtered back-projection turns the measured integrals into a slice
(Kak and Slaney, Principles of Computerized Tomographic Imaging, ch. 3), in Hounsfield units
$1000\,(\mu / \mu_{water} - 1)$. The two slices of a pair differ in $I_0$ alone.
"""

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm.auto import tqdm

from ..records.digests import derive_seed
from ..records.writing import replace_file


FIELD = 38.4  # width of the slice, in cm
WATER = 0.2  # attenuation of water, per cm
ANGLES = 180  # views, evenly spaced over half a turn
RAYS_PER_BIN = 3  # over which a detector averages
FULL_DOSE = 2e6  # photons per ray
LOW_DOSE = 1e5
ELECTRONIC_NOISE = 3.0  # standard deviation, in photons
FILTERS = ("ramp", "shepp-logan", "cosine", "hamming", "hann")


class Split(NamedTuple):
    """
    A part of the data set.

    Args:
        phantoms (`str`): Whose phantoms and full-dose photons it shares: those of this split.
        photons (`float`): Photons per ray at low dose.
        kernel (`str`): Filter of the back-projection.
    """

    phantoms: str
    photons: float = LOW_DOSE
    kernel: str = "ramp"


SPLITS = {
    "train": Split("train"),
    "validation": Split("validation"),
    "test": Split("test"),
    "test_dose": Split("test", LOW_DOSE / 3),
    "test_kernel": Split("test", LOW_DOSE, "hann"),
}


def draw_phantom(rng: np.random.Generator) -> np.ndarray:
    """
    Draw a phantom.

    Args:
        rng (`np.random.Generator`): Source of randomness.

    Returns:
        `np.ndarray` of shape `(n, 6)`: Ellipses, each with what it adds to the attenuation in units of
            water's, the place (x, y) of its centre, its half axes and its angle in radians. Lengths are in
            units of half the field's width, x points to the right and y down.
    """
    width = rng.uniform(0.72, 0.9)
    height = width * rng.uniform(0.68, 0.85)
    fat = rng.uniform(0.03, 0.08)
    inner = (width - fat, height - fat)
    ellipses: list[tuple[float, ...]] = [
        (0.9, 0.0, 0.0, width, height, 0.0),
        (rng.uniform(0.12, 0.15), 0.0, 0.0, *inner, 0.0),
    ]
    if rng.random() < 0.5:  # a slice through the chest
        for side in (-1, 1):
            place = (side * rng.uniform(0.42, 0.5) * inner[0], rng.uniform(-0.15, 0.05) * inner[1])
            axes = (rng.uniform(0.26, 0.36) * inner[0], rng.uniform(0.45, 0.65) * inner[1])
            ellipses.append((-0.8, *place, *axes, rng.uniform(-0.2, 0.2)))
    spine = (rng.uniform(0.09, 0.13), rng.uniform(0.07, 0.1))
    spine_place = (rng.uniform(-0.03, 0.03), rng.uniform(0.55, 0.65) * inner[1])
    ellipses.append((rng.uniform(0.4, 0.7), *spine_place, *spine, 0.0))
    ellipses.append((-0.25, *spine_place, 0.6 * spine[0], 0.6 * spine[1], 0.0))
    for angle in np.arange(0, 2 * math.pi, 2 * math.pi / rng.integers(8, 15)) + rng.uniform(0, 1):
        place = (0.93 * inner[0] * math.cos(angle), 0.93 * inner[1] * math.sin(angle))
        axes = (rng.uniform(0.03, 0.06), rng.uniform(0.012, 0.025))
        ellipses.append((rng.uniform(0.4, 1.0), *place, *axes, angle + math.pi / 2))
    # Organs, vessels with contrast agent, and lesions: their number, sizes and contrasts
    for count, sizes, contrasts in (
        (rng.integers(4, 9), (0.1, 0.28), (0.02, 0.08)),
        (rng.integers(6, 16), (0.015, 0.05), (0.08, 0.3)),
        (rng.integers(4, 10), (0.02, 0.08), (0.01, 0.05)),
    ):
        ellipses += [_draw_ellipse(rng, inner, sizes, contrasts) for _ in range(count)]
    return np.array(ellipses)


def _draw_ellipse(
    rng: np.random.Generator,
    inner: tuple[float, float],
    sizes: tuple[float, float],
    contrasts: tuple[float, float],
) -> tuple[float, ...]:
    """Draw an ellipse somewhere in the body, lighter or darker than what it lies in."""
    axes = rng.uniform(*sizes, 2)
    radius = math.sqrt(rng.uniform(0, 0.7))
    angle = rng.uniform(0, 2 * math.pi)
    place = (
        radius * (inner[0] - axes.max()) * math.cos(angle),
        radius * (inner[1] - axes.max()) * math.sin(angle),
    )
    contrast = rng.uniform(*contrasts) * rng.choice([-1, 1])
    return (contrast, *place, *axes, rng.uniform(0, math.pi))


def project(phantom: np.ndarray, size: int, angles: int = ANGLES) -> np.ndarray:
    r"""
    Compute the line integrals of a phantom.

    For an ellipse of half axes a and b, turned by $\varphi$, that adds $\rho$,

    $$p(s, \theta) = \frac{2 \rho a b}{A^2} \sqrt{\max(A^2 - (s - s_0)^2, 0)}, \qquad
      A^2 = a^2 \cos^2(\theta + \varphi) + b^2 \sin^2(\theta + \varphi),$$

    where $s_0$ is the place of its centre on the detector.

    Args:
        phantom (`np.ndarray` of shape `(n, 6)`): From [`draw_phantom`].
        size (`int`): Number of detector bins, and the side of the slice in pixels.
        angles (`int`, defaults to 180): Number of views over half a turn.

    Returns:
        `np.ndarray` of shape `(size, angles)`: The integrals of the attenuation over length, which have no
            unit, as scikit-image arranges them.
    """
    theta = np.arange(angles) * math.pi / angles
    subpixels = (np.arange(RAYS_PER_BIN) + 0.5) / RAYS_PER_BIN - 0.5
    bins = (np.arange(size)[:, None] - size // 2 + subpixels).ravel() / (size / 2)
    integrals = np.zeros((len(bins), angles))
    for density, x, y, a, b, angle in phantom:
        reach = (a * np.cos(theta + angle)) ** 2 + (b * np.sin(theta + angle)) ** 2
        distance = bins[:, None] - (x * np.cos(theta) - y * np.sin(theta))
        chord = np.sqrt(np.maximum(reach - distance**2, 0))
        integrals += 2 * density * a * b / reach * chord
    averages = integrals.reshape(size, RAYS_PER_BIN, angles).mean(1)
    return averages * WATER * FIELD / 2


def measure_rays(
    integrals: np.ndarray,
    photons: float,
    rng: np.random.Generator,
    electronic_noise: float = ELECTRONIC_NOISE,
) -> np.ndarray:
    """
    Measure line integrals with a finite number of photons.

    Args:
        integrals (`np.ndarray`): The true line integrals.
        photons (`float`): Photons per ray in front of the patient, I0.
        rng (`np.random.Generator`): Source of randomness.
        electronic_noise (`float`, defaults to 3): Its standard deviation, in photons.

    Returns:
        `np.ndarray`: The measured line integrals. A ray of which less than one photon is counted is taken
            for one photon.
    """
    counts = rng.poisson(photons * np.exp(-integrals)) + electronic_noise * rng.standard_normal(
        integrals.shape
    )
    return np.log(photons / np.maximum(counts, 1))


def reconstruct(integrals: np.ndarray, kernel: str = "ramp") -> np.ndarray:
    """
    Reconstruct a slice by filtered back-projection.

    Args:
        integrals (`np.ndarray` of shape `(size, angles)`): Line integrals, as from [`project`].
        kernel (`str`, defaults to `"ramp"`): The filter: `"ramp"`, `"shepp-logan"`, `"cosine"`,
            `"hamming"` or `"hann"`.

    Returns:
        `np.ndarray` of shape `(size, size)`: The slice in Hounsfield units, in float32. Outside the circle
            that all views see it is air.

    Raises:
        ValueError: There is no such filter, or scikit-image is not installed.
    """
    if kernel not in FILTERS:
        raise ValueError(f"`kernel` must be one of {', '.join(FILTERS)}, but is {kernel!r}.")
    try:
        from skimage.transform import iradon
    except ImportError:
        raise ValueError(
            "Low-dose CT is reconstructed by scikit-image: pip install 'pipeline-pfgmpp[ct]'."
        ) from None
    size, angles = integrals.shape
    theta = np.arange(angles) * 180 / angles
    attenuation = iradon(integrals, theta, filter_name=kernel, circle=True) / (FIELD / size)
    return (1000 * (attenuation / WATER - 1)).astype(np.float32)


def make_pairs(
    split: str, count: int, size: int = 128, angles: int = ANGLES, seed: int = 0
) -> Iterator[dict[str, np.ndarray]]:
    """
    Make the pairs of a split.

    Args:
        split (`str`): One of `SPLITS`.
        count (`int`): Number of pairs.
        size (`int`, defaults to 128): Side of the slices in pixels.
        angles (`int`, defaults to 180): Number of views over half a turn.
        seed (`int`, defaults to 0): Seed of phantoms and photons. Pair i depends on it and on i alone.

    Yields:
        `dict[str, np.ndarray]`: `full_dose` and `low_dose`, in Hounsfield units.
    """
    phantoms, photons, kernel = SPLITS[split]
    for index in range(count):
        rng = np.random.default_rng(derive_seed(seed, "phantom", phantoms, index))
        integrals = project(draw_phantom(rng), size, angles)
        yield {
            "full_dose": reconstruct(measure_rays(integrals, FULL_DOSE, rng), kernel),
            "low_dose": reconstruct(measure_rays(integrals, photons, rng), kernel),
        }


def convert_phantoms(
    output: str | os.PathLike,
    train: int = 480,
    validation: int = 40,
    test: int = 60,
    size: int = 128,
    angles: int = ANGLES,
    seed: int = 0,
) -> dict[str, int]:
    """
    Write a data set of pairs, as parquet files that `datasets` loads.

    The splits `test_dose` and `test_kernel` hold the phantoms of `test` again, with a third of the photons
    and with the filter `"hann"`.

    Args:
        output (`str` or `os.PathLike`): Folder to write to; the files of an older data set are replaced.
        train (`int`, defaults to 480): Number of pairs to train on.
        validation (`int`, defaults to 40): Number of pairs to choose settings on.
        test (`int`, defaults to 60): Number of pairs in each of the three splits for tests.
        size (`int`, defaults to 128): Side of the slices in pixels.
        angles (`int`, defaults to 180): Number of views over half a turn.
        seed (`int`, defaults to 0): Seed of phantoms and photons.

    Returns:
        `dict[str, int]`: Number of pairs in each split.

    Raises:
        ValueError: A number is too small, or scikit-image is not installed.
    """
    import datasets

    sizes = {"train": train, "validation": validation, "test": test}
    for name, value, least in (*((name, count, 1) for name, count in sizes.items()), ("size", size, 16)):
        if value < least:
            raise ValueError(f"`{name}` must be at least {least}, but is {value}.")
    counts = {name: sizes[split.phantoms] for name, split in SPLITS.items()}
    slices = datasets.Array2D((size, size), "float32")
    features = datasets.Features({"full_dose": slices, "low_dose": slices})
    with contextlib.ExitStack() as stack, tqdm(total=sum(counts.values()), unit="pair") as progress:
        for name, count in counts.items():
            progress.set_description(f"Making {name}")
            rows: list[dict[str, Any]] = []
            for pair in make_pairs(name, count, size, angles, seed):
                rows.append(pair)
                progress.update()
            dataset = datasets.Dataset.from_list(rows, features=features)
            path = Path(output, "data", f"{name}-00000-of-00001.parquet")
            dataset.to_parquet(stack.enter_context(replace_file(path)))
    return counts
