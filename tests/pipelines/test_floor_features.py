"""Features are what they say they are, whatever a sample's size, scale, place, order or unknown values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from domains.store import open_prepared
from pipelines.scoring.floor_features import (
    FactsFloor,
    FloorSettings,
    IntensityFloor,
    ManifestFloor,
    ShapeFloor,
    ThumbnailFloor,
    encode,
    features,
    intensity,
    outline,
    thumbnail,
)
from pipelines.settings import SettingsError, build, plain
from tests.fabricate import contract_of, prepare
from tests.pipelines.floor_data import facts_data

ROOT = Path()


@pytest.mark.parametrize("kind", ["xray", "ct", "multispectral"])
def test_thumbnails_and_statistics_exist_for_every_grid(tmp_path: Path, kind: str) -> None:
    prepared = open_prepared(prepare(tmp_path / kind, kind, 24))
    rows = np.arange(24)
    channels = len(prepared.contract.channels)
    x = features(prepared, IntensityFloor("intensity"), rows, rows, ROOT)
    assert x.shape == (24, 10 * channels) and np.isfinite(x).all()
    x = features(prepared, ThumbnailFloor("thumbnail", size=8), rows, rows, ROOT)
    assert x.shape == (24, channels * (4**3 if kind == "ct" else 8**2)) and np.isfinite(x).all()


def test_a_column_or_fact_that_is_not_there_is_refused(tmp_path: Path) -> None:
    prepared = open_prepared(facts_data(tmp_path / "f"))
    rows = np.arange(3)
    with pytest.raises(ValueError, match="no column sex; it has path, view, age, told"):
        features(prepared, ManifestFloor("manifest", "f/manifest.csv", ("sex",)), rows, rows, tmp_path)
    with pytest.raises(ValueError, match="no fact kernel"):
        features(prepared, FactsFloor("facts", ("kernel",)), rows, rows, tmp_path)
    with pytest.raises(ValueError, match="found xray data, expected points"):
        features(prepared, ShapeFloor("shape"), rows, rows, tmp_path)


def test_texts_become_one_feature_per_value_of_the_training_rows_and_numbers_stay() -> None:
    rows = [{"view": "AP", "age": "41"}, {"view": "PA", "age": ""}, {"view": "odd", "age": "7"}]
    x = encode(rows, rows[:2])
    np.testing.assert_array_equal(x, [[1, 0, 0, 41], [0, 1, 0, np.nan], [0, 0, 1, 7]])


def test_unknown_values_are_left_out_of_statistics_and_thumbnails() -> None:
    contract = contract_of("multispectral")  # unknown is 65535
    values = np.full((3, 16, 16), 100, np.uint16)
    values[0, :8] = 65535
    values[1] = 65535
    found = intensity(values, contract).reshape(3, 10)
    assert found[0, 0] == 100 and found[0, -1] == 0.5
    assert np.isnan(found[1, :-1]).all() and found[1, -1] == 0
    small = thumbnail(values, contract, 4).reshape(3, 4, 4)
    assert (small[0] == 100).all() and (small[1] == 0).all()


def test_a_thumbnail_is_the_mean_of_its_cells_at_any_size() -> None:
    contract = contract_of("xray")
    picture = np.arange(64, dtype=np.uint8).reshape(1, 8, 8)
    by_hand = picture.reshape(4, 2, 4, 2).mean(axis=(1, 3))
    np.testing.assert_allclose(thumbnail(picture, contract, 4).reshape(4, 4), by_hand)
    assert thumbnail(picture, contract, 16).shape == (256,)
    assert thumbnail(np.zeros((1, 11, 17), np.uint8), contract, 4).shape == (16,)


def test_scale_free_outlines_do_not_change_with_size_place_or_order() -> None:
    rng = np.random.default_rng(1)
    cloud = rng.normal(size=(300, 3)) * [1, 2, 5]
    moved = cloud * 37 + [100, -5, 3]
    np.testing.assert_allclose(outline(cloud, True), outline(moved, True), atol=1e-9)
    assert not np.allclose(outline(cloud, False), outline(moved, False))
    thinner = outline(cloud[::2], True)  # the same surface with half the points: nearly the same outline
    assert np.abs(thinner - outline(cloud, True))[:3].max() < 0.15


def test_a_degenerate_cloud_has_missing_features_of_the_same_length() -> None:
    for scale_free in (True, False):
        nothing = outline(np.zeros((10, 3)), scale_free)
        assert np.isnan(nothing).all()
        assert len(nothing) == len(outline(np.random.default_rng(0).normal(size=(50, 3)), scale_free))
    flat = outline(np.c_[np.random.default_rng(0).normal(size=(50, 2)), np.zeros(50)], True)
    assert np.isfinite(flat).all()


def test_floor_settings_are_told_apart_by_kind() -> None:
    assert build(FloorSettings, {"kind": "shape"}, "floor") == ShapeFloor("shape")  # type: ignore[arg-type]
    settings = ManifestFloor("manifest", "a.csv", ("age",))
    assert build(FloorSettings, plain(settings), "floor") == settings  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="floor.kind: found 'colour'"):
        build(FloorSettings, {"kind": "colour"}, "floor")  # type: ignore[arg-type]
