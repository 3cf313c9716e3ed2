"""Are the deflated blocks of a TIFF whole? Each ends in a checksum, which GDAL's decoder does not reach: of 150 files
with one damaged byte it read 14 without complaint, with other numbers in them. Written after TIFF 6.0 and BigTIFF.

Of an image that GDAL has decoded the checksums are made from its pixels, which takes a tenth of inflating its blocks
again. Where one is another, or pixels do not tell what stood in a block, the blocks are inflated, and that decides. So
damage passes that changes no pixel: where a block goes on behind its last one.

Legend: C bands of the file, H W its rows and columns.
"""

from __future__ import annotations

import os
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from domains.sample import Refused

DEFLATE = (8, 32946)
"""Compression tags of zlib streams: Adobe's number and the old one."""
SUBFILE, COMPRESSION, STRIPS, STRIP_BYTES, TILES, TILE_BYTES = 254, 259, 273, 279, 324, 325
WIDTH, HEIGHT, BITS, ROWS_PER_STRIP, PLANES, PREDICTOR, TILE_WIDTH, TILE_HEIGHT = 256, 257, 258, 278, 284, 317, 322, 323
LAYOUT = (WIDTH, HEIGHT, BITS, ROWS_PER_STRIP, PLANES, PREDICTOR, TILE_WIDTH, TILE_HEIGHT)
WANTED = (SUBFILE, COMPRESSION, STRIPS, STRIP_BYTES, TILES, TILE_BYTES, *LAYOUT)
APART = 2
"""Of PLANES: each band in blocks of its own. 1: the bands of a pixel side by side."""
DIFFERENCES = 2
"""Of PREDICTOR: a block holds what each number differs by from the one to its left; below, the numbers themselves."""
CHECKSUM_BYTES = 4
REDUCED = 1
"""Bit of SUBFILE: an overview, which is never read here."""
TYPES = {3: "H", 4: "I", 16: "Q"}
"""Field types that offsets and counts may have: 16, 32 and 64 bits."""
MOST_BYTES = 2**34
"""Of all blocks together, so that a directory cannot name one block a million times. 16 GB inflate in a minute."""
MAX_DIRECTORIES = 64
"""An image, its mask and as many overviews as halving can make."""


NATIVE = "<" if sys.byteorder == "little" else ">"


class Form(NamedTuple):
    """How a file writes its numbers."""

    order: str
    """"<" or ">"."""
    big: bool
    """BigTIFF: offsets of 64 bits."""


def check(path: Path, most: int, decoded: Callable[[], np.ndarray | None] = lambda: None) -> bool:
    """Refuse a TIFF of which a deflated block is damaged. Other compressions have no checksum and pass.

    Args:
        most: bytes that one block may inflate to.
        decoded: gives the first image, C H W, all bands as GDAL decodes them; None where they cannot be had.

    Returns:
        Whether these pixels are what the checksums say.
    """
    vouched = False
    try:
        with path.open("rb") as stream:
            start = stream.read(16)
            form = Form("<" if start[:2] == b"II" else ">", start[2:4] in (b"+\0", b"\0+"))
            at = struct.unpack(form.order + ("Q" if form.big else "I"), start[8:16] if form.big else start[4:8])[0]
            for number in range(MAX_DIRECTORIES):
                if at == 0:
                    break
                found, at = _directory(stream, at, form)
                if found.get(COMPRESSION, [0])[0] in DEFLATE and not found.get(SUBFILE, [0])[0] & REDUCED:
                    layout = _layout(found) if number == 0 else None
                    pixels = None if layout is None else decoded()
                    holds = layout is not None and pixels is not None and _hold(stream, layout, form, pixels)
                    vouched |= holds
                    if not holds:
                        _check_blocks(stream, found, most)
    except struct.error as error:
        raise Refused("GTiff could not be read: its directory of blocks ends early; the file is damaged.") from error
    return vouched


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
                if tag in LAYOUT and len(inline) < width:
                    continue  # then pixels do not tell what stood in the blocks
            found[tag] = list(struct.unpack(f"{form.order}{many}{TYPES[kind]}", inline[:width]))
    return found, struct.unpack(form.order + offset, body[-size:])[0]


def _blocks(found: dict[int, list[int]]) -> tuple[list[int], list[int]]:
    """Where the blocks lie, and the bytes of each."""
    return found.get(TILES) or found.get(STRIPS, []), found.get(TILE_BYTES) or found.get(STRIP_BYTES, [])


class Layout(NamedTuple):
    """How an image is cut into blocks."""

    shape: tuple[int, int]
    """H W."""
    block: tuple[int, int]
    """Rows and columns."""
    apart: bool
    """Each band in blocks of its own."""
    differences: bool
    bits: int
    """Of a number."""
    offsets: list[int]
    sizes: list[int]


def _layout(found: dict[int, list[int]]) -> Layout | None:
    """None where pixels do not tell what stood in the blocks: tiles reach beyond the image, and GDAL does not give
    their margin; a predictor of floats; blocks that are missing."""
    height, width, bits, predictor = (found.get(tag, [0]) for tag in (HEIGHT, WIDTH, BITS, PREDICTOR))
    apart, tiled = found.get(PLANES) == [APART], TILES in found
    down = (found.get(TILE_HEIGHT) if tiled else found.get(ROWS_PER_STRIP, height)) or [0]
    across = (found.get(TILE_WIDTH, [0]) if tiled else width) or [0]
    if min(height[0], width[0], down[0], across[0]) < 1 or len(set(bits)) > 1 or predictor[0] > DIFFERENCES:
        return None
    rows = min(down[0], height[0]) if not tiled else down[0]
    if width[0] % across[0] or (height[0] % rows and (tiled or apart)):
        return None
    offsets, sizes = _blocks(found)
    count = -(-height[0] // rows) * (width[0] // across[0]) * (len(bits) if apart else 1)
    if not len(offsets) == len(sizes) == count:
        return None
    return Layout((height[0], width[0]), (rows, across[0]), apart, predictor[0] == DIFFERENCES, bits[0], offsets, sizes)


def _hold(stream: IO[bytes], layout: Layout, form: Form, pixels: np.ndarray) -> bool:
    """Whether each block's checksum is that of its pixels. False where they are stored in other bits than GDAL gives
    them."""
    num_bands, *shape = pixels.shape
    (height, width), (down, across) = layout.shape, layout.block
    kinds = "iu" if layout.differences else "iuf"
    if shape != [height, width] or layout.bits != 8 * pixels.itemsize or pixels.dtype.kind not in kinds:
        return False
    # Plane, row, column, bands of a block; then columns, and rows, are cut at the blocks' edges.
    rows = pixels[..., None] if layout.apart else pixels.transpose(1, 2, 0)[None]
    rows = rows.reshape(*rows.shape[:2], width // across, across, rows.shape[3])
    if layout.differences:
        rows = np.concatenate([rows[:, :, :, :1], rows[:, :, :, 1:] - rows[:, :, :, :-1]], axis=3)
    if width > across:
        rows = rows.reshape(rows.shape[0], height // down, down, *rows.shape[2:]).swapaxes(2, 3)
    packed = np.ascontiguousarray(rows.byteswap() if form.order != NATIVE else rows).reshape(-1).view(np.uint8).data
    length = down * across * (1 if layout.apart else num_bands) * pixels.itemsize
    end = os.fstat(stream.fileno()).st_size
    return all(size == 0 or (CHECKSUM_BYTES < size <= end - offset
                             and os.pread(stream.fileno(), CHECKSUM_BYTES, offset + size - CHECKSUM_BYTES)
                             == zlib.adler32(packed[i * length:(i + 1) * length]).to_bytes(CHECKSUM_BYTES, "big"))
               for i, (offset, size) in enumerate(zip(layout.offsets, layout.sizes, strict=True)))


def _check_blocks(stream: IO[bytes], found: dict[int, list[int]], most: int) -> None:
    total = 0
    for offset, size in zip(*_blocks(found), strict=False):
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
