"""
A folder belongs to one run: no training changes what another one left, or resumes from another's
checkpoints.
"""

import json
import math
import shutil
from pathlib import Path

import PIL.Image
import pytest
import torch
from conftest import run_training
from diffusers import DiffusionPipeline

from pipeline_pfgmpp.training import (
    TrainingConfig,
    list_checkpoints,
    open_run,
    read_run,
    remove_run,
    write_run,
)
from pipeline_pfgmpp.training.result import read_best_distance


SMALL = [
    "--preset",
    "fashion-mnist-small",
    "--train_batch_size",
    "8",
    "--resolution",
    "8",
    "--lr_warmup_steps",
    "0",
]
SHORT = ["--max_train_steps", "2", "--checkpointing_steps", "1", "--sample_steps", "0"]


def train_here(*args):
    """
    Run the script in this process, and return its last line of errors, empty if it succeeds, and its
    output.
    """
    result = run_training(*args)
    return (result.stderr.strip().splitlines()[-1] if result.returncode else ""), result.stdout


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for index in range(12):
        PIL.Image.new("L", (8, 8), 20 * index).save(folder / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def run_of_two_steps(pictures, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "out"
    args = [
        *SMALL,
        *SHORT,
        "--train_data_dir",
        pictures,
        "--D",
        "64",
        "--ema_width",
        "0.1",
        "--ema_snapshot_steps",
        "1",
    ]
    end, _ = train_here(*args, "--output_dir", folder)
    assert end == ""
    return folder, args


@pytest.fixture
def finished(run_of_two_steps, tmp_path):
    """A copy of the folder of a run of two steps, with a checkpoint of each, and its arguments."""
    folder, args = run_of_two_steps
    return shutil.copytree(folder, tmp_path / "out"), args


def test_a_second_training_changes_nothing_of_the_first(finished):
    folder, args = finished
    before = contents(folder)
    end, _ = train_here(*args, "--output_dir", folder)
    assert f"`output_dir` {folder} already holds this run: to resume it, set `resume_from_checkpoint`" in end
    assert "`overwrite_output_dir`" in end
    other = [*args, "--D", "32", "--seed", "7", "--train_batch_size", "4", "--output_dir", folder]
    for resume in (
        [],
        ["--resume_from_checkpoint", "latest"],
        ["--resume_from_checkpoint", folder / "checkpoint-1"],
    ):
        end, _ = train_here(*other, *resume)
        assert f"{folder} holds another run" in end
        assert "--D is 64 there and 32 here; " in end
        assert "--seed is 0 there and 7 here; " in end
        assert "(--train_batch_size) is 8 there and 4 here)" in end
    assert contents(folder) == before


def test_checkpoints_of_another_run_are_refused_wherever_they_are(finished, tmp_path):
    folder, args = finished
    elsewhere = [
        *args,
        "--resume_from_checkpoint",
        folder / "checkpoint-2",
        "--output_dir",
        tmp_path / "elsewhere",
    ]
    end, _ = train_here(*elsewhere, "--learning_rate", "0.5")
    assert f"{folder / 'checkpoint-2'} belongs to another run" in end
    assert "(--learning_rate is 0.002 there and 0.5 here)" in end
    assert not (tmp_path / "elsewhere").exists()
    # settings of length, frequency and computation may change
    end, output = train_here(
        *elsewhere, "--max_train_steps", "3", "--checkpointing_steps", "0", "--logging_steps", "1",
        "--train_batch_size", "4", "--gradient_accumulation_steps", "2", "--gradient_checkpointing",
    )  # fmt: skip
    assert end == ""
    assert "The run and its schedules end at step 3, no longer at 2." in output
    assert json.loads(output.strip().splitlines()[-1])["steps"] == 3
    assert read_run(tmp_path / "elsewhere")["--D"] == "64"
    missing = folder / "checkpoint-9"
    end, _ = train_here(*args, "--resume_from_checkpoint", missing, "--output_dir", tmp_path / "other")
    assert end == f"`resume_from_checkpoint`: there is no checkpoint {missing}."


def test_other_data_at_the_same_place_make_another_run(finished, pictures, tmp_path):
    folder, args = finished
    before = contents(folder)
    changed = shutil.copytree(pictures, tmp_path / "pictures")
    again = [*args, "--train_data_dir", changed, "--output_dir", folder, "--resume_from_checkpoint", "latest"]
    PIL.Image.new("L", (8, 8), 255).save(changed / "3.png")
    end, _ = train_here(*again)
    assert f"data is {pictures}, split train (digest " in end
    assert f" there and {changed}, split train (digest " in end
    assert contents(folder) == before
    # the same images from another place make the same run
    shutil.copy(pictures / "3.png", changed / "3.png")
    assert train_here(*again)[0] == ""


def test_other_weights_at_the_same_place_make_another_run(finished, pictures, tmp_path):
    start, _ = finished
    args = [
        "--pretrained_model_name_or_path",
        start,
        "--train_data_dir",
        pictures,
        *SHORT,
        "--output_dir",
        tmp_path / "tuned",
    ]
    assert train_here(*args)[0] == ""
    pipe = DiffusionPipeline.from_pretrained(start)
    torch.nn.init.ones_(pipe.unet.map_layer0.bias)
    pipe.save_pretrained(start)
    end, _ = train_here(*args, "--resume_from_checkpoint", "latest")
    assert f"pretrained model is {start} (digest " in end


def test_overwriting_leaves_nothing_of_the_other_run(finished, tmp_path):
    folder, args = finished
    for name in (
        "best/distance.json",
        "samples/step-0000002.png",
        "logs/events",
        "evaluation.json",
        "notes.txt",
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text('{"frechet_distance": 0}')
    (folder / "checkpoint-best").mkdir()  # no name of ours
    other = [*args, "--seed", "1", "--output_dir", folder, "--overwrite_output_dir"]
    before = contents(folder)
    end, _ = train_here(*other, "--image_column", "none")
    assert "`image_column` is 'none'" in end
    assert contents(folder) == before  # nothing goes before the new run begins
    end, _ = train_here(*other, "--max_train_steps", "1", "--ema_width", "0.2", "--checkpointing_steps", "0")
    assert end == ""
    names = {path.as_posix() for path in contents(folder)}
    assert "notes.txt" in names
    assert (folder / "checkpoint-best").is_dir()
    assert {
        name
        for name in names
        if name.startswith(("best", "samples", "logs", "checkpoint", "ema", "evaluation"))
    } == {"ema/1-0.2.safetensors"}
    assert len((folder / "log.jsonl").read_text().splitlines()) == 1
    assert read_run(folder)["--seed"] == 1
    # the arguments that are kept resume the run, and do not overwrite it
    assert "overwrite_output_dir: false" in (folder / "arguments.yaml").read_text()


def test_overwriting_does_not_remove_what_the_run_needs(finished):
    folder, args = finished
    before = contents(folder)
    for name, path in (
        ("--pretrained_model_name_or_path", folder),
        ("--resume_from_checkpoint", folder / "checkpoint-2"),
        ("--train_data_dir", folder / "samples"),
    ):
        (folder / "samples").mkdir(exist_ok=True)
        end, _ = train_here(*args, name, path, "--output_dir", folder, "--overwrite_output_dir")
        assert end == f"--overwrite_output_dir would remove {path}, which the run needs."
    end, _ = train_here(
        *args, "--resume_from_checkpoint", "latest", "--output_dir", folder, "--overwrite_output_dir"
    )
    assert "removes the checkpoints that --resume_from_checkpoint latest looks for" in end
    assert contents(folder) == before


def test_a_checkpoint_beyond_the_last_step_is_refused(finished):
    """The result was written again, and called shorter than it is."""
    folder, args = finished
    before = contents(folder)
    again = ["--max_train_steps", 1, "--resume_from_checkpoint", "latest", "--output_dir", folder]
    end, output = train_here(*args, *again)
    assert "checkpoint-2 is beyond `max_train_steps` 1: give more steps, or an earlier checkpoint" in end
    assert "no longer" not in output
    assert contents(folder) == before


def test_a_run_is_resumed_by_its_arguments_file(finished):
    folder, _ = finished
    arguments = ["--config", folder / "arguments.yaml", "--output_dir", folder]
    end, output = train_here(*arguments, "--max_train_steps", "3")
    assert end == ""
    assert f"Resuming from {folder / 'checkpoint-2'}" in output


IDENTITY = {"--D": "64", "--seed": 0}


@pytest.mark.parametrize("resume", [None, "latest"])
@pytest.mark.parametrize("name", ["model_index.json", "notes.txt", ".hidden"])
def test_a_folder_of_something_else_is_refused(resume, name, tmp_path):
    (tmp_path / name).write_text("{}")
    with pytest.raises(ValueError, match=rf"is not empty \(it holds {name}\), and it holds no run to resume"):
        open_run(tmp_path, IDENTITY, resume)
    assert open_run(tmp_path, IDENTITY, overwrite=True) == []
    with pytest.raises(ValueError, match="is a file"):
        open_run(tmp_path / name, IDENTITY, resume)


def checkpoint(folder, step, run):
    path = folder / f"checkpoint-{step}"
    path.mkdir()
    if run is not None:
        write_run(path, run)
    return path


def test_what_may_be_resumed(tmp_path):
    assert open_run(tmp_path / "none", IDENTITY, "latest") == []
    assert open_run(tmp_path, IDENTITY, "latest") == []
    write_run(tmp_path, {**IDENTITY, "--max_train_steps": 5})
    assert open_run(tmp_path, IDENTITY, "latest") == []  # it was killed before its first checkpoint
    first, second = checkpoint(tmp_path, 9, IDENTITY), checkpoint(tmp_path, 10, IDENTITY)
    assert open_run(tmp_path, IDENTITY, "latest") == [first, second]
    with pytest.raises(ValueError, match=r"holds another run \(--D is 64 there and inf here\)"):
        open_run(tmp_path, {"--D": "inf"}, "latest")
    write_run(second, {"--seed": 1})
    with pytest.raises(ValueError, match=r"checkpoint-10 belongs .*\(--seed is 1 there and 0 here\)"):
        open_run(tmp_path, IDENTITY, "latest")
    (second / "run.json").write_text("[")  # damaged: found when it is loaded, and the one before it is used
    assert open_run(tmp_path, IDENTITY, "latest") == [first, second]
    (tmp_path / "run.json").write_text("[")
    with pytest.raises(ValueError, match="run.json is damaged"):
        open_run(tmp_path, IDENTITY, "latest")


def test_a_result_without_checkpoints_is_not_trained_anew(tmp_path):
    write_run(tmp_path, IDENTITY)
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(ValueError, match="holds the result of this run, but no checkpoint to resume from"):
        open_run(tmp_path, IDENTITY, "latest")


def test_checkpoints_that_name_no_run_are_taken_by_name_alone(finished):
    """They were written before runs had an identity, so only the user knows which run they belong to."""
    folder, args = finished
    for path in folder.rglob("run.json"):
        path.unlink()
    for sums in folder.rglob("checksums.json"):
        sums.write_text(
            json.dumps(
                {name: sum for name, sum in json.loads(sums.read_text()).items() if name != "run.json"}
            )
        )
    again = [*args, "--max_train_steps", "3", "--output_dir", folder, "--resume_from_checkpoint"]
    newest = folder / "checkpoint-2"
    assert f"{newest} does not name its run" in train_here(*again, "latest")[0]
    end, output = train_here(*again, newest)
    assert end == ""
    assert "The checkpoint does not name its run; it is assumed to be of this one." in output
    assert open_run(folder, read_run(folder), "latest") == list_checkpoints(folder)


def test_distances_over_other_features_are_not_compared(tmp_path):
    (tmp_path / "best").mkdir()
    measured = {"frechet_distance": 3.5, "features": "fashion-mnist", "num_images": 2000, "step": 1}
    (tmp_path / "best" / "distance.json").write_text(json.dumps(measured))
    assert read_best_distance(TrainingConfig(tmp_path, 1)) == 3.5
    assert read_best_distance(TrainingConfig(tmp_path, 1, fid_features="inception")) == math.inf
    assert read_best_distance(TrainingConfig(tmp_path, 1, fid_images=50)) == math.inf


def test_removing_touches_no_folder_without_a_run(tmp_path):
    (tmp_path / "samples").mkdir()
    (tmp_path / "README.md").write_text("mine")
    remove_run(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"samples", "README.md"}
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    shutil.rmtree(tmp_path / "samples")
    Path(tmp_path, "samples").symlink_to(outside)
    write_run(tmp_path, IDENTITY)
    remove_run(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"outside"}
    assert (outside / "kept").is_file()  # what a link leads to stays
