"""The scripts that break training, with small numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.faults import kill_training


@pytest.mark.slow
def test_a_training_killed_inside_a_save_and_at_random_ends_with_the_weights_of_one_that_was_not(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", "")
    assert kill_training.main(number=2, steps=40) == 0
