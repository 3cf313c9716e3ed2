"""A mask that was brought to the training grid and back is the mask that lay beside the file."""

import csv
import itertools
from pathlib import Path

import numpy as np
import pytest

from domains.medical import export, ingest
from domains.medical.settings import CT, XRay
from domains.native_grid import native_classes
from domains.sample import UNKNOWN_CLASS, ManifestRow, Piece
from tests.domains.medical.files import CANARY, dicom, nifti, row, series

nibabel = pytest.importorskip("nibabel", reason="reads NIfTI: pip install 'lacuna[medical]'")
NAMES = {0: "background", 1: "one", 2: "two", 3: "three"}
SAME = CT(spacing=(1.0, 1.0, 1.0), size=(4, 4, 4), check_units=False)


def phantom(shape: tuple[int, ...]) -> np.ndarray:
    """Three boxes that no turn or mirror brings onto themselves."""
    out = np.zeros(shape, np.uint8)
    part = [n // 6 for n in shape]
    out[tuple(slice(p, 3 * p) for p in part)] = 1
    out[tuple(slice(low, high) for low, high in zip((part[0], 4 * part[1], part[2]),
                                                   (5 * part[0], 5 * part[1], 2 * part[2]), strict=True))] = 2
    out[-part[0]:, :part[1], -2 * part[2]:] = 3
    return out


def back(piece: Piece, mask: np.ndarray | None = None) -> np.ndarray:
    """What a model that is certain of the stored mask would have written for the file."""
    stored = piece.mask if mask is None else mask
    assert stored is not None and piece.placement is not None
    certain = np.stack([stored == number for number in range(len(NAMES))]).astype(np.float32)
    return native_classes(certain, stored != UNKNOWN_CLASS, piece.placement)


def dice(found: np.ndarray, truth: np.ndarray, number: int) -> float:
    a, b = found == number, truth == number
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def turned(angles: tuple[float, float], steps: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> np.ndarray:
    """An affine turned by two angles, in degrees."""
    a, b = np.radians(angles)
    about_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    affine = np.eye(4)
    affine[:3, :3] = about_z @ about_x @ np.diag(steps)
    affine[:3, 3] = (-20.0, 35.5, 110.25)
    return affine


@pytest.mark.parametrize("oblique", [(0.0, 0.0), (17.0, -9.0)], ids=["upright", "oblique"])
@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
@pytest.mark.parametrize("flips", list(itertools.product((1, -1), repeat=3)), ids=str)
def test_every_order_and_direction_of_axes_comes_back_as_it_was(
        tmp_path: Path, oblique: tuple[float, float], order: tuple[int, ...], flips: tuple[int, ...]) -> None:
    affine = turned(oblique)
    affine[:3, :3] = affine[:3, :3][:, order] * flips
    truth = phantom((18, 12, 24))
    nifti(tmp_path / "image.nii", truth.astype(np.int16) * 100, affine)
    nifti(tmp_path / "mask.nii", truth, affine)
    (piece,) = ingest.read(row(tmp_path / "image.nii", tmp_path / "mask.nii"), SAME)
    found = back(piece)
    assert np.array_equal(found, truth)
    export.write(tmp_path / "out.nii.gz", found, piece.placement, NAMES)  # type: ignore[arg-type]
    written, source = nibabel.load(tmp_path / "out.nii.gz"), nibabel.load(tmp_path / "image.nii")
    assert written.shape == source.shape and written.get_data_dtype() == np.uint8
    assert np.array_equal(np.asarray(written.dataobj), truth)
    assert np.array_equal(written.affine, source.affine) and np.allclose(written.get_qform(), source.affine, atol=1e-4)
    assert np.allclose(written.header.get_zooms(), source.header.get_zooms())
    assert written.header.get_xyzt_units()[0] == "mm"


@pytest.mark.parametrize("steps", [(0.7, 0.7, 1.5), (2.0, 2.5, 3.0), (1.0, 1.0, 5.0)], ids=str)
def test_resampling_there_and_back_costs_what_resampling_must(tmp_path: Path, steps: tuple[float, ...]) -> None:
    affine = turned((5.0, 3.0), steps)  # type: ignore[arg-type]
    truth = phantom((60, 54, 48))
    nifti(tmp_path / "image.nii", truth.astype(np.int16) * 100, affine)
    nifti(tmp_path / "mask.nii", truth, affine)
    (piece,) = ingest.read(row(tmp_path / "image.nii", tmp_path / "mask.nii"), SAME)
    found = back(piece)
    assert UNKNOWN_CLASS not in found, "a file that was read whole was looked at whole"
    assert min(dice(found, truth, number) for number in (1, 2, 3)) > (0.9 if min(steps) < 1 else 0.95)


def test_what_a_cube_does_not_cover_is_unknown(tmp_path: Path) -> None:
    truth = phantom((30, 30, 30))
    nifti(tmp_path / "image.nii", truth.astype(np.int16) * 100, turned((0, 0)))
    nifti(tmp_path / "mask.nii", truth, turned((0, 0)))
    settings = CT(spacing=(1.0, 1.0, 1.0), size=(4, 4, 4), cube=(12.0,), cube_at="centre", check_units=False)
    (piece,) = ingest.read(row(tmp_path / "image.nii", tmp_path / "mask.nii"), settings)
    found = back(piece)
    inside = found != UNKNOWN_CLASS
    assert inside.sum() == 12 ** 3 and inside[9:21, 9:21, 9:21].all()
    assert np.array_equal(found[inside], truth[inside])


def test_a_series_becomes_one_volume_where_its_headers_put_it_and_carries_no_name(tmp_path: Path) -> None:
    affine = turned((0.0, 0.0), (0.8, 0.9, 2.0))
    truth = phantom((20, 18, 12))
    series(tmp_path / "slices", truth.astype(np.int16) * 100, affine)
    nifti(tmp_path / "mask.nii.gz", truth, affine)
    settings = CT(spacing=(2.0, 0.9, 0.8), size=(4, 4, 4), check_units=False)
    (piece,) = ingest.read(row(tmp_path / "slices", tmp_path / "mask.nii.gz"), settings)
    export.write(tmp_path / "out.nii.gz", back(piece), piece.placement, NAMES)  # type: ignore[arg-type]
    written = nibabel.load(tmp_path / "out.nii.gz")
    assert written.shape == (20, 18, 12) or written.shape[::-1] == (20, 18, 12)
    aligned = nibabel.as_closest_canonical(written)
    assert np.array_equal(np.asarray(aligned.dataobj), truth), "the same voxels"
    assert np.allclose(aligned.affine, affine, atol=1e-4), "at the same place"
    import gzip
    assert CANARY.encode() not in gzip.decompress((tmp_path / "out.nii.gz").read_bytes())


@pytest.mark.parametrize("settings", [XRay(size=(32, 32)), XRay(size=(64, 32), fit="crop"),
                                      XRay(size=(32, 48), foreground="exposed")], ids=["letterbox", "crop", "exposed"])
def test_a_films_mask_lies_on_the_films_own_pixels(tmp_path: Path, settings: XRay) -> None:
    from PIL import Image

    truth = np.zeros((120, 96), np.uint8)
    truth[20:50, 24:60], truth[70:100, 40:48] = 1, 2
    grey = np.full((120, 96), 120, np.uint8) + 40 * truth
    grey[:, :10] = 0  # a black border
    Image.fromarray(grey).save(tmp_path / "film.png")
    Image.fromarray(truth).save(tmp_path / "mask.png")
    (piece,) = ingest.read(row(tmp_path / "film.png", tmp_path / "mask.png"), settings)
    found = back(piece)
    seen = found != UNKNOWN_CLASS
    assert found.shape == truth.shape and seen.mean() > 0.45
    assert dice(found[seen], truth[seen], 1) > 0.9
    if settings.fit == "letterbox" and settings.foreground == "none":
        assert seen.all()
    export.write(tmp_path / "out.png", found, piece.placement, NAMES)  # type: ignore[arg-type]
    with Image.open(tmp_path / "out.png") as picture:
        assert picture.mode == "L" and np.array_equal(np.asarray(picture), found)


def test_areas_and_volumes_are_in_the_units_of_the_file(tmp_path: Path) -> None:
    affine = turned((30.0, 10.0), (0.5, 2.0, 3.0))
    truth = phantom((18, 12, 24))
    nifti(tmp_path / "image.nii", truth.astype(np.int16) * 100, affine)
    (piece,) = ingest.read(row(tmp_path / "image.nii"), SAME)
    counts, sizes, unit = export.measure(truth, piece.placement, NAMES)  # type: ignore[arg-type]
    assert unit == "mm3" and sizes is not None
    assert counts.tolist() == [int((truth == number).sum()) for number in range(4)]
    assert np.allclose(sizes, counts * 3.0)
    stored = np.arange(64 * 48, dtype=np.uint16).reshape(64, 48)
    film = dicom(tmp_path / "film.dcm", stored, PixelSpacing=["0.2", "0.203"])
    (piece,) = ingest.read(row(film), XRay(size=(32, 32)))
    counts, sizes, unit = export.measure(np.ones((64, 48), np.uint8), piece.placement, {0: "rest", 1: "lung"})  # type: ignore[arg-type]
    assert unit == "mm2" and sizes is not None and np.allclose(sizes, [0, 64 * 48 * 0.0406])


@pytest.mark.parametrize("spacing", ["0\\0 ", "none", "1e9 "])
def test_a_film_whose_spacing_is_none_is_read_and_has_no_area(tmp_path: Path, spacing: str) -> None:
    film = dicom(tmp_path / "film.dcm", np.arange(64 * 48, dtype=np.uint16).reshape(64, 48), PixelSpacing=["1", "1"])
    content = film.read_bytes()
    assert content.count(b"1\\1 ") == 1
    film.write_bytes(content.replace(b"1\\1 ", spacing.encode()))
    (piece,) = ingest.read(row(film), XRay(size=(32, 32)))
    assert export.measure(np.ones((64, 48), np.uint8), piece.placement, {0: "rest", 1: "lung"})[1:] == (None, "")  # type: ignore[arg-type]


def test_nodules_survive_the_training_grid(shared_data: Path) -> None:
    """Real volumes, stored at 1 mm as the training grid has them: 0.5 to 0.9 mm in the plane, 0.6 to 3 mm across."""
    with (shared_data / "ct/labels.csv").open(newline="") as file:
        rows = [line for line in csv.DictReader(file) if line["source"] == "lidc_idri_nodule_voi"][:60:4]
    found = []
    for line in rows:
        mask = shared_data / line["mask_path"]
        (piece,) = ingest.read(ManifestRow(shared_data / line["path"], line["path"], "g", "test", "s", mask),
                               CT(spacing=(1.0, 1.0, 1.0), size=(4, 4, 4)))
        truth = np.asarray(nibabel.load(mask).dataobj).astype(np.uint8)
        found.append(dice(back(piece), truth, 1))
    assert len(found) == 15 and min(found) > 0.7 and np.mean(found) > 0.9
