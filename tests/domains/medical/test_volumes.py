"""CT: numbers stay at their places in the patient, whatever the file's axes and spacing; nonsense is refused.

The phantom's values encode world coordinates, so that a voxel says where it came from.
"""

import gzip
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest

from domains.medical import ingest
from domains.medical.ingest import CT
from domains.medical.volume import SliceGeometry, order_slices
from domains.sample import UNKNOWN_CLASS, Refused
from tests.domains.medical.files import CANARY, nifti, row, series

SLOPE = np.array([3.0, -5.0, 7.0])
"""HU per mm towards right, anterior, superior: three different numbers, so that no swap or flip goes unseen."""
SPL = np.array([[0.0, 0.0, 1.0], [0.0, -1.0, 0.0], [-1.0, 0.0, 0.0]])
WHOLE = CT(size=(4, 4, 4), spacing=(2.0, 1.5, 3.0), check_units=False)


def affine_of(axes: tuple[int, ...], signs: tuple[int, ...], steps: tuple[float, ...], origin: tuple[float, ...],
              turn: np.ndarray | None = None) -> np.ndarray:
    """Axis i of the file runs along world axis axes[i], towards signs[i]."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    for column, (axis, sign, step) in enumerate(zip(axes, signs, steps, strict=True)):
        affine[axis, column] = sign * step
    if turn is not None:
        affine[:3, :3] = turn @ affine[:3, :3]
    affine[:3, 3] = origin
    return affine


def world(shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    """The place of every voxel, ... 3."""
    return np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3]


def phantom(shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    """HU that say where they are."""
    middle = world(shape, affine).reshape(-1, 3).mean(axis=0)
    return np.round((world(shape, affine) - middle) @ SLOPE).astype(np.int16)


def expected(shape: tuple[int, ...], settings: CT) -> np.ndarray:
    """By the definition of the stored grid: `spacing` apart around the middle, axes superior, posterior, left."""
    places = (np.moveaxis(np.indices(shape), 0, -1) - (np.array(shape) - 1) / 2) * settings.spacing @ SPL
    return places @ SLOPE


def inner(values: np.ndarray) -> np.ndarray:
    """Without the border, beyond which there is nothing to interpolate with."""
    return values[2:-2, 2:-2, 2:-2]


@pytest.mark.parametrize("axes", list(permutations(range(3))))
@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, -1, 1), (1, -1, -1)])
def test_numbers_stay_at_their_places_from_nifti(tmp_path: Path, axes: tuple[int, ...], signs: tuple[int, ...]) -> None:
    affine = affine_of(axes, signs, (1.1, 2.3, 0.9), (13.0, -70.0, 900.0))
    shape = (21, 17, 33)
    path = nifti(tmp_path / "v.nii.gz", phantom(shape, affine), affine)
    (piece,) = ingest.read(row(path), WHOLE)
    extents = {axis: n * step for axis, n, step in zip(axes, shape, (1.1, 2.3, 0.9), strict=True)}
    wanted = tuple(round(extents[axis] / step) for axis, step in zip((2, 1, 0), WHOLE.spacing, strict=True))
    assert piece.values.shape == (1, *wanted) and piece.values.dtype == np.int16
    np.testing.assert_allclose(inner(piece.values[0]), inner(expected(wanted, WHOLE)), atol=1.1)
    assert piece.facts["oblique_degrees"] == 0.0


@pytest.mark.parametrize("steps", [(0.7, 0.7, 5.0), (2.5, 2.5, 1.0)])
def test_series_and_nifti_of_one_volume_are_stored_alike(tmp_path: Path, steps: tuple[float, ...]) -> None:
    affine = affine_of((0, 1, 2), (-1, -1, 1), steps, (40.0, 60.0, -300.0))
    values = phantom((31, 24, 12), affine)
    a = ingest.read(row(nifti(tmp_path / "v.nii", values, affine)), WHOLE)[0]
    b = ingest.read(row(series(tmp_path / "series", values, affine)), WHOLE)[0]
    np.testing.assert_array_equal(a.values, b.values)
    np.testing.assert_allclose(inner(b.values[0]), inner(expected(b.values.shape[1:], WHOLE)), atol=1.1)
    assert a.facts["spacing"] == b.facts["spacing"] and b.facts["format"] == "DICOM series"


def test_oblique_volumes_keep_their_own_axes(tmp_path: Path) -> None:
    angle = np.radians(12)
    turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    affine = affine_of((0, 1, 2), (-1, -1, 1), (1.0, 1.0, 1.5), (0, 0, 0), turn)
    rng = np.random.default_rng(0)
    values = rng.integers(-900, 900, (20, 20, 20)).astype(np.int16)
    straight = nifti(tmp_path / "a.nii", values, affine_of((0, 1, 2), (-1, -1, 1), (1.0, 1.0, 1.5), (0, 0, 0)))
    tilted = nifti(tmp_path / "b.nii", values, affine)
    a, b = (ingest.read(row(path), WHOLE)[0] for path in (straight, tilted))
    np.testing.assert_allclose(a.values, b.values, atol=1)
    assert b.facts["oblique_degrees"] == 12.0
    oblique = series(tmp_path / "series", values, affine)
    np.testing.assert_allclose(ingest.read(row(oblique), WHOLE)[0].values, b.values, atol=1)


def test_scale_and_offset_make_hounsfield_units(tmp_path: Path) -> None:
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    values = np.full((9, 9, 9), 500, np.int16)
    path = nifti(tmp_path / "v.nii", values, affine)
    settings = CT(size=(4, 4, 4), scale=2.0, offset=-1000)
    assert (ingest.read(row(path), settings)[0].values == 0).all()


def test_a_slope_in_the_nifti_header_is_applied(tmp_path: Path) -> None:
    path = nifti(tmp_path / "v.nii", np.full((9, 9, 9), 100, np.int16), np.diag([2.0, 2.0, 2.0, 1.0]), scl_slope=0.5,
                 scl_inter=-1000)
    assert (ingest.read(row(path), WHOLE)[0].values == -950).all()


def test_padding_outside_the_scanners_circle_is_unknown_and_does_not_bleed(tmp_path: Path) -> None:
    affine = np.diag([-1.0, -1.0, 2.0, 1.0])
    hu = np.full((30, 30, 8), 40, np.int16)
    hu[:10] = -1024 + 5  # stored as 5
    path = series(tmp_path / "s", hu, affine, PixelPaddingValue=5)
    piece = ingest.read(row(path), WHOLE)[0]
    assert set(np.unique(piece.values)) == {-32768, 40}
    assert piece.facts["known"] == pytest.approx(2 / 3, abs=0.05)


def test_where_padding_and_patient_meet_the_larger_part_decides(tmp_path: Path) -> None:
    hu = np.full((24, 8, 8), 40, np.int16)
    hu[:7] = 5 - 1024
    hu[20:22] = 5 - 1024  # half of the last but one
    path = series(tmp_path / "s", hu, np.diag([-1.0, -1.0, 1.0, 1.0]), PixelPaddingValue=5)
    values = ingest.read(row(path), replace(WHOLE, spacing=(1.0, 1.0, 4.0)))[0].values[0, 4, 4]
    assert values.tolist() == [-32768, -32768, 40, 40, 40, 40]


def test_a_range_of_padding_holds_both_of_its_ends(tmp_path: Path) -> None:
    hu = np.full((8, 8, 4), 40, np.int16)
    for k, number in enumerate((4, 5, 6, 7, 8)):
        hu[k] = number - 1024
    path = series(tmp_path / "s", hu, np.diag([-1.0, -1.0, 1.0, 1.0]), PixelPaddingValue=7, PixelPaddingRangeLimit=5)
    values = ingest.read(row(path), replace(WHOLE, spacing=(1.0, 1.0, 1.0)))[0].values[0, 2, 4]
    assert values.tolist() == [-1020, -32768, -32768, -32768, -1016, 40, 40, 40]


def test_every_slice_is_scaled_before_its_intercept_is_added(tmp_path: Path) -> None:
    folder = small_series(tmp_path / "s")
    for n, file in enumerate(sorted(folder.iterdir())):
        slope = 0.5 * (n + 1)
        change(file, RescaleSlope=str(slope), RescaleIntercept=str(40 - 1064 * slope))
    assert (ingest.read(row(folder), WHOLE)[0].values == 40).all()


def test_steps_between_slices_are_their_mean_and_not_the_first() -> None:
    heights = [0.0, 2.08, 4.0, 6.0]
    slices = [SliceGeometry((0, 0, z), (1, 0, 0), (0, 1, 0), (1, 1), (8, 8)) for z in heights]
    order, affine = order_slices(slices)
    assert order == [0, 1, 2, 3] and affine[2, 0] == pytest.approx(2.0)


# ---- masks and cubes ----

@pytest.fixture
def lesion(tmp_path: Path) -> tuple[Path, Path, np.ndarray]:
    """A volume, a mask stored with other axes and a smaller extent, and the lesion's world centre."""
    affine = affine_of((0, 1, 2), (-1, -1, 1), (1.0, 1.0, 2.0), (50, 50, -40))
    values = phantom((60, 60, 40), affine)
    turned = affine_of((2, 0, 1), (-1, 1, 1), (2.0, 1.0, 1.0), (-5, -5, 38))
    mask = np.zeros((30, 40, 40), np.uint8)
    mask[10:13, 20:25, 12:19] = 3
    centre = world(mask.shape, turned)[mask > 0].mean(axis=0)
    middle = world(values.shape, affine).reshape(-1, 3).mean(axis=0)
    return nifti(tmp_path / "v.nii.gz", values, affine), nifti(tmp_path / "m.nii.gz", mask, turned), centre - middle


def test_a_mask_with_other_axes_lands_on_the_same_places(lesion: tuple[Path, Path, np.ndarray]) -> None:
    image, mask, centre = lesion
    piece = ingest.read(row(image, mask), CT(size=(4, 4, 4), spacing=(1.0, 1.0, 1.0)))[0]
    assert piece.mask is not None and piece.mask.shape == piece.values.shape[1:] and piece.mask.dtype == np.uint8
    assert set(np.unique(piece.mask)) == {0, 3, UNKNOWN_CLASS}
    assert (piece.mask == 3).sum() == pytest.approx(3 * 5 * 7 * 2, rel=0.25)  # mm3; nearest voxels of other phases
    assert piece.values[0][piece.mask == 3].mean() == pytest.approx(float(centre @ SLOPE), abs=6)


def test_a_cube_sits_around_the_mask_and_has_one_size(lesion: tuple[Path, Path, np.ndarray]) -> None:
    image, mask, centre = lesion
    settings = CT(size=(16, 16, 16), spacing=(1.0, 1.0, 1.0), cube=(20.0,))
    piece = ingest.read(row(image, mask), settings)[0]
    assert piece.values.shape == (1, 20, 20, 20)
    assert piece.values[0, 9:11, 9:11, 9:11].mean() == pytest.approx(float(centre @ SLOPE), abs=1)
    np.testing.assert_allclose(piece.values[0], expected((20, 20, 20), settings) + centre @ SLOPE, atol=1.1)


def test_a_cube_beyond_the_file_is_unknown_there_and_as_large_as_any(lesion: tuple[Path, Path, np.ndarray]) -> None:
    image, mask, _ = lesion
    piece = ingest.read(row(image, mask), CT(size=(16, 16, 16), spacing=(3.0, 3.0, 3.0), cube=(120.0, 60.0, 60.0)))[0]
    assert piece.values.shape == (1, 40, 20, 20)
    unknown = piece.values == ingest.contract(WHOLE).unknown
    assert unknown.any() and piece.facts["known"] == pytest.approx(1 - unknown.mean(), abs=1e-3)


def test_a_cube_is_not_drawn_to_where_nobody_has_looked(lesion: tuple[Path, Path, np.ndarray]) -> None:
    import nibabel

    image, mask, _ = lesion
    settings = CT(size=(16, 16, 16), spacing=(1.0, 1.0, 1.0), cube=(20.0,), check_units=False)
    expected_cube = ingest.read(row(image, mask), settings)[0].values
    loaded = nibabel.load(mask)
    classes = np.asarray(loaded.dataobj).copy()  # type: ignore[attr-defined]
    classes[:, :4] = UNKNOWN_CLASS
    nifti(mask, classes, loaded.affine)  # type: ignore[attr-defined]
    np.testing.assert_array_equal(ingest.read(row(image, mask), settings)[0].values, expected_cube)


def test_a_cube_needs_a_mask_or_the_middle(lesion: tuple[Path, Path, np.ndarray], tmp_path: Path) -> None:
    image, mask, _ = lesion
    settings = CT(size=(16, 16, 16), spacing=(1.0, 1.0, 1.0), cube=(20.0,))
    with pytest.raises(Refused, match="no mask to centre"):
        ingest.read(row(image), settings)
    empty = nifti(tmp_path / "e.nii", np.zeros((9, 9, 9), np.uint8), np.eye(4))
    with pytest.raises(Refused, match="mask is empty"):
        ingest.read(row(image, empty), settings)
    middle = ingest.read(row(image), CT(size=(16, 16, 16), spacing=(1.0, 1.0, 1.0), cube=(20.0,), cube_at="centre"))[0]
    np.testing.assert_allclose(middle.values[0], expected((20, 20, 20), settings), atol=1.1)


def test_masks_that_cannot_be_classes_are_refused(lesion: tuple[Path, Path, np.ndarray], tmp_path: Path) -> None:
    image, _, _ = lesion
    for values in (np.full((9, 9, 9), 0.5, np.float32), np.full((9, 9, 9), 300, np.int16)):
        with pytest.raises(Refused, match="its mask holds"):
            ingest.read(row(image, nifti(tmp_path / "m.nii", values, np.eye(4))), WHOLE)
    angle = np.radians(20)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    turned = affine_of((0, 1, 2), (1, 1, 1), (1, 1, 1), (0, 0, 0), turn)
    with pytest.raises(Refused, match="turned against the image"):
        ingest.read(row(image, nifti(tmp_path / "m.nii", np.ones((9, 9, 9), np.uint8), turned)), WHOLE)


# ---- series that are none ----

AFFINE = affine_of((0, 1, 2), (-1, -1, 1), (1.0, 1.0, 2.5), (20, 20, 0))


def small_series(folder: Path) -> Path:
    return series(folder, np.full((16, 16, 10), 40, np.int16), AFFINE)


def change(file: Path, **tags: object) -> None:
    import pydicom

    header = pydicom.dcmread(file)
    for name, value in tags.items():
        setattr(header, name, value)
    header.save_as(file)


def test_a_missing_slice_is_noticed(tmp_path: Path) -> None:
    folder = small_series(tmp_path / "s")
    (folder / "005.dcm").unlink()
    with pytest.raises(Refused, match=r"slice gaps from 2\.50 to 5\.00 mm"):
        ingest.read(row(folder), WHOLE)


@pytest.mark.parametrize(("tags", "reason"), [
    ({"SeriesInstanceUID": "9.9"}, "2 series among 10 files"),
    ({"FrameOfReferenceUID": "9.9"}, "2 frames of reference"),
    ({"Modality": "MR"}, "modality CT"),
    ({"NumberOfFrames": 3}, "enhanced CT"),
    ({"PixelSpacing": [2, 2]}, "differ in size or pixel spacing"),
    ({"ImageOrientationPatient": [0, 1, 0, 0, 0, -1]}, "differ in orientation"),
    ({"ImagePositionPatient": [-20, -20, 0]}, "where another one lies"),
    ({"ImagePositionPatient": None}, "without ImagePositionPatient"),
])
def test_slices_that_do_not_belong_together_are_refused(tmp_path: Path, tags: dict[str, object], reason: str) -> None:
    folder = small_series(tmp_path / "s")
    change(folder / "004.dcm", **tags)
    with pytest.raises(Refused, match=reason) as refusal:
        ingest.read(row(folder), WHOLE)
    assert CANARY not in str(refusal.value)


def test_a_tilted_gantry_is_refused(tmp_path: Path) -> None:
    import pydicom

    folder = small_series(tmp_path / "s")
    for file in folder.iterdir():
        x, y, z = (float(mm) for mm in pydicom.dcmread(file).ImagePositionPatient)
        change(file, ImagePositionPatient=[x, y + z * np.tan(np.radians(15)), z])
    with pytest.raises(Refused, match="gantry tilt of 15.0 degrees"):
        ingest.read(row(folder), WHOLE)


def test_a_row_that_names_one_file_takes_its_series_alone(tmp_path: Path) -> None:
    folder = small_series(tmp_path / "s")
    other = series(tmp_path / "t", np.full((16, 16, 10), 99, np.int16), AFFINE, SeriesInstanceUID="9.9")
    for file in other.iterdir():
        file.rename(folder / f"other{file.name}")
    with pytest.raises(Refused, match="2 series"):
        ingest.read(row(folder), WHOLE)
    assert (ingest.read(row(folder / "003.dcm"), WHOLE)[0].values == 40).all()
    assert (ingest.read(row(folder / "other003.dcm"), WHOLE)[0].values == 99).all()


def test_what_lies_beside_the_slices_is_not_read(tmp_path: Path) -> None:
    folder = small_series(tmp_path / "s")
    for name in ("notes.txt", "DICOMDIR", ".hidden", "mask.nii.gz"):
        (folder / name).write_bytes(b"nothing to see")
    assert (ingest.read(row(folder), WHOLE)[0].values == 40).all()


def test_an_empty_folder_or_one_slice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="0 slice"):
        ingest.read(row(tmp_path), WHOLE)
    series(tmp_path, np.full((16, 16, 1), 40, np.int16), AFFINE)
    with pytest.raises(Refused, match="1 slice"):
        ingest.read(row(tmp_path), WHOLE)


# ---- NIfTI that cannot be true ----

@pytest.mark.parametrize(("fields", "reason"), [
    ({"pixdim": [1, 1, 1, 9, 0, 0, 0, 0]}, "contradict each other"),
    ({"srow_x": [0, 0, 0, 0]}, "spacing"),
    ({"srow_x": [200, 0, 0, 0]}, "spacing"),
    ({"srow_x": [1, 0.5, 0, 0]}, "right angles"),
    ({"srow_x": [np.nan, 0, 0, 0]}, "not finite"),
    ({"sform_code": 0, "qform_code": 0}, "orientation is not known"),
    ({"xyzt_units": 1}, "unit of length"),
    ({"dim": [3, 30000, 30000, 30000, 1, 1, 1, 1]}, "30000 x 30000 x 30000 voxels"),
    ({"dim": [3, 9, 9, -9, 1, 1, 1, 1]}, "expected positive"),
    ({"dim": [4, 3, 3, 3, 27, 1, 1, 1]}, "4 axes"),
    ({"dim": [3, 9, 9, 90, 1, 1, 1, 1]}, "ends early"),
    ({"datatype": 32, "bitpix": 64}, "not plain numbers"),
    ({"magic": b"ni1"}, "not a NIfTI-1 file"),
    ({"vox_offset": 1e9}, "voxels begin at byte"),
])
@pytest.mark.parametrize("name", ["v.nii", "v.nii.gz"])
def test_headers_that_cannot_be_true_are_refused(tmp_path: Path, name: str, fields: dict[str, object],
                                                 reason: str) -> None:
    path = nifti(tmp_path / name, np.zeros((9, 9, 9), np.int16), np.eye(4), **fields)
    with pytest.raises(Refused, match=reason):
        ingest.read(row(path), WHOLE)


def test_a_volume_over_the_limit_is_refused_by_the_setting_that_allows_it(tmp_path: Path) -> None:
    values = np.full((16, 16, 8), 40, np.int16)
    small = replace(WHOLE, max_voxels=2047)
    for path in (nifti(tmp_path / "v.nii", values, AFFINE), series(tmp_path / "s", values, AFFINE)):
        with pytest.raises(Refused, match=r"voxels, expected between 1 and 2047 \(max_voxels\)"):
            ingest.read(row(path), small)
        assert ingest.read(row(path), replace(small, max_voxels=2048))[0].values.size


def test_numbers_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    values = np.zeros((9, 9, 9), np.float32)
    values[3, 3, 3] = np.inf
    with pytest.raises(Refused, match="not finite"):
        ingest.read(row(nifti(tmp_path / "v.nii", values, np.eye(4))), WHOLE)


def test_damage_to_a_compressed_file_never_passes_unseen(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(-1000, 1000, (12, 12, 12)).astype(np.int16)
    path = nifti(tmp_path / "v.nii.gz", values, np.eye(4))
    clean, whole = ingest.read(row(path), WHOLE)[0].values, path.read_bytes()
    seen = 0
    for at in rng.integers(10, len(whole), 60):  # the first ten bytes say when and where it was compressed
        damaged = bytearray(whole)
        damaged[at] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        try:
            np.testing.assert_array_equal(ingest.read(row(path), WHOLE)[0].values, clean)
        except Refused:
            seen += 1
    assert seen >= 55


def test_gzip_in_several_members_with_zeros_behind_is_read_to_its_last_voxel(tmp_path: Path) -> None:
    values = np.random.default_rng(4).integers(-1000, 1000, (12, 12, 12)).astype(np.int16)
    whole = nifti(tmp_path / "v.nii", values, np.eye(4)).read_bytes()
    path = tmp_path / "v.nii.gz"
    path.write_bytes(b"".join(gzip.compress(part) for part in (whole[:300], whole[300:2000], whole[2000:])) + bytes(40))
    np.testing.assert_array_equal(ingest.read(row(path), WHOLE)[0].values,
                                  ingest.read(row(tmp_path / "v.nii"), WHOLE)[0].values)


def test_a_gzip_bomb_is_stopped_at_what_its_header_announces(tmp_path: Path) -> None:
    path = nifti(tmp_path / "v.nii", np.zeros((9, 9, 9), np.int16), np.eye(4))
    bomb = tmp_path / "v.nii.gz"
    bomb.write_bytes(gzip.compress(path.read_bytes() + b"\0" * 50_000_000))
    with pytest.raises(Refused, match="more data follows"):
        ingest.read(row(bomb), WHOLE)


# ---- units ----

def body(shift: float) -> np.ndarray:
    """Air, lung, fat, tissue and bone in HU, shifted."""
    rng = np.random.default_rng(0)
    return np.asarray(rng.choice([-1000.0, -850, -100, 40, 700], (1, 12, 12, 12)) + shift).astype(np.int16)


def test_units_that_are_a_thousand_off_are_said() -> None:
    pieces = [ingest.Piece(values=body(shift)) for shift in (1000, 1000, 0)]
    said = ingest.implausible(pieces, CT())
    assert said is not None and "HU + 1000" in said and "offset: -1000" in said and "2 of 3" in said
    assert ingest.implausible(pieces, CT(check_units=False)) is None
    assert ingest.implausible([ingest.Piece(values=body(0))], CT()) is None
    assert "HU - 1000" in str(ingest.implausible([ingest.Piece(values=body(-1000))] * 2, CT()))


def test_the_check_of_units_looks_at_known_voxels_only() -> None:
    values = body(1000)
    values[:, :6] = -32768
    assert ingest.implausible([ingest.Piece(values=values)], CT()) is not None


def test_the_contract_says_grid_orientation_and_unknown() -> None:
    contract = ingest.contract(CT(spacing=(2.0, 1.0, 1.0), window=(-1000, 400)))
    assert contract.orientation == "SPL" and contract.spacing == (2.0, 1.0, 1.0) and contract.unknown == -32768
    assert (contract.channels[0].unit, contract.channels[0].low, contract.channels[0].high) == ("HU", -1000, 400)


def test_settings_are_checked_where_they_are_made() -> None:
    for wrong, reason in (({"spacing": (0.0, 1, 1)}, "spacing: found"), ({"window": (5, 5)}, "window: found"),
                          ({"cube": (10.0,)}, "expected at least size"), ({"cube": (9.0, 9.0)}, "one edge or three"),
                          ({"scale": 0}, "scale: found")):
        with pytest.raises(ValueError, match=reason):
            CT(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(("tags", "reason"), [
    ({"RescaleIntercept": None}, "without RescaleIntercept"),
    ({"RescaleSlope": "0"}, "slope 0"),
    ({"RescaleType": "Z_EFF"}, "no Hounsfield units"),
])
def test_a_slice_whose_numbers_are_no_hounsfield_units_is_refused(tmp_path: Path, tags: dict[str, object],
                                                                 reason: str) -> None:
    folder = series(tmp_path / "s", np.full((16, 16, 3), 40, np.int16), AFFINE, **tags)
    with pytest.raises(Refused, match=reason):
        ingest.read(row(folder), WHOLE)


def test_an_offset_that_is_set_stands_for_an_intercept_that_is_missing(tmp_path: Path) -> None:
    folder = series(tmp_path / "s", np.full((16, 16, 3), 40, np.int16), AFFINE, RescaleIntercept=None)
    assert (ingest.read(row(folder), replace(WHOLE, offset=-1024.0))[0].values == 40).all()


@pytest.mark.parametrize(("signed", "bits", "declared"), [(True, 16, -2000), (True, 16, 63536), (True, 12, 63536),
                                                        (False, 12, 63536), (False, 16, 63536)])
def test_padding_is_unknown_however_its_value_is_declared(tmp_path: Path, signed: bool, bits: int,
                                                          declared: int) -> None:
    import pydicom

    folder = small_series(tmp_path / "s")
    for file in folder.iterdir():
        header = pydicom.dcmread(file)
        stored = np.full((16, 16), 40 if signed else 1064, "<i2" if signed else "<u2")
        stored[:, :4] = -2000 if signed else 63536
        header.PixelData, header.PixelRepresentation = stored.tobytes(), int(signed)
        header.BitsStored, header.HighBit, header.RescaleIntercept = bits, bits - 1, 0 if signed else -1024
        header.add_new(0x00280120, "SS" if declared < 0 else "US", declared)
        header.save_as(file)
    values = ingest.read(row(folder), replace(WHOLE, spacing=(2.5, 1.0, 1.0)))[0].values[0]
    assert set(np.unique(values).tolist()) == {-32768, 40}
    assert ((values == -32768).sum(axis=2) == 4).all()


def test_objects_without_pixels_among_the_slices_are_passed_over(tmp_path: Path) -> None:
    import pydicom

    folder = small_series(tmp_path / "s")
    alone = ingest.read(row(folder), WHOLE)[0].values
    header = pydicom.dcmread(folder / "001.dcm")
    for tag in ("Rows", "Columns", "PixelData"):
        del header[tag]
    header.save_as(folder / "lost.dcm")
    with pytest.raises(Refused, match="without pixels"):  # a slice that lost them is missed
        ingest.read(row(folder), WHOLE)
    (folder / "lost.dcm").unlink()
    header.Modality, header.SeriesInstanceUID = "RTSTRUCT", "9.9"
    header.save_as(folder / "structures.dcm")
    for path in (folder, folder / "003.dcm"):
        np.testing.assert_array_equal(ingest.read(row(path), WHOLE)[0].values, alone)


def test_a_file_that_is_placed_twice_must_say_one_thing(tmp_path: Path) -> None:
    values = np.zeros((9, 9, 9), np.int16)
    affine = affine_of((0, 1, 2), (-1, -1, 1), (1.0, 1.0, 2.0), (0, 0, 0))
    turned = {"quatern_b": 0, "quatern_c": 0, "quatern_d": 0, "pixdim": [1, 1, 1, 2, 1, 1, 1, 1]}
    with pytest.raises(Refused, match="sform and qform"):
        ingest.read(row(nifti(tmp_path / "a.nii", values, affine, qform_code=1, **turned)), WHOLE)
    ingest.read(row(nifti(tmp_path / "b.nii", values, affine, qform_code=0, **turned)), WHOLE)
    tilted = {"quatern_b": 0, "quatern_c": 0, "quatern_d": 0.98, "pixdim": [1, 1, 1, 2, 1, 1, 1, 1]}
    ingest.read(row(nifti(tmp_path / "c.nii", values, affine, qform_code=1, **tilted)), WHOLE)


@pytest.mark.parametrize(("shape", "origin", "reason"), [
    ((9, 9, 9), (0, 0, 0), "lies up to 40.0 voxels away"), ((9, 9, 9), (38, 40, 0), "lies up to 2.0 voxels away"),
    ((5, 5, 5), (0, 0, 0), "wholly beside the image")])
def test_a_mask_that_was_saved_without_the_images_place_is_refused(
        tmp_path: Path, shape: tuple[int, ...], origin: tuple[float, ...], reason: str) -> None:
    image = nifti(tmp_path / "i.nii", np.zeros((9, 9, 9), np.int16),
                  affine_of((0, 1, 2), (1, 1, 1), (1, 1, 1), (40, 40, 0)))
    mask = nifti(tmp_path / "m.nii", np.ones(shape, np.uint8), affine_of((0, 1, 2), (1, 1, 1), (1, 1, 1), origin))
    with pytest.raises(Refused, match=reason):
        ingest.read(row(image, mask), WHOLE)
