# Copyright 2026 The pipeline_pfgmpp authors. Licensed under the Apache License, Version 2.0.
r"""
The perturbation kernel of PFGM++, which is all that sets it apart from diffusion.

PFGM++ (https://huggingface.co/papers/2302.04265, eq. 8) perturbs an N-dimensional data point $y$
with the kernel $p_r(x \mid y) \propto (\lVert x - y \rVert^2 + r^2)^{-(N+D)/2}$. With $r =
\sigma\sqrt{D}$ it is the multivariate Student-t distribution with $D$ degrees of freedom, location
$y$ and scale $\sigma$:

$$x = y + \sigma\varepsilon, \qquad \varepsilon = g\,\sqrt{D / \chi^2_D}, \qquad
  g \sim \mathcal{N}(0, I_N), \quad \chi^2_D \sim 2\,\mathrm{Gamma}(D/2, 1).$$

$\varepsilon$ does not depend on $\sigma$, so diffusers' `sample + sigma * noise` holds unchanged.
$D = 1$ is PFGM and $D = \infty$ is diffusion (EDM), where $\chi^2_D / D = 1$ and $\varepsilon = g$.

Throughout, `D` is a positive number, `None` (or `inf`) for $\infty$, or a tensor of shape
`(batch,)` with one value per image. Noise is drawn for D of at least 0.1, images for D of at least 0.5.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch

from .arguments import check_generator, check_number, check_tensor, describe, read_number


# Below these D the tails are so heavy that noise overflows, or images in float32: at D = 0.5 about one
# draw in 10^8 exceeds 10^16, beyond which its square is infinite.
SMALLEST_D = 0.1
SMALLEST_D_FOR_IMAGES = 0.5
# How many (sample, reference) pairs to hold the distances of at a time: 32 MiB in float64.
_PAIRS_PER_CHUNK = 2**22


def parse_dimension(D: float | torch.Tensor | None, smallest: float = 0.0) -> torch.Tensor:
    """
    Convert an augmented dimension to a tensor, and refuse what is not one.

    Args:
        D (`float`, `torch.Tensor` or `None`): Any real D > 0, as a number of Python, NumPy or torch;
            `None` and `inf` stand for infinity.
        smallest (`float`, defaults to 0): The smallest D allowed, `SMALLEST_D` where noise is drawn.

    Returns:
        `torch.Tensor`: `D` in float64 on the CPU, with `inf` for infinity; of shape `()`, or
            `(batch,)` for a vector.

    Raises:
        ValueError: `D` is not a number or a vector of numbers, is NaN, or is too small.
    """
    try:
        if isinstance(D, (bool, str)):
            raise TypeError
        dof = torch.as_tensor(math.inf if D is None else D, dtype=torch.float64, device="cpu")
    except (TypeError, ValueError, RuntimeError, OverflowError):
        dof = torch.tensor(math.nan, dtype=torch.float64)
    if dof.ndim > 1 or not bool((dof > 0).all()):
        raise ValueError(
            "`D` must be a positive number, inf or None (infinity), or one positive number or inf per image,"
            f" but is {D!r}."
        )
    if not bool((dof >= smallest).all()):
        raise ValueError(f"`D` must be at least {smallest}, but is {D}: with less, numbers overflow.")
    return dof


def sample_noise(
    shape: tuple[int, ...],
    D: float | torch.Tensor | None,
    generator: torch.Generator | list[torch.Generator] | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    max_norm: float | None = None,
) -> torch.Tensor:
    r"""
    Draw unit Student-t noise $\varepsilon = g\sqrt{D/\chi^2_D}$, with one $\chi^2_D$ per image.

    A generator's Gaussian directions are the same for every `D`, those of later draws as well; at
    `D = None` the noise is `torch.randn` bit for bit. As elsewhere in diffusers, a CPU generator
    serves every device: the noise is then drawn on the CPU and moved.

    Args:
        shape (`tuple[int, ...]`): Shape of the noise, `(batch, ...)`. The kernel's N counts all
            dimensions but the first.
        D (`float`, `torch.Tensor` of shape `(batch,)` or `None`): The augmented dimension.
        generator (`torch.Generator` or a list of them, *optional*): Source of randomness. With a
            list, one per image, image i depends on generator i alone, whatever the batch.
        device (`torch.device`, *optional*): Device of the result; by default the generator's, or
            else torch's default.
        dtype (`torch.dtype`, *optional*): Type of the result; torch's default if left out. The
            Gamma variates are drawn in float64.
        max_norm (`float`, *optional*): Largest norm, in units of $\sqrt N$; longer noise is
            shortened to it. None sets no limit.

    Returns:
        `torch.Tensor`: Noise of scale 1, of the given shape.

    Raises:
        ValueError: `shape` has no batch dimension, `D` or the number of generators does not fit it,
            or a generator cannot serve the device.
    """
    sizes = [read_number(size) for size in shape] if isinstance(shape, (list, tuple)) else []
    if len(sizes) < 2 or not all(isinstance(size, int) and size > 0 for size in sizes):
        raise ValueError(f"`shape` must be (batch, ...) with positive sizes, but is {shape}.")
    if dtype is not None and not dtype.is_floating_point:
        raise ValueError(f"`dtype` must be a type of floats, but is {dtype}.")
    if max_norm is not None:
        max_norm = check_number("max_norm", max_norm, "be positive", 0, exclude_low=True)
    shape = torch.Size(sizes)
    gauss, chi2, dof = _draw(shape, D, 0, generator, device, dtype)
    noise = gauss if chi2 is None else _scale_rows(gauss, dof / chi2)
    if max_norm is not None:
        mean_square = _sum_squares(noise) / noise[0].numel()
        noise = _scale_rows(noise, (max_norm**2 / mean_square).clamp_max(1))
    return noise if device is None else noise.to(device)


def sample_noise_given(
    residual: torch.Tensor,
    D: float | torch.Tensor | None,
    generator: torch.Generator | list[torch.Generator] | None = None,
) -> torch.Tensor:
    r"""
    Draw the noise that carries a sample from $\sigma$ to $\hat\sigma > \sigma$ and keeps it a sample.

    Behind $x = y + \sigma\varepsilon$ is a hidden scale $\sqrt{D/\chi^2_D}$, which the two noise
    levels must share. Given the residual $R = (x - y)/\sigma$, it follows $\chi^2_D \sim
    \mathrm{Gamma}\bigl(\frac{N+D}{2}, \frac12 (1 + \lVert R \rVert^2 / D)\bigr)$ (shape and rate:
    the Gamma is conjugate to the precision of a Gaussian). So with $g \sim \mathcal{N}(0, I)$

    $$\hat x = x + \sqrt{\hat\sigma^2 - \sigma^2}\; g\,\sqrt{D / \chi^2_D}$$

    has the perturbation kernel at $\hat\sigma$. At D = infinity it is EDM's Gaussian churn.

    Args:
        residual (`torch.Tensor` of shape `(batch, ...)`): $(x - y)/\sigma$. In practice the
            denoised image takes the place of y.
        D (`float`, `torch.Tensor` of shape `(batch,)` or `None`): The augmented dimension.
        generator (`torch.Generator` or a list of them, *optional*): One for all images or one per
            image, as for [`sample_noise`].

    Returns:
        `torch.Tensor`: $g\,\sqrt{D/\chi^2_D}$, in the shape and type of the residual.

    Raises:
        ValueError: `D` or the number of generators does not fit the batch, or a generator cannot
            serve the device.
    """
    dims = residual[0].numel()
    gauss, chi2, dof = _draw(tuple(residual.shape), D, dims, generator, residual.device, residual.dtype)
    gauss = gauss.to(residual.device)
    if chi2 is None:
        return gauss
    squared_radius = _sum_squares(residual)
    return _scale_rows(gauss, (dof.to(squared_radius) + squared_radius) / chi2.to(squared_radius))


def interpolate_noise(start: torch.Tensor, end: torch.Tensor, fraction: float | torch.Tensor) -> torch.Tensor:
    r"""
    Interpolate between two unit noises along the shells of the prior.

    Directions follow the great circle between them. Norms are interpolated geometrically, since at
    small D they vary widely from image to image:

    $$z_t = \lVert a \rVert^{1-t} \lVert b \rVert^t \;
      \frac{\sin((1-t)\theta)\, \hat a + \sin(t\theta)\, \hat b}{\sin\theta}, \qquad
      \theta = \angle(a, b).$$

    Args:
        start (`torch.Tensor` of shape `(batch, ...)`): Unit noise a, as from [`sample_noise`] or the
            pipeline's `invert`.
        end (`torch.Tensor` of shape `(batch, ...)`): Unit noise b of the same shape.
        fraction (`float` or `torch.Tensor` of shape `(batch,)`): The t above: 0 gives `start`, 1
            gives `end`.

    Returns:
        `torch.Tensor` of shape `(batch, ...)`: The noise in between.

    Raises:
        ValueError: The shapes differ or have no batch dimension, a value is not finite, `fraction` does
            not lie in [0, 1], or the noises are zero or opposite.
    """
    start = check_tensor("start", start)
    end = check_tensor("end", end)
    if start.shape != end.shape or start.ndim < 2:
        shapes = f"{tuple(start.shape)} and {tuple(end.shape)}"
        raise ValueError(f"`start` and `end` must be of one shape (batch, ...), but are of shapes {shapes}.")
    a = start.flatten(1)
    b = end.flatten(1)
    t = _read_fraction(fraction, a)
    norm_a = a.norm(dim=1, keepdim=True)
    norm_b = b.norm(dim=1, keepdim=True)
    if not bool((norm_a * norm_b > 0).all()):
        raise ValueError("`start` and `end` must be noise, but one of their images is zero everywhere.")
    unit_a = a / norm_a
    unit_b = b / norm_b
    apart = (unit_a - unit_b).norm(dim=1, keepdim=True)
    together = (unit_a + unit_b).norm(dim=1, keepdim=True)
    if bool((together < 1e-3).any()):
        raise ValueError("`start` and `end` must not be opposite: no great circle between them is shortest.")
    angle = 2 * torch.atan2(apart, together)
    # sin(t angle) / sin(angle), written so that its limit t at angle 0 is exact
    weight_a = (1 - t) * torch.sinc((1 - t) * angle / math.pi) / torch.sinc(angle / math.pi)
    weight_b = t * torch.sinc(t * angle / math.pi) / torch.sinc(angle / math.pi)
    norm = norm_a ** (1 - t) * norm_b**t
    return (norm * (weight_a * unit_a + weight_b * unit_b)).view(start.shape)


def _read_fraction(fraction: Any, noise: torch.Tensor) -> torch.Tensor:
    """Return the fraction of [`interpolate_noise`] as a column, one per image."""
    if read_number(fraction) is not None:
        fraction = check_number("fraction", fraction, "lie in [0, 1]", 0, 1)
    elif not isinstance(fraction, torch.Tensor) or fraction.shape not in ((1,), noise.shape[:1]):
        raise ValueError(
            f"`fraction` must be a number in [0, 1] or {len(noise)} of them, but is {describe(fraction)}."
        )
    t = torch.as_tensor(fraction, device=noise.device, dtype=noise.dtype)
    if not bool(((t >= 0) & (t <= 1)).all()):
        raise ValueError(f"`fraction` must lie in [0, 1], but is {fraction.tolist()}.")
    return t.expand(len(noise))[:, None]


def _choose_device(generator: torch.Generator | None, device: torch.device | str | None) -> torch.device:
    """Return where to draw: on the generator's device, or on `device` if there is no generator."""
    target = torch.device(device) if device is not None else None
    if generator is None:
        target = target or torch.get_default_device()
        # Metal has neither float64 nor a Gamma sampler.
        return torch.device("cpu") if target.type == "mps" else target
    if generator.device.type != "cpu" and target is not None and generator.device.type != target.type:
        raise ValueError(
            f"`generator` is on {generator.device} but the noise is wanted on {target}; use a generator on"
            f" {target} or the CPU."
        )
    if generator.device.type == "mps":
        raise ValueError(
            "`generator` is on mps, which cannot draw Gamma variates; use a generator on the CPU."
        )
    return generator.device


def _draw(
    shape: tuple[int, ...],
    D: float | torch.Tensor | None,
    extra_dims: int,
    generator: torch.Generator | list[torch.Generator] | None,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """
    Draw from each generator Gaussians, then one chi^2 of D + `extra_dims` degrees of freedom per image.

    Returns the Gaussians, the chi^2 and D, one per image. The chi^2 are None if every D is infinite;
    for a single infinite D among others its chi^2 has no meaning.
    """
    dof = parse_dimension(D, SMALLEST_D)
    batch = shape[0]
    if dof.ndim and len(dof) != batch:
        raise ValueError(
            f"`D` holds {len(dof)} values for a batch of {batch}; give one value, or one per image."
        )
    check_generator(generator, batch)
    generators = generator if isinstance(generator, (list, tuple)) else [generator]
    rows = batch // len(generators)
    gauss_parts = []
    chi2_parts = []
    for rng, part in zip(generators, dof.expand(batch).split(rows)):
        device_of_draw = _choose_device(rng, device)
        gauss = torch.randn((rows, *shape[1:]), generator=rng, device=device_of_draw, dtype=dtype)
        gauss_parts.append(gauss)
        finite = torch.isfinite(part)
        if bool(finite.any()):
            half_dof = (torch.where(finite, part, 1.0).to(device_of_draw) + extra_dims) / 2
            # torch.distributions.Gamma calls this function too, but takes no generator.
            chi2_parts.append(2 * torch._standard_gamma(half_dof, generator=_branch(rng)))
        else:
            chi2_parts.append(gauss.new_ones(rows, dtype=torch.float32))
    gauss = torch.cat(gauss_parts) if len(gauss_parts) > 1 else gauss_parts[0]
    if bool(dof.isinf().all()):
        return gauss, None, dof
    chi2 = torch.cat(chi2_parts) if len(chi2_parts) > 1 else chi2_parts[0]
    return gauss, chi2, dof.expand(batch).to(chi2.device)


def _branch(generator: torch.Generator | None) -> torch.Generator | None:
    """
    Make a generator of chi^2 that leaves the given one as it is: how many numbers they take depends on D,
    and what is drawn later is to be the same Gaussians at every D, EDM's.
    """
    if generator is None:
        return None
    device = generator.device
    seed = torch.randint(2**63 - 1, (), generator=generator.clone_state(), device=device)
    return torch.Generator(device).manual_seed(seed.item())


def _sum_squares(x: torch.Tensor) -> torch.Tensor:
    """Return the squared norm of each row, in at least float32."""
    return x.flatten(1).to(torch.promote_types(x.dtype, torch.float32)).square().sum(1)


def _scale_rows(gauss: torch.Tensor, squared_scale: torch.Tensor) -> torch.Tensor:
    """
    Multiply each row by its scale, in place where the types allow it.

    An infinite squared scale comes from an infinite D, whose scale is 1.
    """
    scale = torch.where(squared_scale.isinf(), 1.0, squared_scale).sqrt()
    compute_dtype = torch.promote_types(gauss.dtype, torch.float32)
    scale = scale.view(-1, *[1] * (gauss.ndim - 1)).to(compute_dtype)
    if gauss.dtype == compute_dtype:
        return gauss.mul_(scale)
    return (gauss * scale).to(gauss.dtype)


def _kernel_energy(squared_radius: torch.Tensor, dof: torch.Tensor, dims: int) -> torch.Tensor:
    r"""Compute $\frac{N+D}{2} \log(1 + q/D)$ at $q = R^2/\sigma^2$; its limit at $D = \infty$ is $q/2$."""
    finite = torch.isfinite(dof)
    safe = torch.where(finite, dof, 1.0)
    return torch.where(finite, (dims + safe) / 2 * torch.log1p(squared_radius / safe), squared_radius / 2)


def _log_gamma_ratio(dof: torch.Tensor, dims: int) -> torch.Tensor:
    r"""
    Compute $\log\Gamma(\frac{D+N}{2}) - \log\Gamma(\frac D2) - \frac N2 \log\frac D2$.

    It tends to 0 as $D \to \infty$.
    """
    a = dof / 2
    n = dims / 2
    direct = torch.lgamma(a + n) - torch.lgamma(a) - n * torch.log(a)
    # For large D the two lgammas cancel; the difference of their Stirling series does not.
    large = torch.where(torch.isfinite(a), a, 1e300).clamp_min(64.0)

    def tail(z: torch.Tensor) -> torch.Tensor:
        return 1 / (12 * z) - 1 / (360 * z**3) + 1 / (1260 * z**5)

    growth = (large + n) * torch.log1p(n / large) - n
    stirling = growth - torch.log1p(n / large) / 2 + tail(large + n) - tail(large)
    return torch.where(torch.isfinite(a), torch.where(a < 64, direct, stirling), 0.0)


def log_density(
    x: torch.Tensor, D: float | torch.Tensor | None, sigma: float | torch.Tensor = 1.0
) -> torch.Tensor:
    r"""
    Compute the log-density of the perturbation kernel at displacement $x$ from the data point:

    $$\log p(x) = \log\frac{\Gamma(\frac{N+D}{2})}{\Gamma(\frac D2)} - \frac N2 \log(\pi D \sigma^2)
      - \frac{N+D}{2} \log\Bigl(1 + \frac{\lVert x \rVert^2}{\sigma^2 D}\Bigr).$$

    Args:
        x (`torch.Tensor` of shape `(batch, ...)`): Displacements. The kernel's N counts all
            dimensions but the first.
        D (`float`, `torch.Tensor` of shape `(batch,)` or `None`): The augmented dimension.
        sigma (`float` or `torch.Tensor` of shape `(batch,)`, defaults to 1): Scale of the kernel,
            in the data's units.

    Returns:
        `torch.Tensor` of shape `(batch,)`: The log-densities in nats, in float64
            (float32 on mps).

    Raises:
        ValueError: `x` has no batch dimension, or `D` or `sigma` is not positive or does not fit the
            batch.
    """
    x, sigma, dof = _prepare(x, sigma, D)
    dims = x.shape[1]
    squared_radius = (x / sigma).square().sum(1, keepdim=True)
    normaliser = _log_gamma_ratio(dof, dims) - dims / 2 * math.log(2 * math.pi) - dims * sigma.log()
    return (normaliser - _kernel_energy(squared_radius, dof, dims)).squeeze(1)


def posterior_weights(
    x: torch.Tensor, references: torch.Tensor, sigma: float | torch.Tensor, D: float | torch.Tensor | None
) -> torch.Tensor:
    r"""
    Compute the probability that reference $y_j$ is the data point behind $x_i$
    (https://huggingface.co/papers/2302.00670):

    $$w_{ij} \propto \bigl(\lVert x_i - y_j \rVert^2 + \sigma_i^2 D\bigr)^{-(N+D)/2}, \qquad
      \textstyle\sum_j w_{ij} = 1.$$

    Args:
        x (`torch.Tensor` of shape `(batch, ...)`): Perturbed samples.
        references (`torch.Tensor` of shape `(M, ...)`): Data points, shaped like the samples,
            on any device.
        sigma (`float` or `torch.Tensor` of shape `(batch,)`): Noise levels, in the data's units.
        D (`float`, `torch.Tensor` of shape `(batch,)` or `None`): The augmented dimension.

    Returns:
        `torch.Tensor` of shape `(batch, M)`: Weights, in float64 (float32 on mps).

    Raises:
        ValueError: The shapes do not fit, or `sigma` or `D` is not positive.
    """
    x, sigma, dof = _prepare(x, sigma, D, references)
    # The matrix may be large, so it first holds the logarithms of the weights and is changed in place.
    weights = x.new_empty(len(x), len(references))
    filled = 0
    for chunk in _split_references(references, x):
        weights[:, filled : filled + len(chunk)] = _log_weights(x, chunk, sigma, dof)
        filled += len(chunk)
    weights -= weights.amax(1, keepdim=True)
    weights.exp_()
    return weights.div_(weights.sum(1, keepdim=True))


def field_target(
    x: torch.Tensor, references: torch.Tensor, sigma: float | torch.Tensor, D: float | torch.Tensor | None
) -> torch.Tensor:
    r"""
    Compute the posterior mean $\sum_j w_{ij} y_j$, with the weights of [`posterior_weights`].

    This is the target of PFGM's large-batch Poisson field at D = 1, of PFGM++'s optional field loss
    at D in between, and of the stable target field at D = infinity. Over a whole data set it is the
    exact denoiser. The references are visited in chunks, so that memory beyond the inputs is a few
    copies of `x` and one chunk.

    Args:
        x (`torch.Tensor` of shape `(batch, ...)`): Perturbed samples.
        references (`torch.Tensor` of shape `(M, ...)`): Data points, shaped like the samples,
            on any device.
        sigma (`float` or `torch.Tensor` of shape `(batch,)`): Noise levels, in the data's units.
        D (`float`, `torch.Tensor` of shape `(batch,)` or `None`): The augmented dimension.

    Returns:
        `torch.Tensor`: Posterior means in the shape and type of `x`, computed in float64 (float32
            on mps).

    Raises:
        ValueError: The shapes do not fit, or `sigma` or `D` is not positive.
    """
    shape = x.shape
    dtype = x.dtype
    x, sigma, dof = _prepare(x, sigma, D, references)
    mean = torch.zeros_like(x)
    log_total = x.new_full((len(x), 1), -math.inf)
    for chunk in _split_references(references, x):
        log_weights = _log_weights(x, chunk, sigma, dof)
        new_total = torch.logaddexp(log_total, log_weights.logsumexp(1, keepdim=True))
        mean = torch.addmm(mean * (log_total - new_total).exp(), (log_weights - new_total).exp(), chunk)
        log_total = new_total
    return mean.view(shape).to(dtype)


def _prepare(
    x: torch.Tensor,
    sigma: float | torch.Tensor,
    D: float | torch.Tensor | None,
    references: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    Return samples as a matrix, and `sigma` and `D` as columns.

    All are on one device and in the precision that the kernel needs.
    """
    if not isinstance(x, torch.Tensor) or x.ndim < 2:
        raise ValueError(f"Samples must be a tensor of shape (batch, ...), but are {getattr(x, 'shape', x)}.")
    if references is not None and (references.shape[1:] != x.shape[1:] or len(references) == 0):
        raise ValueError(
            f"References of shape {tuple(references.shape)} do not fit samples of shape {tuple(x.shape)}."
        )
    # At sigma = 0.002 a squared distance of a few hundred must be accurate to 1e-6, which takes float64;
    # Metal has none.
    dtype = torch.float32 if x.device.type == "mps" else torch.float64
    options: dict[str, Any] = {"device": x.device, "dtype": dtype}
    dof = parse_dimension(D)
    sigma = torch.as_tensor(sigma, **options)
    if not bool((sigma > 0).all()):
        raise ValueError(f"`sigma` must be positive, but is {sigma.tolist()}.")
    for name, value in (("sigma", sigma), ("D", dof)):
        if value.ndim and value.shape != x.shape[:1]:
            raise ValueError(f"`{name}` of shape {tuple(value.shape)} does not fit a batch of {len(x)}.")
    rows = x.flatten(1).to(**options)
    return rows, sigma.expand(len(x))[:, None], dof.to(**options).expand(len(x))[:, None]


def _split_references(references: torch.Tensor, x: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield the references in chunks, as rows on the samples' device and in their type."""
    size = max(1, min(_PAIRS_PER_CHUNK // len(x), _PAIRS_PER_CHUNK // x.shape[1]))
    for chunk in references.flatten(1).split(size):
        yield chunk.to(x)


def _log_weights(
    x: torch.Tensor, references: torch.Tensor, sigma: torch.Tensor, dof: torch.Tensor
) -> torch.Tensor:
    """Compute the logarithms of the posterior weights, up to a constant per sample."""
    squared = torch.addmm(references.square().sum(1), x, references.T, alpha=-2)
    squared += x.square().sum(1, keepdim=True)
    return _kernel_energy(squared.clamp_min_(0) / sigma**2, dof, x.shape[1]).neg_()
