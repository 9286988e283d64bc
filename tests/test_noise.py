"""The perturbation kernel against closed forms, SciPy, mpmath and the authors' field targets."""

import math
import sys
from pathlib import Path

import mpmath
import numpy as np
import pytest
import scipy.stats
import torch

from pipeline_pfgmpp import (
    field_target,
    interpolate_noise,
    log_density,
    noise,
    posterior_weights,
    sample_noise,
    sample_noise_given,
)


EVERY_D = [0.5, 1, 2, 64, 128, 2048, 1e6, None]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("dims", [2, 784, 3072])
@pytest.mark.parametrize("D", [1, 2, 64, 128, 2048, 1e6])
def test_radius_is_beta_prime(D, dims):
    radius = sample_noise((4000, dims), D, generator(1), dtype=torch.float64).square().sum(1)
    p_value = scipy.stats.kstest((radius / D).numpy(), scipy.stats.betaprime(dims / 2, D / 2).cdf).pvalue
    assert p_value > 1e-3


@pytest.mark.parametrize("D", [1, 128, None])
def test_directions_are_uniform_and_independent_of_the_radius(D):
    dims = 784
    eps = sample_noise((4000, dims), D, generator(2), dtype=torch.float64)
    radius = eps.norm(dim=1)
    cosines = (eps / radius[:, None])[:, :3]
    for axis in range(3):  # the square of one coordinate of a uniform direction is Beta(1/2, (N-1)/2)
        squared = cosines[:, axis].square().numpy()
        assert scipy.stats.kstest(squared, scipy.stats.beta(0.5, (dims - 1) / 2).cdf).pvalue > 1e-3
    assert scipy.stats.spearmanr(radius, cosines[:, 0]).pvalue > 1e-3
    angles = torch.atan2(*sample_noise((4000, 2), D, generator(3), dtype=torch.float64).T)
    assert scipy.stats.kstest((angles / (2 * math.pi) + 0.5).numpy(), "uniform").pvalue > 1e-3


@pytest.mark.parametrize("dims", [2, 48])
def test_prior_at_d_1_is_the_projected_hemisphere(dims):
    eps = sample_noise((4000, dims), 1, generator(4), dtype=torch.float64)
    # Back from the plane z = 1 to the unit sphere: the squared height of a uniform point is
    # Beta(1/2, N/2).
    height = 1 / (1 + eps.square().sum(1)).sqrt()
    assert scipy.stats.kstest(height.square().numpy(), scipy.stats.beta(0.5, dims / 2).cdf).pvalue > 1e-3


@pytest.mark.parametrize("D", [None, math.inf])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_infinite_d_is_randn_bit_for_bit(D, dtype):
    ours, theirs = generator(5), generator(5)
    for _ in range(2):  # the second draw shows that nothing more was taken from the generator
        expected = torch.randn((3, 1, 4, 4), generator=theirs, dtype=dtype)
        assert torch.equal(sample_noise((3, 1, 4, 4), D, ours, dtype=dtype), expected)


def test_directions_are_the_same_for_every_d_and_radii_are_fresh():
    draws = []
    for D in EVERY_D:
        rng = generator(6)
        draws.append(torch.stack([sample_noise((2, 50), D, rng), sample_noise((2, 50), D, rng)]))
    for noise_of_one_d in draws:
        directions = [torch.nn.functional.normalize(x, dim=-1) for x in (noise_of_one_d, draws[-1])]
        torch.testing.assert_close(*directions)
    scales = (draws[0] / draws[-1])[..., 0].flatten()
    assert len(scales.unique()) == 4


def test_radii_of_later_draws_are_independent():
    rng = generator(8)
    radii = torch.stack([sample_noise((2000, 2), 4, rng).norm(dim=1) for _ in range(2)])
    assert abs(scipy.stats.spearmanr(*radii).statistic) < 0.08
    assert scipy.stats.ks_2samp(*radii).pvalue > 1e-3


@pytest.mark.parametrize("D", [1, 128, None])
def test_with_a_list_of_generators_each_image_depends_on_its_own(D):
    together = sample_noise((4, 3, 5), D, [generator(seed) for seed in (10, 11, 12, 13)])
    pair = sample_noise((2, 3, 5), D, [generator(seed) for seed in (13, 11)])
    assert torch.equal(pair, together[[3, 1]])


def test_one_d_per_image():
    D = torch.tensor([1.0, 128.0, math.inf])
    together = sample_noise((3, 20), D, [generator(seed) for seed in range(3)])
    for seed, value in enumerate(D.tolist()):
        assert torch.equal(together[seed], sample_noise((1, 20), value, [generator(seed)])[0])
    mixed = sample_noise((2, 20), torch.tensor([math.inf, 3.0]), generator(0))
    assert torch.equal(mixed[0], torch.randn(2, 20, generator=generator(0))[0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_dtype_and_default_device(dtype):
    eps = sample_noise((8, 3, 4, 4), 16, generator(7), dtype=dtype)
    assert (eps.dtype, eps.device.type, eps.shape) == (dtype, "cpu", (8, 3, 4, 4))
    assert eps.isfinite().all()


def test_a_cpu_generator_serves_another_device():
    assert sample_noise((2, 3), 8, generator(), device="meta").device.type == "meta"


@pytest.mark.parametrize("D", [1, 16, 2048, None])
def test_noise_given_a_residual_carries_a_sample_upwards(D):
    """sigma * eps + sqrt(s^2 - sigma^2) * noise given eps is distributed as s * eps."""
    dims, rng = 20, generator(1)
    eps = sample_noise((4000, dims), D, rng, dtype=torch.float64)
    raised = (eps + math.sqrt(3) * sample_noise_given(eps, D, rng)) / 2
    law = scipy.stats.chi2(dims) if D is None else scipy.stats.betaprime(dims / 2, D / 2)
    radius = raised.square().sum(1) / (1 if D is None else D)
    assert scipy.stats.kstest(radius.numpy(), law.cdf).pvalue > 1e-3
    if D == 16:  # independent noise would give another distribution
        wrong = (eps + math.sqrt(3) * torch.randn(eps.shape, generator=rng, dtype=torch.float64)) / 2
        assert scipy.stats.kstest((wrong.square().sum(1) / D).numpy(), law.cdf).pvalue < 1e-8


@pytest.mark.parametrize("dims", [1, 20])
def test_the_noise_of_a_stochastic_step_is_student_t_of_as_many_degrees_as_dimensions(dims):
    """
    Given R it has N + D degrees of freedom and the squared scale (D + |R|^2) / (N + D): the posterior of
    heavy-tailed diffusion (https://huggingface.co/papers/2410.14171).
    """
    D = 4
    for size in (0.3, 3.0):
        residual = torch.full((4000, dims), size, dtype=torch.float64)
        noise = sample_noise_given(residual, D, generator(3))
        scale = math.sqrt((D + dims * size**2) / (dims + D))
        law = scipy.stats.t(dims + D, scale=scale)
        assert scipy.stats.kstest(noise[:, 0].numpy(), law.cdf).pvalue > 1e-3
        variance = (D + dims * size**2) / (dims + D - 2)
        assert noise.square().mean().item() == pytest.approx(variance, rel=0.1)


def test_noise_given_a_residual_takes_one_d_and_one_generator_per_image():
    residual, D = torch.randn(3, 5), torch.tensor([2.0, math.inf, 100.0])
    together = sample_noise_given(residual, D, [generator(seed) for seed in range(3)])
    for seed in range(3):
        alone = sample_noise_given(residual[seed : seed + 1], D[seed].item(), [generator(seed)])
        torch.testing.assert_close(together[seed : seed + 1], alone)
    assert torch.equal(together[1], torch.randn(1, 5, generator=generator(1))[0])
    with pytest.raises(ValueError, match="2 values for a batch of 3"):
        sample_noise_given(residual, torch.ones(2))


class CudaGenerator:
    device = torch.device("cuda", 0)


@pytest.mark.parametrize("D", [0, -1, math.nan, "many", torch.ones(2, 2), [1.0, -1.0]])
def test_a_d_that_is_not_a_positive_number_is_refused(D):
    with pytest.raises(ValueError, match="`D` must be a positive number"):
        sample_noise((2, 3), D)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"shape": (3,)}, "`shape` must be"),
        ({"shape": (0, 3)}, "`shape` must be"),
        ({"D": torch.ones(3)}, "3 values for a batch of 2"),
        ({"generator": [generator()] * 3}, "a list of 3 for a batch of 2"),
        (
            {"generator": CudaGenerator(), "device": "cpu"},
            "`generator` is on cuda:0 but the noise is wanted on cpu",
        ),
    ],
)
def test_arguments_that_do_not_fit_are_refused_in_one_sentence(kwargs, message):
    with pytest.raises(ValueError, match=message) as error:
        sample_noise(**{"shape": (2, 3), "D": 4, **kwargs})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_noise_that_is_too_long_is_shortened(dtype):
    dims, limit = 50, 2.0
    free, bounded = (
        sample_noise((4000, dims), 1, generator(3), dtype=dtype, max_norm=norm).float()
        for norm in (None, limit)
    )
    norm = free.norm(dim=1) / dims**0.5
    assert 0.3 < (norm > limit).float().mean() < 0.5  # the share of |g| < 1/2, 0.38
    torch.testing.assert_close(bounded[norm < limit], free[norm < limit], rtol=0, atol=0)
    torch.testing.assert_close(bounded.norm(dim=1) / dims**0.5, norm.clamp_max(limit), rtol=2e-3, atol=0)
    directions = torch.nn.functional.cosine_similarity(bounded, free)
    assert directions.min() > 0.999


def exact_log_density(squared_radius, dims, D, sigma):
    with mpmath.workdps(50):
        N, q, s = mpmath.mpf(dims), mpmath.mpf(squared_radius), mpmath.mpf(sigma)
        if D is None:
            return float(-N / 2 * mpmath.log(2 * mpmath.pi * s**2) - q / (2 * s**2))
        D = mpmath.mpf(D)
        normaliser = (
            mpmath.loggamma((N + D) / 2) - mpmath.loggamma(D / 2) - N / 2 * mpmath.log(mpmath.pi * D * s**2)
        )
        return float(normaliser - (N + D) / 2 * mpmath.log1p(q / (s**2 * D)))


@pytest.mark.parametrize("dims", [1, 2, 784, 200_000])
@pytest.mark.parametrize("D", [0.1, 1, 5, 127, 129, 2048, 1e6, 1e9, 1e15, None])
@pytest.mark.parametrize("sigma", [0.002, 0.3, 80.0])
def test_log_density(D, dims, sigma):
    x = sigma * sample_noise((2, dims), D, generator(8), dtype=torch.float64)
    expected = torch.tensor(
        [exact_log_density(q, dims, D, sigma) for q in x.square().sum(1).tolist()], dtype=torch.float64
    )
    torch.testing.assert_close(log_density(x, D, sigma), expected, rtol=1e-11, atol=1e-11)


def test_log_density_does_not_overflow():
    x = torch.full((1, 200_000), 1e30)  # its squared norm is beyond float32
    assert log_density(x, 1).isfinite().all()


def test_log_density_agrees_with_scipy_and_takes_one_value_per_image():
    x = torch.randn(3, 4, generator=generator(9), dtype=torch.float64)
    D, sigma = torch.tensor([2.5, 40.0, math.inf]), torch.tensor([0.3, 1.0, 2.0], dtype=torch.float64)
    frozen = [
        scipy.stats.multivariate_t(shape=s**2 * torch.eye(4).numpy(), df=d)
        for d, s in zip(D.tolist(), sigma.tolist())
    ]
    expected = torch.tensor(
        [float(t.logpdf([0] * 4 + row)) for t, row in zip(frozen, x.numpy())], dtype=torch.float64
    )
    torch.testing.assert_close(log_density(x, D, sigma), expected)


@pytest.mark.parametrize("D", ["1", "64", "2048", "1000000", "inf"])
def test_field_targets_of_the_authors(golden, D):
    tensors, _ = golden("field_targets")
    sigma = tensors["Dinf.in.sigma"] if D == "inf" else tensors[f"D{D}.in.r"] / float(D) ** 0.5
    target = field_target(tensors[f"D{D}.in.x"], tensors["in.references"], sigma, float(D)).flatten(1)
    expected = tensors[f"D{D}.out.target"]
    assert ((target - expected).norm(dim=1) / expected.norm(dim=1)).max() < 1e-5


@pytest.mark.parametrize("D", EVERY_D)
def test_weights_and_target_in_chunks(D, monkeypatch):
    x, references = (
        torch.randn(5, 2, 3, 3, generator=generator(1)),
        torch.randn(37, 2, 3, 3, generator=generator(2)),
    )
    sigma = torch.tensor([0.02, 0.1, 0.5, 2.0, 80.0])
    # the definition, pair by pair
    log_weights = torch.stack([log_density(x.double() - y.double(), D, sigma) for y in references], dim=1)
    expected = log_weights.softmax(1)
    for pairs in (2**22, 40):
        monkeypatch.setattr(noise, "_PAIRS_PER_CHUNK", pairs)
        weights = posterior_weights(x, references, sigma, D)
        torch.testing.assert_close(weights, expected)
        target = field_target(x, references, sigma, D)
        torch.testing.assert_close(
            target, torch.einsum("bm,mchw->bchw", expected, references.double()).float()
        )


def test_one_d_per_image_in_the_target():
    x, references = torch.randn(3, 4, generator=generator(1)), torch.randn(9, 4, generator=generator(2))
    together = field_target(x, references, 0.7, torch.tensor([1.0, 64.0, math.inf]))
    for row, D in enumerate((1, 64, None)):
        torch.testing.assert_close(
            together[row : row + 1], field_target(x[row : row + 1], references, 0.7, D)
        )


@pytest.mark.parametrize("sigma", [0, -1.0, math.nan])
def test_sigma_must_be_positive(sigma):
    with pytest.raises(ValueError, match="`sigma` must be positive"):
        field_target(torch.zeros(1, 2), torch.zeros(3, 2), sigma, 1)


@pytest.mark.parametrize(
    ("x", "references", "sigma"),
    [
        (torch.zeros(2, 3), torch.zeros(4, 5), 1.0),
        (torch.zeros(2, 3), torch.zeros(0, 3), 1.0),
        (torch.zeros(3), torch.zeros(4, 3), 1.0),
        (torch.zeros(2, 3), torch.zeros(4, 3), torch.ones(3)),
    ],
)
def test_shapes_that_do_not_fit_are_refused(x, references, sigma):
    for function in (field_target, posterior_weights):
        with pytest.raises(ValueError, match="fit|must be a tensor"):
            function(x, references, sigma, 128)


def read_peak():
    """Return the most memory that this process has taken, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak is read from /proc")
@pytest.mark.parametrize(("rows", "width", "limit"), [(32, 3072, 30_000 * 3072 * 4), (1024, 256, 2**30)])
def test_a_large_reference_batch_takes_little_memory(rows, width, limit):
    """Neither a float64 copy of wide references, nor differences for each pair of rows, are made at once."""
    references = torch.rand(30_000, width)
    Path("/proc/self/clear_refs").write_text("5")  # makes the peak what is taken now
    before = read_peak()
    for function in (field_target, posterior_weights):
        assert function(torch.zeros(rows, width), references, 1.0, 128).isfinite().all()
    assert read_peak() - before < limit


@pytest.mark.gpu
@pytest.mark.parametrize("D", [1, 128, None])
def test_noise_on_the_gpu(D):
    eps = sample_noise((4000, 784), D, torch.Generator("cuda").manual_seed(0), dtype=torch.float64)
    assert eps.device.type == "cuda"
    if D is not None:
        law = scipy.stats.betaprime(784 / 2, D / 2)
        assert scipy.stats.kstest((eps.square().sum(1) / D).cpu().numpy(), law.cdf).pvalue > 1e-3
    assert torch.equal(
        sample_noise((2, 8), D, generator(), "cuda").cpu(), sample_noise((2, 8), D, generator())
    )


# Arguments that make no sense


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"D": 1e-3}, "`D` must be at least 0.1, but is 0.001"),
        ({"D": "64"}, "`D` must be a positive number"),
        ({"D": True}, "`D` must be a positive number"),
        ({"D": 10**400}, "`D` must be a positive number"),
        ({"shape": (2.5, 3)}, "`shape` must be"),
        ({"shape": 6}, "`shape` must be"),
        ({"dtype": torch.int64}, "`dtype` must be a type of floats"),
        ({"generator": 0}, "`generator` must be a torch.Generator"),
        ({"generator": [0, 1]}, "`generator` must be a torch.Generator"),
        ({"max_norm": math.nan}, "`max_norm` must be positive"),
        ({"max_norm": 0}, "`max_norm` must be positive"),
    ],
)
def test_noise_of_absurd_arguments_is_refused(kwargs, message):
    with pytest.raises(ValueError, match=message) as error:
        sample_noise(**{"shape": (2, 3), "D": 8, **kwargs})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", [np.float32, np.int64, np.array, torch.tensor])
def test_scalars_of_numpy_and_torch_count_as_numbers(kind):
    expected = sample_noise((2, 3), 8, generator(), max_norm=2)
    whole = np.int64 if kind is np.float32 else kind
    drawn = sample_noise((whole(2), whole(3)), kind(8), generator(), max_norm=kind(2))
    assert torch.equal(drawn, expected)
    noise = torch.ones(2, 3)
    assert torch.equal(interpolate_noise(noise, 2 * noise, kind(1)), interpolate_noise(noise, 2 * noise, 1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fraction": math.nan}, r"`fraction` must lie in \[0, 1\]"),
        ({"fraction": 1.5}, r"`fraction` must lie in \[0, 1\]"),
        ({"fraction": torch.tensor([0.5, math.inf])}, r"`fraction` must lie in \[0, 1\]"),
        ({"fraction": torch.ones(3)}, "`fraction` must be a number in .* or 2 of them"),
        ({"fraction": "half"}, "`fraction` must be a number"),
        ({"fraction": None}, "`fraction` must be a number"),
        ({"start": torch.ones(2, 3, dtype=torch.int64)}, "`start` must be a torch.Tensor of floats"),
        ({"start": [[1.0]]}, "`start` must be a torch.Tensor of floats"),
        ({"end": torch.full((2, 3), math.nan)}, "`end` must be finite"),
        ({"end": torch.zeros(2, 3)}, "zero everywhere"),
        ({"end": -torch.ones(2, 3)}, "must not be opposite"),
        ({"end": torch.ones(3, 3)}, "must be of one shape"),
    ],
)
def test_interpolation_between_what_is_no_noise_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        interpolate_noise(
            **{"start": torch.ones(2, 3), "end": 2 * torch.ones(2, 3), "fraction": 0.5, **arguments}
        )
    assert "\n" not in str(error.value)
