"""
Compare one network for every D with networks of a single D.

    pfgmpp evaluate NETWORK --data data/fashion-mnist --groups 3 --output outputs/evaluation/NETWORK
    python experiments/single_dimensions.py outputs/evaluation/ANY_D outputs/evaluation/SINGLE_D ...

The first command is run for each network. The second reads what they measured and writes
results/single_dimensions.json next to this file.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from tables import RESULTS, format_single_dimensions

from pipeline_pfgmpp.records.commands import format_command
from pipeline_pfgmpp.records.measurements import write_measurement


def read_distances(folder: Path) -> dict[str, list[float]]:
    """Read the Fréchet distances at each D, one per group, from what `pfgmpp evaluate` wrote."""
    report = json.loads((folder / "evaluation.json").read_text())
    return {entry["D"]: entry["fid"] for entry in report["results"] if "D" in entry}


def compare(every: dict[str, list[float]], singles: list[dict[str, list[float]]]) -> list[dict[str, Any]]:
    """Compare the distances of one network at each D with those of the network of this D."""
    rows = []
    for single in singles:
        for D, distances in single.items():
            ratios = [one / other for one, other in zip(every[D], distances)]
            rows.append({"D": D, "every": every[D], "single": distances, "ratio": ratios})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "every", type=Path, help="folder that pfgmpp evaluate wrote for the network of every D"
    )
    parser.add_argument("single", nargs="+", type=Path, help="the same for each network of a single D")
    args = parser.parse_args()
    results = compare(read_distances(args.every), [read_distances(folder) for folder in args.single])
    command = format_command("python experiments/single_dimensions.py", sys.argv[1:])
    write_measurement(RESULTS / "single_dimensions.json", command, results)
    print(format_single_dimensions(results))


if __name__ == "__main__":
    main()
