"""
Write RESULTS.md, the report of everything that was measured.

    python experiments/write_results.py

The prose is in results.md.jinja. The figures come from results/*.json, which the studies and the
benchmarks write (with `--json experiments/results/NAME.json`), and from evaluation.json and
robustness.json of the bundled models. Runs from before the studies wrote JSON are kept with the digits
that they printed; what `pfgmpp verify` prints is copied by hand.
"""

import argparse
import json
import re
from pathlib import Path
from typing import Any

import tables
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pipeline_pfgmpp.evaluation.reports import format_evaluation, format_robustness
from pipeline_pfgmpp.evaluation.verify import Figure, format_figures
from pipeline_pfgmpp.records.measurements import read_measurement
from pipeline_pfgmpp.records.writing import replace_file


FOLDER = Path(__file__).parent
REPORT = FOLDER / "RESULTS.md"
MODEL = FOLDER.parent / "model_cards" / "pfgmpp-fashion-mnist"
FAST_MODEL = FOLDER.parent / "model_cards" / "pfgmpp-fashion-mnist-fast"


def read_measurements() -> dict[str, dict[str, Any]]:
    """Read what the studies and the benchmarks wrote, by the name of the file."""
    return {path.stem: read_measurement(path) for path in sorted(tables.RESULTS.glob("*.json"))}


def find_robustness_command(model: Path) -> str:
    """Find the command that measured robustness.json in the card of a model."""
    match = re.search(r"^pfgmpp robustness .*$", (model / "README.md").read_text(), re.MULTILINE)
    if match is None:
        raise ValueError(f"The card in {model} does not say which `pfgmpp robustness` command measured it.")
    return match[0]


def format_verified(title: str, figures: list[dict[str, Any]]) -> str:
    """Format figures that were verified."""
    return format_figures(title, [Figure(**figure) for figure in figures])


def render_report() -> str:
    """Render the report from the template and the measurements."""
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("results.md.jinja").render(
        measured=read_measurements(),
        tables=tables,
        evaluation=json.loads((MODEL / "evaluation.json").read_text()),
        robustness=json.loads((MODEL / "robustness.json").read_text()),
        robustness_command=find_robustness_command(MODEL),
        fast_robustness=json.loads((FAST_MODEL / "robustness.json").read_text()),
        fast_robustness_command=find_robustness_command(FAST_MODEL),
        format_evaluation=format_evaluation,
        format_robustness=format_robustness,
        format_verified=format_verified,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args()
    with replace_file(REPORT) as partial:
        partial.write_text(render_report(), encoding="utf-8")
    print(f"Wrote {REPORT.name}")


if __name__ == "__main__":
    main()
