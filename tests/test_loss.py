"""The training loss: its formula, its minimum, and the law of D."""

import math

import pytest
import scipy.stats
import torch

from pipeline_pfgmpp import EmpiricalDenoiser, PFGMPPScheduler
from pipeline_pfgmpp.training import (
    DimensionRange,
    PFGMPPLoss,
    UncertaintyWeighting,
    replace_nonfinite_gradients,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


class Recorder(torch.nn.Module):
    """Returns zeros and keeps what it was called with."""

    def forward(self, sample, timestep, return_dict=True, **conditioning):
        self.sample, self.timestep, self.conditioning = sample, timestep, conditioning
        return (torch.zeros_like(sample),)


@pytest.mark.parametrize("D", [1, 128, None])
def test_loss_is_its_formula(D):
    scheduler, unet = PFGMPPScheduler(D=D, sigma_data=0.7), Recorder()
    images, labels = torch.rand(6, 1, 4, 4) * 2 - 1, torch.arange(6)
    loss_function = PFGMPPLoss(scheduler, P_mean=-0.5, P_std=0.9)
    loss = loss_function(unet, images, loss_function.draw(images.shape, generator(3)), class_labels=labels)

    rng = generator(3)
    sigma = (-0.5 + 0.9 * torch.randn(6, 1, 1, 1, generator=rng)).exp()
    x = images + sigma * scheduler.sample_noise(images.shape, rng)
    torch.testing.assert_close(unet.sample, x / (sigma**2 + 0.49).sqrt())
    torch.testing.assert_close(unet.timestep, sigma.log().flatten() / 4)
    assert torch.equal(unet.conditioning["class_labels"], labels)
    denoised = 0.49 / (sigma**2 + 0.49) * x  # the network says zero
    expected = ((sigma**2 + 0.49) / (0.7 * sigma) ** 2 * (denoised - images) ** 2).mean((1, 2, 3))
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("D", [16, None])
def test_the_exact_denoiser_has_the_least_loss(D, ten_images):
    """
    The posterior mean minimises the expected loss; at another D it is another function and does
    worse.
    """
    tiny_images = torch.nn.functional.avg_pool2d(ten_images, 4)  # so near that noise leaves their choice open
    batch = tiny_images.repeat(100, 1, 1, 1)

    def expected_loss(oracle_D, shift=0.0):
        oracle = EmpiricalDenoiser(tiny_images)
        loss = PFGMPPLoss(PFGMPPScheduler(D=D), P_mean=0.5, P_std=0.5)
        draws = (loss.draw(batch.shape, generator(seed)) for seed in range(40))
        network = lambda x, t, return_dict: (oracle(x, t, D=oracle_D).sample + shift,)  # noqa: E731
        return torch.stack([loss(network, batch, drawn).mean() for drawn in draws]).mean()

    least = expected_loss(D)
    assert least < expected_loss(D, shift=0.2)
    assert least < expected_loss(1)


def test_over_references_the_target_is_their_posterior_mean(ten_images):
    """The exact denoiser of the references has no loss at all, at any D."""
    images = torch.nn.functional.avg_pool2d(ten_images, 4)
    for D in (1, 64, None):
        oracle, loss = EmpiricalDenoiser(images), PFGMPPLoss(PFGMPPScheduler(D=D), P_mean=0.5, P_std=0.5)
        network = lambda x, t, return_dict, D=D: (oracle(x, t, D=D).sample,)  # noqa: B023, E731
        drawn = loss.draw(images[:4].shape, generator(1))
        assert loss(network, images[:4], drawn, references=images).max() < 1e-6
        assert loss(network, images[:4], drawn).mean() > 1e-3  # against single images something is left


@pytest.mark.parametrize(
    ("text", "low", "high"),
    [("128", 128, 128), ("inf", math.inf, math.inf), ("16:2048", 16, 2048), ("16:inf", 16, math.inf)],
)
def test_ranges_of_d(text, low, high):
    dimensions = DimensionRange.parse(text)
    assert (dimensions.low, dimensions.high, str(dimensions)) == (low, high, text)
    D = dimensions.draw(20_000, generator())
    assert D.min() >= low
    assert D.max() <= high
    finite = D[D.isfinite()]
    if low < high:
        top = min(high, 2**18)
        position = (finite / low).log() / math.log(top / low)
        assert scipy.stats.kstest(position.numpy(), "uniform").pvalue > 1e-3
        assert D.isinf().double().mean() == pytest.approx(0.1 if high == math.inf else 0, abs=0.01)
    assert low <= dimensions.middle <= high


@pytest.mark.parametrize(
    "text",
    ["0", "-1", "nan", "many", "16:8", ":", "16:", "1e9:inf", "0:16", "0.4", "0.4:8", "0.001:8", "8:0.4"],
)
def test_bad_ranges_of_d_are_refused(text):
    with pytest.raises(
        ValueError, match="`D` must be a number of at least 0.5, inf, or a range such as 16:inf"
    ):
        DimensionRange.parse(text)


def test_what_a_range_of_d_allows_a_scheduler_takes():
    """A run wrote a D that no pipeline samples at."""
    dimensions = DimensionRange.parse("0.5:8")
    assert PFGMPPScheduler(D=dimensions.low, D_range=(dimensions.low, dimensions.high)).config.D == 0.5
    with pytest.raises(ValueError, match="`D` must be at least 0.5, but is 0.4"):
        DimensionRange(0.4, 8)


def test_each_image_has_its_own_d_and_the_network_is_told():
    unet, images = Recorder(), torch.zeros(4000, 1, 4, 4)
    loss = PFGMPPLoss(
        PFGMPPScheduler(D=128, sigma_data=0.7), P_std=1e-9, dimensions=DimensionRange(1, math.inf)
    )
    loss(unet, images, loss.draw(images.shape, generator()))
    D = unet.conditioning["D"]
    assert D.shape == (4000,)
    assert D.isinf().any()
    radius = unet.sample.flatten(1).square().mean(1)  # of unit noise, but for one factor
    assert radius[D > 1e4].std() < 0.5 * radius[D < 4].std()


def test_parts_of_a_draw_are_the_draws_of_the_parts():
    """So processes and passes may share a step."""
    images = torch.rand(6, 1, 4, 4, generator=generator())
    for dimensions in (None, DimensionRange(1, math.inf)):
        loss, unet = PFGMPPLoss(PFGMPPScheduler(D=8), dimensions=dimensions), Recorder()
        drawn = loss.draw(images.shape, generator(1))
        whole = loss(unet, images, drawn)
        for part in (slice(0, 2), slice(1, None, 3)):
            assert torch.equal(loss(unet, images[part], drawn[part]), whole[part])


def test_learned_uncertainty_is_the_logarithm_of_the_mean_loss():
    """Its minimum makes every noise level count alike."""
    torch.manual_seed(0)
    weighting = UncertaintyWeighting()
    optimizer = torch.optim.Adam(weighting.parameters(), lr=3e-2)
    for step in range(1000):
        sigma = (torch.randn(256, generator=generator(step)) - 1.2).exp()
        loss = (0.1 + sigma) * (1 + 0.1 * torch.randn(256, generator=generator(step)))
        weighting(loss, sigma).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    sigma = torch.tensor([0.1, 0.3, 1.0])
    zero = torch.zeros(3)
    torch.testing.assert_close(weighting(zero, sigma), (0.1 + sigma).log(), atol=0.15, rtol=0)


def test_gradients_that_are_not_finite_are_replaced_and_counted():
    weight = torch.nn.Parameter(torch.zeros(5))
    weight.grad = torch.tensor([1.0, math.nan, math.inf, -math.inf, 2.0])
    assert replace_nonfinite_gradients([weight, torch.nn.Parameter(torch.zeros(1))]) == 3
    assert weight.grad.tolist() == [1.0, 0.0, 1e5, -1e5, 2.0]
    assert replace_nonfinite_gradients([weight]) == 0
