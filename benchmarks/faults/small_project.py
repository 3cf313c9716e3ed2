"""A project folder of one small pretraining, and the real command in it, for the scripts that break things."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import yaml

from pipelines import ingest, sample
from pipelines.ingest import DataRun
from pipelines.sample import SampleRun
from pipelines.settings import build

ROOT = Path(__file__).resolve().parents[2]
PARAMS: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text())
RUN = "xray"


def make(root: Path, width: int = 64, **optimisation: Any) -> Path:
    """Prepared X-rays of the embedded sample, and a params.yaml with one pretraining that saves at every chance."""
    shipped = PARAMS["pretrain"][RUN]
    paragraph = {**shipped, "machine": {"accelerator": "cpu", "save_every_seconds": 0}, "num_pictures": 2,
                 "gates": {"min_std": 0, "min_rank": 0},
                 "encoder": {**shipped["encoder"], "size": {"width": width, "depth": 2, "num_heads": 2}},
                 "optimisation": {**shipped["optimisation"], "steps": 200, "batch_size": 8, "log_every": 2,
                                  **optimisation}}
    (root / "params.yaml").write_text(yaml.safe_dump({"pretrain": {RUN: paragraph}}))
    (root / "scratch").touch()
    draw(root, RUN, 48, 48)
    read(root, RUN)
    return root


def draw(root: Path, run: str, labelled: int, unlabelled: int) -> None:
    """Files of an embedded sample, fewer than shipped."""
    shipped = PARAMS["sample"][run]
    settings = {**shipped["settings"], "labelled": labelled, "unlabelled": unlabelled}
    sample.run(run, build(SampleRun, {**shipped, "settings": settings}, f"sample.{run}"), root)


def read(root: Path, run: str, **changes: Any) -> None:
    """Prepared data of what was drawn, without tracking."""
    with patch.dict(os.environ, LACUNA_TRACKING="off"):
        ingest.run(run, build(DataRun, {**PARAMS["ingest"][run], **changes}, f"ingest.{run}"), root)


def environment(**more: str) -> dict[str, str]:
    """For the command: this code, one thread, no tracking unless asked for."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "LACUNA_TRACKING": "off",
            "PYTHONDONTWRITEBYTECODE": "1", **more}


def lacuna(root: Path, *arguments: str, before: Sequence[str] = (), **more: str) -> subprocess.Popen[str]:
    """Start `lacuna ARGUMENTS` in a project, as the leader of a process group of its own."""
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import lacuna; sys.exit(lacuna.main(sys.argv[1:]))"
    return subprocess.Popen([*before, sys.executable, "-c", program, *arguments], cwd=root, env=environment(**more),
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def to_the_end(process: subprocess.Popen[str], timeout: float = 300) -> str:
    """Wait for a command that must succeed; what it said."""
    out, errors = process.communicate(timeout=timeout)
    if process.returncode:
        raise RuntimeError(f"found exit code {process.returncode}, expected 0:\n{errors[-2000:]}")
    return out + errors


def weights_hash(root: Path) -> str:
    """sha256 of the published weights."""
    record = json.loads((root / "artifacts/pretrain" / RUN / "checkpoint.json").read_text())
    return str(record["weights_sha256"])


def resume_files(root: Path) -> list[Path]:
    """The resume states that lie there whole."""
    return sorted((root / ".work/pretrain").glob("*/resume.pt"))


def first_save(root: Path, process: subprocess.Popen[str]) -> Path:
    """Wait for a training's first resume state; the folder that it lies in. Raises RuntimeError when it ends before."""
    while not (there := resume_files(root)):
        if process.poll() is not None:
            raise RuntimeError(f"ended with {process.returncode} before it saved: {process.communicate()[1][-2000:]}")
        time.sleep(0.001)
    return there[0].parent


def readable(file: Path) -> bool:
    """Whether a resume state loads and holds finite numbers."""
    state = torch.load(file, map_location="cpu", weights_only=True)
    return all(bool(torch.isfinite(value.float()).all()) for value in state["model"].values())
