"""Is a PNG file whole? Decoders stop at the last pixel and pass over the checksums of the pixels' own chunks."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

from domains.sample import Refused

SIGNATURE = b"\x89PNG\r\n\x1a\n"


def check(path: Path) -> None:
    """Refuse a file of which a chunk's checksum is wrong, or that ends before its end chunk."""
    with path.open("rb") as stream:
        if stream.read(len(SIGNATURE)) != SIGNATURE:
            raise Refused("it does not begin like a PNG")
        kind = b""
        while kind != b"IEND":
            head = stream.read(8)
            if len(head) != 8:
                raise Refused("the file ends early")
            length, kind = struct.unpack(">I4s", head)
            body = stream.read(length + 4)
            if len(body) != length + 4:
                raise Refused("the file ends early")
            if zlib.crc32(body[:-4], zlib.crc32(kind)) != struct.unpack(">I", body[-4:])[0]:
                raise Refused("its checksum is wrong")
