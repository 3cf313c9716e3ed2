"""A stage that DVC started, when DVC is stopped: it saves and ends, and the next `dvc repro` goes on to the weights of
one that was not stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.fabricate import prepare, pretrain_settings

ROOT = Path(__file__).resolve().parents[2]
PIPELINE = {"stages": {"pretrain": {"foreach": "${pretrain}", "do": {
    "cmd": "lacuna pretrain ${key}", "deps": ["data/prepared/xray"], "params": ["pretrain.${key}"],
    "outs": ["artifacts/pretrain/${key}", "reports/pretrain/${key}"]}}}}


def wait_until(true: Callable[[], object], process: subprocess.Popen[bytes] | None = None) -> None:
    until = time.monotonic() + 120
    while not true():
        assert time.monotonic() < until and (process is None or process.poll() is None)
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    try:
        return "(zombie)" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def test_a_stage_ends_when_the_dvc_above_it_is_killed_also_through_a_shell(tmp_path):
    dvc, mark = tmp_path / "dvc", tmp_path / "mark"
    dvc.write_text("import subprocess, sys\nsubprocess.run(['sh', '-c', '\"$0\" -c \"$1\"; true', *sys.argv[1:]])\n")
    stage = ("import os, pathlib, time; from pipelines.commands.under_dvc import end_with_dvc\n"
             "from pipelines.told_to_stop import ending_on_signals\n"
             "with ending_on_signals():\n"
             f"    end_with_dvc(); pathlib.Path({str(mark)!r}).write_text(str(os.getpid()) + ' ')\n"
             "    try:\n        time.sleep(60)\n"
             f"    finally:\n        pathlib.Path({str(mark) + '2'!r}).write_text('saved')\n")
    process = subprocess.Popen([sys.executable, str(dvc), sys.executable, stage], stderr=subprocess.DEVNULL,
                               env={**os.environ, "PYTHONPATH": str(ROOT)})
    wait_until(lambda: mark.exists() and mark.read_text().endswith(" "), process)
    process.kill()
    wait_until(lambda: not is_running(int(mark.read_text())))
    assert (tmp_path / "mark2").read_text() == "saved"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with prepared data, and one run trained to its end."""
    root = tmp_path_factory.mktemp("project")
    prepare(root / "data/prepared/xray")
    run = {**pretrain_settings("xray", steps=200), "machine": {"accelerator": "cpu", "save_every_seconds": 3600}}
    (root / "params.yaml").write_text(yaml.safe_dump({"pretrain": dict.fromkeys(("whole", "term", "int"), run)}))
    (root / "dvc.yaml").write_text(yaml.safe_dump(PIPELINE))
    (root / "bin").mkdir()
    (root / "bin/lacuna").write_text(f'#!/bin/sh\nexec {sys.executable} -m lacuna "$@"\n')
    (root / "bin/lacuna").chmod(0o755)
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    subprocess.run([sys.executable, "-m", "dvc", "init", "-q"], cwd=root, check=True)
    assert repro(root, "whole").wait(200) == 0
    return root


def repro(root: Path, name: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PATH": f"{root / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT),
                   "LACUNA_TRACKING": "off", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-m", "dvc", "repro", f"pretrain@{name}"], cwd=root, env=environment,
                            start_new_session=True, stdout=(root / f"{name}.log").open("a"), stderr=subprocess.STDOUT)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "number"), [("term", signal.SIGTERM), ("int", signal.SIGINT)])
def test_dvc_repro_that_was_stopped_goes_on_to_the_same_weights(project, name, number):
    curve = project / f"reports/pretrain/{name}/metrics.jsonl"
    stopped = repro(project, name)
    wait_until(lambda: curve.is_file() and len(curve.read_text().splitlines()) > 3, stopped)
    (os.kill if name == "term" else os.killpg)(stopped.pid, number)  # a terminal tells all
    assert stopped.wait(60) != 0
    wait_until(lambda: "goes on from there.\n" in (project / f"{name}.log").read_text())
    assert repro(project, name).wait(200) == 0
    assert "going on after update" in (project / f"{name}.log").read_text()
    whole, again = (json.loads((project / f"artifacts/pretrain/{one}/checkpoint.json").read_text())["weights_sha256"]
                    for one in ("whole", name))
    assert whole == again
