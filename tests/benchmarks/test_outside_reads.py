"""Nothing outside the data folder is opened, called or written; and the campaign would see it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from benchmarks.faults import outside_reads
from benchmarks.faults.outside_attempts import Case, linked

pytest.importorskip("rasterio", reason="reads GeoTIFF: pip install 'lacuna[satellite]'")
SOME = ("VRT under a .tif name", "VRT that names an address", "side-car .aux.xml with an overview outside",
        "link as a band of a scene", "path /vsicurl/", "path ..", "zip, ..", "tar, hard link")


def test_scenes_paths_links_and_archives_reach_nothing_outside(tmp_path: Path) -> None:
    verdicts = outside_reads.campaign(tmp_path, SOME)
    assert len(verdicts) == len(SOME)
    assert [verdict for verdict in verdicts if not verdict.held] == []


def test_a_trusted_link_is_seen_to_be_opened_and_stored(tmp_path: Path, no_tracking: None) -> None:
    (found,) = outside_reads.attempt(tmp_path, [Case("a", "scenes", linked)], "http://127.0.0.1:9", [],
                                     follow_links=True)
    assert found.opened and found.stored and not found.held


def test_the_watch_sees_another_process_open_a_file_and_not_one_that_looks_at_its_name(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    watch = outside_reads.Watch([tmp_path / "a"])
    (tmp_path / "a").resolve().stat()
    assert watch.opened() == set()
    subprocess.run(["cat", str(tmp_path / "a")], check=True, capture_output=True)
    assert watch.opened() == {tmp_path / "a"}
    watch.close()


@pytest.mark.slow
def test_no_attempt_reaches_anything_outside(tmp_path: Path) -> None:
    verdicts = outside_reads.campaign(tmp_path)
    assert len(verdicts) >= 50
    assert [verdict for verdict in verdicts if not verdict.held] == []
