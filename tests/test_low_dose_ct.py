"""Low-dose CT: the physics of the simulation, the choice of one call, the example and the study."""

import importlib
import json
import math
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from diffusers import DiffusionPipeline
from huggingface_hub import ModelCard
from PIL import Image
from test_restoration import make_pipeline

from pipeline_pfgmpp.commands import main
from pipeline_pfgmpp.data import load_images, open_dataset
from pipeline_pfgmpp.data import low_dose_ct as ct
from pipeline_pfgmpp.evaluation.restoration import Pair, choose_entry


skimage_transform = pytest.importorskip("skimage.transform")
EXAMPLE = ROOT / "examples" / "low_dose_ct.py"
DISC = np.array([[1.0, 0.1, -0.2, 0.5, 0.5, 0.0]])  # of water, off centre


pytestmark = pytest.mark.usefixtures("fresh_accelerator", "one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A few pairs of 32 x 32 pixels."""
    folder = tmp_path_factory.mktemp("data") / "ct"
    ct.convert_phantoms(folder, train=4, validation=2, test=3, size=32, angles=40)
    return folder


def rasterize(phantom, size):
    """Draw a phantom as an image, from the equation of an ellipse."""
    x, y = np.meshgrid(*[(np.arange(size) - size // 2) / (size / 2)] * 2)
    image = np.zeros((size, size))
    for density, x0, y0, a, b, angle in phantom:
        along = (x - x0) * math.cos(angle) + (y - y0) * math.sin(angle)
        across = (y - y0) * math.cos(angle) - (x - x0) * math.sin(angle)
        image += density * ((along / a) ** 2 + (across / b) ** 2 <= 1)
    return image


def test_the_closed_form_is_the_radon_transform():
    size = 256
    phantom = ct.draw_phantom(np.random.default_rng(0))
    numerical = skimage_transform.radon(rasterize(phantom, size), np.arange(12) * 15.0, circle=True)
    expected = numerical * ct.WATER * ct.FIELD / size
    error = np.abs(ct.project(phantom, size, 12) - expected).mean()
    assert error < 0.005 * expected.mean()


@pytest.mark.parametrize("kernel", ct.FILTERS)
def test_a_disc_has_its_value_in_hounsfield_units(kernel):
    """Water is 0 and air -1000, at their places, within 2 % of their difference."""
    image = ct.reconstruct(ct.project(DISC, 64), kernel)
    x, y = np.meshgrid(*[(np.arange(64) - 32) / 32] * 2)
    distance = np.hypot(x - 0.1, y + 0.2)
    assert abs(image[distance < 0.35].mean()) < 20
    outside = (distance > 0.65) & (np.hypot(x, y) < 0.9)
    assert abs(image[outside].mean() + 1000) < 20


def test_noise_grows_as_the_dose_falls():
    """The variance of counted photons is their number, so that of a line integral is its inverse."""
    integrals = np.full(40_000, 2.0)
    for photons in (1e4, 1e6):
        measured = ct.measure_rays(integrals, photons, np.random.default_rng(0), electronic_noise=0.0)
        assert measured.mean() == pytest.approx(2, abs=0.01)
        assert measured.var() == pytest.approx(math.exp(2) / photons, rel=0.05)
    noisy = ct.measure_rays(integrals, 1e4, np.random.default_rng(0), electronic_noise=50.0)
    count = 1e4 * math.exp(-2)
    assert noisy.var() == pytest.approx((count + 50**2) / count**2, rel=0.1)


def test_rays_that_nobody_counts_stay_finite():
    measured = ct.measure_rays(np.full(1000, 30.0), 1e5, np.random.default_rng(0))
    assert np.isfinite(measured).all()
    assert measured.max() == pytest.approx(math.log(1e5))


def test_pairs_depend_on_seed_and_number_alone():
    first = list(ct.make_pairs("test", 2, 32, 20))
    again = list(ct.make_pairs("test", 3, 32, 20))
    for name in ("full_dose", "low_dose"):
        assert (first[1][name] == again[1][name]).all()
        assert (first[0][name] != first[1][name]).any()
    other = next(ct.make_pairs("test", 1, 32, 20, seed=1))
    assert (other["full_dose"] != first[0]["full_dose"]).any()


def test_the_unseen_splits_hold_the_phantoms_of_the_test_split():
    pairs = {name: next(ct.make_pairs(name, 1, 64, 60)) for name in ct.SPLITS}
    errors = {name: (pair["low_dose"] - pair["full_dose"]).std() for name, pair in pairs.items()}
    assert (pairs["test_dose"]["full_dose"] == pairs["test"]["full_dose"]).all()
    assert errors["test_dose"] > 1.4 * errors["test"]
    assert errors["test_kernel"] < 0.8 * errors["test"]
    assert np.abs(pairs["test_kernel"]["full_dose"] - pairs["test"]["full_dose"]).mean() < 60
    assert (pairs["train"]["full_dose"] != pairs["test"]["full_dose"]).any()


def test_the_command_writes_pairs_that_train(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(["data", "low-dose-ct", "--train", "2", "--validation", "1", "--test", "1", "--size", "32"])
    assert capsys.readouterr().out == ("Wrote 6 pairs of slices, of which 2 to train on: data/low-dose-ct\n")
    columns = {"image_column": "full_dose", "condition_column": "low_dose"}
    data = load_images(open_dataset("data/low-dose-ct"), 16, crop=True, **columns)
    assert data.summarize().startswith("2 pairs of images cropped to 16x16 pixels, 1 channel, values from -")
    assert data.value_range[0] < -950
    for split in ct.SPLITS:
        assert len(open_dataset("data/low-dose-ct", split=split)) == (2 if split == "train" else 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train": 0}, "`train` must be at least 1, but is 0."),
        ({"size": 8}, "`size` must be at least 16, but is 8."),
    ],
)
def test_numbers_that_are_too_small_are_refused(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        ct.convert_phantoms(tmp_path / "ct", **options)
    assert not list(tmp_path.iterdir())


def test_other_files_of_the_folder_stay(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "thesis.txt").write_text("years of work")
    for _ in range(2):
        ct.convert_phantoms(tmp_path, train=1, validation=1, test=1, size=16, angles=4)
    assert (tmp_path / "data" / "thesis.txt").read_text() == "years of work"


def test_a_filter_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="`kernel` must be one of ramp, .*, but is 'sharp'."):
        ct.reconstruct(ct.project(DISC, 32, 20), "sharp")


def test_without_scikit_image_one_sentence_names_the_extra(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "skimage.transform", None)
    with pytest.raises(SystemExit):
        main(["data", "low-dose-ct", str(tmp_path / "ct"), "--train", "1"])
    assert "scikit-image: pip install 'pipeline-pfgmpp[ct]'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def make_pairs_of_noise(count, size=16):
    rng = torch.Generator().manual_seed(0)
    truth = torch.rand(count, 1, size, size, generator=rng) * 0.4 + 0.3
    degraded = truth + 0.05 * torch.randn(truth.shape, generator=rng)
    return [Pair(*images) for images in zip(degraded, truth)]


def test_the_entry_is_the_best_of_those_that_were_tried():
    pipe = make_pipeline(D=64)
    pairs = make_pairs_of_noise(3)
    sigmas = [0.05, 0.2, 0.8]
    entry = choose_entry(pipe, pairs, sigmas)
    degraded = torch.stack([pair.degraded for pair in pairs])
    truth = torch.stack([pair.truth for pair in pairs])

    def measure(sigma, blend):
        restored = pipe(degraded, 1, sigma, output_type="pt").images
        return (torch.lerp(degraded, restored, blend) - truth).square().mean().sqrt().item()

    errors = {(sigma, blend / 20): measure(sigma, blend / 20) for sigma in sigmas for blend in range(21)}
    assert entry.rmse <= min(errors.values()) + 1e-6
    assert measure(entry.start_sigma, entry.blend) == pytest.approx(entry.rmse, rel=1e-4)
    assert entry.start_sigma == min(errors, key=errors.get)[0]


def test_images_that_are_not_degraded_are_left_alone():
    """Any change makes them worse, so the blend is 0."""
    pairs = [Pair(pair.truth, pair.truth) for pair in make_pairs_of_noise(2)]
    entry = choose_entry(make_pipeline(D=64), pairs, [0.1, 0.4])
    assert entry.blend == 0
    assert entry.rmse == 0


def test_the_example_goes_from_data_to_a_table_and_a_picture(tmp_path, monkeypatch, capsys):
    ct.convert_phantoms(tmp_path / "ct", train=2, validation=1, test=1, size=64, angles=30)
    output = tmp_path / "output"
    arguments = ["--minutes", "0.0001", "--data", str(tmp_path / "ct"), "--output", str(output)]
    monkeypatch.setattr(sys, "argv", [EXAMPLE.name, *arguments])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    assert (output / "checkpoint-1").is_dir()
    printed = capsys.readouterr().out
    for name in ("low dose", "non-local means", "D = 64", "D = ∞"):
        assert f"\n| {name} | " in printed
    assert Image.open(output / "restored.png").size == (1320, 550)
    monkeypatch.chdir(output.parent)
    np.save("slice.npy", next(ct.make_pairs("test", 1, 64, 30))["low_dose"])
    entry = ["--num-inference-steps", "1", "--start-sigma", "0.02"]
    main(["restore", "output", "slice.npy", "--output", "restored", *entry])
    restored = np.load("restored/slice.npy")
    assert restored.dtype == np.float32
    assert restored.min() < -900


@pytest.fixture
def study(tmp_path, monkeypatch):
    """The study as a module next to its neighbours, with results in a folder of the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(ROOT / "experiments")
    module = importlib.import_module("low_dose_ct")
    monkeypatch.setattr(module, "RESULTS", tmp_path)
    monkeypatch.setattr(module, "PICTURE", tmp_path / "low_dose_ct.png")
    monkeypatch.setattr(module, "SIGMAS", [0.02, 0.1])
    monkeypatch.setattr(module, "STRENGTHS", [0.01])
    monkeypatch.setattr(module, "DIMENSIONS", [64.0, math.inf])
    yield module
    for name in ("low_dose_ct", "restorers", "tables"):
        del sys.modules[name]


def check_model(folder):
    """Check that a folder is a model whose card says the same in its front matter and in its table."""
    pipe = DiffusionPipeline.from_pretrained(folder)
    assert pipe(torch.zeros(1, 1, 32, 32), num_inference_steps=1, start_sigma=0.02).images
    card = ModelCard.load(folder / "README.md")
    assert card.data.model_name == folder.name
    assert len(card.data.eval_results) == 4  # PSNR and SSIM at two D
    for result in card.data.eval_results:
        assert re.search(rf"\| {result.metric_value:.5g}0* ", card.text)
    assert not list(folder.rglob("*.py"))


def test_the_study_resumes(study, folder, tmp_path, monkeypatch, capsys):
    arguments = ["--data", str(folder), "--steps", "2", "--batch_size", "2", "--crop_size", "16"]
    arguments += ["--seeds", "2", "--model", "pfgmpp-ct"]
    monkeypatch.setattr(sys, "argv", ["low_dose_ct.py", *arguments])
    study.main()
    measurement = json.loads((tmp_path / "low_dose_ct.json").read_text(encoding="utf-8"))
    results = measurement["results"]
    names = ["low dose", "non-local means", "U-Net", "D = 64", "D = ∞"]
    assert {row["name"] for row in results["rows"]} == set(names)
    assert [row["name"] for row in results["differences"]] == ["D = 64"]
    tables = sys.modules["tables"]
    printed = capsys.readouterr().out
    assert tables.format_low_dose_ct(results) in printed
    assert tables.format_low_dose_ct_differences(results) in printed
    assert (tmp_path / "low_dose_ct.png").is_file()
    check_model(Path("pfgmpp-ct"))

    def refuse(*args):
        raise AssertionError("It trains or measures again.")

    monkeypatch.setattr(study.Study, "optimize", refuse)
    monkeypatch.setattr(study.Study, "measure_seed", refuse)
    monkeypatch.setattr(study.Study, "choose_means", refuse)
    study.main()
    resumed = json.loads((tmp_path / "low_dose_ct.json").read_text(encoding="utf-8"))
    assert resumed["results"] == results


def test_differences_are_between_the_same_images(study):
    """Two seeds, three images: the gain of each image is averaged over seeds before the interval."""

    def measure(finite, infinite):
        value = {"psnr": infinite, "ssim": [0.5] * 3}
        other = {"psnr": finite, "ssim": [0.5] * 3}
        return {
            "seconds": {},
            "D = 64": dict.fromkeys(study.TESTS, other),
            "D = ∞": dict.fromkeys(study.TESTS, value),
        }

    seeds = [measure([31, 42, 53], [30, 40, 50]), measure([33, 42, 51], [30, 40, 50])]
    summary = study.summarize(seeds, {})
    (row,) = summary["differences"]
    assert row["test"] == {"mean": 2.0, "margin": 0.0, "seeds": [2.0, 2.0]}
    assert summary["rows"][0]["test"]["psnr"] == [42.0, 42.0]


def test_the_supervised_network_learns_what_to_add(study):
    """Its loss is 0 where the correction is right, whatever the noise of the denoiser."""

    class Network(torch.nn.Module):
        def forward(self, sample, timestep, D, condition):
            assert not sample.any()
            assert not timestep.any()
            return type("Output", (), {"sample": torch.ones_like(sample)})

    degraded = torch.zeros(2, 1, 4, 4)
    loss = study.SupervisedLoss(None)
    assert loss(Network(), degraded + study.SCALE, None, condition=degraded).tolist() == [0, 0]
    assert loss(Network(), degraded, None, condition=degraded).tolist() == pytest.approx([1, 1])
