"""An evaluation survives its file, refuses other formats, and flattens without inventing numbers."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest

from pipelines.scoring.evaluation_record import Cost, from_json, load, rows_of
from pipelines.settings import SettingsError
from tests.pipelines.evaluations import estimate, evaluation


def test_an_evaluation_read_back_equals_the_one_written(tmp_path: Path) -> None:
    one = evaluation(estimate(None, note="the test rows lack an outcome"))
    (tmp_path / "metrics.json").write_text(one.to_json())
    assert load(tmp_path / "metrics.json") == one


def test_what_is_not_a_number_is_written_as_null() -> None:
    one = dataclasses.replace(evaluation(), cost=Cost(1, math.nan))
    raw = json.loads(one.to_json(), parse_constant=lambda name: pytest.fail(f"found {name}"))
    assert raw["cost"]["pretrain_seconds"] is None


def test_another_format_and_a_strange_key_are_refused() -> None:
    raw = json.loads(evaluation().to_json())
    with pytest.raises(ValueError, match="found evaluation format 7, expected 1"):
        from_json(json.dumps({**raw, "format_version": 7}))
    with pytest.raises(SettingsError, match=r"metrics.json.arms.scratch.colour"):
        raw["arms"]["scratch"]["colour"] = 1
        from_json(json.dumps(raw))
    with pytest.raises(ValueError, match="is not JSON"):
        from_json("{")


def test_a_missing_evaluation_says_which_command_makes_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="lacuna evaluate ct"):
        load(tmp_path / "ct" / "metrics.json")


def test_flat_numbers_leave_out_what_is_not_estimable() -> None:
    flat = evaluation(estimate(None)).flat()
    assert flat["pretrained.auroc"] == 0.85 and flat["scratch.auroc.low"] == pytest.approx(0.76)
    assert flat["floor.intensity.auroc"] == 0.6
    assert not [name for name in flat if name.startswith("paired")]


def test_rows_say_of_what_each_estimate_is() -> None:
    rows = rows_of(evaluation())
    found = {(row["statistic"], row["arm"], row["floor"], row["source"], row["class"]): row["value"] for row in rows}
    assert found["score", "pretrained", "", "", ""] == 0.85
    assert found["difference", "pretrained", "", "", ""] == 0.04
    assert found["difference", "pretrained", "", "north", ""] == 0.03
    assert found["score", "", "intensity", "", ""] == 0.6
    assert found["difference", "pretrained", "intensity", "", ""] == 0.2
    assert found["score", "scratch", "", "", "yes"] == 0.81
    assert len(found) == len(rows) == 10
