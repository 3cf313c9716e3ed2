"""Stages under torchrun, with two processes on a CPU: the curve of what is learnt is that of one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.fabricate import prepare, pretrained
from tests.pipelines.test_adapt import TWICE
from tests.pipelines.test_adapt import paragraph as adapt_paragraph
from tests.pipelines.test_domain_adaptation import ADVERSARY, TEACHER
from tests.pipelines.test_domain_adaptation import paragraph as domain_paragraph
from tests.two_sources import prepare as prepare_two_sources

pytestmark = pytest.mark.slow


def curves(root: Path, stage: str, run: dict[str, Any], world: int) -> list[dict[str, float]]:
    """All numbers that a run of so many processes has logged."""
    (root / "params.yaml").write_text(yaml.safe_dump({stage: {f"world{world}": run}}))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(world)] if world > 1 else []
    done = subprocess.run([sys.executable, *launcher, "-m", "lacuna", stage, f"world{world}"], cwd=root, env={
        **os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2]), "LACUNA_TRACKING": "off",
        "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = (root / f"reports/{stage}/world{world}/metrics.jsonl").read_text().splitlines()
    timeless = [{key: value for key, value in json.loads(line).items() if "seconds" not in key and key != "time"}
                for line in lines]
    assert len(timeless) > 3
    return timeless


def test_two_processes_distil_what_one_does(tmp_path):
    pretrained(tmp_path)
    prepare(tmp_path / "data/prepared/mine", count=96, seed=1)
    one, two = (curves(tmp_path, "adapt", adapt_paragraph(data="mine", method=TWICE), world) for world in (1, 2))
    for left, right in zip(one, two, strict=True):
        assert right == pytest.approx(left, rel=1e-3)


@pytest.mark.parametrize("method", [ADVERSARY, {**TEACHER, "begins": 0.0, "threshold": 0.52}],
                         ids=["adversary", "teacher"])
def test_two_processes_adapt_to_another_domain_as_one_does(tmp_path, method):
    pretrained(tmp_path)
    prepare_two_sources(tmp_path / "data/prepared/films")
    run = domain_paragraph(method=method, start="artifacts/pretrain/xray")
    one, two = (curves(tmp_path, "domain_adaptation", run, world) for world in (1, 2))
    for left, right in zip(one, two, strict=True):
        assert right == pytest.approx(left, rel=1e-3)
