"""Of a LAS file only what is drawn becomes coordinates, and no bit of a sample or a fact tells it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from domains.pointcloud import ingest
from domains.pointcloud.settings import Points
from domains.sample import Refused
from tests.domains.pointcloud.files import row

laspy = pytest.importorskip("laspy", reason="reads LAS: pip install 'lacuna[pointcloud]'")


def survey(path: Path, scales: tuple[float, ...] = (0.01, 0.02, 0.001), noise: bool = True) -> Path:
    rng = np.random.default_rng(0)
    header = laspy.LasHeader(point_format=7, version="1.4")
    header.scales, header.offsets = np.array(scales), np.array([5e5, -3.0, 0.1])
    cloud = laspy.LasData(header)
    for name in "XYZ":
        cloud[name] = rng.integers(-9000, 9000, 3000).astype(np.int32)
    cloud.classification = rng.choice([1, 2, 7, 18] if noise else [1, 2], 3000).astype(np.uint8)
    cloud.withheld = rng.integers(0, 2, 3000).astype(np.uint8) if noise else np.zeros(3000, np.uint8)
    for name in ("intensity", "red", "green", "blue"):
        cloud[name] = rng.integers(0, 4000, 3000).astype(np.uint16)
    cloud.write(path)
    return path


@pytest.mark.parametrize("chosen", [
    {}, {"features": ("colour", "intensity"), "drop_noise": False}, {"sample": "farthest"},
    {"scale": "metres", "metres_per_unit": 0.3048, "y_up_sources": ("up",), "features": ("intensity",)}])
@pytest.mark.parametrize("noise", [True, False])
def test_points_that_are_drawn_first_are_those_of_all_points_made_first(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chosen: dict[str, Any], noise: bool) -> None:
    asked = row(survey(tmp_path / "a.las", noise=noise), "up")
    settings = Points(size=(16,), points_per_sample=512, min_points=8, **chosen)
    (found,), (rows,) = ingest.read(asked, settings), ingest.seen(asked, settings)
    monkeypatch.setattr(ingest, "PORTION", 700)  # then all become coordinates, portion by portion
    (expected,), (expected_rows,) = ingest.read(asked, settings), ingest.seen(asked, settings)
    np.testing.assert_array_equal(found.values, expected.values)
    np.testing.assert_array_equal(rows, expected_rows)
    assert found.facts == expected.facts


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_scale_that_is_no_number_leaves_no_points(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="finite points"):
        ingest.read(row(survey(tmp_path / "a.las", (np.nan, 1.0, 1.0))), Points(size=(16,), points_per_sample=512))
