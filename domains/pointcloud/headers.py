"""What a PLY or PCD file promises, checked against how long it is, before any library parses it.

Open3D trusts the header: of a PLY that ends early it returns whatever lay in memory for the points that are missing,
and a header that promises a billion points makes it allocate them. Neither raises.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from domains.sample import Refused

MAX_HEADER = 1 << 16
"""Longest header that is looked at, in bytes. Real ones hold a few hundred."""

PLY_TYPES = {"char": 1, "int8": 1, "uchar": 1, "uint8": 1, "short": 2, "int16": 2, "ushort": 2, "uint16": 2, "int": 4,
             "int32": 4, "uint": 4, "uint32": 4, "float": 4, "float32": 4, "double": 8, "float64": 8}
"""Bytes of PLY's number types, under both of their names."""


@dataclass(frozen=True)
class Promise:
    """What the header says the file holds."""

    num_points: int
    """Points, or vertices of a mesh."""
    num_faces: int
    """Faces; 0 for a cloud."""


def read_ply(path: Path) -> Promise:
    """Parse and check the header of a PLY file. Raises Refused."""
    lines, start = _header_lines(path, b"ply", b"end_header", "PLY")
    words = [line.split() for line in lines if line.split()]
    formats = [word[1] for word in words if word[0] == "format" and len(word) > 1]
    if formats not in (["ascii"], ["binary_little_endian"], ["binary_big_endian"]):
        raise Refused("PLY: the header names no known format")
    counts: dict[str, int] = {}
    shortest: dict[str, list[int]] = {}  # element -> bytes of each value in its shortest possible record
    element = ""
    for word in words:
        if word[0] == "element":
            if len(word) != 3 or word[1] in counts:
                raise Refused("PLY: an element line of the header is malformed")
            element = word[1]
            counts[element], shortest[element] = _count(word[2], "PLY"), []
        elif word[0] == "property":
            if element not in counts or not all(name in PLY_TYPES for name in word[2:-1] or word[1:-1]):
                raise Refused("PLY: a property line of the header is malformed")
            # a face has three corners at least; other lists may be empty
            shortest[element] += ([PLY_TYPES[word[2]], *[PLY_TYPES[word[3]]] * (3 if element == "face" else 0)]
                                  if word[1] == "list" else [PLY_TYPES[word[1]]])
    if not counts.get("vertex"):
        raise Refused("PLY: the header promises no vertices")
    if formats == ["ascii"]:
        _require("PLY", "numbers", sum(n * len(shortest[e]) for e, n in counts.items()), _count_words(path, start))
    else:
        _require("PLY", "bytes", sum(n * sum(shortest[e]) for e, n in counts.items()), path.stat().st_size - start)
    return Promise(counts["vertex"], counts.get("face", 0))


def read_pcd(path: Path) -> Promise:
    """Parse and check the header of a PCD file. Raises Refused."""
    lines, start = _header_lines(path, b"", b"DATA", "PCD")
    fields = {word[0]: word[1:] for word in (line.split() for line in lines) if word and not word[0].startswith("#")}
    if not {"x", "y", "z"} <= set(fields.get("FIELDS", [])):
        raise Refused("PCD: the header names no fields x, y, z")
    promised = _count("".join(fields.get("POINTS", [])), "PCD")
    each = [_count(word, "PCD") for word in fields.get("COUNT", ["1"] * len(fields["FIELDS"]))]
    sizes = [_count(word, "PCD") for word in fields.get("SIZE", [])]
    if len(each) != len(fields["FIELDS"]) or len(sizes) != len(each):
        raise Refused("PCD: FIELDS, SIZE and COUNT differ in length")
    layout = fields.get("DATA", [""])[0]
    if layout == "ascii":
        _require("PCD", "numbers", promised * sum(each), _count_words(path, start))
    elif layout == "binary":
        record = sum(n * size for n, size in zip(each, sizes, strict=True))
        _require("PCD", "bytes", promised * record, path.stat().st_size - start)
    elif layout == "binary_compressed":
        # LZF cannot shrink more than about 88 times, so that this catches promises no such file can keep
        record = sum(n * size for n, size in zip(each, sizes, strict=True))
        _require("PCD", "bytes", promised * record // 100, path.stat().st_size - start)
    else:
        raise Refused("PCD: the header names no known data layout")
    return Promise(promised, 0)


def _header_lines(path: Path, first: bytes, last: bytes, what: str) -> tuple[list[str], int]:
    """The header as text lines, up to and including the line that begins with `last`, and where the data begins."""
    with path.open("rb") as file:
        head = file.read(MAX_HEADER)
    if not head.startswith(first):
        raise Refused(f"{what}: the file does not begin like one")
    lines, position = [], 0
    while (end := head.find(b"\n", position)) >= 0:
        line = head[position:end]
        lines.append(line.decode("latin-1").strip())
        position = end + 1
        if line.startswith(last):
            return lines, position
    raise Refused(f"{what}: the header has no end within {MAX_HEADER} bytes")


def _count(text: str, what: str) -> int:
    if not text.isdecimal() or len(text) > 12:
        raise Refused(f"{what}: a count in the header is no number under 10^12")
    return int(text)


def _count_words(path: Path, start: int) -> int:
    """How many words separated by white space stand after `start`."""
    total, was_space = 0, True
    with path.open("rb") as file:
        file.seek(start)
        while block := file.read(1 << 24):
            space = np.frombuffer(block, dtype=np.uint8) <= 32
            before = np.concatenate(([was_space], space[:-1]))
            total += int(np.count_nonzero(before & ~space))
            was_space = bool(space[-1])
    return total


def _require(what: str, unit: str, promised: int, found: int) -> None:
    if found < promised:
        raise Refused(f"{what}: found {found} {unit} of data, expected the {promised} that the header promises")
