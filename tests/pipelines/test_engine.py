"""Several machines give what one gives, byte by byte."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from domains.quarantine import Limits, Reader
from domains.sample import ManifestRow
from pipelines import ingest
from pipelines.ingest import DataRun
from pipelines.intake.engine import Engine, code_hash, reading
from pipelines.settings import SettingsError, build
from tests.pipelines import fake_domain
from tests.pipelines.fake_ingest import make_files, stand_in

pytest.importorskip("distributed")


def test_two_processes_of_a_cluster_write_the_same_shards_and_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch
                                                                    ) -> None:
    stand_in(monkeypatch, ingest)
    make_files(tmp_path, 60, bad=3)
    for name, engine in (("one", {}), ("two", {"kind": "dask", "processes": 2, "rows_per_task": 7})):
        ingest.run(name, build(DataRun, {
            "domain": "medical", "read": {"kind": "squares", "tiles": 2}, "bad_files": 0.1, "limits": {"workers": 1},
            "files": {"folder": "data/raw/a", "manifest": "data/raw/a/labels.csv", "pseudonymise": False},
            "tasks": {"sick": {"kind": "single_label", "columns": ["sick"]}}, "engine": engine}, "ingest"), tmp_path)
    one, two = tmp_path / "data/prepared/one", tmp_path / "data/prepared/two"
    files = sorted(path.name for path in one.iterdir())
    assert files == sorted(path.name for path in two.iterdir())
    for name in files:
        assert (one / name).read_bytes() == (two / name).read_bytes(), name
    assert not list((tmp_path / ".work/engine").iterdir())


@pytest.mark.slow
def test_more_rows_than_the_window_come_back_in_order_and_leave_nothing(tmp_path: Path) -> None:
    make_files(tmp_path, 40, bad=1)
    rows = [ManifestRow(tmp_path / f"data/raw/a/{i}.npy", f"{i}.npy", str(i), "", "") for i in range(40)]
    reader, limits = Reader(fake_domain.__name__, fake_domain.Squares()), Limits(workers=1)
    outcomes = list(reading(Engine("dask", rows_per_task=3), tmp_path)(rows, reader, limits))
    assert [outcome.index for outcome in outcomes] == list(range(40))
    local = list(reading(Engine(), tmp_path)(rows, reader, limits))
    for ours, theirs in zip(outcomes, local, strict=True):
        assert (ours.row, ours.reason, ours.sha256) == (theirs.row, theirs.reason, theirs.sha256)
        assert all((a.values == b.values).all() for a, b in zip(ours.pieces, theirs.pieces, strict=True))
        assert replace(ours, pieces=[], peak_bytes=0) == replace(theirs, pieces=[], peak_bytes=0)


def test_other_code_has_another_hash() -> None:
    assert code_hash("domains.medical.ingest") != code_hash("domains.satellite.ingest")


def test_an_address_without_a_cluster_is_refused() -> None:
    with pytest.raises((ValueError, SettingsError), match="engine.address"):
        Engine(address="tcp://head:8786")
