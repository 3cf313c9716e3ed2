"""Distances between surfaces are those of every pair of pixels, and a mask that is not there costs what is said."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from pipelines.scoring import overlap, surfaces
from pipelines.scoring.surfaces import between, distances, surface, with_surfaces
from pipelines.scoring.uncertainty import draw_groups, spread
from tests.fabricate import contract_of

pytest.importorskip("scipy")
SHAPES = [((17, 12), (1.0, 1.0)), ((9, 14), (0.7, 2.5)), ((6, 9, 8), (2.5, 1.0, 0.8))]


def blobs(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """A mask of a few boxes, some of which touch the edge, and single pixels."""
    mask = rng.random(shape) < 0.02
    for _ in range(2):
        low = [int(rng.integers(0, n - 2)) for n in shape]
        mask[tuple(slice(at, at + int(rng.integers(2, 6))) for at in low)] = True
    return mask


def by_all_pairs(a: np.ndarray, b: np.ndarray, steps: np.ndarray) -> tuple[float, float]:
    """Surface pixels by their neighbours one by one, and every distance between them."""
    def edge(mask: np.ndarray) -> np.ndarray:
        places = []
        for at in np.argwhere(mask):
            around = [tuple(at + d * np.eye(mask.ndim, dtype=int)[axis]) for axis in range(mask.ndim) for d in (-1, 1)]
            if any(not all(0 <= i < n for i, n in zip(p, mask.shape, strict=True)) or not mask[p] for p in around):
                places.append(at)
        return np.array(places) * steps
    first, second = edge(a), edge(b)
    far = np.linalg.norm(first[:, None] - second[None], axis=2)
    there, back = far.min(1), far.min(0)
    return max(np.quantile(there, 0.95), np.quantile(back, 0.95)), np.concatenate([there, back]).mean()


@pytest.mark.parametrize(("shape", "steps"), SHAPES)
def test_both_distances_are_those_of_every_pair_of_surface_pixels(shape: tuple[int, ...],
                                                                  steps: tuple[float, ...]) -> None:
    rng = np.random.default_rng(0)
    for _ in range(12):
        a, b = blobs(rng, shape), blobs(rng, shape)
        assert between(a, b, np.array(steps)) == pytest.approx(by_all_pairs(a, b, np.array(steps)), rel=1e-9)
        assert between(b, a, np.array(steps)) == pytest.approx(between(a, b, np.array(steps)))
        assert between(a, a, np.array(steps)) == (0, 0)


@pytest.mark.parametrize(("shape", "steps"), SHAPES)
def test_both_distances_are_monais(shape: tuple[int, ...], steps: tuple[float, ...]) -> None:
    monai = pytest.importorskip("monai.metrics")
    rng = np.random.default_rng(1)
    for _ in range(6):
        a, b = blobs(rng, shape), blobs(rng, shape)
        pair = [torch.from_numpy(mask)[None, None].float() for mask in (a, b)]
        far = monai.compute_hausdorff_distance(*pair, include_background=True, percentile=95, spacing=steps)
        mean = monai.compute_average_surface_distance(*pair, include_background=True, symmetric=True, spacing=steps)
        assert between(a, b, np.array(steps)) == pytest.approx((float(far), float(mean)), rel=1e-5)


def test_a_shifted_square_is_as_far_away_as_it_was_shifted() -> None:
    a, b = np.zeros((20, 20), bool), np.zeros((20, 20), bool)
    a[5:9, 5:9], b[5:9, 8:12] = True, True
    assert between(a, b, np.array([1.0, 2.0]))[0] == pytest.approx(6.0)
    assert surface(a).sum() == 12 and surface(np.ones((3, 3), bool)).sum() == 8, "the edge of the sample is one of it"


def test_a_class_that_is_not_called_costs_the_diagonal_and_one_that_is_not_there_is_left_out() -> None:
    truth = np.zeros((4, 7), np.uint8)
    truth[1, 1] = 1
    called = np.zeros_like(truth)
    called[2, 2] = 2
    told = distances(truth, called, 3, (2.0, 0.5))
    assert told[:2] == pytest.approx([np.hypot(6, 3)] * 2) and np.isnan(told[2:]).all()


def test_where_nobody_has_looked_neither_mask_has_anything() -> None:
    truth = np.zeros((6, 6), np.uint8)
    truth[1:3, 1:3], truth[:, 4:] = 1, 255
    called = np.zeros_like(truth)
    called[1:3, 1:3], called[2:, 4:] = 1, 1
    assert distances(truth, called, 1).tolist() == [0, 0]


def test_resamples_of_distances_are_the_means_that_their_draws_say() -> None:
    """Against an explicit loop over the drawn groups, with a class that some samples lack and one not looked for."""
    rng = np.random.default_rng(0)
    n, groups = 30, [f"g{i // 2}" for i in range(30)]
    labels = np.ones((n, 2))
    labels[4, 1] = np.nan
    told = rng.uniform(0, 9, (2, n, 4))
    told[:, ::3, :2] = np.nan                                              # class 1 is not in every third sample
    told[:, 4, 2:] = np.nan
    counts = rng.integers(1, 9, (2, n, 6)).astype(float)
    own = spread("segmentation", labels, counts, groups, 120, 5)
    more = with_surfaces(own, told, labels, groups, 120, 5)
    assert set(more.metrics) == set(overlap.NAMES) | set(surfaces.NAMES) and with_surfaces(
        own, None, labels, groups, 120, 5) is own
    names = sorted(set(groups))
    for column in (0, 1, 60, 120):
        often = np.ones(15, int) if column == 0 else draw_groups(15, 120, 5)[:, column - 1]
        rows = [i for i in range(n) for _ in range(often[names.index(groups[i])])]
        for at, name in enumerate(surfaces.NAMES):
            for s in range(2):
                by_class = []
                for k in range(2):
                    by_class.append(np.nanmean(told[s, rows, 2 * k + at]))
                assert more.metrics[name][s, column] == pytest.approx(np.mean(by_class))


def test_units_are_those_of_the_grid_and_points_have_no_surface() -> None:
    ct = dataclasses.replace(contract_of("ct"), spacing=(2.0, 1.0, 1.0))
    assert surfaces.unit(ct) == "mm" and surfaces.unit(contract_of("xray")) == "pixels"
    assert surfaces.unit(dataclasses.replace(contract_of("multispectral"), spacing=(10.0, 10.0))) == "m"
    assert surfaces.gauge(contract_of("points"), 2) is None and surfaces.gauge(ct, 2) is not None
    counts = np.array([[[0, 0, 5.0], [3, 1, 0]]])
    assert "scratch 1 of 2 times" in surfaces.note(ct, {"scratch": counts})
