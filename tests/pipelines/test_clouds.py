"""`lacuna predict` with a model of the classes of points writes a cloud for each file, once, and refuses one by one."""

from __future__ import annotations

import csv
import json
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from domains.quarantine import Limits
from domains.store import Prepared
from models.heads.tuned import Tuned
from pipelines.cli import main
from pipelines.prediction import predict as prediction
from pipelines.prediction.segmenting import segment
from pipelines.training.batches import Source, domain_code
from tests.pipelines.native_files import ingest_files
from tests.pipelines.test_masks import of_masks

laspy = pytest.importorskip("laspy")
pytest.importorskip("scipy")

ONE = Limits(workers=1)
NUMBERS = np.array([0, 7, 9])
SHARED = Path(os.environ.get("LACUNA_SHARED", "")) / "data/pointcloud"


@pytest.fixture
def made(tmp_path: Path) -> tuple[list[Path], Prepared, Tuned]:
    """Three clouds of 200 points, of which 128 are stored and a model sees 64 at once, and a checkpoint."""
    files, prepared = ingest_files(tmp_path, "points", count=3)
    return files, prepared, of_masks(tmp_path / "checkpoint", prepared, "points")


def run(folder: Path, files: list[Path], code: int = 0) -> list[dict[str, Any]]:
    assert prediction.predict_to_folder(folder / "checkpoint", files, folder / "out", limits=ONE) == code
    results: list[dict[str, Any]] = json.loads((folder / "out/predictions.json").read_text())
    return results


def labels_of(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Places and labels of a PLY cloud of float coordinates and a label."""
    _, _, body = path.read_bytes().partition(b"end_header\n")
    table = np.frombuffer(body, [*((axis, "<f8") for axis in "xyz"), ("label", "u1")])
    return np.stack([table[axis] for axis in "xyz"], axis=1), table["label"]


def test_a_cloud_says_of_the_points_that_were_seen_what_the_model_says_of_the_sample(
        made: tuple[list[Path], Prepared, Tuned], tmp_path: Path) -> None:
    files, prepared, model = made
    results = run(tmp_path, files)
    assert [result["mask"] for result in results] == [f"masks/f{i}.ply" for i in range(3)]
    source = Source(prepared, prepared.contract, domain_code("pointcloud"), np.arange(len(prepared)))
    said: set[int] = set()
    for row, result in enumerate(results):
        places, labels = labels_of(tmp_path / "out" / result["mask"])
        assert np.array_equal(places, np.load(files[row]))
        centred = places - places.mean(axis=0)
        stored = np.asarray(prepared.values(row), dtype=np.float64)
        far = np.linalg.norm(centred[:, None] / np.linalg.norm(centred, axis=1).max() - stored[None], axis=2)
        # Stored places are rounded and centred anew, so that the nearest is the same point where it is clearly so.
        nearest = far.argmin(axis=0)
        second = np.sort(far, axis=0)[1]
        called = NUMBERS[segment(model, source, row, torch.device("cpu")).argmax(0)]
        clear = far.min(axis=0) < 0.25 * second
        assert clear.sum() > 20 and (labels[nearest] == called)[clear].all()
        said |= set(labels.tolist())
    assert len(said) > 1, "the test would not notice classes that are mixed up"


def test_the_table_counts_points(made: tuple[list[Path], Prepared, Tuned], tmp_path: Path) -> None:
    files, _, _ = made
    run(tmp_path, files)
    with (tmp_path / "out/masks.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [(line["class"], line["number"]) for line in lines[:3]] == [("rest", "0"), ("lake", "7"), ("road", "9")]
    for line in lines:
        _, labels = labels_of(tmp_path / "out" / line["mask"])
        assert int(line["pixels"]) == (labels == int(line["number"])).sum() and line["size"] == line["unit"] == ""


def test_what_was_done_is_not_done_again_unless_its_cloud_is_gone(
        made: tuple[list[Path], Prepared, Tuned], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files, _, _ = made
    first = run(tmp_path, files)
    before = {one["mask"]: (tmp_path / "out" / one["mask"]).read_bytes() for one in first}
    (tmp_path / "out" / first[1]["mask"]).unlink()
    capsys.readouterr()
    assert sorted(map(str, run(tmp_path, files))) == sorted(map(str, first))
    assert "1 files done, 2 done before, 0 refused" in capsys.readouterr().out
    assert {name: (tmp_path / "out" / name).read_bytes() for name in before} == before, "the same bytes again"


def test_a_damaged_cloud_a_mesh_and_a_missing_one_are_refused_alone_and_no_text_of_theirs_is_shown(
        made: tuple[list[Path], Prepared, Tuned], tmp_path: Path, capsys: pytest.CaptureFixture[str],
        caplog: pytest.LogCaptureFixture) -> None:
    files, _, _ = made
    header = laspy.LasHeader(point_format=1, version="1.2")
    header.system_identifier, header.generating_software = "SECRET OWNER", "SECRET PROGRAM"
    las = laspy.LasData(header)
    las.x, las.y, las.z = np.random.default_rng(0).normal(size=(3, 300)) * 10
    las.write(tmp_path / "whole.las")
    whole = (tmp_path / "whole.las").read_bytes()
    (tmp_path / "short.las").write_bytes(whole[:-40])
    (tmp_path / "mesh.off").write_text("OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 2\n")
    caplog.set_level(logging.DEBUG)
    asked = [tmp_path / "short.las", files[0], tmp_path / "mesh.off", tmp_path / "gone.ply", tmp_path / "whole.las"]
    results = run(tmp_path, asked, code=3)
    assert [one["status"] for one in results] == ["refused", "done", "refused", "refused", "done"]
    assert "LAS: found" in results[0]["reason"] and "found a mesh" in results[2]["reason"]
    kept = laspy.read(tmp_path / "out" / results[4]["mask"])
    assert kept.header.system_identifier == "SECRET OWNER", "the cloud is still that of its owner"
    shown = capsys.readouterr()
    tables = "".join((tmp_path / "out" / name).read_text() for name in ("predictions.csv", "predictions.json"))
    assert "SECRET" not in shown.out + shown.err + caplog.text + tables
    left = sorted(path.name for path in (tmp_path / "out/masks").rglob("*") if path.is_file())
    assert left == ["f0.ply", "whole.las"]


def test_the_command_says_where_the_clouds_are(made: tuple[list[Path], Prepared, Tuned], tmp_path: Path,
                                               capsys: pytest.CaptureFixture[str]) -> None:
    files, _, _ = made
    assert main(["predict", str(tmp_path / "checkpoint"), str(files[0]), "--out", str(tmp_path / "out")]) == 0
    assert str(tmp_path / "out/masks") in capsys.readouterr().out


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs real files: set LACUNA_SHARED")
def test_a_real_survey_gets_classes_for_all_its_points(made: tuple[list[Path], Prepared, Tuned],
                                                       tmp_path: Path) -> None:
    source = SHARED / "als/Topography.laz"
    trees = sorted((SHARED / "dales/tree").glob("*.ply"))[:2]
    results = run(tmp_path, [source, *trees])
    assert [Path(result["mask"]).name for result in results] == [path.name for path in (source, *trees)]
    before, after = laspy.read(source), laspy.read(tmp_path / "out" / results[0]["mask"])
    assert np.array_equal(before.xyz, after.xyz) and np.array_equal(before.intensity, after.intensity)
    noise = np.isin(before.classification, (7, 18)) | (np.asarray(before.withheld) != 0)
    assert set(np.asarray(after.classification)[~noise].tolist()) <= set(NUMBERS.tolist())
    assert sum(entry["pixels"] for entry in results[0]["classes"]) + results[0]["not_looked_at"] == len(before)
