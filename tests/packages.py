"""Environments with only some of the installed packages, without installing anything."""

import configparser
import contextlib
import importlib.metadata

from conftest import ROOT
from packaging.requirements import Requirement


def read_requirements(extra=None):
    """Read from setup.cfg what the package requires, with one of its extras if that is given."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    required = config["options"]["install_requires"]
    if extra is not None:
        required += config["options.extras_require"][extra]
    return required.split()


def link_requirements(requirements, folder):
    """
    Link to the installed packages that are required, and to those that they require.

    With the folder on its path and without site-packages (`-S`), Python finds no other package.
    """
    waiting = [Requirement(line) for line in requirements]
    known = set()
    while waiting:
        requirement = waiting.pop()
        distribution = importlib.metadata.distribution(requirement.name)
        assert requirement.specifier.contains(distribution.version, prereleases=True), requirement
        extras = requirement.extras or {""}
        for extra in extras - {known_extra for name, known_extra in known if name == distribution.name}:
            known.add((distribution.name, extra))
            waiting += [
                needed
                for needed in map(Requirement, distribution.requires or [])
                if needed.marker is None or needed.marker.evaluate({"extra": extra})
            ]
        for name in {file.parts[0] for file in distribution.files or []} - {"..", "__pycache__"}:
            with contextlib.suppress(FileExistsError):
                (folder / name).symlink_to(distribution.locate_file(name))
