"""Runs as people start, resume, interrupt and spoil them: each test is named after a symptom."""

import functools
import json
import os
import runpy
import shutil
import subprocess
import sys
from types import SimpleNamespace

import PIL.Image
import pytest
import torch
from accelerate.state import AcceleratorState
from conftest import ROOT, run_training
from datasets import Dataset, Features, Image, Value

from pipeline_pfgmpp import PFGMPPPipeline, PFGMPPScheduler, PFGMPPUNet2DModel
from pipeline_pfgmpp.commands import main as run_command
from pipeline_pfgmpp.data import ImageDataset, load_images, open_dataset
from pipeline_pfgmpp.training import PFGMPPLoss, Trainer, TrainingConfig, list_checkpoints, read_log
from pipeline_pfgmpp.training.ema import combine_snapshots
from pipeline_pfgmpp.training.preparation import check_references
from pipeline_pfgmpp.training.run import lock_run
from pipeline_pfgmpp.training.samples import choose_columns, draw_grid_of_samples
from pipeline_pfgmpp.training.validation import ValidationLoss


pytestmark = pytest.mark.usefixtures("fresh_accelerator")


def make_unet(channels=1, **options):
    torch.manual_seed(0)
    return PFGMPPUNet2DModel(
        sample_size=8, in_channels=channels, out_channels=channels, model_channels=16, num_blocks=1,
        channel_mult=(1,), attn_resolutions=(), dropout=0.1, **options,
    )  # fmt: skip


def make_data(count=20, channels=1, seed=0):
    rng = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, channels, 8, 8), dtype=torch.uint8, generator=rng)
    return ImageDataset(images, torch.arange(count) % 2, ["cat", "dog"])


def make_trainer(folder, unet=None, data=None, validation_data=None, **options):
    AcceleratorState._reset_state(reset_partial_state=True)
    options = {"max_train_steps": 4, "train_batch_size": 4, "sample_steps": 0, "logging_steps": 1, **options}
    scheduler = PFGMPPScheduler(D=64)
    return Trainer(
        unet or make_unet(), scheduler, data or make_data(), TrainingConfig(folder, **options),
        validation_data=validation_data,
    )  # fmt: skip


def names(folder):
    return [path.name for path in list_checkpoints(folder)]


# Folders of other names


def test_a_folder_named_checkpoint_best_is_left_alone(tmp_path):
    others = ["checkpoint-best", "checkpoint-2-copy", "checkpoint-007", "checkpoint-", "checkpoint-1e3"]
    for name in others:
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoint-5").write_text("a file")
    make_trainer(tmp_path, checkpointing_steps=1, checkpoints_total_limit=1, overwrite_output_dir=True).run()
    assert names(tmp_path) == ["checkpoint-4"]
    resumed = make_trainer(tmp_path, max_train_steps=6, resume_from_checkpoint="latest")
    resumed.run()
    assert resumed.global_step == 6
    make_trainer(tmp_path, seed=1, overwrite_output_dir=True, checkpointing_steps=0).run()
    assert all((tmp_path / name).is_dir() for name in others)
    assert (tmp_path / "checkpoint-5").is_file()
    with pytest.raises(ValueError, match="must be latest or a folder checkpoint-N of a run, but is"):
        make_trainer(tmp_path, resume_from_checkpoint="checkpoint-best")


def test_files_of_other_names_among_the_snapshots_are_left_alone(tmp_path):
    make_trainer(tmp_path, ema_width=[0.1], ema_snapshot_steps=2, checkpointing_steps=0).run()
    before = combine_snapshots(tmp_path, 0.1)
    for name in ("best.safetensors", "2-copy.safetensors", "4-0.9.safetensors", "notes-1..2.safetensors"):
        shutil.copyfile(tmp_path / "ema" / "2-0.1.safetensors", tmp_path / "ema" / name)
    after = combine_snapshots(tmp_path, 0.1)
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


# Resuming


def test_a_checkpoint_is_named_as_in_the_scripts_of_diffusers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "out"
    make_trainer(folder, checkpointing_steps=1, checkpoints_total_limit=0).run()
    for name in ("checkpoint-2", "checkpoint-2/", folder / "checkpoint-2", "out/checkpoint-2"):
        trainer = make_trainer(folder, resume_from_checkpoint=name)
        assert trainer.checkpoints == [folder / "checkpoint-2"] or trainer.checkpoints[0].samefile(
            folder / "checkpoint-2"
        )
    trainer = make_trainer(folder, max_train_steps=5, resume_from_checkpoint="checkpoint-4")
    trainer.run()
    assert trainer.global_step == 5
    with pytest.raises(ValueError, match="there is no checkpoint .*out/checkpoint-9"):
        make_trainer(folder, resume_from_checkpoint="checkpoint-9")


def test_a_checkpoint_that_was_just_saved_is_not_the_one_that_goes(tmp_path):
    """When a run is resumed from an earlier checkpoint, those after it are not newer."""
    make_trainer(tmp_path, checkpointing_steps=1, checkpoints_total_limit=0).run()
    make_trainer(
        tmp_path, resume_from_checkpoint="checkpoint-1", max_train_steps=2, checkpointing_steps=1,
        checkpoints_total_limit=1,
    ).run()  # fmt: skip
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-3", "checkpoint-4"]


def test_another_number_of_moving_averages_is_said_not_called_damaged(tmp_path):
    make_trainer(tmp_path, checkpointing_steps=4).run()
    with pytest.raises(
        ValueError, match=r"--ema_halflife is \[500000.0\] there and .* give what it was started"
    ):
        make_trainer(tmp_path, ema_halflife=[1e6, 1e5], resume_from_checkpoint="latest")
    for path in tmp_path.rglob("run.json"):  # as of a run before runs had an identity
        path.unlink()
    trainer = make_trainer(
        tmp_path, ema_halflife=[1e6, 1e5], resume_from_checkpoint=tmp_path / "checkpoint-4"
    )
    with pytest.raises(ValueError, match=r"with 1 moving averages, not 2 \(--ema_halflife"):
        trainer.run()


def test_a_stream_that_other_processes_resume_begins_its_next_epoch(tmp_path, fashion_mnist):
    """Their files are shared otherwise. The checkpoint is made to be one of two processes."""
    common = [
        "--train_data_dir", fashion_mnist, "--streaming", "--resolution", "8", "--train_batch_size", "8",
        "--sample_steps", "0", "--checkpointing_steps", "1", "--output_dir", tmp_path / "out",
    ]  # fmt: skip
    assert not run_training(*common, "--max_train_steps", "1").returncode
    checkpoint = tmp_path / "out" / "checkpoint-1"
    (checkpoint / "data_1.json").write_text((checkpoint / "data_0.json").read_text())
    result = run_training(*common, "--max_train_steps", "2", "--resume_from_checkpoint", "latest")
    assert not result.returncode, result.stderr
    assert "checkpoint-1 is of 2 processes: the stream begins its next epoch." in result.stdout
    state = json.loads((tmp_path / "out" / "checkpoint-2" / "data_0.json").read_text())
    assert state["epoch"] == 1


def test_streaming_added_is_said_when_a_run_is_resumed(tmp_path, fashion_mnist):
    folder = tmp_path / "out"
    model = tmp_path / "model"
    PFGMPPPipeline(make_unet(), PFGMPPScheduler(D=64)).save_pretrained(model)
    common = [
        "--pretrained_model_name_or_path", model, "--train_data_dir", fashion_mnist, "--max_train_steps", "2",
        "--sample_steps", "0", "--train_batch_size", "4", "--output_dir", folder,
    ]  # fmt: skip
    assert run_training(*common).returncode == 0
    refused = run_training(*common, "--resume_from_checkpoint", "latest", "--streaming")
    assert refused.returncode == 1
    assert "--streaming is False there and True here" in refused.stderr
    for path in folder.rglob("run.json"):
        path.unlink()
    refused = run_training(
        *common, "--max_train_steps", "3", "--resume_from_checkpoint", "checkpoint-2", "--streaming"
    )
    assert refused.returncode == 1
    assert "was saved by a run with no streaming (--streaming): resume it with what" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_resuming_a_finished_run_keeps_the_loss_of_its_card(tmp_path, monkeypatch):
    call = PFGMPPPipeline.__call__
    monkeypatch.setattr(PFGMPPPipeline, "__call__", functools.partialmethod(call, num_inference_steps=1))
    make_trainer(tmp_path, checkpointing_steps=4, sample_steps=4).run()
    card = (tmp_path / "README.md").read_text()
    assert "not logged" not in card
    (tmp_path / "samples" / "step-0000004.png").unlink()  # as if it was killed before
    make_trainer(tmp_path, sample_steps=4, resume_from_checkpoint="latest").run()
    assert (tmp_path / "README.md").read_text() == card
    assert (tmp_path / "samples" / "step-0000004.png").is_file()


def test_a_line_of_the_log_that_is_none_does_no_harm(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"step": 1, "loss": 2}\n[1]\n3\n{"loss": 1}\n{"step": 2, "lo')
    assert read_log(tmp_path) == [{"step": 1, "loss": 2}]


def test_two_runs_do_not_start_in_one_folder(tmp_path):
    first = make_trainer(tmp_path)
    second = make_trainer(tmp_path)  # both find an empty folder
    with lock_run(tmp_path), pytest.raises(ValueError, match="is in use by another run: wait until it ends"):
        second.run()
    first.run()
    with pytest.raises(ValueError, match="already holds this run"):
        second.run()
    assert not (tmp_path / ".run.lock").exists()
    (tmp_path / ".run.lock").touch()  # of a run that was killed
    make_trainer(tmp_path, max_train_steps=5, resume_from_checkpoint="latest").run()


# Sample grids and distances


def test_a_failing_sample_grid_or_distance_loses_no_steps(tmp_path, monkeypatch, capsys):
    trainer = make_trainer(tmp_path, sample_steps=2, checkpointing_steps=2, fid_steps=0)
    saved = []

    def fail(*args, **kwargs):
        saved.append(names(tmp_path))
        raise torch.OutOfMemoryError("no memory is left")

    monkeypatch.setattr(PFGMPPPipeline, "__call__", fail)
    assert trainer.run() is not None
    assert trainer.global_step == 4
    assert saved[:2] == [["checkpoint-2"], ["checkpoint-2", "checkpoint-4"]]  # first saved, then drawn
    assert (
        "The sample grid of step 2 failed, and training goes on: no memory is left" in capsys.readouterr().out
    )


def test_a_failing_distance_is_reported(tmp_path, monkeypatch, capsys):
    trainer = make_trainer(tmp_path)

    def fail(*args):
        raise ValueError("no features")

    trainer.frechet_distance = fail
    monkeypatch.setattr(trainer.config, "fid_steps", 4)
    assert trainer.run() is not None
    assert (
        "The Fréchet distance of step 4 failed, and training goes on: no features" in capsys.readouterr().out
    )
    assert (tmp_path / "model_index.json").is_file()


def test_what_fails_in_one_process_alone_does_not_keep_the_others_waiting(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [*command, "tests/failing_processes.py", tmp_path], cwd=ROOT, env=env, capture_output=True, text=True
    )
    assert result.stdout.count("trained 2 steps") == 2, result.stderr[-3000:]
    for name in ("sample grid", "Fréchet distance"):
        for step in (1, 2):
            line = f"The {name} of step {step} failed, and training goes on: no memory for images"
            assert result.stdout.count(line) == 1


def test_a_grid_of_a_thousand_classes_shows_ten_in_batches(monkeypatch):
    unet = make_unet(label_dim=1000)
    pipeline = PFGMPPPipeline(unet.eval(), PFGMPPScheduler(D=64))
    pipeline.set_progress_bar_config(disable=True)
    assert choose_columns(pipeline) == [0, 100, 200, 300, 400, 500, 600, 700, 800, 900]
    sizes = []
    call = PFGMPPPipeline.__call__

    def record(self, batch_size, **options):
        sizes.append(batch_size)
        return call(self, batch_size, num_inference_steps=1, **options)

    monkeypatch.setattr(PFGMPPPipeline, "__call__", record)
    assert draw_grid_of_samples(pipeline, 16).size == (80, 32)
    assert sizes == [16, 16, 8]
    draw_grid_of_samples(pipeline, 4096)
    assert sizes[3:] == [40]


def test_a_grid_shows_channels_that_make_no_picture_side_by_side(monkeypatch):
    call = PFGMPPPipeline.__call__
    monkeypatch.setattr(PFGMPPPipeline, "__call__", functools.partialmethod(call, num_inference_steps=1))
    pipeline = PFGMPPPipeline(make_unet(channels=2).eval(), PFGMPPScheduler(D=64))
    pipeline.set_progress_bar_config(disable=True)
    grid = draw_grid_of_samples(pipeline, 64)
    assert grid.size == (8 * 16, 32)


# Divergence


def test_a_diverged_run_stops_and_keeps_the_last_checkpoint_that_works(tmp_path, capsys):
    make_trainer(tmp_path, max_train_steps=2, checkpointing_steps=1, checkpoints_total_limit=1).run()
    good = (tmp_path / "checkpoint-2" / "model.safetensors").read_bytes()
    (tmp_path / "model_index.json").unlink()
    trainer = make_trainer(
        tmp_path, max_train_steps=50, checkpointing_steps=1, checkpoints_total_limit=1, nonfinite_patience=3,
        resume_from_checkpoint="latest",
    )  # fmt: skip
    trainer.config.learning_rate = 1e20  # as in a run that diverges later
    with pytest.raises(FloatingPointError, match="has diverged: at step .*checkpoint-2 is the last"):
        trainer.run()
    assert trainer.global_step <= 9
    assert names(tmp_path) == ["checkpoint-2"]
    assert (tmp_path / "checkpoint-2" / "model.safetensors").read_bytes() == good
    assert not (tmp_path / "model_index.json").exists()
    assert capsys.readouterr().out.count("no checkpoint is saved until that is over") == 1


@pytest.mark.parametrize("steps", [1, 3])
def test_a_short_run_that_diverged_writes_no_card(steps, tmp_path):
    trainer = make_trainer(tmp_path, max_train_steps=steps, learning_rate=1e20, ema_halflife=[1.0])
    with pytest.raises(FloatingPointError, match=r"computes is NaN or infinite. There is no checkpoint"):
        trainer.run()
    assert not {"README.md", "unet", "model_index.json"} & {path.name for path in tmp_path.iterdir()}


def test_a_diverged_run_ends_the_script_with_one_sentence(tmp_path, fashion_mnist):
    model = tmp_path / "model"
    PFGMPPPipeline(make_unet(), PFGMPPScheduler(D=64)).save_pretrained(model)
    result = run_training(
        "--pretrained_model_name_or_path", model, "--train_data_dir", fashion_mnist, "--max_train_steps", "9",
        "--sample_steps", "0", "--train_batch_size", "4", "--learning_rate", "1e20", "--lr_warmup_steps", "0",
        "--nonfinite_patience", "3", "--output_dir", tmp_path / "out",
    )  # fmt: skip
    assert result.returncode == 1
    assert "The run has diverged" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_checkpoint_that_holds_nan_is_not_resumed_from(tmp_path, capsys):
    trainer = make_trainer(tmp_path, checkpointing_steps=2)
    trainer.can_compute = lambda: True
    step = trainer.step

    def spoil():
        step()
        if trainer.global_step == 4:
            torch.nn.init.constant_(trainer.trained[0], float("nan"))

    trainer.step = spoil
    trainer.run()
    resumed = make_trainer(tmp_path, resume_from_checkpoint="latest")
    resumed.run()
    assert "checkpoint-4 holds weights that are NaN or infinite. Trying the checkpoint before it" in (
        capsys.readouterr().out
    )
    assert resumed.trained[0].isfinite().all()


def test_one_loss_that_is_not_finite_ends_no_run(tmp_path):
    trainer = make_trainer(tmp_path, max_train_steps=6, checkpointing_steps=1, nonfinite_patience=2)
    loss = trainer.loss

    class Outlier:
        draw = loss.draw

        def __call__(self, *args, **conditioning):
            values = loss(*args, **conditioning)
            return values * float("nan") if trainer.global_step in (1, 3) else values

    trainer.loss = Outlier()
    assert trainer.run() is not None
    assert names(tmp_path)[-1] == "checkpoint-6"


# Validation


def test_a_validation_split_logs_its_loss_by_noise_level(tmp_path):
    for name in ("one", "two"):
        make_trainer(tmp_path / name, validation_data=make_data(seed=1), learning_rate=1e-20).run()
    entries = read_log(tmp_path / "one")
    assert [entry["step"] for entry in entries] == [1, 2, 3, 4]
    assert sum(name.startswith("validation_loss/sigma_") for name in entries[0]) > 2
    losses = {entry["validation_loss"] for entry in entries}
    assert len(losses) == 1  # the network hardly changes, nor do images and noise
    assert losses == {entry["validation_loss"] for entry in read_log(tmp_path / "two")}
    without = make_trainer(tmp_path / "without", learning_rate=1e-20)
    without.run()
    assert [entry["loss"] for entry in read_log(tmp_path / "without")] == [entry["loss"] for entry in entries]
    run_command(["plot", str(tmp_path / "one")])
    run_command(["plot", str(tmp_path / "without")])
    panels = [PIL.Image.open(tmp_path / name / "log.png").width for name in ("one", "without")]
    assert panels[0] > panels[1]


def test_fewer_validation_images_than_processes_count_once_each():
    """Every process calls the network equally often, also where no image is left for it."""
    loss = PFGMPPLoss(PFGMPPScheduler(D=64))
    unet = make_unet().eval()
    calls = []
    unet.register_forward_hook(lambda *args: calls.append(1))

    def measure(rank, processes):
        """Measure on five images, four per pass: the sums of one process, and its calls of the network."""
        calls.clear()
        sums = []
        alone = SimpleNamespace(
            device=torch.device("cpu"), process_index=rank, num_processes=processes,
            reduce=lambda values, _: sums.append(values.clone()) or torch.ones(2, 6),
        )  # fmt: skip
        config = TrainingConfig("out", 1, train_batch_size=4 // processes)
        ValidationLoss(make_data(5), make_data(), loss, config, False, alone).measure(unet)
        return sums[0], len(calls)

    whole, count = measure(0, 1)
    parts, counts = zip(*[measure(rank, 4) for rank in range(4)])
    assert set(counts) == {count} == {2}
    torch.testing.assert_close(sum(parts), whole)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation_data": make_data(channels=3)}, r"images of \(channels, height, width\) \(3, 8, 8\)"),
        ({"logging_steps": 0, "validation_data": make_data()}, "`logging_steps` is 0"),
        (
            {
                "unet": make_unet(label_dim=2),
                "validation_data": ImageDataset(
                    make_data().images, torch.zeros(20, dtype=int), ["cow", "dog"]
                ),
            },
            r"have the classes \['cow', 'dog'\], but the network is trained on \['cat', 'dog'\]",
        ),
    ],
)
def test_validation_data_of_another_kind_are_refused(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, **options)
    assert not list(tmp_path.iterdir())


def test_a_validation_split_from_the_command_line(tmp_path, fashion_mnist):
    model = tmp_path / "model"
    PFGMPPPipeline(make_unet(label_dim=10), PFGMPPScheduler(D=64)).save_pretrained(model)
    common = [
        "--pretrained_model_name_or_path", model, "--train_data_dir", fashion_mnist, "--max_train_steps", "2",
        "--sample_steps", "0", "--train_batch_size", "4", "--logging_steps", "1",
    ]  # fmt: skip
    for name, streaming in (("whole", []), ("stream", ["--streaming"])):
        folder = tmp_path / name
        result = run_training(*common, *streaming, "--validation_split", "test", "--output_dir", folder)
        assert result.returncode == 0, result.stderr
        assert all(entry["validation_loss"] > 0 for entry in read_log(folder))
        assert "Validation on " in result.stdout
    missing = run_training(*common, "--validation_split", "none", "--output_dir", tmp_path / "none")
    assert missing.returncode == 1
    assert "cannot be used" in missing.stderr
    assert "Traceback" not in missing.stderr


def test_a_validation_split_may_lack_classes_of_strings(tmp_path):
    """Its classes are numbered as those of the training."""
    rows = [
        {"image": PIL.Image.new("L", (8, 8), 20 * index), "label": "abc"[index % 3]} for index in range(12)
    ]
    for split, chosen in (("train", rows), ("test", [row for row in rows if row["label"] != "a"])):
        features = Features({"image": Image(), "label": Value("string")})
        Dataset.from_list(chosen, features=features).to_parquet(tmp_path / "data" / f"{split}-0.parquet")
    whole = load_images(open_dataset(str(tmp_path / "data")), 8)
    part = load_images(open_dataset(str(tmp_path / "data"), split="test"), 8)
    with pytest.raises(ValueError, match=r"The classes \['c'\] are not among those that are trained on"):
        part.number_classes(["a", "b"])
    part.number_classes(whole.class_names)
    assert (part.class_names, set(part.labels.tolist())) == (["a", "b", "c"], {1, 2})
    result = run_training(
        "--train_data_dir", tmp_path / "data", "--preset", "fashion-mnist-small", "--resolution", "8",
        "--class_conditional", "--validation_split", "test", "--max_train_steps", "1", "--sample_steps", "0",
        "--train_batch_size", "4", "--output_dir", tmp_path / "out",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert read_log(tmp_path / "out")[0]["validation_loss"] > 0


# Arguments


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("train_batch_size", 0, "`train_batch_size` must be at least 1, but is 0"),
        ("train_batch_size", 2.5, "`train_batch_size` must be a whole number, but is 2.5"),
        ("max_train_steps", -5, "`max_train_steps` must be at least 1, but is -5"),
        ("max_train_steps", True, "`max_train_steps` must be a whole number, but is True"),
        ("logging_steps", -1, "`logging_steps` must be at least 0, but is -1"),
        ("checkpointing_steps", -1, "`checkpointing_steps` must be at least 0"),
        ("checkpoints_total_limit", -1, "`checkpoints_total_limit` must be at least 0"),
        ("nonfinite_patience", 0, "`nonfinite_patience` must be at least 1"),
        ("fid_images", 1, "`fid_images` must be at least 2"),
        ("learning_rate", float("nan"), "`learning_rate` must be positive, but is nan"),
        ("learning_rate", float("inf"), "`learning_rate` must be positive, but is inf"),
        ("learning_rate", 0, "`learning_rate` must be positive, but is 0"),
        ("learning_rate", "1e-3", "`learning_rate` must be a number, but is '1e-3'"),
        ("max_grad_norm", -1.0, "`max_grad_norm` must be at least 0"),
        ("max_train_time", 0, "`max_train_time` must be positive, but is 0"),
        ("adam_beta2", 1.0, r"`adam_beta2` must lie in \[0, 1\), but is 1.0"),
        ("P_std", 0, "`P_std` must be positive"),
        ("seed", -1, "`seed` must be at least 0"),
        ("ema_rampup", 0, "`ema_rampup` must be positive, but is 0"),
        ("ema_halflife", [0], "`ema_halflife` must hold positive numbers, but holds 0"),
        ("ema_halflife", [float("nan")], "`ema_halflife` must hold positive numbers, but holds nan"),
        ("ema_halflife", [float("inf")], "`ema_halflife` must hold positive numbers, but holds inf"),
        ("ema_halflife", 5e5, "`ema_halflife` must be a list of numbers, but is 500000.0"),
        ("ema_halflife", [5, 5], r"`ema_halflife` must hold different numbers, but is \[5, 5\]"),
        ("ema_width", [0.1, 0.1], "`ema_width` must hold different numbers"),
        ("mixed_precision", "fp64", "`mixed_precision` must be one of no, fp16, bf16, but is 'fp64'"),
    ],
)
def test_absurd_numbers_are_refused(name, value, message):
    with pytest.raises(ValueError, match=message):
        TrainingConfig(**{"output_dir": "out", "max_train_steps": 1, name: value})


def test_references_that_are_no_more_than_the_batch_are_refused(tmp_path):
    with pytest.raises(ValueError, match="`reference_batch_size` must be at least the 4 images of a pass"):
        make_trainer(tmp_path, reference_batch_size=2)
    with pytest.raises(ValueError, match="must be a multiple of the 3 processes, but is 16"):
        check_references(TrainingConfig("out", 1, train_batch_size=4, reference_batch_size=16), 3)
    with pytest.raises(ValueError, match="`reference_batch_size` needs `augment` 0 and no `random_flip`"):
        make_trainer(tmp_path, reference_batch_size=8, random_flip=True)
    with pytest.raises(ValueError, match="`ema_snapshot_steps` is 0, so that `ema_width` would have"):
        make_trainer(tmp_path, ema_width=[0.1], ema_snapshot_steps=0)


PRETRAINED = ["--pretrained_model_name_or_path", "model"]
MATCHING = ["--objective", "matching", "--teacher_model_name_or_path", "it", *PRETRAINED]
REQUIRED = ["--train_data_dir", "data", "--output_dir", "out", "--max_train_steps", "5"]


@pytest.fixture(scope="module")
def parse():
    script = runpy.run_path(str(ROOT / "train_accelerate.py"))
    return lambda *args: script["parse_args"]([*REQUIRED, *args])


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--label_dropout", "0.1"], "--label_dropout 0.1 has no effect without --class_conditional"),
        (["--label_column", "kind"], "--label_column kind has no effect without --class_conditional"),
        (["--balance_classes"], "--balance_classes has no effect without --class_conditional"),
        (["--balance_classes", "--class_conditional", "--streaming"], "has no effect with --streaming"),
        (["--shuffle_window", "10000"], "--shuffle_window 10000 has no effect without --streaming"),
        (["--huber_c", "0"], "--huber_c 0.0 has no effect without --objective consistency: leave it out"),
        (["--guidance_scale", "0"], "--guidance_scale 0.0 has no effect without --teacher_model_name_or_"),
        (["--guidance_interval", "1", "2"], "--guidance_interval 1.0 2.0 has no effect without --guidance_s"),
        (
            ["--guidance_interval", "2", "1"],
            "--guidance_interval must be two noise levels in order, but is 2 1",
        ),
        (["--consistency_first_stage", "2"], "--consistency_first_stage 2 has no effect without --objective"),
        (
            ["--objective", "consistency", "--consistency_first_stage", "8"],
            "--consistency_first_stage must lie in [0, 7], but is 8",
        ),
        ([*PRETRAINED, "--objective", "matching"], "--objective matching needs --teacher_model_name_or_path"),
        ([*MATCHING[:4], "--augment", "0"], "--objective matching needs --pretrained_model_name_or_path"),
        ([*MATCHING, "--random_flip"], "--random_flip has no effect with --objective matching, which looks"),
        ([*MATCHING, "--validation_split", "test"], "--validation_split test has no effect with --objective"),
        ([*MATCHING, "--dropout", "0.1"], "--dropout 0.1 has no effect with --objective matching"),
        ([*MATCHING, "--uncertainty_weighting"], "--uncertainty_weighting has no effect with --objective"),
        ([*MATCHING, "--huber_c", "0"], "--huber_c 0.0 has no effect without --objective consistency"),
        (
            [*PRETRAINED, "--teacher_model_name_or_path", "it"],
            "has no effect without --objective consistency or matching",
        ),
        (["--lr_decay_images", "5"], "has no effect without --lr_scheduler inverse_sqrt: leave it out"),
        (["--lr_warmup_images", "5", "--lr_warmup_steps", "1"], "together with --lr_warmup_steps"),
        (["--fid_images", "2000"], "--fid_images 2000 has no effect without --fid_steps"),
        (["--fid_features=inception"], "--fid_features inception has no effect without --fid_steps"),
        (["--ema_snapshot_steps", "5"], "has no effect without --ema_width"),
        (["--hub_model_id", "me/it"], "--hub_model_id me/it has no effect without --push_to_hub"),
        (["--validation_split", "test", "--logging_steps", "0"], "no effect with --logging_steps 0"),
        (["--validation_split", "train"], "--validation_split train is the split that is trained on"),
        (["--D", ""], "argument --D: `D` must be a number of at least 0.5, inf, or a range"),
        (["--ema_halflife", "0"], "`ema_halflife` must hold positive numbers"),
        (["--train_batch_size", "0"], "`train_batch_size` must be at least 1"),
        (["--logging_steps", "-1"], "`logging_steps` must be at least 0, but is -1"),
        (["--learning_rate", "nan"], "`learning_rate` must be positive, but is nan"),
        (["--sigma_data", "0"], "--sigma_data must be positive, but is 0"),
        (["--sigma_data", "nan"], "--sigma_data must be positive, but is nan"),
        (["--max_noise_norm", "-1"], "--max_noise_norm must be positive, but is -1"),
        (["--class_conditional", "--label_dropout", "1.5"], "--label_dropout must be in [0, 1], but is 1.5"),
        (["--streaming", "--shuffle_window", "0"], "--shuffle_window must be at least 1, but is 0"),
        (["--dataloader_num_workers", "0"], "--dataloader_num_workers must be at least 1, but is 0"),
    ],
)
def test_no_argument_is_ignored_or_absurd(args, message, parse, capsys):
    with pytest.raises(SystemExit) as end:
        parse(*args)
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_arguments_of_a_file_are_not_ignored_either(parse, tmp_path, capsys):
    config = tmp_path / "config.yaml"
    config.write_text("fid_images: 2000\nshuffle_window: 10000\nlr_warmup_steps: 5\n")  # defaults, and one
    assert parse("--config", str(config)).lr_warmup_steps == 5
    config.write_text("fid_images: 500\n")
    with pytest.raises(SystemExit):
        parse("--config", str(config))
    assert "--fid_images 500 has no effect without --fid_steps" in capsys.readouterr().err
    assert parse("--config", str(config), "--fid_steps", "5").fid_images == 500


def test_label_dropout_of_a_pretrained_network_without_classes_is_refused(tmp_path, fashion_mnist):
    model = tmp_path / "model"
    PFGMPPPipeline(make_unet(), PFGMPPScheduler(D=64)).save_pretrained(model)
    common = ["--pretrained_model_name_or_path", model, "--train_data_dir", fashion_mnist]
    common += ["--max_train_steps", "1", "--output_dir", tmp_path / "out"]
    for name, value, message in (
        ("label_dropout", "0.1", "has no classes, so that --label_dropout would have no effect"),
        ("label_column", "label", "--label_column label has no effect: the network of"),
    ):
        result = run_training(*common, f"--{name}", value)
        assert result.returncode == 1
        assert message in result.stderr
    assert not (tmp_path / "out").exists()


def test_saving_checkpoints_changes_nothing_of_the_training(tmp_path):
    """What is checked before a checkpoint is saved draws nothing that the training draws."""
    whole = make_trainer(tmp_path / "whole", checkpointing_steps=0).run()
    saved = make_trainer(tmp_path / "saved", checkpointing_steps=1).run()
    for name, tensor in whole.unet.state_dict().items():
        assert torch.equal(tensor, saved.unet.state_dict()[name])
