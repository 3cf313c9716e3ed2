"""Normals, intensity and colour: kept in one scale whatever the file wrote, unknown where it wrote none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from domains.contract import ContractMismatch, enforce
from domains.pointcloud.ingest import Points, contract, read
from domains.quarantine import fault
from domains.sample import Refused
from tests.domains.pointcloud.files import CORNERS, row, write_obj, write_off, write_ply, write_stl

laspy = pytest.importorskip("laspy")
ALL = Points(size=(16,), points_per_sample=400, min_points=8, scale="metres",
             features=("colour", "normals", "intensity"))
NAMES = ("x", "y", "z", "nx", "ny", "nz", "intensity", "red", "green", "blue")


def write_las(path: Path, points: np.ndarray, **dimensions: np.ndarray) -> None:
    header = laspy.LasHeader(point_format=2, version="1.2")
    header.scales, header.offsets = np.full(3, 0.001), np.floor(points.min(0))
    las = laspy.LasData(header)
    las.x, las.y, las.z = points.T
    for name, values in dimensions.items():
        las[name] = values.astype(np.uint16)
    las.write(path)


def features_of(path: Path, settings: Points = ALL, source: str = "") -> np.ndarray:
    """M 7: normals, intensity, colours, after the checks that the stage makes."""
    (piece,) = read(row(path, source), settings)
    described = contract(settings)
    assert not fault(piece, described.dtype, len(described.channels), 2, described.unknown)
    assert described.names == NAMES
    return piece.values[:, 3:]


def test_without_features_nothing_changes() -> None:
    plain = contract(Points())
    assert plain.names == ("x", "y", "z") and plain.unknown is None


@pytest.mark.parametrize("write", [write_off, write_obj, write_stl, write_ply], ids=["off", "obj", "stl", "ply"])
def test_normals_of_a_mesh_are_those_of_its_faces(tmp_path: Path, write: Any) -> None:
    path = tmp_path / f"a.{write.__name__.removeprefix('write_')}"
    write(path)
    (piece,) = read(row(path), ALL)
    places, normals = piece.values[:, :3], piece.values[:, 3:6]
    np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1, atol=1e-6)
    inside = np.abs(places).max(axis=1) - np.sort(np.abs(places), axis=1)[:, 1] > 0.05  # not near an edge
    side = np.argmax(np.abs(places), axis=1)
    expected = np.eye(3)[side] * np.sign(places[np.arange(len(places)), side])[:, None]
    np.testing.assert_allclose(normals[inside], expected[inside], atol=1e-6)


def test_colours_of_a_mesh_are_mixed_over_its_triangles(tmp_path: Path) -> None:
    write_obj(tmp_path / "a.obj", colours=CORNERS)  # the colour of a corner is its place
    (piece,) = read(row(tmp_path / "a.obj"), ALL)
    np.testing.assert_allclose(piece.values[:, 7:], piece.values[:, :3] - piece.values[:, :3].min(axis=0), atol=0.02)


@pytest.mark.parametrize(("kind", "scale"), [("uchar", 255), ("ushort", 65535), ("ushort", 255), ("float", 1),
                                             ("float", 255)])
@pytest.mark.parametrize("layout", ["ascii", "binary_little_endian"])
def test_colours_are_shares_whatever_type_a_ply_has_them_in(tmp_path: Path, kind: str, scale: int,
                                                            layout: str) -> None:
    shares = np.linspace(0, 1, 40)
    numbers = shares * scale if kind == "float" else np.round(shares * scale)
    write_ply(tmp_path / "a.ply", layout, faces=False, points=np.random.default_rng(0).normal(size=(40, 3)),
              extra=dict.fromkeys(("red", "green", "blue"), (kind, numbers)))
    np.testing.assert_allclose(np.sort(features_of(tmp_path / "a.ply")[:, 4]), shares, atol=1 / 500)


def test_las_intensity_and_colour_are_shares_of_full_scale(tmp_path: Path) -> None:
    points, shares = np.random.default_rng(0).normal(size=(100, 3)), np.linspace(0, 1, 100)
    write_las(tmp_path / "wide.las", points, intensity=shares * 65535, red=shares * 65535, green=shares, blue=shares)
    write_las(tmp_path / "narrow.laz", points, intensity=shares * 4095, red=shares * 255, green=shares, blue=shares)
    wide = features_of(tmp_path / "wide.las")
    narrow = features_of(tmp_path / "narrow.laz", Points(**{**vars(ALL), "full_intensity": 4095.0}))
    for found in (wide, narrow):
        np.testing.assert_allclose(np.sort(found[:, 3]), shares, atol=1e-3)
        np.testing.assert_allclose(np.sort(found[:, 4]), shares, atol=0.005)
        assert np.isnan(found[:, :3]).all()  # LAS has no normals


def test_intensity_and_colour_that_are_zero_everywhere_were_not_recorded(tmp_path: Path) -> None:
    write_las(tmp_path / "a.las", np.random.default_rng(0).normal(size=(100, 3)))
    assert np.isnan(features_of(tmp_path / "a.las")).all()


def test_a_file_without_attributes_is_unknown_in_them_and_keeps_its_points(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.random.default_rng(0).normal(size=(100, 3)))
    assert np.isnan(features_of(tmp_path / "a.npy")).all()


@pytest.mark.parametrize("first", ["//X Y Z R G B Intensity Nx Ny Nz", "# x y z red green blue intensity nx ny nz",
                                   "x,y,z,r,g,b,i,nx,ny,nz", ""])
def test_columns_of_text_are_found_by_their_names_or_as_the_settings_say(tmp_path: Path, first: str) -> None:
    table = np.column_stack([np.random.default_rng(0).normal(size=(50, 3)), np.full((50, 3), [255, 51, 0]),
                             np.full(50, 0.25), np.full((50, 3), [0, 0, 2.0])])
    delimiter = "," if "," in first else " "
    np.savetxt(tmp_path / "a.txt", table, delimiter=delimiter, header=first, comments="")
    told = () if first else ("x", "y", "z", "red", "green", "blue", "intensity", "nx", "ny", "nz")
    found = features_of(tmp_path / "a.txt", Points(**{**vars(ALL), "columns": told}))
    np.testing.assert_allclose(found, np.tile([0, 0, 1, 0.25, 1, 0.2, 0], (50, 1)), atol=1e-6)


def test_columns_of_an_array_are_what_the_settings_say(tmp_path: Path) -> None:
    table = np.random.default_rng(0).random((50, 6)).astype(np.float32)
    np.save(tmp_path / "a.npy", table)
    settings = Points(size=(16,), min_points=8, scale="metres", features=("intensity",),
                      columns=("intensity", "-", "z", "y", "x"))
    (piece,) = read(row(tmp_path / "a.npy"), settings)
    order = np.argsort(piece.values[:, 3])
    expected = table[np.argsort(table[:, 0])]
    np.testing.assert_allclose(piece.values[order, 3], expected[:, 0], rtol=1e-6)
    np.testing.assert_allclose(piece.values[order, 0], expected[:, 4] - table[:, 4].mean(), atol=1e-5)
    with pytest.raises(Refused, match="found 6 columns, expected the 7"):
        read(row(tmp_path / "a.npy"), Points(size=(16,), columns=("x", "y", "z", "-", "-", "-", "red")))


def test_normals_turn_with_a_source_whose_y_points_up(tmp_path: Path) -> None:
    table = np.column_stack([np.random.default_rng(0).normal(size=(50, 3)), np.full((50, 3), [0.0, 1, 0])])
    np.savetxt(tmp_path / "a.xyz", table, header="x y z nx ny nz")
    settings = Points(**{**vars(ALL), "y_up_sources": ("cad",)})
    np.testing.assert_allclose(features_of(tmp_path / "a.xyz", settings, "cad")[:, :3], np.tile([0, 0, 1], (50, 1)))


def test_pcd_keeps_what_it_has(tmp_path: Path) -> None:
    pytest.importorskip("open3d")
    points = np.random.default_rng(0).normal(size=(40, 3))
    fields = ("VERSION 0.7\nFIELDS x y z intensity normal_x normal_y normal_z\nSIZE 4 4 4 4 4 4 4\n"
              "TYPE F F F F F F F\nCOUNT 1 1 1 1 1 1 1\nWIDTH 40\nHEIGHT 1\nVIEWPOINT 0 0 0 1 0 0 0\nPOINTS 40\n"
              "DATA ascii\n")
    table = np.column_stack([points, np.full(40, 0.5), np.full((40, 3), [0, 0, 1.0])])
    (tmp_path / "a.pcd").write_text(fields + "\n".join(" ".join(map(str, line)) for line in table.tolist()) + "\n")
    found = features_of(tmp_path / "a.pcd")
    np.testing.assert_allclose(found[:, :4], np.tile([0, 0, 1, 0.5], (40, 1)), atol=1e-6)
    assert np.isnan(found[:, 4:]).all()


def test_weights_and_data_must_have_the_same_features() -> None:
    plain, rich = contract(Points()), contract(Points(features=("normals",)))
    with pytest.raises(ContractMismatch, match="expected also nx, ny, nz"):
        enforce(plain, rich)
    with pytest.raises(ContractMismatch, match="found nx, ny, nz, expected names among x, y, z"):
        enforce(rich, plain)


@pytest.mark.parametrize("wrong", [{"features": ("normals", "normals")}, {"full_intensity": 0.0},
                                   {"columns": ("x", "y")}, {"columns": ("x", "y", "z", "height")},
                                   {"columns": ("x", "y", "z", "z")}])
def test_settings_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}: found"):
        Points(**wrong)
