"""Disturbed sampling: how much it is disturbed, that nothing else is, and how that is measured."""

import functools
import json
import math
import os
import subprocess
import sys

import PIL.Image
import pytest
import torch
from conftest import ROOT, make_tiny_pipeline
from datasets import load_dataset
from diffusers import DiffusionPipeline

from pipeline_pfgmpp import EmpiricalDenoiser, PFGMPPPipeline, PFGMPPScheduler, commands
from pipeline_pfgmpp.data import load_images
from pipeline_pfgmpp.evaluation import ImageMetrics, load_features, robustness
from pipeline_pfgmpp.evaluation.reports import format_mean, format_robustness, list_panels, write_robustness
from pipeline_pfgmpp.evaluation.robustness import Setting, list_settings, measure
from pipeline_pfgmpp.evaluation.verify import verify_robustness
from pipeline_pfgmpp.generation import generate, quantize_temporarily
from pipeline_pfgmpp.pictures.plots import plot_robustness
from pipeline_pfgmpp.records.digests import digest_weights


pytestmark = pytest.mark.filterwarnings("ignore:The Fréchet distance of")

BUNDLED = ROOT / "model_cards" / "pfgmpp-fashion-mnist"


@pytest.fixture(scope="module")
def pipe():
    """A tiny class-conditional pipeline."""
    return make_tiny_pipeline(D=16, label_dim=10)


@pytest.mark.parametrize("bits", [1, 5, 9])
def test_quantised_weights_take_few_values_and_come_back(bits, pipe):
    before = [parameter.detach().clone() for parameter in pipe.unet.parameters()]
    with quantize_temporarily(pipe.unet, bits):
        for parameter, original in zip(pipe.unet.parameters(), before):
            assert len(parameter.unique()) <= 2**bits
            step = (original.max() - original.min()) / (2**bits - 1)
            assert (parameter - original).abs().max() <= 0.5001 * step + 1e-7
    assert all(
        torch.equal(parameter, original) for parameter, original in zip(pipe.unet.parameters(), before)
    )


@pytest.mark.parametrize("bits", [1, 5])
def test_weights_that_are_rounded_at_random_keep_their_mean(bits):
    weights = torch.linspace(-1, 1, 101)
    module = torch.nn.Linear(101, 1000, bias=False)
    with torch.no_grad():
        module.weight.copy_(weights.expand(1000, -1))
    step = 2 / (2**bits - 1)
    with quantize_temporarily(module, bits, torch.Generator().manual_seed(0)):
        rounded = module.weight.detach().clone()
    assert len(rounded.unique()) <= 2**bits
    assert (rounded - weights).abs().max() < step + 1e-6
    assert (rounded.mean(0) - weights).abs().max() < 5 * step / 2 / 1000**0.5
    with quantize_temporarily(module, bits, torch.Generator().manual_seed(1)):
        assert not torch.equal(module.weight, rounded)


def test_injected_noise_changes_nothing_else(pipe):
    """Noise too weak to be seen does not change the image of a seed, nor its class."""

    def draw(seeds, noise, batch_size=2):
        batches = generate(pipe, seeds, batch_size, None, noise, num_inference_steps=3)
        return torch.cat([images for _, images in batches]).int()

    plain = draw([3, 4], 0)
    assert (draw([3, 4], 1e-7) - plain).abs().max() <= 1
    noisy = draw([3, 4], 0.2)
    assert (noisy - plain).abs().float().mean() > 1
    assert (draw([4, 3], 0.2, batch_size=1).flip(0) - noisy).abs().max() <= 1


@pytest.mark.parametrize("solver_type", ["heun", "euler"])
def test_noise_comes_before_each_step_in_units_of_its_level(solver_type, monkeypatch):
    """
    Around a single image the steps shrink all deviations in proportion to sigma, so that the
    injected noise adds up to a known variance.
    """
    alpha = 0.3
    steps = 6
    scheduler = PFGMPPScheduler(D=None, solver_type=solver_type, sigma_min=0.5, sigma_max=1.0)
    pipe = PFGMPPPipeline(EmpiricalDenoiser(torch.zeros(1, 1, 16, 16)), scheduler)
    pipe.set_progress_bar_config(disable=True)
    seen = []
    step = PFGMPPScheduler.step

    @functools.wraps(step)
    def spy(self, model_output, timestep, sample, *args, **kwargs):
        seen.append((sample / self.sigmas[self.step_index or 0]).std().item())
        return step(self, model_output, timestep, sample, *args, **kwargs)

    monkeypatch.setattr(PFGMPPScheduler, "step", spy)  # of all, since each call has a scheduler of its own
    next(generate(pipe, [0, 1, 2, 3], 4, None, alpha, num_inference_steps=steps))
    expected = [(1 + alpha**2 * (index + 1)) ** 0.5 for index in range(steps)]
    assert seen[:: scheduler.order] == pytest.approx(expected, rel=0.1)


@pytest.fixture(scope="module")
def metrics(fashion_mnist):
    real = load_images(load_dataset(str(fashion_mnist), split="test"), 28).images
    return ImageMetrics(load_features("fashion-mnist"), real)


def test_rounding_to_two_bits_does_harm(metrics, tmp_path):
    trained = {"model": DiffusionPipeline.from_pretrained(BUNDLED)}
    settings = [Setting(0, None, 7), Setting(0, 2, 7)]
    plain, rounded = measure(trained, [16], settings, metrics, tmp_path, num_images=10, num_groups=1)
    assert rounded["distances"] > plain["distances"]


def test_a_number_of_calls_that_the_solver_cannot_make_is_refused(pipe, metrics, tmp_path):
    settings = robustness.list_settings([], [], [3, 8])
    with pytest.raises(ValueError, match="an odd number of calls, so 8 must be 7 or 9"):
        robustness.measure({"tiny": pipe}, [128], settings, metrics, tmp_path, 5, 1)
    assert not (tmp_path / "robustness.json").exists()


def test_interrupted_measurements_resume(pipe, metrics, tmp_path, monkeypatch):
    settings = list_settings([0, 0.4], [2], [5, 3])
    # The undisturbed setting is measured once.
    assert settings == [(0, None, 5), (0.4, None, 5), (0, 2, 5), (0, None, 3)]
    arguments = {"num_images": 10, "num_groups": 2}
    measure({"model": pipe}, [16], settings[:2], metrics, tmp_path, **arguments)
    calls = []

    def count_calls(*args, **kwargs):
        calls.append(args)
        return generate(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(robustness, "generate", count_calls)
        entries = measure({"model": pipe}, [16], settings, metrics, tmp_path, **arguments)
        assert len(calls) == 4  # two groups of each setting that was missing
        assert measure({"model": pipe}, [16], settings, metrics, tmp_path, **arguments) == entries
        assert len(calls) == 4
    assert [(entry["noise"], entry["bits"], entry["nfe"]) for entry in entries] == settings
    assert {entry["D"] for entry in entries} == {"16"}
    with pytest.raises(ValueError, match=r"measured differently \(num_images is 10 there and 5 here\)"):
        measure({"model": pipe}, [16], settings, metrics, tmp_path, num_images=5)
    with pytest.raises(ValueError, match="of another model, model"):
        measure({"other": pipe}, [16], settings, metrics, tmp_path, **arguments)
    with (
        quantize_temporarily(pipe.unet, 5),
        pytest.raises(ValueError, match=r"measured differently \(weights is \w+ there"),
    ):
        measure({"model": pipe}, [16], settings, metrics, tmp_path, **arguments)
    figures = verify_robustness(pipe, metrics, entries)
    assert [figure.agrees for figure in figures] == [True]
    assert figures[0].measured == pytest.approx(entries[1]["distances"][0], rel=1e-2)
    text = format_robustness(entries)
    plain, *disturbed = [entry["distances"] for entry in entries]
    headers = [
        "injected noise, α | 0 | 0.4",
        "bits per weight | as trained | 2",
        "calls of the network | 5 | 3",
    ]
    for header, distances in zip(headers, disturbed):
        added = format_mean([distances[0] - plain[0], distances[1] - plain[1]])
        line = f"| D = 16 | {format_mean(plain)} | {format_mean(distances)} ({added}) |"
        assert f"| {header} |\n|---|---|---|\n{line}\n" in text
    plot_robustness(list_panels(entries), tmp_path / "plot.png")
    assert PIL.Image.open(tmp_path / "plot.png").width > 1000


def test_groups_have_no_image_in_common(pipe, tmp_path, monkeypatch):
    groups = []

    def pretend_to_generate(pipeline, seeds, *args, **kwargs):
        groups.append(set(seeds))
        yield seeds, torch.zeros(1, 1, 28, 28, dtype=torch.uint8)

    def pretend_to_measure(images):
        return {"fid": 1.0}

    pretend_to_measure.reference = "digest"
    monkeypatch.setattr(robustness, "generate", pretend_to_generate)
    settings = list_settings([0.1], [], [3])
    measure({"m": pipe}, [16], settings[:1], pretend_to_measure, tmp_path, num_images=10_001, num_groups=2)
    assert [len(seeds) for seeds in groups] == [10_001, 10_001]
    assert not groups[0] & groups[1]


def test_the_command_line_in_two_processes(pipe, metrics, fashion_mnist, tmp_path, capsys):
    model = tmp_path / "model"
    output = tmp_path / "out"
    pipe.save_pretrained(model)
    arguments = ["robustness", str(model), "--data", str(fashion_mnist), "--output", str(output)]
    arguments += ["--noise", "0,0.2", "--bits", "", "--nfe", "3", "--num-images", "5", "--groups", "1"]
    arguments += ["--D", "16,inf", "--batch-size", "2"]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "pipeline_pfgmpp"]
    result = subprocess.run(
        [sys.executable, *launch, *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    names = {path.name for path in output.iterdir()}
    assert names == {"robustness.json", "robustness.md", "robustness.png", "noise.png"}
    settings = list_settings([0, 0.2], [], [3])
    alone = measure({"model": pipe}, [16, math.inf], settings, metrics, tmp_path, num_images=5, num_groups=1)
    shared = json.loads((output / "robustness.json").read_text())
    assert len(shared) == len(alone) == 4
    for one, other in zip(alone, shared):  # a rounded pixel may differ
        assert other["distances"] == pytest.approx(one["distances"], rel=1e-2)
    arguments[5] = str(tmp_path / "alone")
    arguments[7:10] = ["", "--bits", "8"]
    commands.main(arguments)
    assert (tmp_path / "alone" / "noise.png").exists()
    with pytest.raises(SystemExit) as stop:
        commands.main([*arguments[:6], "--noise=-1"])
    assert stop.value.code == 2
    assert "argument --noise: expected numbers from 0 to 100" in capsys.readouterr().err


def test_results_are_kept_with_the_model(pipe, tmp_path):
    output = tmp_path / "output"
    folder = tmp_path / "model"
    output.mkdir()
    pipe.save_pretrained(folder)
    saved = {path.name for path in folder.iterdir()}
    common = {"model": "m", "D": "16", "num_images": 1000, "distances": [1.0, 2.0, 3.0]}
    common["weights"] = digest_weights(pipe)
    entries = [{**common, **setting._asdict()} for setting in list_settings([0.1], [], [35])]
    for name in ("robustness.png", "noise.png"):
        PIL.Image.new("L", (2, 2)).save(output / name)
    (folder / "README.md").write_text(
        "---\nlibrary_name: diffusers\n---\n\n# M\n\n## Evaluation\n\nFirst.\n\n## Limits\n\nMany.\n"
    )
    for _ in range(2):  # a second time replaces the first
        write_robustness(folder, entries, output, "pfgmpp robustness here")
    others = [{**entry, "weights": "of another network"} for entry in entries]
    with pytest.raises(ValueError, match="were measured with other weights"):
        write_robustness(folder, others, output, "pfgmpp robustness there")
    assert json.loads((folder / "robustness.json").read_text()) == entries
    card = (folder / "README.md").read_text()
    sections = [
        "## Evaluation",
        "## Robustness",
        "| D = 16 | 2.0 ± 1.0 | 2.0 ± 1.0 (0 ± 0) |",
        "pfgmpp robustness here",
        "## Limits",
    ]
    assert [card.count(part) for part in sections] == [1] * 5
    assert sorted(sections, key=card.index) == sections
    assert "3 groups of 1,000 images" in card
    written = {path.name for path in folder.iterdir()} - saved
    assert written == {"README.md", "robustness.json", "robustness.png", "noise.png"}


@pytest.mark.parametrize(
    "path", sorted((ROOT / "model_cards").glob("*/robustness.json")), ids=lambda path: path.parent.name
)
def test_cards_state_what_was_measured(path):
    entries = json.loads(path.read_text())
    assert format_robustness(entries) in path.with_name("README.md").read_text()
    assert format_robustness(entries) in (ROOT / "experiments" / "RESULTS.md").read_text()
