"""The benchmark's pictures differ between the domains in looks alone, and its table says what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.masked_representation import ARMS, main, pictures, report


def test_both_domains_hold_the_same_discs_in_other_looks() -> None:
    (x, truth), (other, same) = pictures(40, False, 1), pictures(40, True, 1)
    assert (truth == same).all() and 0.02 < truth.float().mean() < 0.2
    assert (x[truth[:, None] == 1].mean() - x.mean()) > 1.2 > (other[same[:, None] == 1].mean() - other.mean())


def test_every_arm_is_trained_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--seeds", "2", "--steps", "2", "--batch", "2", "--out", str(tmp_path / "out.json")])
    assert set(json.loads((tmp_path / "out.json").read_text())) == set(ARMS)
    assert "against averaged_teacher" in capsys.readouterr().out


def test_differences_are_paired_by_seed() -> None:
    scores = {"averaged_teacher": [{"source": 1.0, "target": 0.2}, {"source": 1.0, "target": 0.6}],
              "masked_representation": [{"source": 1.0, "target": 0.3}, {"source": 1.0, "target": 0.5}]}
    assert "+0.000 (sd 0.141, higher in 1 of 2)" in report(scores)[1]
