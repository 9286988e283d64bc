"""Model cards: valid, true to their models, and generated."""

import re

import pytest
import yaml
from conftest import ROOT
from diffusers import DiffusionPipeline
from huggingface_hub import ModelCard

from pipeline_pfgmpp.cards import PUBLISHED, number, write_model_card, write_published_cards


CARDS = ROOT / "model_cards"
BUNDLED = CARDS / "pfgmpp-fashion-mnist"


@pytest.mark.parametrize("path", sorted(CARDS.glob("*/README.md")), ids=lambda path: path.parent.name)
def test_every_card_is_complete(path):
    card = ModelCard.load(path)
    data = card.data.to_dict()
    assert data["library_name"] == "diffusers"
    assert data["pipeline_tag"] == "unconditional-image-generation"
    assert data["license"] in ("apache-2.0", "cc-by-nc-sa-4.0")
    assert {"pfgmpp", "diffusion"} <= set(data["tags"])
    assert data["datasets"]
    assert card.data.model_name == path.parent.name
    assert card.data.eval_results
    for result in card.data.eval_results:
        assert re.search(rf"\| {result.metric_value:.5g}0* ", card.text)  # front matter and table say the same
    for section in ("Use", "Training", "Evaluation", "Limits", "Licence", "Citation"):
        assert re.search(rf"^## {section}$", card.text, re.MULTILINE), section
    assert "trust_remote_code=True" in card.text
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", card.text):
        assert (path.parent / picture).is_file()


def test_published_cards_are_generated_and_hold_no_weights(tmp_path):
    write_published_cards(tmp_path)
    for name, _, D, classes, (dataset, _), file, fid, _ in PUBLISHED:
        text = (tmp_path / name / "README.md").read_text()
        assert (CARDS / name / "README.md").read_text() == text, "run python -m pipeline_pfgmpp.cards model_cards"
        assert [each.name for each in (CARDS / name).iterdir()] == ["README.md"]
        assert f"D = {number(D)}" in text
        assert f"pfgmpp convert {file} {name}" in text
        assert f"| {fid} |" in text
        assert "the paper's number, not measured here" in text
        assert dataset in text
        assert text.startswith("---\n")
        assert ("Class-conditional" in text) == bool(classes)
    assert (CARDS / "collection.yaml").read_text() == (tmp_path / "collection.yaml").read_text()
    items = yaml.safe_load((CARDS / "collection.yaml").read_text())["items"]
    assert {item["item_id"] for item in items} == {f"org/{path.parent.name}" for path in CARDS.glob("*/README.md")}


def test_the_card_of_a_network_for_every_d_says_so(tmp_path):
    pipe = DiffusionPipeline.from_pretrained(BUNDLED)
    pipe.unet.register_to_config(d_conditioning=True)
    assert pipe.unet.config["d_conditioning"]
    write_model_card(tmp_path, pipe, "## Training\n\nNone.")
    text = (tmp_path / "README.md").read_text()
    assert "any augmented dimension D" in text
    assert "`D=` picks the augmented dimension" in text
    assert "Not stated: that of the data" in text
