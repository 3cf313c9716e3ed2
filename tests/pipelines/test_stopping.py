"""Ctrl-C: a training is saved and goes on to what it would have become; a second one, or nothing to save, ends it at
once; every command ends with 130."""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines import cli
from pipelines.training.training import Job, fit
from tests.fabricate import prepare, untrained

STEPS = 12


def job_of(folder: Path, resume: Path | None, points: dict[int, dict[str, float]], **changes: Any) -> Job:
    settings, model, source = untrained(folder, "xray", STEPS, {"accelerator": "cpu"})
    job = Job(model=model, losses=lambda batch, chance: model(batch.x, batch.known, chance), source=source,
              augment=None, optimisation=dataclasses.replace(settings.optimisation, log_every=4),
              machine=settings.machine, seed=5, num_blocks=2, resume=resume, log=points.__setitem__)
    return dataclasses.replace(job, **changes)


def pressing(job: Job, at: int, times: int = 1) -> Job:
    """Somebody presses Ctrl-C in the middle of the update number `at` (from 1)."""
    calls, losses = [], job.losses

    def pressed(*args: Any) -> dict[str, torch.Tensor]:
        calls.append(1)
        if len(calls) == at:
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)
        return losses(*args)

    return dataclasses.replace(job, losses=pressed)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("data") / "data")


@pytest.mark.parametrize("at", [2, 4, 11])
def test_a_training_stopped_by_ctrl_c_goes_on_from_that_update_to_the_same_weights_and_curve(
        folder, tmp_path, capsys, at):
    whole, stopped = {}, {}
    reference = job_of(folder, None, whole)
    fit(reference)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        fit(pressing(job_of(folder, tmp_path / "resume.pt", stopped), at))
    assert "finished and saved first" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is before
    assert torch.load(tmp_path / "resume.pt", weights_only=True)["step"] == at
    again = job_of(folder, tmp_path / "resume.pt", stopped)
    assert fit(again) == STEPS
    assert f"going on after update {at} of {STEPS}." in capsys.readouterr().out
    assert all(torch.equal(value, again.model.state_dict()[name])
               for name, value in reference.model.state_dict().items())
    assert stopped == whole


@pytest.mark.parametrize("resume", [True, False])
def test_a_second_ctrl_c_or_one_with_nowhere_to_save_stops_at_once(folder, tmp_path, resume):
    job = job_of(folder, tmp_path / "resume.pt" if resume else None, {})
    with pytest.raises(KeyboardInterrupt):
        fit(pressing(job, 3, times=2 if resume else 1))
    assert not (tmp_path / "resume.pt").exists()


def test_a_training_that_was_ending_early_when_ctrl_c_came_is_not_trained_further(folder, tmp_path):
    watched: dict[str, Callable[..., Any] | int] = {"every": 4, "watch": lambda step: step == 8}
    with pytest.raises(KeyboardInterrupt):
        fit(pressing(job_of(folder, tmp_path / "resume.pt", {}, **watched), 8))
    assert fit(job_of(folder, tmp_path / "resume.pt", {}, **watched)) == 8


@pytest.mark.parametrize(("command", "said"), [(["pretrain", "xray"], "goes on from there"), (["doctor"], "stopped.")])
def test_a_command_stopped_by_ctrl_c_ends_with_130_and_says_what_is_kept_if_anything_is(
        monkeypatch, capsys, command, said):
    def stopped(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "run_stage", stopped)
    monkeypatch.setattr(cli, "_doctor", stopped)
    assert cli.main(command) == 130
    err = capsys.readouterr().err
    assert said in err and ("goes on" in err) == (command[0] == "pretrain")
