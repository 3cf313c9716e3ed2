"""Every format gives the points it holds, meshes are sampled by area, and damaged files are refused with a reason."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from domains.pointcloud import ingest, libraries
from domains.pointcloud.ingest import Points, read
from domains.sample import ManifestRow, Refused

open3d = pytest.importorskip("open3d")
laspy = pytest.importorskip("laspy")

PLAIN = Points(size=(64,), points_per_sample=512, min_points=16, scale="metres")
FAR = np.array([500_000.0, 5_000_000.0, 100.0])
"""Map coordinates: float32 would round them to half a metre."""


def row(path: Path, source: str = "") -> ManifestRow:
    return ManifestRow(path=path, key=path.name, group="g", split="", source=source)


def cloud(num: int = 200) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(num, 3)) * [3, 2, 1]


def write_ply(path: Path, points: np.ndarray, ascii: bool = False) -> None:
    header = (f"ply\nformat {'ascii' if ascii else 'binary_little_endian'} 1.0\nelement vertex {len(points)}\n"
              "property double x\nproperty double y\nproperty double z\nend_header\n").encode()
    body = ("\n".join(" ".join(map(repr, map(float, p))) for p in points) + "\n").encode() if ascii \
        else points.astype("<f8").tobytes()
    path.write_bytes(header + body)


def write_las(path: Path, points: np.ndarray, classes: np.ndarray | None = None) -> None:
    header = laspy.LasHeader(point_format=3, version="1.2")
    header.scales, header.offsets = np.full(3, 0.001), np.floor(points.min(0))
    las = laspy.LasData(header)
    las.x, las.y, las.z = points.T
    if classes is not None:
        las.classification = classes.astype(np.uint8)
    las.write(path)


def write_cloud(path: Path, points: np.ndarray) -> None:
    if path.suffix in (".las", ".laz"):
        write_las(path, points)
    elif path.suffix == ".ply":
        write_ply(path, points, ascii="ascii" in path.stem)
    elif path.suffix == ".npy":
        np.save(path, points)
    elif path.suffix == ".pcd":
        fields = "VERSION 0.7\nFIELDS x y z\nSIZE 8 8 8\nTYPE F F F\nCOUNT 1 1 1\n"
        path.write_bytes((f"{fields}WIDTH {len(points)}\nHEIGHT 1\nVIEWPOINT 0 0 0 1 0 0 0\nPOINTS {len(points)}\n"
                          "DATA binary\n").encode() + points.astype("<f8").tobytes())
    else:
        comma = "comma" in path.stem
        np.savetxt(path, points, delimiter="," if comma else " ", header="x,y,z" if comma else "", comments="")


def farthest_from_its_partner(found: np.ndarray, expected: np.ndarray) -> float:
    """Every expected point has a found one beside it, and the other way round."""
    gaps = np.linalg.norm(found[:, None] - expected[None], axis=2)
    return float(max(gaps.min(0).max(), gaps.min(1).max()))


CUBE = """OFF
# a cube of six squares
8 6 12
0 0 0
1 0 0
1 1 0
0 1 0
0 0 1
1 0 1
1 1 1
0 1 1
4 0 3 2 1
4 4 5 6 7 255 0 0
4 0 1 5 4
4 1 2 6 5
4 2 3 7 6
4 3 0 4 7
"""


@pytest.mark.parametrize("name", ["a.ply", "ascii.ply", "a.las", "a.laz", "a.pcd", "a.npy", "a.xyz", "comma.txt"])
def test_every_cloud_format_gives_its_points_centred_to_the_millimetre(tmp_path: Path, name: str) -> None:
    points = cloud() + FAR
    write_cloud(tmp_path / name, points)
    (piece,) = read(row(tmp_path / name), PLAIN)
    assert piece.values.shape == (200, 3) and piece.values.dtype == np.float32
    assert farthest_from_its_partner(piece.values, points - points.mean(0)) < 2e-3


@pytest.mark.parametrize("options", [{"write_ascii": True}, {"compressed": True}, {}])
def test_every_layout_of_pcd_is_read(tmp_path: Path, options: dict[str, bool]) -> None:
    points = cloud()
    written = open3d.geometry.PointCloud(open3d.utility.Vector3dVector(points))
    assert open3d.io.write_point_cloud(str(tmp_path / "a.pcd"), written, **options)
    (piece,) = read(row(tmp_path / "a.pcd"), PLAIN)
    assert farthest_from_its_partner(piece.values, points - points.mean(0)) < 1e-4


@pytest.mark.parametrize("suffix", [".off", ".ply"])
def test_a_mesh_of_polygons_is_sampled_over_its_whole_surface(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"cube{suffix}"
    if suffix == ".off":
        path.write_text(CUBE)
    else:
        lines = CUBE.splitlines()[3:]
        path.write_text("ply\nformat ascii 1.0\nelement vertex 8\n"
                        "property float x\nproperty float y\nproperty float z\n"
                        "element face 6\nproperty list uchar int vertex_indices\nend_header\n"
                        + "\n".join(lines[:8] + [" ".join(line.split()[:5]) for line in lines[8:]]) + "\n")
    (piece,) = read(row(path), Points(size=(64,), points_per_sample=6000, scale="metres"))
    assert piece.facts["area"] == pytest.approx(6.0) and piece.facts["num_triangles"] == 12
    on_a_face = np.isclose(np.abs(piece.values), 0.5, atol=0.02)
    assert on_a_face.any(axis=1).all()
    per_face = [np.sum(on_a_face[:, axis] & (np.sign(piece.values[:, axis]) == side))
                for axis in range(3) for side in (-1, 1)]
    assert min(per_face) > 850 and max(per_face) < 1300  # 1,000 each, and points near edges count twice


@pytest.mark.parametrize("first", ["OFF 8 6 12", "OFF8 6 12", "OFF\n8 6 12", "OFF\n\n8 6"])
def test_off_counts_are_found_where_real_files_put_them(tmp_path: Path, first: str) -> None:
    path = tmp_path / "cube.off"
    path.write_text(first + "\n" + "\n".join(CUBE.splitlines()[3:]))
    assert read(row(path), PLAIN)[0].facts["num_triangles"] == 12


def test_the_same_bytes_under_another_name_give_the_same_points(tmp_path: Path) -> None:
    for name in ("a.off", "b.off"):
        (tmp_path / name).write_text(CUBE)
    (first,), (second,) = (read(row(tmp_path / name), PLAIN) for name in ("a.off", "b.off"))
    assert np.array_equal(first.values, second.values)


def test_the_first_points_are_a_fair_sample(tmp_path: Path) -> None:
    sweep = np.stack([np.linspace(0, 1, 4000), np.zeros(4000), np.zeros(4000)], 1)  # a scanner's order
    np.save(tmp_path / "sweep.npy", sweep)
    (piece,) = read(row(tmp_path / "sweep.npy"), Points(size=(64,), points_per_sample=4000, scale="metres"))
    assert abs(piece.values[:400, 0].mean()) < 0.05
    assert piece.values[:400, 0].std() == pytest.approx(piece.values[:, 0].std(), rel=0.1)


def test_unit_sphere_is_stored_as_float16_and_the_size_kept_as_a_fact(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", cloud() * 1000)
    (piece,) = read(row(tmp_path / "a.npy"), Points(size=(64,), metres_per_unit=0.001))
    assert piece.values.dtype == np.float16
    assert np.linalg.norm(piece.values.astype(float), axis=1).max() == pytest.approx(1, abs=1e-3)
    np.testing.assert_allclose(np.array(piece.facts["extent"]), np.ptp(cloud(), axis=0), rtol=1e-6)


def test_non_finite_points_are_dropped_and_counted_and_duplicates_kept(tmp_path: Path) -> None:
    points = np.concatenate([cloud(100), cloud(100), np.full((5, 3), np.nan), [[np.inf, 0, 0]]])
    write_ply(tmp_path / "a.ply", points)
    (piece,) = read(row(tmp_path / "a.ply"), PLAIN)
    assert len(piece.values) == 200 and piece.facts["dropped_non_finite"] == 6


def test_y_up_sources_are_turned_and_not_mirrored(tmp_path: Path) -> None:
    points = cloud()
    np.save(tmp_path / "a.npy", points)
    settings = Points(size=(64,), scale="metres", y_up_sources=("cad",))
    (turned,), (plain,) = read(row(tmp_path / "a.npy", "cad"), settings), read(row(tmp_path / "a.npy"), settings)
    np.testing.assert_allclose(turned.values[:, 2], plain.values[:, 1])
    assert np.linalg.det(np.linalg.lstsq(plain.values, turned.values, rcond=None)[0]) == pytest.approx(1)


def test_scenes_are_cut_into_square_tiles_that_together_hold_every_point(tmp_path: Path) -> None:
    scene = np.random.default_rng(0).random((3000, 3)) * [99.9, 59.9, 5] + FAR
    write_las(tmp_path / "scene.las", scene)
    pieces = read(row(tmp_path / "scene.las"), Points(size=(64,), tile_metres=20, scale="metres"))
    assert len({piece.suffix for piece in pieces}) == 15
    assert sum(int(str(piece.facts["num_points"])) for piece in pieces) == 3000
    assert all(max(np.ptp(piece.values[:, :2], axis=0)) <= 20 for piece in pieces)
    with pytest.raises(Refused, match="found no tile of 1 m"):
        read(row(tmp_path / "scene.las"), Points(size=(64,), tile_metres=1))


def test_points_marked_as_noise_are_left_out_unless_asked_for(tmp_path: Path) -> None:
    write_las(tmp_path / "a.las", cloud(), np.repeat([2, 7, 18, 5], 50)[:200] % 32)
    (piece,) = read(row(tmp_path / "a.las"), PLAIN)
    assert len(piece.values) == 100 and piece.facts["dropped_noise"] == 100
    assert len(read(row(tmp_path / "a.las"), Points(size=(64,), drop_noise=False))[0].values) == 200


@pytest.mark.parametrize("whole", [100, 10_000])
def test_a_survey_of_noise_alone_is_refused_in_a_sentence_at_any_size(tmp_path: Path, whole: int,
                                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest, "WHOLE", whole)
    write_las(tmp_path / "a.las", cloud(), np.full(200, 7))
    with pytest.raises(Refused, match="found 0 finite points besides 200 marked as noise .* expected at least"):
        read(row(tmp_path / "a.las"), PLAIN)


def damaged(tmp_path: Path, what: str) -> Path:
    points, path = cloud(), tmp_path / what.split()[0]
    if path.suffix == ".off":
        text = {"cut": "\n".join(CUBE.splitlines()[:12]), "index": CUBE.replace("4 0 3 2 1", "4 0 3 2 99"),
                "word": CUBE.replace("1 1 0\n", "1 one 0\n", 1), "flat": "OFF\n3 1 0\n" + "1 1 1\n" * 3 + "3 0 1 2\n",
                "huge": "OFF\n999999999 1 0\n", "empty": ""}[what.split()[1]]
        path.write_text(text)
        return path
    write_cloud(path, points)
    content = path.read_bytes()
    path.write_bytes({"cut": content[:len(content) * 2 // 3], "huge": content.replace(b"200\n", b"200000000\n"),
                      "other": b"\x89PNG\r\n\x1a\n" + b"0" * 500, "empty": b"",
                      "word": content.replace(b"\n", b"\nten of them\n", 20)}[what.split()[1]])
    return path


@pytest.mark.parametrize("what", [
    "a.off cut", "a.off index", "a.off word", "a.off flat", "a.off huge", "a.off empty", "a.ply cut", "a.ply huge",
    "a.ply other", "a.ply empty", "ascii.ply cut", "ascii.ply huge", "a.pcd cut", "a.pcd huge", "a.pcd other",
    "a.las cut", "a.las other", "a.las empty", "a.laz cut", "a.npy cut", "a.npy other", "a.xyz other", "a.xyz word",
    "a.xyz empty"])
def test_damaged_files_are_refused_with_a_reason_that_quotes_nothing(tmp_path: Path, what: str) -> None:
    path = damaged(tmp_path, what)
    with pytest.raises(Refused) as refusal:
        read(row(path), PLAIN)
    assert not any(quoted in str(refusal.value) for quoted in (str(tmp_path), "ten of them", "one 0"))


def test_pickled_arrays_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{"code": 1}], dtype=object))
    with pytest.raises(Refused, match="NPY: not readable"):
        read(row(tmp_path / "a.npy"), PLAIN)


def test_too_few_points_are_refused_with_both_numbers(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", cloud(10))
    with pytest.raises(Refused, match="found 10 finite points, expected at least 16"):
        read(row(tmp_path / "a.npy"), PLAIN)


def test_points_in_one_place_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones((100, 3)))
    with pytest.raises(Refused, match="all lie in one place"):
        read(row(tmp_path / "a.npy"), PLAIN)


@pytest.mark.parametrize(("scale", "said"), [((1e-6, 1e-6, 30.0), "look like degrees"),
                                             ((1e6, 1e6, 1e6), "metres_per_unit"), ((1.0, 1.0, 1.0), None)])
def test_implausible_units_are_found(tmp_path: Path, scale: tuple[float, ...], said: str | None) -> None:
    np.save(tmp_path / "a.npy", cloud() * scale)
    found = ingest.implausible(read(row(tmp_path / "a.npy"), PLAIN), PLAIN)
    assert found is None if said is None else found is not None and said in found


def test_the_contract_says_what_is_stored(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", cloud())
    for settings in (PLAIN, Points(size=(64,))):
        (piece,) = read(row(tmp_path / "a.npy"), settings)
        contract = ingest.contract(settings)
        assert contract.dtype == piece.values.dtype.name and len(contract.channels) == piece.values.shape[1]


@pytest.mark.parametrize(("message", "said"), [
    ("No module named 'laspy'", r"pip install 'lacuna\[pointcloud\]'"),
    ("libusb-1.0.so.0: cannot open shared object file: No such file or directory",
     r"libusb-1.0.so.0 is missing \(package libusb-1.0-0\).*apt-get install"),
])
def test_a_missing_library_or_system_library_is_said_in_one_sentence(monkeypatch: pytest.MonkeyPatch, message: str,
                                                                     said: str) -> None:
    def fail(name: str) -> None:
        raise ImportError(message)

    monkeypatch.setattr(libraries, "importlib", SimpleNamespace(import_module=fail))
    with pytest.raises(ImportError, match=said):
        libraries.library("open3d")


@pytest.mark.parametrize("wrong", [{"size": (64, 64)}, {"points_per_sample": 8}, {"min_points": 0},
                                   {"metres_per_unit": 0}, {"tile_metres": -1}])
def test_settings_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}: found"):
        Points(**wrong)
