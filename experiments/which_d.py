"""
Collect which D is best for the bundled models.

    pfgmpp choose-D MODEL --data DATA
    python experiments/which_d.py outputs/choice/MODEL-DIGEST ...

The first command is run for each model. The second reads what they measured, and writes results/which_d.json
next to this file.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from tables import RESULTS, format_which_d

from pipeline_pfgmpp.records.commands import format_command
from pipeline_pfgmpp.records.measurements import write_measurement


KEPT = ("results", "num_images", "command", "differences", "choice")


def read_choice(folder: Path) -> dict[str, Any]:
    """Read what `pfgmpp choose-D` wrote."""
    report = json.loads((folder / "choice.json").read_text(encoding="utf-8"))
    model = report["command"].split()[2]
    return {"model": Path(model).name, **{name: report[name] for name in KEPT}}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("choices", nargs="+", type=Path, help="folders that pfgmpp choose-D wrote")
    args = parser.parse_args()
    results = [read_choice(folder) for folder in args.choices]
    commands = [row.pop("command") for row in results]
    command = format_command("python experiments/which_d.py", sys.argv[1:])
    write_measurement(RESULTS / "which_d.json", "\n".join([*commands, command]), results)
    print(format_which_d(results))


if __name__ == "__main__":
    main()
