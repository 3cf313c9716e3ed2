"""Chips of a scene can be put back on the map, are read in bounded memory, and are found where surveys overlap."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from domains import duplicates
from domains.pointcloud import ingest
from domains.pointcloud.chips import Chips
from domains.pointcloud.cloud import Cloud
from domains.pointcloud.dataset import on_the_map
from domains.pointcloud.georeference import epsg_of
from domains.pointcloud.ingest import Points, read
from domains.sample import Refused
from tests.domains.pointcloud.files import row
from tests.domains.test_duplicates import write

laspy = pytest.importorskip("laspy")

CORNER = np.array([436_980.0, 5_402_960.0, 240.0])
UTM = ('PROJCS["NAD83 / UTM zone 17N [odd]",GEOGCS["NAD83",DATUM["North_American_Datum_1983",SPHEROID["GRS 1980",'
       '6378137,298.257222101,AUTHORITY["EPSG","7019"]],AUTHORITY["EPSG","6269"]],AUTHORITY["EPSG","4269"]],'
       'PROJECTION["Transverse_Mercator"],UNIT["metre",1,AUTHORITY["EPSG","9001"]],AUTHORITY["EPSG","26917"]]')
COMPOUND = f'COMPD_CS["both",{UTM},VERT_CS["NAVD88",AUTHORITY["EPSG","5703"]],AUTHORITY["EPSG","9999"]]'
WKT2 = ('PROJCRS["WGS 84 / UTM zone 33N",BASEGEOGCRS["WGS 84",DATUM["x",ELLIPSOID["y",1,2]],ID["EPSG",4326]],'
        'CONVERSION["z",ID["EPSG",16033]],CS[Cartesian,2],ID["EPSG",32633]]')


def scene(num: int = 4000, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((num, 3)) * [79.9, 59.9, 8] + CORNER


def write_las(path: Path, points: np.ndarray, epsg: int = 0, intensity: np.ndarray | None = None) -> None:
    header = laspy.LasHeader(point_format=3, version="1.2")
    header.scales, header.offsets = np.full(3, 0.001), np.floor(points.min(0))
    if epsg:
        keys = laspy.vlrs.known.GeoKeyDirectoryVlr()
        keys.geo_keys_header.number_of_keys = 1
        key = laspy.vlrs.known.GeoKeyEntryStruct()
        key.id, key.tiff_tag_location, key.count, key.value_offset = 3072, 0, 1, epsg
        keys.geo_keys = [key]
        header.vlrs.append(keys)
    las = laspy.LasData(header)
    las.x, las.y, las.z = points.T
    if intensity is not None:
        las.intensity = intensity.astype(np.uint16)
    las.write(path)


@pytest.mark.parametrize(("scale", "metres_per_unit", "within"), [("metres", 1.0, 0.002), ("metres", 0.3048, 0.002),
                                                                  ("unit_sphere", 1.0, 0.01)])
def test_every_point_of_every_chip_is_put_back_on_the_map_to_a_centimetre(
        tmp_path: Path, scale: str, metres_per_unit: float, within: float) -> None:
    points = scene()
    write_las(tmp_path / "a.laz", points, epsg=26917)
    settings = Points(size=(16,), min_points=8, tile_metres=20 * metres_per_unit, scale=scale,
                      metres_per_unit=metres_per_unit)
    pieces = read(row(tmp_path / "a.laz"), settings)
    assert len(pieces) == 12 and all(piece.facts["epsg"] == 26917 for piece in pieces)
    back = np.concatenate([on_the_map(piece.values, piece.facts) for piece in pieces])
    assert len(back) == len(points)
    order, wanted = np.lexsort(np.round(back[:, ::-1], 1).T), np.lexsort(np.round(points[:, ::-1], 1).T)
    nearest = [np.abs(back[i:i + 1] - points).max(axis=1).min() for i in range(0, len(back), 37)]
    assert max(nearest) < within and len(order) == len(wanted)
    for piece in pieces:
        left, bottom, right, top = (float(edge) for edge in piece.facts["bounds"])
        own = on_the_map(piece.values, piece.facts)
        np.testing.assert_allclose([left, bottom, right, top], [*own[:, :2].min(0), *own[:, :2].max(0)], atol=0.02)


def test_a_whole_las_file_keeps_its_place_but_no_footprint(tmp_path: Path) -> None:
    points = scene(500)
    write_las(tmp_path / "a.las", points, epsg=26917)
    (piece,) = read(row(tmp_path / "a.las"), Points(size=(16,), scale="metres"))
    back = on_the_map(piece.values, piece.facts)
    assert np.abs(np.sort(back[:, 0]) - np.sort(points[:, 0])).max() < 0.002
    assert piece.facts["epsg"] == 26917 and "bounds" not in piece.facts


def test_a_cloud_without_a_map_has_no_place_on_one(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", scene(100))
    (piece,) = read(row(tmp_path / "a.npy"), Points(size=(16,)))
    with pytest.raises(ValueError, match="found no `origin`"):
        on_the_map(piece.values, piece.facts)


def test_two_surveys_of_one_place_are_cut_alike_and_their_overlap_is_found(tmp_path: Path) -> None:
    facts = []
    for name, shift in (("first", 0), ("second", 40)):
        write_las(tmp_path / f"{name}.las", scene(seed=shift) + [shift, 0, 0], epsg=26917)
        facts.append([piece.facts for piece in read(row(tmp_path / f"{name}.las"),
                                                    Points(size=(16,), min_points=8, tile_metres=20, scale="metres"))])
    first, second = ({tuple(fact["tile"]) for fact in some} for some in facts)
    assert len(first & second) == 6  # 40 of 80 m, in three rows of 20 m
    sides = np.repeat([0, 2], [len(facts[0]), len(facts[1])])
    found = {(int(min(a, b)), int(max(a, b)) - len(facts[0])) for firsts, seconds, _ in
             duplicates.overlaps([*facts[0], *facts[1]], sides) for a, b in zip(firsts, seconds, strict=True)}
    same = {(i, j) for i, one in enumerate(facts[0]) for j, other in enumerate(facts[1])
            if one["tile"] == other["tile"]}
    assert found == same
    splits = ["train"] * len(facts[0]) + ["test"] * len(facts[1])
    samples = list(np.random.default_rng(0).normal(0, 1, (len(splits), 16, 3)).astype(np.float32))
    (tmp_path / "prepared").mkdir()
    leaks = duplicates.find(write(tmp_path / "prepared", samples, splits, [*facts[0], *facts[1]], "points"), near=2)
    assert {(leak.a, leak.b - len(facts[0])) for leak in leaks if leak.what == "overlap"} == same


def test_chips_do_not_depend_on_how_a_file_is_portioned_but_for_the_draw(monkeypatch: pytest.MonkeyPatch,
                                                                        tmp_path: Path) -> None:
    write_las(tmp_path / "a.las", scene())
    settings = Points(size=(16,), min_points=8, tile_metres=20, scale="metres")  # every chip keeps all its points
    whole = read(row(tmp_path / "a.las"), settings)
    monkeypatch.setattr(ingest, "PORTION", 301)
    for one, other in zip(whole, read(row(tmp_path / "a.las"), settings), strict=True):
        assert one.suffix == other.suffix and one.facts["num_points"] == other.facts["num_points"]
        assert one.facts["bounds"] == other.facts["bounds"] and one.facts["extent"] == other.facts["extent"]
        np.testing.assert_allclose(np.sort(one.values[:, 2]), np.sort(other.values[:, 2]), atol=1e-5)


def test_a_chip_keeps_a_fair_draw_and_never_more_than_its_limit() -> None:
    chips = Chips(10.0, 200, np.random.default_rng(0))
    rng, most = np.random.default_rng(1), 0
    for step in range(50):  # a scanner's order: time runs along x within the chip at 0, the chip at 1 is sparse
        x = np.concatenate([np.full(500, step / 5), [10 + step / 5]])
        chips.add(Cloud(np.column_stack([x, rng.random(501), rng.random(501)]), {"intensity": x[:, None]}))
        most = max(most, chips.num_held)
    (first, extent, dense), (second, _, sparse) = chips.chips()
    assert (first, second) == ((0, 0), (1, 0)) and extent.count == 25_000
    assert len(dense.xyz) == 200 and len(sparse.xyz) == 50
    assert abs(dense.xyz[:, 0].mean() - 4.9) < 0.8  # a draw that favoured either end would be far off
    np.testing.assert_array_equal(dense.more["intensity"][:, 0], dense.xyz[:, 0])
    assert most <= 350  # of 25,050


@pytest.mark.parametrize(("side", "width"), [(10.0, 60.0), (0.5, 300.0), (0.0, 10.0)])  # few cells; many
def test_each_chip_keeps_the_lowest_of_all_lots_in_their_order(side: float, width: float) -> None:
    points = np.random.default_rng(3).random((9000, 3)) * [width, width, 5] - [width / 3, 0, 0]
    chips, draw, lots = Chips(side, 40, np.random.default_rng(7)), np.random.default_rng(7), []
    for portion in np.split(points, range(1300, 9000, 1300)):
        chips.add(Cloud(portion, {"intensity": portion[:, :1]}))
        lots.append(draw.integers(0, 2**32, len(portion)))
    drawn, cells = np.concatenate(lots), np.floor(points[:, :2] / side).astype(int) if side else None
    given = list(chips.chips())
    expected_places = {(0, 0)} if cells is None else set(map(tuple, cells.tolist()))
    assert [place for place, _, _ in given] == sorted(expected_places)
    for place, extent, cloud in given:
        own = np.arange(9000) if cells is None else np.flatnonzero((cells == place).all(axis=1))
        assert extent.count == len(own) and np.array_equal(extent.high, points[own].max(axis=0))
        expected = points[own[np.argsort(drawn[own], kind="stable")][:40]]
        assert np.array_equal(cloud.xyz, expected) and np.array_equal(cloud.more["intensity"], expected[:, :1])


def test_very_large_files_are_thinned_while_they_are_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    points = scene()
    write_las(tmp_path / "a.las", points, intensity=np.full(4000, 65535))
    monkeypatch.setattr(ingest, "WHOLE", 1000)
    monkeypatch.setattr(ingest, "PORTION", 500)
    (piece,) = read(row(tmp_path / "a.las"), Points(size=(16,), points_per_sample=300, scale="metres",
                                                    features=("intensity",)))
    assert piece.values.shape == (300, 4) and piece.facts["num_points"] == 4000 and np.all(piece.values[:, 3] == 1)
    np.testing.assert_allclose(np.array(piece.facts["extent"]), np.ptp(points, axis=0), atol=0.002)


def test_coordinates_too_far_out_for_the_grid_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.random.default_rng(0).random((100, 3)) * 1e300)
    with pytest.raises(Refused, match="too far out"):
        read(row(tmp_path / "a.npy"), Points(size=(16,), tile_metres=1))


def record(**fields: object) -> SimpleNamespace:
    return SimpleNamespace(**fields)


def key(name: int, value: int, location: int = 0) -> SimpleNamespace:
    return record(id=name, tiff_tag_location=location, value_offset=value)


@pytest.mark.parametrize(("records", "code"), [
    ([record(string=UTM)], 26917), ([record(string=COMPOUND)], 26917), ([record(string=WKT2)], 32633),
    ([record(string='GEOGCS["WGS 84",DATUM["d",AUTHORITY["EPSG","6326"]],AUTHORITY["EPSG","4326"]]')], 4326),
    ([record(string='PROJCS["mine",GEOGCS["NAD83",AUTHORITY["EPSG","4269"]]]')], None),
    ([record(string="LOCAL_CS[]"), record(geo_keys=[key(1024, 1), key(3072, 26917)])], 26917),
    ([record(geo_keys=[key(2048, 4269), key(3072, 32767)])], 4269), ([record(geo_keys=[key(3072, 5, 34737)])], None),
    ([record(string="[" * 70_000)], None), ([record(string='PROJCS["' + "[" * 9)], None), ([], None)])
def test_the_code_of_the_map_is_found_where_las_files_have_it(records: list[SimpleNamespace], code: int | None) -> None:
    assert epsg_of(records) == code
