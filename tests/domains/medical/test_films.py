"""Radiographs: what is read, and what is refused."""

from pathlib import Path

import numpy as np
import pytest

from domains.medical import film, ingest, resample
from domains.medical.ingest import XRay
from domains.sample import Refused
from tests.domains.medical.files import CANARY, dicom, row

SAME = XRay(size=(20, 30), fit="crop")


def picture_of(path: Path, settings: XRay = SAME) -> np.ndarray:
    (piece,) = ingest.read(row(path), settings)
    assert piece.values.dtype == np.uint8 and piece.values.shape == (1, *settings.size)
    return piece.values[0].astype(int)


@pytest.fixture
def attenuation() -> np.ndarray:
    return np.linspace(0, 4000, 600).reshape(20, 30).astype(np.uint16)


def test_monochrome_1_and_2_of_one_patient_give_one_picture(tmp_path: Path, attenuation: np.ndarray) -> None:
    bright_is_dense = dicom(tmp_path / "a.dcm", attenuation)
    dark_is_dense = dicom(tmp_path / "b.dcm", 4095 - attenuation, PhotometricInterpretation="MONOCHROME1")
    a, b = picture_of(bright_is_dense), picture_of(dark_is_dense)
    assert abs(a - b).max() <= 1
    assert a[0, 0] == 0 and a[-1, -1] == 255


def test_bits_above_the_stored_twelve_are_cut_off(tmp_path: Path, attenuation: np.ndarray) -> None:
    clean = picture_of(dicom(tmp_path / "a.dcm", attenuation))
    overlay = attenuation | np.uint16(0xA000)
    assert np.array_equal(picture_of(dicom(tmp_path / "b.dcm", overlay)), clean)


def test_signed_pixels_keep_their_sign_in_twelve_bits(tmp_path: Path, attenuation: np.ndarray) -> None:
    signed = attenuation.astype(np.int16) - 2000
    twelve = (signed & 0x0FFF).astype(np.int16)  # the upper four bits are not the sign's
    unsigned = picture_of(dicom(tmp_path / "b.dcm", attenuation))
    assert np.array_equal(picture_of(dicom(tmp_path / "a.dcm", twelve)), unsigned)


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_windows_are_those_of_pydicom(tmp_path: Path, attenuation: np.ndarray, function: str) -> None:
    import pydicom
    from pydicom.pixels import apply_modality_lut, apply_windowing

    path = dicom(tmp_path / "a.dcm", attenuation, RescaleSlope="0.5", RescaleIntercept="-300", WindowCenter="700",
                 WindowWidth="900", VOILUTFunction=function)
    header = pydicom.dcmread(path)
    viewed = apply_windowing(apply_modality_lut(header.pixel_array, header), header)
    low, high = -300.0, 4095 * 0.5 - 300  # the range that pydicom spreads the window over
    expected = np.round((viewed - low) / (high - low) * 255)
    assert abs(picture_of(path) - expected).max() <= 1


@pytest.mark.parametrize(("function", "greys"), [
    ("LINEAR", [0, 0, 85, 170, 255, 255]), ("LINEAR_EXACT", [0, 0, 64, 128, 191, 255])])
def test_a_narrow_window_is_exact_to_half_a_number(tmp_path: Path, function: str, greys: list[int]) -> None:
    """PS3.3 C.11.2.1.2: of a LINEAR window of centre 10 and width 4, 8 is black and 11 is white."""
    stored = np.tile(np.arange(7, 13, dtype=np.uint16), (8, 5))
    path = dicom(tmp_path / "a.dcm", stored, WindowCenter=10, WindowWidth=4, VOILUTFunction=function)
    assert picture_of(path, XRay(size=(8, 30), fit="crop"))[0, :6].tolist() == greys


def test_the_spacing_in_the_patient_comes_before_that_on_the_detector(tmp_path: Path, attenuation: np.ndarray) -> None:
    for tags, step in (({"PixelSpacing": [0.15, 0.15], "ImagerPixelSpacing": [0.2, 0.2]}, 0.15),
                       ({"ImagerPixelSpacing": [0.2, 0.2]}, 0.2), ({}, None)):
        (piece,) = ingest.read(row(dicom(tmp_path / "a.dcm", attenuation, **tags)), SAME)
        assert piece.placement is not None
        assert piece.placement.affine == (() if step is None else (step, 0.0, 0.0, 0.0, step, 0.0))


def test_a_mask_that_is_shrunk_keeps_the_class_in_the_middle_of_every_pixel() -> None:
    classes = np.arange(81, dtype=np.uint8).reshape(9, 9)
    np.testing.assert_array_equal(film.fit_mask(classes, (3, 3), "crop"), classes[1::3, 1::3])
    np.testing.assert_array_equal(film.fit_mask(classes, (27, 27), "crop"), classes.repeat(3, 0).repeat(3, 1))


def test_the_first_of_several_windows_is_taken(tmp_path: Path, attenuation: np.ndarray) -> None:
    one = dicom(tmp_path / "a.dcm", attenuation, WindowCenter="1000", WindowWidth="500")
    two = dicom(tmp_path / "b.dcm", attenuation, WindowCenter=["1000", "3000"], WindowWidth=["500", "2000"])
    assert np.array_equal(picture_of(one), picture_of(two))


def test_a_table_for_viewing_is_followed(tmp_path: Path) -> None:
    from pydicom.dataset import Dataset
    from pydicom.sequence import Sequence

    table = Dataset()
    table.LUTDescriptor = [4, 0, 8]
    table.add_new(0x00283006, "US", [0, 200, 100, 255])
    stored = np.tile(np.arange(4, dtype=np.uint16), (20, 8))[:, :30]
    path = dicom(tmp_path / "a.dcm", stored, VOILUTSequence=Sequence([table]))
    path_facts = ingest.read(row(path), SAME)[0].facts
    assert path_facts["contrast"] == "table"
    assert picture_of(path)[0, :4].tolist() == [0, 200, 100, 255]


def test_padding_is_black_and_does_not_set_the_contrast(tmp_path: Path) -> None:
    stored = np.full((20, 30), 100, np.int16)
    stored[:, 10:20] = 200
    shut = stored.copy()
    shut[:, :5] = -2048
    for photometric, dark in (("MONOCHROME2", 100), ("MONOCHROME1", 200)):
        path = dicom(tmp_path / f"{photometric}.dcm", shut, PixelPaddingValue=-2048,
                     PhotometricInterpretation=photometric)
        seen = picture_of(path)
        assert (seen[:, :5] == 0).all(), photometric
        assert (seen[:, 5:][stored[:, 5:] == dark] == 0).all()
        assert (seen[:, 5:][stored[:, 5:] != dark] == 255).all()


def test_compressed_films_are_read(tmp_path: Path, attenuation: np.ndarray) -> None:
    import pydicom
    from pydicom.uid import JPEG2000Lossless, RLELossless

    plain = dicom(tmp_path / "a.dcm", np.kron(attenuation, np.ones((4, 4), np.uint16)))  # JPEG 2000 wants some size
    for syntax in (RLELossless, JPEG2000Lossless):
        header = pydicom.dcmread(plain)
        header.compress(syntax)
        header.save_as(tmp_path / "b.dcm")
        assert np.array_equal(picture_of(tmp_path / "b.dcm"), picture_of(plain)), syntax


@pytest.mark.parametrize("name", ["film.png", "film.jpg"])
def test_8_bit_pictures_are_taken_as_they_are(tmp_path: Path, name: str) -> None:
    from PIL import Image

    grey = np.linspace(40, 180, 600).reshape(20, 30).astype(np.uint8)
    Image.fromarray(grey).save(tmp_path / name, **({"quality": 100} if name.endswith("jpg") else {}))
    assert abs(picture_of(tmp_path / name) - grey).max() <= 2
    Image.fromarray(grey).convert("RGB").save(tmp_path / name, **({"quality": 100} if name.endswith("jpg") else {}))
    assert abs(picture_of(tmp_path / name) - grey).max() <= 2


def test_16_bit_pictures_are_stretched(tmp_path: Path, attenuation: np.ndarray) -> None:
    from PIL import Image

    Image.fromarray(attenuation).save(tmp_path / "film.png")
    seen = picture_of(tmp_path / "film.png")
    assert seen.min() == 0 and seen.max() == 255


@pytest.mark.parametrize("dtype", [np.float32, np.uint16, np.int16, np.uint8])
def test_percentiles_of_whole_numbers_are_those_of_numpy_to_the_last_bit(dtype: type, monkeypatch: pytest.MonkeyPatch
                                                                         ) -> None:
    rng = np.random.default_rng(0)
    counted: list[list[float] | None] = []
    monkeypatch.setattr(film, "_by_counting", lambda *given, real=film._by_counting: counted.append(real(*given))
                        or counted[-1])
    for n, top in ((1, 9), (2, 9), (3, 200), (10, 5), (4999, 120), (100_003, 120)):
        values = rng.integers(0, top, n).astype(dtype) - dtype(top // 3 if dtype in (np.float32, np.int16) else 0)
        values = (values * dtype(300) if dtype is np.float32 else values).reshape(1, -1)
        valid = rng.random(values.shape) < 0.9
        valid[0, 0] = True
        for some in (valid, np.ones_like(valid)):
            for percentiles in ((0.5, 99.5), (1.0, 99.0), (0.0, 100.0), (33.3, 66.7)):
                expected = tuple(float(p) for p in np.percentile(values[some], percentiles))
                assert film.percentile_window(values, some, percentiles) == expected
    assert all(counted)
    halves = np.array([[0.5, 2.0, np.inf, 1e9]], np.float32)
    assert film.percentile_window(halves, np.isfinite(halves), (0.0, 100.0)) == (0.5, 1e9) and counted[-1] is None


def test_percentiles_are_those_of_numpy_where_a_few_columns_are_unlike_the_others() -> None:
    """A sample tells where to count; where it misleads, all is counted."""
    values = np.random.default_rng(0).integers(0, 3000, (512, 1024)).astype(np.uint16)
    values[:, ::64], values[:, 1::257] = 40000, 41000
    for percentiles in ((0.5, 99.5), (0.0, 98.4), (50.0, 98.5)):
        expected = np.percentile((values - 1024.0).astype(np.float32), percentiles)
        assert film.percentile_window(values, None, percentiles, -1024.0) == tuple(map(float, expected))


@pytest.mark.parametrize("shape", [(700, 500), (500, 700), (90, 3700)])
def test_a_film_is_brought_to_size_in_bands_as_at_once(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resample, "IN_BAND", 9000)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    for how in ("letterbox", "crop"):
        in_bands = film.fit(pixels, (96, 64), how)  # type: ignore[arg-type]
        with monkeypatch.context() as patched:
            patched.setattr(film.resample, "taps", lambda weights: None)
            film._weights.cache_clear()
            at_once = film.fit(pixels / np.float32(255), (96, 64), how)  # type: ignore[arg-type]
        film._weights.cache_clear()
        assert np.abs(in_bands.astype(int) - at_once).max() <= 1 and (in_bands != at_once).mean() < 1e-3


def test_letterbox_keeps_the_film_and_marks_its_margins_unknown() -> None:
    settings = XRay(size=(40, 40))
    stored = film.fit(np.zeros((30, 60), np.float32), settings.size, "letterbox")
    unknown = stored == ingest.contract(settings).unknown
    assert unknown[:10].all() and unknown[30:].all() and not unknown[10:30].any()


def test_crop_cuts_the_longer_side_and_leaves_nothing_unknown() -> None:
    grey = np.zeros((30, 60), np.float32)
    grey[:, 15:45] = 1
    stored = film.fit(grey, (40, 40), "crop")
    assert (stored[:, 1:-1] == 255).all()
    assert ingest.contract(XRay(fit="crop")).unknown is None


def test_shape_and_scale_are_kept_by_both_fits() -> None:
    rows, columns = np.mgrid[:90, :60]
    disc = (((rows - 44.5) ** 2 + (columns - 29.5) ** 2) < 20 ** 2).astype(np.float32)
    for how, scale in (("letterbox", 45 / 90), ("crop", 45 / 60)):
        white = film.fit(disc, (45, 45), how) > 128  # type: ignore[arg-type]
        height, width = white.any(1).sum(), white.any(0).sum()
        assert abs(height - 40 * scale) <= 1.5 and abs(width - 40 * scale) <= 1.5, how


@pytest.mark.parametrize(("tags", "reason"), [
    ({"PhotometricInterpretation": "PALETTE COLOR"}, "MONOCHROME"),
    ({"NumberOfFrames": 2}, "2 frames"),
    ({"BurnedInAnnotation": "YES"}, "burned into"),
    ({"HighBit": 15}, "bits: 12 stored"),
    ({"Rows": 60000, "Columns": 60000}, "60000 x 60000 pixels"),
    ({"PixelPaddingValue": 0, "PixelPaddingRangeLimit": 4095}, "every pixel is padding"),
    ({"PixelData": b"\0" * 10}, "not readable as DICOM"),
    ({"Rows": None}, "without pixels"),
    ({"PixelData": None}, "not readable as DICOM"),
    ({"RescaleSlope": 0, "RescaleIntercept": 0}, "RescaleSlope is 0"),
    ({"PixelSpacing": [0.2, 0.1]}, "pixels of 0.2 by 0.1, expected square"),
    ({"PixelAspectRatio": [1, 2]}, "pixels of 1 by 2, expected square"),
])
def test_bad_films_are_refused_with_a_reason_that_names_nobody(
        tmp_path: Path, attenuation: np.ndarray, tags: dict[str, object], reason: str) -> None:
    path = dicom(tmp_path / "a.dcm", attenuation, **tags)
    with pytest.raises(Refused, match=reason) as refusal:
        ingest.read(row(path), SAME)
    assert CANARY not in str(refusal.value)


def test_text_in_the_picture_is_allowed_when_asked_for(tmp_path: Path, attenuation: np.ndarray) -> None:
    path = dicom(tmp_path / "a.dcm", attenuation, BurnedInAnnotation="YES")
    assert picture_of(path, XRay(size=(20, 30), allow_burned_in_text=True)).max() == 255


@pytest.mark.parametrize("name", ["a.dcm", "a.png", "a.jpg"])
def test_damaged_files_are_refused(tmp_path: Path, attenuation: np.ndarray, name: str) -> None:
    from PIL import Image

    path = tmp_path / name
    if name == "a.dcm":
        dicom(path, attenuation)
    else:
        Image.fromarray((attenuation // 16).astype(np.uint8)).save(path)
    whole = path.read_bytes()
    for content in (whole[:len(whole) // 2], b"", b"hello"):
        path.write_bytes(content)
        with pytest.raises(Refused):
            ingest.read(row(path), SAME)


def test_other_formats_under_a_picture_name_are_refused(tmp_path: Path) -> None:
    from PIL import Image

    Image.fromarray(np.zeros((20, 30), np.uint8)).save(tmp_path / "a.png", format="GIF")
    with pytest.raises(Refused, match="PNG or JPEG"):
        ingest.read(row(tmp_path / "a.png"), SAME)


def test_structureless_films_are_reported_as_implausible(tmp_path: Path, attenuation: np.ndarray) -> None:
    good = ingest.read(row(dicom(tmp_path / "a.dcm", attenuation)), SAME)
    flat = ingest.read(row(dicom(tmp_path / "b.dcm", np.full_like(attenuation, 1000))), SAME)
    assert ingest.implausible(good * 3, SAME) is None
    assert "3 of 4 films" in str(ingest.implausible(good + flat * 3, SAME))


def test_settings_are_checked_where_they_are_made() -> None:
    with pytest.raises(ValueError, match="percentiles: found"):
        XRay(percentiles=(99.0, 1.0))
    with pytest.raises(ValueError, match="size: found"):
        XRay(size=(4, 64))


@pytest.mark.parametrize(("centre", "width"), [(2000, 0), (2000, -400), (2000, 1), (40_000, 400)])
def test_a_window_that_would_show_nothing_gives_way_to_percentiles(tmp_path: Path, attenuation: np.ndarray, centre: int,
                                                                   width: int) -> None:
    plain = picture_of(dicom(tmp_path / "a.dcm", attenuation))
    path = dicom(tmp_path / "b.dcm", attenuation, WindowCenter=centre, WindowWidth=width)
    assert np.array_equal(picture_of(path), plain)
    assert ingest.read(row(path), SAME)[0].facts["contrast"] == "percentile"


def test_a_narrow_window_on_part_of_the_film_is_kept(tmp_path: Path, attenuation: np.ndarray) -> None:
    path = dicom(tmp_path / "a.dcm", attenuation, WindowCenter=3000, WindowWidth=100)
    assert ingest.read(row(path), SAME)[0].facts["contrast"] == "window"


def test_what_lies_under_transparent_pixels_is_not_shown(tmp_path: Path) -> None:
    from PIL import Image

    grey = np.full((20, 30), 200, np.uint8)
    alpha = np.full((20, 30), 255, np.uint8)
    alpha[:, :10] = 0
    Image.merge("LA", [Image.fromarray(grey), Image.fromarray(alpha)]).save(tmp_path / "a.png")
    seen = picture_of(tmp_path / "a.png")
    assert (seen[:, :10] == 0).all() and (seen[:, 10:] == 200).all()


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "I;16"])
def test_pictures_of_every_mode_show_one_ramp_upright(tmp_path: Path, mode: str) -> None:
    from PIL import Image

    ramp = np.tile(np.linspace(0, 255, 30).round(), (20, 1)).astype(np.uint8)
    image = Image.fromarray(ramp.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(ramp).convert(mode)
    turn = Image.Exif()
    turn[0x0112] = 6  # to be turned by a quarter to the right
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    image.save(path, exif=turn)
    piece = ingest.read(row(path), XRay(size=(30, 20), percentiles=(0, 100)))[0]
    assert piece.facts["shape"] == [30, 20]
    assert abs(np.diff(piece.values[0].astype(int), axis=1)).max() <= (255 if mode == "1" else 3)
    if mode != "1":  # made of dots
        assert abs(piece.values[0].mean(axis=1) - ramp[0]).max() <= 3
