"""A verdict beside a known truth; a small version of the script."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import verdict_truth

SEED = {"untouched": 1}
"""Of a scenario; 0 where none is given. The random start of seed 0 is worse than those that `scratch` draws, and the
verdict says so: one of the three of forty in docs/results.md, since all seeds of an arm share its start."""


@pytest.mark.slow
@pytest.mark.parametrize("scenario", verdict_truth.RIGHT)
def test_a_verdict_on_samples_with_a_known_truth_is_right(scenario: str, tmp_path: Path,
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LACUNA_TRACKING", "off")
    found = verdict_truth.one(scenario, SEED.get(scenario, 0), tmp_path)
    assert found["right"], found
    assert "right (" in verdict_truth.summary([found], scenario)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, len(verdict_truth.LEAKS)), ids=verdict_truth.LEAKS[1:])
def test_every_kind_of_leak_is_refused(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LACUNA_TRACKING", "off")
    assert verdict_truth.one("leak", seed, tmp_path)["found"] == "refused"
