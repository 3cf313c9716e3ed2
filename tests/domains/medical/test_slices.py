"""Slices find their places: those of enhanced files, and those that a tilted gantry made lean.

The phantom's values are a ramp over the patient, so that a voxel says where it came from; linear interpolation keeps a
ramp exactly where it was.
"""

import copy
from pathlib import Path

import numpy as np
import pytest

from domains.medical import ingest, volume
from domains.medical.ingest import CT
from domains.medical.volume import Volume
from domains.sample import Refused
from tests.domains.medical.files import CANARY, dicom, enhanced, nifti, row, series

SLOPE = np.array([3.0, -5.0, 7.0])
"""HU per mm towards right, anterior, superior."""
WHOLE = CT(size=(4, 4, 4), spacing=(2.0, 1.5, 3.0), check_units=False)
STRAIGHT = np.array([[-1.0, 0, 0, 40], [0, -1, 0, 60], [0, 0, 2.5, -300], [0, 0, 0, 1]])
SHAPE = (31, 24, 12)


def world(shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    """The place of every voxel, ... 3."""
    return np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3]


def ramp(places: np.ndarray, origin: np.ndarray) -> np.ndarray:
    """HU at places."""
    return np.asarray((places - origin) @ SLOPE)


def phantom(affine: np.ndarray, shape: tuple[int, ...] = SHAPE) -> tuple[np.ndarray, np.ndarray]:
    """Columns, rows, slices of whole HU, and the place where they are 0."""
    places = world(shape, affine)
    middle = places.reshape(-1, 3).mean(axis=0)
    return np.round(ramp(places, middle)).astype(np.int16), middle


# ---- enhanced CT ----

def test_an_enhanced_file_is_stored_like_the_series_of_its_slices(tmp_path: Path) -> None:
    hu, _ = phantom(STRAIGHT)
    apart = ingest.read(row(series(tmp_path / "series", hu, STRAIGHT)), WHOLE)[0]
    shuffled = np.random.default_rng(0).permutation(SHAPE[2]).tolist()
    path = enhanced(tmp_path / "e" / "one.dcm", hu, STRAIGHT, shuffled)
    for named in (path, path.parent):
        together = ingest.read(row(named), WHOLE)[0]
        np.testing.assert_array_equal(together.values, apart.values)
        assert together.facts == apart.facts


def test_frames_of_a_series_may_be_spread_over_several_files(tmp_path: Path) -> None:
    hu, _ = phantom(STRAIGHT)
    apart = ingest.read(row(series(tmp_path / "series", hu, STRAIGHT)), WHOLE)[0]
    enhanced(tmp_path / "e" / "a.dcm", hu, STRAIGHT, [7, 3, 11, 1])
    enhanced(tmp_path / "e" / "b.dcm", hu, STRAIGHT, [0, 2, 4, 5, 6, 8, 9, 10])
    np.testing.assert_array_equal(ingest.read(row(tmp_path / "e"), WHOLE)[0].values, apart.values)


def test_a_frame_may_scale_its_own_numbers(tmp_path: Path) -> None:
    import pydicom

    hu, _ = phantom(STRAIGHT)
    path = enhanced(tmp_path / "one.dcm", hu, STRAIGHT)
    clean = ingest.read(row(path), WHOLE)[0].values
    header = pydicom.dcmread(path)
    numbers = header.SharedFunctionalGroupsSequence[0].PixelValueTransformationSequence
    del header.SharedFunctionalGroupsSequence[0].PixelValueTransformationSequence
    for frame in header.PerFrameFunctionalGroupsSequence:
        frame.PixelValueTransformationSequence = copy.deepcopy(numbers)
    header.PerFrameFunctionalGroupsSequence[5].PixelValueTransformationSequence[0].RescaleIntercept = "-24"
    header.save_as(path)
    assert (ingest.read(row(path), WHOLE)[0].values - clean).max() > 500
    shared = ingest.read(row(path), WHOLE)[0].values
    header.SharedFunctionalGroupsSequence[0].PixelValueTransformationSequence = numbers
    header.save_as(path)
    np.testing.assert_array_equal(ingest.read(row(path), WHOLE)[0].values, shared)  # what a frame says itself counts
    del header.SharedFunctionalGroupsSequence[0].PixelValueTransformationSequence
    del header.PerFrameFunctionalGroupsSequence[5].PixelValueTransformationSequence
    header.save_as(path)
    with pytest.raises(Refused, match="without PixelValueTransformationSequence"):
        ingest.read(row(path), WHOLE)


@pytest.mark.parametrize("syntax", ["RLELossless", "JPEG2000Lossless"])
def test_compressed_frames_are_decoded_one_by_one(tmp_path: Path, syntax: str) -> None:
    import pydicom

    hu, _ = phantom(np.diag([-1.0, -1.0, 2.0, 1.0]), (40, 36, 6))
    path = enhanced(tmp_path / "one.dcm", hu, np.diag([-1.0, -1.0, 2.0, 1.0]))
    clean = ingest.read(row(path), WHOLE)[0].values
    header = pydicom.dcmread(path)
    header.compress(getattr(pydicom.uid, syntax))
    header.save_as(path)
    np.testing.assert_array_equal(ingest.read(row(path), WHOLE)[0].values, clean)


def test_missing_and_repeated_frames_are_noticed(tmp_path: Path) -> None:
    hu, _ = phantom(STRAIGHT)
    with pytest.raises(Refused, match=r"slice gaps from 2\.50 to 5\.00 mm"):
        ingest.read(row(enhanced(tmp_path / "a.dcm", hu, STRAIGHT, [0, 1, 2, 4, 5])), WHOLE)
    with pytest.raises(Refused, match="lie where another one lies"):
        ingest.read(row(enhanced(tmp_path / "b" / "b.dcm", hu, STRAIGHT, [0, 1, 2, 2, 3])), WHOLE)


@pytest.mark.parametrize(("tags", "reason"), [
    ({"PerFrameFunctionalGroupsSequence": None}, "12 frames in one file that does not say where each lies"),
    ({"NumberOfFrames": 11}, "11 frames and 12 descriptions"),
    ({"SharedFunctionalGroupsSequence": None}, "a frame without PixelValueTransformationSequence"),
    ({"Modality": "MR"}, "modality CT"), ({"NumberOfFrames": 5000}, "5000 frames and 12 descriptions")])
def test_enhanced_files_that_cannot_be_placed_are_refused(tmp_path: Path, tags: dict[str, object],
                                                          reason: str) -> None:
    hu, _ = phantom(STRAIGHT)
    with pytest.raises(Refused, match=reason) as refusal:
        ingest.read(row(enhanced(tmp_path / "one.dcm", hu, STRAIGHT, **tags)), WHOLE)
    assert CANARY not in str(refusal.value)


# ---- tilted gantries ----

def leaning(degrees: float, sideways: float = 0.0) -> np.ndarray:
    """An affine (columns, rows, slices) of a gantry that is tilted while the table moves along the patient."""
    angle = np.radians(degrees)
    affine = np.eye(4)
    affine[:3, 0] = [-0.8, 0, 0]
    affine[:3, 1] = [0, -np.cos(angle) * 0.9, -np.sin(angle) * 0.9]
    affine[:3, 2] = [sideways, 0, 2.5]
    affine[:3, 3] = [20, 30, -100]
    return affine


@pytest.mark.parametrize(("degrees", "sideways"), [(15.0, 0.0), (-22.5, 0.0), (9.0, 0.4)])
@pytest.mark.parametrize("many_frames", [False, True])
def test_a_straightened_series_shows_the_patient_where_he_was(tmp_path: Path, degrees: float, sideways: float,
                                                              many_frames: bool) -> None:
    affine = leaning(degrees, sideways)
    hu, middle = phantom(affine, (40, 48, 16))
    write = enhanced if many_frames else series
    path = write(tmp_path / "s" / ("one.dcm" if many_frames else ""), hu, affine)
    with pytest.raises(Refused, match=r"gantry tilt of .* degrees; gantry_tilt: straighten"):
        ingest.read(row(path), WHOLE)
    settings = CT(size=(4, 4, 4), spacing=(2.5, 0.9, 0.8), check_units=False, gantry_tilt="straighten")
    piece = ingest.read(row(path), settings)[0]
    row_way, column_way, step = (axis / np.linalg.norm(axis) for axis in affine[:3, :3].T)
    lean = np.degrees(np.arccos(abs(step @ np.cross(row_way, column_way))))
    assert piece.facts["tilt_degrees"] == pytest.approx(lean, abs=0.06)
    stack = Volume(hu.transpose(2, 1, 0).astype(np.float32), affine[:, [2, 1, 0, 3]])
    straight = volume.orient(volume.straighten(stack, 10 ** 7))
    axes = straight.affine[:3, :3] / straight.spacing
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-9)
    assert straight.known is not None and straight.known.mean() > 0.6
    told = ramp(world(straight.values.shape, straight.affine), middle)
    assert np.abs(straight.values - told)[straight.known].max() <= 0.51  # the phantom holds whole numbers
    known = piece.values[0] != -32768
    assert abs(np.subtract(piece.values.shape[1:], straight.values.shape)).max() <= 1
    assert known.mean() == pytest.approx(straight.known.mean(), abs=0.05)


def test_straightening_shifts_by_whole_pixels_without_touching_a_number() -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(-900, 900, (5, 7, 6)).astype(np.float32)
    affine = np.eye(4)
    affine[:3, 0] = [2.0, 1.0, -2.0]  # slices one row on and two columns back each
    straight = volume.straighten(Volume(values, affine), 10 ** 6)
    assert straight.values.shape == (5, 11, 14) and straight.known is not None
    for k in range(5):
        part = (k, slice(k, k + 7), slice(8 - 2 * k, 14 - 2 * k))
        np.testing.assert_array_equal(straight.values[part], values[k])
        assert straight.known[part].all() and straight.known[k].sum() == 42
    np.testing.assert_allclose(straight.affine @ [2, 2, 4, 1], affine @ [2, 0, 0, 1])


def test_padding_stays_unknown_while_a_series_is_straightened(tmp_path: Path) -> None:
    affine = leaning(15.0)
    hu = np.full((30, 30, 8), 40, np.int16)
    hu[:10] = -1024 + 5  # stored as 5
    path = series(tmp_path / "s", hu, affine, PixelPaddingValue=5)
    piece = ingest.read(row(path), CT(size=(4, 4, 4), gantry_tilt="straighten", check_units=False))[0]
    assert set(np.unique(piece.values)) == {-32768, 40}


def test_a_series_that_wanders_or_would_grow_beyond_bounds_is_refused(tmp_path: Path) -> None:
    import pydicom

    hu, _ = phantom(STRAIGHT)
    folder = series(tmp_path / "s", hu, leaning(10.0))
    settings = CT(size=(4, 4, 4), gantry_tilt="straighten", check_units=False)
    header = pydicom.dcmread(folder / "005.dcm")
    x, y, z = header.ImagePositionPatient
    header.ImagePositionPatient = [x + 3, y, z]
    header.save_as(folder / "005.dcm")
    with pytest.raises(Refused, match="mm beside a straight line"):
        ingest.read(row(folder), settings)
    with pytest.raises(Refused, match="straightened it would have 5 x 11 x 14 voxels"):
        affine = np.eye(4)
        affine[:3, 0] = [2.0, 1.0, -2.0]
        volume.straighten(Volume(np.zeros((5, 7, 6)), affine), 500)


def test_a_series_without_tilt_is_stored_alike_with_both_settings(tmp_path: Path) -> None:
    hu, _ = phantom(STRAIGHT)
    path = series(tmp_path / "s", hu, STRAIGHT)
    a, b = (ingest.read(row(path), CT(size=(4, 4, 4), check_units=False, gantry_tilt=how))[0]
            for how in ("refuse", "straighten"))  # type: ignore[arg-type]
    np.testing.assert_array_equal(a.values, b.values)
    assert a.facts == b.facts


def test_a_mask_of_the_straight_grid_lies_on_a_straightened_series(tmp_path: Path) -> None:
    affine = leaning(15.0)
    hu = np.full((40, 48, 16), -900, np.int16)
    hu[15:25, 20:30, 6:11] = 500
    straight = volume.straighten(Volume(hu.transpose(2, 1, 0).astype(np.float32), affine[:, [2, 1, 0, 3]]), 10 ** 7)
    mask = nifti(tmp_path / "m.nii.gz", (straight.values > 0).astype(np.uint8), straight.affine)
    piece = ingest.read(row(series(tmp_path / "s", hu, affine), mask),
                        CT(size=(4, 4, 4), spacing=(2.5, 0.9, 0.8), check_units=False, gantry_tilt="straighten"))[0]
    assert piece.mask is not None
    dense = piece.values[0] > 0
    assert 2 * (dense & (piece.mask == 1)).sum() / (dense.sum() + (piece.mask == 1).sum()) > 0.93


def test_a_film_of_several_frames_is_refused(tmp_path: Path) -> None:
    path = dicom(tmp_path / "a.dcm", np.zeros((20, 30), np.uint16), NumberOfFrames=2, PixelData=b"\0" * 2400)
    with pytest.raises(Refused, match="2 frames in one file, expected 1"):
        ingest.read(row(path), ingest.XRay(size=(20, 30)))
