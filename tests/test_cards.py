"""Model cards: valid, true to their models, and generated."""

import re
import runpy

import pytest
import torch
import yaml
from conftest import ROOT
from diffusers import DiffusionPipeline
from huggingface_hub import ModelCard

from pipeline_pfgmpp import EmpiricalDenoiser, PFGMPPPipeline, PFGMPPScheduler
from pipeline_pfgmpp.hub.cards import describe_base, put_section, write_model_card
from pipeline_pfgmpp.records.commands import format_command
from pipeline_pfgmpp.records.dimensions import format_dimension


CARDS = ROOT / "model_cards"
BUNDLED = CARDS / "pfgmpp-fashion-mnist"


@pytest.mark.parametrize("path", sorted(CARDS.glob("*/README.md")), ids=lambda path: path.parent.name)
def test_every_card_is_complete(path):
    card = ModelCard.load(path)
    data = card.data.to_dict()
    assert data["library_name"] == "diffusers"
    assert data["pipeline_tag"] in ("unconditional-image-generation", "image-to-image")
    assert data["license"] in ("apache-2.0", "cc-by-nc-sa-4.0")
    assert {"pfgmpp", "diffusion"} <= set(data["tags"])
    assert data["datasets"]
    assert card.data.model_name == path.parent.name
    assert card.data.eval_results
    for result in card.data.eval_results:
        assert re.search(
            rf"\| {result.metric_value:.5g}0* ", card.text
        )  # front matter and table say the same
    for section in ("Use", "Training", "Evaluation", "Limits", "Licence", "Citation"):
        assert re.search(rf"^## {section}$", card.text, re.MULTILINE), section
    assert "trust_remote_code=True" in card.text
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", card.text):
        assert (path.parent / picture).is_file()


def test_published_cards_are_generated_and_hold_no_weights(tmp_path):
    script = runpy.run_path(str(ROOT / "experiments" / "published_cards.py"))
    script["write_published_cards"](tmp_path)
    for checkpoint in script["PUBLISHED"]:
        folder = CARDS / checkpoint.name
        text = (tmp_path / checkpoint.name / "README.md").read_text()
        assert (folder / "README.md").read_text() == text, "run python experiments/published_cards.py"
        assert [each.name for each in folder.iterdir()] == ["README.md"]
        assert f"D = {format_dimension(checkpoint.D)}" in text
        assert f"pfgmpp convert {checkpoint.file} {checkpoint.name}" in text
        assert f"| {checkpoint.fid} |" in text
        assert "This is the paper's figure; it was not measured here." in text
        assert checkpoint.dataset in text
        assert text.startswith("---\n")
        assert ("Class-conditional" in text) == bool(checkpoint.num_classes)
    assert (CARDS / "collection.yaml").read_text() == (tmp_path / "collection.yaml").read_text()
    items = yaml.safe_load((CARDS / "collection.yaml").read_text())["items"]
    assert {item["item_id"] for item in items} == {
        f"org/{path.parent.name}" for path in CARDS.glob("*/README.md")
    }


def test_the_card_of_a_network_for_every_d_says_so(tmp_path):
    pipe = DiffusionPipeline.from_pretrained(BUNDLED)
    pipe.unet.register_to_config(d_conditioning=True)
    assert pipe.unet.config["d_conditioning"]
    write_model_card(tmp_path, pipe, "## Training\n\nNone.")
    text = (tmp_path / "README.md").read_text()
    assert "any augmented dimension D" in text
    assert "`D=` selects the augmented dimension" in text
    assert "Not stated: it depends on the data" in text


@pytest.mark.parametrize("path", sorted(CARDS.glob("*/README.md")), ids=lambda path: path.parent.name)
def test_a_card_says_where_its_model_lies(path):
    name = path.parent.name
    use = path.read_text().split("\n## Use\n")[1].split("```python")[0]
    if "## Weights" in path.read_text():  # of a published checkpoint, which is converted first
        assert "the folder that the command under [Weights](#weights) writes" in use
    else:
        assert f"in a clone of the package write `model_cards/{name}`" in use
        assert f"`org/{name}`" in use


@pytest.mark.parametrize("path", sorted(CARDS.glob("*/README.md")), ids=lambda path: path.parent.name)
def test_a_card_points_to_what_measures_its_model(path):
    """`pfgmpp robustness` refuses models that restore; where robustness was measured, the card has it."""
    text = path.read_text()
    offers_robustness = "something to measure (`pfgmpp robustness`)" in text
    if "pipeline_tag: image-to-image" in text:
        assert not offers_robustness
        assert "[Evaluation](#evaluation)" in text
    elif "`D=` selects the augmented dimension" in text:
        assert offers_robustness != ("## Robustness" in text)
        assert ("[Robustness](#robustness)" in text) == ("## Robustness" in text)


def test_measured_robustness_takes_the_place_of_the_advice_to_measure_it(tmp_path):
    write_model_card(tmp_path, DiffusionPipeline.from_pretrained(BUNDLED), "## Training\n\nNone.")
    card = ModelCard.load(tmp_path / "README.md")
    assert "(`pfgmpp robustness`)" in card.text
    put_section(card, "Robustness", "A table.")
    assert "(`pfgmpp robustness`)" not in card.text
    assert "For this network, see [Robustness](#robustness)." in card.text


def test_the_card_of_a_rectangular_network_names_both_sides(tmp_path):
    """The number of data dimensions was the square of a pair."""
    pipe = PFGMPPPipeline(EmpiricalDenoiser(torch.zeros(1, 2, 24, 40)), PFGMPPScheduler(D=16))
    write_model_card(tmp_path, pipe, "## Training\n\nNone.")
    text = (tmp_path / "README.md").read_text()
    assert "Unconditional image generation at 24×40 (height × width) pixels of 2 channels with" in text
    assert "N = 1,920 data dimensions" in text


@pytest.mark.parametrize(
    ("argument", "shown"),
    [
        ("/srv/someone/data set", "'data set'"),
        ("--train_data_dir=/srv/someone/clothes/", "--train_data_dir=clothes"),
        ("~/models/clothes", "clothes"),
        ("~", "'~'"),
        ("../../elsewhere/clothes", "clothes"),
        ("data/../../elsewhere/clothes", "clothes"),
        (r"C:\Users\someone\clothes", "clothes"),
        ("--output_dir=C:/Users/someone/clothes", "--output_dir=clothes"),
        (r"\\server\share\clothes", "clothes"),
        ("file:///home/someone/clothes", "clothes"),
        ("/srv/one,/srv/two", "one,two"),
        ("data/clothes", "data/clothes"),
        ("org/name", "org/name"),
        ("https://host/org/name", "https://host/org/name"),
        ("--D=16:inf", "--D=16:inf"),
        ("it's", "'it'\"'\"'s'"),
    ],
)
def test_a_command_is_shown_without_folders_of_this_machine(argument, shown):
    assert format_command("accelerate launch /home/someone/train.py", [argument, "--D", "8"]) == (
        f"accelerate launch train.py {shown} --D 8"
    )


def test_the_home_is_not_named(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "someone"))
    assert format_command("pfgmpp", [str(tmp_path / "someone"), "~"]) == "pfgmpp '~' '~'"


def test_a_base_model_is_named_by_its_card_and_with_its_licence(tmp_path):
    assert describe_base(str(BUNDLED)) == {"base_model": "pfgmpp-fashion-mnist", "license": "apache-2.0"}
    folder = tmp_path / "someones" / "model"
    folder.mkdir(parents=True)
    assert describe_base(str(folder)) == {"base_model": "model"}
    for text in ("---\nlicense: [", "no front matter"):
        (folder / "README.md").write_text(text)
        assert describe_base(str(folder)) == {"base_model": "model"}
    (folder / "README.md").write_text(
        "---\nlicense: other\nlicense_name: house\nlicense_link: https://host/text\n---\n"
    )
    base = describe_base(str(folder))
    assert base == {
        "base_model": "model", "license": "other", "license_name": "house", "license_link": "https://host/text"
    }  # fmt: skip
    write_model_card(folder, DiffusionPipeline.from_pretrained(BUNDLED), "## Training\n\nNone.", **base)
    assert "The weights are under [house](https://host/text)." in (folder / "README.md").read_text()
    assert ModelCard.load(folder / "README.md").data.base_model == "model"


def test_several_licences_are_named(tmp_path):
    write_model_card(
        tmp_path, DiffusionPipeline.from_pretrained(BUNDLED), "## Training", license=["mit", "cc-by-4.0"]
    )
    assert "The weights are under mit, cc-by-4.0." in (tmp_path / "README.md").read_text()
