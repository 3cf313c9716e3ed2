"""Simple models of masks reach what a pixel, its surroundings and its place tell, and say where they mean nothing."""

from __future__ import annotations

import dataclasses
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from domains import contract as contracts
from domains.sample import ManifestRow, Piece
from domains.store import Writer, open_prepared
from pipelines.scoring import metrics
from pipelines.scoring.floor_features import IntensityFloor, PixelsFloor, PriorFloor
from pipelines.scoring.floors import floor
from pipelines.scoring.pixel_floors import balanced, described, local_mean, pixel_features
from tests.fabricate import contract_of, prepare
from tests.pipelines.mask_data import TASK, prepare_masks

ROOT = Path()
PIXELS = PixelsFloor("pixels", 1500, (3, 7))


def test_local_means_equal_those_of_every_window_with_what_is_unknown_left_out() -> None:
    rng = np.random.default_rng(0)
    for shape, size in product(((2, 7, 6), (1, 4, 5, 6)), (2, 3, 5)):
        x, known = rng.normal(size=shape), rng.random(shape) < 0.7
        found = local_mean(x, known, size)
        for at in np.ndindex(*shape):
            window = (at[0], *(slice(max(0, i - size // 2), i + (size + 1) // 2) for i in at[1:]))
            inside = x[window][known[window]]
            assert found[at] == pytest.approx(inside.mean() if inside.size else np.nan, nan_ok=True)


def test_bands_get_the_ratio_of_every_pair_and_unknown_pixels_are_missing() -> None:
    values = np.array([[[300, 65535]], [[100, 50]], [[200, 50]]], np.uint16)
    x = pixel_features(values, contract_of("multispectral"), PixelsFloor("pixels", scales=(3,)))
    assert x.shape == (2, 3 + 3 + 3) and x[0, 6] == pytest.approx(0.5) and x[0, 8] == pytest.approx(-1 / 3)
    assert np.isnan(x[1, [0, 6, 7]]).all() and x[1, 8] == 0 and x[1, 3] == 300


@pytest.mark.parametrize("kind", ["xray", "ct", "multispectral"])
def test_pixels_find_what_is_told_by_brightness_and_the_same_twice(tmp_path: Path, kind: str) -> None:
    size = 24 if kind != "ct" else 12
    prepared = open_prepared(prepare_masks(tmp_path / kind, kind, 60, size, noise=8.0))
    test = prepared.rows(split="test", task="discs")
    told = floor(prepared, "discs", PIXELS, test, ROOT, "dice")
    scores = metrics.values("segmentation", prepared.labels("discs")[test], told.predicted)
    assert told.predicted.shape == (len(test), 6) and scores["dice"] > 0.85, (scores, told.model)
    again = floor(prepared, "discs", PIXELS, test, ROOT, "dice")
    np.testing.assert_array_equal(told.predicted, again.predicted)
    assert told.model == again.model


def test_the_pixels_that_are_learnt_from_are_balanced_bounded_and_of_known_classes(tmp_path: Path) -> None:
    prepared = open_prepared(prepare_masks(tmp_path / "x"))
    describe, count = described(prepared.contract, PIXELS)
    x, y = balanced(prepared, "discs", describe, count, prepared.rows(split="train", task="discs"), 0)
    often = np.bincount(y)
    assert len(often) == 3 and len(x) == len(y) <= 1600 and often.max() < 1.3 * often.min()


def test_the_prior_is_the_mean_mask_of_the_training_rows_and_finds_what_always_lies_there(tmp_path: Path) -> None:
    contract = dataclasses.replace(contract_of("xray"), tasks={"discs": TASK}, size=(8, 8))
    writer, rng = Writer(tmp_path, contract.dtype, tasks=["discs"]), np.random.default_rng(0)
    for i in range(40):
        mask = np.zeros((8, 8), np.uint8)
        mask[2:5, 2:5] = 1
        mask[6, rng.integers(8)] = 2
        row = ManifestRow(tmp_path, f"s{i}", f"g{i}", ("train", "val", "test", "train")[i % 4], "")
        writer.add(Piece(rng.integers(0, 255, (1, 8, 8)).astype(np.uint8), mask), row, {"discs": np.ones(2)})
    writer.close()
    contracts.save(contract, tmp_path / "contract.json")
    prepared = open_prepared(tmp_path)
    test = prepared.rows(split="test", task="discs")
    told = floor(prepared, "discs", PriorFloor("prior"), test, ROOT, "dice")
    _, by_class = metrics.score_with_outputs("segmentation", prepared.labels("discs")[test], told.predicted)
    assert by_class[0]["dice"][0] == 1.0 and by_class[1]["dice"][0] < 0.5


def test_pixels_that_may_look_at_places_find_what_always_lies_in_the_middle(tmp_path: Path) -> None:
    prepared = open_prepared(prepare_masks(tmp_path / "x", noise=80.0))
    test = prepared.rows(split="test", task="discs")
    blind, placed = (floor(prepared, "discs", dataclasses.replace(PIXELS, place=place), test, ROOT, "dice").predicted
                     for place in (False, True))
    labels = prepared.labels("discs")[test]
    found = [metrics.values("segmentation", labels, told)["dice"] for told in (blind, placed)]
    assert found[1] > found[0] + 0.02


def test_a_floor_that_says_nothing_of_such_a_task_is_refused(tmp_path: Path) -> None:
    discs, plain = open_prepared(prepare_masks(tmp_path / "x")), open_prepared(prepare(tmp_path / "y"))
    with pytest.raises(ValueError, match="found intensity for a segmentation task, expected pixels, points or prior"):
        floor(discs, "discs", IntensityFloor("intensity"), np.arange(2), ROOT, "dice")
    with pytest.raises(ValueError, match="found pixels for a single_label task"):
        floor(plain, "bright", PIXELS, np.arange(2), ROOT, "auroc")
