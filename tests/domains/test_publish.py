from __future__ import annotations

from pathlib import Path

import pytest

from domains.publish import folder_in_the_making, write_text


def test_a_folder_appears_whole_and_replaces_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "data"
    for content in ("old", "new"):
        with folder_in_the_making(target) as folder:
            (folder / "file").write_text(content)
            assert folder.parent == target.parent
    assert (target / "file").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_failure_leaves_the_old_folder_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "data"
    with folder_in_the_making(target) as folder:
        (folder / "file").write_text("old")
    with pytest.raises(RuntimeError), folder_in_the_making(target) as folder:
        (folder / "file").write_text("half")
        raise RuntimeError
    assert (target / "file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_file_is_replaced_in_its_own_folder(tmp_path: Path) -> None:
    write_text(tmp_path / "deep" / "a.json", "1")
    write_text(tmp_path / "deep" / "a.json", "2")
    assert (tmp_path / "deep" / "a.json").read_text() == "2"
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["a.json"]
