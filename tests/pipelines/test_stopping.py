"""Ctrl-C, SIGTERM, SIGUSR1: a training is saved and goes on to what it would have become; a second Ctrl-C, or nothing
to save, ends it at once; the exit code of every command says by what it was stopped."""

from __future__ import annotations

import dataclasses
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from pipelines import cli, ingest
from pipelines.told_to_stop import ending_on_signals, exit_code
from pipelines.training import training_module
from pipelines.training.stopping import stopping_after_an_update
from pipelines.training.training import Job, fit
from tests.fabricate import prepare, pretrain_settings, untrained
from tests.pipelines import fake_domain
from tests.pipelines.fake_ingest import make_files

STEPS = 12


def job_of(folder: Path, resume: Path | None, points: dict[int, dict[str, float]], **changes: Any) -> Job:
    settings, model, source = untrained(folder, "xray", STEPS, {"accelerator": "cpu"})
    job = Job(model=model, losses=lambda batch, chance: model(batch.x, batch.known, chance), source=source,
              augment=None, optimisation=dataclasses.replace(settings.optimisation, log_every=4),
              machine=settings.machine, seed=5, num_blocks=2, resume=resume, log=points.__setitem__)
    return dataclasses.replace(job, **changes)


def pressing(job: Job, at: int, *signals: int) -> Job:
    """Somebody presses Ctrl-C, or sends other signals, in the middle of the update number `at` (from 1)."""
    calls, losses = [], job.losses

    def pressed(*args: Any) -> dict[str, torch.Tensor]:
        calls.append(1)
        if len(calls) == at:
            for number in signals or [signal.SIGINT]:
                signal.raise_signal(number)
        return losses(*args)

    return dataclasses.replace(job, losses=pressed)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("data") / "data")


@pytest.mark.parametrize(("at", "number"), [(2, signal.SIGINT), (4, signal.SIGTERM), (11, signal.SIGUSR1)])
def test_a_training_stopped_by_a_signal_goes_on_from_that_update_to_the_same_weights_and_curve(
        folder, tmp_path, capfd, at, number):
    whole, stopped = {}, {}
    reference = job_of(folder, None, whole)
    fit(reference)
    with ending_on_signals():
        before = signal.getsignal(number)
        with pytest.raises(KeyboardInterrupt) as caught:
            fit(pressing(job_of(folder, tmp_path / "resume.pt", stopped, title="films"), at, number))
        # until the command has ended, what is sent again is not heard
        assert signal.getsignal(number) is (before if number == signal.SIGINT else signal.SIG_IGN)
    assert signal.getsignal(number) is (before if number == signal.SIGINT else signal.SIG_DFL)
    assert exit_code(caught.value) == 128 + number
    said = capfd.readouterr().err
    assert "finished and saved first" in said
    assert f"films: stopped after update {at} of {STEPS}, saved in " in said and "goes on from there" in said
    assert torch.load(tmp_path / "resume.pt", weights_only=True)["step"] == at
    again = job_of(folder, tmp_path / "resume.pt", stopped)
    assert fit(again) == STEPS
    assert f"going on after update {at} of {STEPS}." in capfd.readouterr().out
    assert all(torch.equal(value, again.model.state_dict()[name])
               for name, value in reference.model.state_dict().items())
    assert stopped == whole


@pytest.mark.parametrize(("signals", "resume"), [
    ([signal.SIGINT, signal.SIGINT], True), ([signal.SIGTERM, signal.SIGINT], True),
    ([signal.SIGINT], False), ([signal.SIGTERM], False), ([signal.SIGUSR1], False)])
def test_a_second_ctrl_c_or_a_signal_with_nowhere_to_save_stops_at_once(folder, tmp_path, signals, resume):
    job = job_of(folder, tmp_path / "resume.pt" if resume else None, {})
    with pytest.raises(KeyboardInterrupt), ending_on_signals():
        fit(pressing(job, 3, *signals))
    assert not (tmp_path / "resume.pt").exists()


def test_a_scheduler_that_sends_its_signal_again_does_not_keep_a_training_from_saving(folder, tmp_path):
    with pytest.raises(KeyboardInterrupt) as caught, ending_on_signals():
        fit(pressing(job_of(folder, tmp_path / "resume.pt", {}), 3, signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM))
    assert exit_code(caught.value) == 138 and torch.load(tmp_path / "resume.pt", weights_only=True)["step"] == 3


@pytest.mark.parametrize("waits", [True, False])
def test_a_signal_sent_again_does_not_break_off_what_is_closed_after_a_training(waits):
    closed = []
    with pytest.raises(KeyboardInterrupt) as caught, ending_on_signals():
        try:
            with stopping_after_an_update(waits) as stop:
                signal.raise_signal(signal.SIGUSR1)
                stop.leave(stop.agreed(), [])
        finally:
            signal.raise_signal(signal.SIGTERM)
            closed.append(True)
    assert closed and exit_code(caught.value) == 138


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_after_the_last_update_is_not_lost(number):
    with pytest.raises(KeyboardInterrupt) as caught, ending_on_signals(), stopping_after_an_update(True):
        signal.raise_signal(number)  # nobody looks at it any more
    assert exit_code(caught.value) == 128 + number


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_is_ignored_or_that_the_caller_handles_is_left_alone(folder, tmp_path, monkeypatch, number):
    seen: list[int] = []
    for handler in (signal.SIG_IGN, lambda number, frame: seen.append(number)):
        before = signal.signal(number, handler)
        try:
            with ending_on_signals():
                assert fit(pressing(job_of(folder, tmp_path / f"{len(seen)}.pt", {}), 3, number)) == STEPS
            assert signal.getsignal(number) is handler
        finally:
            signal.signal(number, before)
    assert seen == [number]


def test_lightning_asks_slurm_for_nothing(folder, tmp_path, monkeypatch):
    """On a SLURM cluster it would save a checkpoint of its own at SIGUSR1, and put the job into the queue again."""
    for name, value in {"SLURM_NTASKS": "1", "SLURM_JOB_NAME": "films", "SLURM_JOB_ID": "17", "SLURM_PROCID": "0",
                        "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_NTASKS_PER_NODE": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    asked: list[list[str]] = []
    monkeypatch.setattr("lightning.pytorch.trainer.connectors.signal_connector.call", asked.append)
    with pytest.raises(KeyboardInterrupt) as caught, ending_on_signals():
        fit(pressing(job_of(folder, tmp_path / "resume.pt", {}), 3, signal.SIGUSR1))
    assert exit_code(caught.value) == 138 and not asked
    assert [path.name for path in tmp_path.iterdir()] == ["resume.pt"]


def test_a_training_that_was_ending_early_when_ctrl_c_came_is_not_trained_further(folder, tmp_path):
    watched: dict[str, Callable[..., Any] | int] = {"every": 4, "watch": lambda step: step == 8}
    with pytest.raises(KeyboardInterrupt):
        fit(pressing(job_of(folder, tmp_path / "resume.pt", {}, **watched), 8))
    assert fit(job_of(folder, tmp_path / "resume.pt", {}, **watched)) == 8


@pytest.mark.parametrize(("command", "said"), [
    (["pretrain", "xray"], "; what was finished is kept, and the same command goes on from there."),
    (["ingest", "xray"], "; nothing of it is kept, and the same command begins anew."), (["doctor"], ".")])
@pytest.mark.parametrize(("number", "name", "code"), [
    (signal.SIGINT, "Ctrl-C", 130), (signal.SIGTERM, "SIGTERM", 143), (signal.SIGUSR1, "SIGUSR1", 138),
    (signal.SIGHUP, "SIGHUP", 129)])
def test_a_command_stopped_by_a_signal_says_which_and_what_is_kept(
        monkeypatch, tmp_path, capfd, command, said, number, name, code):
    def stopped(*args: Any) -> None:
        signal.raise_signal(number)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "run_stage", stopped)
    monkeypatch.setattr(cli, "_doctor", stopped)
    before = signal.getsignal(number)
    assert cli.main(command) == code and signal.getsignal(number) is before
    assert capfd.readouterr().err == f"stopped by {name}{said}\n"


def test_the_command_pretrain_stopped_by_sigterm_goes_on_to_the_weights_of_one_that_was_not(
        tmp_path, monkeypatch, no_tracking, capfd):
    prepare(tmp_path / "data/prepared/xray")
    run = pretrain_settings("xray", steps=STEPS)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"pretrain": {"whole": run, "stopped": run}}))
    monkeypatch.chdir(tmp_path)
    assert cli.main(["pretrain", "whole"]) == 0
    with monkeypatch.context() as patch:
        real, calls = training_module.Training.optimizer_step, []

        def sent(self: Any, *args: Any, **kwargs: Any) -> None:
            calls.append(1)
            if len(calls) == 5:
                signal.raise_signal(signal.SIGTERM)
            real(self, *args, **kwargs)

        patch.setattr(training_module.Training, "optimizer_step", sent)
        assert cli.main(["pretrain", "stopped"]) == 143
    assert "pretrain stopped: stopped after update 5 of 12, saved in .work/pretrain/stopped-" in capfd.readouterr().err
    assert not (tmp_path / "artifacts/pretrain/stopped").exists()
    assert cli.main(["pretrain", "stopped"]) == 0
    whole, stopped = (json.loads((tmp_path / f"artifacts/pretrain/{name}/checkpoint.json").read_text())
                      for name in ("whole", "stopped"))
    assert whole["weights_sha256"] == stopped["weights_sha256"]


def test_an_ingest_stopped_by_sigterm_leaves_no_file_and_no_reading_process_and_its_run_is_killed(
        tmp_path, monkeypatch, no_tracking, capfd):
    make_files(tmp_path)
    files = {"folder": "data/raw/a", "manifest": "data/raw/a/labels.csv", "mask_column": "mask"}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"ingest": {"a": {
        "domain": "medical", "files": files, "read": {"kind": "squares"}, "limits": {"workers": 2}}}}))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ingest, "domain_reader",
                        lambda domain: ingest.DomainReader(fake_domain, fake_domain, fake_domain.Settings))
    before, reading = children(), []
    real = ingest.Writer.add

    def sent(self: Any, *args: Any) -> None:
        if self is not None and not reading:
            reading.extend(children() - before)
            signal.raise_signal(signal.SIGTERM)
        real(self, *args)

    monkeypatch.setattr(ingest.Writer, "add", sent)
    assert cli.main(["ingest", "a"]) == 143
    assert "stopped by SIGTERM; nothing of it is kept" in capfd.readouterr().err
    assert reading and not children() - before and not list((tmp_path / "data/prepared").iterdir())
    assert json.loads((tmp_path / "reports/ingest/a/run.json").read_text())["status"] == "KILLED"


def children() -> set[int]:
    """Processes that this one has started and that still run."""
    found = {int(one) for task in Path("/proc/self/task").iterdir() for one in (task / "children").read_text().split()}
    return {one for one in found if "(zombie)" not in Path(f"/proc/{one}/status").read_text()}
