"""What the benchmark times agrees with brute force, and it runs; how fast is not asserted here."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import paired
from benchmarks.point_operations import check_ingest, check_training, main

pytest.importorskip("open3d")
pytest.importorskip("fpsample")


def test_every_way_to_farthest_points_at_ingest_equals_brute_force() -> None:
    for points, chosen in ((100, 20), (3000, 100)):
        check_ingest(np.random.default_rng(points).normal(size=(points, 3)), chosen)


def test_a_chamfer_distance_that_is_wrong_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    clouds = torch.randn(2, 128, 3, generator=generator)
    pred = torch.randn(6, 32, 3, generator=generator).requires_grad_()
    target = torch.randn(6, 32, 3, generator=generator)
    check_training(clouds, clouds[:, :8], pred, target)
    monkeypatch.setattr("benchmarks.point_operations.chamfer_l2", lambda a, b: 1.001 * (a - b).square().sum((2, 3)))
    with pytest.raises(AssertionError):
        check_training(clouds, clouds[:, :8], pred, target)


def test_the_benchmark_runs_and_writes_its_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    main(["--small", "--rounds", "2"])
    torch.set_num_threads(threads)
    written = json.loads((tmp_path / paired.REPORTS / "point_operations_in_training.json").read_text())
    assert len(written["rows"]) == 3 and all(row["ours, ms"] > 0 for row in written["rows"])
    assert (tmp_path / paired.REPORTS / "point_operations_at_ingest.json").is_file()
