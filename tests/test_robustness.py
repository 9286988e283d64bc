"""Disturbed sampling: what is disturbed, by how much, and that nothing else is."""

import functools
import subprocess
import sys

import PIL.Image
import pytest
import torch
from conftest import ROOT
from diffusers import DiffusionPipeline

from pipeline_pfgmpp import EmpiricalDenoiser, PFGMPPPipeline, PFGMPPScheduler
from pipeline_pfgmpp.evaluation.robustness import Disturbance, measure, plot, quantised, table
from pipeline_pfgmpp.sampling import generate


pytestmark = pytest.mark.filterwarnings("ignore:The Fréchet distance of")

BUNDLED = ROOT / "model_cards" / "pfgmpp-fashion-mnist"


@pytest.fixture(scope="module")
def pipe():
    pipe = DiffusionPipeline.from_pretrained(BUNDLED)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("bits", [1, 5, 9])
def test_quantised_weights_take_so_many_values_and_come_back(bits, pipe):
    before = [parameter.detach().clone() for parameter in pipe.unet.parameters()]
    with quantised(pipe.unet, bits):
        for parameter, original in zip(pipe.unet.parameters(), before):
            assert len(parameter.unique()) <= 2**bits
            step = (original.max() - original.min()) / (2**bits - 1)
            assert (parameter - original).abs().max() <= 0.5001 * step + 1e-7
    assert all(torch.equal(parameter, original) for parameter, original in zip(pipe.unet.parameters(), before))


def test_injected_noise_changes_nothing_else(pipe):
    """Noise too small to matter leaves the picture of a seed as it is, its class included."""

    def drawn(seeds, noise, batch_size=2):
        return torch.cat([images for _, images in generate(pipe, seeds, batch_size, None, noise, num_inference_steps=3)])

    plain = drawn([3, 4], 0).int()
    assert (drawn([3, 4], 1e-7).int() - plain).abs().max() <= 1
    noisy = drawn([3, 4], 0.2).int()
    assert (noisy - plain).abs().float().mean() > 1
    assert (drawn([4, 3], 0.2, batch_size=1).flip(0).int() - noisy).abs().max() <= 1


@pytest.mark.parametrize("solver_type", ["heun", "euler"])
def test_noise_comes_before_each_step_in_units_of_its_level(solver_type):
    """Around a single image the network's steps shrink what is off in proportion to sigma; so the noise adds up as it says."""
    alpha, steps = 0.3, 6
    scheduler = PFGMPPScheduler(D=None, solver_type=solver_type, sigma_min=0.5, sigma_max=1.0)
    pipe = PFGMPPPipeline(EmpiricalDenoiser(torch.zeros(1, 1, 16, 16)), scheduler)
    pipe.set_progress_bar_config(disable=True)
    seen, step = [], scheduler.step

    @functools.wraps(step)
    def spy(model_output, timestep, sample, *args, **kwargs):
        seen.append((sample / scheduler.sigmas[scheduler.step_index or 0]).std().item())
        return step(model_output, timestep, sample, *args, **kwargs)

    scheduler.step = spy
    next(generate(pipe, [0, 1, 2, 3], 4, None, alpha, num_inference_steps=steps))
    expected = [(1 + alpha**2 * (index + 1)) ** 0.5 for index in range(steps)]
    assert seen[:: scheduler.order] == pytest.approx(expected, rel=0.1)


def test_measuring_goes_on_where_it_was(pipe, fashion_mnist, tmp_path, monkeypatch):
    from datasets import load_dataset

    from pipeline_pfgmpp.evaluation import ImageMetrics, load_features, robustness
    from pipeline_pfgmpp.training import load_images

    real = load_images(load_dataset(str(fashion_mnist), split="test"), 28).images
    metrics = ImageMetrics(load_features("fashion-mnist"), real)
    points = [Disturbance("noise", 0.0), Disturbance("noise", 0.4), Disturbance("nfe", 3), Disturbance("bits", 2)]
    arguments = {"num_images": 20, "num_groups": 2, "nfe": 7}
    entries = measure({"model": pipe}, [16], points, metrics, tmp_path, **arguments)
    assert [(entry["kind"], entry["level"]) for entry in entries] == [("noise", 0), ("noise", 0.4), ("nfe", 3), ("bits", 2)]
    assert {entry["D"] for entry in entries} == {"16"}
    assert entries[3]["distances"][0] > entries[0]["distances"][0]  # two bits are not enough
    monkeypatch.setattr(robustness, "generate", None)
    assert measure({"model": pipe}, [16], points, metrics, tmp_path, **arguments) == entries
    assert "| noise injected, α | 0 | 0.4 |" in table(entries)
    plot(entries, tmp_path / "plot.png")
    assert PIL.Image.open(tmp_path / "plot.png").width > 1000


def test_the_command_line(fashion_mnist, tmp_path):
    output = str(tmp_path / "out")
    small = ["--noise", "0,0.2", "--bits", "", "--nfe", "3", "--num-images", "4", "--groups", "1", "--output", output]
    small += ["--D", "16,inf"]
    command = [sys.executable, "-m", "pipeline_pfgmpp", "robustness", str(BUNDLED), "--data", str(fashion_mnist), *small]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"robustness.json", "robustness.md", "robustness.png", "noise.png"}
    refused = subprocess.run([*command, "--noise=-1"], cwd=ROOT, capture_output=True, text=True)
    assert refused.returncode == 1
    assert refused.stderr.endswith("pfgmpp: --noise must not hold -1.\n")
