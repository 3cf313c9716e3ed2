"""Every compression on the list is decoded to the numbers that went in, and no damage to a checksummed file passes.

Files that no encoder at hand can write are those that pydicom is installed with.
"""

import io
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from domains.medical import ingest
from domains.medical.dicom import TRANSFER_SYNTAXES
from domains.medical.ingest import XRay
from domains.sample import Refused
from tests.domains.medical.files import CANARY, dicom, row
from tests.domains.medical.lossless_jpeg import encode

SIZE = (64, 48)
SAME = XRay(size=SIZE, fit="crop", contrast="percentile", percentiles=(0.0, 100.0))
NAMES = {name: uid for uid, name in TRANSFER_SYNTAXES.items()}


def stored(bits: int) -> np.ndarray:
    """Smooth with a little noise, and every extreme."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:SIZE[0], :SIZE[1]]
    top = 2 ** bits - 1
    values = np.clip((np.sin(rows / 9) + np.cos(columns / 7) + 2) / 4 * top + rng.normal(0, top / 200, SIZE), 0, top)
    values[0, 0], values[-1, -1] = 0, top
    return np.round(values).astype(np.uint16)


def film_of(path: Path, settings: XRay = SAME) -> np.ndarray:
    return ingest.read(row(path), settings)[0].values[0].astype(int)


def wrapped(path: Path, stream: bytes, syntax: str, bits: int, allocated: int) -> Path:
    """One compressed stream as a DICOM file."""
    from pydicom.encaps import encapsulate

    path = dicom(path, np.zeros(SIZE, np.uint16), TransferSyntaxUID=syntax, BitsStored=bits, HighBit=bits - 1,
                 BitsAllocated=allocated, PixelData=encapsulate([stream]))
    return path


@pytest.mark.parametrize("name", ["implicit little endian", "explicit little endian", "explicit big endian",
                                  "deflated explicit little endian", "RLE", "JPEG 2000 lossless", "JPEG 2000"])
def test_numbers_written_by_pydicom_come_back(tmp_path: Path, name: str) -> None:
    import pydicom

    header = pydicom.dcmread(dicom(tmp_path / "a.dcm", stored(12)))
    plain = film_of(tmp_path / "a.dcm")
    if name in ("RLE", "JPEG 2000 lossless", "JPEG 2000"):
        header.compress(NAMES[name], **({"j2k_psnr": [100]} if name == "JPEG 2000" else {}))
        header.save_as(tmp_path / "b.dcm")
    else:
        header.file_meta.TransferSyntaxUID = pydicom.uid.UID(NAMES[name])
        if "big" in name:
            header.PixelData = stored(12).astype(">u2").tobytes()
        pydicom.dcmwrite(tmp_path / "b.dcm", header, implicit_vr="implicit" in name, little_endian="big" not in name,
                         force_encoding=True)
    assert str(pydicom.dcmread(tmp_path / "b.dcm").file_meta.TransferSyntaxUID) == NAMES[name]
    assert abs(film_of(tmp_path / "b.dcm") - plain).max() <= (1 if name == "JPEG 2000" else 0)


@pytest.mark.parametrize(("name", "predictor"), [("JPEG lossless", 6), ("JPEG lossless", 1),
                                                 ("JPEG lossless, first order", 1)])
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_lossless_jpeg_is_decoded_exactly(tmp_path: Path, name: str, predictor: int, bits: int) -> None:
    allocated = 8 if bits == 8 else 16
    path = wrapped(tmp_path / "a.dcm", encode(stored(bits), predictor, bits), NAMES[name], bits, allocated)
    plain = dicom(tmp_path / "b.dcm", stored(bits), BitsStored=bits, HighBit=bits - 1)
    np.testing.assert_array_equal(film_of(path), film_of(plain))


def test_baseline_jpeg_is_decoded_as_pillow_does(tmp_path: Path) -> None:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(stored(8).astype(np.uint8)).save(stream, "JPEG", quality=95)
    path = wrapped(tmp_path / "a.dcm", stream.getvalue(), NAMES["JPEG baseline"], 8, 8)
    told = np.asarray(Image.open(stream)).astype(np.uint16)
    plain = dicom(tmp_path / "b.dcm", told, BitsStored=8, HighBit=7)
    assert abs(film_of(path) - film_of(plain)).max() <= 1


def installed(name: str) -> Path:
    from pydicom.data import get_testdata_file

    found = get_testdata_file(name, download=False)
    if found is None:
        pytest.skip(f"this pydicom comes without {name}")
    return Path(str(found))


@pytest.mark.parametrize(("name", "file"), [
    ("JPEG-LS lossless", "MR_small_jpeg_ls_lossless.dcm"), ("JPEG 2000 lossless", "MR_small_jp2klossless.dcm"),
    ("RLE", "MR_small_RLE.dcm"), ("explicit big endian", "MR_small_bigendian.dcm"),
    ("implicit little endian", "MR_small_implicit.dcm")])
def test_files_of_other_encoders_show_what_their_original_shows(name: str, file: str) -> None:
    import pydicom

    assert str(pydicom.dcmread(installed(file)).file_meta.TransferSyntaxUID) == NAMES[name]
    np.testing.assert_array_equal(film_of(installed(file)), film_of(installed("MR_small.dcm")))


@pytest.mark.parametrize(("name", "file"), [
    ("JPEG extended", "JPGExtended.dcm"), ("JPEG-LS near lossless", "JPEGLSNearLossless_16.dcm"),
    ("JPEG-LS near lossless", "JPEGLSNearLossless_08.dcm"), ("deflated explicit little endian", "image_dfl.dcm")])
def test_what_only_installed_files_show_is_decoded(name: str, file: str) -> None:
    import pydicom

    header = pydicom.dcmread(installed(file))
    assert str(header.file_meta.TransferSyntaxUID) == NAMES[name]
    assert header.pixel_array.std() > 0
    settings = XRay(size=header.pixel_array.shape, fit="crop", contrast="percentile", percentiles=(0.0, 100.0))
    seen, told = film_of(installed(file), settings).ravel(), header.pixel_array.astype(float).ravel()
    assert np.corrcoef(seen, told)[0, 1] > 0.999


# ---- deflated ----

def deflated(path: Path, body: bytes, ends: bool = True) -> Path:
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    dicom(path, stored(12), TransferSyntaxUID=DeflatedExplicitVRLittleEndian)
    whole = path.read_bytes()
    begin = 144 + int.from_bytes(whole[140:144], "little")
    inflated = zlib.decompress(whole[begin:], -zlib.MAX_WBITS)
    packer = zlib.compressobj(1, wbits=-zlib.MAX_WBITS)
    packed = packer.compress(inflated + body) + packer.flush()
    path.write_bytes(whole[:begin] + (packed if ends else packed[:len(packed) // 2]))
    return path


def test_a_deflated_bomb_is_stopped_before_it_fills_the_memory(tmp_path: Path) -> None:
    pixels = b"\xe0\x7f\x10\x00OW\0\0" + (2 ** 28).to_bytes(4, "little") + bytes(2 ** 28)
    path = deflated(tmp_path / "a.dcm", pixels)
    assert path.stat().st_size < 2 ** 21
    with pytest.raises(Refused, match="inflates to more than 268435456 bytes"):
        ingest.read(row(path), SAME)


def test_a_deflated_file_that_was_cut_off_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="ends early"):
        ingest.read(row(deflated(tmp_path / "a.dcm", b"", ends=False)), SAME)


# ---- colours ----

def coloured(path: Path, colours: np.ndarray, **tags: object) -> Path:
    return dicom(path, colours[..., 0].astype(np.uint16), **{
        "SamplesPerPixel": 3, "PlanarConfiguration": 0, "BitsAllocated": 8, "BitsStored": 8, "HighBit": 7,
        "PhotometricInterpretation": "RGB", "PixelData": colours.tobytes(), **tags})


def test_a_grey_film_saved_in_colour_is_read_as_the_grey_film(tmp_path: Path) -> None:
    grey = stored(8).astype(np.uint8)
    rgb = np.repeat(grey[..., None], 3, axis=2)
    path = coloured(tmp_path / "a.dcm", rgb)
    np.testing.assert_array_equal(film_of(path), grey)
    apart = coloured(tmp_path / "b.dcm", rgb, PlanarConfiguration=1, PixelData=rgb.transpose(2, 0, 1).tobytes())
    np.testing.assert_array_equal(film_of(apart), grey)
    assert ingest.read(row(path), SAME)[0].facts["contrast"] == "stored"


def test_a_grey_film_in_jpegs_brightness_and_colour_is_read_too(tmp_path: Path) -> None:
    from PIL import Image
    from pydicom.encaps import encapsulate

    grey = stored(8).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(np.repeat(grey[..., None], 3, axis=2)).save(stream, "JPEG", quality=98)
    path = coloured(tmp_path / "a.dcm", np.repeat(grey[..., None], 3, axis=2), TransferSyntaxUID=NAMES["JPEG baseline"],
                    PhotometricInterpretation="YBR_FULL_422", PixelData=encapsulate([stream.getvalue()]))
    assert abs(film_of(path) - grey).max() <= 8


def test_a_coloured_picture_is_refused_as_dicom_and_noted_as_png(tmp_path: Path) -> None:
    from PIL import Image

    rgb = np.repeat(stored(8).astype(np.uint8)[..., None], 3, axis=2)
    rgb[:20, :20, 0] = 255
    with pytest.raises(Refused, match=r"not a grey film: 1\d\.\d% of its pixels are coloured") as refusal:
        ingest.read(row(coloured(tmp_path / "a.dcm", rgb)), SAME)
    assert CANARY not in str(refusal.value)
    Image.fromarray(rgb).save(tmp_path / "a.png")
    assert 0.05 < float(ingest.read(row(tmp_path / "a.png"), SAME)[0].facts["coloured"]) < 0.15  # type: ignore[arg-type]
    Image.fromarray(rgb[..., 1]).save(tmp_path / "b.png")
    assert "coloured" not in ingest.read(row(tmp_path / "b.png"), SAME)[0].facts


# ---- checksums ----

@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_damage_to_a_png_never_passes_unseen(tmp_path: Path, dtype: Callable[..., np.ndarray]) -> None:
    from PIL import Image

    path = tmp_path / "a.png"
    Image.fromarray(stored(8).astype(dtype)).save(path)
    whole = path.read_bytes()
    film_of(path)
    rng = np.random.default_rng(0)
    for at in rng.integers(8, len(whole), 200):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << int(rng.integers(8)))]) + whole[at + 1:])
        with pytest.raises(Refused):
            film_of(path)
