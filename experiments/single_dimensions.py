"""
One network for every D against networks of a single D.

    pfgmpp evaluate NETWORK --data data/fashion-mnist --groups 3 --output outputs/evaluation/NETWORK
    # each of them python experiments/single_dimensions.py outputs/evaluation/ANY_D
    outputs/evaluation/SINGLE_D ...

Reads what was evaluated and writes single_dimensions.md beside this file.
"""

import argparse
import json
from pathlib import Path

from pipeline_pfgmpp.evaluation.evaluate import mean_and_deviation


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "every", type=Path, help="folder that pfgmpp evaluate wrote of the network of every D"
    )
    parser.add_argument("single", nargs="+", type=Path, help="those of the networks of a single D")
    args = parser.parse_args()
    every, *single = (
        {
            entry["D"]: entry["fid"]
            for entry in json.loads((path / "evaluation.json").read_text())["results"]
            if "D" in entry
        }
        for path in (args.every, *args.single)
    )
    lines = [
        "| D | one network for every D | a network of this D | ratio, group by group |",
        "|---|---|---|---|",
    ]
    for each in single:
        for D, distances in each.items():
            ratios = [one / other for one, other in zip(every[D], distances)]
            lines.append(f"| {D} | {' | '.join(map(mean_and_deviation, (every[D], distances, ratios)))} |")
    text = "\n".join(lines) + "\n"
    Path(__file__).with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
