"""The matching objective: its two losses, what its three networks see, and the Trainer with it."""

import argparse
import dataclasses
import math

import pytest
import torch
from accelerate.utils import DistributedType
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config

from pipeline_pfgmpp import (
    EmpiricalDenoiser,
    PFGMPPPipeline,
    PFGMPPRestorationPipeline,
    PFGMPPScheduler,
    PFGMPPUNet2DModel,
)
from pipeline_pfgmpp.data import ImageDataset
from pipeline_pfgmpp.training import DimensionRange, MatchingLoss, Teacher, Trainer, TrainingConfig
from pipeline_pfgmpp.training.loss import denoise
from pipeline_pfgmpp.training.objective import choose_scheduler_options
from pipeline_pfgmpp.training.preparation import list_companions


EVERY_D = DimensionRange(16, math.inf)

pytestmark = pytest.mark.usefixtures("one_thread")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def make_scheduler(**options):
    return PFGMPPScheduler(solver_type="consistency", **{"default_steps": 2, **options})


def make_loss(teacher, scheduler=None, unet=None, **options):
    scheduler = scheduler or make_scheduler()
    kind = PFGMPPRestorationPipeline if teacher.config.get("condition_channels") else PFGMPPPipeline
    pipe = kind(teacher, PFGMPPScheduler.from_config(scheduler.config, solver_type="heun"))
    return MatchingLoss(unet or teacher, scheduler, Teacher(pipe), **options)


def make_unet(seed=0, **options):
    """Make a small network, none of whose weights is zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        options = {"model_channels": 8, "num_blocks": 1, "channel_mult": (1,), **options}
        unet = PFGMPPUNet2DModel(
            sample_size=8, in_channels=1, out_channels=1, attn_resolutions=(),
            **{"d_conditioning": True, **options}
        )  # fmt: skip
        for parameter in unet.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    return unet


class Constant(torch.nn.Module):
    """Makes the images that it is given, whatever it is asked for, and keeps what it was asked."""

    def __init__(self, images, scheduler):
        super().__init__()
        self.images = torch.nn.Parameter(images)
        self.scheduler = scheduler
        self.asked = []

    def forward(self, sample, timestep, return_dict=True, **conditioning):
        sigma = (4 * timestep).exp()
        self.asked.append((sample, sigma))
        levels = sigma.view(-1, 1, 1, 1)
        one = torch.ones_like(levels)
        x = sample / self.scheduler.precondition_inputs(one, levels)
        rest = self.images - self.scheduler.precondition_outputs(x, torch.zeros_like(x), levels)
        return (rest / self.scheduler.precondition_outputs(torch.zeros_like(one), one, levels),)


def test_images_move_to_where_the_teacher_expects_them():
    """The gradient, by the exact denoisers of two data sets, at every D."""
    theirs, ours = torch.rand(2, 5, 1, 2, 2, generator=generator(1)) * 2 - 1
    scheduler = make_scheduler(sigma_data=0.5)
    loss_function = make_loss(EmpiricalDenoiser(theirs), scheduler, dimensions=EVERY_D)
    loss_function.critic = EmpiricalDenoiser(ours)
    images = ours[:4]
    network = Constant(images, scheduler)
    drawn = loss_function.draw(images.shape, generator(2))
    loss = loss_function(network, torch.full_like(images, math.nan), drawn)

    sigma = drawn.sigma.view(-1, 1, 1, 1)
    x = images + sigma * drawn.noise
    known, wanted = (
        denoise(EmpiricalDenoiser(data), scheduler, x, drawn.sigma, drawn.D) for data in (ours, theirs)
    )
    error = (images - wanted).abs().mean((1, 2, 3), keepdim=True)
    expected = (known - wanted) / error
    weight = (sigma**2 + 0.25) / (0.5 * sigma) ** 2
    of_critic = (weight * (known - images).square()).mean((1, 2, 3))
    torch.testing.assert_close(loss, of_critic + expected.square().mean((1, 2, 3)) / 2)
    loss.sum().backward()
    # Both calls make the same images here.
    torch.testing.assert_close(network.images.grad, expected / 4, rtol=1e-4, atol=1e-5)


def test_the_network_is_called_as_in_sampling():
    levels = {"consistency": {"2": [80.0, 1.5]}}
    scheduler = make_scheduler(sigmas=levels)
    images = torch.rand(3, 1, 2, 2, generator=generator(1)) * 2 - 1
    loss_function = make_loss(EmpiricalDenoiser(images), scheduler, dimensions=EVERY_D)
    network = Constant(images, scheduler)
    drawn = loss_function.draw(images.shape, generator(2))
    loss_function(network, images, drawn)
    assert loss_function.levels == [80.0, 1.5]
    for (sample, sigma), level, start, made in zip(
        network.asked, (80.0, 1.5), drawn.starts.unbind(1), (0, images)
    ):
        torch.testing.assert_close(sigma, torch.full((3,), level))
        x = made + level * start
        levels = torch.full((3, 1, 1, 1), level)
        torch.testing.assert_close(sample, scheduler.precondition_inputs(x, levels, drawn.D))
    with pytest.raises(ValueError, match="`references` must be None"):
        loss_function(network, images, drawn, images)


def test_a_critic_that_agrees_with_the_teacher_moves_nothing():
    """So it is at first: the critic is a copy, whatever was changed in the teacher's object."""
    teacher = make_unet().half()
    forward = teacher.forward
    teacher.forward = lambda *args, **kwargs: forward(*args, **kwargs)
    loss_function = make_loss(teacher, dimensions=EVERY_D)
    critic = loss_function.critic
    assert {parameter.dtype for parameter in critic.parameters()} == {torch.float32}
    assert not critic.training
    loss_function.teacher.dtype = torch.float32
    teacher.float()
    network = make_unet(seed=1)
    images = torch.zeros(4, 1, 8, 8)
    drawn = loss_function.draw(images.shape, generator())
    loss_function(network, images, drawn).sum().backward()
    assert all(parameter.grad.abs().max() < 1e-6 for parameter in network.parameters())
    assert any(parameter.grad.abs().max() > 1e-3 for parameter in critic.parameters())
    assert all(parameter.grad is None for parameter in teacher.parameters())


@pytest.mark.parametrize("label_dropout", [0.0, 0.5])
def test_all_networks_see_the_same_classes(label_dropout):
    seen = []

    def see(module, args, kwargs):
        labels = kwargs["class_labels"]
        seen.append(torch.nn.functional.one_hot(labels, 3) if labels.ndim == 1 else labels)

    options = {"label_dim": 3, "label_dropout": label_dropout}
    network = make_unet(seed=1, **options).eval()
    loss_function = make_loss(make_unet(**options), unet=network, dimensions=EVERY_D)
    for module in (network, loss_function.critic, loss_function.teacher.unet):
        module.register_forward_pre_hook(see, with_kwargs=True)
    images = torch.zeros(20, 1, 8, 8)
    labels = torch.arange(20) % 3
    loss_function(network, images, loss_function.draw(images.shape, generator()), class_labels=labels)
    assert len(seen) == 6
    assert all(torch.equal(seen[0], rows) for rows in seen)
    shown = seen[0].sum(1).bool()
    assert torch.equal(seen[0][shown].argmax(1), labels[shown])
    assert (~shown).any() == (label_dropout > 0)


@pytest.mark.parametrize("D", [4.0, 64.0, None])
@pytest.mark.parametrize("guidance_scale", [1.0, 2.0])
def test_the_critic_is_asked_what_the_teacher_is(D, guidance_scale):
    """Here of degraded images, at a single D: at first it answers as the teacher without guidance."""
    scheduler = make_scheduler(D=D, sigma_min=0.1)
    teacher = make_unet(d_conditioning=False, condition_channels=1)
    loss_function = make_loss(teacher, scheduler)
    loss_function.teacher.guidance_scale = guidance_scale
    seen = []

    def see(module, args, kwargs):
        seen.append([*args, kwargs["condition"]])

    for module in (loss_function.critic, teacher):
        module.register_forward_pre_hook(see, with_kwargs=True)
    images = torch.rand(3, 1, 8, 8, generator=generator())
    degraded = torch.rand(3, 1, 8, 8, generator=generator(1))
    network = make_unet(seed=1, d_conditioning=False, condition_channels=1)
    drawn = loss_function.draw(images.shape, generator(2))
    loss_function(network, images, drawn, condition=degraded).sum().backward()
    of_critic, of_teacher = seen[:2]
    for ours, theirs in zip(of_critic, of_teacher):
        torch.testing.assert_close(ours, theirs[-3:])  # the guide comes first
    moved = any(parameter.grad.abs().max() > 1e-6 for parameter in network.parameters())
    assert moved == (guidance_scale != 1)


class Gaussian(ModelMixin, ConfigMixin):
    """The denoiser of independent normal variables, of two dimensions, at D = infinity."""

    @register_to_config
    def __init__(self, mean=(0.0, 0.0), deviation=(1.0, 1.0)):
        super().__init__()
        self.center = torch.nn.Parameter(torch.tensor(mean))
        self.log_deviation = torch.nn.Parameter(torch.tensor(deviation).log())

    def forward(self, sample, timestep, return_dict=True):
        """With sigma_data = 1 the raw output is that of F = m + s² (x - m) / (s² + sigma²)."""
        sigma = (4 * timestep).exp().view(-1, 1, 1, 1)
        norm = (1 + sigma**2).sqrt()
        x = sample * norm
        variance = (2 * self.log_deviation).exp()
        denoised = self.center + variance * (x - self.center) / (variance + sigma**2)
        return ((denoised - x / norm**2) * norm / sigma,)


class Affine(torch.nn.Module):
    """Maps noise to normal variables in one call."""

    def __init__(self):
        super().__init__()
        self.mean = torch.nn.Parameter(torch.zeros(2))
        self.deviation = torch.nn.Parameter(torch.ones(2))

    def forward(self, sample, timestep, return_dict=True):
        return (self.mean + self.deviation * sample,)


def test_what_is_made_becomes_distributed_as_the_teachers():
    mean = (0.4, -0.8)
    deviation = (0.3, 0.6)
    scheduler = make_scheduler(D=None, sigma_data=1.0, default_steps=1)
    teacher = Gaussian(mean, deviation)
    pipe = argparse.Namespace(
        unet=teacher, guidance_unet=None, scheduler=PFGMPPScheduler(D=None, sigma_data=1.0)
    )
    loss_function = MatchingLoss(teacher, scheduler, Teacher(pipe))
    network = Affine()
    parameters = [*network.parameters(), *loss_function.critic.parameters()]
    steps = 1000
    optimizer = torch.optim.Adam(parameters, lr=1e-2, betas=(0.0, 0.99))
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0, steps)
    rng = generator()
    images = torch.zeros(256, 1, 1, 2)
    for _ in range(steps):
        loss_function(network, images, loss_function.draw(images.shape, rng)).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        decay.step()
    x = 80 * torch.randn(100_000, 1, 1, 2, generator=rng)
    with torch.no_grad():
        made = denoise(network, scheduler, x, torch.full((len(x),), 80.0), None)
    torch.testing.assert_close(made.mean((0, 1, 2)), torch.tensor(mean), rtol=0, atol=2e-2)
    torch.testing.assert_close(made.std((0, 1, 2)), torch.tensor(deviation), rtol=5e-2, atol=0)


def test_a_teacher_of_another_d_is_refused():
    with pytest.raises(ValueError, match="trained at D = 64 only"):
        make_loss(PFGMPPUNet2DModel(sample_size=8, in_channels=1, out_channels=1), make_scheduler(D=64),
                  dimensions=EVERY_D)  # fmt: skip


@pytest.mark.parametrize(
    ("own", "theirs", "message"),
    [
        ({"label_dim": 3}, {}, "conditioned on classes as the network is: label_dim is 0 there and 3 here"),
        ({}, {"d_conditioning": False}, "conditioned on D as the network is"),
        ({"augment_dim": 9}, {}, "conditioned on augmentation as the network is"),
        ({}, {"condition_channels": 1}, "conditioned on degraded images as the network is"),
        (
            {"label_dim": 3, "label_dropout": 0.1},
            {"label_dim": 3},
            "with a class always, so `label_dropout` must be 0, but is 0.1",
        ),
    ],
)
def test_a_teacher_that_is_conditioned_otherwise_is_refused(own, theirs, message):
    scheduler = make_scheduler(D_range=(64, 64), D=64)
    with pytest.raises(ValueError, match=message):
        make_loss(make_unet(**theirs), scheduler, make_unet(**own), dimensions=DimensionRange(64, 64))


def test_calls_that_are_not_those_of_sampling_are_refused():
    with pytest.raises(ValueError, match="solver_type 'consistency', whose calls are trained, but"):
        make_loss(make_unet(), PFGMPPScheduler(), dimensions=EVERY_D)


def test_sharded_weights_have_no_critic(tmp_path):
    sharded = argparse.Namespace(distributed_type=DistributedType.FSDP)
    with pytest.raises(ValueError, match="FSDP, which cannot train `--objective matching`"):
        list_companions(make_loss(make_unet(), dimensions=EVERY_D), TrainingConfig(tmp_path, 1), sharded)


def test_a_part_of_a_draw_belongs_to_its_images():
    loss = make_loss(make_unet(label_dim=3, label_dropout=0.5), dimensions=EVERY_D)
    drawn = loss.draw((8, 1, 8, 8), generator())
    part = drawn[1::2]
    for field in dataclasses.fields(drawn):
        assert torch.equal(getattr(part, field.name), getattr(drawn, field.name)[1::2])
    assert (drawn.starts[:, 0] != drawn.starts[:, 1]).any()


# The Trainer


def make_trainer(folder, **options):
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (20, 1, 8, 8), dtype=torch.uint8, generator=rng)
    scheduler = make_scheduler(D_range=(16, None))
    loss = make_loss(make_unet(), scheduler, dimensions=EVERY_D)
    options = {"max_train_steps": 4, "train_batch_size": 4, "sample_steps": 0, "logging_steps": 1, **options}
    network = make_unet(seed=1, dropout=0.2)
    return Trainer(network, scheduler, ImageDataset(images), TrainingConfig(folder, **options), loss=loss)


def test_the_critic_learns_faster(fresh_accelerator, tmp_path):
    trainer = make_trainer(tmp_path, learning_rate=1e-3, ema_rampup=0.2, lr_warmup_images=0.0)
    before = [parameter.detach().clone() for parameter in trainer.trained]
    trainer.start()
    trainer.step()
    rates = [group["lr"] for group in trainer.optimizer.param_groups]
    assert rates == pytest.approx([1e-3, 4e-3])
    assert trainer.averages[0].rampup == 0.2
    moved = [(new.detach() - old).abs().max() for new, old in zip(trainer.trained, before)]
    count = len(list(trainer.unet.parameters()))
    assert max(moved[count:]) == pytest.approx(4e-3, rel=1e-2)


def test_a_resumed_run_equals_an_uninterrupted_one(fresh_accelerator, tmp_path):
    whole = make_trainer(tmp_path / "whole")
    result = whole.run()
    stopped = make_trainer(tmp_path / "parts", checkpointing_steps=2)
    stopped.start()
    for _ in range(2):
        stopped.step()
    assert not stopped.unet.training
    stopped.save()
    resumed = make_trainer(tmp_path / "parts", resume_from_checkpoint="latest")
    again = resumed.run()
    for name, tensor in result.unet.state_dict().items():
        assert torch.equal(tensor, again.unet.state_dict()[name])
    first = make_unet().state_dict()  # of the teacher
    has_learned = False
    for name, tensor in whole.loss.critic.state_dict().items():
        assert torch.equal(tensor, resumed.loss.critic.state_dict()[name])
        has_learned = has_learned or not torch.equal(tensor, first[name])
    assert has_learned
    assert result.scheduler.config.solver_type == "consistency"


def test_matching_goes_on_with_the_calls_of_a_model_of_few():
    args = argparse.Namespace(objective="matching")
    own = {"solver_type": "consistency", "default_steps": 4, "sigmas": {"consistency": {"4": [80, 9, 2, 1]}}}
    pretrained = PFGMPPPipeline(make_unet(), PFGMPPScheduler(D=64, **own))
    options = choose_scheduler_options(args, pretrained)
    scheduler = PFGMPPScheduler.from_config(pretrained.scheduler.config, **options)
    assert make_loss(make_unet(), scheduler, dimensions=EVERY_D).levels == [80, 9, 2, 1]
    denoiser = PFGMPPPipeline(make_unet(), PFGMPPScheduler(s_churn=4, sigmas={"heun": {"2": [80, 1]}}))
    options = choose_scheduler_options(args, denoiser)
    scheduler = PFGMPPScheduler.from_config(denoiser.scheduler.config, **options)
    assert len(make_loss(make_unet(), scheduler, dimensions=EVERY_D).levels) == 2
