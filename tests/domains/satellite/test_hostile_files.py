"""Files that were made to do harm, or that broke on the way, are refused with a reason and nothing else happens."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from domains.sample import Refused
from domains.satellite import ingest
from domains.satellite.ingest import Multispectral
from tests.domains.satellite.files import CANARY, raster, row, scene

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
pytest.importorskip("rasterio", reason="reads GeoTIFF: pip install 'lacuna[satellite]'")
BANDS = ("B2", "B3", "B4", "B8")
SETTINGS = Multispectral(bands=BANDS, sensor="sentinel2", size=(32, 32))


def refusal(path: Path, settings: Multispectral = SETTINGS, mask: Path | None = None) -> str:
    with pytest.raises(Refused) as caught:
        ingest.read(row(path, mask), settings)
    assert CANARY not in str(caught.value)
    return str(caught.value)


def vrt(target: Path) -> str:
    return (f'<VRTDataset rasterXSize="32" rasterYSize="32"><VRTRasterBand dataType="UInt16" band="1"><Description>B2'
            f'</Description><SimpleSource><SourceFilename relativeToVRT="0">{target}</SourceFilename><SourceBand>1'
            '</SourceBand></SimpleSource></VRTRasterBand></VRTDataset>')


def test_a_virtual_file_that_names_another_is_not_followed(tmp_path: Path) -> None:
    secret = raster(tmp_path / "secret.tif", scene(), BANDS)
    (tmp_path / "a.tif").write_text(vrt(secret))
    assert "does not begin like GTiff" in refusal(tmp_path / "a.tif")
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "x_B02.tif").write_text(vrt(secret))
    assert "does not begin like GTiff" in refusal(tmp_path / "x")
    good = raster(tmp_path / "b.tif", scene(), BANDS)
    (tmp_path / "m.png").write_text(vrt(secret))
    assert "does not begin like PNG" in refusal(good, mask=tmp_path / "m.png")


@pytest.mark.parametrize("path", [
    "/vsicurl/http://127.0.0.1:9/a.tif", "/VSIZIP/a.zip/a.tif", "http://127.0.0.1:9/a.tif", "HTTP://127.0.0.1:9/a.tif",
    "s3://bucket/a.tif", "GTIFF_DIR:1:a.tif", "zip+https://127.0.0.1:9/a.zip!a.tif", "missing.tif"])
def test_addresses_and_virtual_paths_are_never_opened(path: str) -> None:
    assert "found no file or folder of this name" in refusal(Path(path))


def test_files_beside_the_file_change_nothing(tmp_path: Path) -> None:
    path = raster(tmp_path / "a.tif", scene(), BANDS)
    (tmp_path / "a.tif.aux.xml").write_text(
        '<PAMDataset><PAMRasterBand band="1"><Description>B12</Description><NoDataValue>1</NoDataValue><Scale>9</Scale>'
        "</PAMRasterBand></PAMDataset>")
    raster(tmp_path / "a.tif.msk", np.zeros((32, 32), np.uint8))
    (piece,) = ingest.read(row(path), SETTINGS)
    assert np.array_equal(piece.values, scene())


@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.8])
def test_a_file_that_was_cut_off_is_refused(tmp_path: Path, share: float) -> None:
    path = raster(tmp_path / "a.tif", scene(), BANDS, compress="deflate")
    whole = path.read_bytes()
    path.write_bytes(whole[:int(len(whole) * share)])
    assert refusal(path).startswith(("found", "GTiff"))


def test_any_single_damaged_byte_gives_values_or_a_reason_and_no_log(
        tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = raster(tmp_path / "a.tif", scene(4, 16, 16), BANDS, compress="deflate")
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for at in rng.integers(0, len(whole), 150):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x41]) + whole[at + 1:])
        try:
            pieces = ingest.read(row(path), SETTINGS)
        except Refused as reason:
            assert str(reason)
        else:
            assert all(piece.values.dtype == np.uint16 for piece in pieces)
    assert not caplog.records


def test_names_that_are_no_text_and_a_local_coordinate_system_do_no_harm(tmp_path: Path) -> None:
    import rasterio

    path = raster(tmp_path / "a.tif", scene(), BANDS)
    path.write_bytes(path.read_bytes().replace(b">B2<", b">\xe84<"))
    assert "damaged" in refusal(path)
    path = raster(tmp_path / "b.tif", scene(), BANDS)
    with rasterio.open(path, "r+") as file:
        file.crs = rasterio.CRS.from_wkt('LOCAL_CS["site",UNIT["metre",1]]')
    (piece,) = ingest.read(row(path), SETTINGS)
    assert np.array_equal(piece.values, scene()) and "epsg" not in piece.facts


def test_a_header_that_claims_more_than_memory_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    import rasterio

    with rasterio.open(tmp_path / "a.tif", "w", driver="GTiff", count=4, height=60_000, width=60_000, dtype="uint16",
                       sparse_ok=True, tiled=True, blockxsize=512, blockysize=512) as file:
        for i, name in enumerate(BANDS, start=1):
            file.set_band_description(i, name)
    assert (tmp_path / "a.tif").stat().st_size < 2**21
    assert "`cut: tiles`" in refusal(tmp_path / "a.tif")
    assert "28800000000 bytes; expected at most" in refusal(
        tmp_path / "a.tif", Multispectral(bands=BANDS, sensor="sentinel2", size=(32, 32), cut="tiles"))
    with rasterio.open(tmp_path / "b.tif", "w", driver="GTiff", count=1, height=60_000, width=60_000, dtype="uint16",
                       sparse_ok=True, tiled=True, blockxsize=32_768, blockysize=32_768) as file:
        file.set_band_description(1, "B2")
    assert "found blocks of 32768 x 32768 uint16" in refusal(tmp_path / "b.tif")


def npy(path: Path, header: str, body: bytes = b"") -> Path:
    text = header.encode().ljust(117) + b"\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + body)
    return path


@pytest.mark.parametrize("header", [
    "{'descr': '<u2', 'fortran_order': False, 'shape': (4, 1000000, 1000000), }",
    "{'descr': '|O', 'fortran_order': False, 'shape': (4, 2, 2), }", "{'descr': __import__('os')}", ""])
def test_an_array_that_lies_or_hides_objects_is_refused(tmp_path: Path, header: str) -> None:
    settings = Multispectral(bands=BANDS, sensor="sentinel2", size=(32, 32), file_bands=BANDS)
    assert ".npy could not be opened" in refusal(npy(tmp_path / "a.npy", header, b"\0" * 64), settings)


@pytest.mark.parametrize(("values", "message"), [
    (np.zeros((32, 32), np.uint16), "expected real numbers of bands x rows x columns"),
    (np.zeros((4, 8, 8), np.complex64), "expected real numbers of bands x rows x columns"),
    (np.zeros((3, 8, 8), np.uint16), "found 3 bands and 4 names")])
def test_an_array_of_another_kind_is_refused(tmp_path: Path, values: Any, message: str) -> None:
    np.save(tmp_path / "a.npy", values)
    settings = Multispectral(bands=BANDS, sensor="sentinel2", size=(32, 32), file_bands=BANDS)
    assert message in refusal(tmp_path / "a.npy", settings)


def test_a_missing_library_is_met_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    path = raster(tmp_path / "a.tif", scene(), BANDS)
    monkeypatch.setitem(sys.modules, "rasterio", None)
    with pytest.raises(ImportError, match=r"pip install 'lacuna\[satellite\]'"):
        ingest.read(row(path), SETTINGS)
