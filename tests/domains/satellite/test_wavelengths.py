"""Bands whose names say nothing are found by the wavelengths that files tell; dead and missing ones are recorded."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from domains.sample import Piece, Refused
from domains.satellite import ingest
from domains.satellite.ingest import Multispectral
from domains.satellite.units import UNKNOWN
from tests.domains.satellite.files import CANARY, raster, row, scene

pytest.importorskip("rasterio", reason="reads GeoTIFF: pip install 'lacuna[satellite]'")
BANDS = ("B2", "B3", "B4", "B8")


def settings(**changes: Any) -> Multispectral:
    return Multispectral(**{"bands": BANDS, "sensor": "sentinel2", "size": (32, 32), **changes})


def one(path: Path, chosen: Multispectral, **about: str) -> Piece:
    found = ingest.read(row(path, **about), chosen)
    assert isinstance(found, list) and len(found) == 1
    return found[0]


def with_wavelengths(path: Path, values: np.ndarray, nanometres: list[float], domain: str = "IMAGERY",
                     names: tuple[str, ...] = ()) -> Path:
    """A GeoTIFF whose bands tell their wavelengths in GDAL's or in ENVI's way."""
    import rasterio

    raster(path, values, names)
    with rasterio.open(path, "r+") as file:
        for i, nm in enumerate(nanometres, start=1):
            if domain == "IMAGERY":
                file.update_tags(i, ns="IMAGERY", CENTRAL_WAVELENGTH_UM=f"{nm / 1000:.4f}", FWHM_UM="0.02")
            else:
                file.update_tags(i, wavelength=f"{nm}", wavelength_units="Nanometers", note=CANARY)
    return path


@pytest.mark.parametrize("domain", ["IMAGERY", "ENVI"])
def test_bands_without_names_are_found_by_wavelength(tmp_path: Path, domain: str) -> None:
    path = with_wavelengths(tmp_path / "a.tif", scene(), [842.0, 665.0, 490.0, 560.0], domain)
    piece = one(path, settings())
    np.testing.assert_array_equal(piece.values, scene()[[2, 3, 1, 0]])
    assert piece.facts["wavelengths_nm"] == [490.0, 560.0, 665.0, 842.0] and CANARY not in str(piece.facts)


def test_a_cube_of_many_bands_gives_those_that_are_asked_for(tmp_path: Path) -> None:
    cube = scene(60)
    centres = [400.0 + 10 * i for i in range(60)]
    path = with_wavelengths(tmp_path / "a.tif", cube, centres)
    chosen = settings(bands=("b550", "b705", "b865"), sensor="other",
                      wavelengths={"b550": 550, "b705": 707, "b865": 862})
    piece = one(path, chosen)
    np.testing.assert_array_equal(piece.values, cube[[15, 31, 46]])
    assert [channel.wavelength_nm for channel in ingest.contract(chosen).channels] == [550, 707, 862]
    described = raster(tmp_path / "b.tif", cube, tuple(f"Band {i} ({nm:.2f} nm)" for i, nm in enumerate(centres)))
    np.testing.assert_array_equal(one(described, chosen).values, piece.values)


def test_names_come_before_wavelengths_and_are_helped_out_by_them(tmp_path: Path) -> None:
    path = with_wavelengths(tmp_path / "a.tif", scene(), [490, 560, 665, 842], names=("B2", "", "B4", ""))
    np.testing.assert_array_equal(one(path, settings()).values, scene())
    listed = settings(file_bands=("B2", "B3", "B4", "-"))
    assert one(path, listed).facts["bands"] == ["B2", "B3", "B4"]


def test_a_name_that_the_wavelength_contradicts_is_refused(tmp_path: Path) -> None:
    path = with_wavelengths(tmp_path / "a.tif", scene(), [492, 560, 665, 865])
    with pytest.raises(Refused, match="found 665 nm in the file for band 3, expected about 864.7 nm by its name"):
        one(path, settings(bands=("B8A",), file_bands=("B2", "B3", "B8A", "B8")))
    # Landsat's B5 read with Sentinel-2's names: near infrared where a red edge is expected.
    oli = with_wavelengths(tmp_path / "b.tif", scene(), [482, 561, 655, 865], names=("B2", "B3", "B4", "B5"))
    with pytest.raises(Refused, match="found 865 nm in the file for band 4, expected about 704.1 nm"):
        one(oli, settings())
    assert one(oli, settings(sensor="landsat8", bands=("blue", "nir"))).facts["bands"] == ["blue", "nir"]


@pytest.mark.parametrize("wavelengths", [{"B99": 500.0}, {"B2": -1.0}])
def test_wavelengths_of_no_band_are_refused(wavelengths: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="wavelengths: found"):
        settings(wavelengths=wavelengths)


# ---- dead and missing ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0, 1, 4000])
def test_a_band_of_one_value_among_others_is_recorded_as_dead(tmp_path: Path, value: int) -> None:
    values = scene()
    values[3] = value
    piece = one(raster(tmp_path / "a.tif", values, BANDS), settings())
    assert piece.facts["dead_bands"] == ["B8"] and np.array_equal(piece.values, values)


def test_a_dead_band_that_counts_as_unknown_is_recorded_too(tmp_path: Path) -> None:
    values = scene()
    values[1] = 0
    piece = one(raster(tmp_path / "a.tif", values, BANDS), settings(zero_is_nodata=True))
    assert piece.facts["dead_bands"] == ["B3"] and (piece.values[1] == UNKNOWN).all()


def test_live_bands_missing_bands_and_scenes_of_one_value_are_not_called_dead(tmp_path: Path) -> None:
    assert "dead_bands" not in one(raster(tmp_path / "a.tif", scene(), BANDS), settings()).facts
    lacking = one(raster(tmp_path / "b.tif", scene(3), BANDS[:3]), settings())
    assert "dead_bands" not in lacking.facts and lacking.facts["bands"] == ["B2", "B3", "B4"]
    flat = one(raster(tmp_path / "c.tif", np.full((4, 32, 32), 700, np.uint16), BANDS), settings())
    assert "dead_bands" not in flat.facts


def test_a_band_is_dead_in_the_tiles_where_it_is_and_in_no_other(tmp_path: Path) -> None:
    values = scene(4, 64, 32)
    values[2, 32:] = 0
    found = ingest.read(row(raster(tmp_path / "a.tif", values, BANDS)), settings(cut="tiles"))
    assert isinstance(found, list)
    assert [piece.facts.get("dead_bands") for piece in found] == [None, ["B4"]]
