"""Is a PNG file whole? Decoders stop at the last pixel and pass over the checksums of the pixels' own chunks."""

from __future__ import annotations

import io
import struct
from pathlib import Path

from domains.medical.parsing import library
from domains.sample import Refused

SIGNATURE = b"\x89PNG\r\n\x1a\n"
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Numbers per pixel by the header's kind of colour."""
SPARE_BYTES = 65_536
"""For the heads of deflate's blocks, and rows that interlacing cuts up."""


def check(path: Path, content: bytes | None = None) -> None:
    """Refuse a file of which a chunk's checksum is wrong, that ends before its end chunk, or that holds far more than
    its pixels: decoders stop at the last of them, and would pass over the rest.

    Args:
        content: of the file, where it is here already.
    """
    crc32 = library("isal.isal_zlib").crc32  # in a quarter of the time of Python's own
    with path.open("rb") if content is None else io.BytesIO(content) as stream:
        if stream.read(len(SIGNATURE)) != SIGNATURE:
            raise Refused("it does not begin like a PNG")
        kind, room, packed = b"", 0, 0
        while kind != b"IEND":
            head = stream.read(8)
            if len(head) != 8:
                raise Refused("the file ends early")
            length, kind = struct.unpack(">I4s", head)
            body = stream.read(length + 4)
            if len(body) != length + 4:
                raise Refused("the file ends early")
            if crc32(memoryview(body)[:-4], crc32(kind)) != struct.unpack(">I", body[-4:])[0]:
                raise Refused("its checksum is wrong")
            if kind == b"IHDR" and length == 13:
                room = _most_bytes(body)
            packed += length if kind == b"IDAT" else 0
        if packed > room:
            raise Refused(f"{packed} bytes of compressed pixels, expected at most {room} for a picture of its size")


def _most_bytes(header: bytes) -> int:
    """What its pixels may take: as they are, for deflate makes nothing longer by more than a little."""
    width, height, depth, colour = struct.unpack(">IIBB", header[:10])
    row = 1 + (width * depth * CHANNELS.get(colour, 4) + 7) // 8
    return SPARE_BYTES + row * height * 9 // 8
