"""What a LAS or LAZ file promises in numbers, checked against how long it is, before its library sees it.

laspy reads as many records as the header names, also beyond the end of the file: four thousand million of none take
hours. Its decompressor takes memory for as many chunks, and for chunks of as many points, as the file says, and ends
the process where there is none.

Source: ASPRS, LAS 1.4 R15; Isenburg 2013, "LASzip: lossless compression of LiDAR data", and laz-rs for the layout.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import IO

from domains.sample import Refused

FIRST, RECORD, LONG_RECORD, LASZIP = 227, 54, 60, 34
"""Bytes of the header that all versions have, of a record's head, of an extended one's, of LASzip's record at least."""
COMPRESSED = 0xC0
"""Either of these bits in the number of the point format."""
CHUNKED = (2, 3)
"""Ways of LASzip that cut the points into chunks."""
VARIABLE = 2**32 - 1
"""Points of a chunk, where each chunk has its own number."""
MOST_IN_CHUNK = 10_000_000
"""Points of a chunk, for which memory is taken however few there are. Writers cut after 50,000."""


def check(path: Path) -> None:
    """Refuse a file that cannot hold what its numbers say. What is no LAS at all is left to the library."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(375)
        if len(head) < FIRST or head[:4] != b"LASF":
            return
        of_header, start, records, kind, length = struct.unpack_from("<HIIBH", head, 94)
        _require("records", RECORD * records, min(size, start) - of_header)
        if head[25] >= 4 and len(head) >= 247:
            _require("extended records", LONG_RECORD * struct.unpack_from("<I", head, 243)[0], size - start)
        if kind & COMPRESSED:
            _check_chunks(file, size, of_header, start, records)
        else:
            points = struct.unpack_from("<I", head, 107)[0]
            _require("points", points * length, size - start)


def _require(what: str, promised: int, found: int) -> None:
    if promised > max(found, 0):
        raise Refused(f"LAS: found {max(found, 0)} bytes for {what}, expected the {promised} that the header promises")


def _check_chunks(file: IO[bytes], size: int, at: int, start: int, records: int) -> None:
    """LASzip's record says how the points are cut, and a table before or behind them how many chunks there are."""
    for _ in range(records):
        file.seek(at)
        head = file.read(RECORD)
        if len(head) < RECORD:
            return
        body = struct.unpack_from("<H", head, 20)[0]
        if head[2:18].rstrip(b"\0") == b"laszip encoded":
            about = file.read(min(body, LASZIP))
            break
        at += RECORD + body
    else:
        return
    if len(about) < LASZIP or struct.unpack_from("<H", about)[0] not in CHUNKED:
        return
    points = struct.unpack_from("<I", about, 12)[0]
    if points != VARIABLE and points > MOST_IN_CHUNK:
        raise Refused(f"LAS: found chunks of {points} points, expected at most {MOST_IN_CHUNK}")
    file.seek(start)
    table = int.from_bytes(file.read(8), "little", signed=True)
    if table == -1:  # a writer that could not go back has put it at the end
        file.seek(-8, os.SEEK_END)
        table = int.from_bytes(file.read(8), "little", signed=True)
    if not 0 < table <= size - 8:
        raise Refused("LAS: its table of chunks lies outside the file")
    file.seek(table + 4)
    chunks = int.from_bytes(file.read(4), "little")
    if chunks > size:
        raise Refused(f"LAS: found {chunks} chunks in {size} bytes, expected less")
