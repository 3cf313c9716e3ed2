"""Pictures of clouds show near over far, mark unknown points, and never fail."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from domains.pointcloud.ingest import Points, contract
from domains.pointcloud.picture import BACKGROUND, picture

SPHERE, METRES = contract(Points()), contract(Points(scale="metres"))


def ball(num: int = 500) -> np.ndarray:
    points = np.random.default_rng(0).normal(size=(num, 3))
    return points / np.linalg.norm(points, axis=1, keepdims=True)


@pytest.mark.parametrize("values", [ball(), ball().astype(np.float16), ball(5000), ball(1), np.zeros((0, 3)),
                                    np.full((9, 3), np.nan), np.ones((9, 3))])
@pytest.mark.parametrize("which", [SPHERE, METRES])
def test_any_cloud_gives_a_picture(values: np.ndarray, which: object) -> None:
    found = picture(values, which)  # type: ignore[arg-type]
    assert found.dtype == np.uint8 and found.shape[2] == 3 and found.shape[0] == found.shape[1]
    assert np.array_equal(found, picture(values, which))  # type: ignore[arg-type]


def test_higher_points_are_drawn_higher() -> None:
    rows = [np.nonzero((picture(np.array([[0, 0, z]]), SPHERE) != BACKGROUND).any(2))[0].mean() for z in (-0.5, 0, 0.5)]
    assert rows[0] > rows[1] > rows[2]


def test_unknown_points_have_a_colour_of_their_own() -> None:
    known = np.arange(500) % 2 == 0
    image = picture(ball(), SPHERE, known).astype(int)
    assert ((image[..., 0] - image[..., 2]) > 50).any() and ((image[..., 2] - image[..., 0]) > 50).any()
    plain = picture(ball(), SPHERE).astype(int)
    assert not ((plain[..., 0] - plain[..., 2]) > 50).any()


def test_metric_clouds_fill_the_picture_wherever_they_lie() -> None:
    assert np.array_equal(picture(ball() * 50 + [1000, 2000, 0], METRES), picture(ball() * 50, METRES))


@pytest.mark.parametrize(("features", "values", "said"), [
    (("colour",), [1.0, 0.0, 0.0], lambda image: (image[..., 0] > 200) & (image[..., 1:] < 20).all(-1)),
    (("intensity",), np.linspace(0, 1, 500)[:, None], lambda image: (image[..., 0] > 200) & (image[..., 2] < 120))])
def test_a_cloud_is_drawn_in_its_own_colours_or_by_its_intensity(features: tuple[str, ...], values: object,
                                                                 said: Callable[[np.ndarray], np.ndarray]) -> None:
    described = contract(Points(features=features))
    cloud = np.column_stack([ball(), np.broadcast_to(np.asarray(values), (500, len(described.channels) - 3))])
    assert said(picture(cloud, described).astype(int)).any()
    assert not said(picture(cloud[:, :3], described).astype(int)).any()  # a prediction has places alone
    cloud[:, 3:] = np.nan
    assert np.array_equal(picture(cloud, described), picture(ball(), SPHERE))  # unknown: as if there were none
