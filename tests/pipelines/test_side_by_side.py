"""Trainings side by side: the same weights and curves as one after the other, whatever becomes of a process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines import finetune
from pipelines.settings import SettingsError, build
from pipelines.training import side_by_side
from pipelines.training.finetune_settings import FinetuneRun
from pipelines.training.resume import REPOSITORY
from tests.fabricate import pretrain_settings, pretrained


def tuning(**changes: Any) -> FinetuneRun:
    like = pretrain_settings("xray")
    return build(FinetuneRun, {
        "domain": "medical", "data": "xray", "task": "bright", "start": "artifacts/pretrain/xray", "seeds": [0, 1],
        "grid": [1e-3], "validations": 1, "patience": 0, "machine": like["machine"],
        "optimisation": {"steps": 4, "batch_size": 8, "log_every": 2, "betas": [0.9, 0.999]}, **changes},
        "finetune.test")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("project")
    pretrained(root, "xray", steps=2)
    return root


@pytest.fixture(autouse=True)
def _no_tracking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LACUNA_TRACKING", "off")


def hashes(root: Path, name: str) -> dict[str, str]:
    folder = root / "artifacts/finetune" / name
    return {str(path.parent.relative_to(folder)): json.loads(path.read_text())["weights_sha256"]
            for path in sorted(folder.glob("*/*/checkpoint.json"))}


def curves(root: Path, name: str) -> dict[tuple[int, str], float]:
    lines = (root / "reports/finetune" / name / "metrics.jsonl").read_text().splitlines()
    return {(point["step"], key): value for point in map(json.loads, lines)
            for key, value in point.items() if key not in ("step", "time")}


@pytest.fixture(scope="module")
def alone(project: Path) -> Path:
    """The same runs, one training after the other, with as many threads as one of two processes has."""
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // 2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LACUNA_TRACKING", "off")
        finetune.run("alone", tuning(), project)
    torch.set_num_threads(threads)
    return project


def test_two_processes_give_the_weights_and_curves_of_one(alone):
    finetune.run("both", tuning(processes=2), alone)
    assert len(hashes(alone, "both")) == 4
    assert hashes(alone, "both") == hashes(alone, "alone")
    assert curves(alone, "both") == curves(alone, "alone")


def test_what_a_process_leaves_undone_is_done_by_the_one_that_started_it(alone, monkeypatch, capsys):
    environment = side_by_side.environment_of
    # The second process sees no project: it ends before it has trained anything
    monkeypatch.setattr(side_by_side, "environment_of", lambda number, count: {
        **environment(number, count), **({"PYTHONPATH": "", "PYTHONHOME": "/nowhere"} if number else {})})
    finetune.run("left", tuning(processes=2), alone)
    assert "1 of 2 processes ended early" in capsys.readouterr().out
    assert hashes(alone, "left").keys() == hashes(alone, "alone").keys()


def test_an_error_in_a_process_is_the_error_of_the_stage(alone, monkeypatch):
    broken = tuning(processes=2, augment={"crop_scales": [0.5, 1.0]})
    with pytest.raises(SettingsError, match="finetune.broken.augment.crop_scales"):
        finetune.run("broken", broken, alone)


def test_processes_of_a_killed_run_end_with_it(tmp_path):
    program = ("import pathlib, sys; from pipelines.training.side_by_side import side_by_side; "
               "side_by_side('tests.pipelines.waits', {'mark': sys.argv[1]}, 2, lambda numbers, step: None)")
    parent = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], cwd=REPOSITORY,
                              env={**os.environ, "PYTHONPATH": str(REPOSITORY)})
    wait_until(lambda: len(list(tmp_path.iterdir())) == 2)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    wait_until(lambda: not any(runs(int(path.name)) for path in tmp_path.iterdir()))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_handed_on_once_and_processes_have_time_to_save(tmp_path, number):
    program = ("import sys; from pipelines.told_to_stop import ending_on_signals\n"
               "from pipelines.training.side_by_side import side_by_side\n"
               "with ending_on_signals():\n"
               "    side_by_side('tests.pipelines.waits', {'mark': sys.argv[1], 'saves': True}, 2, print)")
    parent = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], cwd=REPOSITORY, process_group=0,
                              env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: len(list(tmp_path.iterdir())) == 2)
    os.killpg(parent.pid, number)  # as a terminal does
    said = parent.communicate(timeout=60)[1]
    assert "2 processes finish their update and save it" in said
    assert [path.read_text() for path in tmp_path.iterdir()] == [str(number.value)] * 2
    assert not any(runs(int(path.name)) for path in tmp_path.iterdir())


def test_ctrl_c_while_a_process_still_loads_ends_it_without_a_traceback(tmp_path, capfd):
    child = side_by_side._start("tests.pipelines.waits", {"mark": str(tmp_path)}, side_by_side.environment_of(0, 1))
    time.sleep(0.3)
    child.process.send_signal(signal.SIGINT)
    code = child.process.wait(60)
    child.end()
    assert code in (130, -signal.SIGINT) and "Traceback" not in capfd.readouterr().err


def runs(process: int) -> bool:
    try:
        return "(zombie)" not in Path(f"/proc/{process}/status").read_text()
    except FileNotFoundError:
        return False


def wait_until(true: Any) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline, "waited a minute"
        time.sleep(0.05)


def test_several_processes_of_several_devices_are_refused():
    with pytest.raises(SettingsError, match="1 where one training takes several devices"):
        tuning(processes=2, machine={"accelerator": "cpu", "devices": 2})
