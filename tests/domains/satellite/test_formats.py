"""Every integer and float type, layout and compression of GeoTIFF leads to the same reflectance, and what is not known
stays unknown."""

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from domains.sample import Piece, Refused
from domains.satellite import deflated, ingest
from domains.satellite.ingest import Encoding, Multispectral
from domains.satellite.units import UNKNOWN
from tests.domains.satellite.files import raster, row, scene

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
pytest.importorskip("rasterio", reason="reads GeoTIFF: pip install 'lacuna[satellite]'")
BANDS = ("B2", "B3", "B4", "B8")


def settings(**changes: Any) -> Multispectral:
    return Multispectral(**{"bands": BANDS, "sensor": "sentinel2", "size": (32, 32), **changes})


def values_of(path: Path, chosen: Multispectral, **about: str) -> np.ndarray:
    (piece,) = ingest.read(row(path, **about), chosen)
    assert isinstance(piece, Piece)
    return piece.values


# ---- types --------------------------------------------------------------------------------------------------------

TYPES = ["uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float16", "float32", "float64"]


def numbers(dtype: str) -> np.ndarray:
    """C H W that every type holds exactly: 0 to 124."""
    return np.random.default_rng(0).integers(0, 125, (4, 32, 32)).astype(dtype)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("form", ["tif", "npy"])
def test_every_integer_and_float_type_is_read(tmp_path: Path, dtype: str, form: str) -> None:
    values = numbers(dtype)
    if form == "npy":
        np.save(tmp_path / "a.npy", values)
    elif dtype == "float16":  # GDAL writes it as 32-bit floats of 16 bits
        raster(tmp_path / "a.tif", values.astype("float32"), BANDS, nbits=16)
    else:
        raster(tmp_path / "a.tif", values, BANDS)
    named = {} if form == "tif" else {"file_bands": BANDS}
    found = values_of(tmp_path / f"a.{form}", settings(scale=0.004, **named))
    np.testing.assert_array_equal(found, values.astype(int) * 40)


@pytest.mark.parametrize("dtype", ["complex64", "complex128", "complex_int16"])
def test_complex_numbers_are_refused(tmp_path: Path, dtype: str) -> None:
    import rasterio

    with rasterio.open(tmp_path / "a.tif", "w", driver="GTiff", count=1, height=32, width=32, dtype=dtype) as file:
        file.set_band_description(1, "B2")
    with pytest.raises(Refused, match="expected real numbers"):
        values_of(tmp_path / "a.tif", settings())


@pytest.mark.parametrize("dtype", [">u2", ">f4", "<f8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_of_either_byte_order_and_layout_are_read(tmp_path: Path, dtype: str, order: Any) -> None:
    np.save(tmp_path / "a.npy", np.asarray(scene(), dtype, order=order))
    np.testing.assert_array_equal(values_of(tmp_path / "a.npy", settings(file_bands=BANDS)), scene())


# ---- nodata -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "nodata"), [
    ("uint8", 255), ("int8", -128), ("uint16", 65535), ("int16", -32768), ("uint32", 2**32 - 1), ("int32", -9999),
    ("int64", -9999), ("uint64", 2**40), ("float32", float("nan")), ("float32", -3.4028234663852886e38),
    ("float64", -1e300), ("float32", float("inf"))])
@pytest.mark.parametrize("told_by", ["file", "settings"])
def test_nodata_of_every_type_is_unknown(tmp_path: Path, dtype: str, nodata: float, told_by: str) -> None:
    values = numbers(dtype)
    values[1, 3, 4], values[2, 5, 6] = nodata, nodata
    path = raster(tmp_path / "a.tif", values, BANDS, **({"nodata": nodata} if told_by == "file" else {}))
    found = values_of(path, settings(scale=0.004, **({} if told_by == "file" else {"nodata": float(nodata)})))
    assert [tuple(at) for at in np.argwhere(found == UNKNOWN)] == [(1, 3, 4), (2, 5, 6)]


def test_a_nodata_value_is_compared_as_the_files_own_type_holds_it(tmp_path: Path) -> None:
    values = np.full((4, 32, 32), 0.3, np.float32)
    values[0, 0, 0] = np.float32(-3.4e38)
    assert float(values[0, 0, 0]) != -3.4e38
    path = raster(tmp_path / "a.tif", values, BANDS)
    found = values_of(path, settings(scale=1.0, nodata=-3.4e38))
    assert found[0, 0, 0] == UNKNOWN and (found == UNKNOWN).sum() == 1


# ---- scale and offset ---------------------------------------------------------------------------------------------


def test_every_bands_own_scale_and_offset_count_when_asked_for(tmp_path: Path) -> None:
    scales, offsets = (0.0001, 0.0002, 0.00005, 0.0001), (0.0, -0.1, 0.05, 0.0)
    path = raster(tmp_path / "a.tif", scene(), BANDS, scales=scales, offsets=offsets)
    told = scene() * np.array(scales)[:, None, None] + np.array(offsets)[:, None, None]
    with pytest.raises(Refused, match="found scale 0.0002 and offset -0.1 in the file.*`scaling: file`"):
        values_of(path, settings())
    found = values_of(path, settings(scaling="file"))
    np.testing.assert_allclose(found, np.clip(told * 10000, 0, None), atol=1)
    by_source = settings(by_source={"s": Encoding(scaling="file")})
    np.testing.assert_array_equal(values_of(path, by_source), found)


def test_where_a_band_has_no_tags_the_settings_count(tmp_path: Path) -> None:
    plain = raster(tmp_path / "a.tif", scene(), BANDS)
    np.testing.assert_array_equal(values_of(plain, settings(scaling="file")), scene())
    some = raster(tmp_path / "b.tif", scene(), BANDS, scales=(1.0, 0.0002, 1.0, 1.0), offsets=(0.0,) * 4)
    found = values_of(some, settings(scaling="file"))
    np.testing.assert_array_equal(found[[0, 2, 3]], scene()[[0, 2, 3]])
    np.testing.assert_allclose(found[1], 2 * scene()[1].astype(int), atol=1)


def test_a_scale_that_is_no_number_is_refused(tmp_path: Path) -> None:
    path = raster(tmp_path / "a.tif", scene(), BANDS, scales=(float("nan"),) * 4, offsets=(0.0,) * 4)
    with pytest.raises(Refused, match="scale or offset in the file that is no finite number"):
        values_of(path, settings(scaling="file"))


# ---- layouts ------------------------------------------------------------------------------------------------------

LAYOUTS: dict[str, dict[str, Any]] = {
    "strips": {"blockysize": 7}, "tiles": {"tiled": True, "blockxsize": 16, "blockysize": 16},
    "pixel": {"interleave": "pixel"}, "band": {"interleave": "band"}, "bigtiff": {"bigtiff": "YES"},
    "big endian": {"endianness": "BIG"}, "deflate": {"compress": "deflate", "predictor": 2},
    "lzw": {"compress": "lzw", "predictor": 2}, "zstd": {"compress": "zstd"}, "lzma": {"compress": "lzma"},
    "packbits": {"compress": "packbits"}, "lerc": {"compress": "lerc", "max_z_error": 0},
    "all": {"tiled": True, "blockxsize": 16, "blockysize": 16, "interleave": "pixel", "compress": "deflate",
            "predictor": 2, "bigtiff": "YES", "endianness": "BIG"}}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_and_compression_holds_the_same_numbers(tmp_path: Path, layout: str) -> None:
    path = raster(tmp_path / "a.tif", scene(), BANDS, **LAYOUTS[layout])
    np.testing.assert_array_equal(values_of(path, settings()), scene())


@pytest.mark.parametrize("compress", ["deflate", "lzw", "zstd"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_floating_point_predictor_is_undone(tmp_path: Path, compress: str, dtype: str) -> None:
    values = (scene() / 10000).astype(dtype)
    path = raster(tmp_path / "a.tif", values, BANDS, compress=compress, predictor=3)
    np.testing.assert_allclose(values_of(path, settings(scale=1.0)), scene(), atol=1)


def test_a_cloud_optimised_file_is_read_at_full_resolution_with_its_mask(tmp_path: Path) -> None:
    import rasterio
    import rasterio.shutil

    values = scene(4, 600, 600)
    plain = raster(tmp_path / "plain.tif", values, BANDS)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(plain, "r+") as file:
        hole = np.full((600, 600), 255, np.uint8)
        hole[100:140, 200:300] = 0
        file.write_mask(hole)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        rasterio.shutil.copy(plain, tmp_path / "cog.tif", driver="COG", compress="deflate", blocksize=256)
    with rasterio.open(tmp_path / "cog.tif") as file:
        assert file.overviews(1) and file.mask_flag_enums[0]
    found = values_of(tmp_path / "cog.tif", settings(size=(600, 600)))
    assert (found[:, 100:140, 200:300] == UNKNOWN).all() and (found == UNKNOWN).sum() == 4 * 40 * 100
    known = found != UNKNOWN
    np.testing.assert_array_equal(found[known], values[known])


@pytest.mark.parametrize("layout", ["deflate", "all"])
def test_damage_to_a_deflated_file_never_passes_unseen(tmp_path: Path, layout: str) -> None:
    chosen = settings(size=(64, 64), file_bands=BANDS)  # names inside the file have no checksum
    path = raster(tmp_path / "a.tif", scene(4, 64, 64), BANDS, **LAYOUTS[layout])
    clean, whole = values_of(path, chosen), path.read_bytes()
    rng = np.random.default_rng(0)
    silent = 0
    for at in rng.integers(len(whole) // 5, len(whole), 150):  # beyond the directory, in the pixels
        path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << int(rng.integers(8)))]) + whole[at + 1:])
        try:
            silent += not np.array_equal(values_of(path, chosen), clean)
        except Refused:
            pass
    assert silent == 0


@pytest.mark.parametrize("layout", [
    {}, {"predictor": 2}, {"predictor": 2, "ENDIANNESS": "BIG"}, {"interleave": "band", "BIGTIFF": "YES"},
    {"tiled": True, "blockxsize": 32, "blockysize": 16, "predictor": 2}, {"SPARSE_OK": True}, {"blockysize": 11}])
def test_a_whole_file_is_inflated_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: dict[str, Any]) -> None:
    values = scene(4, 64, 64)
    path = raster(tmp_path / "a.tif", values, BANDS, compress="deflate", **layout)
    again: list[object] = []
    monkeypatch.setattr(deflated, "_check_blocks", lambda *given: again.append(given))
    np.testing.assert_array_equal(values_of(path, settings(size=(64, 64))), values)
    assert not again
    whole = path.read_bytes()
    path.write_bytes(whole[:len(whole) // 2] + bytes(30) + whole[len(whole) // 2 + 30:])
    with contextlib.suppress(Refused):
        values_of(path, settings(size=(64, 64)))
    assert again  # what the pixels do not vouch for is inflated, and that decides


def test_damage_in_an_overview_does_not_matter(tmp_path: Path) -> None:
    import rasterio

    path = raster(tmp_path / "a.tif", scene(4, 256, 256), BANDS, compress="deflate", tiled=True, blockxsize=128,
                  blockysize=128)
    plain = path.stat().st_size
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as file:
        file.build_overviews([2])
    whole, clean = path.read_bytes(), values_of(path, settings(size=(256, 256)))
    path.write_bytes(whole[:-40] + bytes(20) + whole[-20:])
    assert len(whole) > plain
    np.testing.assert_array_equal(values_of(path, settings(size=(256, 256))), clean)
