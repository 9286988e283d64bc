"""The study of rounded weights: it compares what it says, and resumes."""

import importlib
import json
import sys

import pytest
import torch
from conftest import ROOT


@pytest.fixture
def study(tmp_path, monkeypatch, one_thread, fresh_accelerator):
    """The study as a module, with a few random digits and results in a folder of the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(ROOT / "experiments")
    module = importlib.import_module("rounding")
    monkeypatch.setattr(module, "RESULTS", tmp_path)
    digits = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    monkeypatch.setattr(module, "load_digit_images", lambda: digits)
    yield module
    for name in ("rounding", "consistency", "tables", "small_networks"):
        del sys.modules[name]


def read_rows(folder):
    return json.loads((folder / "rounding.json").read_text(encoding="utf-8"))["results"]["rows"]


def test_the_study_rounds_every_network_and_resumes(study, tmp_path, monkeypatch, capsys):
    arguments = ["--seeds", "2", "--steps", "2", "--draws", "2", "--images", "6", "--output", "networks"]
    monkeypatch.setattr(sys, "argv", ["rounding.py", *arguments])
    monkeypatch.setattr(study, "CALLS", 2)
    study.main()
    rows = read_rows(tmp_path)
    every = [(row["bits"], row["D"]) for row in rows if row["network"] == study.EVERY]
    single = [(row["bits"], row["D"]) for row in rows if row["network"] == study.SINGLE]
    assert sorted(every) == sorted(single) == sorted((k, D) for k in (6, 5, 4) for D in ("16", "128", "∞"))
    assert all([len(values) for values in row["added"]] == [2, 2] for row in rows)
    assert all(len({*row["added"][0], *row["added"][1]}) == 4 for row in rows)  # each rounding is another one
    assert "a network per D, D = ∞ minus D = 16" in capsys.readouterr().out

    def refuse(*args, **options):
        raise AssertionError("It draws or trains again.")

    monkeypatch.setattr(sys.modules["small_networks"], "Trainer", refuse)
    monkeypatch.setattr(study, "generate", refuse)
    study.main()
    assert read_rows(tmp_path) == rows


def test_the_table_compares_within_a_network(study):
    """What both D share does not widen the interval of their difference."""
    shared = [[1.0, 3.0], [5.0, 9.0], [2.0, 2.0]]
    more = [[value + 0.5 for value in values] for values in shared]
    rows = [
        {"network": "one", "bits": 4, "D": "16", "added": shared},
        {"network": "one", "bits": 4, "D": "∞", "added": more},
    ]
    text = sys.modules["tables"].format_rounding({"rows": rows})
    assert "| one, D = 16 | 3.7 ± 2.9 |" in text
    assert "| one, D = ∞ minus D = 16 | 0.5 ± 0 (95 %) |" in text
