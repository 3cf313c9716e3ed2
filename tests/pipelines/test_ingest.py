from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from domains import contract as contracts
from domains import statistics
from domains.integrity import damaged_samples
from domains.manifest import ManifestError
from domains.publish import DiskFull
from domains.sample import ManifestRow, Piece
from domains.splits import GroupCut, cut_groups
from domains.store import Writer, open_prepared
from pipelines import ingest
from pipelines.commands.describe import describe
from pipelines.ingest import DataRun, IngestFailed
from pipelines.intake.refusals import TooManyRefused
from pipelines.settings import SettingsError, build
from tests.fabricate import contract_of
from tests.pipelines.fake_ingest import make_files, stand_in

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def without_libraries_and_tracking(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, ingest)


def settings(**changes: Any) -> DataRun:
    raw: dict[str, Any] = {
        "domain": "medical",
        "files": {"folder": "data/raw/a", "manifest": "data/raw/a/labels.csv", "mask_column": "mask",
                  "pseudonymise": False},
        "read": {"kind": "squares"}, "limits": {"memory_gb": 2, "seconds": 20, "workers": 2},
        "tasks": {"sick": {"kind": "single_label", "columns": ["sick"]},
                  "age": {"kind": "regression", "columns": ["age"]}},
    }
    files = {**raw["files"], **changes.pop("files", {})}
    return build(DataRun, {**raw, **changes, "files": files}, "ingest.a")


def test_a_run_writes_all_that_training_and_reports_need(tmp_path: Path) -> None:
    make_files(tmp_path)
    metrics = ingest.run("a", settings(), tmp_path)
    folder, report = tmp_path / "data/prepared/a", tmp_path / "reports/ingest/a"
    assert {path.name for path in folder.iterdir()} == {
        "shard-00000.npy", "mask-00000.npy", "index.parquet", "contract.json", "reader.json", "quarantine.csv",
        "summary.json", "leaks.csv", "SHA256SUMS"}
    assert {path.name for path in report.iterdir()} == {"metrics.json", "contact_sheet.png", "splits.csv",
                                                        "quarantine.csv"}
    prepared = open_prepared(folder)
    assert len(prepared) == metrics["samples"] == 60
    assert damaged_samples(prepared) == []
    for i in (0, 7, 33):
        assert np.array_equal(prepared.values(i), np.load(tmp_path / f"data/raw/a/{i}.npy"))
    assert prepared.has_mask.tolist() == [i % 3 == 0 for i in range(60)]
    assert prepared.contract.tasks["sick"].classes == ("0", "1")
    assert prepared.contract.channels[0].high < 200
    assert cut_groups(prepared.column("group"), prepared.column("split")) == []
    assert np.isnan(prepared.labels("sick")[::7]).all()
    assert prepared.labels("age")[5].tolist() == [25]


def test_a_disk_too_small_for_what_is_to_be_written_ends_it_before_it_reads_on_with_the_code_of_a_full_disk(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_files(tmp_path)
    monkeypatch.setattr(ingest, "disk_free", lambda folder: 10)
    with pytest.raises(DiskFull, match="disk: found .* free, expected .* Remedy: free some") as told:
        ingest.run("a", settings(), tmp_path)
    assert told.value.exit_code == 4 and not (tmp_path / "data/prepared").exists()


def test_two_runs_make_the_same_bytes(tmp_path: Path) -> None:
    make_files(tmp_path, bad=1)
    for name in ("a", "b"):
        ingest.run(name, settings(bad_files=0.5), tmp_path)
    first, second = (tmp_path / "data/prepared" / name for name in ("a", "b"))
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes(), path.name


def test_bad_files_are_quarantined_with_their_hash_and_reason(tmp_path: Path) -> None:
    make_files(tmp_path, bad=2)
    metrics = ingest.run("a", settings(bad_files=0.05), tmp_path)
    with (tmp_path / "data/prepared/a/quarantine.csv").open() as file:
        refused = list(csv.DictReader(file))
    assert [row["path"] for row in refused] == ["0.npy", "1.npy"]
    assert refused[0]["reason"] == "not a .npy file" and len(refused[0]["sha256"]) == 64
    assert (metrics["quarantined"], metrics["samples"]) == (2, 58)


def test_too_many_bad_files_fail_the_run_at_its_end_and_leave_the_list(tmp_path: Path) -> None:
    make_files(tmp_path, bad=4)
    with pytest.raises(TooManyRefused, match="found 4 of 60 refused, expected at most 5.0%") as caught:
        ingest.run("a", settings(bad_files=0.05), tmp_path)
    assert caught.value.exit_code == 3
    assert not (tmp_path / "data/prepared/a").exists()
    assert list((tmp_path / "data/prepared").iterdir()) == []
    assert len((tmp_path / "reports/ingest/a/quarantine.csv").read_text().splitlines()) == 5


def test_a_folder_of_nothing_readable_is_told_before_the_long_part(tmp_path: Path) -> None:
    make_files(tmp_path, num=10, bad=10)
    with pytest.raises(TooManyRefused, match="found none readable among"):
        ingest.run("a", settings(tasks={}), tmp_path)


def test_values_that_contradict_the_settings_stop_the_run_and_name_the_source(tmp_path: Path) -> None:
    make_files(tmp_path)
    with pytest.raises(IngestFailed, match="source site 0: values: found"):
        ingest.run("a", settings(read={"kind": "squares", "brightest": 20}), tmp_path)


def test_a_task_of_a_source_that_no_row_has_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    make_files(tmp_path)
    tasks = {"age": {"kind": "regression", "columns": ["age"], "sources": ["site 0", "site nine"]}}
    with pytest.raises(ManifestError, match="tasks.age.sources: found site nine, .* among site 0, site 1"):
        ingest.run("a", settings(tasks=tasks), tmp_path)


def test_groups_that_were_written_in_two_ways_are_said_and_kept_in_the_summary(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_files(tmp_path)
    path = tmp_path / "data/raw/a/labels.csv"
    path.write_text(path.read_text().replace("1.npy,patient 0,", "1.npy,Patient 00,", 1))
    ingest.run("a", settings(), tmp_path)
    summary = json.loads((tmp_path / "data/prepared/a/summary.json").read_text())
    for said in (capsys.readouterr().out, " ".join(summary["said"])):
        assert "2 of 31 groups differ from another in nothing but" in said


def test_a_manifest_whose_splits_cut_a_group_is_refused(tmp_path: Path) -> None:
    make_files(tmp_path, splits=True)
    path = tmp_path / "data/raw/a/labels.csv"
    path.write_text(path.read_text().replace("1.npy,patient 0,train", "1.npy,patient 0,test", 1))
    with pytest.raises(GroupCut, match="found 1 groups") as caught:
        ingest.run("a", settings(), tmp_path)
    assert "patient 0" not in str(caught.value)


def test_a_planted_copy_in_the_test_split_is_reported_and_kept_from_the_pool(tmp_path: Path) -> None:
    make_files(tmp_path, splits=True)
    folder = tmp_path / "data/raw/a"
    np.save(folder / "6.npy", np.load(folder / "0.npy"))  # 6 is of a test group, 0 of a training group
    metrics = ingest.run("a", settings(), tmp_path)
    assert metrics["exact_leaks"] == 1
    prepared = open_prepared(tmp_path / "data/prepared/a")
    keys = [prepared.column("key")[i] for i in prepared.pool()]
    assert "0.npy" not in keys and "1.npy" in keys
    assert "exact: train-test 1" in describe(tmp_path / "data/prepared/a")
    with pytest.raises(IngestFailed, match="found 1 pairs"):
        ingest.run("a", settings(leaks="refuse"), tmp_path)


def test_groups_that_repeat_each_other_end_in_one_split_where_it_is_ours_to_choose(tmp_path: Path) -> None:
    make_files(tmp_path, num=100)
    folder = tmp_path / "data/raw/a"
    for i in range(0, 40, 4):  # the first file of every second patient is also the next patient's
        np.save(folder / f"{i + 2}.npy", np.load(folder / f"{i}.npy"))
        np.save(folder / f"{i + 2}_mask.npy", np.load(folder / f"{i}.npy")[0] % 2)
    apart = ingest.run("b", settings(leaks="report"), tmp_path)
    assert apart["exact_leaks"] > 0 and apart["joined_groups"] == 0
    metrics = ingest.run("a", settings(), tmp_path)
    assert (metrics["exact_leaks"], metrics["joined_groups"]) == (0, 20)
    prepared = open_prepared(tmp_path / "data/prepared/a")
    of_group = dict(zip(prepared.column("group"), prepared.column("split"), strict=True))
    assert all(of_group[f"patient {i // 2}"] == of_group[f"patient {i // 2 + 1}"] for i in range(0, 40, 4))
    assert damaged_samples(prepared) == [] and cut_groups(prepared.column("group"), prepared.column("split")) == []
    assert prepared.labels("age")[:, 0].tolist() == [20 + i for i in range(100)]
    assert set(of_group.values()) == {"train", "val", "test"}
    text = describe(tmp_path / "data/prepared/a")
    assert "20 groups that repeat each other (links: exact 10) were joined into 10 units" in text
    lines = (tmp_path / "data/prepared/a/leaks.csv").read_text().splitlines()
    assert len(lines) == 11 and lines[1].startswith("0.npy,")


def test_joining_changes_nothing_where_nothing_repeats(tmp_path: Path) -> None:
    make_files(tmp_path)
    ingest.run("a", settings(), tmp_path)
    ingest.run("b", settings(leaks="report"), tmp_path)
    first, second = (tmp_path / "data/prepared" / name / "index.parquet" for name in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()


def test_the_pool_holds_no_held_out_group(tmp_path: Path) -> None:
    make_files(tmp_path, splits=True)
    ingest.run("a", settings(), tmp_path)
    prepared = open_prepared(tmp_path / "data/prepared/a")
    held = {prepared.column("group")[i] for i in prepared.rows(split=("val", "test"))}
    pool = prepared.pool()
    assert len(pool) == 36
    assert not held & {prepared.column("group")[i] for i in pool}


def test_statistics_come_from_training_rows_alone(tmp_path: Path) -> None:
    make_files(tmp_path, splits=True)
    folder = tmp_path / "data/raw/a"
    ingest.run("a", settings(), tmp_path)
    for i in range(60):
        if i // 2 % 5 >= 2:
            np.save(folder / f"{i}.npy", np.load(folder / f"{i}.npy") // 4 + 190)
    ingest.run("b", settings(), tmp_path)
    channels = [open_prepared(tmp_path / "data/prepared" / name).contract.channels for name in ("a", "b")]
    assert channels[0] == channels[1]


def test_pieces_of_one_file_share_its_row(tmp_path: Path) -> None:
    make_files(tmp_path, num=10)
    ingest.run("a", settings(read={"kind": "squares", "tiles": 3}, tasks={}), tmp_path)
    prepared = open_prepared(tmp_path / "data/prepared/a")
    assert prepared.column("key")[:4] == ["0.npy@0", "0.npy@1", "0.npy@2", "1.npy@0"]
    assert prepared.column("group")[0] == prepared.column("group")[5]


def test_a_damaged_run_replaces_nothing(tmp_path: Path) -> None:
    make_files(tmp_path)
    ingest.run("a", settings(), tmp_path)
    digest = open_prepared(tmp_path / "data/prepared/a").digest
    (tmp_path / "data/raw/a/7.npy").write_text("damaged")
    with pytest.raises(TooManyRefused):
        ingest.run("a", settings(), tmp_path)
    assert open_prepared(tmp_path / "data/prepared/a").digest == digest


def test_an_unknown_key_of_the_reader_is_refused_by_its_dotted_path(tmp_path: Path) -> None:
    make_files(tmp_path)
    with pytest.raises(SettingsError, match=r"unknown key: ingest\.a\.read\.sise"):
        ingest.run("a", settings(read={"kind": "squares", "sise": [8, 8]}), tmp_path)


def test_describe_says_what_was_ingested_and_what_was_not(tmp_path: Path) -> None:
    make_files(tmp_path, bad=1, splits=True)
    ingest.run("a", settings(bad_files=0.1, files={"sources": ["site 0"]}), tmp_path)
    text = describe(tmp_path / "data/prepared/a")
    for part in ("29 samples from 30 files", "left out by source: site 1 30", "quarantined: 1 of 30",
                 "1 x not a .npy file", "sick (single_label)", "unknown", "grey 0-255", "self-supervised pool",
                 "no near duplicate"):
        assert part in text, part
    assert "patient" not in text


def test_the_contact_sheet_shows_every_split_and_source(tmp_path: Path) -> None:
    image_of = pytest.importorskip("PIL.Image")
    from pipelines.intake.contact_sheet import choose
    make_files(tmp_path, splits=True)
    ingest.run("a", settings(), tmp_path)
    prepared = open_prepared(tmp_path / "data/prepared/a")
    shown = choose(prepared, 24)
    assert len(shown) == len(set(shown)) == 24
    assert {(prepared.column("split")[i], prepared.column("source")[i]) for i in shown} == set(
        zip(prepared.column("split"), prepared.column("source"), strict=True))
    assert np.asarray(image_of.open(tmp_path / "reports/ingest/a/contact_sheet.png")).std() > 10


def test_summary_and_report_name_no_patient(tmp_path: Path) -> None:
    make_files(tmp_path, bad=1)
    ingest.run("a", settings(bad_files=0.1), tmp_path)
    for path in (tmp_path / "data/prepared/a/summary.json", tmp_path / "reports/ingest/a/metrics.json",
                 tmp_path / "reports/ingest/a/splits.csv"):
        assert "patient" not in path.read_text()
    assert json.loads((tmp_path / "data/prepared/a/summary.json").read_text())["reasons"] == {"not a .npy file": 1}


@pytest.mark.parametrize(("domain", "foreign"), [("medical", "domains.satellite"), ("medical", "domains.pointcloud"),
                                                 ("satellite", "domains.medical"), ("pointcloud", "domains.medical")])
def test_reading_one_domain_imports_no_other(domain: str, foreign: str) -> None:
    code = (f"import sys; from pipelines.ingest import domain_reader; domain_reader({domain!r}); "
            f"sys.exit(any(name.startswith({foreign!r}) for name in sys.modules)"
            " or any(name in sys.modules for name in ('rasterio', 'pydicom', 'nibabel', 'open3d', 'laspy', 'torch')))")
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_a_band_that_only_unlabelled_samples_have_is_scaled_by_their_statistics(tmp_path: Path) -> None:
    """Left at mean 0 and deviation 1, its reflectances of thousands would drown every other band's loss."""
    contract = contract_of("multispectral")
    writer = Writer(tmp_path, "uint16", ["bright"])
    rng = np.random.default_rng(0)
    for i in range(20):
        values = rng.integers(1000, 3000, (3, 16, 16)).astype(np.uint16)
        split = "train" if i < 10 else "unlabelled"
        if split == "train":
            values[2] = 65535
        row = ManifestRow(tmp_path / str(i), str(i), f"g{i}", split, "")
        writer.add(Piece(values), row, {"bright": np.array([np.nan], np.float32)})
    writer.close()
    contracts.save(contract, tmp_path / "contract.json")
    measured, said = statistics.of_training(open_prepared(tmp_path))
    assert 1900 < measured.channels[2].mean < 2100 and 400 < measured.channels[2].std < 700
    assert any("no training sample has B4" in sentence for sentence in said)
