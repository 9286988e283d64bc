"""The code blocks of README and guides run from top to bottom, and their figures were measured."""

import re
import runpy
import shlex
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT, run_training

from pipeline_pfgmpp.commands import build_parser, main


GUIDES = sorted(path.name for path in (ROOT / "docs").glob("*.md") if path.name != "security.md")
PAGES = ["README.md", *(f"docs/{name}" for name in GUIDES)]
# What a clean checkout holds of what the pages use.
USED = [
    "examples/damaged",
    "model_cards/pfgmpp-emoji-fast",
    "model_cards/pfgmpp-emoji-restore",
    "model_cards/pfgmpp-fashion-mnist",
    "model_cards/pfgmpp-fashion-mnist-fast",
    "space",
    "pipeline_pfgmpp",
    "tests/fixtures/emoji",
    "tests/fixtures/fashion_mnist",
    "Makefile",
]
# Commands that install or download something, or never end. They stand in blocks that run.
NOT_RUN = {"make", "pip"}


def read_blocks(page):
    """Return the code blocks of a page: their language, whether they run, and their text."""
    text = (ROOT / page).read_text()
    blocks = re.findall(r"^```(python|bash)(.*?)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    for _, mark, _ in blocks:
        assert mark in ("", " no-run"), mark
    return [(language, not mark, code) for language, mark, code in blocks]


def split_commands(code):
    """Split a block of bash into commands, each a list of arguments."""
    lines = code.replace("\\\n", " ").splitlines()
    commands = [shlex.split(line, comments=True) for line in lines]
    return [command for command in commands if command]


def run_command(command, monkeypatch):
    """Run a command of a page in this process."""
    if command[0] in NOT_RUN:
        return
    if command[:3] == ["accelerate", "launch", "train_accelerate.py"]:
        result = run_training(*command[3:])
        assert result.returncode == 0, result.stdout + result.stderr
        return
    monkeypatch.setattr(sys, "argv", command)
    if command[0] == "pfgmpp":
        main(command[1:])
        return
    assert command[0] == "python", f"This test cannot run {command}."
    monkeypatch.setattr(sys, "argv", command[1:])
    runpy.run_path(str(ROOT / command[1]), run_name="__main__")


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """Change into a copy of what the pages use."""
    for name in USED:
        source = ROOT / name
        target = tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(source, target)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", PAGES)
def test_blocks_run_from_top_to_bottom(page, checkout, monkeypatch):
    namespace = {}
    for language, runs, code in read_blocks(page):
        if not runs:
            continue
        if language == "python":
            exec(compile(code, page, "exec"), namespace)
            continue
        for command in split_commands(code):
            run_command(command, monkeypatch)


@pytest.mark.parametrize("page", PAGES)
def test_every_page_runs_something(page):
    blocks = read_blocks(page)
    commands = [split_commands(code) for language, runs, code in blocks if runs and language == "bash"]
    programs = [command for block in commands for command in block if command[0] not in NOT_RUN]
    assert programs or any(runs and language == "python" for language, runs, _ in blocks)


@pytest.mark.parametrize("page", PAGES)
def test_blocks_that_do_not_run_are_explained(page):
    """Each follows a sentence of its own, that says what it needs or how long it takes."""
    for lead in re.findall(r"([^\n]*)\n\n```\w+ no-run", (ROOT / page).read_text()):
        assert lead.rstrip().endswith((".", ":")), lead


@pytest.mark.parametrize("page", PAGES)
def test_blocks_that_do_not_run_are_valid(page):
    """Python uses no name that the page does not define; commands have the arguments they are given."""
    blocks = read_blocks(page)
    python = "\n".join(code for language, _, code in blocks if language == "python")
    ruff = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "F821", "-"]
    result = subprocess.run(ruff, input=python, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
    for language, runs, code in blocks:
        if not runs and language == "bash":
            for command in split_commands(code):
                parse_command(command)


def parse_command(command):
    """Parse the arguments of a command of this repository, which exits where one is wrong."""
    if "train_accelerate.py" in command:
        arguments = command[command.index("train_accelerate.py") + 1 :]
        runpy.run_path(str(ROOT / "train_accelerate.py"))["parse_args"](arguments)
    elif "pfgmpp" in command or "pipeline_pfgmpp" in command:
        program = "pfgmpp" if "pfgmpp" in command else "pipeline_pfgmpp"
        build_parser().parse_args(command[command.index(program) + 1 :])
    elif command[0] == "python":
        assert (ROOT / command[1]).is_file(), command


@pytest.mark.parametrize("page", PAGES)
def test_make_targets_exist(page):
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)|`make (\w+)`", (ROOT / page).read_text(), re.MULTILINE):
        name = "".join(target)
        assert re.search(rf"^{name}:", makefile, re.MULTILINE), name


@pytest.mark.parametrize("page", [*PAGES, "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text()
    links = re.findall(r"\]\((?!https?:)(.*?)\)", text) + re.findall(r'src="(.*?)"', text)
    for link in links:
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), link
        if anchor:
            titles = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            anchors = {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}
            assert anchor in anchors, link


@pytest.mark.parametrize("page", PAGES)
def test_every_row_of_figures_was_measured(page):
    report = (ROOT / "experiments" / "RESULTS.md").read_text()
    for row in re.findall(r"^\|.*\d\.\d.*\|$", (ROOT / page).read_text(), re.MULTILINE):
        assert row in report, row


def test_readme_is_short():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 130
    assert max(map(len, lines)) <= 110


def test_continuous_integration_calls_the_command_of_the_readme():
    assert "\nmake test " in (ROOT / "README.md").read_text()
    assert "run: make test\n" in (ROOT / ".github" / "workflows" / "test.yml").read_text()


def test_pre_commit_runs_the_same_ruff_as_the_tests():
    pinned = re.search(r"^ruff==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[1]
    assert f"rev: v{pinned}\n" in (ROOT / ".pre-commit-config.yaml").read_text()
