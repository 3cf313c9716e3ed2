"""A note stands for a folder as long as nothing in it has changed, and only its owner can read it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from domains.folder_note import FolderChanged, noted, write_note
from domains.manifest import Files, read_manifest


def folder(root: Path) -> Path:
    (root / "raw/cat").mkdir(parents=True)
    (root / "raw/cat/1.png").write_text("one")
    (root / "raw/dog.png").write_text("two")
    return root / "raw"


def test_a_note_leads_to_its_folder_and_a_manifest_is_read_through_it(tmp_path: Path) -> None:
    assert write_note(folder(tmp_path), tmp_path / "note") == 2
    assert noted(tmp_path / "note") == tmp_path / "raw" and noted(tmp_path / "raw") == tmp_path / "raw"
    assert (tmp_path / "note").stat().st_mode & 0o777 == 0o600
    rows = read_manifest(Files("note", group_by="file"), (".png",), tmp_path).rows
    assert sorted(row.key for row in rows) == ["cat/1.png", "dog.png"]
    before = (tmp_path / "note").read_bytes()
    write_note(tmp_path / "raw", tmp_path / "note")
    assert (tmp_path / "note").read_bytes() == before, "an unchanged folder makes no stage stale"


@pytest.mark.parametrize("change", [
    lambda raw: (raw / "cat/1.png").write_text("another"),
    lambda raw: os.utime(raw / "dog.png", (1, 1)),
    lambda raw: (raw / "new.png").write_text(""),
    lambda raw: (raw / "dog.png").unlink(),
    lambda raw: (raw / "dog.png").rename(raw / "cow.png"),
], ids=["size", "time", "more", "fewer", "name"])
def test_a_folder_that_has_changed_is_refused(tmp_path: Path, change: Callable[[Path], object]) -> None:
    write_note(folder(tmp_path), tmp_path / "note")
    change(tmp_path / "raw")
    with pytest.raises(FolderChanged, match="expected the 2 that were there .* Remedy: .*lacuna note") as caught:
        read_manifest(Files("note", group_by="file"), (".png",), tmp_path)
    assert "dog" not in str(caught.value)


def test_another_file_is_no_note(tmp_path: Path) -> None:
    for text in ("{}", "not json", '{"format": "other", "folder": "/"}'):
        (tmp_path / "x").write_text(text)
        assert noted(tmp_path / "x") == tmp_path / "x"
