"""What a PLY or PCD file promises, checked against how long it is, before anything is allocated.

Libraries trust headers: of a file that ends early Open3D returns whatever lay in memory for the points that are
missing, and a header that promises a billion points makes it allocate them. Neither raises.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from domains.sample import Refused

MAX_HEADER = 1 << 16
"""Longest header that is looked at, in bytes. Real ones hold a few hundred."""

PLY_TYPES = {"char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1", "short": "i2", "int16": "i2", "ushort": "u2",
             "uint16": "u2", "int": "i4", "int32": "i4", "uint": "u4", "uint32": "u4", "float": "f4", "float32": "f4",
             "double": "f8", "float64": "f8"}
"""PLY's number types, under both of their names, as numpy calls them without the order of bytes."""


CORNERS = ("vertex_indices", "vertex_index")
"""What PLY files call the list of a face's corners."""


@dataclass(frozen=True)
class Property:
    """One number, or one list of numbers, of every record of a PLY element."""

    name: str
    dtype: str
    """numpy's, without the order of bytes."""
    count: str = ""
    """For a list: the type of the number that says how long it is. Empty: a single number."""


@dataclass(frozen=True)
class Element:
    """A table of a PLY file."""

    name: str
    count: int
    """Records."""
    properties: tuple[Property, ...]

    @property
    def least(self) -> list[int]:
        """Bytes of each number in the shortest possible record: a face has three corners at least, and other lists may
        be empty."""
        sizes: list[int] = []
        for one in self.properties:
            itemsize = int(one.dtype[1])
            lists = [itemsize] * 3 if self.name == "face" and one.name in CORNERS else []
            sizes += [int(one.count[1]), *lists] if one.count else [itemsize]
        return sizes


@dataclass(frozen=True)
class PlyHeader:
    """A PLY header whose promises the file is long enough to keep."""

    layout: str
    """ascii, binary_little_endian or binary_big_endian."""
    elements: tuple[Element, ...]
    """In the file's order."""
    start: int
    """Where the data begins."""


def read_ply_header(path: Path, max_points: int) -> PlyHeader:
    """Parse and check the header of a PLY file. Raises Refused."""
    lines, start = _header_lines(path, b"ply", b"end_header", "PLY")
    words = [line.split() for line in lines if line.split()]
    layouts = [word[1] for word in words if word[0] == "format" and len(word) > 1]
    if layouts not in (["ascii"], ["binary_little_endian"], ["binary_big_endian"]):
        raise Refused("PLY: the header names no known format")
    elements = _elements(words)
    promised = {element.name: element.count for element in elements}
    if not promised.get("vertex"):
        raise Refused("PLY: the header promises no vertices")
    if sum(promised.values()) > max_points:
        raise Refused(f"PLY: found {sum(promised.values())} points, faces and other records, expected at most "
                      f"{max_points} (max_points)")
    if layouts == ["ascii"]:
        _require("PLY", "numbers", sum(e.count * len(e.least) for e in elements), _count_words(path, start))
    else:
        _require("PLY", "bytes", sum(e.count * sum(e.least) for e in elements), path.stat().st_size - start)
    return PlyHeader(layouts[0], elements, start)


def _elements(words: list[list[str]]) -> tuple[Element, ...]:
    found: list[Element] = []
    for word in words:
        if word[0] == "element":
            if len(word) != 3 or word[1] in (element.name for element in found):
                raise Refused("PLY: an element line of the header is malformed")
            found.append(Element(word[1], _count(word[2], "PLY"), ()))
        elif word[0] == "property":
            if not found:
                raise Refused("PLY: a property line of the header is malformed")
            found[-1] = replace(found[-1], properties=(*found[-1].properties, _property(word)))
    if any(len({one.name for one in element.properties}) != len(element.properties) for element in found):
        raise Refused("PLY: the header names a property twice")
    return tuple(found)


def _property(word: list[str]) -> Property:
    match word[1:]:
        case ["list", count, dtype, name] if PLY_TYPES.get(count, "f")[0] != "f" and dtype in PLY_TYPES:
            return Property(name, PLY_TYPES[dtype], PLY_TYPES[count])
        case [dtype, name] if dtype in PLY_TYPES:
            return Property(name, PLY_TYPES[dtype])
    raise Refused("PLY: a property line of the header is malformed")


def read_pcd_header(path: Path) -> int:
    """Parse and check the header of a PCD file; how many points it promises. Raises Refused."""
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
    return promised


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
