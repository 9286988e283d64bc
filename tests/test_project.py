"""What the repository promises: models that load, code blocks that run, figures that were measured."""

import json
import re
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from diffusers import DiffusionPipeline

from pipeline_pfgmpp.evaluation import load_features
from pipeline_pfgmpp.evaluation.reports import format_evaluation


def test_importing_the_package_loads_nothing_heavy_beyond_diffusers():
    program = """
import sys, diffusers, torch
from diffusers import DiffusionPipeline, EDMEulerScheduler, ModelMixin, UNet2DModel
before = set(sys.modules)
import pipeline_pfgmpp
new = {name.split(".")[0] for name in set(sys.modules) - before}
heavy = {"accelerate", "datasets", "gradio", "matplotlib", "scipy", "torchmetrics", "transformers"}
assert not new & heavy, new
own = [name for name in sys.modules if name.startswith("pipeline_pfgmpp")]
assert not any("training" in name or "evaluation" in name for name in own), own
"""
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize(
    "index", sorted((ROOT / "model_cards").glob("*/model_index.json")), ids=lambda path: path.parent.name
)
def test_every_bundled_model_loads_and_samples(index):
    folder = index.parent
    pipe = DiffusionPipeline.from_pretrained(folder)
    channels = pipe.unet.config.get("condition_channels")
    given = {"image": torch.full((2, channels, 32, 32), 0.5)} if channels else {"batch_size": 2}
    generator = torch.Generator().manual_seed(0)
    images = pipe(**given, num_inference_steps=2, output_type="pt", generator=generator).images
    assert images.isfinite().all()
    assert pipe.unet.num_parameters() <= 7_000_000
    assert {path.name for path in folder.iterdir()} >= {"README.md", "model_index.json", "scheduler", "unet"}
    assert not [path for path in folder.rglob("*") if path.suffix in {".bin", ".pkl", ".pt", ".pth"}]


def test_the_bundled_model_draws_clothes():
    """The committed classifier recognises the requested class in most samples."""
    pipe = DiffusionPipeline.from_pretrained(ROOT / "model_cards" / "pfgmpp-fashion-mnist")
    labels = torch.arange(10).repeat_interleave(3)
    generators = [torch.Generator().manual_seed(seed) for seed in range(30)]
    images = pipe(
        30, num_inference_steps=10, class_labels=labels, generator=generators, output_type="pt"
    ).images
    with torch.no_grad():
        predicted = load_features("fashion-mnist")(images * 2 - 1).argmax(1)
    assert (predicted == labels).float().mean() > 0.7, predicted


@pytest.mark.parametrize("page", ["README.md", "space/README.md", "space/about.md"])
def test_code_blocks_import_what_they_use(page):
    """The blocks of a page run from top to bottom, so later ones may use what earlier ones imported."""
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "F821", "-"]
    result = subprocess.run(command, input="\n".join(blocks), capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
    assert "torch_dtype" not in (ROOT / page).read_text()  # deprecated by diffusers


def test_every_promise_names_a_test_that_exists():
    text = (ROOT / "docs" / "security.md").read_text()
    tests = "\n".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py"))
    for name in re.findall(r"`(test_\w+)`", text):
        assert f"def {name}(" in tests, name
    for path in re.findall(r"`(tests/\w+\.py)`", text):
        assert (ROOT / path).is_file(), path


def test_ruff():
    for command in (["check"], ["format", "--check"]):
        result = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "."], cwd=ROOT, capture_output=True, text=True
        )
        assert result.returncode == 0, result.stdout + result.stderr


def test_the_report_holds_what_was_measured():
    report = (ROOT / "experiments" / "RESULTS.md").read_text()
    results = json.loads((ROOT / "model_cards" / "pfgmpp-fashion-mnist" / "evaluation.json").read_text())
    assert format_evaluation(results) in report
    assert results["command"] in report
    for row in re.findall(r"^\|.*\d\.\d.*\|$", (ROOT / "README.md").read_text(), re.MULTILINE):
        assert row in report
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", report):
        assert (ROOT / "experiments" / picture).is_file()
