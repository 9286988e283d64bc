"""Each extra installs what its commands need, and without it they say so before they start."""

import gzip
import json
import os
import shutil
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from conftest import ROOT, make_tiny_pipeline
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from packages import link_requirements, read_requirements
from packaging.requirements import Requirement
from test_restoration import make_pipeline

from pipeline_pfgmpp.commands import COMMANDS, extras
from pipeline_pfgmpp.training import PowerFunctionEMA


TRAIN = str(ROOT / "train_accelerate.py")
# Runs several command lines in one process, and prints the code and the errors of each.
RUN_COMMANDS = """
import contextlib, io, json, runpy, sys
from pipeline_pfgmpp.commands import main
from pipeline_pfgmpp.pictures import field_lines

field_lines.animate_trajectories = lambda path, shape: None  # takes most of a minute
results = []
for arguments in json.loads(sys.argv[1]):
    code = 0
    errors = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
        try:
            if arguments[0].endswith(".py"):
                sys.argv = arguments
                runpy.run_path(arguments[0], run_name="__main__")
            else:
                main(arguments)
        except SystemExit as stop:
            code = stop.code
    results.append((code, errors.getvalue()))
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def environments(tmp_path_factory):
    """Return a function that makes an environment of the package with one extra, or with none."""

    def make(extra):
        packages = (
            tmp_path_factory.mktemp("environment") / "site-packages"
        )  # dill knows packages by this name
        packages.mkdir()
        link_requirements(read_requirements(extra), packages)
        return {**os.environ, "PYTHONPATH": f"{packages}{os.pathsep}{ROOT}", "ACCELERATE_USE_CPU": "1"}

    return make


def run_python(arguments, env, folder):
    """Run Python with only the packages of an environment, and return what it printed."""
    result = subprocess.run(
        [sys.executable, "-S", *arguments], cwd=folder, env=env, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def run_commands(command_lines, env, folder):
    """Run commands with only the packages of an environment, and return the code and the errors of each."""
    output = run_python(["-c", RUN_COMMANDS, json.dumps(command_lines)], env, folder)
    return json.loads(output.splitlines()[-1])


@pytest.fixture
def workplace(tmp_path, fashion_mnist):
    """A folder with what the commands need: a model, a DDPM, a run and IDX files."""
    make_tiny_pipeline(D=16).save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A model\n")
    unet = UNet2DModel(
        sample_size=8,
        block_out_channels=(16,),
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
    )
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(tmp_path / "ddpm")
    make_pipeline().save_pretrained(tmp_path / "restoring")
    np.save(tmp_path / "scan.npy", np.zeros((8, 8)))
    write_run(tmp_path / "run")
    write_idx_files(tmp_path / "idx")
    return tmp_path


def write_run(folder):
    """Write what a short training run leaves, as far as commands use it."""
    pipeline = make_tiny_pipeline(D=16)
    pipeline.save_pretrained(folder)
    average = PowerFunctionEMA(pipeline.unet.parameters(), 0.1)
    average.step(pipeline.unet.parameters())
    average.save_snapshot(folder, 1, [name for name, _ in pipeline.unet.named_parameters()])
    (folder / "log.jsonl").write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "loss": 0.4}\n')


def write_idx_files(folder):
    folder.mkdir()
    images = np.arange(32, dtype=np.uint8).reshape(2, 4, 4)
    for prefix in ("train", "t10k"):
        header = struct.pack(">4B3I", 0, 0, 8, 3, *images.shape)
        (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + images.tobytes()))
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">4BI2B", 0, 0, 8, 1, 2, 0, 1))


def list_command_lines(data):
    """List command lines by the extra that they need; None is the package alone."""
    few = ["--data", str(data), "--num-images", "20"]
    train = [TRAIN, "--train_data_dir", "data", "--preset", "fashion-mnist-small", "--resolution", "8"]
    train += [
        "--train_batch_size",
        "2",
        "--lr_warmup_steps",
        "0",
        "--max_train_steps",
        "1",
        "--sample_steps",
        "0",
        "--output_dir",
        "new",
    ]
    return {
        None: [
            ["sample", "model", "--columns", "2", "--rows", "1", "--num-inference-steps", "2"],
            ["sample", "model", "--num-images", "2", "--num-inference-steps", "2", "--output", "many.npz"],
            ["restore", "restoring", "scan.npy", "--output", "restored", "--num-inference-steps", "2"],
            ["convert", "--from-diffusers", "ddpm", "converted"],
            ["push", "model", "org/model", "--dry-run"],
            ["info", "model"],
            ["average", "run", "--width", "0.1"],
            ["schedule", "model", "--num-inference-steps", "2", "--D", "16", "--num-latents", "2"],
        ],
        "plot": [["plot", "run"], ["field-lines", "pictures"]],
        "train": [
            ["data", "fashion-mnist", "idx", "data"],
            train,
            [
                "evaluate-restoration",
                "restoring",
                *few[:-1],
                "2",
                "--degradation",
                "jpeg",
                "--start-sigma",
                "1",
            ],
        ],
        "evaluate": [
            ["evaluate", "model", *few, "--num-inference-steps", "2", "--D", "16", "--write"],
            ["choose-D", "model", *few, "--groups", "2", "--num-inference-steps", "2", "--D", "16,128"],
            ["verify", "model", *few],
            [
                "robustness",
                "model",
                *few,
                "--groups",
                "1",
                "--D",
                "16",
                "--noise",
                "0,0.2",
                "--bits",
                "",
                "--nfe",
                "3",
            ],
        ],
    }


def test_the_table_of_commands_names_the_extras_of_the_package():
    assert set(extras.EXTRAS) <= set(COMMANDS)
    assert set(extras.EXTRAS.values()) <= set(extras.MODULES)
    for extra, modules in extras.MODULES.items():
        added = set(read_requirements(extra)) - set(read_requirements())
        assert sorted(Requirement(line).name for line in added) == sorted(modules)


def test_every_command_is_run_here(fashion_mnist):
    command_lines = list_command_lines(fashion_mnist)
    assert {line[0] for lines in command_lines.values() for line in lines} == {*COMMANDS, TRAIN}
    for extra, lines in command_lines.items():
        assert {extras.EXTRAS.get(line[0]) for line in lines if line[0] != TRAIN} == {extra}


def test_the_package_alone_runs_its_commands_and_names_the_extras_of_others(
    environments, workplace, fashion_mnist
):
    lines = list_command_lines(fashion_mnist)
    own = lines.pop(None)
    others = [line for group in lines.values() for line in group if line[0] != TRAIN]
    before = sorted(workplace.iterdir())
    env = environments(None)
    results = run_commands([*others, *own], env, workplace)
    for (command, *_), (code, errors) in zip(others, results):
        extra = extras.EXTRAS[command]
        modules = ", ".join(extras.MODULES[extra])
        assert code == 1, errors
        assert (
            errors == f"pfgmpp: pfgmpp {command} needs {modules}: pip install 'pipeline-pfgmpp[{extra}]'.\n"
        )
    assert [code for code, _ in results[len(others) :]] == [0] * len(own), results
    written = {path.name for path in workplace.iterdir()} - {path.name for path in before}
    # The search keeps its state in outputs.
    assert written == {"samples.png", "many.npz", "restored", "converted", "outputs"}


@pytest.mark.parametrize("extra", ["evaluate", "plot", "train"])
def test_an_extra_alone_runs_its_commands(extra, environments, workplace, fashion_mnist):
    lines = list_command_lines(fashion_mnist)[extra]
    results = run_commands(lines, environments(extra), workplace)
    assert [code for code, _ in results] == [0] * len(lines), results


def test_the_extra_of_the_space_loads_its_page(environments):
    page = run_python(["-c", "import app; print(app.page)"], environments("space"), ROOT / "space")
    assert "gradio" in page


def test_the_wheel_holds_what_is_not_code(tmp_path):
    """Built from a copy, which leaves no build folder here."""
    shutil.copytree(ROOT / "pipeline_pfgmpp", tmp_path / "pipeline_pfgmpp")
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    program = "from setuptools import build_meta; build_meta.build_wheel('dist')"
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    files = [
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "pipeline_pfgmpp").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    ]
    assert "pipeline_pfgmpp/py.typed" in files
    assert any(name.startswith("pipeline_pfgmpp/training/configs/") for name in files)
    assert any(name.startswith("pipeline_pfgmpp/evaluation/classifiers/fashion-mnist/") for name in files)
    with zipfile.ZipFile(wheel) as archive:
        packed = archive.namelist()
    assert sorted(name for name in packed if name.startswith("pipeline_pfgmpp/")) == sorted(files)
    assert [name for name in packed if name.endswith("entry_points.txt")]
