"""A file gets the answer that its prepared sample gets; what was done is not done again; a bad file stops nothing."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import lacuna
from domains.quarantine import Limits
from pipelines.prediction import native
from pipelines.prediction import predict as prediction
from pipelines.training.batches import Source, domain_code
from pipelines.weights import checkpoints
from pipelines.weights.tuned_checkpoints import predict as predict_prepared
from pipelines.weights.tuned_checkpoints import probabilities
from tests.pipelines.native_files import DOMAINS, TASKS, ingest_files, tuned, write_file

ONE = Limits(workers=1)
LIBRARIES = {"xray": "PIL", "ct": "nibabel", "multispectral": "rasterio", "points": "numpy"}


@pytest.fixture(params=sorted(LIBRARIES))
def kind(request: pytest.FixtureRequest) -> str:
    pytest.importorskip(LIBRARIES[request.param], reason=f"reading {request.param} needs {LIBRARIES[request.param]}")
    return str(request.param)


def test_a_file_gets_the_answer_that_its_prepared_sample_gets(kind: str, tmp_path: Path) -> None:
    files, prepared = ingest_files(tmp_path, kind, count=3)
    model = tuned(tmp_path / "checkpoint", prepared, kind)
    source = Source(prepared, prepared.contract, domain_code(DOMAINS[kind]), np.arange(len(prepared)))
    expected = probabilities("single_label", torch.from_numpy(predict_prepared(model, source)), 1.7).numpy()
    found = prediction.predict(tmp_path / "checkpoint", files, limits=ONE)
    assert [result["path"] for result in found] == [file.as_posix() for file in files]
    np.testing.assert_allclose([list(result["probabilities"].values()) for result in found], expected, atol=2e-5)
    assert [result["label"] for result in found] == [TASKS["single_label"].classes[i] for i in expected.argmax(1)]
    assert len({result["probabilities"]["yes"] for result in found}) == 3


@pytest.fixture
def xray(tmp_path: Path) -> tuple[list[Path], Path]:
    """Three films and a checkpoint."""
    pytest.importorskip("PIL", reason="reading PNG needs pillow")
    files, prepared = ingest_files(tmp_path, "xray", count=3)
    tuned(tmp_path / "checkpoint", prepared, "xray")
    return files, tmp_path / "checkpoint"


def test_links_out_of_a_named_folder_are_not_followed_and_a_link_that_is_named_is(
        xray: tuple[list[Path], Path], tmp_path: Path) -> None:
    files, checkpoint = xray
    named, elsewhere = tmp_path / "named", tmp_path / "elsewhere"
    (named / "sub").mkdir(parents=True)
    elsewhere.mkdir()
    files[0].rename(named / "sub/own.png")
    files[1].rename(elsewhere / "secret.png")
    (named / "link.png").symlink_to(elsewhere / "secret.png")
    (named / "inside.png").symlink_to("sub/own.png")
    (named / "sub/out").symlink_to(elsewhere)
    (named / "sub/round").symlink_to(named)
    found = {Path(result["path"]).relative_to(tmp_path).as_posix(): result.get("reason", "")
             for result in prediction.predict(checkpoint, [named, named / "sub/../link.png"], limits=ONE)}
    refused = {path for path, reason in found.items() if reason}
    assert refused == {"named/link.png", "named/sub/out"}
    assert all(found[path].startswith("links: found 1 that lead out of") for path in refused)
    assert found.keys() - refused == {"named/inside.png", "named/sub/own.png", "named/sub/../link.png"}


def test_merged_tokens_and_other_patch_sizes_give_other_answers_which_are_told_apart(
        xray: tuple[list[Path], Path], tmp_path: Path) -> None:
    files, checkpoint = xray
    plain = prediction.predict(checkpoint, files, limits=ONE)
    assert prediction.predict(checkpoint, files, limits=ONE, edits=native.Edits(merge_tokens=0)) == plain
    for edits in (native.Edits(merge_tokens=1), native.Edits(patch=(4, 4)), native.Edits(1, (4, 4))):
        other = prediction.predict(checkpoint, files, limits=ONE, edits=edits)
        assert [one["status"] for one in other] == ["done"] * 3
        assert all(one["probabilities"] != two["probabilities"] for one, two in zip(plain, other, strict=True))
        assert other[0]["checkpoint"] != plain[0]["checkpoint"], "what was done without is done again with it"
    with pytest.raises(ValueError, match=r"found \[5, 5\], expected 2 sizes that divide the samples' \[16, 16\]"):
        prediction.predict(checkpoint, files, limits=ONE, edits=native.Edits(patch=(5, 5)))


@pytest.mark.parametrize("way", ["norm", "tent", "lame"])
def test_files_that_are_answered_together_say_so_and_are_otherwise_answered_alone(
        xray: tuple[list[Path], Path], tmp_path: Path, way: str) -> None:
    files, checkpoint = xray
    before = {path: path.read_bytes() for path in checkpoint.rglob("*") if path.is_file()}
    plain = prediction.predict(checkpoint, files, limits=ONE)
    together = prediction.predict(checkpoint, files, limits=ONE, test_time=way)
    said = "3 files answered together, so each answer depends on the others"
    fewer = prediction.predict(checkpoint, files[:2], limits=ONE, test_time=way)
    assert together == prediction.predict(checkpoint, files, limits=ONE, test_time=way)
    assert all(said in one["test_time"] for one in together)
    assert together[0]["probabilities"] != plain[0]["probabilities"] and "test_time" not in plain[0]
    assert len({one[0]["checkpoint"] for one in (plain, together, fewer)}) == 3, "told apart"
    assert prediction.predict(checkpoint, files[:1], limits=ONE) == plain[:1], "what else there is changes nothing"
    assert before == {path: path.read_bytes() for path in checkpoint.rglob("*") if path.is_file()}


def test_files_answered_together_are_never_skipped_and_are_done_again_alone(
        xray: tuple[list[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str]) -> None:
    files, checkpoint = xray
    bad = files[0].parent / "broken.png"
    bad.write_bytes(b"\x89PNG not really")
    out = tmp_path / "out"
    assert prediction.predict_to_folder(checkpoint, [*files, bad], out, limits=ONE, test_time="lame") == 3
    assert "lame: each answer was drawn towards" in capsys.readouterr().out
    rows = _table(out)
    assert ["3 files answered together" in row["test_time"] for row in rows] == [True] * 3 + [False]
    seen = _read_files(monkeypatch)
    prediction.predict_to_folder(checkpoint, files[:2], out, limits=ONE, test_time="lame")
    assert len(seen) == 2
    prediction.predict_to_folder(checkpoint, files, out, limits=ONE)
    assert len(seen) == 5 and [row["p.yes"] for row in _table(out)[1:]] == [
        str(one["probabilities"]["yes"]) for one in prediction.predict(checkpoint, files, limits=ONE)]


def test_one_file_alone_and_a_regression_are_refused_where_answers_are_made_together(
        xray: tuple[list[Path], Path], tmp_path: Path) -> None:
    files, checkpoint = xray
    with pytest.raises(ValueError, match="found one sample, expected at least two"):
        prediction.predict(checkpoint, files[:1], limits=ONE, test_time="lame")
    with pytest.raises(ValueError, match="found 'best', expected one of norm, tent, lame"):
        prediction.predict(checkpoint, files, limits=ONE, test_time="best")
    _, prepared = ingest_files(tmp_path / "ages", "xray", count=3)
    tuned(tmp_path / "number", prepared, "xray", task="regression")
    with pytest.raises(ValueError, match="tent: found a regression"):
        prediction.predict(tmp_path / "number", files, limits=ONE, test_time="tent")


def _table(folder: Path) -> list[dict[str, str]]:
    with (folder / prediction.TABLE).open(newline="") as file:
        return list(csv.DictReader(file))


def _read_files(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that go to a reader from now on."""
    seen: list[str] = []
    real = native.read_all
    monkeypatch.setattr(
        native, "read_all", lambda rows, *rest: seen.extend(row.path.name for row in rows) or real(rows, *rest)
    )
    return seen


@pytest.mark.parametrize("command", ["predict", "embed"])
def test_a_script_notices_by_exit_code_3_that_a_file_was_refused_unless_it_allows_that_share(
        xray: tuple[list[Path], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str) -> None:
    files, checkpoint = xray
    bad = files[0].parent / "broken.png"
    bad.write_bytes(b"\x89PNG not really")

    def code(*more: object) -> int:
        return lacuna.main([command, str(checkpoint), *map(str, more), "--out", str(tmp_path / "out")])

    assert code(*files) == 0
    assert code(*files, bad) == 3
    assert "found 1 of 4 refused, expected at most 0.0%" in capsys.readouterr().err
    assert code(*files, bad, "--bad-files", "0.25") == 0
    assert code(*files, bad, "--bad-files", "0.2") == 3
    assert code(bad, "--bad-files", "1") == 3, "there is no answer at all"
    assert code(*files, "--bad-files", "5") == 2
    assert "expected a share from 0 to 1" in capsys.readouterr().err


def test_one_bad_file_is_said_and_the_others_are_done(xray: tuple[list[Path], Path], tmp_path: Path) -> None:
    files, checkpoint = xray
    (files[0].parent / "broken.png").write_bytes(b"\x89PNG not really")
    code = prediction.predict_to_folder(
        checkpoint, [*files, files[0].parent / "broken.png", "missing.png"], tmp_path / "out", limits=ONE
    )
    rows = _table(tmp_path / "out")
    assert code == 3 and [row["status"] for row in rows] == ["done"] * 3 + ["refused"] * 2
    assert "no such file" in rows[4]["reason"] and rows[3]["label"] == ""
    assert sum(float(rows[0][f"p.{name}"]) for name in ("no", "yes")) == pytest.approx(1, abs=1e-5)
    records = json.loads((tmp_path / "out" / prediction.RECORDS).read_text())
    assert [record["path"] for record in records] == [row["path"] for row in rows]


def test_what_was_done_by_the_same_checkpoint_on_the_same_bytes_is_skipped(
    xray: tuple[list[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, checkpoint = xray
    out = tmp_path / "out"
    prediction.predict_to_folder(checkpoint, files[:2], out, limits=ONE)
    first = _table(out)
    seen = _read_files(monkeypatch)
    prediction.predict_to_folder(checkpoint, files, out, limits=ONE)
    assert seen == [files[2].name] and _table(out)[:2] == first
    write_file(files[0].with_suffix(""), "xray", seed=99)
    seen.clear()
    prediction.predict_to_folder(checkpoint, files, out, limits=ONE)
    assert seen == [files[0].name], "its bytes have changed"
    record = json.loads((checkpoint / checkpoints.RECORD).read_text())
    (checkpoint / checkpoints.RECORD).write_text(json.dumps({**record, "temperature": 1.0}))
    seen.clear()
    prediction.predict_to_folder(checkpoint, files, out, limits=ONE)
    assert len(seen) == 3, "the temperature has changed"
    assert len(_table(out)) == 3


def test_a_run_that_was_killed_goes_on_from_its_journal(
    xray: tuple[list[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, checkpoint = xray
    out = tmp_path / "out"
    prediction.predict_to_folder(checkpoint, files, out, limits=ONE)
    complete = _table(out)
    lines = (out / prediction.JOURNAL).read_text().splitlines(keepends=True)
    (out / prediction.JOURNAL).write_text(lines[0] + lines[1][:40])  # cut in the middle of a line
    (out / prediction.TABLE).unlink()
    seen = _read_files(monkeypatch)
    prediction.predict_to_folder(checkpoint, files, out, limits=ONE)
    assert seen == [file.name for file in files[1:]] and _table(out) == complete


def test_folders_are_searched_for_what_the_reader_takes(xray: tuple[list[Path], Path], tmp_path: Path) -> None:
    files, checkpoint = xray
    (files[0].parent / "sub").mkdir()
    deeper = write_file(files[0].parent / "sub/deeper", "xray", 7)
    (files[0].parent / "notes.txt").write_text("not a film")
    found = native.rows_of([files[0].parent, files[0]], native.open_checkpoint(checkpoint, "cpu"))
    assert [row.path for row in found] == [*files, deeper]
    with pytest.raises(ValueError, match="found no file for xray"):
        (tmp_path / "empty").mkdir()
        native.rows_of([tmp_path / "empty"], native.open_checkpoint(checkpoint, "cpu"))


def test_a_manifest_brings_source_and_columns(xray: tuple[list[Path], Path], tmp_path: Path) -> None:
    files, checkpoint = xray
    manifest = files[0].parent / "two.csv"
    manifest.write_text(f"path,source,bands\n{files[0].name},north,B2\n{files[1].name},,\n")
    rows = native.rows_of([manifest], native.open_checkpoint(checkpoint, "cpu"))
    assert [(row.path, row.source, row.columns["bands"]) for row in rows] == [
        (files[0], "north", "B2"),
        (files[1], "", ""),
    ]
    manifest.write_text("file\nx\n")
    with pytest.raises(ValueError, match="expected one called path"):
        native.rows_of([manifest], native.open_checkpoint(checkpoint, "cpu"))


def _stub(kind: str, suffixes: tuple[str, ...]) -> Any:
    """As much of an opened checkpoint as finding files needs."""
    return SimpleNamespace(
        contract=SimpleNamespace(kind=kind, domain=DOMAINS[kind]),
        reader=SimpleNamespace(settings=SimpleNamespace(sensor="sentinel2")),
        ingest=SimpleNamespace(suffixes=lambda settings: suffixes),
    )


@pytest.mark.parametrize(
    ("kind", "suffixes", "samples"),
    [
        ("ct", (".nii", ".nii.gz", ".dcm", ""), ["a.nii.gz", "series1", "series2/1.2.840"]),
        ("multispectral", (".tif", ".npy", ""), ["scene", "stacked/one.tif", "stacked/two.tif"]),
        ("xray", (".dcm", ".png", ""), ["a/bare", "a/film.png"]),
    ],
)
def test_a_folder_of_slices_or_of_bands_is_one_sample(
    kind: str, suffixes: tuple[str, ...], samples: list[str], tmp_path: Path
) -> None:
    names = {
        "ct": ["a.nii.gz", "notes.txt", "series1/1.dcm", "series1/2.dcm", "series2/1.2.840/00001", ".hidden/1.dcm"],
        "multispectral": ["scene/T31_B02.tif", "scene/T31_B03.tif", "stacked/one.tif", "stacked/two.tif"],
        "xray": ["a/bare", "a/film.png", "a/notes.txt"],
    }[kind]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = native.rows_of([tmp_path], _stub(kind, suffixes))
    assert [row.path.relative_to(tmp_path).as_posix() for row in found] == samples


@pytest.mark.parametrize("task", ["multi_label", "regression"])
def test_findings_and_numbers_are_named(task: str, xray: tuple[list[Path], Path], tmp_path: Path) -> None:
    files, _ = xray
    _, prepared = ingest_files(tmp_path / "again", "xray", count=3)
    tuned(tmp_path / task, prepared, "xray", task)
    (result,) = prediction.predict(tmp_path / task, files[:1], limits=ONE)
    assert tuple(result["probabilities"]) == TASKS[task].columns
    named = [name for name, value in result["probabilities"].items() if value >= 0.5]
    assert result["label"] == (named if task == "multi_label" else None)


def test_damaged_weights_are_refused(xray: tuple[list[Path], Path]) -> None:
    files, checkpoint = xray
    weights = checkpoint / checkpoints.WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(checkpoints.CheckpointError, match="changed or cut short"):
        prediction.predict(checkpoint, files)


def test_a_checkpoint_without_reader_settings_says_what_to_do(xray: tuple[list[Path], Path]) -> None:
    files, checkpoint = xray
    record = json.loads((checkpoint / checkpoints.RECORD).read_text())
    (checkpoint / checkpoints.RECORD).write_text(json.dumps({**record, "reader": None}))
    with pytest.raises(checkpoints.CheckpointError, match="Ingest the data again"):
        prediction.predict(checkpoint, files)


def test_reader_settings_that_the_weights_do_not_know_are_refused(xray: tuple[list[Path], Path]) -> None:
    files, checkpoint = xray
    contract = json.loads((checkpoint / checkpoints.CONTRACT).read_text())
    contract["channels"][0]["unit"] = "optical density"
    (checkpoint / checkpoints.CONTRACT).write_text(json.dumps(contract))
    with pytest.raises(ValueError, match="unit of grey"):
        prediction.predict(checkpoint, files)
