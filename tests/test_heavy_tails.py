"""The study of heavy tails: its measures have the values that they must have, and it resumes."""

import functools
import importlib
import json
import sys

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image


@pytest.fixture
def study(tmp_path, monkeypatch, one_thread, fresh_accelerator):
    """The study as a module next to its neighbours, with results in a folder of the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(ROOT / "experiments")
    module = importlib.import_module("heavy_tails")
    monkeypatch.setattr(module, "RESULTS", tmp_path)
    monkeypatch.setattr(module, "PICTURE", tmp_path / "heavy_tails.png")
    yield module
    for name in ("heavy_tails", "tables", "small_networks"):
        del sys.modules[name]


def make_pareto(count, index, seed=0):
    return np.sort(np.random.default_rng(seed).pareto(index, count) + 1)


def test_the_tails_of_known_laws(study):
    data = make_pareto(1_000_000, 4)
    same = study.describe_tails(make_pareto(1_000_000, 4, seed=1), data)
    assert same["index"] == pytest.approx(4, abs=4 * 4 / 1000**0.5)  # Hill's estimate of 1,000 values
    assert same["percentile"] == pytest.approx(10, rel=0.05)  # P(x > 10) = 10⁻⁴
    assert same["extremes"] == pytest.approx(1, abs=4 / 100**0.5)
    assert same["distance"] < 0.03
    light = study.describe_tails(make_pareto(1_000_000, 8, seed=1), data)
    assert light["index"] == pytest.approx(8, abs=8 * 4 / 1000**0.5)
    assert light["extremes"] < 0.1
    assert light["distance"] > 0.2


def test_the_fields_have_the_tails_that_they_are_said_to_have(study):
    values = study.sort_magnitudes(study.make_fields(200_000, seed=0))
    assert study.describe_tails(values, values)["index"] == pytest.approx(study.TAIL_INDEX, rel=0.15)


def test_the_study_resumes(study, tmp_path, monkeypatch, capsys):
    arguments = ["--seeds", "2", "--steps", "2", "--fields", "64", "--drawn", "40", "--output", "networks"]
    monkeypatch.setattr(sys, "argv", ["heavy_tails.py", *arguments])
    quick = functools.partial(study.generate_values, num_inference_steps=2)
    monkeypatch.setattr(study, "generate_values", quick)
    study.main()
    results = json.loads((tmp_path / "heavy_tails.json").read_text(encoding="utf-8"))["results"]
    assert [row["name"] for row in results["rows"]] == ["data", "D = 4", "D = 16", "D = ∞"]
    assert all(len(row["index"]) == 2 for row in results["rows"])
    assert sys.modules["tables"].format_heavy_tails(results) in capsys.readouterr().out
    assert Image.open(tmp_path / "heavy_tails.png").width == 660

    def refuse(*args, **options):
        raise AssertionError("It trains again.")

    monkeypatch.setattr(sys.modules["small_networks"], "Trainer", refuse)
    study.main()
    resumed = json.loads((tmp_path / "heavy_tails.json").read_text(encoding="utf-8"))["results"]
    assert resumed == results
