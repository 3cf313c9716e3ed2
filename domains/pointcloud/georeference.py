"""Which map a LAS file lies on: the EPSG code of its horizontal reference system, out of the file's own records.

Read here, because laspy hands the question to pyproj, a library of map projections that nothing else here needs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

PROJECTED, GEOGRAPHIC = 3072, 2048
"""GeoTIFF keys that hold the code of a projected and of a geographic system."""
USER_DEFINED = 32767
"""GeoTIFF's number for a system that has no code."""
LONGEST_WKT = 1 << 16
CODE = re.compile(r'(?:AUTHORITY|ID)\s*\[\s*"EPSG"\s*,\s*"?(\d{1,6})"?', re.IGNORECASE)
QUOTED = re.compile(r'"([^"]*)"')
KEPT = re.compile(r"EPSG|\d{1,6}", re.IGNORECASE)
"""Quoted texts that are looked at: authority and code. Names may hold brackets, and are blanked."""
SYSTEM = re.compile(r"\b(PROJCS|PROJCRS|PROJECTEDCRS|GEOGCS|GEOGCRS|GEODCRS)\s*\[", re.IGNORECASE)


def epsg_of(records: Iterable[Any]) -> int | None:
    """The code, or None where no record says. Well-known text is preferred: LAS 1.4 puts it there.

    Args:
        records: laspy's variable length records.
    """
    texts = [record.string for record in records if isinstance(getattr(record, "string", None), str)]
    codes = [code for code in (_of_text(text) for text in texts) if code]
    if codes:
        return codes[0]
    for record in records:
        keys = {int(key.id): int(key.value_offset) for key in getattr(record, "geo_keys", None) or ()
                if int(key.tiff_tag_location) == 0}
        for name in (PROJECTED, GEOGRAPHIC):
            if 0 < keys.get(name, 0) < USER_DEFINED:
                return keys[name]
    return None


def _of_text(text: str) -> int | None:
    """The code that stands directly inside the first projected or geographic system: those further in belong to its
    datum, its ellipsoid and its unit, those outside to a compound system or to heights."""
    text = QUOTED.sub(lambda quoted: quoted[0] if KEPT.fullmatch(quoted[1]) else '""', text[:LONGEST_WKT])
    found = SYSTEM.search(text)
    if not found:
        return None
    depth, end = 1, found.end()
    while end < len(text) and depth:
        depth += {"[": 1, "]": -1}.get(text[end], 0)
        end += 1
    codes = [match[1] for child in _direct_children(text[found.end():end - 1]) if (match := CODE.match(child))]
    return int(codes[-1]) if codes else None


def _direct_children(text: str) -> list[str]:
    """What is parted by commas outside of brackets."""
    children, depth, child = [], 0, ""
    for letter in text:
        depth += {"[": 1, "]": -1}.get(letter, 0)
        if letter == "," and depth == 0:
            children.append(child.strip())
            child = ""
        else:
            child += letter
    return [*children, child.strip()]
