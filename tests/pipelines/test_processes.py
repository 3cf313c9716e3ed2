"""How many processes there are, and which one this is, as launchers say it."""

from __future__ import annotations

import pytest

from pipelines.training.processes import follows, started

TORCHRUN = {"TORCHELASTIC_RUN_ID": "1", "LOCAL_WORLD_SIZE": "4", "WORLD_SIZE": "8"}
SRUN = {"SLURM_STEP_ID": "0", "SLURM_NTASKS": "16", "SLURM_NNODES": "2"}


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*TORCHRUN, *SRUN, "RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(("environment", "expected"), [
    ({}, (2, 3)), (TORCHRUN, (4, 2)), (SRUN, (8, 2)), ({**SRUN, "SLURM_NTASKS": "1"}, (2, 3))])
def test_what_was_started_wins_over_the_settings(
        monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: tuple[int, int]) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert started(2, 3) == expected


@pytest.mark.parametrize(("variable", "value", "expected"), [
    ("RANK", "0", False), ("RANK", "1", True), ("LOCAL_RANK", "2", True), ("NODE_RANK", "1", True),
    ("SLURM_PROCID", "0", False), ("SLURM_PROCID", "9", True)])
def test_the_first_process_alone_does_not_follow(
        monkeypatch: pytest.MonkeyPatch, variable: str, value: str, expected: bool) -> None:
    assert not follows()
    monkeypatch.setenv(variable, value)
    assert follows() == expected
