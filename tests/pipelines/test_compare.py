"""Comparing shows runs as they were evaluated, with verdict, cost, lineage and where to look."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path

import pytest
from PIL import Image

from domains.publish import write_bytes, write_text
from pipelines import report
from pipelines.commands.compare import compare, final_table
from pipelines.tracking.loggable import check_table
from tests.pipelines.evaluations import estimate, evaluation


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Two evaluated runs: `xray` with run id and picture, `ct` told by an error in its own unit, without either."""
    one = evaluation()
    other = dataclasses.replace(evaluation(estimate(-0.3, -0.9, 0.2), metric="mae", ours=1.1, theirs=1.4), name="ct")
    for run in (one, other):
        write_text(tmp_path / "reports/evaluate" / run.name / "metrics.json", run.to_json())
    write_text(tmp_path / "reports/evaluate/xray/run.json", json.dumps({"run_id": "0123456789abcdef"}))
    write_bytes(tmp_path / "reports/evaluate/xray/arms.png", b"picture")
    return tmp_path


def test_the_closing_table_has_every_run_its_arms_differences_lineage_picture_and_command(project: Path) -> None:
    lines = final_table(project).splitlines()
    assert lines[0].split() == ["track", "arm", "metric", "score", "minus", "scratch", "groups", "MLflow", "run"]
    pretrained = next(line for line in lines if line.startswith("xray") and "pretrained" in line)
    assert "0.850 [0.800, 0.890]" in pretrained and "+0.040 [+0.010, +0.070]" in pretrained
    assert pretrained.endswith("0123456789abcdef")
    assert any("floor: intensity" in line for line in lines)
    assert "xray: pretraining helped: AUROC 0.850 against 0.810" in "\n".join(lines)
    assert "ct: cannot tell whether pretraining helped: MAE 1.100 against 1.400" in "\n".join(lines)
    assert "  cost: pretraining 600 steps (75 s), fine-tuning scratch 120 steps (30 s)" in "\n".join(lines)
    assert "picture: reports/evaluate/xray/arms.png" in lines
    assert lines[-1].startswith("MLflow:  mlflow ui --backend-store-uri sqlite:///mlflow.db")


def test_verdicts_and_shifts_are_told_below_the_scores(project: Path) -> None:
    for stage in ("verdict", "shift"):
        folder = project / "reports" / stage / "films"
        folder.mkdir(parents=True)
        (folder / "summary.txt").write_text(f"what the {stage} found\n")
    text = compare([], project)
    for stage in ("verdict", "shift"):
        assert f"what the {stage} found" in text and f"page: reports/{stage}/films/report.html" in text


def test_named_runs_come_alone_and_in_the_order_asked(project: Path) -> None:
    assert "xray" not in compare(["ct"], project)
    text = compare(["xray", "ct", "xray"], project)
    assert text.index("xray") < text.index("ct  ") and text.count("floor: intensity") == 2


def test_an_export_has_every_estimate_and_one_picture_per_unit(project: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    compare([], project, out)
    assert sorted(file.name for file in out.iterdir()) == [
        "comparison-auroc.png", "comparison-mae.png", "comparison.csv", "comparison.json"]
    assert Image.open(out / "comparison-mae.png").format == "PNG"
    with (out / "comparison.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["run"] for row in rows} == {"xray", "ct"} and len(rows) == 20
    exported = json.loads((out / "comparison.json").read_text())
    assert exported["mlflow"] == {"xray": "0123456789abcdef", "ct": None}
    assert exported["verdicts"]["xray"]["pretrained"].startswith("pretraining helped")
    assert exported["runs"]["ct"]["paired"]["pretrained"]["mae"]["low"] == -0.9
    compare(["xray"], project, tmp_path / "one")
    assert (tmp_path / "one/comparison.png").is_file()


def test_estimates_may_go_to_the_tracking_server(project: Path, tmp_path: Path) -> None:
    from pipelines.scoring.evaluation_record import rows_of

    report.write_csv(tmp_path / "metrics.csv", rows_of(evaluation()))
    check_table(tmp_path / "metrics.csv")  # raises where a column could name somebody


def test_a_run_that_is_not_there_is_refused_by_naming_those_that_are(project: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="run day: .* expected one of ct, xray. Remedy: `lacuna evaluate day`"):
        compare(["day"], project)
    with pytest.raises(FileNotFoundError, match="nothing to compare"):
        compare([], tmp_path / "empty")


def test_one_arm_alone_is_shown_without_a_verdict(project: Path) -> None:
    alone = dataclasses.replace(evaluation(), paired={}, paired_per_source={}, name="alone")
    write_text(project / "reports/evaluate/alone/metrics.json", alone.to_json())
    assert "alone: one arm, no difference" in compare(["alone"], project)
