"""
PFGM, D = 1, on Fashion-MNIST: trained networks with and without a limit on the norm of the noise,
beside one of D = 128.

    python experiments/pfgm_clothes.py outputs/evaluation/pfgm outputs/evaluation/pfgm-limit
    outputs/evaluation/pfgmpp-control

Reads what `pfgmpp evaluate` measured and drew, and writes pfgm_clothes.md and pfgm_clothes.png
beside this file.
"""

import argparse
import json
from pathlib import Path

from PIL import Image

from pipeline_pfgmpp.evaluation.evaluate import table
from pipeline_pfgmpp.pictures.grid import draw_grid


COLUMNS = 16


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("evaluations", nargs="+", type=Path, help="folders that pfgmpp evaluate wrote")
    args = parser.parse_args()
    folder, entries, names, pictures = Path(__file__).parent, [], [], []
    for path in args.evaluations:
        evaluation = json.loads((path / "evaluation.json").read_text())
        limit = evaluation["settings"]["scheduler"]["max_noise_norm"]
        for entry in evaluation["results"]:
            names.append(f"D = {entry['D']}, {f'limit {limit:g}' if limit else 'no limit'}")
            entries.append(
                {"images": names[-1], **{name: value for name, value in entry.items() if name != "D"}}
            )
            drawn = sorted((path / f"D-{entry['D']}").glob("*.png"))[:COLUMNS]
            pictures += [Image.open(image) for image in drawn]
    text = table({**evaluation, "results": entries})
    (folder / "pfgm_clothes.md").write_text(text)
    draw_grid(pictures, COLUMNS, names).save(folder / "pfgm_clothes.png")
    print(text)


if __name__ == "__main__":
    main()
