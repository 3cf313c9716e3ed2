"""Several processes of one training, of which one or all are asked to stop: they leave it after the same update, and it
goes on to the weights of one that was not stopped."""

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
import yaml

from tests.fabricate import prepare, pretrain_settings

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
STEPS = 160
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


def started(root: Path, name: str, launcher: list[str]) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "LACUNA_TRACKING": "off", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, *launcher, "-m", "lacuna", "pretrain", name], cwd=root, env=environment,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def weights(root: Path, name: str) -> str:
    return str(json.loads((root / f"artifacts/pretrain/{name}/checkpoint.json").read_text())["weights_sha256"])


def in_the_middle(root: Path, name: str, process: subprocess.Popen[str]) -> None:
    """Wait until it has trained for a while."""
    curve, until = root / f"reports/pretrain/{name}/metrics.jsonl", time.monotonic() + 120
    while not (curve.is_file() and len(curve.read_text().splitlines()) > 3):
        assert process.poll() is None and time.monotonic() < until, process.communicate()[1][-3000:]
        time.sleep(0.02)


def children(process: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared data, the runs, and one of each strategy trained by two processes to its end."""
    root = tmp_path_factory.mktemp("project")
    prepare(root / "data/prepared/xray")
    runs = {f"{name}-{strategy}": run_of(strategy) for strategy in ("ddp", "fsdp")
            for name in ("whole", "all", "first", "last", "launcher")}
    (root / "params.yaml").write_text(yaml.safe_dump({"pretrain": runs}))
    for strategy in ("ddp", "fsdp"):
        assert started(root, f"whole-{strategy}", []).wait(200) == 0
    return root


def run_of(strategy: str) -> dict[str, Any]:
    machine = {"accelerator": "cpu", "save_every_seconds": 3600, "strategy": strategy, "devices": 2}
    return {**pretrain_settings("xray", steps=STEPS), "machine": machine}


def goes_on(root: Path, name: str, launcher: list[str]) -> None:
    again = started(root, name, launcher)
    out, said = again.communicate(timeout=200)
    assert again.returncode == 0 and "going on after update" in out, said[-3000:]
    assert weights(root, name) == weights(root, f"whole-{name.split('-')[1]}")


@pytest.mark.parametrize(("name", "number"), [("all-ddp", signal.SIGINT), ("first-fsdp", signal.SIGTERM)])
def test_two_processes_of_lightnings_launcher_stop_after_the_same_update_and_go_on(project, name, number):
    process = started(project, name, [])
    in_the_middle(project, name, process)
    beside = children(process.pid)
    (os.killpg if "all" in name else os.kill)(process.pid, number)  # a terminal tells all, `kill` the first one
    _, said = process.communicate(timeout=120)
    assert process.returncode == 128 + number, said[-3000:]
    assert said.count("finished and saved first") == said.count(f"pretrain {name}: stopped after update ") == 1
    assert said.count("goes on from there.") == 2 and "Traceback" not in said
    assert beside and not any(Path(f"/proc/{one}").exists() for one in beside)
    goes_on(project, name, [])


@pytest.mark.parametrize("name", ["last-ddp", "launcher-ddp"])
def test_under_torchrun_processes_stop_together_whether_one_is_told_or_all(project, name):
    process = started(project, name, TORCHRUN)
    in_the_middle(project, name, process)
    os.kill(process.pid if "launcher" in name else children(process.pid)[-1], signal.SIGTERM)  # torchrun hands it on
    _, said = process.communicate(timeout=120)
    assert f"pretrain {name}: stopped after update " in said and "SIGKILL" not in said, said[-3000:]
    goes_on(project, name, TORCHRUN)
