"""Moving averages of the weights, and the schedule of the learning rate."""

import math

import numpy as np
import pytest
import torch

from pipeline_pfgmpp.training import SCHEDULES, HalfLifeEMA, PowerFunctionEMA, compute_learning_rate_factor
from pipeline_pfgmpp.training.ema import combine_snapshots, compute_exponent, fit_profile


def test_ema_half_life_in_images():
    weight = torch.nn.Parameter(torch.zeros(1))
    ema = HalfLifeEMA([weight], batch_size=100, halflife=1000, rampup=0.05)
    assert ema.get_decay(10**6) == pytest.approx(0.5 ** (100 / 1000))  # 1000 images halve what was
    assert ema.get_decay(10) == pytest.approx(0.5 ** (100 / (0.05 * 1000)))  # early: 5 % of the images seen
    expected = 0.0
    for step in range(1, 8):
        weight.data.fill_(float(step))
        ema.step([weight])
        decay = ema.get_decay(step)
        expected = decay * expected + (1 - decay) * step
    assert ema.shadow_params[0].item() == pytest.approx(expected)


@pytest.mark.parametrize("width", [0.05, 0.1, 0.2])
def test_a_power_function_average_is_as_wide_as_it_says(width):
    """The weights of step t count as t^gamma, whose relative standard deviation is the width."""
    steps, weight = 1000, torch.nn.Parameter(torch.zeros(1000))
    ema = PowerFunctionEMA([weight], width)
    for step in range(steps):
        weight.data = torch.nn.functional.one_hot(torch.tensor(step), steps).float()
        ema.step([weight])
    profile = ema.shadow_params[0].double().numpy()
    assert profile.sum() == pytest.approx(1, abs=1e-4)
    times = (np.arange(steps) + 1) / steps
    mean = (profile * times).sum()
    assert math.sqrt((profile * (times - mean) ** 2).sum()) == pytest.approx(width, rel=0.02)


def test_widths_and_powers():
    for gamma in (0.5, 6.94, 16.97):  # the latter two are the paper's for widths 0.1 and 0.05
        width = math.sqrt((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3)))
        assert compute_exponent(width) == pytest.approx(gamma, rel=1e-9)
    assert compute_exponent(0.1) == pytest.approx(6.94, abs=0.01)
    assert compute_exponent(0.05) == pytest.approx(16.97, abs=0.01)
    for width in (0, 0.3, -1):
        with pytest.raises(ValueError, match="must lie in"):
            compute_exponent(width)


def test_an_average_of_any_width_is_put_together_afterwards(tmp_path):
    """As if it had been kept all along, on a path of weights that wanders."""
    steps, wanted = 400, 0.08
    network = torch.nn.Linear(1, 300)
    path = torch.randn(steps, 300, generator=torch.Generator().manual_seed(0)).cumsum(0) / math.sqrt(steps)
    averages = [PowerFunctionEMA(network.parameters(), width) for width in (0.05, 0.1)]
    whole = PowerFunctionEMA(network.parameters(), wanted)
    for step in range(1, steps + 1):
        network.bias.data = path[step - 1]
        for average in [*averages, whole]:
            average.step(network.parameters())
        if step % 40 == 0:
            for average in averages:
                average.save_snapshot(tmp_path, step, ["weight", "bias"])
    error = (combine_snapshots(tmp_path, wanted)["bias"] - whole.shadow_params[1]).square().mean().sqrt()
    nearest = min(
        (average.shadow_params[1] - whole.shadow_params[1]).square().mean().sqrt() for average in averages
    )
    assert error < 0.1 * nearest
    assert fit_profile([(400, 0.1)], 400, 0.1).item() == pytest.approx(1)
    with pytest.raises(ValueError, match="must not be after the last snapshot"):
        combine_snapshots(tmp_path, wanted, step=401)
    with open(next((tmp_path / "ema").glob("*.safetensors")), "r+b") as file:
        file.truncate(20)
    with pytest.raises(ValueError, match="is damaged"):
        combine_snapshots(tmp_path, wanted)
    with pytest.raises(ValueError, match="holds no snapshots"):
        combine_snapshots(tmp_path / "none", wanted)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_learning_rates_in_images(schedule):
    def factor(images):
        return compute_learning_rate_factor(schedule, images, 10_000, warmup_images=1000, decay_images=4000)

    assert [factor(images) for images in (0, 500, 1000)] == [0, 0.5, 1]
    half, end = {
        "constant": (1, 1),
        "linear": (0.5, 0),
        "cosine": (0.5, 0),
        "inverse_sqrt": ((4000 / 5500) ** 0.5, 0.4**0.5),
    }[schedule]
    assert factor(5500) == pytest.approx(half)
    assert factor(10_000) == pytest.approx(end)
    with pytest.raises(ValueError, match="`schedule` must be one of constant"):
        compute_learning_rate_factor("stepwise", 0, 1)
