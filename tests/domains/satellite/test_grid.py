"""Resampling: nothing unknown bleeds into what is known, and a window is the same as the whole."""

import numpy as np
import pytest

from domains.satellite import grid


def whole(values: np.ndarray, known: np.ndarray, shape: tuple[int, int], method: grid.Method) -> np.ndarray:
    ratios = [have / want for have, want in zip(values.shape, shape, strict=True)]
    down, across = (grid.weights((0, want), (0, have), ratio, method)
                    for want, have, ratio in zip(shape, values.shape, ratios, strict=True))
    out, sure = grid.resample(values, known, down, across)
    return np.where(sure, out, np.nan)


def test_nearest_repeats_measured_values() -> None:
    values = np.arange(12.0).reshape(3, 4)
    out = whole(values, np.ones((3, 4), bool), (6, 8), "nearest")
    assert np.array_equal(out, values.repeat(2, 0).repeat(2, 1))


def test_bilinear_keeps_a_ramp_away_from_the_edges_and_a_constant_everywhere() -> None:
    ramp = np.tile(np.arange(8.0), (8, 1))
    out = whole(ramp, np.ones((8, 8), bool), (16, 16), "bilinear")
    assert np.allclose(out[:, 1:-1], np.tile((np.arange(16) + 0.5) / 2 - 0.5, (16, 1))[:, 1:-1])
    assert np.allclose(whole(np.full((8, 8), 7.0), np.ones((8, 8), bool), (20, 5), "bilinear"), 7.0)


def test_refining_by_less_averages_rather_than_skips() -> None:
    checks = np.indices((16, 16)).sum(0) % 2 * 100.0
    out = whole(checks, np.ones((16, 16), bool), (4, 4), "bilinear")
    assert np.allclose(out, 50.0, atol=1.0)


@pytest.mark.parametrize("method", ["nearest", "bilinear"])
def test_unknown_values_never_colour_known_ones(method: grid.Method) -> None:
    values, known = np.full((6, 6), 5.0), np.ones((6, 6), bool)
    values[2:4, 2:4], known[2:4, 2:4] = 1e9, False
    out = whole(values, known, (12, 12), method)
    assert np.isnan(out[5:7, 5:7]).all() and np.allclose(out[~np.isnan(out)], 5.0)


@pytest.mark.parametrize("shape", [(12, 12), (24, 24), (5, 5), (13, 29)])
def test_a_window_is_the_same_as_the_whole(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    values, known = rng.random((12, 12)), rng.random((12, 12)) < 0.8
    expected = whole(values, known, shape, "bilinear")
    ratios = [12 / side for side in shape]
    for top, bottom, left, right in grid.tiles(shape, (4, 6)):
        rows, columns = grid.span(top, bottom, ratios[0], 12), grid.span(left, right, ratios[1], 12)
        out, sure = grid.resample(values[slice(*rows), slice(*columns)], known[slice(*rows), slice(*columns)],
                                  grid.weights((top, bottom), rows, ratios[0], "bilinear"),
                                  grid.weights((left, right), columns, ratios[1], "bilinear"))
        assert np.allclose(np.where(sure, out, np.nan), expected[top:bottom, left:right], equal_nan=True)


def test_tiles_cover_everything_once() -> None:
    seen = np.zeros((10, 7), int)
    for top, bottom, left, right in grid.tiles((10, 7), (4, 4)):
        seen[top:bottom, left:right] += 1
    assert (seen == 1).all()


def test_padding_goes_where_it_is_said_to() -> None:
    values = np.ones((1, 2, 3), np.uint16)
    assert grid.pad_to(values, (4, 5), 9, centred=True)[0, 1:3, 1:4].all()
    ended = grid.pad_to(values, (4, 5), 9, centred=False)
    assert (ended[0, :2, :3] == 1).all() and (ended[0, 2:] == 9).all() and (ended[0, :, 3:] == 9).all()
    assert grid.pad_to(values, (1, 1), 9, centred=True) is values
