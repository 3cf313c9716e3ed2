"""The scripts that break training, with small numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from benchmarks.faults import kill_repro, kill_training, tracking_down


@pytest.mark.slow
def test_a_training_killed_inside_a_save_and_at_random_ends_with_the_weights_of_one_that_was_not(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", "")
    assert kill_training.main(number=2, steps=40) == 0


@pytest.mark.slow
def test_a_dvc_repro_killed_with_all_its_processes_is_ended_by_the_next_as_if_it_had_not_been() -> None:
    assert kill_repro.main(number=1, stages=("sample", "ingest")) == 0


@pytest.mark.slow
def test_a_server_killed_in_the_middle_costs_no_step_and_no_point() -> None:
    assert tracking_down.main(steps=200) == 0


def reproduced(root: Path, weights: str = "w1", loss: float = 0.5, seconds: float = 1.0, run: str = "r1") -> Path:
    """What kill_repro compares of a project after `dvc repro`, and what it leaves out."""
    report = root / "reports/pretrain/xray"
    report.mkdir(parents=True)
    (root / "dvc.lock").write_text(yaml.safe_dump({"stages": {"pretrain@xray": {
        "deps": [{"path": "data/prepared/xray", "md5": "d"}],
        "outs": [{"path": "artifacts/pretrain/xray", "md5": weights},
                 {"path": "reports/pretrain/xray", "md5": run}]}}}))
    (report / "metrics.json").write_text(json.dumps({"loss": loss, "cost": {"pretrain_seconds": seconds, "steps": 3}}))
    (report / "loss.csv").write_text("step,loss\n1,0.5\n")
    (report / "run.json").write_text(run)
    return root


def test_the_comparison_after_a_kill_leaves_out_ids_and_durations_and_nothing_else(tmp_path: Path) -> None:
    clean = kill_repro.state(reproduced(tmp_path / "clean"))
    later = kill_repro.state(reproduced(tmp_path / "later", seconds=9.0, run="r2"))
    assert kill_repro.differing(clean, later) == []
    for name, change in {"weights": {"weights": "w2"}, "loss": {"loss": 0.6}}.items():
        other = kill_repro.state(reproduced(tmp_path / name, **change))  # type: ignore[arg-type]
        assert len(kill_repro.differing(clean, other)) == 1, name
    short = reproduced(tmp_path / "short")
    (short / "reports/pretrain/xray/loss.csv").unlink()
    assert kill_repro.differing(clean, kill_repro.state(short)) == ["reports/pretrain/xray/loss.csv"]
