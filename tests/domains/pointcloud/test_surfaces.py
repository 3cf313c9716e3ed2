"""What is computed column by column, or from marks, is what numpy computes."""

import numpy as np
import pytest

from domains.pointcloud import surfaces


@pytest.mark.parametrize("num", [1, 7, 8, 1000])
def test_areas_are_those_of_numpys_cross_product_to_the_last_bit(num: int) -> None:
    rng = np.random.default_rng(num)
    vertices, triangles = rng.normal(size=(40, 3)) * 1e3, rng.integers(0, 40, (num, 3))
    a, b, c = (vertices[triangles[:, i]] for i in range(3))
    np.testing.assert_array_equal(surfaces.triangle_areas(vertices, triangles),
                                  np.linalg.norm(np.cross(b - a, c - a), axis=1) / 2)


@pytest.mark.parametrize("power", [0, 1, 12, 80])
def test_a_point_lies_on_the_triangle_that_a_search_finds_however_uneven_they_are(power: int) -> None:
    rng = np.random.default_rng(power)
    for num in (1, 2, 30, 5000):
        areas = rng.random(num) ** power * (rng.random(num) > 0.2)
        areas[rng.integers(num)] = 1.0
        ends = np.cumsum(areas)
        places = np.concatenate([rng.random(3000) * ends[-1], ends, [0.0, np.nextafter(ends[-1], 0)]])
        np.testing.assert_array_equal(surfaces._first_above(ends, places), np.searchsorted(ends, places, side="right"))
