"""
Emoji of a colour font as a data set: pictures, names, groups and subgroups, in parquet files that `datasets`
loads.

Debian's package fonts-noto-color-emoji installs the font, and unicode-data the list of all emoji.
"""

import contextlib
import hashlib
import io
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import PIL.features
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
from tqdm.auto import tqdm

from ..records.digests import digest_file
from ..records.writing import replace_file


if TYPE_CHECKING:
    import datasets

FONT_SIZE = 109  # the only size of colour bitmap fonts, in pixels
JOINER = "\u200d"
STYLE = "\ufe0f"  # asks for a picture instead of a letter
SKIN_TONES = "\U0001f3fb\U0001f3fc\U0001f3fd\U0001f3fe\U0001f3ff"
# What is joined to a figure and leaves it the same: signs of gender, hair, and walking to the right.
ATTRIBUTES = {"\u2640", "\u2642", "\U0001f9b0", "\U0001f9b1", "\U0001f9b2", "\U0001f9b3", "\u27a1"}
NEUTRAL_PARTS = {
    "👨": "🧑", "👩": "🧑", "👦": "🧒", "👧": "🧒", "👴": "🧓", "👵": "🧓",
    "🤴": "🫅", "👸": "🫅", "🤰": "🫄", "🫃": "🫄",
}  # fmt: skip
# Figures of several people have a character of their own, some of them only without skin tones.
NEUTRAL_FIGURES = {
    "👪": f"🧑{JOINER}🧑{JOINER}🧒",
    "👫": f"🧑{JOINER}🤝{JOINER}🧑",
    "👬": f"🧑{JOINER}🤝{JOINER}🧑",
    "👭": f"🧑{JOINER}🤝{JOINER}🧑",
    "🎅": f"🧑{JOINER}🎄",
    "🤶": f"🧑{JOINER}🎄",
    f"🧑{JOINER}❤{JOINER}🧑": "💑",
    f"🧑{JOINER}❤{JOINER}💋{JOINER}🧑": "💏",
    f"🫱{JOINER}🫲": "🤝",
}
VALIDATION_SHARE = 0.1
UNKNOWN_FLAG = "\U0001f1e6\U0001f1e6"  # of a country AA, which never will be
NEVER_ASSIGNED = "\U0010ffff"
CARD = """\
# Emoji

{count:,} emoji as pictures of {size} × {size} pixels on white, drawn with the font Noto Color Emoji, with
their names, groups and subgroups. Made with `pipeline-pfgmpp`:

```bash
sudo apt-get install fonts-noto-color-emoji unicode-data
{command}
```

| column | what it holds |
| --- | --- |
| `image` | the picture |
| `label` | one of the {groups} groups |
| `subgroup` | one of the {subgroups} subgroups |
| `name` | the name, such as "{name}" |
| `base` | the emoji without skin tone, gender and hair: the same for all variants of one figure |
| `emoji` | the characters |

| split | emoji | figures |
| --- | --- | --- |
{splits}

All variants of one figure are in one split, which a digest of `base` chooses. Emoji that the font draws as
one picture, such as the flags of France and of Clipperton Island, share their `base` too.

## Sources and licences

- The pictures are those of Noto Color Emoji, copyright Google Inc., under the
  [SIL Open Font License 1.1](https://openfontlicense.org): `{font}`, SHA-256
  `{font_digest}`.
- The names and groups are those of Unicode{version}, copyright Unicode, Inc., under the
  [Unicode licence](https://www.unicode.org/license.txt): `{names}`, SHA-256
  `{names_digest}`.
"""


@dataclass(frozen=True)
class Emoji:
    """
    An emoji as Unicode lists it.

    Args:
        text (`str`): Its characters.
        name (`str`): Its name, such as `"waving hand: dark skin tone"`.
        group (`str`): Its group, such as `"People & Body"`.
        subgroup (`str`): Its subgroup, such as `"hand-fingers-open"`.
    """

    text: str
    name: str
    group: str
    subgroup: str


def read_emoji_test(path: str | os.PathLike) -> list[Emoji]:
    """
    Read the fully qualified emoji of Unicode's file emoji-test.txt.

    Args:
        path (`str` or `os.PathLike`): The file.

    Returns:
        `list[Emoji]`: The emoji, in the order of the file.

    Raises:
        ValueError: The file is missing, lists no emoji, or is not such a file.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"The list of emoji {path} is missing: Debian's package unicode-data installs it.")
    entry = re.compile(r"([0-9A-F]{1,6}(?: [0-9A-F]{1,6})*) *; fully-qualified *# \S+ E[0-9.]+ (.+)")
    headings = {"group": "", "subgroup": ""}
    found = []
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            heading = re.fullmatch(r"# (group|subgroup): (.+)", line)
            match = entry.fullmatch(line)
            if heading:
                headings[heading[1]] = heading[2]
            elif match:
                text = "".join(chr(int(code, 16)) for code in match[1].split())
                found.append(Emoji(text, match[2], **headings))
            elif "; fully-qualified" in line and not line.startswith("#"):
                raise ValueError(f"this line is not understood: {line!r}")
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{path} is not Unicode's emoji-test.txt: {error}") from None
    if not found or not all(emoji.group and emoji.subgroup for emoji in found):
        raise ValueError(f"{path} is not Unicode's emoji-test.txt: it lists no emoji under groups.")
    return found


def find_base(text: str) -> str:
    """
    Find the figure that an emoji is a variant of.

    Args:
        text (`str`): The characters of an emoji.

    Returns:
        `str`: The same for all its skin tones, genders and colours of hair.
    """
    plain = re.sub(f"[{SKIN_TONES}{STYLE}]", "", text)
    first, *others = plain.split(JOINER)
    parts = [first, *(part for part in others if part not in ATTRIBUTES)]
    figure = JOINER.join(NEUTRAL_PARTS.get(part, part) for part in parts)
    return NEUTRAL_FIGURES.get(figure, figure)


def choose_split(base: str) -> str:
    """
    Choose the split of a figure by a digest, so that no other figure has a say in it.

    Args:
        base (`str`): The figure, as [`find_base`] returns it.

    Returns:
        `str`: `"validation"` for a tenth of the figures, else `"train"`.
    """
    digest = hashlib.sha256(base.encode()).digest()
    share = int.from_bytes(digest[:8], "big") / 2**64
    return "validation" if share < VALIDATION_SHARE else "train"


class EmojiFont:
    """
    Draws emoji with a colour bitmap font.

    Args:
        path (`str` or `os.PathLike`): The font.

    Raises:
        ValueError: The font is missing or has no colours, or Pillow cannot compose emoji.
    """

    def __init__(self, path: str | os.PathLike):
        package = "such as that of Debian's package fonts-noto-color-emoji"
        if not PIL.features.check("raqm"):
            raise ValueError("Pillow needs raqm to compose emoji: install Debian's package libfribidi0.")
        if not Path(path).is_file():
            raise ValueError(
                f"The font {path} is missing: Debian's package fonts-noto-color-emoji installs one."
            )
        try:
            self.font = PIL.ImageFont.truetype(path, FONT_SIZE, layout_engine=PIL.ImageFont.Layout.RAQM)
        except OSError as error:
            raise ValueError(f"{path} must be a colour bitmap font, {package}: {error}") from None
        self.advance = self.font.getlength("😀")
        self.box = self.font.getbbox("😀")
        red, green, blue = self._draw("😀").split()
        if red == green == blue:
            raise ValueError(f"{path} must be a font with colours, {package}.")
        self.unknown = {self._draw(text).tobytes() for text in (NEVER_ASSIGNED, UNKNOWN_FLAG)}

    def draw(self, text: str) -> PIL.Image.Image | None:
        """
        Draw an emoji at the size of the font, on white.

        Args:
            text (`str`): The characters of the emoji.

        Returns:
            `PIL.Image.Image`: A square in RGB; None if the font does not have the emoji.
        """
        if self.font.getlength(text) > 1.5 * self.advance:  # its parts are drawn side by side
            return None
        image = self._draw(text)
        if image.tobytes() in self.unknown:
            return None
        has_tags = any("\U000e0020" <= character <= "\U000e007f" for character in text)
        if has_tags and image.tobytes() == self._draw(text[0]).tobytes():  # tags are invisible
            return None
        return image

    def _draw(self, text: str) -> PIL.Image.Image:
        left, top, right, bottom = self.box
        side = round(max(right - left, bottom - top))
        image = PIL.Image.new("RGB", (side, side), "white")
        corner = ((side - left - right) / 2, (side - top - bottom) / 2)
        PIL.ImageDraw.Draw(image).text(corner, text, fill="black", font=self.font, embedded_color=True)
        return image


def convert_emoji(
    font: str | os.PathLike,
    names: str | os.PathLike,
    output: str | os.PathLike,
    size: int = 64,
    command: str = "pfgmpp data emoji",
) -> dict[str, int]:
    """
    Write `train.parquet`, `validation.parquet` and the data set's card, `README.md`.

    The columns are `image`, `label` (the group), `subgroup`, `name`, `base` (see [`find_base`]) and `emoji`.

    Args:
        font (`str` or `os.PathLike`): A colour bitmap font.
        names (`str` or `os.PathLike`): Unicode's emoji-test.txt.
        output (`str` or `os.PathLike`): Folder to write to; it is created if it is missing.
        size (`int`, defaults to 64): Height and width of the pictures, in pixels.
        command (`str`, defaults to `"pfgmpp data emoji"`): The command that made the data set, for its card.

    Returns:
        `dict[str, int]`: Number of emoji in each split, and as `left_out` the number of those that the font
            does not have.

    Raises:
        ValueError: A file is missing or not what it should be, `output` is a file, or no emoji is left for a
            split.
    """
    folder = Path(output)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"The output {output} must be a folder, but is a file.")
    emoji = read_emoji_test(names)
    splits = _draw_splits(emoji, EmojiFont(font), size)
    for split, rows in splits.items():
        if not rows:
            raise ValueError(f"No emoji of {names} that {font} can draw falls into the {split} split.")
    features = _make_features(emoji)
    with contextlib.ExitStack() as stack:
        for split, rows in splits.items():
            partial = stack.enter_context(replace_file(folder / f"{split}.parquet"))
            _make_dataset(rows, features).to_parquet(partial)
        partial = stack.enter_context(replace_file(folder / "README.md"))
        partial.write_text(_write_card(splits, features, font, names, size, command), encoding="utf-8")
    sizes = {split: len(rows) for split, rows in splits.items()}
    return {**sizes, "left_out": len(emoji) - sum(sizes.values())}


def _draw_splits(emoji: list[Emoji], font: EmojiFont, size: int) -> dict[str, list[dict]]:
    """Draw emoji, and collect the rows of each split."""
    splits: dict[str, list[dict]] = {"train": [], "validation": []}
    bases: dict[bytes, str] = {}
    for each in tqdm(emoji, desc="Drawing emoji", unit="emoji"):
        image = font.draw(each.text)
        if image is None:
            continue
        # Emoji of one picture, such as the flags of Norway and of Bouvet Island, are one figure.
        base = bases.setdefault(image.tobytes(), find_base(each.text))
        file = io.BytesIO()
        image.resize((size, size), PIL.Image.Resampling.LANCZOS).save(file, "PNG")
        row = {
            "image": {"bytes": file.getvalue(), "path": None},
            "label": each.group,
            "subgroup": each.subgroup,
            "name": each.name,
            "base": base,
            "emoji": each.text,
        }
        splits[choose_split(base)].append(row)
    return splits


def _make_features(emoji: list[Emoji]) -> "datasets.Features":
    import datasets

    return datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=list(dict.fromkeys(each.group for each in emoji))),
            "subgroup": datasets.ClassLabel(names=list(dict.fromkeys(each.subgroup for each in emoji))),
            "name": datasets.Value("string"),
            "base": datasets.Value("string"),
            "emoji": datasets.Value("string"),
        }
    )


def _make_dataset(rows: list[dict], features: "datasets.Features") -> "datasets.Dataset":
    import datasets

    columns = {name: [row[name] for row in rows] for name in features}
    for name in ("label", "subgroup"):
        columns[name] = features[name].str2int(columns[name])
    return datasets.Dataset.from_dict(columns, features=features)


def _write_card(
    splits: dict[str, list[dict]],
    features: "datasets.Features",
    font: str | os.PathLike,
    names: str | os.PathLike,
    size: int,
    command: str,
) -> str:
    """Write the card, with the header that the Hub and `datasets` read."""
    import datasets
    from datasets.info import DatasetInfosDict
    from huggingface_hub import DatasetCardData

    infos = datasets.SplitDict()
    for split, rows in splits.items():
        length = sum(len(row["image"]["bytes"]) for row in rows)
        infos.add(datasets.SplitInfo(split, num_bytes=length, num_examples=len(rows)))
    header = DatasetCardData(
        pretty_name="Emoji",
        license=["ofl-1.1", "other"],
        license_name="unicode",
        license_link="https://www.unicode.org/license.txt",
        task_categories=["unconditional-image-generation", "image-classification", "text-to-image"],
        language=["en"],
    )
    info = datasets.DatasetInfo(features=features, splits=infos)
    DatasetInfosDict(default=info).to_dataset_card_data(header)
    version = re.search(r"^# Version: (\S+)", Path(names).read_text(encoding="utf-8"), re.MULTILINE)
    text = CARD.format(
        count=sum(map(len, splits.values())),
        size=size,
        command=command,
        groups=len(features["label"].names),
        subgroups=len(features["subgroup"].names),
        name=splits["train"][0]["name"],
        splits="\n".join(
            f"| {split} | {len(rows):,} | {len({row['base'] for row in rows}):,} |"
            for split, rows in splits.items()
        ),
        font=Path(font).name,
        font_digest=digest_file(font),
        names=Path(names).name,
        names_digest=digest_file(names),
        version=f" {version[1]}" if version else "",
    )
    return f"---\n{header.to_yaml()}\n---\n\n{text}"
