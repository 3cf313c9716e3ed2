"""Classes of points are written back for every point of a file, and nothing else of it changes."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from domains.pointcloud import export
from domains.pointcloud.export import Labelling
from domains.pointcloud.ingest import Points, read, seen
from domains.sample import UNKNOWN_CLASS, ManifestRow, Refused
from tests.domains.pointcloud.files import write_off, write_ply
from tests.domains.pointcloud.test_ingest import FAR, cloud, write_cloud

laspy = pytest.importorskip("laspy")

PLAIN = Points(size=(64,), points_per_sample=128, min_points=16, scale="metres")
NUMBERS = (2, 6, 30)
SHARED = Path(os.environ.get("LACUNA_SHARED", "")) / "data/pointcloud"
real = pytest.mark.skipif(not SHARED.is_dir(), reason="needs real files: set LACUNA_SHARED")


def row(path: Path, said: Path | None = None) -> ManifestRow:
    return ManifestRow(path, path.name, "g", "", "", mask_path=said)


def labelled(path: Path, settings: Points, answer: Callable[[int], np.ndarray] | None = None,
             numbers: tuple[int, ...] = NUMBERS) -> tuple[bytes, dict[str, Any], np.ndarray, np.ndarray]:
    """The new file, its facts, which points were seen, and what was said of them: drawn at random."""
    rows = np.concatenate(seen(row(path), settings))
    drawn = np.random.default_rng(7).dirichlet(np.ones(len(numbers)), len(rows)).astype(np.float32)
    said = drawn if answer is None else answer(len(rows))
    np.save(path.parent / "said.npy", said)
    names = tuple(f"class {number}" for number in numbers)
    (piece,) = export.read(row(path, path.parent / "said.npy"), Labelling(settings, numbers, names))
    return piece.values.tobytes(), piece.facts, rows, said


def by_brute_force(xyz: np.ndarray, rows: np.ndarray, said: np.ndarray) -> np.ndarray:
    """Every distance to every seen point, in float64."""
    called = np.empty(len(xyz), int)
    own = {int(r): i for i, r in enumerate(rows)}
    for i, place in enumerate(xyz):
        if i in own:
            called[i] = said[own[i]].argmax()
            continue
        far = np.sqrt(((xyz[rows] - place) ** 2).sum(1))
        three = np.argsort(far, kind="stable")[:3]
        at = far[three] == 0
        weight = at.astype(float) if at.any() else 1 / far[three] ** 2
        called[i] = (weight[:, None] * said[three].astype(float)).sum(0).argmax()
    return called


def opened(content: bytes, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Places and numbers of classes of a new file, as other programs read them."""
    path = path.with_name(f"new{export.ending(path)}")
    path.write_bytes(content)
    if path.suffix in (".las", ".laz"):
        las = laspy.read(path)
        return np.asarray(las.xyz), np.asarray(las.classification)
    open3d = pytest.importorskip("open3d")
    told = open3d.t.io.read_point_cloud(str(path))
    return told.point.positions.numpy(), told.point.label.numpy()[:, 0]


def places_in(path: Path) -> np.ndarray:
    """What a file of `write_cloud` holds, in its own order."""
    return np.asarray(laspy.read(path).xyz) if path.suffix in (".las", ".laz") else cloud(500) + FAR


@pytest.mark.parametrize("name", ["a.las", "a.laz", "a.ply", "ascii.ply", "a.pcd", "a.xyz", "comma.xyz", "a.npy"])
@pytest.mark.parametrize("tile", [0.0, 3.0])
def test_every_point_is_called_what_the_nearest_seen_ones_say(tmp_path: Path, name: str, tile: float) -> None:
    path = tmp_path / name
    write_cloud(path, cloud(500) + FAR)
    xyz = places_in(path)
    settings = dataclasses.replace(PLAIN, tile_metres=tile, points_per_sample=64)
    content, facts, rows, said = labelled(path, settings)
    found, numbers = opened(content, path)
    assert np.array_equal(found, xyz), "the same points in the same order, on the file's own coordinates"
    called = by_brute_force(xyz, rows, said)
    assert np.array_equal(numbers, np.array(NUMBERS)[called])
    assert facts == {"counts": np.bincount(called, minlength=3).tolist(), "not_looked_at": 0}
    assert len(rows) < len(xyz) and len(set(numbers)) == 3


@pytest.mark.parametrize("scale", ["metres", "unit_sphere"])
@pytest.mark.parametrize("sample", ["random", "farthest"])
@pytest.mark.parametrize("tile", [0.0, 3.0])
def test_seen_points_are_those_that_a_sample_holds_in_its_order(tmp_path: Path, scale: Any, sample: Any,
                                                                tile: float) -> None:
    path = tmp_path / "a.las"
    write_cloud(path, cloud(500) + FAR)
    settings = dataclasses.replace(PLAIN, scale=scale, sample=sample, tile_metres=tile, metres_per_unit=0.5)
    places = places_in(path)
    for piece, rows in zip(read(row(path), settings), seen(row(path), settings), strict=True):
        origin, unit = np.array(piece.facts["origin"]), float(str(piece.facts["stored_unit"]))
        assert np.abs(piece.values[:, :3] * unit + origin - places[rows]).max() < 0.01
        assert len(np.unique(rows)) == len(rows)


def scene(path: Path, version: str, kind: int) -> Any:
    """A LAS file with every field filled, texts, an own field, a coordinate system and points marked as noise."""
    rng = np.random.default_rng(1)
    header = laspy.LasHeader(point_format=kind, version=version)
    header.scales, header.offsets = np.array([0.01, 0.02, 0.005]), np.array([1e5, 2e5, -10.0])
    header.system_identifier, header.generating_software = "SECRET PLANE", "SECRET PROGRAM"
    header.add_extra_dim(laspy.ExtraBytesParams(name="height", type=np.float32))
    header.vlrs.append(laspy.VLR(user_id="SECRET", record_id=7, description="of nobody", record_data=b"\1\2\3"))
    las = laspy.LasData(header)
    xyz = cloud(400) + [1e5, 2e5, 0]
    las.x, las.y, las.z = xyz.T
    for dim in las.point_format.dimensions:
        if dim.name in ("X", "Y", "Z"):
            continue
        most = 2 ** min(dim.num_bits, 15)
        las[dim.name] = rng.normal(size=400) if dim.kind.name == "FloatingPoint" else rng.integers(0, most, 400)
    las.return_number = np.ones(400, np.uint8)
    las.withheld = np.arange(400) % 40 == 3
    las.classification = np.where(np.arange(400) % 50 == 9, 7, rng.integers(1, 6, 400))
    if version == "1.4":
        las.evlrs = laspy.vlrs.vlrlist.VLRList()
        las.evlrs.append(laspy.VLR(user_id="FAR", record_id=9, description="behind", record_data=b"abc" * 99))
    las.write(path)
    return laspy.read(path)


@pytest.mark.parametrize(("version", "kind"), [("1.2", 1), ("1.2", 3), ("1.4", 6), ("1.4", 8)])
@pytest.mark.parametrize("suffix", [".las", ".laz"])
def test_of_a_las_file_nothing_changes_but_the_classes(tmp_path: Path, version: str, kind: int, suffix: str) -> None:
    before = scene(tmp_path / f"a{suffix}", version, kind)
    content, facts, _, _ = labelled(tmp_path / f"a{suffix}", PLAIN)
    (tmp_path / f"new{suffix}").write_bytes(content)
    after = laspy.read(tmp_path / f"new{suffix}")
    for dim in before.point_format.dimension_names:
        assert dim == "classification" or np.array_equal(before[dim], after[dim]), dim
    assert not np.array_equal(before.classification, after.classification)
    noise = (np.asarray(before.classification) == 7) | (np.asarray(before.withheld) != 0)
    assert np.array_equal(before.classification[noise], after.classification[noise]), "noise stays noise"
    assert set(np.asarray(after.classification)[~noise]) == set(NUMBERS)
    assert facts["not_looked_at"] == noise.sum() and sum(facts["counts"]) == 400 - noise.sum()
    one, other = before.header, after.header
    for what in ("system_identifier", "generating_software", "creation_date", "uuid", "version"):
        assert str(getattr(one, what)) == str(getattr(other, what)), what
    assert one.global_encoding.value == other.global_encoding.value
    assert np.array_equal(one.scales, other.scales) and np.array_equal(one.offsets, other.offsets)
    for records, others in ((one.vlrs, other.vlrs), (one.evlrs or (), other.evlrs or ())):
        assert [vlr.record_data_bytes() for vlr in records] == [vlr.record_data_bytes() for vlr in others]


def test_with_noise_kept_every_point_is_called_something(tmp_path: Path) -> None:
    scene(tmp_path / "a.las", "1.4", 6)
    content, facts, _, _ = labelled(tmp_path / "a.las", dataclasses.replace(PLAIN, drop_noise=False))
    _, numbers = opened(content, tmp_path / "a.las")
    assert facts["not_looked_at"] == 0 and set(numbers) == set(NUMBERS)


def test_numbers_that_an_old_point_format_cannot_hold_are_refused(tmp_path: Path) -> None:
    scene(tmp_path / "a.las", "1.2", 3)
    with pytest.raises(Refused, match="found point format 3, whose classes end at 31"):
        labelled(tmp_path / "a.las", PLAIN, numbers=(2, 32))


@pytest.mark.parametrize("layout", ["ascii", "binary_little_endian", "binary_big_endian"])
def test_a_ply_cloud_keeps_its_other_columns_and_a_label_of_its_own_is_replaced(tmp_path: Path, layout: str) -> None:
    points, rng = cloud(300), np.random.default_rng(0)
    points[5, 1] = np.nan
    extra = {"label": ("uchar", rng.integers(0, 9, 300)), "red": ("uchar", rng.integers(0, 255, 300)),
             "quality": ("ushort", rng.integers(0, 60000, 300)), "class": ("uchar", rng.integers(0, 9, 300))}
    write_ply(tmp_path / "a.ply", layout, faces=False, points=points, extra=extra)
    content, facts, _, _ = labelled(tmp_path / "a.ply", PLAIN)
    xyz, numbers = opened(content, tmp_path / "a.ply")
    header, _, body = content.partition(b"end_header\n")
    types = {"double": "<f8", "uchar": "u1", "ushort": "<u2"}
    table = np.frombuffer(body, [(name, types[kind]) for kind, name in
                                 re.findall(r"property (\w+) (\w+)", header.decode())])
    assert table.dtype.names == ("x", "y", "z", "label", "red", "quality", "class")
    assert np.array_equal(xyz, points, equal_nan=True) and b"comment label 30 is class 30\n" in content
    assert all(np.array_equal(table[name], extra[name][1]) for name in ("red", "quality", "class"))
    assert numbers[5] == UNKNOWN_CLASS and set(np.delete(numbers, 5)) == set(NUMBERS)
    assert facts["not_looked_at"] == 1 and sum(facts["counts"]) == 299
    again = dataclasses.replace(PLAIN, points_per_sample=300, sample="random")
    (piece,) = read(dataclasses.replace(row(tmp_path / "new.ply"), mask_path=tmp_path / "new.ply"), again)
    assert piece.mask is not None and set(piece.mask.tolist()) == set(NUMBERS), "label is read before class"


def test_text_and_arrays_keep_what_they_say_of_their_points(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    table = np.column_stack([cloud(200), rng.integers(0, 256, (200, 3)), rng.uniform(0, 1, 200)])
    np.save(tmp_path / "a.npy", table.astype(np.float32))
    columns = ("x", "y", "z", "red", "green", "blue", "intensity")
    content, _, _, _ = labelled(tmp_path / "a.npy", dataclasses.replace(PLAIN, columns=columns))
    (tmp_path / "new.ply").write_bytes(content)
    told = pytest.importorskip("open3d").t.io.read_point_cloud(str(tmp_path / "new.ply"))
    assert np.array_equal(told.point.colors.numpy(), table[:, 3:6]) and told.point.colors.dtype.__str__() == "UInt8"
    assert np.allclose(told.point.intensity.numpy()[:, 0], table[:, 6])


def test_points_at_one_place_decide_together_and_alone(tmp_path: Path) -> None:
    near = export.Neighbours(np.array([[0.0, 0, 0], [0, 0, 0], [1, 0, 0]]),
                             np.array([[0.9, 0.1], [0.3, 0.7], [0.0, 1.0]]))
    told = near.told(np.array([[0.0, 0, 0], [1, 0, 0], [1e-200, 0, 0], [0.5, 0, 0]]))
    assert np.allclose(told, [[0.6, 0.4], [0.0, 1.0], [0.6, 0.4], [0.4, 0.6]])
    alone = export.Neighbours(np.array([[0.0, 0, 0]]), np.array([[0.2, 0.8]])).told(np.ones((2, 3)))
    assert np.allclose(alone, [[0.2, 0.8]] * 2)


def test_meshes_and_files_that_changed_are_refused(tmp_path: Path) -> None:
    write_off(tmp_path / "a.off")
    with pytest.raises(Refused, match="found a mesh, expected a cloud"):
        labelled(tmp_path / "a.off", PLAIN)
    write_cloud(tmp_path / "a.ply", cloud(300))
    with pytest.raises(Refused, match="changed while it was read"):
        labelled(tmp_path / "a.ply", PLAIN, lambda n: np.ones((n + 1, 3), np.float32))


@real
def test_real_objects_and_a_real_scene_are_written_back_whole(tmp_path: Path) -> None:
    objects = [sorted((SHARED / f"dales/{kind}").glob("*.ply"))[0] for kind in ("building", "car", "pole", "tree")]
    for source in [*objects, SHARED / "als/Topography.laz"]:
        path = tmp_path / source.name
        path.write_bytes(source.read_bytes())
        tile = 60.0 if path.suffix == ".laz" else 0.0
        content, facts, rows, said = labelled(path, dataclasses.replace(PLAIN, tile_metres=tile, points_per_sample=200))
        found, numbers = opened(content, path)
        if path.suffix == ".laz":
            xyz = np.asarray(laspy.read(path).xyz)
        else:
            xyz = pytest.importorskip("open3d").t.io.read_point_cloud(str(path)).point.positions.numpy()
        assert np.array_equal(found, xyz) and len(set(numbers.tolist())) >= 3
        some = np.random.default_rng(0).permutation(len(xyz))[:400]
        kept = np.asarray(laspy.read(path).classification) if path.suffix == ".laz" else np.zeros(len(xyz))
        some = some[(kept[some] != 7) & (kept[some] != 18)]
        assert np.array_equal(numbers[some], np.array(NUMBERS)[by_brute_force_of(xyz.astype(float), some, rows, said)])


def by_brute_force_of(xyz: np.ndarray, some: np.ndarray, rows: np.ndarray, said: np.ndarray) -> np.ndarray:
    """`by_brute_force` of some points of a large cloud: those, behind the seen ones."""
    asked = np.setdiff1d(some, rows)
    both = np.concatenate([rows, asked])
    called = dict(zip(both.tolist(), by_brute_force(xyz[both], np.arange(len(rows)), said).tolist(), strict=True))
    return np.array([called[int(i)] for i in some])
