"""Every mesh format gives the same surface, every layout of PLY the same numbers, and no damage more than a refusal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from domains.pointcloud.cloud import Cloud, Mesh
from domains.pointcloud.ingest import Points, read
from domains.pointcloud.obj import read_obj
from domains.pointcloud.ply import read_ply
from domains.pointcloud.stl import read_stl
from domains.sample import Refused
from tests.domains.pointcloud.files import CORNERS, SQUARES, TRIANGLES, row, write_obj, write_off, write_ply, write_stl

SETTINGS = Points(size=(64,), points_per_sample=3000, scale="metres")
CUBES: dict[str, Callable[[Path], None]] = {
    "cube.off": write_off, "cube.obj": write_obj, "relative.obj": lambda path: write_obj(path, relative=True),
    "cube.stl": write_stl, "text.stl": lambda path: write_stl(path, text=True),
    "solid.stl": lambda path: write_stl(path, title=b"solid but binary"), "cube.ply": write_ply,
    "big.ply": lambda path: write_ply(path, "binary_big_endian"), "ascii.ply": lambda path: write_ply(path, "ascii"),
    "mixed.ply": lambda path: write_ply(path, mixed=True),
    "mixed_ascii.ply": lambda path: write_ply(path, "ascii", mixed=True),
    "mixed_big.ply": lambda path: write_ply(path, "binary_big_endian", mixed=True)}


@pytest.mark.parametrize("name", CUBES)
def test_a_cube_is_the_same_cube_in_every_mesh_format(tmp_path: Path, name: str) -> None:
    CUBES[name](tmp_path / name)
    (piece,) = read(row(tmp_path / name), SETTINGS)
    assert piece.facts["area"] == pytest.approx(6.0) and piece.facts["num_triangles"] == 12
    on_a_face = np.isclose(np.abs(piece.values), 0.5, atol=0.03)
    assert on_a_face.any(axis=1).all()
    per_face = [np.sum(on_a_face[:, axis] & (np.sign(piece.values[:, axis]) == side))
                for axis in range(3) for side in (-1, 1)]
    assert min(per_face) > 380 and max(per_face) < 680  # 500 each, and points near edges count twice


@pytest.mark.parametrize("layout", ["ascii", "binary_little_endian", "binary_big_endian"])
def test_clouds_of_every_ply_layout_keep_their_numbers_and_attributes(tmp_path: Path, layout: str) -> None:
    rng = np.random.default_rng(0)
    points, red = rng.normal(size=(50, 3)), rng.integers(0, 256, 50)
    write_ply(tmp_path / "a.ply", layout, faces=False, points=points, extra={
        "red": ("uchar", red), "green": ("uchar", red // 2), "blue": ("uchar", red // 3),
        "scalar_Intensity": ("ushort", 100 * red), "nx": ("float", 0 * red), "ny": ("float", 0 * red + 1),
        "nz": ("float", 0 * red)})
    cloud = read_ply(tmp_path / "a.ply", 1000)
    assert isinstance(cloud, Cloud)
    np.testing.assert_array_equal(cloud.xyz, points)
    np.testing.assert_array_equal(cloud.more["colour"], np.stack([red, red // 2, red // 3], 1))
    np.testing.assert_array_equal(cloud.more["intensity"][:, 0], 100 * red)
    np.testing.assert_array_equal(cloud.more["normals"], np.tile([0, 1, 0], (50, 1)))
    assert cloud.more["colour"].dtype == np.uint8


def test_a_ply_without_faces_is_a_cloud_and_an_obj_without_faces_too(tmp_path: Path) -> None:
    (tmp_path / "a.obj").write_text("\n".join(f"v {x} {y} {z} 1.0" for x, y, z in CORNERS))
    cloud = read_obj(tmp_path / "a.obj", 1000)
    assert isinstance(cloud, Cloud) and np.array_equal(cloud.xyz, CORNERS) and not cloud.more


def test_negative_corners_of_an_obj_count_back_from_the_vertices_before_the_face(tmp_path: Path) -> None:
    lines = []
    for shift in (0, 5):
        lines += [f"v {x + shift} {y} {z}" for x, y, z in CORNERS]
        lines += ["f " + " ".join(str(corner - 8) for corner in face) for face in SQUARES]
    (tmp_path / "a.obj").write_text("\n".join(lines))
    mesh = read_obj(tmp_path / "a.obj", 1000)
    assert isinstance(mesh, Mesh)
    first, second = np.split(mesh.triangles, 2)
    np.testing.assert_array_equal(second, first + 8)
    assert {tuple(sorted(corners)) for corners in first.tolist()} == {tuple(sorted(c)) for c in TRIANGLES.tolist()}


def test_files_that_an_obj_names_are_never_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_obj(tmp_path / "a.obj")
    opened: list[str] = []
    real = Path.open
    monkeypatch.setattr(Path, "open", lambda self, *a, **k: (opened.append(self.name), real(self, *a, **k))[1])
    assert isinstance(read_obj(tmp_path / "a.obj", 1000), Mesh)
    assert set(opened) == {"a.obj"}


@pytest.mark.parametrize(("name", "text", "said"), [
    ("a.obj", "v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 4\n", "not among the 3"),
    ("a.obj", "v 0 0 0\nv 1 0 0\nv 0 1 0\nf 0 1 2\n", "not among the 3"),
    ("a.obj", "v 0 0 0\nv 1 0 0\nv 0 1 0\nf -4 1 2\n", "not among the 3"),
    ("a.obj", "v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2\n", "less than three corners"),
    ("a.obj", "v 0 0 0\nv 1 0 0\nv 0 1 0\nf a b c\n", "do not hold numbers|does not hold numbers|not hold numbers"),
    ("a.obj", "v 0 0\nv 1 0\nf 1 2 1\n", "no three numbers"),
    ("a.obj", "v 0 0 zero\n", "do not hold numbers"),
    ("a.obj", "o nothing\n", "found no vertices"),
    ("a.stl", "solid a\nvertex 0 0 0\nvertex 1 0 0\nendsolid\n", "found 2 corners in 0 triangles"),
    ("a.stl", "solid a\nfacet normal 0 0 0\nvertex 0 0 0\nvertex 1 0 x\nvertex 0 1 0\nendsolid", "no three numbers"),
    ("a.stl", "solid", "does not begin like one"),
    ("a.stl", "x" * 80 + "\xff\xff\xff\x7f", "expected the .* triangles that the header promises"),
    ("a.ply", "ply\nformat ascii 1.0\nelement vertex 3\nproperty float x\nproperty float x\nend_header\n",
     "a property twice"),
    ("a.ply", "ply\nformat ascii 1.0\nelement vertex 2\nproperty float x\nproperty float y\nend_header\n1 2\n3 4\n",
     "names no x, y, z"),
    ("a.ply", "ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nproperty float y\nproperty float z\n"
     "element face 1\nproperty list int int vertex_indices\nend_header\n0 0 0\n999999 0 0 0\n", "longer than the file"),
    ("a.ply", "ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nproperty float y\nproperty float z\n"
     "element face 1\nproperty list int int vertex_indices\nend_header\n0 0 0\n3 0 0 0.5\n", "not among the 1"),
    ("a.ply", "ply\nformat ascii 1.0\nelement vertex 1\nproperty list uchar float x\nend_header\n0\n", "no x, y, z"),
])
def test_what_makes_no_mesh_is_refused_with_a_reason(tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(Refused, match=said):
        read(row(tmp_path / name), SETTINGS)


def test_more_than_max_points_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    few = Points(size=(4,), points_per_sample=10, min_points=4, max_points=5)
    for name in ("cube.off", "cube.obj", "cube.stl", "text.stl", "cube.ply", "ascii.ply"):
        CUBES[name](tmp_path / name)
        with pytest.raises(Refused, match=r"5"):
            read(row(tmp_path / name), few)


def mutated(content: bytes, rng: np.random.Generator) -> bytes:
    """Cut short, overwritten, spliced, or with a header of other numbers."""
    data = bytearray(content)
    kind = rng.integers(5)
    if kind == 0:
        return bytes(data[:rng.integers(len(data))])
    if kind == 1:
        for at in rng.integers(0, len(data), rng.integers(1, 20)):
            data[at] = rng.integers(256)
    elif kind == 2:
        at = int(rng.integers(max(1, min(len(data), 300))))
        data[at:at + 4] = rng.integers(0, 256, 4).astype(np.uint8).tobytes()
    elif kind == 3:
        a, b = sorted(int(at) for at in rng.integers(0, len(data), 2))
        data[a:b] = data[:b - a][::-1]
    else:
        data = bytearray(bytes(data).replace(b"8", str(rng.integers(10**9)).encode(), int(rng.integers(1, 4))))
    return bytes(data)


@pytest.mark.parametrize("name", CUBES)
def test_damaged_meshes_are_read_or_refused_and_nothing_else_ever_happens(tmp_path: Path, name: str) -> None:
    CUBES[name](tmp_path / name)
    content, rng = (tmp_path / name).read_bytes(), np.random.default_rng(len(name))
    settings = Points(size=(16,), points_per_sample=32, min_points=4, max_points=10_000, features=("normals", "colour"))
    outcomes = {"read": 0, "refused": 0}
    for _ in range(60):
        (tmp_path / name).write_bytes(mutated(content, rng))
        try:
            (piece,) = read(row(tmp_path / name), settings)
            assert np.isfinite(piece.values[:, :3]).all()
            outcomes["read"] += 1
        except Refused as refusal:
            assert str(tmp_path) not in str(refusal)
            outcomes["refused"] += 1
    assert outcomes["read"] + outcomes["refused"] == 60 and outcomes["refused"] > 5


def test_binary_stl_reads_what_the_header_promises_and_passes_over_what_follows(tmp_path: Path) -> None:
    write_stl(tmp_path / "a.stl")
    (tmp_path / "a.stl").write_bytes((tmp_path / "a.stl").read_bytes() + b"trailing")
    assert len(read_stl(tmp_path / "a.stl", 1000).triangles) == 12
