"""t-EDM: the noise's own variance in the preconditioning, and nothing else that changes."""

import json
import math

import pytest
import scipy.stats
import torch
from conftest import ROOT, run_training
from diffusers import EDMEulerScheduler

from pipeline_pfgmpp import (
    EmpiricalDenoiser,
    PFGMPPPipeline,
    PFGMPPRestorationPipeline,
    PFGMPPScheduler,
    PFGMPPUNet2DModel,
)
from pipeline_pfgmpp.data import ImageDataset
from pipeline_pfgmpp.hub.cards import write_model_card
from pipeline_pfgmpp.records.digests import describe
from pipeline_pfgmpp.training import DimensionRange, PFGMPPLoss, Teacher, Trainer, TrainingConfig, read_run
from pipeline_pfgmpp.training.loss import Perturbation, denoise


EVERY_D = [3, 5, 30, None]
SIGMAS = torch.tensor([0.002, 0.1, 0.5, 3.0, 80.0], dtype=torch.float64)


def read_coefficients(scheduler, sigma, **dimension):
    """c_in, c_skip, c_out and the weight of the loss, each of the shape of the noise levels."""
    ones = torch.ones_like(sigma)
    zeros = torch.zeros_like(sigma)
    return (
        scheduler.precondition_inputs(ones, sigma, **dimension),
        scheduler.precondition_outputs(ones, zeros, sigma, **dimension),
        scheduler.precondition_outputs(zeros, ones, sigma, **dimension),
        scheduler.weigh_loss(sigma, **dimension),
    )


def make_pipeline(data, preconditioning="t-edm", **options):
    scheduler = PFGMPPScheduler(preconditioning=preconditioning, **options)
    pipe = PFGMPPPipeline(EmpiricalDenoiser(data, preconditioning=preconditioning), scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def data(ten_images):
    return torch.nn.functional.avg_pool2d(ten_images, 4)  # 7 x 7


@pytest.mark.parametrize("D", EVERY_D)
def test_what_the_network_sees_and_returns_has_unit_variance(D):
    scheduler = PFGMPPScheduler(D=D, preconditioning="t-edm", sigma_data=0.7)
    c_in, c_skip, c_out, weight = read_coefficients(scheduler, SIGMAS)
    data_variance = 0.7**2
    noise_variance = SIGMAS**2 * scipy.stats.t.var(df=math.inf if D is None else D)
    ones = torch.ones_like(SIGMAS)
    torch.testing.assert_close(c_in**2 * (data_variance + noise_variance), ones)
    # What it is to return is (y - c_skip x) / c_out with x = y + noise.
    returned = ((1 - c_skip) ** 2 * data_variance + c_skip**2 * noise_variance) / c_out**2
    torch.testing.assert_close(returned, ones)
    torch.testing.assert_close(weight * c_out**2, ones)
    # No other c_skip has less for the network to do.
    for other in (c_skip * 0.99, c_skip * 1.01):
        effort = (1 - other) ** 2 * data_variance + other**2 * noise_variance
        assert bool((effort > c_out**2).all())


@pytest.mark.parametrize("D", [5, 30, None])
def test_noise_as_it_is_drawn_has_unit_variance_for_the_network(D):
    scheduler = PFGMPPScheduler(D=D, preconditioning="t-edm")
    rng = torch.Generator().manual_seed(0)
    noise = scheduler.sample_noise((200_000, 1), rng, dtype=torch.float64)
    x = (
        scheduler.config.sigma_data * torch.randn(noise.shape, generator=rng, dtype=torch.float64)
        + 2.0 * noise
    )
    assert scheduler.precondition_inputs(x, 2.0).square().mean().item() == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("D", [None, math.inf])
def test_at_infinity_it_is_edm_bit_for_bit(D):
    edm = read_coefficients(PFGMPPScheduler(D=None), SIGMAS.float())
    for each, other in zip(
        edm, read_coefficients(PFGMPPScheduler(D=D, preconditioning="t-edm"), SIGMAS.float())
    ):
        assert torch.equal(each, other)


def test_edm_is_the_same_at_every_d():
    expected = read_coefficients(PFGMPPScheduler(D=None), SIGMAS)
    for D in (1, 3, torch.tensor([1.0, 2.0, 3.0, 4.0, math.inf])):
        for each, other in zip(expected, read_coefficients(PFGMPPScheduler(), SIGMAS, D=D)):
            assert torch.equal(each, other)


def test_each_sample_of_a_batch_has_the_coefficients_of_its_own_d():
    scheduler = PFGMPPScheduler(preconditioning="t-edm")
    D = torch.tensor([3.0, 5.0, 30.0, math.inf])
    x = torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor([0.1, 0.5, 2.0, 9.0])
    columns = sigma.view(-1, 1, 1, 1)
    inputs = scheduler.precondition_inputs(x, columns, D)
    outputs = scheduler.precondition_outputs(x, x.sin(), columns, D)
    weights = scheduler.weigh_loss(sigma, D)
    for row in range(4):
        each = {"sigma": columns[row], "D": D[row].item()}
        torch.testing.assert_close(inputs[row], scheduler.precondition_inputs(x[row], **each))
        torch.testing.assert_close(outputs[row], scheduler.precondition_outputs(x[row], x[row].sin(), **each))
        torch.testing.assert_close(weights[row], scheduler.weigh_loss(sigma[row], D[row].item()))


@pytest.mark.parametrize("options", [{"D": 2}, {"D": 1}, {"D": 16, "D_range": (1, None)}])
def test_without_a_variance_it_is_refused(options):
    with pytest.raises(
        ValueError, match="`D` must be above 2 with `preconditioning` 't-edm', but is .*variance"
    ):
        PFGMPPScheduler(preconditioning="t-edm", **options)
    PFGMPPScheduler(**options)


def test_unknown_preconditionings_are_refused():
    with pytest.raises(ValueError, match="`preconditioning` must be one of .*'edm', 't-edm'.*'vp'"):
        PFGMPPScheduler(preconditioning="vp")


@pytest.mark.parametrize("D", [2, torch.tensor([16.0, 2.0])])
def test_a_call_without_a_variance_is_refused_before_anything_is_drawn(data, D):
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    with pytest.raises(ValueError, match="`D` must be above 2"):
        make_pipeline(data, D=16)(batch_size=2, D=D, generator=generator)
    assert torch.equal(before, generator.get_state())


def test_the_configuration_is_saved_and_old_ones_are_edm(tmp_path):
    PFGMPPScheduler(D=5, preconditioning="t-edm").save_pretrained(tmp_path)
    assert PFGMPPScheduler.from_pretrained(tmp_path).config.preconditioning == "t-edm"
    path = tmp_path / "scheduler_config.json"
    entries = json.loads(path.read_text())
    del entries["preconditioning"]
    path.write_text(json.dumps(entries))
    assert PFGMPPScheduler.from_pretrained(tmp_path).config.preconditioning == "edm"


def test_what_has_another_preconditioning_is_refused(data):
    scheduler = PFGMPPScheduler(preconditioning="t-edm")
    with pytest.raises(
        ValueError, match="`preconditioning` is 'edm' in the network but 't-edm' in the scheduler"
    ):
        PFGMPPPipeline(EmpiricalDenoiser(data), scheduler)
    with pytest.raises(ValueError, match="`preconditioning` must be one of"):
        EmpiricalDenoiser(data, preconditioning="vp")
    assert EmpiricalDenoiser(data, 0.7).config.preconditioning == "edm"  # diffusers misplaces positional ones
    euler = EDMEulerScheduler.from_config(scheduler.config)
    with pytest.raises(
        ValueError, match="must be a PFGMPPScheduler for `preconditioning` 't-edm', but is EDMEuler"
    ):
        PFGMPPPipeline(PFGMPPUNet2DModel(sample_size=8, model_channels=16, channel_mult=(1,)), euler)
    assert PFGMPPScheduler.from_config(euler.config).config.preconditioning == "t-edm"


# The exact denoiser undoes the preconditioning, so that nothing that a pipeline does may depend on it.


def sample(pipe, **options):
    options = {"D": torch.tensor([3.0, 5.0, 30.0, math.inf]), "num_inference_steps": 8, **options}
    generator = torch.Generator().manual_seed(0)
    return pipe(batch_size=4, output_type="latent", generator=generator, **options).images


@pytest.mark.parametrize("solver", ["heun", "dpmpp_3m", "dpmpp_2m_sde", "consistency"])
def test_samples_are_those_of_the_same_denoiser(data, solver):
    edm = sample(make_pipeline(data, "edm", D=16, solver_type=solver))
    t_edm = sample(make_pipeline(data, D=16, solver_type=solver))
    torch.testing.assert_close(t_edm, edm, atol=1e-3, rtol=1e-3)


def test_edits_and_previews_are_those_of_the_same_denoiser(data):
    mask = torch.zeros(1, 1, 7, 7)
    mask[..., :4] = 1
    results = []
    for preconditioning in ("edm", "t-edm"):
        previews = []

        def keep(pipe, step, t, tensors, previews=previews):
            previews.append(tensors["pred_original_sample"])

        images = sample(
            make_pipeline(data, preconditioning, D=16),
            image=data[:4] / 2 + 0.5,
            mask_image=mask,
            callback_on_step_end=keep,
            callback_on_step_end_tensor_inputs=["pred_original_sample"],
        )
        results.append((images, torch.stack(previews)))
    for edm, t_edm in zip(*results):
        torch.testing.assert_close(t_edm, edm, atol=1e-3, rtol=1e-3)


def test_inversion_and_likelihood_are_those_of_the_same_denoiser(data):
    results = []
    for preconditioning in ("edm", "t-edm"):
        pipe = make_pipeline(data.double(), preconditioning, D=16, sigma_min=0.2)
        images = data[:2].double() / 2 + 0.5
        options = {"D": 5, "num_inference_steps": 12}
        likelihood = pipe.log_likelihood(images, dequantize=False, trace="exact", **options)
        results.append((pipe.invert(images, **options), likelihood.log_likelihood))
    for edm, t_edm in zip(*results):
        torch.testing.assert_close(t_edm, edm, atol=1e-6, rtol=1e-6)


def test_a_teacher_steps_along_the_same_lines(data):
    D = torch.tensor([3.0, 5.0, 30.0, math.inf])
    sigma = torch.tensor([0.5, 1.0, 2.0, 4.0])
    x = data[:4] + sigma.view(-1, 1, 1, 1) * torch.randn(
        4, 1, 7, 7, generator=torch.Generator().manual_seed(0)
    )
    perturbation = Perturbation(sigma, D, torch.zeros_like(x), sigma / 2)
    edm, t_edm = (Teacher(make_pipeline(data, each, D=16)).step(x, perturbation) for each in ("edm", "t-edm"))
    torch.testing.assert_close(t_edm, edm, atol=1e-5, rtol=1e-5)


def test_the_loss_is_the_squared_error_of_what_the_network_returns(data):
    """With the weight 1 / c_out^2 the loss is the error of the raw output, at each image's own D."""
    scheduler = PFGMPPScheduler(preconditioning="t-edm")
    loss = PFGMPPLoss(scheduler, dimensions=DimensionRange(3, math.inf))
    drawn = loss.draw(tuple(data.shape), torch.Generator().manual_seed(0))
    levels = drawn.sigma.view(-1, 1, 1, 1)
    seen = {}

    def network(model_input, c_noise, return_dict, D):
        seen["input"] = model_input
        return (torch.full_like(model_input, 0.3),)

    value = loss(network, data, drawn)
    x = data + levels * drawn.noise
    kappa = torch.where(drawn.D.isinf(), 1.0, drawn.D / (drawn.D - 2)).float().view(-1, 1, 1, 1)
    total = 0.25 + kappa * levels**2
    target = (data - 0.25 / total * x) * total.sqrt() / (kappa.sqrt() * levels * 0.5)
    torch.testing.assert_close(value, (0.3 - target).square().flatten(1).mean(1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(seen["input"], x / total.sqrt())


@pytest.fixture
def made_run(tmp_path, fresh_accelerator):
    """Train a tiny network of t-EDM for two steps, and return its folder and how to go on."""
    images = torch.randint(
        0, 256, (8, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )

    def make(preconditioning="t-edm", **options):
        torch.manual_seed(0)
        unet = PFGMPPUNet2DModel(
            sample_size=8, in_channels=1, out_channels=1, model_channels=16, channel_mult=(1,), num_blocks=1
        )
        config = TrainingConfig(
            tmp_path, max_train_steps=2, train_batch_size=4, sample_steps=0, checkpointing_steps=2, **options
        )
        scheduler = PFGMPPScheduler(D=5, preconditioning=preconditioning)
        return Trainer(unet, scheduler, ImageDataset(images), config)

    make().run()
    return tmp_path, make


def test_a_run_keeps_its_preconditioning(made_run):
    folder, make = made_run
    config = json.loads((folder / "scheduler/scheduler_config.json").read_text())
    assert config["preconditioning"] == "t-edm"
    assert "[t-EDM](https://huggingface.co/papers/2410.14171)" in (folder / "README.md").read_text()
    with pytest.raises(ValueError, match="another run .*--preconditioning is t-edm there and edm here"):
        make("edm", resume_from_checkpoint="latest")


def test_runs_that_state_none_are_edm(made_run):
    """Runs from before there was a choice are resumed, and not with another preconditioning."""
    folder, make = made_run
    for path in folder.rglob("run.json"):
        run = read_run(path.parent)
        del run["--preconditioning"]
        path.write_text(json.dumps(run))
    make("edm", resume_from_checkpoint="latest")
    with pytest.raises(ValueError, match="another run .*--preconditioning is edm there and t-edm here"):
        make("t-edm", resume_from_checkpoint="latest")


def test_results_of_edm_are_found_where_they_were_before_there_was_a_choice(data):
    assert "preconditioning" not in describe(make_pipeline(data, "edm"))["scheduler"]
    assert describe(make_pipeline(data))["scheduler"]["preconditioning"] == "t-edm"


def test_the_card_of_edm_says_nothing_of_it(data, tmp_path):
    write_model_card(tmp_path, make_pipeline(data, "edm"), "## Training\n\nNone.")
    assert "t-EDM" not in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--D", "2"], "`D` must be above 2 with `preconditioning` 't-edm', but is 2"),
        (
            ["--D", "1:inf", "--d_conditioning"],
            "`D` must be above 2 with `preconditioning` 't-edm', but is 1",
        ),
        (
            ["--pretrained_model_name_or_path", ROOT / "model_cards/pfgmpp-fashion-mnist"],
            "--preconditioning belongs to the pretrained network and cannot be changed",
        ),
    ],
)
def test_the_training_script_refuses_it_early(arguments, message, fashion_mnist, tmp_path):
    result = run_training(
        "--dataset_name", fashion_mnist, "--preconditioning", "t-edm", "--max_train_steps", 1,
        "--output_dir", tmp_path / "run", *arguments,
    )  # fmt: skip
    assert result.returncode
    assert message in result.stderr
    assert not (tmp_path / "run").exists()


def test_the_training_script_trains_it(fashion_mnist, tmp_path):
    result = run_training(
        "--dataset_name", fashion_mnist, "--preset", "fashion-mnist-small", "--augment", 0, "--D", 5,
        "--preconditioning", "t-edm", "--max_train_steps", 1, "--train_batch_size", 2, "--sample_steps", 0,
        "--checkpointing_steps", 0, "--output_dir", tmp_path / "run",
    )  # fmt: skip
    assert not result.returncode, result.stderr
    pipe = PFGMPPPipeline.from_pretrained(tmp_path / "run")
    assert pipe.scheduler.config.preconditioning == "t-edm"
    assert read_run(tmp_path / "run")["--preconditioning"] == "t-edm"


def test_restoration_denoises_as_training_does():
    """One call from a level to 0 is the denoiser of the loss, at the D of each image."""
    torch.manual_seed(0)
    options = {"model_channels": 16, "channel_mult": (1,), "num_blocks": 1, "condition_channels": 1}
    unet = PFGMPPUNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, d_conditioning=True, dropout=0.0, **options
    ).eval()
    torch.nn.init.xavier_uniform_(unet.dec["8x8_aux_conv"].weight)
    scheduler = PFGMPPScheduler(D=16, preconditioning="t-edm")
    pipe = PFGMPPRestorationPipeline(unet, scheduler)
    pipe.set_progress_bar_config(disable=True)
    degraded = torch.rand(2, 1, 8, 8)
    D = torch.tensor([3.0, 30.0])
    restored = pipe(degraded, 1, start_sigma=0.4, D=D, output_type="latent").images
    y = 2 * degraded - 1
    sigma = torch.full((2,), 0.4)
    with torch.no_grad():
        expected = denoise(unet, scheduler, y, sigma, D, condition=y)
        edm = denoise(unet, PFGMPPScheduler(D=16), y, sigma, D, condition=y)
    torch.testing.assert_close(restored, expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(restored, edm, atol=1e-2)
