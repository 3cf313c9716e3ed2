"""Farthest points are those of brute force, and what is stored of them covers a shape better than chance does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from domains.pointcloud import dataset, farthest
from domains.pointcloud.farthest import farthest_first
from domains.pointcloud.ingest import Points, contract, read
from tests.domains.pointcloud.files import row, write_obj

pytest.importorskip("fpsample")


def brute_force(points: np.ndarray, num: int, start: int) -> list[int]:
    """Farthest points in float32, the precision that the library works in."""
    points = points.astype(np.float32)
    nearest, chosen = np.full(len(points), np.inf, np.float32), [start]
    while len(chosen) < num:
        gap = points - points[chosen[-1]]
        nearest = np.minimum(nearest, gap[:, 0] * gap[:, 0] + gap[:, 1] * gap[:, 1] + gap[:, 2] * gap[:, 2])
        chosen.append(int(nearest.argmax()))
    return chosen


def uncovered(points: np.ndarray, chosen: np.ndarray) -> float:
    """Largest distance from a point to the nearest chosen one."""
    return float(np.sqrt(((points[:, None] - chosen[None]) ** 2).sum(-1)).min(axis=1).max())


@pytest.mark.parametrize(("available", "num"), [(2, 2), (9, 4), (100, 99), (1000, 64), (5000, 300), (70_000, 50)])
def test_they_equal_brute_force_from_their_own_start_at_every_size(available: int, num: int) -> None:
    points = np.random.default_rng(available).normal(size=(available, 3))
    chosen = farthest_first(points, num)
    assert chosen.tolist() == brute_force(points, num, int(chosen[0]))
    assert np.array_equal(chosen, farthest_first(points, num))


def test_the_first_of_many_are_the_choice_of_few() -> None:
    points = np.random.default_rng(0).normal(size=(2000, 3))
    assert np.array_equal(farthest_first(points, 500)[:64], farthest_first(points, 64))


@pytest.mark.parametrize("num", [1, 30, 100, 1000])
def test_no_point_is_chosen_twice_among_duplicates_and_all_are_there_in_the_end(num: int) -> None:
    points = np.repeat(np.random.default_rng(0).normal(size=(20, 3)), 5, axis=0)
    chosen = farthest_first(points, num)
    assert len(chosen) == len(set(chosen.tolist())) == min(num, 100)
    if num >= 20:
        assert len(np.unique(points[chosen[:20]], axis=0)) == 20  # every place before any is repeated


@pytest.mark.parametrize("num", [0, 1])
def test_clouds_of_none_and_one_are_no_trouble(num: int) -> None:
    assert farthest_first(np.zeros((num, 3)), 5).tolist() == list(range(num))


def test_stored_farthest_first_a_cloud_is_covered_better_at_every_size_and_in_every_walk(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    cloud = np.concatenate([rng.normal(size=(6000, 3)) * 0.1, rng.random((400, 3)) * [4, 0.05, 0.05]])  # ball and rod
    np.save(tmp_path / "a.npy", cloud)
    by_rule = {}
    for rule in ("random", "farthest"):
        settings = Points(size=(256,), points_per_sample=1024, scale="metres", sample=rule)
        (piece,) = read(row(tmp_path / "a.npy"), settings)
        walks = [None, *np.random.default_rng(1).random((8, dataset.NUM_FETCH_DRAWS))]
        taken = [dataset.fetch(piece.values, contract(settings), walk) for walk in walks]
        assert len({part.tobytes() for part in taken}) == 9  # training still sees other points each time
        by_rule[rule] = [uncovered(piece.values.astype(float), part.astype(float)) for part in taken]
    assert by_rule["farthest"][0] < 0.5 * by_rule["random"][0]
    assert np.median(by_rule["farthest"][1:]) < np.median(by_rule["random"][1:])


def test_map_coordinates_are_not_rounded_before_the_choice(tmp_path: Path) -> None:
    cloud = np.random.default_rng(0).random((3000, 3))  # under a metre, five thousand kilometres from the origin
    taken = []
    for name, corner in (("near", 0.0), ("far", 2.0**22)):
        np.save(tmp_path / f"{name}.npy", cloud + corner)
        settings = Points(size=(64,), points_per_sample=64, scale="metres", sample="farthest")
        taken.append(read(row(tmp_path / f"{name}.npy"), settings)[0].values.astype(float))
    gaps = [(np.sqrt(((one[:, None] - one[None]) ** 2).sum(-1)) + 9 * np.eye(64)).min() for one in taken]
    assert gaps[1] > 0.9 * gaps[0]


def test_a_mesh_is_covered_evenly_too(tmp_path: Path) -> None:
    write_obj(tmp_path / "a.obj")
    gaps = {}
    for rule in ("random", "farthest"):
        (piece,) = read(row(tmp_path / "a.obj"), Points(size=(64,), points_per_sample=512, scale="metres", sample=rule))
        assert piece.values.shape == (512, 3)
        distance = np.sqrt(((piece.values[:, None] - piece.values[None]) ** 2).sum(-1)) + 9 * np.eye(512)
        gaps[rule] = float(np.median(distance.min(axis=1)))
    assert gaps["farthest"] > 1.5 * gaps["random"]


def test_where_the_library_is_missing_it_is_said_which_python_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(farthest, "library", missing)
    with pytest.raises(ImportError, match=r"Python 3.11 or 3.12.*sample: random"):
        farthest_first(np.random.default_rng(0).random((10, 3)), 2)
