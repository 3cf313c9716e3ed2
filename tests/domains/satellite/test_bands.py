"""Band names: one band has one name, whatever a file calls it, and a number means nothing without its sensor."""

import pytest

from domains.satellite import bands


@pytest.mark.parametrize("text", ["B2", "B02", "b2", " B02 ", "blue", "Blue"])
def test_spellings_of_one_band_are_one_band(text: str) -> None:
    assert bands.identify(text, "sentinel2") == "blue"


@pytest.mark.parametrize(("text", "sensor", "expected"), [
    ("B8A", "sentinel2", "nir_narrow"), ("b08a", "sentinel2", "nir_narrow"), ("B5", "sentinel2", "rededge1"),
    ("B5", "landsat8", "nir"), ("B4", "landsat7", "nir"), ("SR_B6", "landsat7", None),
    ("SR_B5", "landsat8", "nir"), ("nir08", "landsat8", "nir"), ("swir16", "other", "swir1"),
    ("B10", "landsat8", None), ("SCL", "sentinel2", None), ("B13", "sentinel2", None), ("VV", "other", "vv")])
def test_a_number_is_understood_with_its_sensor(text: str, sensor: bands.Sensor, expected: str | None) -> None:
    assert bands.identify(text, sensor) == expected


def test_landsat_numbers_never_reach_a_contract_where_sentinel_weights_would_take_them_for_their_own() -> None:
    assert bands.spell("B5", "landsat8") == bands.spell("B4", "landsat7") == "nir"
    assert bands.spell("B05", "sentinel2") == "B5"


@pytest.mark.parametrize(("text", "sensor", "expected"), [
    ("L8 SR coastal", "landsat8", "coastal"), ("B2, central wavelength 492 nm", "sentinel2", "blue"),
    ("B04 (665 nm)", "sentinel2", "red"), ("red to green", "sentinel2", None), ("quality", "sentinel2", None)])
def test_words_around_a_name_are_passed_over_unless_they_name_another(
        text: str, sensor: bands.Sensor, expected: str | None) -> None:
    assert bands.identify_loosely(text, sensor) == expected


@pytest.mark.parametrize(("stem", "sensor", "expected"), [
    ("B02", "sentinel2", "blue"), ("scene_B8A", "sentinel2", "nir_narrow"), ("x-b12", "sentinel2", "swir2"),
    ("T31UFS_20230601T105031_B02_10m", "sentinel2", "blue"), ("LC08_L2SP_02_T1_SR_B4", "landsat8", "red"),
    ("LC08_ST_B10", "landsat8", None), ("scene_nir_narrow", "sentinel2", "nir_narrow"),
    ("S2_TCI_10m", "sentinel2", None), ("scene_red", "other", "red"), ("", "sentinel2", None)])
def test_a_file_is_the_band_that_its_name_ends_in(stem: str, sensor: bands.Sensor, expected: str | None) -> None:
    assert bands.of_file(stem, sensor) == expected


def test_a_wrong_name_is_answered_with_the_right_ones() -> None:
    with pytest.raises(ValueError, match="found B13, expected one of B1, .*Remedy"):
        bands.spell("B13", "sentinel2")


def test_every_name_of_a_sensor_has_its_wavelength() -> None:
    for sensor in ("sentinel2", "landsat8", "landsat7"):
        for code in bands.table(sensor):
            identity = bands.identify(code, sensor)
            assert identity and bands.wavelength(identity, sensor) == bands.table(sensor)[code][1]
    assert bands.wavelength("vv", "other") is None and bands.wavelength("red", "other") == 660.0


@pytest.mark.parametrize(("description", "tags", "expected"), [
    ("", {"CENTRAL_WAVELENGTH_UM": "0.665", "FWHM_UM": "0.03"}, 665.0),
    ("", {"wavelength": "864.7", "wavelength_units": "Nanometers"}, 864.7),
    ("", {"wavelength": "0.4900", "wavelength_units": "Micrometers"}, 490.0),
    ("", {"WAVELENGTH": "1610"}, 1610.0), ("", {"wavelength": "2.2"}, 2200.0),
    ("", {"center_wavelength": "560 nm"}, 560.0),
    ("Band 43 (665.30 nm)", {}, 665.3), ("B2, central wavelength 0.492 µm", {}, 492.0), ("705 Nanometers", {}, 705.0),
    ("B8", {}, None), ("", {"wavelength": "unknown"}, None), ("", {"wavelength": "-5"}, None), ("1 nm", {}, None),
    ("", {"wavelength": "0"}, None), ("", {"CENTRAL_WAVELENGTH_UM": "nan"}, None)])
def test_wavelengths_are_understood_in_the_ways_that_files_tell_them(description: str, tags: dict[str, str],
                                                                     expected: float | None) -> None:
    found = bands.told_wavelength(description, tags)
    assert found == pytest.approx(expected) if expected else found is None


def test_each_band_asked_for_gets_the_nearest_one_within_reach() -> None:
    cube = [float(nm) for nm in range(420, 2500, 7)]
    wanted = dict(bands.SENTINEL2.values())
    found = bands.by_wavelength(cube, wanted)
    for identity, nm in wanted.items():
        assert abs(cube[found.index(identity)] - nm) == min(abs(one - nm) for one in cube), identity
    assert sum(name is not None for name in found) == len(wanted)


def test_a_band_goes_to_one_name_and_none_is_taken_from_afar() -> None:
    wanted = {"nir": 832.8, "nir_narrow": 864.7, "red": 664.6, "pan": 590.0}
    assert bands.by_wavelength([850.0], wanted) == ["nir_narrow"]
    assert bands.by_wavelength([842.0, 865.0], wanted) == ["nir", "nir_narrow"]
    assert bands.by_wavelength([705.0, None, 590.0], wanted) == [None, None, None]
    assert bands.by_wavelength([660.0, 664.0], wanted) == [None, "red"]
