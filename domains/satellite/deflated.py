"""Are the deflated blocks of a TIFF whole? Each ends in a checksum, which GDAL's decoder does not reach: of 150 files
with one damaged byte it read 14 without complaint, with other numbers in them. Written after TIFF 6.0 and BigTIFF.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import IO, NamedTuple

from domains.sample import Refused

DEFLATE = (8, 32946)
"""Compression tags of zlib streams: Adobe's number and the old one."""
SUBFILE, COMPRESSION, STRIPS, STRIP_BYTES, TILES, TILE_BYTES = 254, 259, 273, 279, 324, 325
WANTED = (SUBFILE, COMPRESSION, STRIPS, STRIP_BYTES, TILES, TILE_BYTES)
REDUCED = 1
"""Bit of SUBFILE: an overview, which is never read here."""
TYPES = {3: "H", 4: "I", 16: "Q"}
"""Field types that offsets and counts may have: 16, 32 and 64 bits."""
MOST_BYTES = 2**34
"""Of all blocks together, so that a directory cannot name one block a million times. 16 GB inflate in a minute."""
MAX_DIRECTORIES = 64
"""An image, its mask and as many overviews as halving can make."""


class Form(NamedTuple):
    """How a file writes its numbers."""

    order: str
    """"<" or ">"."""
    big: bool
    """BigTIFF: offsets of 64 bits."""


def check(path: Path, most: int) -> None:
    """Refuse a TIFF of which a deflated block is damaged. Other compressions have no checksum and pass.

    Args:
        most: bytes that one block may inflate to.
    """
    try:
        with path.open("rb") as stream:
            start = stream.read(16)
            form = Form("<" if start[:2] == b"II" else ">", start[2:4] in (b"+\0", b"\0+"))
            at = struct.unpack(form.order + ("Q" if form.big else "I"), start[8:16] if form.big else start[4:8])[0]
            for _ in range(MAX_DIRECTORIES):
                if at == 0:
                    return
                found, at = _directory(stream, at, form)
                if found.get(COMPRESSION, [0])[0] in DEFLATE and not found.get(SUBFILE, [0])[0] & REDUCED:
                    _check_blocks(stream, found, most)
    except struct.error as error:
        raise Refused("GTiff could not be read: its directory of blocks ends early; the file is damaged.") from error


def _directory(stream: IO[bytes], at: int, form: Form) -> tuple[dict[int, list[int]], int]:
    """The wanted tags of one directory, and where the next one begins."""
    head, entry, offset = ("Q", "HHQ", "Q") if form.big else ("H", "HHI", "I")
    size = struct.calcsize(form.order + offset)
    stream.seek(at)
    (count,) = struct.unpack(form.order + head, stream.read(struct.calcsize(form.order + head)))
    length = struct.calcsize(form.order + entry) + size
    body = stream.read(min(count, 65_536) * length + size)
    found: dict[int, list[int]] = {}
    for i in range(min(count, 65_536)):
        field = body[i * length:(i + 1) * length]
        tag, kind, many = struct.unpack(form.order + entry, field[:-size])
        if tag in WANTED and kind in TYPES:
            width = struct.calcsize(form.order + TYPES[kind]) * many
            inline = field[-size:]
            if width > size:
                stream.seek(struct.unpack(form.order + offset, inline)[0])
                inline = stream.read(width)
            found[tag] = list(struct.unpack(f"{form.order}{many}{TYPES[kind]}", inline[:width]))
    return found, struct.unpack(form.order + offset, body[-size:])[0]


def _check_blocks(stream: IO[bytes], found: dict[int, list[int]], most: int) -> None:
    total = 0
    offsets, sizes = found.get(TILES) or found.get(STRIPS, []), found.get(TILE_BYTES) or found.get(STRIP_BYTES, [])
    for offset, size in zip(offsets, sizes, strict=False):
        if size == 0:  # a block of a sparse file that was never written
            continue
        stream.seek(offset)
        inflater = zlib.decompressobj()
        try:
            total += len(inflater.decompress(stream.read(size), most))
        except zlib.error as error:
            raise Refused("GTiff could not be decoded (a block's checksum or compression is wrong); the file is "
                          "damaged.") from error
        if total > MOST_BYTES:
            raise Refused(f"its blocks hold more than {MOST_BYTES} bytes. Remedy: cut the scene into several files.")
        if not inflater.eof:
            raise Refused("GTiff could not be decoded (a block ends early); the file is damaged.")
