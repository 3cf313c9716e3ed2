"""Multispectral files become uint16 reflectance x 10000 in the contract's band order, whatever form they come in."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from domains.sample import Piece, Refused
from domains.satellite import ingest
from domains.satellite.ingest import Encoding, Multispectral
from domains.satellite.units import UNKNOWN
from tests.domains.satellite.files import CANARY, raster, row, scene

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
pytest.importorskip("rasterio", reason="reads GeoTIFF: pip install 'lacuna[satellite]'")
BANDS = ("B2", "B3", "B4", "B8")


def settings(**changes: Any) -> Multispectral:
    return Multispectral(**{"bands": BANDS, "sensor": "sentinel2", "size": (32, 32), **changes})


def one(path: Path, chosen: Multispectral, mask: Path | None = None, **about: str) -> Piece:
    (piece,) = ingest.read(row(path, mask, **about), chosen)
    return piece


# ---- names --------------------------------------------------------------------------------------------------------


def test_names_decide_and_positions_do_not(tmp_path: Path) -> None:
    values = scene()
    shuffled = raster(tmp_path / "a.tif", values[[3, 0, 2, 1]], ("B08", "blue", "b4", "B3"))
    assert np.array_equal(one(shuffled, settings()).values, values)
    nameless = raster(tmp_path / "b.tif", values[[3, 0, 2, 1]])
    assert np.array_equal(one(nameless, settings(file_bands=("B8", "B2", "B4", "B3"))).values, values)
    in_column = one(nameless, settings(bands_column="bands"), bands="B8,B2,B4,B3")
    assert np.array_equal(in_column.values, values)


def test_bands_without_names_are_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="found 4 bands without names.*`file_bands`.*`bands_column`"):
        one(raster(tmp_path / "a.tif", scene()), settings())


@pytest.mark.parametrize(("names", "message"), [
    (("B2", "B3", "B4"), "found 4 bands in the file, expected the 3"),
    (("B2", "B3", "B4", "B4"), "found band red twice"),
    (("B11", "B12", "B5", "B6"), "found none of the bands B2, B3, B4, B8")])
def test_names_that_do_not_fit_the_file_are_refused(tmp_path: Path, names: tuple[str, ...], message: str) -> None:
    with pytest.raises(Refused, match=message):
        one(raster(tmp_path / "a.tif", scene()), settings(file_bands=names))


def test_a_name_in_the_manifest_that_the_sensor_lacks_is_refused(tmp_path: Path) -> None:
    path = raster(tmp_path / "a.tif", scene())
    with pytest.raises(Refused, match="found B88 in column bands, expected bands of sentinel2"):
        one(path, settings(bands_column="bands"), bands="B2,B3,B4,B88")
    assert one(path, settings(bands_column="bands"), bands="B2,B3,B4,-").facts["bands"] == ["B2", "B3", "B4"]


def test_names_inside_a_file_that_contradict_those_set_are_refused(tmp_path: Path) -> None:
    path = raster(tmp_path / "a.tif", scene(), ("B2", "B3", "B4", "B8A"))
    with pytest.raises(Refused, match="found other names inside the file than set for bands 4"):
        one(path, settings(file_bands=BANDS))


def test_a_band_that_a_file_lacks_is_unknown_and_what_it_has_besides_is_passed_over(tmp_path: Path) -> None:
    values = scene()
    piece = one(raster(tmp_path / "a.tif", values, ("B2", "B3", "SCL", "B8")), settings())
    assert piece.facts["bands"] == ["B2", "B3", "B8"]
    assert (piece.values[2] == UNKNOWN).all() and np.array_equal(piece.values[[0, 1, 3]], values[[0, 1, 3]])


def test_sources_of_different_sensors_are_pooled_by_what_their_bands_stand_for(tmp_path: Path) -> None:
    oli = Encoding(sensor="landsat8", scale=0.0000275, offset=-0.2)
    chosen = settings(bands=("blue", "nir"), by_source={"oli": oli})
    values = np.array([800, 3000], np.uint16)[:, None, None].repeat(32, 1).repeat(32, 2)
    sentinel = one(raster(tmp_path / "s.tif", values, ("B2", "B8")), chosen)
    stored = np.rint((values / 10000 + 0.2) / 0.0000275).astype(np.uint16)
    landsat = one(raster(tmp_path / "l.tif", stored, ("SR_B2", "SR_B5")), chosen, source="oli")
    assert np.array_equal(sentinel.values, values)
    assert np.abs(landsat.values.astype(int) - values).max() <= 1


# ---- one file per band --------------------------------------------------------------------------------------------


def test_one_file_per_band_is_brought_to_the_finest_grid(tmp_path: Path) -> None:
    values = scene(3)
    coarse = np.full((16, 16), 2500, np.uint16)
    for name, band, metres in (("x_B02", values[0], 10), ("x_B03", values[1], 10), ("x_B04_10m", values[2], 10),
                               ("x_B11_20m", coarse, 20), ("x_SCL_20m", coarse, 20)):
        raster(tmp_path / "x" / f"{name}.TIF", band, metres=metres)
    piece = one(tmp_path / "x", settings(bands=("B2", "B3", "B4", "B11"), resolution_m=10.0))
    assert np.array_equal(piece.values[:3], values) and (piece.values[3] == 2500).all()
    assert piece.facts["format"] == "GTiff per band" and piece.facts["metres_per_pixel"] == [10.0, 10.0]


def test_of_one_band_in_several_resolutions_the_finest_is_taken(tmp_path: Path) -> None:
    raster(tmp_path / "x" / "x_B02_10m.tif", scene(1))
    raster(tmp_path / "x" / "x_B02_20m.tif", scene(1, 16, 16), metres=20)
    assert np.array_equal(one(tmp_path / "x", settings()).values[0], scene(1)[0])


def test_bands_of_different_ground_or_of_no_known_name_are_refused(tmp_path: Path) -> None:
    raster(tmp_path / "x" / "x_B02.tif", scene(1))
    raster(tmp_path / "x" / "x_B03.tif", scene(1), corner=(401_000.0, 5_300_000.0))
    with pytest.raises(Refused, match="cover different ground"):
        one(tmp_path / "x", settings())
    raster(tmp_path / "y" / "first.tif", scene(1))
    with pytest.raises(Refused, match="no file whose name ends in one of B2, B3, B4, B8"):
        one(tmp_path / "y", settings())


def test_a_seam_between_tiles_does_not_show_in_a_coarse_band(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    raster(tmp_path / "x" / "B02.tif", scene(1, 64, 64))
    raster(tmp_path / "x" / "B11.tif", rng.integers(1000, 4000, (32, 32)).astype(np.uint16), metres=20)
    bands = {"bands": ("B2", "B11")}
    piece = one(tmp_path / "x", settings(**bands, size=(64, 64)))
    tiles = ingest.read(row(tmp_path / "x"), settings(**bands, cut="tiles"))
    joined = np.block([[tiles[0].values, tiles[1].values], [tiles[2].values, tiles[3].values]])
    assert np.array_equal(joined, piece.values)


# ---- numbers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "stored", "changes"), [
    ("uint16", 3000, {}), ("uint16", 4000, {"offset": -0.1}), ("float32", 0.3, {"scale": 1.0}),
    ("uint16", 18182, {"scale": 0.0000275, "offset": -0.2}), ("float64", 3000.2, {})])
def test_scale_and_offset_lead_to_reflectance(tmp_path: Path, dtype: str, stored: float,
                                              changes: dict[str, Any]) -> None:
    path = raster(tmp_path / "a.tif", np.full((4, 32, 32), stored, dtype), BANDS)
    assert (one(path, settings(**changes)).values == 3000).all()


def test_a_scale_that_the_file_declares_must_be_the_one_set(tmp_path: Path) -> None:
    path = raster(tmp_path / "a.tif", scene(), BANDS, scales=(0.0001,) * 4, offsets=(-0.1,) * 4)
    with pytest.raises(Refused, match="found scale 0.0001 and offset -0.1 in the file, expected 0.0001 and 0 as set"):
        one(path, settings())
    assert one(path, settings(offset=-0.1)).values.max() < scene().max()


def test_nodata_of_every_kind_is_unknown(tmp_path: Path) -> None:
    values = scene().astype(np.float32)
    values[0, 0, 0], values[1, 0, 1], values[2, 0, 2], values[3, 0, 3] = np.nan, -9999, 0, np.inf
    path = raster(tmp_path / "a.tif", values, BANDS, nodata=-9999)
    piece = one(path, settings(zero_is_nodata=True))
    assert [tuple(at) for at in np.argwhere(piece.values == UNKNOWN)] == [(0, 0, 0), (1, 0, 1), (2, 0, 2), (3, 0, 3)]
    assert one(path, settings()).values[2, 0, 2] == 0
    assert (one(path, settings(nodata=0)).values[2, 0, 2]) == UNKNOWN


def test_values_below_zero_are_clipped_and_counted_and_the_sentinel_is_never_a_value(tmp_path: Path) -> None:
    values = np.full((4, 32, 32), 500, np.int32)
    values[:, 0], values[:, 1] = -300, 70_000
    piece = one(raster(tmp_path / "a.tif", values, BANDS), settings())
    assert (piece.values[:, 0] == 0).all() and (piece.values[:, 1] == UNKNOWN - 1).all()
    assert piece.facts["negative"] == round(1 / 32, 4)


# ---- sizes --------------------------------------------------------------------------------------------------------


def test_a_smaller_file_is_padded_with_unknown_and_a_larger_one_stored_whole(tmp_path: Path) -> None:
    small = one(raster(tmp_path / "a.tif", scene(4, 30, 20), BANDS), settings())
    assert small.values.shape == (4, 32, 32) and (small.values[:, 0] == UNKNOWN).all()
    assert np.array_equal(small.values[:, 1:31, 6:26], scene(4, 30, 20))
    assert one(raster(tmp_path / "b.tif", scene(4, 40, 64), BANDS), settings()).values.shape == (4, 40, 64)


def test_a_scene_far_larger_than_the_samples_is_refused_until_it_is_cut(tmp_path: Path) -> None:
    path = raster(tmp_path / "a.tif", scene(4, 140, 130), BANDS)
    with pytest.raises(Refused, match="found 140 x 130 pixels, expected at most 128 x 128.*`cut: tiles`"):
        one(path, settings())
    assert len(ingest.read(row(path), settings(cut="tiles", min_known=0.01))) == 25


def test_tiles_know_their_place_and_empty_ones_are_left_out_and_counted(tmp_path: Path) -> None:
    values = scene(4, 80, 64)
    values[:, :, 32:] = 0
    pieces = ingest.read(row(raster(tmp_path / "a.tif", values, BANDS, nodata=0)), settings(cut="tiles"))
    assert [piece.suffix for piece in pieces] == ["@r0c0", "@r32c0", "@r64c0"]
    assert {piece.facts["tiles_skipped"] for piece in pieces} == {3}
    assert pieces[1].facts["bounds"] == [400_000.0, 5_299_360.0, 400_320.0, 5_299_680.0]
    assert (pieces[2].values[:, 16:] == UNKNOWN).all() and np.array_equal(pieces[2].values[:, :16], values[:, 64:, :32])
    with pytest.raises(Refused, match="no tile of 32 x 32 with 70% of its pixels known"):
        ingest.read(row(raster(tmp_path / "b.tif", values[:, :20], BANDS, nodata=0)),
                    settings(cut="tiles", min_known=0.7))


def test_a_file_with_too_little_in_it_is_refused(tmp_path: Path) -> None:
    values = scene()
    values[:, :, 10:] = 0
    with pytest.raises(Refused, match="found 31% of the pixels with a value, expected 50%"):
        one(raster(tmp_path / "a.tif", values, BANDS, nodata=0), settings())


def test_files_are_brought_to_the_resolution_of_the_run(tmp_path: Path) -> None:
    path = raster(tmp_path / "a.tif", np.full((4, 16, 16), 1200, np.uint16), BANDS, metres=20)
    piece = one(path, settings(resolution_m=10.0))
    assert piece.values.shape == (4, 32, 32) and (piece.values == 1200).all()
    assert piece.facts["metres_per_pixel"] == [10.0, 10.0]
    near = one(raster(tmp_path / "b.tif", scene(), BANDS, metres=10.4), settings(resolution_m=10.0))
    assert np.array_equal(near.values, scene())


def test_degrees_become_metres(tmp_path: Path) -> None:
    path = raster(tmp_path / "a.tif", scene(), BANDS, metres=0.0001, corner=(10.0, 60.0), epsg=4326)
    down, across = one(path, settings()).facts["metres_per_pixel"]  # type: ignore[misc]
    assert down == pytest.approx(11.13, abs=0.01) and across == pytest.approx(11.13 / 2, abs=0.01)


def test_a_mask_is_cut_with_its_scene(tmp_path: Path) -> None:
    mask = np.arange(48 * 32).reshape(48, 32).astype(np.uint8) % 5
    path = raster(tmp_path / "a.tif", scene(4, 48, 32), BANDS)
    png = raster(tmp_path / "m.png", mask, epsg=None, driver="PNG")
    pieces = ingest.read(row(path, png), settings(cut="tiles"))
    assert np.array_equal(pieces[0].mask, mask[:32])
    assert pieces[1].mask is not None and np.array_equal(pieces[1].mask[:16], mask[32:])
    assert (pieces[1].mask[16:] == 255).all()
    with pytest.raises(Refused, match=r"mask: found 1 bands of \(48, 30\) pixels, expected 1 of \(48, 32\)"):
        ingest.read(row(path, raster(tmp_path / "n.tif", mask[:, :30])), settings(cut="tiles"))


# ---- other forms --------------------------------------------------------------------------------------------------


def test_arrays_and_unreferenced_files_are_read_too(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", scene())
    assert np.array_equal(one(tmp_path / "a.npy", settings(file_bands=BANDS)).values, scene())
    plain = one(raster(tmp_path / "a.tif", scene(), epsg=None), settings(file_bands=BANDS))
    assert np.array_equal(plain.values, scene()) and not {"epsg", "bounds", "metres_per_pixel"} & plain.facts.keys()


def test_jpeg_2000_is_read_where_gdal_can(tmp_path: Path) -> None:
    import rasterio

    with rasterio.Env() as env:
        if "JP2OpenJPEG" not in env.drivers():
            pytest.skip("this GDAL has no OpenJPEG driver")
    for name, values in zip(("B02", "B03"), scene(2), strict=True):
        raster(tmp_path / "x" / f"x_{name}.jp2", values, driver="JP2OpenJPEG", quality=100, reversible="YES")
    assert np.array_equal(one(tmp_path / "x", settings()).values[:2], scene(2))


def test_the_contract_says_what_the_settings_make() -> None:
    contract = ingest.contract(settings(bands=("b02", "B8A"), resolution_m=10.0, brightest=0.8))
    assert contract.names == ("B2", "B8A") and contract.dtype == "uint16" and contract.unknown == UNKNOWN
    assert [channel.wavelength_nm for channel in contract.channels] == [492.4, 864.7]
    for channel in contract.channels:
        assert (channel.unit, channel.low, channel.high) == ("reflectance x 10000", 0.0, 8000.0)
    assert contract.spacing == (10.0, 10.0) and contract.size == (32, 32)


def test_facts_are_numbers_and_codes_alone(tmp_path: Path) -> None:
    path = raster(tmp_path / "a.tif", scene(), (*BANDS[:3], f"B8 {CANARY}"))
    assert CANARY not in str(one(path, settings()).facts)


@pytest.mark.parametrize(("changes", "message"), [
    ({"bands": ()}, "bands: found none"), ({"bands": ("B2", "blue")}, "one and the same band"),
    ({"bands": ("B77",)}, "found B77, expected one of"), ({"offset": -1000.0}, "-1000 becomes -0.1"),
    ({"scale": 0.0}, "expected above 0"), ({"size": (0, 32)}, "size: found"), ({"min_known": 0.0}, "min_known: found"),
    ({"resolution_m": -1.0}, "resolution_m: found"), ({"file_bands": ("B2", "typo")}, "found typo, expected one of"),
    ({"by_source": {"l": Encoding(sensor="landsat8", file_bands=("B12",))}}, "found B12, expected one of")])
def test_settings_that_mean_nothing_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings(**changes)
