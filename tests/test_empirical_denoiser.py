"""The exact denoiser leads home to the data, and shows each solver's order."""

import functools
import math

import numpy as np
import pytest
import scipy.stats
import torch
from diffusers import DiffusionPipeline, EDMDPMSolverMultistepScheduler

from pipeline_pfgmpp import EmpiricalDenoiser, PFGMPPPipeline, PFGMPPScheduler, field_target


EVERY_D = [16, 128, 2048, None]


def oracle_pipeline(data, **config):
    pipe = PFGMPPPipeline(EmpiricalDenoiser(data), PFGMPPScheduler(**config))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("D", EVERY_D)
def test_sampling_from_ten_real_images_returns_them(ten_images, D):
    samples = oracle_pipeline(ten_images, D=D)(
        batch_size=40, output_type="latent", generator=torch.Generator().manual_seed(0)
    ).images
    distances = (samples[:, None] - ten_images[None]).abs().amax((2, 3, 4))
    assert distances.amin(1).max() < 1e-3
    assert distances.argmin(1).unique().numel() > 5


@pytest.mark.parametrize("D", EVERY_D)
def test_each_image_comes_with_equal_probability(ten_images, D):
    data = torch.nn.functional.avg_pool2d(ten_images, 4)  # tiny: 7 x 7
    samples = oracle_pipeline(data, D=D)(
        batch_size=2000,
        num_inference_steps=24,
        output_type="latent",
        generator=torch.Generator().manual_seed(1),
    ).images
    distances = (samples[:, None] - data[None]).abs().amax((2, 3, 4))
    assert distances.amin(1).max() < 1e-3
    counts = torch.bincount(distances.argmin(1), minlength=10)
    assert scipy.stats.chisquare(counts.numpy()).pvalue > 1e-3


def test_pfgm_in_its_own_terms(ten_images):
    """
    At D = 1 Euler's steps are those of dx/dz = E_x / E_z in the field of charges at z = 0, with z
    decreasing as in PFGM.
    """
    data = torch.nn.functional.avg_pool2d(ten_images, 4).double()
    scheduler = PFGMPPScheduler(
        D=1, sigma_min=1e-3, sigma_max=40.0, solver_type="euler", sigma_schedule="exponential"
    )
    scheduler.set_timesteps(30)
    x = scheduler.sigmas[0] * scheduler.sample_noise(
        (6, 1, 7, 7), torch.Generator().manual_seed(0), dtype=torch.float64
    )
    unet, charges = EmpiricalDenoiser(data), torch.nn.functional.pad(data.flatten(1), (0, 1))
    point = x.flatten(1)
    heights = 40.0 * (1e-3 / 40.0) ** (torch.arange(30).double() / 29)
    for t, z, after in zip(scheduler.timesteps, heights, [*heights[1:], 0]):
        x = scheduler.step(unet(scheduler.scale_model_input(x, t), t, D=1).sample, t, x).prev_sample
        augmented = torch.cat([point, z.expand(6, 1)], dim=1)
        apart = augmented[:, None] - charges[None]
        distance = apart.norm(dim=2, keepdim=True)
        field = (apart / distance * (distance.amin(1, keepdim=True) / distance) ** 49).sum(
            1
        )  # N = 49, so 1 / distance^N
        point = point + field[:, :-1] / field[:, -1:] * (after - z)
    torch.testing.assert_close(x.flatten(1), point, rtol=1e-3, atol=1e-4)


def solve(data, D, solver_type, steps, levels):
    """Solve from noise at the first level to the last, in float64."""
    scheduler = PFGMPPScheduler(
        D=D, solver_type=solver_type, final_sigmas_type="sigma_min", lower_order_final=False
    )
    # equal steps in the variable of EDM's spacing
    ramp = torch.linspace(levels[0] ** (1 / 7), levels[1] ** (1 / 7), steps + 1, dtype=torch.float64) ** 7
    scheduler.set_timesteps(sigmas=ramp)
    unet = EmpiricalDenoiser(data.double())
    x = scheduler.sample_noise((8, *data.shape[1:]), torch.Generator().manual_seed(0), dtype=torch.float64)
    x = x * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        x = scheduler.step(unet(scheduler.scale_model_input(x, t), t, D=D).sample, t, x).prev_sample
    return x


LEVELS = (80.0, 0.5)


@functools.cache
def solve_finely(D):
    """Return six charges, and where noise comes to among them."""
    data = torch.randn(6, 1, 2, 2, generator=torch.Generator().manual_seed(2))
    return data, solve(data, D, "dpmpp_3m", 1024, LEVELS)


@pytest.mark.parametrize("D", [4, 128, None])
@pytest.mark.parametrize(
    ("solver_type", "order"), [("euler", 1), ("heun", 2), ("dpmpp_2m", 2), ("dpmpp_3m", 3)]
)
def test_measured_order_of_convergence(solver_type, order, D):
    data, exact = solve_finely(D)
    coarse, fine = [
        (solve(data, D, solver_type, steps, LEVELS) - exact).norm().item() for steps in (128, 256)
    ]
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.1)


def test_the_third_order_of_diffusers_measures_as_second():
    """
    This is why PFGMPPScheduler has its own. If this test fails, a new version of diffusers has fixed it,
    and ours can go.
    """
    data, exact = solve_finely(None)

    def error(steps):
        scheduler = EDMDPMSolverMultistepScheduler(
            solver_order=3,
            sigma_max=80.0,
            sigma_min=0.5,
            lower_order_final=False,
            final_sigmas_type="sigma_min",
        )
        scheduler.set_timesteps(steps + 1)
        unet = EmpiricalDenoiser(data.double())
        x = 80.0 * torch.randn(
            (8, *data.shape[1:]), generator=torch.Generator().manual_seed(0), dtype=torch.float64
        )
        for t in scheduler.timesteps[:-1]:  # the last step has no length
            x = scheduler.step(unet(scheduler.scale_model_input(x, t), t).sample, t, x).prev_sample
        return (x - exact).norm().item()

    assert math.log2(error(128) / error(256)) == pytest.approx(2, abs=0.3)


def carry(data, D, solver_type, stochastic_noise, levels, count):
    """
    Carry exact samples from the first level down to the last by stochastic steps.

    Returns them, and other exact samples at the level that they reached.
    """
    churn = {} if solver_type.endswith("sde") else {"s_churn": 20.0}
    options = {
        "solver_type": solver_type,
        "stochastic_noise": stochastic_noise,
        "final_sigmas_type": "sigma_min",
        **churn,
    }
    scheduler = PFGMPPScheduler(D=D, **options)
    scheduler.set_timesteps(
        sigmas=torch.linspace(levels[0] ** (1 / 7), levels[1] ** (1 / 7), 33, dtype=torch.float64) ** 7
    )
    unet, generator = EmpiricalDenoiser(data), torch.Generator().manual_seed(1)

    def exact(sigma):
        charges = data[torch.randint(len(data), (count,), generator=generator)]
        return charges + sigma * scheduler.sample_noise(charges.shape, generator, dtype=data.dtype)

    x = exact(scheduler.init_noise_sigma)
    for t in scheduler.timesteps[:-1]:  # the last step ends where it begins
        x = scheduler.step(
            unet(scheduler.scale_model_input(x, t), t, D=D).sample, t, x, generator=generator
        ).prev_sample
    return x, exact(scheduler.sigmas[scheduler.step_index])


@pytest.mark.parametrize("solver_type", ["heun", "dpmpp_2m_sde"])
@pytest.mark.parametrize("D", [4, 64, None])
def test_stochastic_steps_keep_the_marginal(D, solver_type):
    """
    Samples carried from sigma = 3 to 0.3 are as far from the nearest of five charges, in 64 dimensions,
    as samples drawn there.
    """
    data = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def p_value(stochastic_noise):
        radii = [
            (x[:, None] - data[None]).flatten(2).norm(dim=2).amin(1).numpy()
            for x in carry(data, D, solver_type, stochastic_noise, (3.0, 0.3), 3000)
        ]
        return scipy.stats.ks_2samp(*radii).pvalue

    assert p_value("student-t") > 1e-3
    if D is None:
        assert p_value("gaussian") == p_value("student-t")
    else:  # the published form loses the tails
        assert p_value("gaussian") < 1e-8


def test_its_denoised_image_is_the_posterior_mean(ten_images):
    unet, scheduler = EmpiricalDenoiser(ten_images, sigma_data=0.7), PFGMPPScheduler(D=64, sigma_data=0.7)
    x, sigma = torch.randn(5, 1, 28, 28), torch.tensor([0.01, 0.1, 1.0, 10.0, 80.0])
    columns = sigma.view(-1, 1, 1, 1)
    output = unet(scheduler.precondition_inputs(x, columns), scheduler.precondition_noise(sigma), D=64).sample
    denoised = scheduler.precondition_outputs(x, output, columns)
    torch.testing.assert_close(denoised, field_target(x, ten_images, sigma, 64), rtol=1e-4, atol=1e-5)


def test_the_pipeline_turns_d_like_a_dial(ten_images):
    pipe = oracle_pipeline(ten_images, D=128)
    eps = torch.randn(4, 1, 28, 28)
    # midway, before the path has settled on an image, the field differs with D
    halves = {}
    for D in (None, 1, 128, math.inf):

        def keep(pipe, step, timestep, tensors, D=D):
            if step == 3:
                halves[D] = tensors["latents"].clone()

        pipe(latents=eps, D=D, num_inference_steps=6, output_type="latent", callback_on_step_end=keep)
    assert torch.equal(halves[None], halves[128])  # None is the scheduler's own
    assert not torch.allclose(halves[None], halves[1])
    assert not torch.allclose(halves[None], halves[math.inf])


def test_it_is_saved_and_loaded(ten_images, tmp_path):
    pipe = oracle_pipeline(ten_images, D=128)
    pipe.save_pretrained(tmp_path)
    loaded = DiffusionPipeline.from_pretrained(tmp_path)
    assert torch.equal(loaded.unet.data, ten_images)
    eps = torch.randn(1, 1, 28, 28)
    images = [each(latents=eps, num_inference_steps=2, output_type="pt").images for each in (pipe, loaded)]
    torch.testing.assert_close(*images)


@pytest.mark.parametrize(
    "data",
    [
        torch.zeros(3, 1, 2, 2, dtype=torch.uint8),
        np.zeros((3, 1, 2, 2), dtype=np.float32),
        torch.full((3, 1, 2, 2), math.nan),
        None,
    ],
)
def test_data_that_are_no_finite_floats_are_refused(data):
    with pytest.raises(ValueError, match=r"\A`data` must [^\n]+\.\Z"):
        EmpiricalDenoiser(data)


@pytest.mark.parametrize("data", [torch.zeros(3, 4), torch.zeros(0, 1, 2, 2)])
def test_data_of_another_shape_is_refused(data):
    with pytest.raises(ValueError, match="`data` must be of shape"):
        EmpiricalDenoiser(data)


def test_a_sigma_data_unlike_the_schedulers_is_refused(ten_images):
    with pytest.raises(ValueError, match="`sigma_data`"):
        PFGMPPPipeline(EmpiricalDenoiser(ten_images, sigma_data=0.7), PFGMPPScheduler())
