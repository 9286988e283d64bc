"""The programs and the notebook in examples/ run from a clean checkout."""

import json
import math
import runpy
import sys

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from conftest import ROOT
from diffusers import DiffusionPipeline
from PIL import Image

from pipeline_pfgmpp import PFGMPPPipeline, sample_noise


EXAMPLES = ROOT / "examples"
NOTEBOOK = EXAMPLES / "quickstart.ipynb"


@pytest.fixture(autouse=True)
def _on_cpu(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def run_example(name, *arguments):
    """Run a program of examples/ in this process, and return its names."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name, *map(str, arguments)])
        return runpy.run_path(str(EXAMPLES / name), run_name="__main__")


@pytest.mark.parametrize("classes", [[], ["one", "two"]])
def test_training_on_a_folder(classes, tmp_path):
    folders = [tmp_path / "images" / name for name in classes] or [tmp_path / "images"]
    for folder in folders:
        folder.mkdir(parents=True)
        for shade in range(4):
            Image.new("RGB", (20, 16), (60 * shade, 0, 0)).save(folder / f"{shade}.png")
    output = tmp_path / "output"
    small = [
        "--resolution",
        "16",
        "--model-channels",
        "8",
        "--train-batch-size",
        "32",
        "--max-train-steps",
        "1",
    ]
    run_example("train_folder.py", tmp_path / "images", output, *small)
    pipe = DiffusionPipeline.from_pretrained(output)
    assert pipe.scheduler.config.D == 128
    assert list((pipe.config.id2label or {}).values()) == classes
    assert pipe(num_inference_steps=1).images[0].size == (16, 16)


def test_heavy_tails_are_trained_and_described(tmp_path, capsys):
    names = run_example("heavy_tails.py", tmp_path, "--steps", 1, "--fields", 100)
    assert capsys.readouterr().out.count("tail index") == 3
    for D in (math.inf, 4):
        pipe = DiffusionPipeline.from_pretrained(tmp_path / f"D-{D:g}")
        assert pipe.scheduler.config.preconditioning == "t-edm"
        assert pipe.config.value_range["deviation"] == [pytest.approx(names["fields"].std().item(), rel=1e-3)]
    indices = []
    for D in (2, 4, None):
        values = sample_noise((200_000, 1), D, torch.Generator().manual_seed(0))
        indices.append(float(names["describe_tails"](values).split(",")[0].split()[-1]))
    assert indices == [pytest.approx(2, abs=0.4), pytest.approx(4, abs=0.8), pytest.approx(14, abs=2)]


def test_the_sampling_loop_draws_what_the_pipeline_draws(tmp_path, monkeypatch):
    """Run as a program, it saves a picture; its function agrees with the pipeline."""
    monkeypatch.chdir(ROOT)
    loop = runpy.run_path(str(EXAMPLES / "sampling_loop.py"))
    images = loop["sample"]([3, 8], D=16, steps=6, seed=0)

    pipe = PFGMPPPipeline.from_pretrained(loop["MODEL"])
    generator = torch.Generator().manual_seed(0)
    latents = pipe.scheduler.sample_noise((2, 1, 28, 28), generator, D=16)
    settings = {"class_labels": [3, 8], "D": 16, "num_inference_steps": 6, "output_type": "latent"}
    assert (images - pipe(latents=latents, **settings).images).abs().max() < 1e-4

    (tmp_path / "model_cards").symlink_to(ROOT / "model_cards")
    monkeypatch.chdir(tmp_path)
    run_example("sampling_loop.py")
    assert Image.open("clothes.png").size == (5 * 28, 2 * 28)


def test_the_notebook_runs(monkeypatch):
    monkeypatch.chdir(EXAMPLES)
    namespace = {}
    for cell in json.loads(NOTEBOOK.read_text())["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), NOTEBOOK.name, "exec"), namespace)
    assert len(namespace["previews"]) == 8


def test_the_notebook_holds_no_outputs():
    for cell in json.loads(NOTEBOOK.read_text())["cells"]:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


# One of them goes from the data to a table and a picture.
LONGER = {"low_dose_ct.py": 140}


def test_the_examples_fit_on_a_screen():
    for path in EXAMPLES.glob("*.py"):
        assert len(path.read_text().splitlines()) <= LONGER.get(path.name, 50), path.name
