"""`kill -9` of `dvc repro`, again and again: `python -m benchmarks.faults.kill_repro [NUMBER [FIRST]]`.

A copy of the project with one small track is reproduced once from nothing and never disturbed. Then NUMBER (20) times
from nothing again: the process group is killed at a random moment, and the next `dvc repro`, with no other help, must
end well. Every hash in dvc.lock must be that of the undisturbed run, except those of reports/, which say which run it
was and how long it took: there the files are compared one by one, without the run's id and what is counted in seconds.
FIRST (0) numbers the first kill, whose number is the seed of its moment: a campaign may be run in several goes.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from benchmarks.faults.small_project import PARAMS, ROOT, RUN, environment

OF_THE_RUN = {"run.json", "metrics.jsonl", "summary.txt", "trials.csv"}
"""Files of a report that hold ids, times of day or durations."""
DURATIONS = {"seconds", "pretrain_seconds", "finetune_seconds", "resumed"}
STAGES = ("sample", "ingest", "pretrain", "finetune", "evaluate")
MADE = ("data", "artifacts", "reports", ".work", "dvc.lock", ".dvc/cache", ".dvc/tmp")


def main(number: int = 20, first: int = 0, stages: Sequence[str] = STAGES) -> int:
    """Print each kill and the sum; 1 when a next one failed or ended otherwise."""
    with tempfile.TemporaryDirectory() as text:
        root = copy(Path(text) / "project", stages)
        began = time.monotonic()
        finish(root)
        seconds = time.monotonic() - began
        clean = state(root)
        equal = 0
        for i in range(first, first + number):
            when = random.Random(i).uniform(0.05, 0.95) * seconds
            where = kill(root, when)
            finish(root)
            other = differing(clean, state(root))
            equal += not other
            print(f"kill {i} after {when:.0f} of {seconds:.0f} s, in {where}: "
                  f"{'equal' if not other else 'NOT EQUAL ' + ', '.join(other[:5])}", flush=True)
    print(f"kill_repro: {equal} of {number} next `dvc repro` succeeded with the undisturbed run's dvc.lock")
    return 0 if equal == number else 1


def copy(root: Path, stages: Sequence[str] = STAGES) -> Path:
    """The project's tracked files, with one track that is small, and of it these stages."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, text=True, capture_output=True, check=True).stdout
    for name in listed.splitlines():
        if not name.startswith(".dvc/") and (ROOT / name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, root / name)
    params: dict[str, Any] = {stage: {RUN: PARAMS[stage][RUN]} for stage in STAGES}
    params["sample"][RUN]["settings"] |= {"labelled": 96, "unlabelled": 32}
    params["pretrain"][RUN] |= {"machine": {"accelerator": "cpu", "save_every_seconds": 0},
                                "gates": {"min_std": 0, "min_rank": 0}}
    params["pretrain"][RUN]["optimisation"] |= {"steps": 60, "batch_size": 8}
    params["finetune"][RUN] |= {"seeds": [0], "validations": 2,
                                "machine": {"accelerator": "cpu", "save_every_seconds": 0}}
    params["finetune"][RUN]["optimisation"] |= {"steps": 20, "batch_size": 8}
    params["evaluate"][RUN] |= {"resamples": 100}
    (root / "params.yaml").write_text(yaml.safe_dump({stage: params[stage] for stage in stages}, sort_keys=False))
    shipped = yaml.safe_load((root / "dvc.yaml").read_text())["stages"]
    (root / "dvc.yaml").write_text(yaml.safe_dump({"stages": {stage: shipped[stage] for stage in stages}},
                                                  sort_keys=False))
    (root / "bin").mkdir()
    shim = root / "bin/lacuna"
    shim.write_text(f'#!/bin/sh\nexec {sys.executable} -c "import lacuna, sys; sys.exit(lacuna.main(sys.argv[1:]))" '
                    '"$@"\n')
    shim.chmod(0o755)
    subprocess.run([*dvc(), "init", "-q", "--no-scm"], cwd=root, env=around(root), check=True)
    for made in MADE:
        gone(root / made)
    return root


def dvc() -> list[str]:
    """The command."""
    return [sys.executable, "-m", "dvc"]


def around(root: Path) -> dict[str, str]:
    """The copy's own `lacuna` and code."""
    return environment(PATH=f"{root / 'bin'}:{os.environ['PATH']}", PYTHONPATH=str(root))


def finish(root: Path) -> None:
    """`dvc repro` to its end."""
    done = subprocess.run([*dvc(), "repro"], cwd=root, env=around(root), text=True, capture_output=True, timeout=1800)
    if done.returncode:
        raise RuntimeError(f"dvc repro: found exit code {done.returncode}, expected 0:\n{done.stdout[-1500:]}\n"
                           f"{done.stderr[-1500:]}")


def kill(root: Path, when: float) -> str:
    """Begin from nothing and kill all processes after so many seconds; the stage that was running."""
    for made in MADE:
        gone(root / made)
    with (root.parent / "killed.log").open("w+") as log:
        process = subprocess.Popen([*dvc(), "repro"], cwd=root, env=around(root), stdout=log, stderr=log,
                                   start_new_session=True)
        try:
            process.wait(when)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        else:
            return kill(root, when / 2)  # it was faster this time, and had ended
        log.seek(0)
        running = [line.split("'")[1] for line in log if line.startswith("Running stage")]
    return running[-1] if running else "its own start"


def state(root: Path) -> dict[str, Any]:
    """dvc.lock without reports, and what is in the reports."""
    locked = yaml.safe_load((root / "dvc.lock").read_text())["stages"]
    hashes = {f"{stage} {part['path']}": part.get("md5") for stage, entry in locked.items()
              for part in (*entry["deps"], *entry["outs"]) if not part["path"].startswith("reports")}
    files = {str(path.relative_to(root)): content(path) for path in sorted((root / "reports").rglob("*"))
             if path.is_file() and path.name not in OF_THE_RUN}
    return hashes | files


def content(path: Path) -> Any:
    """What a file of a report says, without durations."""
    return timeless(json.loads(path.read_text())) if path.suffix == ".json" else path.read_bytes()


def timeless(value: Any) -> Any:
    """The same without what is counted in seconds."""
    if isinstance(value, dict):
        return {key: timeless(one) for key, one in value.items() if key not in DURATIONS}
    return value


def differing(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Names whose content is not the same."""
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def gone(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
