"""Samples of neighbouring zones are compared by degrees, which a library of maps confirms."""

from __future__ import annotations

import numpy as np
import pytest

from domains import duplicates
from domains.degrees import in_degrees


@pytest.mark.parametrize("epsg", [32601, 32633, 32660, 32733, 25832, 26917])
@pytest.mark.parametrize("corner", [(170_000, 10_000), (500_000, 5_300_000), (829_000, 7_500_000)])
def test_degrees_are_those_of_proj_to_a_metre(epsg: int, corner: tuple[float, float]) -> None:
    warp = pytest.importorskip("rasterio.warp")
    left, bottom = corner
    found = in_degrees(epsg, np.array([[left, bottom, left + 2560, bottom + 2560]], float))
    x, y = warp.transform(f"EPSG:{epsg}", "EPSG:4326", [left, left, left + 2560, left + 2560],
                          [bottom, bottom + 2560, bottom, bottom + 2560])
    assert found is not None
    assert found[0].tolist() == pytest.approx((min(x), min(y), max(x), max(y)), abs=1e-5)


def test_systems_that_are_not_known_here_are_left_out_and_degrees_stay() -> None:
    box = np.array([[1.0, 2.0, 3.0, 4.0]])
    assert np.array_equal(in_degrees(4326, box), box)  # type: ignore[arg-type]
    assert in_degrees(3857, box) is in_degrees(32661, box) is in_degrees(32600, box) is None


def test_scenes_that_overlap_across_the_border_of_two_zones_are_found() -> None:
    warp = pytest.importorskip("rasterio.warp")
    rng = np.random.default_rng(0)
    first = [[709_600.0 + 1280 * i, 5_300_000.0 + 1280 * k] for i in range(6) for k in range(6)]
    facts = [{"bounds": [x, y, x + 1280, y + 1280], "epsg": 32632} for x, y in first]
    sides = [0] * len(first)
    expected = set()
    for i in rng.permutation(len(first))[:8]:  # the same ground, shifted by 300 m each way, in the next zone
        x, y = first[i]
        (x,), (y,) = warp.transform("EPSG:32632", "EPSG:32633", [x + 300], [y + 300])
        facts.append({"bounds": [x, y, x + 1280, y + 1280], "epsg": 32633})
        sides.append(2)
        expected.add((int(i), len(facts) - 1))
    facts += [{"bounds": [709_600.0, 5_300_000.0, 710_880.0, 5_301_280.0], "epsg": 32650}]  # elsewhere on the globe
    sides.append(2)
    found = {(int(min(a, b)), int(max(a, b))): float(share)
             for some in duplicates.overlaps(facts, np.array(sides)) for a, b, share in zip(*some, strict=True)}
    assert expected <= set(found)
    assert all(found[pair] == pytest.approx((980 / 1280) ** 2, abs=0.12) for pair in expected)
    assert all(pair[1] != len(facts) - 1 for pair in found)
