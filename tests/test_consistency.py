"""Consistency models: the loss, its teacher, the sampler, and the Trainer with them."""

import argparse
import dataclasses
import math

import pytest
import scipy.stats
import torch
from accelerate import Accelerator

from pipeline_pfgmpp import (
    EmpiricalDenoiser,
    PFGMPPPipeline,
    PFGMPPRestorationPipeline,
    PFGMPPScheduler,
    PFGMPPUNet2DModel,
)
from pipeline_pfgmpp.commands import main
from pipeline_pfgmpp.data import ImageDataset
from pipeline_pfgmpp.training import ConsistencyLoss, DimensionRange, Teacher, Trainer, TrainingConfig
from pipeline_pfgmpp.training.loss import PFGMPPLoss, denoise
from pipeline_pfgmpp.training.objective import (
    add_objective_arguments,
    choose_scheduler_options,
    create_loss,
    load_teacher,
)


DIMENSIONS = [4, 64, 2048, None]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


pytestmark = pytest.mark.usefixtures("one_thread")


def make_unet(**options):
    torch.manual_seed(0)
    options = {"model_channels": 16, "num_blocks": 1, "channel_mult": (1,), "attn_resolutions": (), **options}
    return PFGMPPUNet2DModel(**{"sample_size": 8, "in_channels": 1, "out_channels": 1, **options})


def make_pipeline(unet=None, **options):
    options = {"solver_type": "consistency", **options}
    if unet is None:
        unet = make_unet(label_dim=3)
    pipe = PFGMPPPipeline(unet, PFGMPPScheduler(**options))
    pipe.set_progress_bar_config(disable=True)
    return pipe


# The sampler


class FlowMap(EmpiricalDenoiser):
    """Maps points of the field lines of a data set to the lines' ends, by small steps of Heun's method."""

    def forward(self, sample, timestep, D=None, return_dict=True):
        scheduler = PFGMPPScheduler(D=math.inf if D is None else D)
        sigma = (4 * timestep).exp()
        x = sample / scheduler.precondition_inputs(torch.ones(()), sigma)
        ramp = torch.linspace(1, 0, 16, dtype=torch.float64)
        scheduler.set_timesteps(sigmas=(0.002 ** (1 / 7) + ramp * (sigma ** (1 / 7) - 0.002 ** (1 / 7))) ** 7)
        end = x
        for t in scheduler.timesteps:
            output = super().forward(scheduler.scale_model_input(end, t), t, D).sample
            end = scheduler.step(output, t, end).prev_sample
        scale = scheduler.precondition_outputs(torch.zeros(()), torch.ones(()), sigma)
        return ((end - scheduler.precondition_outputs(x, torch.zeros_like(x), sigma)) / scale,)


@pytest.mark.parametrize("D", DIMENSIONS)
def test_the_sampler_keeps_the_marginal(D):
    """By the exact map, samples between calls are data plus Student-t noise, and at the end data."""
    rng = generator(1)
    data = torch.rand(5, 1, 2, 2, generator=rng) * 2 - 1
    pipe = make_pipeline(FlowMap(data), D=D)
    states = []

    def keep(pipe, step, t, tensors):
        states.append(tensors["latents"])
        return {}

    count = 600
    options = {"output_type": "latent", "callback_on_step_end": keep}
    images = pipe(count, sigmas=[80.0, 1.5, 0.4], generator=rng, **options).images
    distances = (images[:, None] - data).flatten(2).norm(dim=2)
    nearest = distances.argmin(1)
    assert distances.amin(1).max() < 0.02
    assert scipy.stats.chisquare(nearest.bincount(minlength=5)).pvalue > 1e-3

    exact = PFGMPPScheduler(D=D)
    for state, sigma in zip(states[:2], (1.5, 0.4)):
        fresh = data[torch.randint(5, (count,), generator=rng)]
        expected = fresh + sigma * exact.sample_noise(fresh.shape, rng)
        for statistic in (lambda x: x.flatten(1).norm(dim=1), lambda x: x[:, 0, 0, 0]):
            assert scipy.stats.ks_2samp(statistic(state), statistic(expected)).pvalue > 1e-3


def test_a_seed_draws_the_same_image_at_infinite_d_as_at_a_large_one():
    data = torch.rand(9, 1, 4, 4, generator=generator(3)) * 2 - 1
    images = []
    for D in (1e9, math.inf):
        pipe = make_pipeline(FlowMap(data), D=D)
        images.append(pipe(8, sigmas=[80.0, 2.0, 1.0], generator=generator(4), output_type="latent").images)
    torch.testing.assert_close(*images, atol=1e-2, rtol=0)


def test_fewer_levels_are_the_first_of_more():
    """A call at sigma_min would change nothing, so the levels stop before it."""
    few = PFGMPPScheduler(solver_type="consistency")
    more = PFGMPPScheduler(solver_type="euler")
    for steps in (1, 2, 4):
        few.set_timesteps(steps)
        more.set_timesteps(steps + 1)
        assert torch.equal(few.sigmas, torch.cat([more.sigmas[:steps], torch.zeros(1)]))
        assert len(few.timesteps) == steps


@pytest.mark.parametrize("solver", ["consistency", "heun", "dpmpp_3m"])
def test_levels_of_the_configuration_are_used_after_saving_and_loading(solver, tmp_path):
    levels = {solver: {2: [80, 0.8], "3": torch.tensor([80, 2.0, 0.5])}}
    PFGMPPScheduler(solver_type=solver, sigmas=levels, default_steps=2).save_pretrained(tmp_path)
    scheduler = PFGMPPScheduler.from_pretrained(tmp_path)
    assert scheduler.config.default_steps == 2
    scheduler.set_timesteps(2)
    assert scheduler.sigmas.unique().tolist() == pytest.approx([0, 0.8, 80])
    scheduler.set_timesteps(3)
    assert scheduler.sigmas.unique().tolist() == pytest.approx([0, 0.5, 2, 80])
    scheduler.set_timesteps(4)
    other = PFGMPPScheduler(solver_type=solver)
    other.set_timesteps(4)
    assert torch.equal(scheduler.sigmas, other.sigmas)
    assert PFGMPPScheduler.from_config(scheduler.config, solver_type="euler").config.sigmas


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sigmas": [80.0, 0.8]}, "`sigmas` must map solvers"),
        ({"sigmas": {"heun": [80.0, 0.8]}}, "`sigmas` must map solvers"),
        ({"sigmas": {"magic": {"1": [80.0]}}}, "A solver in `sigmas` must be one of"),
        ({"sigmas": {"heun": {"3": [80.0, 0.8]}}}, "holds 2 for heun at '3' steps"),
        ({"sigmas": {"heun": {"2": [0.8, 80.0]}}}, "must be a decreasing list"),
        ({"sigmas": {"heun": {"1": [math.nan]}}}, "must be a decreasing list"),
        ({"default_steps": 0}, "`default_steps` must be a positive integer"),
        ({"default_steps": 2.5}, "`default_steps` must be a positive integer"),
        ({"solver_type": "consistency", "s_churn": 1.0}, "`s_churn` must be 0"),
    ],
)
def test_levels_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        PFGMPPScheduler(**options)


def test_the_pipeline_takes_the_models_own_number_of_steps():
    pipe = make_pipeline(default_steps=3)
    pipe(generator=generator())
    assert pipe.num_timesteps == 3
    pipe(num_inference_steps=1, generator=generator())
    assert pipe.num_timesteps == 1
    plain = make_pipeline(solver_type="heun")
    plain()
    assert plain.num_timesteps == 35


def test_an_image_depends_on_its_own_generator_alone():
    pipe = make_pipeline(default_steps=3, D=64)
    options = {"output_type": "latent", "class_labels": 1}
    together = pipe(3, generator=[generator(seed) for seed in range(3)], **options).images
    alone = pipe(1, generator=[generator(2)], **options).images
    torch.testing.assert_close(together[2:], alone)
    assert not torch.equal(together[0], together[1])


def test_half_precision_keeps_an_exact_state():
    pipe = make_pipeline(default_steps=2)
    for parameter in pipe.unet.parameters():
        torch.nn.init.normal_(parameter, std=0.1, generator=generator(1))
    whole = pipe(2, generator=generator(), class_labels=0, output_type="latent").images
    pipe.unet.to(torch.bfloat16)
    half = pipe(2, generator=generator(), class_labels=0, output_type="latent").images
    assert half.dtype == torch.float32
    assert 0 < (half - whole).norm() < 0.1 * whole.norm()


def test_edits_keep_what_the_mask_leaves_and_repaint_the_rest():
    pipe = make_pipeline(default_steps=2, D=16)
    image = torch.rand(1, 1, 8, 8, generator=generator(5))
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 4:] = 1
    states = []

    def keep(pipe, step, t, tensors):
        states.append(tensors["latents"])
        return {}

    edited = pipe(image=image, mask_image=mask, generator=generator(), class_labels=0, output_type="pt",
                  callback_on_step_end=keep).images  # fmt: skip
    torch.testing.assert_close(edited[..., :4], image[..., :4])
    assert (edited[..., 4:] - image[..., 4:]).abs().max() > 0.05
    # The kept part carries the fresh noise of the step, like the rest of the image.
    pipe.scheduler.set_timesteps(2)
    sigma = pipe.scheduler.sigmas[1]
    shared = (states[0] - (2 * image - 1)) / sigma
    rng = generator()
    for _ in range(2):
        noise = pipe.scheduler.sample_noise((1, 1, 8, 8), rng)
    torch.testing.assert_close(shared[..., :4], noise[..., :4], rtol=1e-4, atol=1e-4)


def test_strength_begins_at_a_later_call():
    pipe = make_pipeline(default_steps=4)
    image = torch.rand(2, 1, 8, 8, generator=generator(5))
    pipe(image=image, strength=0.5, generator=generator())
    assert pipe.num_timesteps == 2


def test_a_consistency_model_has_no_field_lines_to_follow_up():
    pipe = make_pipeline()
    image = torch.rand(1, 1, 8, 8)
    with pytest.raises(ValueError, match="`invert` needs a denoiser"):
        pipe.invert(image)
    with pytest.raises(ValueError, match="`log_likelihood` needs a denoiser"):
        pipe.log_likelihood(image)
    with pytest.raises(ValueError, match="`reverse` must be False"):
        pipe.scheduler.set_timesteps(4, reverse=True)


@pytest.mark.parametrize(("own", "asked"), [("heun", "consistency"), ("consistency", "dpmpp_3m")])
def test_the_command_line_does_not_take_a_model_for_what_it_is_not(own, asked, tmp_path, capsys):
    make_pipeline(solver_type=own).save_pretrained(tmp_path / "model")
    with pytest.raises(SystemExit) as end:
        main(["sample", str(tmp_path / "model"), "--solver-type", asked, "--output", str(tmp_path / "a.png")])
    told = capsys.readouterr().err if end.value.code in (1, 2) else str(end.value.code)
    assert f"--solver-type must be that of {tmp_path / 'model'}, {own}, but is {asked}" in told
    assert not (tmp_path / "a.png").exists()


# The loss


class Recorder(torch.nn.Module):
    """Returns a multiple of its input, and keeps what it was called with."""

    def __init__(self):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(0.3))
        self.calls = []

    def forward(self, sample, timestep, return_dict=True, **conditioning):
        mask = torch.rand(sample.shape) < 0.5
        self.calls.append((sample, timestep, mask, conditioning))
        return (self.factor * sample,)


@pytest.mark.parametrize("D", [4, None])
def test_loss_is_its_formula(D):
    scheduler = PFGMPPScheduler(D=D, sigma_data=0.7)
    loss_function = ConsistencyLoss(scheduler, num_stages=4, huber_c=0.1)
    images = torch.rand(6, 1, 4, 4, generator=generator(1)) * 2 - 1
    drawn = loss_function.draw(images.shape, generator(3), progress=0.6)  # stage 2
    t = drawn.sigma
    r = t * (1 - (1 + 8 / (1 + t.exp())) / 8)
    torch.testing.assert_close(drawn.target_sigma, r.where(r >= 0.002, 0))
    drawn = dataclasses.replace(drawn, target_sigma=drawn.target_sigma * torch.tensor([1, 1, 1, 0, 0, 1]))

    unet = Recorder()
    loss = loss_function(unet, images, drawn, class_labels=torch.arange(6))
    (_, _, first_mask, _), (_, timestep, second_mask, conditioning) = unet.calls
    assert torch.equal(first_mask, second_mask)  # the dropout of both calls
    assert torch.equal(conditioning["class_labels"], torch.arange(6))
    torch.testing.assert_close(timestep, t.log() / 4)

    def follow(sigma):
        sigma = sigma.view(-1, 1, 1, 1)
        x = images + sigma * drawn.noise
        norm = (sigma**2 + 0.49).sqrt()
        return 0.49 / norm**2 * x + 0.7 * sigma / norm * 0.3 * x / norm

    squared = (follow(t) - follow(drawn.target_sigma)).square().mean((1, 2, 3))
    torch.testing.assert_close(loss, ((squared + 0.01).sqrt() - 0.1) / (t - drawn.target_sigma))
    loss.sum().backward()
    assert unet.factor.grad.abs() > 0
    with pytest.raises(ValueError, match="`references` must be None"):
        loss_function(unet, images, drawn, images)


def test_the_gap_closes_in_stages():
    loss = ConsistencyLoss(PFGMPPScheduler(), num_stages=3)
    gaps = []
    for progress in (0, 0.4, 0.99, 1.0):
        drawn = loss.draw((200, 1, 2, 2), generator(), progress=progress)
        gaps.append(((drawn.sigma - drawn.target_sigma) / drawn.sigma).mean())
        assert (drawn.target_sigma < drawn.sigma).all()
        assert drawn.sigma.min() >= 0.002
        assert drawn.sigma.max() <= 80
    assert gaps[0] > gaps[1] > gaps[2] == gaps[3]


def test_a_consistency_model_may_begin_at_a_later_stage():
    later = ConsistencyLoss(PFGMPPScheduler(), num_stages=4, first_stage=2)
    whole = ConsistencyLoss(PFGMPPScheduler(), num_stages=4)
    for progress, same in ((0, 0.5), (0.49, 0.5), (0.5, 0.75), (1.0, 1.0)):
        drawn = later.draw((50, 1, 2, 2), generator(), progress=progress)
        expected = whole.draw((50, 1, 2, 2), generator(), progress=same)
        assert torch.equal(drawn.target_sigma, expected.target_sigma)
    with pytest.raises(ValueError, match=r"`first_stage` must lie in \[0, 3\], but is 4"):
        ConsistencyLoss(PFGMPPScheduler(), num_stages=4, first_stage=4)


def test_a_part_of_a_draw_belongs_to_its_images():
    loss = ConsistencyLoss(PFGMPPScheduler(), dimensions=DimensionRange(16, math.inf))
    drawn = loss.draw((8, 1, 2, 2), generator())
    part = drawn[1::2]
    for field in dataclasses.fields(drawn):
        assert torch.equal(getattr(part, field.name), getattr(drawn, field.name)[1::2])


def test_a_teacher_without_classes_is_guided_by_another_network():
    sizes = {"sample_size": 8, "in_channels": 1, "out_channels": 1, "model_channels": 8, "channel_mult": (1,)}
    networks = [PFGMPPUNet2DModel(**sizes, num_blocks=1, attn_resolutions=()).eval() for _ in range(2)]
    for parameter in (parameter for network in networks for parameter in network.parameters()):
        torch.nn.init.normal_(parameter, std=0.1)
    pipe = PFGMPPPipeline(networks[0], PFGMPPScheduler(D=64), guidance_unet=networks[1])
    drawn = ConsistencyLoss(pipe.scheduler).draw((2, 1, 8, 8), generator())
    x = torch.randn(2, 1, 8, 8, generator=generator(4))
    ends = [Teacher(pipe, scale).step(x, drawn, torch.tensor([0, 2])) for scale in (1.0, 2.0)]
    assert not torch.equal(*ends)


@pytest.mark.parametrize(
    ("guidance_scale", "interval"),
    [(1.0, (0, math.inf)), (2.5, (0, math.inf)), (2.5, (0.5, 1)), (2.5, (1, 2))],
)
def test_the_teacher_takes_the_step_of_heun(guidance_scale, interval):
    pipe = make_pipeline(solver_type="heun", D=64)
    for parameter in pipe.unet.parameters():  # a new network returns zeros
        torch.nn.init.normal_(parameter, std=0.1)
    drawn = ConsistencyLoss(pipe.scheduler).draw((3, 1, 8, 8), generator())
    levels = {"sigma": torch.full((3,), 2.0), "target_sigma": torch.tensor([0.5, 0.5, 0.0])}
    drawn = dataclasses.replace(drawn, **levels)
    images = torch.rand(3, 1, 8, 8, generator=generator(4)) * 2 - 1
    x = images + 2 * drawn.noise
    labels = torch.tensor([0, 2, 1])
    end = Teacher(pipe, guidance_scale, interval).step(x, drawn, labels)

    steps = []

    def keep(pipe, step, t, tensors):
        steps.append(tensors)
        return {}

    names = ["latents", "pred_original_sample"]
    pipe(latents=x / 2, sigmas=[2.0, 0.5], class_labels=labels, guidance_scale=guidance_scale,
         guidance_interval=interval, callback_on_step_end=keep,
         callback_on_step_end_tensor_inputs=names)  # fmt: skip
    torch.testing.assert_close(end[:2], steps[1]["latents"][:2], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(end[2], steps[0]["pred_original_sample"][2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("precision", "dtype"), [("no", torch.float32), ("bf16", torch.bfloat16)])
def test_a_teacher_computes_in_the_precision_of_the_training(precision, dtype, tmp_path, fresh_accelerator):
    make_pipeline(make_unet(), solver_type="heun").save_pretrained(tmp_path / "teacher")
    arguments = {"compile": False, "gradient_checkpointing": False}
    args = argparse.Namespace(teacher_model_name_or_path=str(tmp_path / "teacher"), **arguments)
    data = ImageDataset(torch.zeros(4, 1, 8, 8, dtype=torch.uint8))
    teacher = load_teacher(args, Accelerator(mixed_precision=precision), data, [])
    for parameter in teacher.unet.parameters():
        assert parameter.dtype == torch.float32
    assert teacher.unet(torch.zeros(1, 1, 8, 8), torch.zeros(1)).sample.dtype == dtype


@pytest.mark.parametrize("guidance_scale", [1.0, 2.5])
def test_a_teacher_that_restores_sees_the_degraded_images(guidance_scale):
    scheduler = PFGMPPScheduler(D=64, sigma_min=0.5)
    unet = make_unet(condition_channels=1)
    for parameter in unet.parameters():  # some start near zero, where a fault would go unnoticed
        torch.nn.init.normal_(parameter, std=0.1, generator=generator(1))
    pipe = PFGMPPRestorationPipeline(unet, scheduler)
    degraded = torch.rand(2, 1, 8, 8, generator=generator()) * 2 - 1
    levels = {"sigma": torch.full((2,), 2.0), "target_sigma": torch.full((2,), 0.5)}
    drawn = dataclasses.replace(ConsistencyLoss(scheduler).draw((2, 1, 8, 8), generator()), **levels)
    end = Teacher(pipe, guidance_scale).step(degraded, drawn, condition=degraded)

    steps = []
    pipe(
        degraded / 2 + 0.5, num_inference_steps=2, start_sigma=2.0, guidance_scale=guidance_scale,
        callback_on_step_end=lambda pipe, step, t, tensors: steps.append(tensors["latents"]),
    )  # fmt: skip
    torch.testing.assert_close(end, steps[1], rtol=1e-4, atol=1e-5)
    other = Teacher(pipe, guidance_scale).step(degraded, drawn, condition=-degraded)
    assert (other - end).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("options", "id2label", "names", "message"),
    [
        ({"label_dim": 2}, {0: "b", 1: "a"}, ["a", "b"], "2 classes .b, a., but the data have 2 classes"),
        ({"label_dim": 1}, {0: "a"}, ["a", "b"], "has 1 classes .a., but the data have 2 classes"),
        ({"label_dim": 2, "label_dropout": 0.1}, {0: "a", 1: "b"}, [], "but the data have no classes"),
        ({"in_channels": 3, "out_channels": 3}, None, [], "images of 3 channels and 8×8 pixels, but"),
        ({"sample_size": 16}, None, [], "16×16 pixels, but those to train on have 1 channels and 8×8"),
        ({"condition_channels": 1}, None, [], "degraded images of 1 channels, but the data have 0"),
    ],
)  # fmt: skip
def test_a_teacher_that_does_not_fit_the_data_is_refused(
    options, id2label, names, message, tmp_path, fresh_accelerator
):
    unet = make_unet(**options)
    PFGMPPPipeline(unet, PFGMPPScheduler(), id2label=id2label).save_pretrained(tmp_path / "teacher")
    args = argparse.Namespace(teacher_model_name_or_path=str(tmp_path / "teacher"))
    data = ImageDataset(torch.zeros(4, 1, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match=f"^--teacher_model_name_or_path .*{message}"):
        load_teacher(args, Accelerator(), data, names)


def test_a_teacher_of_another_d_is_refused():
    pipe = make_pipeline(solver_type="heun", D=64)
    with pytest.raises(ValueError, match="trained at D = 64 only"):
        ConsistencyLoss(PFGMPPScheduler(D=None), teacher=Teacher(pipe))
    with pytest.raises(ValueError, match="trained at D = 64 only"):
        ConsistencyLoss(PFGMPPScheduler(D=64), dimensions=DimensionRange(16, 64), teacher=Teacher(pipe))
    ConsistencyLoss(PFGMPPScheduler(D=64), teacher=Teacher(pipe))
    pipe = make_pipeline(make_unet(d_conditioning=True), solver_type="heun", D=64, D_range=(16, 128))
    ConsistencyLoss(PFGMPPScheduler(), dimensions=DimensionRange(16, 128), teacher=Teacher(pipe))
    with pytest.raises(ValueError, match="trained for D from 16 to 128, not for inf"):
        ConsistencyLoss(PFGMPPScheduler(), dimensions=DimensionRange(64, math.inf), teacher=Teacher(pipe))


class Perceptron(torch.nn.Module):
    """A small network for points of two dimensions."""

    def __init__(self):
        super().__init__()
        width = 64
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(3, width), torch.nn.SiLU(), torch.nn.Linear(width, width), torch.nn.SiLU(),
            torch.nn.Linear(width, 2),
        )  # fmt: skip

    def forward(self, sample, timestep, return_dict=True):
        features = torch.cat([sample.flatten(1), timestep.view(-1, 1)], dim=1)
        return (self.layers(features).view(sample.shape),)


def test_a_trained_network_is_the_flow_map_of_a_gaussian():
    """Of N(0, s²) at D = infinity they are x(sigma) = x(0) sqrt(s² + sigma²) / s in each dimension."""
    scales = torch.tensor([0.3, 0.6]).view(1, 1, 1, 2)
    scheduler = PFGMPPScheduler(D=None)
    loss_function = ConsistencyLoss(scheduler, P_mean=0.5, P_std=2.5, num_stages=10)
    torch.manual_seed(0)
    unet = Perceptron()
    optimizer = torch.optim.Adam(unet.parameters(), lr=5e-3)
    steps = 1500
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0, steps)
    averaging = torch.optim.swa_utils.get_ema_multi_avg_fn(0.99)
    average = torch.optim.swa_utils.AveragedModel(unet, multi_avg_fn=averaging)
    rng = generator()
    for step in range(steps):
        images = scales * torch.randn(512, 1, 1, 2, generator=rng)
        drawn = loss_function.draw(images.shape, rng, progress=step / steps)
        loss_function(unet, images, drawn).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        decay.step()
        average.update_parameters(unet)

    for sigma in (0.05, 0.5, 5.0, 80.0):
        x = (scales**2 + sigma**2).sqrt() * torch.randn(1000, 1, 1, 2, generator=rng)
        exact = x * scales / (scales**2 + sigma**2).sqrt()
        with torch.no_grad():
            end = denoise(average, scheduler, x, torch.full((1000,), sigma), None)
        assert (end - exact).square().mean().sqrt() < 0.02


# The Trainer


def make_trainer(folder, **options):
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (20, 1, 8, 8), dtype=torch.uint8, generator=rng)
    unet = make_unet(dropout=0.2, d_conditioning=True)
    scheduler = PFGMPPScheduler(D_range=(16, None), solver_type="consistency", default_steps=2)
    options = {"max_train_steps": 4, "train_batch_size": 4, "sample_steps": 4, "logging_steps": 1, **options}
    loss = ConsistencyLoss(scheduler, dimensions=DimensionRange(16, math.inf), num_stages=2)
    return Trainer(unet, scheduler, ImageDataset(images), TrainingConfig(folder, **options), loss=loss)


def test_arguments_reach_the_loss():
    parser = argparse.ArgumentParser()
    add_objective_arguments(parser)
    scheduler = PFGMPPScheduler(D=64)
    unet = make_unet(label_dim=2, label_dropout=0.3)
    args = parser.parse_args(["--P_mean", "-0.5", "--P_std", "3"])
    denoising = create_loss(args, unet, scheduler, None, None)
    assert type(denoising) is PFGMPPLoss
    assert (denoising.P_mean, denoising.P_std) == (-0.5, 3)
    args = parser.parse_args([
        "--objective", "consistency", "--P_mean", "0.5", "--P_std", "1.5", "--consistency_stages", "6",
        "--consistency_first_stage", "2", "--huber_c", "0.01", "--guidance_scale", "4",
        "--guidance_interval", "0.1", "5",
    ])  # fmt: skip
    teacher = make_pipeline(make_unet(label_dim=2, label_dropout=0.1), solver_type="heun", D=64)
    loss = create_loss(args, unet, scheduler, None, teacher)
    assert (loss.P_mean, loss.P_std, loss.huber_c) == (0.5, 1.5, 0.01)
    assert (loss.num_stages, loss.first_stage) == (6, 2)
    assert (loss.teacher.guidance_scale, loss.teacher.guidance_interval) == (4, (0.1, 5))
    args.objective = "matching"
    few = PFGMPPScheduler(D=64, solver_type="consistency", default_steps=2)
    matching = create_loss(args, unet, few, None, teacher)
    assert (matching.P_mean, matching.P_std, matching.label_dropout) == (0.5, 1.5, 0.3)
    assert len(matching.levels) == 2
    assert (matching.teacher.guidance_scale, matching.teacher.guidance_interval) == (4, (0.1, 5))


@pytest.mark.parametrize(
    ("objective", "expected"),
    [("perturbation", ("heun", None, None)), ("consistency", ("consistency", 2, None))],
)
def test_an_objective_samples_its_network_in_its_own_way(objective, expected):
    own = {"solver_type": "consistency", "default_steps": 4, "sigmas": {"consistency": {"4": [80, 9, 2, 1]}}}
    pretrained = PFGMPPPipeline(make_unet(), PFGMPPScheduler(D=64, **own))
    options = choose_scheduler_options(argparse.Namespace(objective=objective), pretrained)
    config = PFGMPPScheduler.from_config(pretrained.scheduler.config, **options).config
    assert (config.solver_type, config.default_steps, config.sigmas) == expected
    denoiser = PFGMPPPipeline(make_unet(), PFGMPPScheduler(D=64, solver_type="dpmpp_3m"))
    assert choose_scheduler_options(argparse.Namespace(objective="perturbation"), denoiser) == {}


def test_a_resumed_run_equals_an_uninterrupted_one(fresh_accelerator, tmp_path):
    whole = make_trainer(tmp_path / "whole").run()
    stopped = make_trainer(tmp_path / "parts", checkpointing_steps=2)
    stopped.start()
    for _ in range(2):
        stopped.step()
    stopped.save()
    resumed = make_trainer(tmp_path / "parts", resume_from_checkpoint="latest").run()
    for name, tensor in whole.unet.state_dict().items():
        assert torch.equal(tensor, resumed.unet.state_dict()[name])
    assert whole.scheduler.config.default_steps == 2
    assert (tmp_path / "whole" / "samples.png").is_file()
    card = (tmp_path / "whole" / "README.md").read_text()
    assert "few calls: the network makes an image in one call, and by default it is called\n2 times." in card
