"""The same bytes and weights, however many read; a small version of the script."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.faults import same_bits


@pytest.mark.parametrize("run", ["xray", pytest.param("ct", marks=pytest.mark.slow), "parcels", "shapes"])
def test_any_number_of_reading_processes_publishes_the_same_bytes(run: str, tmp_path: Path,
                                                                  no_tracking: None) -> None:
    folders = same_bits.ingested(tmp_path, run, (1, 3), files=12)
    assert {"shard-00000.npy", "index.parquet", "contract.json", "leaks.csv"} <= same_bits.contents(folders[0]).keys()
    assert same_bits.differing(folders) == []


def test_a_changed_byte_a_missing_and_an_added_file_are_seen(tmp_path: Path) -> None:
    for name, files in (("a", {"x": "1", "y": "1"}), ("b", {"x": "1", "y": "2"}), ("c", {"x": "1", "y": "1", "z": ""})):
        (tmp_path / name).mkdir()
        for file, text in files.items():
            (tmp_path / name / file).write_text(text)
    assert same_bits.differing([tmp_path / "a", tmp_path / "a"]) == []
    assert same_bits.differing([tmp_path / "a", tmp_path / "b", tmp_path / "c"]) == ["y", "z"]


@pytest.mark.slow
def test_the_command_trains_the_same_weights_whether_or_not_it_reads_ahead(tmp_path: Path) -> None:
    assert len(set(same_bits.trained(tmp_path, (0, 0, 2), steps=20))) == 1
