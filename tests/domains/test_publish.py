from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from domains import publish
from domains.publish import folder_in_the_making, write_bytes, write_text


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


def test_what_a_killed_process_left_is_taken_away_by_the_next_one(tmp_path: Path) -> None:
    left = [tmp_path / f".{name}.{publish._HOST}-{dead_process()}.tmp" for name in ("a.json", "data")]
    left[0].write_text("half")
    left[1].mkdir()
    living = tmp_path / f".a.json.{publish._HOST}-1.tmp"
    living.write_text("somebody is at it")
    write_text(tmp_path / "a.json", "whole")
    with folder_in_the_making(tmp_path / "data"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([living.name, "a.json", "data"])


def test_a_folder_that_was_stepping_aside_when_its_process_was_killed_comes_back(tmp_path: Path) -> None:
    old = tmp_path / f".data.{publish._HOST}-{dead_process()}.old"
    old.mkdir()
    (old / "file").write_text("old")
    with pytest.raises(RuntimeError), folder_in_the_making(tmp_path / "data"):
        raise RuntimeError
    assert (tmp_path / "data/file").read_text() == "old"


def test_a_full_disk_is_a_sentence_with_the_missing_bytes_and_keeps_what_was_there(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text(tmp_path / "state", "old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setattr(publish.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
    with pytest.raises(publish.DiskFull, match=r"needs 1500 bytes and found 1000 free, expected 500 bytes more.*Rem"):
        write_bytes(tmp_path / "state", b"x" * 1500)
    with pytest.raises(publish.DiskFull, match=r"expected 24 bytes more"):
        publish.require_room(tmp_path / "not/yet", 1024)
    with pytest.raises(publish.DiskFull, match="the disk is full"), folder_in_the_making(tmp_path / "data"):
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert (tmp_path / "state").read_text() == "old" and [path.name for path in tmp_path.iterdir()] == ["state"]


def test_a_folder_that_may_not_be_written_is_a_sentence_before_and_while_saving(tmp_path: Path) -> None:
    program = ("import os, sys; from pathlib import Path; from domains import publish\n"
               "if os.geteuid() == 0: os.setegid(65534); os.seteuid(65534)  # root may write anywhere\n"
               "for call in (publish.require_writable, lambda path: publish.write_text(path / 'a', 'b')):\n"
               "    try: call(Path(sys.argv[1]))\n"
               "    except publish.Unwritable as error: print(error)\n")
    closed = tmp_path / "closed"
    closed.mkdir()
    closed.chmod(0o555)
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    root = Path(__file__).resolve().parents[2]
    told = subprocess.run([sys.executable, "-c", program, str(closed / "new")], cwd=root, text=True, timeout=60,
                          capture_output=True, env={**os.environ, "PYTHONPATH": str(root)})
    lines = told.stdout.splitlines()
    assert len(lines) == 2, told.stderr
    assert all("cannot be written" in line and "Remedy" in line for line in lines) and not list(closed.iterdir())


def dead_process() -> int:
    """The number of a process that has ended."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    return ended.pid
