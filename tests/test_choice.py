"""`pfgmpp choose-D`: which D is best, and whether that is beyond doubt."""

import contextlib
import json
import math

import datasets
import numpy as np
import pytest
import scipy.stats
import torch
from conftest import make_tiny_pipeline

from pipeline_pfgmpp import commands
from pipeline_pfgmpp.evaluation.choice import choose_best, compute_quantile, format_choice
from pipeline_pfgmpp.generation.generate import draw_class, generate, round_to_bytes


@pytest.mark.parametrize("degrees", [1, 2, 4, 9, 100, 9999])
@pytest.mark.parametrize("confidence", [0.5, 0.95, 1 - 0.05 / 10, 1 - 0.05 / 45])
def test_the_quantile_is_that_of_student(confidence, degrees):
    expected = scipy.stats.t.ppf((1 + confidence) / 2, degrees)
    assert compute_quantile(confidence, degrees) == pytest.approx(expected, rel=0.01)


def draw_distances(shifts, groups, rng, spread=0.1):
    """Distances at each D: what the seeds of a group add is common to all, and large."""
    common = 5 * torch.randn(groups, generator=rng)
    own = spread * torch.randn(len(shifts), groups, generator=rng)
    rows = 20 + common + own + torch.tensor(shifts)[:, None]
    return dict(zip(("16", "128", "2048", "∞"), rows.tolist()))


def test_the_best_is_found_beneath_the_noise_of_the_seeds():
    """Each distance is uncertain by 5, and what D changes is a tenth of that."""
    distances = draw_distances([0.5, 0.0, 0.7, 1.5], 10, torch.Generator().manual_seed(0))
    choice = choose_best(distances)
    assert choice.best == "128"
    assert not choice.rivals
    assert choice.differences["∞"].mean == pytest.approx(1.5, abs=0.2)
    assert str(choice).startswith("D = 128 is the best beyond doubt: D = 16 comes next, and adds 0.")


def test_equal_dimensions_have_no_winner_and_a_bound():
    distances = draw_distances([0.0, 0.0, 0.0, 2.0], 10, torch.Generator().manual_seed(1))
    choice = choose_best(distances)
    assert {choice.best, *choice.rivals} == {"16", "128", "2048"}
    assert 0.05 < choice.within < 0.5
    text = format_choice(choice, distances, "KID")
    assert text.startswith(f"| images | KID | more than D = {choice.best} |\n|---|---|---|\n| D = 16 |")
    assert f"within ± {choice.within:.2g}; D = ∞ is worse beyond doubt." in text


def test_no_winner_is_declared_among_equals_more_often_than_promised():
    """In 400 draws of four equal D, at most 5 % name a best one, or rule one out."""
    rng = torch.Generator().manual_seed(2)
    wrong = 0
    for _ in range(400):
        choice = choose_best(draw_distances([0.0] * 4, 5, rng))
        wrong += len(choice.rivals) < 3
    assert wrong <= 400 * 0.05 + 3 * math.sqrt(400 * 0.05 * 0.95)
    # The interval of a single pair would.
    rng = torch.Generator().manual_seed(2)
    assert sum(len(choose_best(draw_distances([0.0] * 4, 5, rng), 0.7).rivals) < 3 for _ in range(400)) > 33


def test_the_bound_holds():
    """The true difference between the D that cannot be told apart lies within the bound."""
    rng = torch.Generator().manual_seed(3)
    shifts = {"16": 0.0, "128": 0.1, "2048": 0.2, "∞": 0.3}
    outside = 0
    for _ in range(300):
        choice = choose_best(draw_distances(list(shifts.values()), 5, rng, spread=0.3))
        left = [shifts[D] for D in (choice.best, *choice.rivals)]
        outside += max(left) - min(left) > choice.within + 1e-9 and len(left) > 1
    assert outside <= 300 * 0.05 + 3 * math.sqrt(300 * 0.05 * 0.95)


@pytest.mark.parametrize(
    "distances", [{}, {"16": [1.0, 2.0]}, {"16": [1.0], "∞": [2.0]}, {"1": [1, 2], "2": [1]}]
)
def test_what_cannot_be_compared_is_refused(distances):
    with pytest.raises(ValueError, match="`distances` must hold at least two D"):
        choose_best(distances)


@pytest.fixture
def run_command(fashion_mnist, tmp_path, monkeypatch, capsys):
    """Run the command on a tiny model in an empty folder; return what it prints."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")

    def run(pipeline, *options):
        pipeline.save_pretrained(tmp_path / "model")
        few = ["--num-images", "6", "--num-inference-steps", "1", "--data", str(fashion_mnist)]
        with contextlib.suppress(SystemExit):
            commands.main(["choose-D", "model", *few, *options])
        return capsys.readouterr()

    return run


@pytest.mark.filterwarnings("ignore:The Fréchet distance of")
def test_the_command_measures_the_same_seeds_at_each_d(run_command, tmp_path):
    out = run_command(make_tiny_pipeline(), "--groups", "3", "--D", "16,inf").out
    assert "| images | Fréchet distance | more than D = " in out
    (path,) = tmp_path.glob("outputs/choice/model-*/choice.json")
    report = json.loads(path.read_text())
    assert report["choice"] == out.strip().splitlines()[-1]
    assert [entry["D"] for entry in report["results"]] == ["16", "∞"]
    assert all(len(entry["fid"]) == 3 for entry in report["results"])
    for D in ("16", "∞"):
        names = sorted(each.name for each in tmp_path.glob(f"outputs/samples/model-*/D-{D}/*.png"))
        assert len(names) == 18
    assert str(tmp_path) not in path.read_text()


def test_the_default_is_what_the_network_was_trained_for(run_command, tmp_path):
    pipeline = make_tiny_pipeline()
    pipeline.scheduler.register_to_config(D_range=[100, None])
    out = run_command(pipeline, "--groups", "2", "--metric", "kid").out
    assert "| images | KID | more than D = " in out
    assert "D = 16" not in out
    (folder,) = tmp_path.glob("outputs/samples/model-*")
    assert sorted(each.name for each in folder.iterdir() if each.is_dir()) == ["D-128", "D-2048", "D-∞"]


@pytest.mark.parametrize(
    ("network", "options", "message"),
    [
        ({"d_conditioning": False}, [], "There is no D to choose: this network was trained at D = 128 only"),
        ({}, ["--D", "16"], "--D must name two or more augmented dimensions"),
        ({}, ["--groups", "1"], "--groups must be at least 2, for the error of a difference, but is 1"),
        ({}, ["--D", "16,0.1"], "`D` must be at least 0.5"),
        ({}, ["--metric", "recall"], "argument --metric: invalid choice: 'recall'"),
    ],
)
def test_what_cannot_be_chosen_from_is_refused_before_anything_is_drawn(
    run_command, tmp_path, network, options, message
):
    errors = run_command(make_tiny_pipeline(**network), *options).err
    assert message in errors
    assert "Traceback" not in errors
    assert not (tmp_path / "outputs").exists()


@pytest.mark.filterwarnings("ignore:The Fréchet distance of")
def test_classes_are_drawn_as_often_as_the_data_hold_them(run_command, fashion_mnist, tmp_path):
    pipeline = make_tiny_pipeline(label_dim=10)
    names = datasets.load_dataset(str(fashion_mnist), split="test").features["label"].names
    names = [name.upper().replace("/", " - ") for name in names]  # the same classes, spelled otherwise
    pipeline.register_to_config(id2label={str(number): name for number, name in enumerate(names)})
    run_command(pipeline, "--groups", "2", "--D", "16,inf", "--match-classes")
    (path,) = tmp_path.glob("outputs/choice/model-*/choice.json")
    labels = datasets.load_dataset(str(fashion_mnist), split="test")["label"]
    assert (
        json.loads(path.read_text())["settings"]["class_weights"]
        == np.bincount(labels, minlength=10).tolist()
    )


def test_an_image_keeps_its_class_and_its_seed_when_classes_are_weighted():
    pipeline = make_tiny_pipeline(label_dim=3)
    weights = [1, 0, 3]
    seeds = list(range(8))
    drawn = [draw_class(weights, seed) for seed in range(2000)]
    assert np.bincount(drawn) / 2000 == pytest.approx([0.25, 0, 0.75], abs=0.04)
    together = next(generate(pipeline, seeds, 8, None, class_weights=weights, num_inference_steps=1))[1]
    labels = [drawn[seed] for seed in seeds]
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    asked = pipeline(
        8, generator=generators, class_labels=labels, num_inference_steps=1, output_type="pt"
    ).images
    torch.testing.assert_close(together, round_to_bytes(asked, None), rtol=0, atol=1)
    other = pipeline(8, generator=generators, class_labels=0, num_inference_steps=1, output_type="pt").images
    assert (round_to_bytes(other, None).int() - together.int()).abs().max() > 2
    apart = [
        next(generate(pipeline, [seed], 1, None, class_weights=weights, num_inference_steps=1))[1]
        for seed in seeds
    ]
    torch.testing.assert_close(together, torch.cat(apart), rtol=0, atol=1)


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        ([], ["--match-classes"], "--match-classes needs a model and data that both have classes"),
        (["Shoe"], ["--match-classes"], "the model does not know the class 'Ankle boot' of the data"),
        (["Shoe"], ["--match-classes", "--class-label", "Shoe"], "--match-classes draws all classes, and"),
    ],
)
def test_classes_that_are_not_the_models_are_refused(run_command, tmp_path, names, options, message):
    pipeline = make_tiny_pipeline(label_dim=len(names))
    if names:
        pipeline.register_to_config(id2label={str(number): name for number, name in enumerate(names)})
    errors = run_command(pipeline, *options).err
    assert message in errors
    assert not (tmp_path / "outputs").exists()
