"""Numbers in a LAS header that no file of its length can keep are refused before the library believes them."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from domains.pointcloud import las_header
from domains.pointcloud.ingest import Points, read
from domains.sample import Refused
from tests.domains.pointcloud.files import row
from tests.domains.pointcloud.test_chips import write_las

POINTS = np.random.default_rng(0).uniform(0, 40, (3000, 3))
RECORDS, RECORD_LENGTH, START, EXTENDED = 100, 105, 96, 243


def spoilt(folder: Path, ending: str, at: int, packed: bytes) -> Path:
    """A LAS file of 3,000 points with other bytes at one place."""
    write_las(folder / f"a{ending}", POINTS)
    content = bytearray((folder / f"a{ending}").read_bytes())
    content[at:at + len(packed)] = packed
    (folder / f"b{ending}").write_bytes(content)
    return folder / f"b{ending}"


def laszip(path: Path) -> tuple[int, int]:
    """Where the record of LASzip and the table of chunks begin."""
    content = path.read_bytes()
    start = struct.unpack_from("<I", content, START)[0]
    return content.index(b"laszip encoded") + 52, struct.unpack_from("<q", content, start)[0]


@pytest.mark.parametrize("ending", [".las", ".laz"])
def test_four_thousand_million_records_are_not_looked_for(tmp_path: Path, ending: str) -> None:
    path = spoilt(tmp_path, ending, RECORDS, struct.pack("<I", 2**32 - 1))
    with pytest.raises(Refused, match="bytes for records, expected the 231928233930 that the header promises"):
        read(row(path), Points(size=(64,)))


def write(path: Path, version: str, point_format: int) -> None:
    """A LAS file of 3,000 points."""
    laspy = pytest.importorskip("laspy")
    las = laspy.LasData(laspy.LasHeader(point_format=point_format, version=version))
    las.x, las.y, las.z = POINTS.T
    las.write(path)


def test_extended_records_and_points_beyond_the_end_are_refused(tmp_path: Path) -> None:
    for version, point_format, at, packed, says in (
            ("1.4", 6, EXTENDED, struct.pack("<I", 10**6), "extended records"),
            ("1.2", 0, RECORD_LENGTH, b"\xff\xff", "bytes for points")):
        write(tmp_path / "a.las", version, point_format)
        las_header.check(tmp_path / "a.las")
        content = bytearray((tmp_path / "a.las").read_bytes())
        content[at:at + len(packed)] = packed
        (tmp_path / "b.las").write_bytes(content)
        with pytest.raises(Refused, match=says):
            las_header.check(tmp_path / "b.las")


def test_chunks_that_the_decompressor_would_end_the_process_for_are_refused(tmp_path: Path) -> None:
    write_las(tmp_path / "a.laz", POINTS)
    about, table = laszip(tmp_path / "a.laz")
    with pytest.raises(Refused, match="chunks of 2147483648 points, expected at most"):
        read(row(spoilt(tmp_path, ".laz", about + 12, struct.pack("<I", 2**31))), Points(size=(64,)))
    with pytest.raises(Refused, match="found 3000000000 chunks in"):
        read(row(spoilt(tmp_path, ".laz", table + 4, struct.pack("<I", 3 * 10**9))), Points(size=(64,)))
    start = struct.unpack_from("<I", (tmp_path / "a.laz").read_bytes(), START)[0]
    with pytest.raises(Refused, match="table of chunks lies outside"):
        read(row(spoilt(tmp_path, ".laz", start, struct.pack("<q", 10**9))), Points(size=(64,)))


def test_whole_files_of_other_writers_pass(shared_data: Path) -> None:
    surveys = [*shared_data.rglob("*.laz"), *shared_data.rglob("*.las")]
    assert surveys
    for path in surveys:
        las_header.check(path)


def test_a_table_at_the_end_is_found_there(tmp_path: Path) -> None:
    """Writers that cannot go back put where it lies behind it."""
    write_las(tmp_path / "a.laz", POINTS)
    content = bytearray((tmp_path / "a.laz").read_bytes())
    start = struct.unpack_from("<I", content, START)[0]
    table = content[start:start + 8]
    content[start:start + 8] = b"\xff" * 8
    (tmp_path / "b.laz").write_bytes(content + table)
    las_header.check(tmp_path / "b.laz")
    assert len(read(row(tmp_path / "b.laz"), Points(size=(64,)))) == 1
