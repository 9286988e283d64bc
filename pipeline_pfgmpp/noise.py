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
$D = 1$ is PFGM, $D = \infty$ is diffusion (EDM): there $\chi^2_D / D = 1$ and $\varepsilon = g$.

Throughout, `D` is a positive number, `None` (or `inf`) for $\infty$, or a tensor of shape
`(batch,)` with one value an image.
"""

import math

import torch


# Distances to this many (sample, reference) pairs are held at a time: 32 MiB in float64.
_PAIRS_PER_CHUNK = 2**22


def degrees_of_freedom(D: float | torch.Tensor | None) -> torch.Tensor:
    """
    Validates an augmented dimension and gives it its one numerical form.

    Args:
        D (`float`, `torch.Tensor` or `None`): Any real D > 0; `None` or `inf` stand for infinity.

    Returns:
        `torch.Tensor`: `D` in float64 on the CPU, with `inf` for infinity; of shape `()`, or
            `(batch,)` for a tensor.

    Raises:
        ValueError: `D` is not a number or a vector of numbers, is NaN, or is not positive.
    """
    try:
        dof = torch.as_tensor(math.inf if D is None else D, dtype=torch.float64, device="cpu")
    except (TypeError, ValueError, RuntimeError):
        dof = torch.tensor(math.nan, dtype=torch.float64)
    if dof.ndim > 1 or not bool((dof > 0).all()):
        raise ValueError(
            f"`D` must be a positive number, inf or None (infinity), or one such number an image, but is {D}."
        )
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
    Draws unit Student-t noise $\varepsilon = g\sqrt{D/\chi^2_D}$, one $\chi^2_D$ an image.

    The Gaussian direction is drawn first and is the same for every `D`; at `D = None` it is
    `torch.randn` bit for bit. As elsewhere in diffusers a CPU generator serves every device: the
    noise is then drawn on the CPU and moved.

    Args:
        shape (`tuple[int, ...]`): Shape of the noise, `(batch, ...)`; all but the first dimension
            are the N of the kernel.
        D (`float`, `torch.Tensor` of shape `(batch,)` or `None`): The augmented dimension.
        generator (`torch.Generator` or a list of them, *optional*):
            Source of randomness. With a list, one an image, image i depends on generator i alone,
            whatever the batch.
        device (`torch.device`, *optional*): Device of the result; by default the generator's, else
            torch's default.
        dtype (`torch.dtype`, *optional*): Type of the result; by default torch's. The Gamma is
            drawn in float64.
        max_norm (`float`, *optional*): Norm, in units of $\sqrt N$, that what is longer is
            shortened to. None is no limit.

    Returns:
        `torch.Tensor`: Noise of scale 1, of the given shape.

    Raises:
        ValueError: `shape`, `D` or the number or the device of the generators does not fit.
    """
    shape = tuple(shape)
    if len(shape) < 2 or min(shape) < 1:
        raise ValueError(f"`shape` must be (batch, ...) with positive sizes, but is {shape}.")
    gauss, chi2, dof = _draw(shape, D, 0, generator, device, dtype)
    noise = gauss if chi2 is None else _scaled(gauss, dof / chi2)
    if max_norm is not None:
        squared = noise.flatten(1).to(torch.promote_types(noise.dtype, torch.float32)).square().mean(1)
        noise = _scaled(noise, (max_norm**2 / squared).clamp_max(1))
    return noise if device is None else noise.to(device)


def sample_noise_given(
    residual: torch.Tensor,
    D: float | torch.Tensor | None,
    generator: torch.Generator | list[torch.Generator] | None = None,
) -> torch.Tensor:
    r"""
    Draws the noise with which a sample may be carried from $\sigma$ to $\hat\sigma > \sigma$ so
    that it stays a sample.

    Behind $x = y + \sigma\varepsilon$ is a hidden scale $\sqrt{D/\chi^2_D}$, which the two noise
    levels must share. Given the residual $R = (x - y)/\sigma$ its law is $\chi^2_D \sim
    \mathrm{Gamma}\bigl(\frac{N+D}{2}, \frac12 (1 + \lVert R \rVert^2 / D)\bigr)$ (shape and rate:
    the Gamma is conjugate to the precision of a Gaussian). So with $g \sim \mathcal{N}(0, I)$

    $$\hat x = x + \sqrt{\hat\sigma^2 - \sigma^2}\; g\,\sqrt{D / \chi^2_D}$$

    has the perturbation kernel at $\hat\sigma$. At D = infinity it is EDM's Gaussian churn.

    Args:
        residual (`torch.Tensor` of shape `(batch, ...)`): $(x - y)/\sigma$; in practice the
            denoised image stands for y.
        D (`float`, `torch.Tensor` of shape `(batch,)` or `None`): The augmented dimension.
        generator (`torch.Generator` or a list of them, *optional*): One for all or one an image, as
            for [`sample_noise`].

    Returns:
        `torch.Tensor`: $g\,\sqrt{D/\chi^2_D}$, like the residual.

    Raises:
        ValueError: `D` or the number or the device of the generators does not fit.
    """
    dims = residual[0].numel()
    gauss, chi2, dof = _draw(tuple(residual.shape), D, dims, generator, residual.device, residual.dtype)
    gauss = gauss.to(residual.device)
    if chi2 is None:
        return gauss
    squared_radius = (
        residual.flatten(1).to(torch.promote_types(residual.dtype, torch.float32)).square().sum(1)
    )
    return _scaled(gauss, (dof.to(squared_radius) + squared_radius) / chi2.to(squared_radius))


def interpolate_noise(start: torch.Tensor, end: torch.Tensor, fraction: float | torch.Tensor) -> torch.Tensor:
    """
    Goes from one unit noise to another along the shells of the prior: directions on the great
    circle between them, norms geometrically, since at small D the norm of one image is not that of
    another.

    Args:
        start (`torch.Tensor` of shape `(batch, ...)`): Unit noise, as from [`sample_noise`] or the
            pipeline's `invert`.
        end (`torch.Tensor` of shape `(batch, ...)`): Unit noise of the same shape.
        fraction (`float` or `torch.Tensor` of shape `(batch,)`): 0 gives `start`, 1 gives `end`.

    Returns:
        `torch.Tensor` of shape `(batch, ...)`: The noise in between.

    Raises:
        ValueError: The shapes do not fit.
    """
    if start.shape != end.shape or start.ndim < 2:
        shapes = f"{tuple(start.shape)} and {tuple(end.shape)}"
        raise ValueError(f"`start` and `end` must be of one shape (batch, ...), but are of shapes {shapes}.")
    a, b = start.flatten(1), end.flatten(1)
    fraction = torch.as_tensor(fraction, device=a.device, dtype=a.dtype).expand(len(a))[:, None]
    norm_a, norm_b = a.norm(dim=1, keepdim=True), b.norm(dim=1, keepdim=True)
    unit_a, unit_b = a / norm_a, b / norm_b
    angle = 2 * torch.atan2(
        (unit_a - unit_b).norm(dim=1, keepdim=True), (unit_a + unit_b).norm(dim=1, keepdim=True)
    )
    # sin(t angle) / sin(angle), whose limit at angle 0 is t
    weight_a = (1 - fraction) * torch.sinc((1 - fraction) * angle / math.pi) / torch.sinc(angle / math.pi)
    weight_b = fraction * torch.sinc(fraction * angle / math.pi) / torch.sinc(angle / math.pi)
    norm = norm_a ** (1 - fraction) * norm_b**fraction
    return (norm * (weight_a * unit_a + weight_b * unit_b)).view(start.shape)


def _drawing_device(generator: torch.Generator | None, device: torch.device | str | None) -> torch.device:
    """Where the random numbers are made: with the generator, or on `device` when there is none."""
    target = torch.device(device) if device is not None else None
    if generator is None:
        target = target or torch.get_default_device()
        # Metal has neither float64 nor a Gamma sampler.
        return torch.device("cpu") if target.type == "mps" else target
    if generator.device.type != "cpu" and target is not None and generator.device.type != target.type:
        raise ValueError(
            f"`generator` is on {generator.device} but the noise is wanted on {target}; use a generator on {target} or the CPU."
        )
    if generator.device.type == "mps":
        raise ValueError(
            "`generator` is on mps, which cannot draw Gamma variates; use a generator on the CPU."
        )
    return generator.device


def _draw(shape, D, extra_dims, generator, device, dtype):
    """
    Gaussians, then chi^2 of D + `extra_dims` degrees of freedom, one an image, from each generator;
    and D, one an image.

    The chi^2 are None where all D are infinite, and mean nothing where one is.
    """
    dof = degrees_of_freedom(D)
    if dof.ndim and dof.shape != shape[:1]:
        raise ValueError(
            f"`D` holds {len(dof)} values for a batch of {shape[0]}; give one value, or one an image."
        )
    generators = generator if isinstance(generator, (list, tuple)) else [generator]
    if isinstance(generator, (list, tuple)) and len(generators) != shape[0]:
        raise ValueError(
            f"`generator` is a list of {len(generators)} for a batch of {shape[0]}; give one an image."
        )
    rows = shape[0] // len(generators)
    gauss, chi2 = [], []
    for g, d in zip(generators, dof.expand(shape[0]).split(rows)):
        device_of_draw = _drawing_device(g, device)
        gauss.append(torch.randn((rows, *shape[1:]), generator=g, device=device_of_draw, dtype=dtype))
        finite = torch.isfinite(d)
        if bool(
            finite.any()
        ):  # else nothing more is taken from the generator, so later draws agree with EDM's as well
            half_dof = (torch.where(finite, d, 1.0).to(device_of_draw) + extra_dims) / 2
            # Tensor-level twin of torch.distributions.Gamma, which takes no generator.
            chi2.append(2 * torch._standard_gamma(half_dof, generator=g))
        else:
            chi2.append(gauss[-1].new_ones(rows, dtype=torch.float32))
    gauss, chi2 = (torch.cat(parts) if len(parts) > 1 else parts[0] for parts in (gauss, chi2))
    if bool(dof.isinf().all()):
        return gauss, None, dof
    return gauss, chi2, dof.expand(shape[0]).to(chi2.device)


def _scaled(gauss, squared_scale):
    """The Gaussian, which is overwritten, times a factor an image, 1 where that is at infinity."""
    scale = torch.where(squared_scale.isinf(), 1.0, squared_scale).sqrt().view(-1, *[1] * (gauss.ndim - 1))
    compute_dtype = torch.promote_types(gauss.dtype, torch.float32)
    scale = scale.to(compute_dtype)
    return gauss.mul_(scale) if gauss.dtype == compute_dtype else (gauss * scale).to(gauss.dtype)


def _kernel_energy(squared_radius: torch.Tensor, dof: torch.Tensor, dims: int) -> torch.Tensor:
    r"""$\frac{N+D}{2} \log(1 + q/D)$ at $q = R^2/\sigma^2$, whose limit at $D = \infty$ is $q/2$."""
    finite = torch.isfinite(dof)
    safe = torch.where(finite, dof, 1.0)
    return torch.where(finite, (dims + safe) / 2 * torch.log1p(squared_radius / safe), squared_radius / 2)


def _log_gamma_ratio(dof: torch.Tensor, dims: int) -> torch.Tensor:
    r"""
    $\log\Gamma(\frac{D+N}{2}) - \log\Gamma(\frac D2) - \frac N2 \log\frac D2$, which tends to 0 as
    $D \to \infty$.
    """
    a, n = dof / 2, dims / 2
    direct = torch.lgamma(a + n) - torch.lgamma(a) - n * torch.log(a)
    # For large D the two lgammas cancel; the difference of their Stirling series does not.
    large = torch.where(torch.isfinite(a), a, 1e300).clamp_min(64.0)

    def tail(z):
        return 1 / (12 * z) - 1 / (360 * z**3) + 1 / (1260 * z**5)

    growth = (large + n) * torch.log1p(n / large) - n
    stirling = growth - torch.log1p(n / large) / 2 + tail(large + n) - tail(large)
    return torch.where(torch.isfinite(a), torch.where(a < 64, direct, stirling), 0.0)


def log_density(
    x: torch.Tensor, D: float | torch.Tensor | None, sigma: float | torch.Tensor = 1.0
) -> torch.Tensor:
    r"""
    Log-density of the perturbation kernel at displacement $x$ from the data point, in nats:

    $$\log p(x) = \log\frac{\Gamma(\frac{N+D}{2})}{\Gamma(\frac D2)} - \frac N2 \log(\pi D \sigma^2)
      - \frac{N+D}{2} \log\Bigl(1 + \frac{\lVert x \rVert^2}{\sigma^2 D}\Bigr).$$

    Args:
        x (`torch.Tensor` of shape `(batch, ...)`): Displacements; all but the first dimension are
            the N of the kernel.
        D (`float`, `torch.Tensor` of shape `(batch,)` or `None`): The augmented dimension.
        sigma (`float` or `torch.Tensor` of shape `(batch,)`, defaults to 1): Scale of the kernel,
            in the data's units.

    Returns:
        `torch.Tensor` of shape `(batch,)`: The log-densities, in float64 (float32 on mps).

    Raises:
        ValueError: `x` has no batch dimension, or `D` or `sigma` is not positive or of another length.
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
    Probability of each reference $y_j$ to be the data point behind $x_i$
    (https://huggingface.co/papers/2302.00670):

    $$w_{ij} \propto \bigl(\lVert x_i - y_j \rVert^2 + \sigma_i^2 D\bigr)^{-(N+D)/2}, \qquad \textstyle\sum_j w_{ij} = 1.$$

    Args:
        x (`torch.Tensor` of shape `(batch, ...)`): Perturbed samples.
        references (`torch.Tensor` of shape `(M, ...)`): Data points, shaped like the samples; on
            any device.
        sigma (`float` or `torch.Tensor` of shape `(batch,)`): Noise levels, in the data's units.
        D (`float`, `torch.Tensor` of shape `(batch,)` or `None`): The augmented dimension.

    Returns:
        `torch.Tensor` of shape `(batch, M)`: Weights, in float64 (float32 on mps).

    Raises:
        ValueError: The shapes do not fit, or `sigma` or `D` is not positive.
    """
    x, sigma, dof = _prepare(x, sigma, D, references)
    weights = x.new_empty(len(x), len(references))  # holds the log-weights first: the matrix may be large
    filled = 0
    for chunk in _chunks(references, x):
        weights[:, filled : filled + len(chunk)] = _log_weights(x, chunk, sigma, dof)
        filled += len(chunk)
    weights -= weights.amax(1, keepdim=True)
    weights.exp_()
    return weights.div_(weights.sum(1, keepdim=True))


def field_target(
    x: torch.Tensor, references: torch.Tensor, sigma: float | torch.Tensor, D: float | torch.Tensor | None
) -> torch.Tensor:
    r"""
    Posterior mean $\sum_j w_{ij} y_j$ over the references, with the weights of [`posterior_weights`].

    This is the target of PFGM's large-batch Poisson field at D = 1, of PFGM++'s optional field loss
    in between, and of the stable target field at D = infinity; over a whole data set it is the
    exact denoiser. References are visited in chunks, so memory beyond the inputs is a few copies of
    `x` and one chunk.

    Args:
        x (`torch.Tensor` of shape `(batch, ...)`): Perturbed samples.
        references (`torch.Tensor` of shape `(M, ...)`): Data points, shaped like the samples; on
            any device.
        sigma (`float` or `torch.Tensor` of shape `(batch,)`): Noise levels, in the data's units.
        D (`float`, `torch.Tensor` of shape `(batch,)` or `None`): The augmented dimension.

    Returns:
        `torch.Tensor`: Posterior means in the shape and type of `x`, computed in float64 (float32
            on mps).

    Raises:
        ValueError: The shapes do not fit, or `sigma` or `D` is not positive.
    """
    shape, dtype = x.shape, x.dtype
    x, sigma, dof = _prepare(x, sigma, D, references)
    mean = torch.zeros_like(x)
    log_total = x.new_full((len(x), 1), -math.inf)
    for chunk in _chunks(references, x):
        log_weights = _log_weights(x, chunk, sigma, dof)
        previous, log_total = log_total, torch.logaddexp(log_total, log_weights.logsumexp(1, keepdim=True))
        mean = torch.addmm(mean * (previous - log_total).exp(), (log_weights - log_total).exp(), chunk)
    return mean.view(shape).to(dtype)


def _prepare(x, sigma, D, references=None):
    """
    Samples as a matrix, `sigma` and `D` as columns, all on one device and in the precision the
    kernel needs.
    """
    if not isinstance(x, torch.Tensor) or x.ndim < 2:
        raise ValueError(f"Samples must be a tensor of shape (batch, ...), but are {getattr(x, 'shape', x)}.")
    if references is not None and (references.shape[1:] != x.shape[1:] or len(references) == 0):
        raise ValueError(
            f"References of shape {tuple(references.shape)} do not fit samples of shape {tuple(x.shape)}."
        )
    # At sigma = 0.002 a squared distance of a few hundred must be good to 1e-6: float64, but Metal
    # has none.
    options = {"device": x.device, "dtype": torch.float32 if x.device.type == "mps" else torch.float64}
    dof = degrees_of_freedom(D)
    sigma = torch.as_tensor(sigma, **options)
    if not bool((sigma > 0).all()):
        raise ValueError(f"`sigma` must be positive, but is {sigma.tolist()}.")
    for name, value in (("sigma", sigma), ("D", dof)):
        if value.ndim and value.shape != x.shape[:1]:
            raise ValueError(f"`{name}` of shape {tuple(value.shape)} does not fit a batch of {len(x)}.")
    return (
        x.flatten(1).to(**options),
        sigma.expand(len(x))[:, None],
        dof.to(**options).expand(len(x))[:, None],
    )


def _chunks(references, x):
    size = max(1, min(_PAIRS_PER_CHUNK // len(x), _PAIRS_PER_CHUNK // x.shape[1]))
    for chunk in references.flatten(1).split(size):
        yield chunk.to(x)


def _log_weights(x, references, sigma, dof):
    squared = torch.addmm(references.square().sum(1), x, references.T, alpha=-2)
    squared += x.square().sum(1, keepdim=True)
    return _kernel_energy(squared.clamp_min_(0) / sigma**2, dof, x.shape[1]).neg_()
