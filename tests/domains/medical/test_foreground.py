"""The box around the patient: found through noise, table and tubes, and masks are cut with it."""

from pathlib import Path

import numpy as np
import pytest

from domains.medical import foreground, ingest
from domains.medical.ingest import CT, XRay
from domains.sample import UNKNOWN_CLASS, Refused
from tests.domains.medical.files import dicom, nifti, row

AFFINE = np.array([[-2.0, 0, 0, 150], [0, -2, 0, 150], [0, 0, 4, 0], [0, 0, 0, 1]])
SHAPE = (150, 150, 40)
"""300 x 300 x 160 mm."""
BODY_MM = ((60, 220), (90, 200))
"""Where the trunk lies, from right to left and from front to back."""


def trunk(table: bool = True, noise: float = 25.0) -> np.ndarray:
    """HU of an elliptic trunk with lungs and an arm beside it, on a table, in noisy air."""
    rng = np.random.default_rng(0)
    x, y = np.meshgrid(np.arange(SHAPE[0]) * 2.0, np.arange(SHAPE[1]) * 2.0, indexing="ij")
    (left, right), (front, back) = BODY_MM
    across, down = (x - (left + right) / 2) / ((right - left) / 2), (y - (front + back) / 2) / ((back - front) / 2)
    inside = across ** 2 + down ** 2
    hu = np.full(SHAPE[:2], -1000.0)
    if table:
        hu[np.abs(y - 212) < 4] = -300
        hu[(np.abs(y - 250) < 5) & (np.abs(x - 150) < 130)] = 100
        hu[(x - 20) ** 2 + (y - 60) ** 2 < 5 ** 2] = 60  # a tube
    hu[inside < 1] = 40
    hu[inside < 0.4] = -850
    hu[(x - 243) ** 2 + (y - 150) ** 2 < 16 ** 2] = 30  # an arm, apart from the trunk
    volume = np.repeat(hu[:, :, None], SHAPE[2], axis=2) + rng.normal(0, noise, SHAPE)
    return np.clip(volume, -1024, 3000).astype(np.int16)


def box_mm(piece: ingest.Piece) -> list[float]:
    """The stored box in millimetres: top and bottom, front and back, right and left."""
    return [float(edge * mm) for edge, mm in zip(piece.facts["foreground"], (4, 4, 2, 2, 2, 2), strict=True)]  # type: ignore[arg-type]


@pytest.mark.parametrize(("table", "noise"), [(False, 0.0), (True, 25.0), (True, 120.0)])
def test_the_box_holds_trunk_and_arm_but_neither_air_nor_table(tmp_path: Path, table: bool, noise: float) -> None:
    path = nifti(tmp_path / "v.nii.gz", trunk(table, noise), AFFINE)
    piece = ingest.read(row(path), CT(size=(8, 8, 8), spacing=(4.0, 2.0, 2.0), foreground="body"))[0]
    bottom, top, front, back, right, left = box_mm(piece)
    assert (bottom, top) == (0, 160)
    assert 90 - 16 <= front <= 90 and 200 <= back <= 200 + 16
    assert 60 - 16 <= right <= 60 and 259 <= left <= 259 + 16
    edges = np.subtract((top, back, left), (bottom, front, right)) / (4, 2, 2)
    assert piece.values.shape[1:] == tuple(edges)
    whole = ingest.read(row(path), CT(size=(8, 8, 8), spacing=(4.0, 2.0, 2.0)))[0]
    cut = np.round(np.array([bottom, front, right]) / (4, 2, 2)).astype(int)
    same = tuple(slice(a, a + n) for a, n in zip(cut, piece.values.shape[1:], strict=True))
    np.testing.assert_array_equal(piece.values[0], whole.values[0][same])  # on the file's own voxels: none is mixed
    assert "foreground" not in whole.facts


def test_a_mask_is_cut_with_its_volume(tmp_path: Path) -> None:
    hu = trunk()
    mask = (hu > 0).astype(np.uint8)
    image, labels = nifti(tmp_path / "v.nii.gz", hu, AFFINE), nifti(tmp_path / "m.nii.gz", mask, AFFINE)
    settings = CT(size=(8, 8, 8), spacing=(4.0, 2.0, 2.0), foreground="body")
    piece = ingest.read(row(image, labels), settings)[0]
    assert piece.mask is not None and piece.mask.shape == piece.values.shape[1:]
    np.testing.assert_array_equal(piece.mask, piece.values[0] > 0)


def test_scale_and_offset_come_before_the_search(tmp_path: Path) -> None:
    plain = nifti(tmp_path / "v.nii.gz", trunk(), AFFINE)
    shifted = nifti(tmp_path / "w.nii.gz", (trunk() + 1000).astype(np.int16), AFFINE)
    a = ingest.read(row(plain), CT(size=(8, 8, 8), foreground="body"))[0]
    b = ingest.read(row(shifted), CT(size=(8, 8, 8), foreground="body", offset=-1000))[0]
    assert a.facts["foreground"] == b.facts["foreground"]


def test_two_legs_are_kept_and_a_small_cut_out_is_kept_whole(tmp_path: Path) -> None:
    rows, columns = np.mgrid[:60, :60]
    legs = ((rows - 30) ** 2 + (columns - 14) ** 2 < 81) | ((rows - 30) ** 2 + (columns - 46) ** 2 < 64)
    box = foreground.body(np.where(legs, 40, -1000)[None].repeat(30, 0), np.ones((30, 60, 60), bool))
    assert box[2].start <= 6 and box[2].stop >= 53
    small = nifti(tmp_path / "v.nii.gz", np.full((20, 20, 20), -850, np.int16), np.diag([1.0, 1, 1, 1]))
    with pytest.raises(Refused, match="nothing in it is denser than air"):
        ingest.read(row(small), CT(size=(8, 8, 8), foreground="body", check_units=False))
    tissue = nifti(tmp_path / "t.nii.gz", np.full((20, 20, 20), 30, np.int16), np.diag([1.0, 1, 1, 1]))
    piece = ingest.read(row(tissue), CT(size=(8, 8, 8), spacing=(1, 1, 1), foreground="body", check_units=False))[0]
    assert piece.facts["foreground"] == [0, 20, 0, 20, 0, 20]


def test_a_cube_and_a_foreground_are_not_asked_for_together() -> None:
    with pytest.raises(ValueError, match="foreground: found body together with cube"):
        CT(size=(8, 8, 8), cube=(32.0,), foreground="body")


# ---- films ----

def shut(rows: slice, columns: slice, shape: tuple[int, int] = (300, 260)) -> np.ndarray:
    """A film whose collimator leaves a window open, with a bright letter on the border."""
    rng = np.random.default_rng(0)
    film = rng.integers(0, 8, shape)
    film[rows, columns] = 60 + rng.integers(0, 180, film[rows, columns].shape)
    film[8:20, 8:14] = 255
    return film.astype(np.uint8)


@pytest.mark.parametrize("form", ["png", "dcm"])
def test_a_black_border_is_cut_off_a_film_and_its_mask(tmp_path: Path, form: str) -> None:
    from PIL import Image

    film = shut(slice(60, 280), slice(50, 240))
    path = tmp_path / f"a.{form}"
    if form == "png":
        Image.fromarray(film).save(path)
    else:
        dicom(path, film.astype(np.uint16) * 16)
    Image.fromarray((film > 128).astype(np.uint8) * 3).save(tmp_path / "m.png")
    settings = XRay(size=(110, 95), fit="crop", foreground="exposed")
    piece = ingest.read(row(path, tmp_path / "m.png"), settings)[0]
    top, bottom, left, right = piece.facts["foreground"]  # type: ignore[misc]
    assert 60 - 12 <= top <= 60 and 280 <= bottom <= 292 and 50 - 12 <= left <= 50 and 240 <= right <= 252  # type: ignore[operator]
    assert piece.mask is not None and piece.mask.shape == (110, 95) and set(np.unique(piece.mask)) == {0, 3}
    whole = ingest.read(row(path), XRay(size=(300, 260), fit="crop"))[0]
    assert "foreground" not in whole.facts


def test_a_film_without_border_keeps_its_size(tmp_path: Path) -> None:
    from PIL import Image

    rng = np.random.default_rng(0)
    for name, film in (("full", rng.integers(40, 200, (90, 70))), ("dark", np.zeros((90, 70)))):
        Image.fromarray(film.astype(np.uint8)).save(tmp_path / f"{name}.png")
        piece = ingest.read(row(tmp_path / f"{name}.png"), XRay(size=(90, 70), foreground="exposed"))[0]
        assert piece.facts["foreground"] == [0, 90, 0, 70]


def test_a_mask_lies_on_its_film_with_letterbox_margins_unknown(tmp_path: Path) -> None:
    from PIL import Image

    film = np.zeros((40, 80), np.uint8)
    film[10:30, 20:50] = 200
    Image.fromarray(film).save(tmp_path / "a.png")
    Image.fromarray((film > 0).astype(np.uint8)).save(tmp_path / "m.png")
    piece = ingest.read(row(tmp_path / "a.png", tmp_path / "m.png"), XRay(size=(40, 40)))[0]
    assert piece.mask is not None
    np.testing.assert_array_equal(piece.mask == UNKNOWN_CLASS, piece.values[0] == 0)
    np.testing.assert_array_equal((piece.mask == 1), piece.values[0] > 128)


@pytest.mark.parametrize(("mask", "reason"), [
    (np.zeros((40, 79), np.uint8), r"shape \[40, 79\], expected \[40, 80\]"),
    (np.full((40, 80), 700, np.uint16), "up to 700, expected whole numbers"),
    (np.zeros((40, 80, 3), np.uint8), "expected .40, 80. like the film")])
def test_masks_of_films_that_cannot_be_classes_are_refused(tmp_path: Path, mask: np.ndarray, reason: str) -> None:
    from PIL import Image

    Image.fromarray(np.zeros((40, 80), np.uint8)).save(tmp_path / "a.png")
    Image.fromarray(mask).save(tmp_path / "m.png")
    with pytest.raises(Refused, match=reason):
        ingest.read(row(tmp_path / "a.png", tmp_path / "m.png"), XRay(size=(40, 40)))
    with pytest.raises(Refused, match=r"read from \.png"):
        ingest.read(row(tmp_path / "a.png", tmp_path / "m.nii"), XRay(size=(40, 40)))
