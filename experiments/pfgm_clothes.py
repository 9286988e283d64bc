"""
Compare PFGM, D = 1, on Fashion-MNIST with and without a limit on the norm of the noise, and with a
network of D = 128.

    python experiments/pfgm_clothes.py outputs/evaluation/pfgm outputs/evaluation/pfgm-limit \\
        outputs/evaluation/pfgmpp-control

Reads what `pfgmpp evaluate` measured and drew, and writes results/pfgm_clothes.json and
pfgm_clothes.png next to this file.
"""

import argparse
import json
import sys
from pathlib import Path

from PIL import Image
from tables import RESULTS, format_clothes

from pipeline_pfgmpp.pictures.grid import draw_grid
from pipeline_pfgmpp.records.commands import format_command
from pipeline_pfgmpp.records.measurements import write_measurement


COLUMNS = 16


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("evaluations", nargs="+", type=Path, help="folders that pfgmpp evaluate wrote")
    args = parser.parse_args()
    results = []
    pictures = []
    for folder in args.evaluations:
        evaluation = json.loads((folder / "evaluation.json").read_text())
        limit = evaluation["settings"]["scheduler"]["max_noise_norm"]
        limited = f"limit {limit:g}" if limit else "no limit"
        for entry in evaluation["results"]:
            D = entry.pop("D")
            results.append({"images": f"D = {D}, {limited}", **entry})
            drawn = sorted((folder / f"D-{D}").glob("*.png"))[:COLUMNS]
            pictures += [Image.open(image) for image in drawn]
    command = format_command("python experiments/pfgm_clothes.py", sys.argv[1:])
    write_measurement(RESULTS / "pfgm_clothes.json", command, results)
    names = [row["images"] for row in results]
    draw_grid(pictures, COLUMNS, names).save(Path(__file__).with_suffix(".png"))
    print(format_clothes(results))


if __name__ == "__main__":
    main()
