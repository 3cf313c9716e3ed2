"""A scene looks as a person expects: colours by wavelength, what is unknown in magenta."""

import numpy as np
import pytest

from domains.contract import Channel, Contract
from domains.satellite.picture import UNKNOWN_COLOUR, colours, picture
from domains.satellite.units import UNKNOWN


def contract(*bands: tuple[str, float | None]) -> Contract:
    channels = tuple(Channel(name, "reflectance x 10000", wavelength_nm=nm, low=0, high=10000) for name, nm in bands)
    return Contract(domain="satellite", kind="multispectral", channels=channels, dtype="uint16", size=(8, 8),
                    unknown=UNKNOWN)


@pytest.mark.parametrize(("bands", "expected"), [
    ((("B8", 833.0), ("B2", 492.0), ("B3", 560.0), ("B4", 665.0)), (3, 2, 1)),
    ((("nir", None), ("Blue", None), ("green", None), ("RED", None)), (3, 2, 1)),
    ((("B2", 492.0), ("B3", 560.0), ("B5", 704.0), ("B8", 833.0)), (0, 1, 2)),
    ((("B8", 833.0), ("B11", 1610.0)), (0, 1, 0)), ((("B8", 833.0),), (0, 0, 0))])
def test_red_green_and_blue_are_found_by_wavelength_or_name_else_the_first_three_are_shown(
        bands: tuple[tuple[str, float | None], ...], expected: tuple[int, int, int]) -> None:
    assert colours(contract(*bands).channels, np.ones((len(bands), 4, 4), bool)) == expected


RGB = contract(("B2", 492.0), ("B3", 560.0), ("B4", 665.0))


def test_a_red_field_is_red_and_the_picture_is_the_same_each_time() -> None:
    values = np.full((3, 8, 8), 500, np.uint16)
    values[2, :, 4:] = 3000
    shown = picture(values, RGB)
    assert shown.shape == (8, 8, 3) and shown.dtype == np.uint8
    assert (shown[:, 4:] == (255, 0, 0)).all() and (shown[:, :4] == 0).all()
    assert np.array_equal(shown, picture(values.astype(np.float32), RGB))


def test_unknown_pixels_are_magenta_whether_marked_by_value_or_by_mask() -> None:
    values, known = np.full((3, 8, 8), 900, np.uint16), np.ones((3, 8, 8), bool)
    values[:, 0, 0], known[:, 1, 1] = UNKNOWN, False
    shown = picture(values, RGB, known)
    magenta = np.argwhere((shown == UNKNOWN_COLOUR).all(-1)).tolist()
    assert magenta == [[0, 0], [1, 1]]


def test_where_one_band_is_known_it_shines_alone() -> None:
    values = np.full((3, 8, 8), UNKNOWN, np.uint16)
    values[2] = np.linspace(500, 3000, 8).astype(np.uint16)
    values[0, 0], values[1, 0] = 500, 500
    shown = picture(values, RGB)
    assert not (shown == UNKNOWN_COLOUR).all(-1).any()
    assert shown[4, 7].tolist() == [255, 0, 0]


def test_a_band_that_is_wholly_unknown_does_not_hide_the_others() -> None:
    values = np.random.default_rng(0).integers(200, 3000, (3, 8, 8)).astype(np.uint16)
    values[0] = UNKNOWN
    assert not (picture(values, RGB) == UNKNOWN_COLOUR).all(-1).any()
    assert (picture(np.full((3, 8, 8), UNKNOWN, np.uint16), RGB) == UNKNOWN_COLOUR).all()


def test_a_flat_scene_stays_flat() -> None:
    noise = np.random.default_rng(0).normal(1000, 2, (3, 8, 8))
    assert picture(noise, RGB).max() < 40
