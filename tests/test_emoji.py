"""
Emoji as a data set: read, recognised as variants of one figure, drawn, split and written.

The list is an excerpt of Unicode's, in tests/fixtures. Where a font is not the point, a painter stands for
it. `tests/fixtures/emoji` holds the excerpt as Noto Color Emoji draws it; its card names the command that
made it.
"""

import hashlib
from pathlib import Path

import matplotlib
import numpy as np
import PIL.features
import PIL.Image
import pytest
from conftest import FIXTURES, ROOT
from datasets import load_dataset

from pipeline_pfgmpp import commands
from pipeline_pfgmpp.commands.data import EMOJI_FONT
from pipeline_pfgmpp.data import emoji, load_images, open_dataset
from pipeline_pfgmpp.data.emoji import EmojiFont, choose_split, convert_emoji, find_base, read_emoji_test


EXCERPT = FIXTURES / "emoji-test.txt"
DRAWN = FIXTURES / "emoji"
COLUMNS = ["image", "label", "subgroup", "name", "base", "emoji"]

needs_raqm = pytest.mark.skipif(not PIL.features.check("raqm"), reason="Pillow finds no FriBiDi")
needs_font = pytest.mark.skipif(
    not Path(EMOJI_FONT).is_file() or not PIL.features.check("raqm"),
    reason="needs Debian's package fonts-noto-color-emoji",
)


class Painter:
    """Stands for a font: fills a square with a colour of the emoji's own, and does not have every emoji."""

    missing = "🍕"
    same = {"🇫🇷": "🇨🇵"}

    def __init__(self, path):
        pass

    def draw(self, text):
        if text == self.missing:
            return None
        digest = hashlib.sha256(self.same.get(text, text).encode()).digest()
        return PIL.Image.new("RGB", (136, 136), tuple(digest[:3]))


@pytest.fixture
def painter(monkeypatch):
    monkeypatch.setattr(emoji, "EmojiFont", Painter)
    return "Painter"


@pytest.fixture
def font_file(tmp_path):
    """A file whose digest stands in the card; the painter does not read it."""
    path = tmp_path / "font.ttf"
    path.write_bytes(b"font")
    return path


def test_the_list_is_read_in_order_with_its_headings():
    found = read_emoji_test(EXCERPT)
    lines = EXCERPT.read_text(encoding="utf-8").splitlines()
    assert len(found) == sum("; fully-qualified" in line for line in lines)
    assert len(found) < sum(line[:1].isalnum() for line in lines)  # others are listed too, and left out
    assert found[0] == emoji.Emoji("😀", "grinning face", "Smileys & Emotion", "face-smiling")
    by_name = {each.name: each for each in found}
    man = by_name["man frowning: dark skin tone"]
    assert man.text == "\U0001f64d\U0001f3ff\u200d\u2642\ufe0f"
    assert (man.group, man.subgroup) == ("People & Body", "person-gesture")
    assert by_name["keycap: 1"].text == "1\ufe0f\u20e3"
    assert by_name["flag: England"].subgroup == "subdivision-flag"
    assert len({each.group for each in found}) == 9


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "list of emoji .*list.txt is missing: Debian's package unicode-data installs it"),
        (b"", "is not Unicode's emoji-test.txt: it lists no emoji under groups"),
        (b"1F600 ; fully-qualified # x E1.0 grinning face\n", "it lists no emoji under groups"),
        (
            b"# group: A\n# subgroup: b\n1F6G0 ; fully-qualified # x E1.0 face\n",
            "line is not understood: '1F6G0",
        ),
        (
            b"# group: A\n# subgroup: b\nFFFFFF ; fully-qualified # x E1.0 face\n",
            "not Unicode's emoji-test.txt",
        ),
        (b"\xff\xfe1\x00F\x006\x00", "is not Unicode's emoji-test.txt: 'utf-8' codec"),
    ],
    ids=["missing", "empty", "no group", "no code", "no character", "no text"],
)
def test_what_is_no_list_is_refused(content, message, tmp_path):
    path = tmp_path / "list.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_emoji_test(path)


FIGURES = [
    ["👋", "👋🏻", "👋🏿"],
    ["☝️", "☝", "☝🏽"],
    ["🧑", "👨", "👩🏿", "👨🏻", "👨‍🦰", "👩🏻‍🦳", "🧑‍🦲"],
    ["🧒", "👦🏽", "👧"],
    ["🧓", "👴🏻", "👵"],
    ["🙍", "🙍🏿‍♂️", "🙍‍♀️", "🙍‍♀"],
    ["🧑‍⚕️", "👨🏽‍⚕️", "👩‍⚕️"],
    ["🕵️", "🕵🏻‍♂️", "🕵️‍♀️"],
    ["🏋️", "🏋️‍♀️", "🏋🏿‍♂️"],
    ["🚶", "🚶🏻‍♀️", "🚶‍➡️", "🚶🏿‍♂️‍➡️"],
    ["🫅", "🤴", "👸🏿"],
    ["🫄", "🫃🏻", "🤰"],
    ["🎅", "🤶🏽", "🧑‍🎄", "🧑🏿‍🎄"],
    ["🤝", "🤝🏻", "🫱🏻‍🫲🏿"],
    ["🧑‍🤝‍🧑", "👫", "👬🏿", "👭", "👩🏻‍🤝‍👨🏿"],
    ["💑", "👩‍❤️‍👨", "🧑🏻‍❤️‍🧑🏿", "👨🏿‍❤️‍👨🏿", "💑🏽"],
    ["💏", "👨‍❤️‍💋‍👨", "👩🏻‍❤️‍💋‍👨🏿", "💏🏼"],
    ["👪", "👨‍👩‍👧", "👩‍👩‍👦", "🧑‍🧑‍🧒"],
    ["👨‍👩‍👧‍👦", "👩‍👩‍👧‍👧"],
    ["❤️", "❤"],
    ["❤️‍🔥"],
    ["♀️"],
    ["♂️"],
    ["➡️"],
    ["👶"],
    ["🐶"],
    ["🐈"],
    ["🐈‍⬛"],
    ["🐻"],
    ["🐻‍❄️"],
    ["🏳️"],
    ["🏳️‍🌈"],
    ["🏴"],
    ["🏴‍☠️"],
    ["🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f"],
    ["🏴\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f"],
    ["🇫🇷"],
    ["🇯🇵"],
    ["1️⃣"],
    ["2️⃣"],
]


def test_variants_of_one_figure_share_their_base_and_no_others():
    bases = [{find_base(text) for text in variants} for variants in FIGURES]
    assert [len(found) for found in bases] == [1] * len(FIGURES), bases
    assert len(set.union(*bases)) == len(FIGURES)


def test_the_base_of_a_base_is_itself():
    for each in read_emoji_test(EXCERPT):
        assert find_base(find_base(each.text)) == find_base(each.text)


def test_the_split_is_a_digest_of_the_figure():
    """Written down, because a model is only comparable with another one if the splits never change."""
    held_out = {
        each.name for each in read_emoji_test(EXCERPT) if choose_split(find_base(each.text)) != "train"
    }
    assert held_out == {
        "person walking", "woman walking: light skin tone", "tiger face", "red apple", "pizza", "umbrella",
        "crown", "right arrow", "Aries",
    }  # fmt: skip
    count = sum(choose_split(chr(code)) == "validation" for code in range(0x1F000, 0x1F000 + 4000))
    assert count == pytest.approx(400, abs=4 * (4000 * 0.1 * 0.9) ** 0.5)


def test_a_data_set_is_written(painter, font_file, tmp_path, capsys):
    output = tmp_path / "out"
    commands.main(["data", "emoji", str(font_file), str(EXCERPT), str(output), "--size", "16"])
    assert sorted(path.name for path in output.iterdir()) == [
        "README.md",
        "train.parquet",
        "validation.parquet",
    ]
    splits = load_dataset(str(output))
    listed = read_emoji_test(EXCERPT)
    counts = {name: len(rows) for name, rows in splits.items()}
    assert counts == {"train": len(listed) - 9, "validation": 8}
    said = capsys.readouterr().out
    assert f"Wrote {counts['train']} train emoji and 8 validation emoji" in said
    assert "left out 1 that the font does not have" in said
    rows = {row["emoji"]: row for split in splits.values() for row in split}
    assert list(rows["😀"]) == COLUMNS
    assert set(rows) == {each.text for each in listed} - {Painter.missing}
    features = splits["train"].features
    for each in listed:
        if each.text != Painter.missing:
            row = rows[each.text]
            named = features["label"].int2str(row["label"]), features["subgroup"].int2str(row["subgroup"])
            assert (row["name"], *named) == (each.name, each.group, each.subgroup)
            assert row["image"].size == (16, 16)
            assert row["image"].getpixel((8, 8)) == Painter("").draw(each.text).getpixel((0, 0))
    assert not set(splits["train"]["base"]) & set(splits["validation"]["base"])


def test_emoji_of_one_picture_are_one_figure(painter, font_file, tmp_path):
    convert_emoji(font_file, EXCERPT, tmp_path / "out", 8)
    rows = {row["emoji"]: row for row in load_dataset(str(tmp_path / "out"), split="train")}
    assert rows["🇫🇷"]["base"] == rows["🇨🇵"]["base"] == "🇨🇵"
    assert rows["🇯🇵"]["base"] == "🇯🇵"


def test_the_same_input_gives_the_same_bytes(painter, font_file, tmp_path):
    for name in ("one", "two"):
        convert_emoji(font_file, EXCERPT, tmp_path / name, 8)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name


def test_the_card_says_what_the_data_are(painter, font_file, tmp_path):
    convert_emoji(font_file, EXCERPT, tmp_path / "out", 8, "pfgmpp data emoji --size 8")
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    for expected in (
        "- ofl-1.1", "name: subgroup", "num_examples: 8", "\npfgmpp data emoji --size 8\n", "8 × 8 pixels",
        hashlib.sha256(b"font").hexdigest(), hashlib.sha256(EXCERPT.read_bytes()).hexdigest(), "Unicode 15.0",
        "| validation | 8 | 7 |",
    ):  # fmt: skip
        assert expected in card, expected
    assert str(tmp_path) not in card


def test_an_interrupted_run_leaves_what_was_there(painter, font_file, tmp_path, monkeypatch):
    output = tmp_path / "out"
    convert_emoji(font_file, EXCERPT, output, 8)
    before = {path.name: path.read_bytes() for path in output.iterdir()}

    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(emoji, "_write_card", interrupt)
    with pytest.raises(KeyboardInterrupt):
        convert_emoji(font_file, EXCERPT, output, 16)
    assert {path.name: path.read_bytes() for path in output.iterdir()} == before


def test_files_of_others_in_the_folder_stay(painter, font_file, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    convert_emoji(font_file, EXCERPT, tmp_path, 8)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_list_without_a_figure_for_a_split_is_refused(painter, font_file, tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("# group: A\n# subgroup: b\n1F600 ; fully-qualified # 😀 E1.0 face\n", encoding="utf-8")
    with pytest.raises(ValueError, match="No emoji of .*list.txt .*falls into the validation split"):
        convert_emoji(font_file, path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


NO_FONT = "nowhere.ttf is missing: Debian's package fonts-noto-color-emoji installs one."
NO_LIST = "nowhere.txt is missing: Debian's package unicode-data installs it."
LIST = str(EXCERPT)
FLAT_FONT = str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"))


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        (["nowhere.ttf", LIST, "out"], NO_FONT, 1),
        (["nowhere.ttf", "nowhere.txt", "out"], NO_LIST, 1),
        pytest.param([LIST, LIST, "out"], "must be a colour bitmap font, such as", 1, marks=needs_raqm),
        pytest.param([FLAT_FONT, LIST, "out"], "must be a font with colours, such as", 1, marks=needs_raqm),
        (["nowhere.ttf", LIST, "file"], "The output file must be a folder, but is a file.", 1),
        (["--size", "0"], "must be a whole number from 8 to 512, but is '0'", 2),
    ],
    ids=["no font", "no list", "not a font", "no colours", "a file", "size"],
)
def test_what_cannot_be_drawn_is_refused(arguments, message, code, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as stop:
        commands.main(["data", "emoji", *arguments])
    error = capsys.readouterr().err
    assert stop.value.code == code
    assert message in error
    assert len(error.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_pillow_without_raqm_is_refused(font_file, monkeypatch):
    monkeypatch.setattr(PIL.features, "check", lambda feature: feature != "raqm")
    with pytest.raises(ValueError, match="raqm .*: install Debian's package libfribidi0"):
        EmojiFont(font_file)


@pytest.fixture(scope="module")
def noto():
    return EmojiFont(EMOJI_FONT)


@needs_font
@pytest.mark.parametrize(
    "text",
    [
        "\U0010ffff",
        "a",
        "\u200d",
        "\U0001fbff",
        "🧿🏻",
        "👨\u200d🚀\u200d💡",
        "\U0001f1e6\U0001f1e6",
        "🏴\U000e0067\U000e0062\U000e0078\U000e007f",
    ],
    ids=["unassigned", "letter", "joiner", "unknown", "two", "three", "no country", "no region"],
)
def test_what_the_font_does_not_have_is_recognised(text, noto):
    assert noto.draw(text) is None


@needs_font
def test_every_emoji_of_the_excerpt_is_drawn_whole_on_white(noto):
    for each in read_emoji_test(EXCERPT):
        pixels = np.array(noto.draw(each.text))
        assert pixels.shape == (136, 136, 3), each.name
        ink = (pixels < 250).any(2)
        rows = np.flatnonzero(ink.any(1))
        columns = np.flatnonzero(ink.any(0))
        assert ink.mean() > 0.05, each.name
        # Nothing is cut, and what is narrow stands in the middle.
        for span in (rows, columns):
            assert span[0] >= 3, each.name
            assert span[-1] <= 132, each.name
        assert abs(columns[0] + columns[-1] - 135) <= 16, each.name


@needs_font
def test_skin_tones_and_genders_look_different(noto):
    variants = ["🚶", "🚶‍♀️", "🚶🏿‍♀️", "🚶🏿‍♂️"]
    assert len({noto.draw(text).tobytes() for text in variants}) == len(variants)


@needs_font
def test_the_fixture_is_what_the_font_draws(tmp_path):
    """With another version of the font its card, which holds the digest, says why it differs."""
    convert_emoji(EMOJI_FONT, EXCERPT, tmp_path, 32)
    digest = hashlib.sha256(Path(EMOJI_FONT).read_bytes()).hexdigest()
    if digest not in (DRAWN / "README.md").read_text(encoding="utf-8"):
        pytest.skip("another version of the font")
    for split in ("train", "validation"):
        made = load_dataset(str(tmp_path), split=split)
        kept = load_dataset(str(DRAWN), split=split)
        for column in COLUMNS[1:]:
            assert made[column][:] == kept[column][:], column
        for one, other in zip(made["image"], kept["image"]):
            np.testing.assert_allclose(np.array(one, int), np.array(other, int), atol=1)


def test_the_fixture_is_small_and_loads():
    assert sum(path.stat().st_size for path in DRAWN.glob("*.parquet")) < 150_000
    data = load_images(open_dataset(str(DRAWN)), resolution=32)
    assert data.images.shape == (65, 3, 32, 32)
    assert len(data.class_names) == 9
    assert data.class_names[0] == "Smileys & Emotion"
    assert len(data.labels) == 65


def test_groups_are_the_classes_and_subgroups_are_chosen_by_name():
    validation = open_dataset(str(DRAWN), split="validation")
    groups = load_images(validation, resolution=8)
    subgroups = load_images(validation, resolution=8, label_column="subgroup")
    assert groups.class_names == validation.features["label"].names
    assert subgroups.class_names == validation.features["subgroup"].names
    assert groups.labels.tolist() == validation["label"][:]
    assert subgroups.labels.tolist() == validation["subgroup"][:]


def test_the_packages_stand_in_the_makefile():
    """`make data` and the tests on a fresh machine look for the files where the command does."""
    text = (ROOT / "Makefile").read_text()
    assert f"EMOJI_FONT := {EMOJI_FONT}\n" in text
    assert f"EMOJI_NAMES := {commands.data.EMOJI_NAMES}\n" in text
