"""What a model says of stored pixels is brought back to a file's own, exactly where both are one grid."""

import json

import numpy as np
import pytest

from domains.native_grid import native_classes
from domains.placement import Placement, described, told
from domains.sample import UNKNOWN_CLASS


@pytest.mark.parametrize("step", [0.4, 1.0, 2.5, -2.5])
def test_a_border_between_classes_lies_where_the_probabilities_cross(step: float) -> None:
    """Two classes whose probabilities are straight lines through a place of the file: interpolation keeps them."""
    n, stored, crossing = 200, int(200 / abs(step)), 83.3
    start = (n - 1) / 2 - (stored - 1) / 2 * step
    at = start + np.arange(stored) * step
    second = np.broadcast_to(0.5 + (at - crossing) / 500, (3, stored))
    place = Placement(shape=(3, n), axes=(0, 1), starts=(0.0, start), steps=(1.0, step))
    classes = native_classes(np.stack([1 - second, second]).astype(np.float32), np.ones((3, stored), bool), place)
    assert np.array_equal(classes, np.broadcast_to(np.arange(n) > crossing, (3, n)))


def test_many_slabs_give_what_one_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    probabilities = rng.random((3, 6, 7, 8)).astype(np.float32)
    known = rng.random((6, 7, 8)) > 0.1
    place = Placement(shape=(19, 20, 15), axes=(2, 0, 1), starts=(14.0, 1.0, 0.5), steps=(-2.2, 2.4, 2.6))
    whole = native_classes(probabilities, known, place)
    monkeypatch.setattr("domains.native_grid.SLAB_VALUES", 500)
    assert np.array_equal(native_classes(probabilities, known, place), whole)
    assert set(np.unique(whole)) == {0, 1, 2, UNKNOWN_CLASS}


def test_tiles_side_by_side_claim_every_pixel_once_and_leave_none_out() -> None:
    for step in (0.8, 1.0, 1.7, 3.0):
        stored, tile = 60, 20
        n = round(stored * step)
        counted = np.zeros((1, n), int)
        for first in range(0, stored, tile):
            place = Placement(shape=(1, n), axes=(0, 1), starts=(0.0, (first + 0.5) * n / stored - 0.5),
                              steps=(1.0, n / stored))
            ones = np.ones((1, 1, tile), np.float32)
            counted += native_classes(ones, np.ones((1, tile), bool), place) == 0
        assert (counted == 1).all()


def test_a_piece_takes_nothing_from_another_where_it_holds_nothing_itself() -> None:
    place = Placement(shape=(2, 3), axes=(0, 1), starts=(0.0, 0.0), steps=(1.0, 1.0))
    first = native_classes(np.ones((1, 2, 3), np.float32), np.ones((2, 3), bool), place)
    second = np.stack([np.zeros((2, 3)), np.ones((2, 3))]).astype(np.float32)
    both = native_classes(second, np.array([[True, False, True], [False, False, True]]), place, first)
    assert both.tolist() == [[1, 0, 1], [0, 0, 1]]


def packed(*fractions: float) -> str:
    return np.array(fractions, "<f8").tobytes().hex()


@pytest.mark.parametrize("changed", [
    {"shape": [3]}, {"axes": [0, 0]}, {"fractions": packed(0, 0, 1)}, {"fractions": packed(0, 0, 1, 0)},
    {"fractions": packed(0, 0, 1, 1, 1)}, {"fractions": packed(0, 0, 1, float("nan"))}, {"crs": "a\nb"},
    {"crs": "x" * 1000}, {"shape": [0, 4]}, {"fractions": packed(*range(1000))},
    {"fractions": packed(0, 0, 1, 1)[:-2]}])
def test_a_placement_that_places_nothing_is_refused(changed: dict[str, object]) -> None:
    honest = {"shape": [3, 4], "axes": [0, 1], "fractions": packed(0, 0, 1, 1), "crs": ""}
    assert told(honest) == Placement((3, 4), (0, 1), (0.0, 0.0), (1.0, 1.0)) and told(None) is None
    with pytest.raises(ValueError, match="placement"):
        told({**honest, **changed})


@pytest.mark.parametrize("affine", [(), tuple(np.random.default_rng(0).normal(size=16).tolist())])
def test_a_placement_goes_through_json_to_the_last_bit(affine: tuple[float, ...]) -> None:
    place = Placement((20, 30, 40), (2, 0, 1), (0.1, -1 / 3, 5e-324), (1.1, -0.7, 1e300), affine, "EPSG:32633")
    assert told(json.loads(json.dumps(described(place)))) == place
