"""
The scheduler against EDM's formulas and diffusers' own EDM schedulers, and what diffusers requires of
a scheduler.
"""

import copy
import inspect
import itertools
import json

import numpy as np
import pytest
import torch
from diffusers import EDMDPMSolverMultistepScheduler, EDMEulerScheduler

from pipeline_pfgmpp import PFGMPPScheduler, sample_noise


SOLVERS = ["heun", "euler"]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def toy_network(model_input, c_noise):
    """Return some smooth function of what a network sees."""
    return torch.tanh(model_input) * (1 + 0.1 * c_noise)


def sample_with(scheduler, x, timesteps=None, network=toy_network, **kwargs):
    for t in scheduler.timesteps if timesteps is None else timesteps:
        x = scheduler.step(network(scheduler.scale_model_input(x, t), t), t, x, **kwargs).prev_sample
    return x


def start(scheduler, dtype=torch.float32, shape=(4, 3, 8, 8)):
    return scheduler.sample_noise(shape, generator(), dtype=dtype) * scheduler.init_noise_sigma


@pytest.mark.parametrize("rho", [7.0, 3.0])
@pytest.mark.parametrize("steps", [1, 2, 18])
def test_noise_levels_are_those_of_edm(steps, rho):
    scheduler = PFGMPPScheduler(solver_type="euler", rho=rho)
    scheduler.set_timesteps(steps)
    high, low = 80 ** (1 / rho), 0.002 ** (1 / rho)
    expected = [(high + i / max(steps - 1, 1) * (low - high)) ** rho for i in range(steps)] + [0.0]
    torch.testing.assert_close(scheduler.sigmas, torch.tensor(expected))
    torch.testing.assert_close(scheduler.timesteps, torch.tensor(expected[:-1]).log() / 4)


@pytest.mark.parametrize("steps", [1, 2, 18])
def test_heun_has_a_timestep_for_each_call(steps):
    euler, heun = PFGMPPScheduler(solver_type="euler"), PFGMPPScheduler()
    euler.set_timesteps(steps)
    heun.set_timesteps(steps)
    assert len(heun.timesteps) == 2 * steps - 1
    assert len(heun.sigmas) == 2 * steps
    assert torch.equal(heun.sigmas[1::2], euler.sigmas[1:])
    assert torch.equal(heun.sigmas[::2], euler.sigmas[:-1])
    assert (heun.order, euler.order) == (2, 1)


def test_euler_agrees_with_diffusers():
    ours = PFGMPPScheduler(D=None, solver_type="euler", sigma_data=0.7)
    theirs = EDMEulerScheduler.from_config(ours.config)
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(12)
    x = start(ours)
    torch.testing.assert_close(sample_with(ours, x), sample_with(theirs, x))


def test_heun_agrees_with_its_definition():
    scheduler = PFGMPPScheduler(D=128)
    scheduler.set_timesteps(6)
    x = expected = start(scheduler, torch.float64)
    levels = [*scheduler.sigmas[::2].double().tolist(), 0.0]

    def slope(x, sigma):
        sigma = torch.tensor(sigma, dtype=torch.float64)
        output = toy_network(scheduler.precondition_inputs(x, sigma), sigma.log() / 4)
        return (x - scheduler.precondition_outputs(x, output, sigma)) / sigma

    for now, then in itertools.pairwise(levels):
        first = slope(expected, now)
        following = expected + (then - now) * first
        expected = following if then == 0 else expected + (then - now) * (first + slope(following, then)) / 2
    torch.testing.assert_close(sample_with(scheduler, x), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("solver_type", SOLVERS)
@pytest.mark.parametrize("D", [1, 2048, 0.5, None])
def test_save_and_load(D, solver_type, tmp_path):
    scheduler = PFGMPPScheduler(D=D, solver_type=solver_type, sigma_data=0.7, s_churn=10.0, s_tmax=50.0)
    scheduler.save_pretrained(tmp_path)
    loaded = PFGMPPScheduler.from_pretrained(tmp_path)
    saved = {key: value for key, value in scheduler.config.items() if key != "_use_default_values"}
    assert loaded.config == saved  # where nothing was left to a default
    for each in (scheduler, loaded):
        each.set_timesteps(5)
    x = start(scheduler)
    assert torch.equal(
        sample_with(scheduler, x, generator=generator()), sample_with(loaded, x, generator=generator())
    )


def test_infinity_is_null_in_json(tmp_path):
    scheduler = PFGMPPScheduler(D=float("inf"), s_tmax=float("inf"))
    scheduler.save_pretrained(tmp_path)
    text = (tmp_path / "scheduler_config.json").read_text()
    assert '"D": null' in text
    assert '"s_tmax": null' in text
    assert "Infinity" not in text


@pytest.mark.parametrize("other", [EDMEulerScheduler, EDMDPMSolverMultistepScheduler])
@pytest.mark.parametrize("D", [128, 2048, None])
def test_a_round_trip_through_diffusers_schedulers_keeps_d(D, other, tmp_path):
    scheduler = PFGMPPScheduler(D=D, sigma_data=0.7, sigma_max=40.0)
    swapped = other.from_config(scheduler.config)
    assert (swapped.config.D, swapped.config.sigma_data, swapped.config.sigma_max) == (D, 0.7, 40.0)
    back = PFGMPPScheduler.from_config(swapped.config)
    assert back.config == scheduler.config
    # and from what was written to disk
    swapped.save_pretrained(tmp_path)
    assert PFGMPPScheduler.from_pretrained(tmp_path).config.D == D
    assert PFGMPPScheduler.from_config(scheduler.config, D=3).config.D == 3


@pytest.mark.parametrize("other", [EDMEulerScheduler, EDMDPMSolverMultistepScheduler])
def test_a_scheduler_of_diffusers_is_one_of_infinite_d(other, tmp_path):
    other().save_pretrained(tmp_path)
    for each in (other(), other.from_pretrained(tmp_path)):
        assert PFGMPPScheduler.from_config(each.config).config.D is None
        assert PFGMPPScheduler.from_config(each.config, D=64).config.D == 64
    assert PFGMPPScheduler.from_config({}).config.D == 2048


def test_from_config_of_another_scheduler_leaves_our_solver_behind(tmp_path):
    """It does so for a new scheduler and a loaded one, and in both directions."""
    scheduler = PFGMPPScheduler(solver_type="dpmpp_2m", max_noise_norm=8.0)
    scheduler.save_pretrained(tmp_path)
    for each in (scheduler, PFGMPPScheduler.from_pretrained(tmp_path)):
        swapped = EDMDPMSolverMultistepScheduler.from_config(each.config)
        assert swapped.config.solver_type == "midpoint"
        back = PFGMPPScheduler.from_config(swapped.config)
        assert (back.config.D, back.config.max_noise_norm) == (2048, 8.0)
        assert back.config.solver_type == "heun"
        assert PFGMPPScheduler.from_config(each.config).config.solver_type == "dpmpp_2m"
        assert copy.deepcopy(each).config == each.config


def test_a_saved_configuration_of_defaults_alone_keeps_d_among_schedulers(tmp_path):
    scheduler = PFGMPPScheduler()
    scheduler.save_pretrained(tmp_path)
    assert "_use_default_values" not in json.loads((tmp_path / "scheduler_config.json").read_text())
    loaded = PFGMPPScheduler.from_pretrained(tmp_path)
    assert "_use_default_values" not in loaded.config
    for each in (scheduler, loaded):
        assert EDMEulerScheduler.from_config(each.config).config.D == 2048


@pytest.mark.parametrize("other", [EDMEulerScheduler, EDMDPMSolverMultistepScheduler])
def test_compatibles(other):
    assert {other, PFGMPPScheduler} <= set(PFGMPPScheduler().compatibles)
    scheduler = PFGMPPScheduler.from_config(other(sigma_data=0.3).config)
    assert scheduler.config.sigma_data == 0.3


@pytest.mark.parametrize("solver_type", SOLVERS)
def test_dict_and_tuple_outputs(solver_type):
    scheduler = PFGMPPScheduler(solver_type=solver_type)
    x = torch.rand(4, 3, 8, 8)
    scheduler.set_timesteps(10)
    t = scheduler.timesteps[0]
    output = 0.1 * scheduler.scale_model_input(x, t)
    as_dict = scheduler.step(output, t, x)
    scheduler.set_timesteps(10)
    as_tuple = scheduler.step(output, t, x, return_dict=False)
    assert torch.equal(as_tuple[0], as_dict.prev_sample)
    assert torch.equal(as_tuple[1], as_dict.pred_original_sample)
    assert as_dict.prev_sample.shape == x.shape


@pytest.mark.parametrize("timestep", [0, 0.0, torch.tensor(0.25), torch.tensor([1])])
def test_any_timestep_finds_the_nearest_step(timestep):
    scheduler = PFGMPPScheduler()
    scheduler.set_timesteps(10)
    scheduler.scale_model_input(torch.rand(4, 3, 8, 8), timestep)
    nearest = (scheduler.timesteps[::2] - timestep).abs().argmin()
    assert scheduler.step_index == 2 * nearest


def test_step_before_set_timesteps_says_so():
    with pytest.raises(ValueError, match="Call `set_timesteps` before `step`"):
        PFGMPPScheduler().step(torch.zeros(1, 2), 0.0, torch.zeros(1, 2))


def test_steps_used_up_says_so():
    scheduler = PFGMPPScheduler()
    scheduler.set_timesteps(2)
    x = sample_with(scheduler, start(scheduler))
    with pytest.raises(ValueError, match="used up"):
        scheduler.step(x, 0.0, x)


@pytest.mark.parametrize("solver_type", SOLVERS)
@pytest.mark.parametrize("how", ["begin index", "timestep"])
def test_starting_midway_continues_the_same_path(solver_type, how):
    scheduler = PFGMPPScheduler(solver_type=solver_type)
    scheduler.set_timesteps(9)
    path = [start(scheduler)]
    for t in scheduler.timesteps:
        path.append(sample_with(scheduler, path[-1], [t]))
    begin = 4 * scheduler.order
    scheduler.set_timesteps(9)
    if how == "begin index":
        scheduler.set_begin_index(begin)
    rest = sample_with(scheduler, path[begin], scheduler.timesteps[begin:])
    torch.testing.assert_close(rest, path[-1])


@pytest.mark.parametrize("begin_index", [3, 100, -2])
def test_a_begin_index_at_which_no_step_begins_is_refused(begin_index):
    scheduler = PFGMPPScheduler()
    scheduler.set_timesteps(4)
    with pytest.raises(ValueError, match="multiple of the solver's order 2, from 0 to 6"):
        scheduler.set_begin_index(begin_index)


@pytest.mark.parametrize("timesteps", ["x", [None], None])
def test_timesteps_that_are_no_numbers_are_refused(timesteps):
    with pytest.raises(ValueError, match="`timesteps`") as error:
        PFGMPPScheduler().set_timesteps(timesteps=timesteps)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("solver_type", ["euler", "consistency"])
def test_exponential_levels_are_even_in_their_logarithms(solver_type, steps):
    scheduler = PFGMPPScheduler(solver_type=solver_type, sigma_schedule="exponential")
    scheduler.set_timesteps(steps)
    last = steps if solver_type == "consistency" else max(steps - 1, 1)
    expected = [80 * (0.002 / 80) ** (i / last) for i in range(steps)]
    torch.testing.assert_close(scheduler.sigmas[:-1], torch.tensor(expected))


@pytest.mark.parametrize("solver_type", ["heun", "euler", "dpmpp_2m", "dpmpp_2m_sde"])
@pytest.mark.parametrize("steps", [1, 2])
def test_the_last_step_ends_at_the_smallest_level_on_demand(solver_type, steps):
    scheduler = PFGMPPScheduler(solver_type=solver_type, final_sigmas_type="sigma_min", sigma_min=0.1)
    scheduler.set_timesteps(steps)
    assert scheduler.sigmas[-1] == pytest.approx(0.1)
    for smallest in (0.05, 0.5):  # of given levels it is the last, as in diffusers
        scheduler.set_timesteps(sigmas=[3.0, smallest])
        assert scheduler.sigmas[-1] == pytest.approx(smallest)


def test_consistency_sampling_ends_at_zero():
    with pytest.raises(ValueError, match="`final_sigmas_type` must be 'zero' with `solver_type` 'consist"):
        PFGMPPScheduler(solver_type="consistency", final_sigmas_type="sigma_min")


def test_a_midpoint_is_heun_in_configurations_of_diffusers_alone():
    config = EDMDPMSolverMultistepScheduler(solver_type="midpoint").config
    assert PFGMPPScheduler.from_config(config).config.solver_type == "heun"
    for build in (PFGMPPScheduler, PFGMPPScheduler.from_config):
        with pytest.raises(ValueError, match="`solver_type` must be one of"):
            build(**({} if build is PFGMPPScheduler else {"config": config}), solver_type="midpoint")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_samples_that_are_changed_within_a_step_of_heun_are_the_state(dtype):
    """Those that are not changed beside them are corrected as ever."""
    scheduler = PFGMPPScheduler(D=None)
    scheduler.set_timesteps(4)
    x = start(scheduler, dtype)
    plain = [x]
    for t in scheduler.timesteps[:4]:
        plain.append(sample_with(scheduler, plain[-1], [t]))
    changed = plain[3].clone()
    changed[:2] = 5.0
    scheduler.set_timesteps(4)
    sample_with(scheduler, x, scheduler.timesteps[:3])
    after = sample_with(scheduler, changed, scheduler.timesteps[3:4])
    assert (after[:2] == 5).all()
    assert torch.equal(after[2:], plain[4][2:])


@pytest.mark.parametrize("solver_type", SOLVERS)
@pytest.mark.parametrize("form", [list, torch.tensor])
def test_custom_noise_levels_and_timesteps(solver_type, form):
    scheduler = PFGMPPScheduler(solver_type=solver_type)
    levels = [10.0, 3.0, 0.5]
    scheduler.set_timesteps(sigmas=form(levels))
    expected = scheduler.sigmas.clone()
    assert expected[:: scheduler.order].tolist()[:3] == levels
    assert (scheduler.num_inference_steps, scheduler.init_noise_sigma) == (3, 10.0)
    scheduler.set_timesteps(timesteps=form((torch.tensor(levels).log() / 4).tolist()))
    torch.testing.assert_close(scheduler.sigmas, expected)


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"num_inference_steps": 0},
        {"num_inference_steps": 2.5},
        {"num_inference_steps": 3, "sigmas": [3.0, 1.0]},
        {"sigmas": []},
        {"sigmas": [1.0, 3.0]},
        {"sigmas": [3.0, True]},
        {"sigmas": [3.0, 0.0]},
        {"sigmas": [float("nan")]},
        {"sigmas": torch.tensor(3.0)},
        {"timesteps": 0.5},
    ],
)
def test_bad_timesteps_are_refused(kwargs):
    with pytest.raises(ValueError, match="`num_inference_steps`|`sigmas`"):
        PFGMPPScheduler().set_timesteps(**kwargs)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"D": 0},
        {"D": float("nan")},
        {"D": torch.ones(2)},
        {"sigma_min": 0.0},
        {"sigma_min": 90.0},
        {"sigma_data": 0.0},
        {"rho": -1.0},
        {"rho": 0.001},
        {"rho": 1e4},
        {"num_train_timesteps": 0},
        {"s_churn": -1.0},
        {"solver_type": "runge"},
        {"sigma_schedule": "linear"},
        {"final_sigmas_type": "one"},
    ],
)
def test_bad_arguments_are_refused_by_name(kwargs):
    with pytest.raises(ValueError, match=next(iter(kwargs))):
        PFGMPPScheduler(**kwargs)


def test_the_bounds_of_noise_levels_are_stated():
    with pytest.raises(ValueError, match=r"`sigma_min` must lie in \[1e-09, 1e\+09\], but is 1e-12"):
        PFGMPPScheduler(sigma_min=1e-12)
    with pytest.raises(ValueError, match=r"noise levels from 1e\+09 to 1e-09, but are"):
        PFGMPPScheduler().set_timesteps(sigmas=[80.0, 1e-12])


@pytest.mark.parametrize("solver_type", SOLVERS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_any_dtype(solver_type, dtype):
    scheduler = PFGMPPScheduler(D=128, solver_type=solver_type)
    scheduler.set_timesteps(8)
    reference = sample_with(scheduler, start(scheduler, torch.float64))
    scheduler.set_timesteps(8)
    result = sample_with(scheduler, start(scheduler, torch.float64).to(dtype))
    assert result.dtype == dtype
    # The last step ends at an image, in whose units a half-precision state of 80 is coarse.
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 0.03, torch.bfloat16: 0.15}[dtype]
    assert (result.double() - reference).norm() <= tolerance * reference.norm()


def test_add_noise_at_any_noise_level():
    scheduler = PFGMPPScheduler(D=16)
    data, eps = torch.randn(3, 1, 4, 4), sample_noise((3, 1, 4, 4), 16, generator())
    sigma = torch.tensor([0.01, 0.5, 70.0])
    c_noise = scheduler.precondition_noise(sigma)
    expected = data + sigma.view(3, 1, 1, 1) * eps
    for form in (c_noise, c_noise.tolist()):
        torch.testing.assert_close(scheduler.add_noise(data, eps, form), expected)
    torch.testing.assert_close(scheduler.add_noise(data, eps, c_noise[1:2])[1], expected[1])
    torch.testing.assert_close(scheduler.add_noise(data, eps, c_noise[1].item())[1], expected[1])
    assert scheduler.add_noise(data.half(), eps.half(), c_noise).dtype == torch.float16
    with pytest.raises(ValueError, match="2 `timesteps` do not fit a batch of 3"):
        scheduler.add_noise(data, eps, c_noise[:2])


def test_add_noise_then_denoise_midway():
    scheduler = PFGMPPScheduler(D=64)
    scheduler.set_timesteps(10)
    begin = 5 * scheduler.order
    scheduler.set_begin_index(begin)
    timesteps = scheduler.timesteps[begin:]
    data = torch.randn(2, 1, 4, 4)
    x = scheduler.add_noise(data, scheduler.sample_noise(data.shape, generator()), timesteps[:1].repeat(2))
    assert sample_with(scheduler, x, timesteps).isfinite().all()


def test_sample_noise_uses_the_schedulers_d_or_another():
    scheduler = PFGMPPScheduler(D=3)
    for D, kwargs in ((3, {}), (128, {"D": 128}), (None, {"D": None})):
        noise = scheduler.sample_noise((2, 5), generator(), **kwargs)
        assert torch.equal(noise, sample_noise((2, 5), D, generator()))


@pytest.mark.parametrize("solver_type", SOLVERS)
def test_churn_raises_the_noise_level_as_published(solver_type):
    scheduler = PFGMPPScheduler(solver_type=solver_type, s_churn=4.0, s_tmin=0.05, s_tmax=50.0)
    scheduler.set_timesteps(10)
    plain = PFGMPPScheduler(solver_type="euler")
    plain.set_timesteps(10)
    inside = (plain.sigmas[:-1] >= 0.05) & (plain.sigmas[:-1] <= 50)
    expected = plain.sigmas[:-1] * torch.where(inside, 1 + 4.0 / 10, 1.0)
    torch.testing.assert_close(scheduler.sigmas[:-1][:: scheduler.order], expected)
    scheduler = PFGMPPScheduler(s_churn=1e9)
    scheduler.set_timesteps(10)
    torch.testing.assert_close(scheduler.sigmas[:-1:2], plain.sigmas[:-1] * 2**0.5)
    assert scheduler.init_noise_sigma == pytest.approx(80 * 2**0.5)


@pytest.mark.parametrize("solver_type", SOLVERS)
def test_churn_keeps_the_marginal_of_a_gaussian(solver_type):
    spread = 0.7  # data N(0, spread^2), whose exact denoiser at D = infinity is linear
    steps = {"heun": 100, "euler": 1000}[solver_type]  # enough for either's own error to be small
    scheduler = PFGMPPScheduler(D=None, solver_type=solver_type, s_churn=20.0, sigma_data=spread)
    scheduler.set_timesteps(steps)

    def network(model_input, c_noise):  # with sigma_data = spread, c_skip * x is the exact denoiser
        return torch.zeros_like(model_input)

    x = start(scheduler, shape=(20_000, 5))
    samples = sample_with(scheduler, x, network=network, generator=generator(1))
    assert samples.std() == pytest.approx(spread, rel=0.02)
    # without the noise that churn puts back, the raised levels alone would shrink the samples
    shrunk = PFGMPPScheduler(D=None, solver_type=solver_type, s_churn=20.0, s_noise=0.0, sigma_data=spread)
    shrunk.set_timesteps(steps)
    assert sample_with(shrunk, x, network=network, generator=generator(1)).std() < 0.5 * spread


def test_churn_takes_one_generator_per_image():
    scheduler = PFGMPPScheduler(s_churn=10.0)
    x = torch.randn(3, 1, 4, 4)
    results = []
    for order in ([0, 1, 2], [2, 0, 1]):
        scheduler.set_timesteps(4)
        results.append(sample_with(scheduler, x[order], generator=[generator(seed) for seed in order]))
    torch.testing.assert_close(results[1], results[0][[2, 0, 1]])


def test_the_constructor_has_the_documented_defaults():
    parameters = inspect.signature(PFGMPPScheduler.__init__).parameters
    defaults = {
        "D": 2048,
        "sigma_min": 0.002,
        "sigma_max": 80.0,
        "sigma_data": 0.5,
        "rho": 7.0,
        "solver_type": "heun",
        "s_churn": 0.0,
        "s_tmin": 0.0,
        "s_tmax": None,
        "s_noise": 1.0,
    }
    for name, default in defaults.items():
        assert parameters[name].default == default


@pytest.mark.gpu
@pytest.mark.parametrize("solver_type", SOLVERS)
def test_on_the_gpu(solver_type):
    scheduler = PFGMPPScheduler(solver_type=solver_type, s_churn=5.0)
    results = []
    for device in ("cpu", "cuda"):
        scheduler.set_timesteps(6, device=device)
        assert scheduler.timesteps.device.type == device
        results.append(sample_with(scheduler, start(scheduler).to(device), generator=generator()).cpu())
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


# Timesteps and arguments that make no sense


@pytest.mark.parametrize(
    "timesteps",
    [
        torch.randint(100, 1000, (3,), generator=torch.Generator().manual_seed(0)),
        torch.tensor([0, 1, 0]),
        np.array([1, 0, 1]),
        torch.tensor([0.1, 0.2, 2.5]),
        999,
        -3.0,
        float("nan"),
        float("inf"),
        [0.1, float("nan"), 0.3],
        "0.5",
        None,
    ],
    ids=str,
)
def test_add_noise_refuses_what_is_no_noise_level(timesteps):
    scheduler = PFGMPPScheduler()
    with pytest.raises(ValueError, match=r"`timesteps` must be c_noise = ln\(sigma\) / 4") as error:
        scheduler.add_noise(torch.zeros(3, 1, 4, 4), torch.ones(3, 1, 4, 4), timesteps)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "timesteps", [0, np.float32(0.5), np.array([0.1, 0.2, 0.3]), torch.tensor(-1.5)], ids=str
)
def test_add_noise_takes_numbers_of_every_kind(timesteps):
    scheduler = PFGMPPScheduler()
    noisy = scheduler.add_noise(torch.zeros(3, 1, 4, 4), torch.ones(3, 1, 4, 4), timesteps)
    expected = (4 * torch.as_tensor(timesteps, dtype=torch.float32)).exp().expand(3)
    torch.testing.assert_close(noisy[:, 0, 0, 0], expected)


def test_add_noise_refuses_noise_of_another_shape():
    with pytest.raises(ValueError, match="`noise` must be of shape"):
        PFGMPPScheduler().add_noise(torch.zeros(3, 1, 4, 4), torch.ones(1, 4, 4), 0.5)


def test_the_noise_levels_of_training_lie_inside():
    """Training draws ln(sigma) from a normal distribution, which `sigma_min` and `sigma_max` do not bound."""
    sigma = (torch.randn(1_000_000, generator=generator()) * 1.2 - 1.2).exp()
    assert sigma.min() < 0.002
    scheduler = PFGMPPScheduler()
    zeros = torch.zeros(len(sigma), 1)
    assert scheduler.add_noise(zeros, zeros, scheduler.precondition_noise(sigma)).isfinite().all()


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.array, torch.tensor])
def test_a_scheduler_takes_numbers_of_every_kind_and_saves_those_of_python(kind, tmp_path):
    numbers = {
        "D": 64,
        "sigma_min": 0.25,
        "sigma_max": 64,
        "sigma_data": 0.5,
        "rho": 5,
        "s_churn": 4,
        "s_tmin": 0.5,
        "s_tmax": 32,
        "s_noise": 1,
        "max_noise_norm": 8,
    }
    scheduler = PFGMPPScheduler(**{name: kind(value) for name, value in numbers.items()})
    scheduler.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "scheduler_config.json").read_text())
    assert {name: saved[name] for name in numbers} == numbers
    assert PFGMPPScheduler(num_train_timesteps=np.int64(10)).config.num_train_timesteps == 10


NUMBERS = [
    "sigma_min",
    "sigma_max",
    "sigma_data",
    "rho",
    "s_churn",
    "s_tmin",
    "s_noise",
    "num_train_timesteps",
]


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), "1", None, True, [1.0], torch.ones(2), 1j], ids=str
)
@pytest.mark.parametrize("name", NUMBERS)
def test_what_is_no_number_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"`{name}` must") as error:
        PFGMPPScheduler(**{name: value})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "options",
    [
        {"D": 1e-3},
        {"D": "128"},
        {"D": True},
        {"s_tmax": float("nan")},
        {"s_tmax": -1},
        {"s_noise": -1},
        {"max_noise_norm": float("nan")},
        {"max_noise_norm": "2"},
        {"prediction_type": "sample"},
        {"solver_type": None},
        {"solver_type": ["heun"]},
        {"sigma_min": 1e-30},
        {"sigma_max": 1e30},
    ],
    ids=str,
)
def test_absurd_options_are_refused_by_name(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        PFGMPPScheduler(**options)


@pytest.mark.parametrize("solver_type", ["heun", "dpmpp_3m"])
def test_a_copy_shares_no_steps_with_its_original(solver_type):
    scheduler = PFGMPPScheduler(solver_type=solver_type)
    scheduler.set_timesteps(5)
    x = start(scheduler)
    expected = sample_with(scheduler, x)
    scheduler.set_timesteps(5)
    other = copy.copy(scheduler)
    other.set_timesteps(9)
    y = start(other)
    for t, u in zip(scheduler.timesteps, other.timesteps):
        x = sample_with(scheduler, x, [t])
        y = sample_with(other, y, [u])
    assert torch.equal(x, expected)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_noise_is_not_added_to_integers(dtype):
    images = torch.zeros(2, 1, 4, 4, dtype=dtype)
    with pytest.raises(ValueError, match="`original_samples` must be floats, but are Tensor of torch"):
        PFGMPPScheduler().add_noise(images, torch.randn(2, 1, 4, 4), torch.zeros(2))


def test_another_spacing_takes_the_place_of_levels_that_were_chosen_for_the_first():
    own = {"solver_type": "euler", "sigmas": {"euler": {"2": [70.0, 3.0]}}}
    scheduler = PFGMPPScheduler(**own)
    for options, levels in (
        ({}, [70, 3, 0]),
        ({"D": 64, "sigma_max": 80.0}, [70, 3, 0]),
        ({"sigma_max": 20.0}, [20, 0.002, 0]),
        ({"rho": 3.0, "sigmas": own["sigmas"]}, [70, 3, 0]),
    ):
        changed = PFGMPPScheduler.from_config(scheduler.config, **options)
        changed.set_timesteps(2)
        assert changed.sigmas.tolist() == pytest.approx(levels)
