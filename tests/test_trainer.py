"""The Trainer from Python."""

import itertools
import random
import signal
import threading
import types

import numpy as np
import pytest
import torch
from accelerate import Accelerator, DistributedType
from diffusers import DiffusionPipeline

from pipeline_pfgmpp import PFGMPPScheduler, PFGMPPUNet2DModel
from pipeline_pfgmpp.data import ImageDataset
from pipeline_pfgmpp.training import (
    DimensionRange,
    PFGMPPLoss,
    Trainer,
    TrainingConfig,
    frechet,
    loop,
    read_log,
    read_run,
)
from pipeline_pfgmpp.training.signals import record_signals


pytestmark = pytest.mark.usefixtures("fresh_accelerator")


def make_unet(**options):
    options = {"in_channels": 1, "out_channels": 1, "model_channels": 16, "num_blocks": 1, **options}
    torch.manual_seed(0)
    return PFGMPPUNet2DModel(sample_size=8, channel_mult=(1,), attn_resolutions=(), dropout=0.1, **options)


@pytest.fixture(scope="module")
def data():
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (20, 1, 8, 8), dtype=torch.uint8, generator=rng)
    return ImageDataset(images, torch.arange(20) % 2, ["cat", "dog"])


def make_trainer(folder, data, unet=None, scheduler=None, **options):
    options = {"max_train_steps": 4, "train_batch_size": 4, "sample_steps": 0, "logging_steps": 1, **options}
    config = TrainingConfig(folder, **options)
    return Trainer(unet or make_unet(), scheduler or PFGMPPScheduler(D=64), data, config)


def test_ten_lines_train_a_pipeline(data, tmp_path):
    trainer = make_trainer(tmp_path, data, make_unet(label_dim=2), sample_steps=4)
    pipeline = trainer.run()
    assert (trainer.global_step, trainer.images_seen, trainer.stopped) == (4, 16, False)
    assert pipeline(batch_size=2, num_inference_steps=2, class_labels=1).images[0].size == (8, 8)
    loaded = DiffusionPipeline.from_pretrained(tmp_path)
    assert loaded.config.id2label == {"0": "cat", "1": "dog"}
    for name, tensor in pipeline.unet.state_dict().items():
        assert torch.equal(tensor, loaded.unet.state_dict()[name])
    assert (tmp_path / "samples.png").is_file()
    card = (tmp_path / "README.md").read_text()
    assert "16 images of `a data set`" in card
    assert "train_accelerate" not in card  # no command made it
    assert read_run(tmp_path)["--D"] == "64"


def test_every_weight_gets_a_gradient_without_augmentation_too(data, tmp_path):
    """Else several processes wait for it in vain."""
    trainer = make_trainer(tmp_path, data, make_unet(augment_dim=9), max_train_steps=1)
    missing = []
    step = trainer.optimizer.step

    def look(*args, **options):
        missing.extend(name for name, weight in trainer.unet.named_parameters() if weight.grad is None)
        return step(*args, **options)

    trainer.optimizer.step = look
    trainer.run()
    assert missing == []


def test_accelerates_own_compilation_is_refused(data, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "EAGER")
    with pytest.raises(ValueError, match="accelerate is configured to compile .* use `--compile` instead"):
        make_trainer(tmp_path, data)


def test_an_apple_gpu_is_refused(data, tmp_path, monkeypatch):
    monkeypatch.setattr(Accelerator, "device", torch.device("mps"))
    with pytest.raises(
        ValueError, match="Training on an Apple GPU is not supported: give accelerate launch --cpu"
    ):
        make_trainer(tmp_path, data)


def test_distances_compare_classes_as_often_as_the_data_hold_them(data, tmp_path, monkeypatch):
    images = ImageDataset(data.images[:20], torch.tensor([0] * 15 + [1] * 5), ["cat", "dog"])
    weights = []
    monkeypatch.setattr(frechet, "check_image_shape", lambda *_: None)
    monkeypatch.setattr(frechet, "load_features", lambda *_: None)
    monkeypatch.setattr(
        frechet, "ImageMetrics", lambda *_: types.SimpleNamespace(extractor=None, real_features=0)
    )
    monkeypatch.setattr(frechet, "extract_features", lambda extractor, images: images)
    monkeypatch.setattr(frechet, "frechet_distance", lambda *_: 1.0)
    monkeypatch.setattr(frechet, "gather_features", lambda features: features)

    def keep(*args, class_weights=None, **settings):
        weights.append(class_weights)
        return [([0], torch.zeros(1))]

    monkeypatch.setattr(frechet, "generate", keep)
    for _ in range(2):
        measure = frechet.FrechetDistance(images, 4, "fashion-mnist", Accelerator(cpu=True))
        measure(types.SimpleNamespace(num_classes=3), 4)
        images.balance_classes()
    assert weights == [[15, 5, 0], None]


def test_a_learned_uncertainty_is_refused_with_sharded_weights(data, tmp_path, monkeypatch):
    monkeypatch.setattr(Accelerator, "distributed_type", DistributedType.FSDP)
    with pytest.raises(ValueError, match="FSDP, which cannot train `--uncertainty_weighting`"):
        make_trainer(tmp_path, data, uncertainty_weighting=True)


def test_the_time_of_a_run_is_in_minutes(data, tmp_path, monkeypatch):
    """A clock that is read twice per step shows 20 s more each time."""
    seconds = itertools.count(0, 20)
    monkeypatch.setattr(loop, "time", types.SimpleNamespace(monotonic=lambda: next(seconds)))
    trainer = make_trainer(tmp_path, data, max_train_steps=1000, max_train_time=3, logging_steps=1000)
    assert trainer.run() is None
    assert 3 <= trainer.global_step <= 10


def test_a_network_of_positional_arguments_becomes_a_pipeline(data, tmp_path):
    """diffusers counts them as defaults; the result was a network of the default size without weights."""
    unet = PFGMPPUNet2DModel(8, 1, 1, 0, "SongUNet", 16, (1,), 1, ())
    assert make_trainer(tmp_path, data, unet, max_train_steps=1).run() is not None
    assert DiffusionPipeline.from_pretrained(tmp_path).unet.config.model_channels == 16


def test_a_resumed_trainer_equals_an_uninterrupted_one(data, tmp_path):
    whole = make_trainer(tmp_path / "whole", data).run()
    make_trainer(tmp_path / "parts", data, max_train_steps=2, checkpointing_steps=2).run()
    resumed = make_trainer(tmp_path / "parts", data, resume_from_checkpoint="latest").run()
    for name, tensor in whole.unet.state_dict().items():
        assert torch.equal(tensor, resumed.unet.state_dict()[name])
    with pytest.raises(ValueError, match="already holds this run: to resume it"):
        make_trainer(tmp_path / "parts", data)
    with pytest.raises(ValueError, match="holds another run .*--learning_rate is 0.001 there and 0.5 here"):
        make_trainer(tmp_path / "parts", data, learning_rate=0.5, resume_from_checkpoint="latest")
    with pytest.raises(ValueError, match=r"holds another run \(network is PFGMPPUNet2DModel \(digest"):
        make_trainer(tmp_path / "parts", data, make_unet(num_blocks=2), resume_from_checkpoint="latest")


def test_a_run_leaves_the_callers_randomness_and_handlers_alone(data, tmp_path):
    before = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist())
    trainer = make_trainer(tmp_path, data, unet=None)
    torch.set_rng_state(before[0])
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    trainer.run()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.random.get_state()[1].tolist() == before[2]
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers


def test_a_trainer_runs_outside_the_main_thread(data, tmp_path):
    trainer = make_trainer(tmp_path, data, max_train_steps=1)
    results = []
    thread = threading.Thread(target=lambda: results.append(trainer.run()))
    thread.start()
    thread.join()
    assert results[0].unet.config.sample_size == 8


def test_signals_are_recorded_for_a_while():
    requests = []
    handler = signal.getsignal(signal.SIGTERM)
    with record_signals(requests):
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
    assert requests == [signal.SIGTERM, signal.SIGINT]
    assert signal.getsignal(signal.SIGTERM) is handler


def test_a_network_for_every_d_is_trained_over_the_range_of_its_scheduler(data, tmp_path):
    scheduler = PFGMPPScheduler(D=64, D_range=(16, None))
    trainer = make_trainer(tmp_path, data, make_unet(d_conditioning=True), scheduler)
    assert trainer.loss.dimensions == DimensionRange(16, float("inf"))
    assert read_run(tmp_path) is None  # nothing is written before the run begins


def test_an_objective_needs_two_methods(data, tmp_path):
    """What replaces the loss: the trainer knows nothing else of it."""

    class Halved:
        def __init__(self, loss):
            self.loss = loss

        def draw(self, *args, **options):
            return self.loss.draw(*args, **options)

        def __call__(self, *args, **conditioning):
            return self.loss(*args, **conditioning) / 2

    logged = []
    for folder, wrap in ((tmp_path / "whole", lambda loss: loss), (tmp_path / "half", Halved)):
        scheduler = PFGMPPScheduler(D=64)
        config = TrainingConfig(folder, 1, train_batch_size=4, sample_steps=0, logging_steps=1)
        Trainer(make_unet(), scheduler, data, config, loss=wrap(PFGMPPLoss(scheduler))).run()
        logged.append(read_log(folder)[0]["loss"])
    assert logged[1] == pytest.approx(logged[0] / 2, rel=1e-4)


@pytest.mark.parametrize(
    ("unet", "options", "message"),
    [
        ({"in_channels": 3, "out_channels": 3}, {}, "The images have 1 channels, but the network takes 3"),
        ({"label_dim": 3}, {}, "The network has 3 classes, but 2 class names are given"),
        (
            {"label_dim": 2},
            {"reference_batch_size": 8},
            "`reference_batch_size` needs a network without classes",
        ),
        ({}, {"fid_steps": 1}, "`fid_features`: fashion-mnist compares images of shape"),
        ({}, {"lr_scheduler": "steps"}, "`lr_scheduler` must be one of constant, cosine"),
        ({}, {"save_dtype": "int8"}, "`save_dtype` must be one of float32"),
        ({}, {"ema_halflife": []}, "`ema_halflife` must hold at least one half-life"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(unet, options, message, data, tmp_path):
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, data, make_unet(**unet), **options)
    assert not list(tmp_path.iterdir())
