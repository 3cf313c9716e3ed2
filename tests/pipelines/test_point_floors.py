"""Simple models of points know lines from planes, and find what height and surroundings tell."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from domains import contract as contracts
from domains.sample import ManifestRow, Piece, Task
from domains.store import Prepared, Writer, open_prepared
from pipelines.scoring import metrics
from pipelines.scoring.floor_features import PixelsFloor, PointsFloor, PriorFloor
from pipelines.scoring.floors import floor
from pipelines.scoring.point_floors import point_features
from tests.fabricate import contract_of
from tests.pipelines.mask_data import prepare_masks

pytest.importorskip("scipy")
ROOT = Path()
POINTS = PointsFloor("points", points=1500, neighbours=(12,))
TASK = Task(kind="segmentation", classes=("ground", "pole", "ball"))


def scene(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A plane, a line that stands on it and a ball beside it, mixed."""
    ground = np.column_stack([rng.uniform(-1, 1, (300, 2)), np.zeros(300)])
    pole = np.column_stack([np.tile(rng.uniform(-0.8, 0.8, 2), (60, 1)), rng.uniform(0.05, 1, 60)])
    ball = rng.normal(size=(60, 3)) * 0.15 + [*rng.uniform(-0.8, 0.8, 2), 0.6]
    points = np.concatenate([ground, pole, ball]) + rng.normal(0, 0.005, (420, 3))
    order = rng.permutation(420)
    return points[order], np.repeat([0, 1, 2], [300, 60, 60]).astype(np.uint8)[order]


@pytest.fixture
def scenes(tmp_path: Path) -> Prepared:
    contract = dataclasses.replace(contract_of("points"), tasks={"parts": TASK}, size=(128,))
    writer, rng = Writer(tmp_path, contract.dtype, tasks=["parts"]), np.random.default_rng(0)
    for i in range(24):
        points, mask = scene(rng)
        row = ManifestRow(tmp_path, f"s{i}", f"g{i}", ("train", "val", "test", "train")[i % 4], "")
        writer.add(Piece(points.astype(contract.dtype), mask), row, {"parts": np.ones(2, np.float32)})
    writer.close()
    contracts.save(contract, tmp_path / "contract.json")
    return open_prepared(tmp_path)


def test_lines_planes_and_balls_are_told_apart_by_eigenvalues_of_every_neighbourhood() -> None:
    """Against covariances of each point's nearest ones, found by all distances."""
    points, truth = scene(np.random.default_rng(3))
    x = point_features(points, PointsFloor("points", neighbours=(12,)))
    assert x.shape == (420, 1 + 8) and (x[:, 0] == (points[:, 2] - points[:, 2].min()).astype(np.float32)).all()
    for at in range(0, 420, 7):
        far = np.linalg.norm(points - points[at], axis=1)
        near = points[np.argsort(far)[:12]]
        low, middle, high = np.linalg.eigvalsh(np.cov(near.T, bias=True))
        assert x[at, 1:4] == pytest.approx([(high - middle) / high, (middle - low) / high, low / high], abs=1e-4)
        assert x[at, 5] == pytest.approx(np.sort(far)[11], rel=1e-5)
        assert x[at, 6] == pytest.approx(points[at, 2] - near[:, 2].min(), abs=1e-6)
    plane, line, ball = (np.median(x[truth == k][:, 1:4], axis=0) for k in (0, 1, 2))
    assert line[0] > 0.9 and plane[2] < 0.05 and ball[2] > 0.1
    assert np.median(x[truth == 0][:, 4]) < 0.05 < np.median(x[truth == 1][:, 4]), "the ground is flat"


def test_features_of_points_and_their_places_are_looked_at_where_asked_for() -> None:
    points, _ = scene(np.random.default_rng(3))
    values = np.column_stack([points, np.full(420, np.nan)])
    x = point_features(values, PointsFloor("points", neighbours=(12, 30), place=True))
    assert x.shape == (420, 1 + 1 + 16 + 4) and np.isnan(x[:, 1]).all()
    assert np.allclose(x[:, -1], np.linalg.norm(points - points.mean(0), axis=1), atol=1e-5)
    few = point_features(points[:6], PointsFloor("points", neighbours=(64,)))
    assert np.isfinite(few).all() and np.isfinite(point_features(points[:1], POINTS)).all()


def test_points_find_what_stands_on_the_ground_and_the_same_twice(scenes: Prepared) -> None:
    test = scenes.rows(split="test", task="parts")
    told = floor(scenes, "parts", POINTS, test, ROOT, "dice")
    scores = metrics.values("segmentation", scenes.labels("parts")[test], told.predicted)
    assert told.predicted.shape == (len(test), 6) and scores["dice"] > 0.8, (scores, told.model)
    again = floor(scenes, "parts", POINTS, test, ROOT, "dice")
    np.testing.assert_array_equal(told.predicted, again.predicted)
    assert told.model == again.model


def test_floors_of_pixels_and_of_points_are_refused_for_each_other(scenes: Prepared, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="floor pixels: found points data, expected pictures or volumes"):
        floor(scenes, "parts", PixelsFloor("pixels"), np.arange(2), ROOT, "dice")
    with pytest.raises(ValueError, match="floor prior: found points samples of .* Remedy: use points"):
        floor(scenes, "parts", PriorFloor("prior"), np.arange(2), ROOT, "dice")
    films = open_prepared(prepare_masks(tmp_path / "films"))
    with pytest.raises(ValueError, match="floor points: found xray data, expected points"):
        floor(films, "discs", POINTS, np.arange(2), ROOT, "dice")
    with pytest.raises(ValueError, match=r"found points 20000 and neighbours \[2\]"):
        PointsFloor("points", neighbours=(2,))
