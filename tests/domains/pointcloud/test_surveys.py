"""Files of surveys that look alike and mean something else: feet, other columns, rounded or cut off coordinates."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from domains.pointcloud.ingest import Points, read
from domains.sample import Refused
from tests.domains.pointcloud.files import CORNERS, row, write_stl

METRIC = Points(size=(16,), points_per_sample=512, min_points=8, scale="metres")
SHAPE = Points(size=(16,), points_per_sample=512, min_points=8)
FEET = 1200 / 3937
MAP = ('PROJCS["{name}",GEOGCS["NAD83",DATUM["d",SPHEROID["s",6378137,298.257]],PRIMEM["Greenwich",0],'
       'UNIT["degree",0.0174532925199433]],PROJECTION["Lambert_Conformal_Conic_2SP"],UNIT["u",{unit!r}],'
       'AUTHORITY["EPSG","2277"]]')
NEWER = ('PROJCRS["m",BASEGEOGCRS["b",DATUM["d",ELLIPSOID["e",6378137,298.2,LENGTHUNIT["metre",1]]]],'
         'CONVERSION["c",METHOD["Transverse Mercator"],PARAMETER["False easting",500000,LENGTHUNIT["metre",1]]],'
         'CS[Cartesian,2],AXIS["(E)",east,ORDER[1],LENGTHUNIT["foot",0.3048]],'
         'AXIS["(N)",north,ORDER[2],LENGTHUNIT["foot",0.3048]],ID["EPSG",2277]]')


def survey(num: int = 300) -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 100, (num, 3)) + [400_000, 5_300_000, 100]


def las(path: Path, wkt: str = "", keys: dict[int, int] | None = None) -> Path:
    laspy = pytest.importorskip("laspy")
    header = laspy.LasHeader(point_format=6, version="1.4")
    header.scales, header.offsets = np.full(3, 0.01), survey().mean(axis=0)
    if wkt:
        header.vlrs.append(laspy.vlrs.known.WktCoordinateSystemVlr(wkt))
    if keys:
        record = struct.pack(f"<{4 + 4 * len(keys)}H", 1, 1, 0, len(keys), *(
            number for key, value in keys.items() for number in (key, 0, 1, value)))
        header.vlrs.append(laspy.VLR("LASF_Projection", 34735, "", record))
    points = laspy.LasData(header)
    points.x, points.y, points.z = survey().T
    points.write(path)
    return path


@pytest.mark.parametrize(("told", "metres"), [
    ({"wkt": MAP.format(name="m", unit=FEET)}, FEET), ({"wkt": NEWER}, 0.3048),
    ({"keys": {3072: 2277, 3076: 9003}}, FEET), ({"keys": {3072: 32633, 3076: 9001}}, 1.0),
    ({"wkt": MAP.format(name="m", unit=1)}, 1.0)])
def test_a_survey_in_another_unit_than_the_one_set_is_refused_where_lengths_count(tmp_path: Path, told: dict[str, Any],
                                                                                  metres: float) -> None:
    path = las(tmp_path / "a.las", **told)
    other = 1.0 if metres != 1 else FEET
    (piece,) = read(row(path), Points(size=(16,), min_points=8, scale="metres", metres_per_unit=metres))
    assert max(piece.facts["extent"]) == pytest.approx(100 * metres, rel=0.02)  # type: ignore[type-var, arg-type]
    for settings in (Points(size=(16,), min_points=8, scale="metres", metres_per_unit=other),
                     Points(size=(16,), min_points=8, tile_metres=50, metres_per_unit=other)):
        with pytest.raises(Refused, match="LAS: found a unit of .* Remedy: set metres_per_unit"):
            read(row(path), settings)
    read(row(path), Points(size=(16,), min_points=8, metres_per_unit=other))  # scale is taken out


def test_degrees_and_heights_in_another_unit_are_no_shape(tmp_path: Path) -> None:
    degrees = 'GEOGCS["g",DATUM["d",SPHEROID["s",6378137,298.257]],PRIMEM["p",0],UNIT["degree",0.0174532925199433]]'
    heights = f'COMPD_CS["c",{MAP.format(name="m", unit=1)},VERT_CS["v",VERT_DATUM["d",2005],UNIT["ft",{FEET!r}]]]'
    for n, (told, reason) in enumerate([({"wkt": degrees}, "degrees"), ({"keys": {2048: 4326}}, "degrees"),
                                        ({"wkt": heights}, "heights"),
                                        ({"keys": {3072: 32633, 3076: 9001, 4099: 9002}}, "heights")]):
        with pytest.raises(Refused, match=reason):
            read(row(las(tmp_path / f"{n}.las", **told)), SHAPE)  # type: ignore[arg-type]


def text(path: Path, first: str = "", columns: str = "xyz", sep: str = ",") -> Path:
    numbers = dict(zip("xyz", survey().T, strict=True)) | {"i": np.arange(300.0), "t": np.full(300, 7.0)}
    lines = [sep.join(f"{numbers[name][k]:.3f}" for name in columns) for k in range(300)]
    path.write_bytes((first + "\n".join(lines) + "\n").encode())
    return path


@pytest.mark.parametrize(("first", "columns", "sep"), [
    ("", "xyz", "\t"), ("x;y;z\n", "xyz", ";"), ("\ufeff", "xyz", ","), ("\ufeffX,Y,Z\n", "xyz", ","),
    ("id,X,Y,Z\n", "ixyz", ","), ("# made by hand\nid,y,x,z\n", "iyxz", ","), ("//t X Y Z\n", "txyz", " "),
    ("PointID,Easting,Northing,Elevation\n", "ixyz", ","), ('"Z","Y","X"\n', "zyx", ",")])
def test_text_is_read_by_the_names_of_its_columns_and_to_its_first_point(tmp_path: Path, first: str, columns: str,
                                                                        sep: str) -> None:
    (piece,) = read(row(text(tmp_path / "a.txt", first, columns, sep)), METRIC)
    expected = survey().round(3)
    assert piece.facts["num_points"] == 300
    np.testing.assert_allclose(piece.facts["extent"], np.ptp(expected, axis=0), atol=1e-6)  # type: ignore[arg-type]


def test_a_line_of_names_that_are_not_understood_is_refused_and_the_setting_helps(tmp_path: Path) -> None:
    path = text(tmp_path / "a.txt", "nr,Rechtswert,Hochwert,NHN\n", "ixyz")
    with pytest.raises(Refused, match="names columns, but not x, y and z.* Remedy: say under `columns`"):
        read(row(path), METRIC)
    told = Points(size=(16,), min_points=8, scale="metres", columns=("-", "x", "y", "z"))
    (piece,) = read(row(path), told)
    np.testing.assert_allclose(piece.facts["extent"], np.ptp(survey(), axis=0), atol=2e-3)  # type: ignore[arg-type]


@pytest.mark.parametrize("content", ["1,5 2,5 3,5\n", "300\n1 2 3\n", "1 2 3\n4 5"])
def test_lines_that_are_no_three_numbers_are_answered_with_what_may_be_wrong(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.xyz").write_text(content)
    with pytest.raises(Refused, match="without 3 numbers .* Remedy"):
        read(row(tmp_path / "a.xyz"), METRIC)


def test_coordinates_that_32_bits_have_rounded_to_a_grid_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "rounded.npy", survey().astype(np.float32))
    with pytest.raises(Refused, match="32 bits, which lie 0.5 apart"):
        read(row(tmp_path / "rounded.npy"), METRIC)
    np.save(tmp_path / "fine.npy", survey())
    np.save(tmp_path / "near.npy", (survey() - [400_000, 5_300_000, 0]).astype(np.float32))
    np.save(tmp_path / "voxels.npy", np.argwhere(np.ones((8, 8, 8))).astype(np.float32))
    np.save(tmp_path / "wide.npy", (survey() * [1, 1, 1] + np.arange(300)[:, None] * [9, 9, 0]).astype(np.float32))
    for name in ("fine", "near", "voxels", "wide"):
        read(row(tmp_path / f"{name}.npy"), METRIC)


def test_a_text_mesh_that_was_cut_off_is_refused(tmp_path: Path) -> None:
    write_stl(tmp_path / "a.stl", text=True)
    whole = (tmp_path / "a.stl").read_text()
    for end, reason in ((whole.index("endsolid"), "ends early"), (whole.index("facet", len(whole) // 2), "ends early"),
                        (whole.rindex("vertex"), "35 corners in 12 triangles")):
        (tmp_path / "a.stl").write_text(whole[:end])
        with pytest.raises(Refused, match=reason):
            read(row(tmp_path / "a.stl"), SHAPE)
    (tmp_path / "a.stl").write_text(whole.replace("solid cube", "solid") * 2)  # two bodies, without names
    assert read(row(tmp_path / "a.stl"), SHAPE)[0].facts["area"] == pytest.approx(12.0)


@pytest.mark.parametrize(("element", "reason"), [
    ("element tristrips 1\nproperty list int int vertex_indices", "strips"),
    ("element face 1\nproperty list int int corners", "without a list named vertex_indices")])
def test_a_ply_whose_faces_are_told_otherwise_is_not_taken_for_a_cloud(tmp_path: Path, element: str,
                                                                      reason: str) -> None:
    header = ("ply\nformat binary_little_endian 1.0\nelement vertex 8\nproperty float x\nproperty float y\n"
              f"property float z\n{element}\nend_header\n")
    (tmp_path / "a.ply").write_bytes(header.encode() + CORNERS.astype("<f4").tobytes()
                                     + struct.pack("<8i", 7, 0, 1, 2, 3, 4, 5, 6))
    with pytest.raises(Refused, match=reason):
        read(row(tmp_path / "a.ply"), SHAPE)
