"""Files and folders are complete or absent, and older ones stay until then."""

import os
from pathlib import Path

import pytest

from pipeline_pfgmpp.records.writing import replace_file, replace_folder


def write(replace, path, text, error=None):
    with replace(path) as partial:
        (partial if replace is replace_file else partial / "text").write_text(text)
        if error:
            raise error


@pytest.mark.parametrize("replace", [replace_file, replace_folder])
def test_what_there_was_stays_if_the_new_cannot_be_written(replace, tmp_path):
    path = tmp_path / "result"
    write(replace, path, "old")
    with pytest.raises(KeyboardInterrupt):
        write(replace, path, "half of the n", KeyboardInterrupt())
    assert (path if replace is replace_file else path / "text").read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_older_folder_comes_back_if_the_new_one_cannot_take_its_place(tmp_path, monkeypatch):
    path = tmp_path / "result"
    path.mkdir()
    (path / "text").write_text("old")
    rename = os.replace

    def fail_for_the_new_one(source, target):
        if Path(target) == path and Path(source).name == path.name:
            raise OSError("The disk is full.")
        rename(source, target)

    monkeypatch.setattr(os, "replace", fail_for_the_new_one)
    with pytest.raises(OSError, match="full"):
        write(replace_folder, path, "new")
    assert (path / "text").read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
