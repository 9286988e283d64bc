"""The studies on emoji: a network that restores them, and what cards say of the models that draw them."""

import importlib
import json
import math
import shutil
import sys

import pytest
import torch
from conftest import FIXTURES, ROOT, make_tiny_pipeline
from diffusers import DiffusionPipeline
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import save_file

from pipeline_pfgmpp import PFGMPPPipeline, PFGMPPScheduler
from pipeline_pfgmpp.hub.cards import write_model_card


DATA = FIXTURES / "emoji"
COLOUR = {
    "sample_size": 64,
    "in_channels": 3,
    "out_channels": 3,
    "label_dim": 9,
    "model_channels": 8,
    "channel_mult": (1, 1, 1),
    "attn_resolutions": (),
}


@pytest.fixture
def load_study(tmp_path, monkeypatch, one_thread, fresh_accelerator):
    """Import a study next to its neighbours, with results in a folder of the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(ROOT / "experiments")
    shutil.copytree(DATA, tmp_path / "emoji")

    def load(name):
        module = importlib.import_module(name)
        monkeypatch.setattr(module, "RESULTS", tmp_path)
        return module

    yield load
    for path in (ROOT / "experiments").glob("*.py"):
        sys.modules.pop(path.stem, None)


def test_a_network_learns_to_restore_and_is_measured_by_damage(load_study, tmp_path, monkeypatch, capsys):
    study = load_study("emoji_restore")
    monkeypatch.setattr(study, "PICTURE", tmp_path / "emoji_restore.png")
    monkeypatch.setattr(study, "DIMENSIONS", [16.0, math.inf])
    monkeypatch.setattr(study, "SIGMAS", [0.1, 1.0])
    monkeypatch.setattr(study, "EMOJI_SHOWN", 2)
    arguments = ["--data", "emoji", "--output", "run", "--steps", "2", "--batch_size", "2"]
    monkeypatch.setattr(sys, "argv", ["emoji_restore.py", *arguments, "--model", "restorer"])
    study.main()
    measurement = json.loads((tmp_path / "emoji_restore.json").read_text(encoding="utf-8"))
    results = measurement["results"]
    assert set(results["rows"]) == set(study.MEASURED)
    table = sys.modules["tables"].format_emoji_restore(results)
    assert table in capsys.readouterr().out
    assert Image.open(tmp_path / "emoji_restore.png").mode == "RGBA"

    pipe = DiffusionPipeline.from_pretrained("restorer")
    assert pipe(torch.zeros(1, 3, 64, 64), num_inference_steps=1, start_sigma=0.1).images
    card = ModelCard.load("restorer/README.md")
    assert table in card.text
    assert len(card.data.eval_results) == 12  # PSNR and SSIM of three damages at two D
    assert not list((tmp_path / "restorer").rglob("*.py"))


def test_a_model_that_copies_is_found_out(load_study, tmp_path, monkeypatch, capsys):
    """A model that returns training pictures has distances of 0, and draws their groups."""
    study = load_study("emoji_cards")
    unet = make_tiny_pipeline(**COLOUR).unet
    pipeline = PFGMPPPipeline(unet, PFGMPPScheduler(D=128))
    pipeline.save_pretrained("copier")
    write_model_card("copier", pipeline, "## Training\n\nNone.\n")
    train = study.load_images(study.load_dataset("emoji", split="train"), 64)

    def copy_training_pictures(pipeline, seeds, batch_size, name, class_labels, guidance_scale):
        assert guidance_scale == 2
        rows = (train.labels == class_labels).nonzero().flatten()
        chosen = [int(rows[seed % len(rows)]) if len(rows) else 0 for seed in seeds]
        yield seeds, torch.stack([train.images[row] for row in chosen])

    monkeypatch.setattr(study, "generate", copy_training_pictures)
    monkeypatch.setattr(
        sys, "argv", ["emoji_cards.py", "copier", "emoji", "--per-group", "2", "--guidance-scale", "2"]
    )
    study.main()
    measured = json.loads((tmp_path / "copier.json").read_text(encoding="utf-8"))["results"]
    assert measured["drawn"]["count"] == 18
    assert measured["drawn"]["median"] == 0
    assert measured["held-out emoji"]["median"] > 0.05
    card = ModelCard.load("copier/README.md").text
    assert sys.modules["tables"].format_recognition(measured) in card
    assert card.index("## Recognition and copies") < card.index("## Limits")
    assert Image.open(tmp_path / "copier" / "neighbours.png").width > 9 * 64


def test_a_reader_names_the_groups_of_pictures(load_study, tmp_path, monkeypatch, capsys):
    """Right answers are all counted; one picture that was named wrongly is counted in its own group."""
    study = load_study("emoji_names")
    unet = make_tiny_pipeline(**COLOUR).unet
    PFGMPPPipeline(unet, PFGMPPScheduler(D=128, default_steps=1)).save_pretrained("model")
    command = ["emoji_names.py", "model", "emoji", "--per-group", "2"]
    monkeypatch.setattr(sys, "argv", command)
    study.main()
    folder = tmp_path / "outputs" / "emoji_names" / "model"
    key = json.loads((folder / "key.json").read_text(encoding="utf-8"))
    assert len({picture["group"] for picture in key}) == 9
    assert Image.open(folder / "sheet-0.png").width > study.COLUMNS * study.PIXELS

    answers = [picture["group"] for picture in key]
    kind, group = key[0]["kind"], key[0]["group"]
    answers[0] = (group + 1) % 9
    (tmp_path / "answers.txt").write_text(" ".join(map(str, answers)))
    monkeypatch.setattr(sys, "argv", [*command, "--answers", "answers.txt"])
    study.main()
    measurement = json.loads((tmp_path / "model-names.json").read_text(encoding="utf-8"))
    counts = measurement["results"]["counts"]
    assert sum(shown for by_group in counts.values() for _, shown in by_group.values()) == len(key)
    missed = {
        (kind, name): shown - named
        for kind, by_group in counts.items()
        for name, (named, shown) in by_group.items()
        if named != shown
    }
    names = list(counts["drawn"])
    assert missed == {(kind, names[group]): 1}
    assert "| all | " in capsys.readouterr().out

    (tmp_path / "right.txt").write_text(" ".join(str(picture["group"]) for picture in key))
    monkeypatch.setattr(sys, "argv", [*command, "--answers", "answers.txt", "right.txt"])
    study.main()
    both = json.loads((tmp_path / "model-names.json").read_text(encoding="utf-8"))["results"]
    assert sum(shown for by_group in both["counts"].values() for _, shown in by_group.values()) == 2 * len(
        key
    )
    drawn = sum(picture["kind"] == "drawn" for picture in key)
    assert both["readings"] == [drawn - (kind == "drawn"), drawn]

    (tmp_path / "answers.txt").write_text("1 2 3")
    (tmp_path / "right.txt").unlink()
    monkeypatch.setattr(sys, "argv", [*command, "--answers", "answers.txt"])
    with pytest.raises(SystemExit):
        study.main()
    assert f"must hold {len(key)} numbers, but it holds 3." in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:The Fréchet distance of")
def test_few_calls_are_compared_with_many(load_study, tmp_path, monkeypatch, capsys):
    study = load_study("emoji_calls")
    monkeypatch.setattr(study, "PICTURE", tmp_path / "emoji_calls.png")
    monkeypatch.setattr(study, "DIMENSIONS", [128.0, math.inf])
    for name, solver_type in (("many", "dpmpp_2m"), ("fast", "consistency")):
        unet = make_tiny_pipeline(**COLOUR).unet
        scheduler = PFGMPPScheduler(D=128, solver_type=solver_type, default_steps=3)
        PFGMPPPipeline(unet, scheduler).save_pretrained(name)
    monkeypatch.setattr(sys, "argv", ["emoji_calls.py", "many", "fast", "emoji"])
    study.main()
    results = json.loads((tmp_path / "emoji_calls.json").read_text(encoding="utf-8"))["results"]
    names = [row["name"] for row in results["rows"]]
    ways = [
        "3 calls",
        "3 guided calls",
        "fast, 2 calls",
        "fast, 2 calls, the second guided",
        "fast, 1 call",
    ]
    assert names == ways
    assert all(row.keys() == {"name", "128", "∞"} for row in results["rows"])
    held_out = sys.modules["emoji_cards"].load_dataset("emoji", split="validation")
    assert results["count"] == len(held_out)
    table = sys.modules["tables"].format_emoji_calls(results)
    assert table in capsys.readouterr().out
    assert f"| 3 calls | {results['rows'][0]['128']:.5g} (1.00) |" in table
    assert Image.open(tmp_path / "emoji_calls.png").height > len(ways) * 64


@pytest.mark.filterwarnings("ignore:The Fréchet distance of")
def test_guidance_of_two_calls_is_compared_at_levels_of_the_second(load_study, tmp_path, monkeypatch, capsys):
    study = load_study("emoji_guidance")
    monkeypatch.setattr(study, "FAST_WAYS", study.FAST_WAYS[1:3])
    unet = make_tiny_pipeline(**COLOUR, label_dropout=0.1).unet
    scheduler = PFGMPPScheduler(D=128, solver_type="consistency", default_steps=2)
    PFGMPPPipeline(unet, scheduler).save_pretrained("fast")
    monkeypatch.setattr(sys, "argv", ["emoji_guidance.py", "fast", "emoji", "--per-group", "1"])
    study.main()
    results = json.loads((tmp_path / "emoji_fast_guidance.json").read_text(encoding="utf-8"))["results"]
    ways = [(row["sigmas"], row["guidance_scale"], row.get("guidance_interval")) for row in results["rows"]]
    assert ways == [([80.0, 0.5], 3.0, [0.05, 10.0]), ([80.0, 0.8], 1.0, None)]
    assert results["rows"][0]["fid"] != results["rows"][1]["fid"]
    table = sys.modules["tables"].format_emoji_guidance(results)
    assert table in capsys.readouterr().out
    assert "| second call at | guidance | at noise levels |" in table
    assert "\n| 0.5 | 3 | 0.05 to 10 |" in table
    assert "\n| 0.8 | 1 | all |" in table


@pytest.mark.filterwarnings("ignore:The Fréchet distance of")
def test_a_run_is_measured_at_several_steps(load_study, tmp_path, monkeypatch, capsys):
    study = load_study("emoji_training")
    unet = make_tiny_pipeline(**COLOUR, label_dropout=0.1).unet
    PFGMPPPipeline(unet, PFGMPPScheduler(D=128, default_steps=1)).save_pretrained("run")
    log = [
        {"step": step, "images": 64.0 * step, "loss": 1.0, "validation_loss": loss}
        for step, loss in ((2, 0.5), (4, 0.4), (6, 0.7))
    ]
    (tmp_path / "run" / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in log))
    (tmp_path / "run" / "ema").mkdir()
    weights = dict(unet.named_parameters())
    for step in (2, 6):
        scaled = {name: weight.detach() * step / 2 for name, weight in weights.items()}
        save_file(scaled, tmp_path / "run" / "ema" / f"{step}-0.1.safetensors")
    monkeypatch.setattr(
        sys, "argv",
        ["emoji_training.py", "run", "emoji", "--width", "0.1", "--steps", "2", "6", "--per-group", "1"],
    )  # fmt: skip
    study.main()
    results = json.loads((tmp_path / "emoji_training.json").read_text(encoding="utf-8"))["results"]
    assert [row["images"] for row in results["rows"]] == [128, 384]
    assert [row["validation_loss"] for row in results["rows"]] == [0.5, 0.7]
    assert results["rows"][0]["fid"] != results["rows"][1]["fid"]  # the weights of each step were loaded
    assert results["lowest"] == {"images": 256, "validation_loss": 0.4}
    assert sys.modules["tables"].format_emoji_training(results) in capsys.readouterr().out
