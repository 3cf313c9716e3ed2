"""Which map a LAS file lies on: the EPSG code of its horizontal reference system, out of the file's own records.

Read here, because laspy hands the question to pyproj, a library of map projections that nothing else here needs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

PROJECTED, GEOGRAPHIC = 3072, 2048
"""GeoTIFF keys that hold the code of a projected and of a geographic system."""
LENGTH, HEIGHT = 3076, 4099
"""GeoTIFF keys that hold the codes of the units of x and y, and of heights."""
METRES = {9001: 1.0, 9002: 0.3048, 9003: 1200 / 3937, 9005: 0.3047972654, 9036: 1000.0}
"""EPSG's codes of units: metre, foot, US survey foot, Clarke's foot, kilometre."""
USER_DEFINED = 32767
"""GeoTIFF's number for a system that has no code."""
LONGEST_WKT = 1 << 16
UNIT = re.compile(r'(?:LENGTH)?UNIT\s*\[\s*"[^"]*"\s*,\s*(\d*\.?\d+(?:[eE][-+]?\d+)?)', re.IGNORECASE)
CODE = re.compile(r'(?:AUTHORITY|ID)\s*\[\s*"EPSG"\s*,\s*"?(\d{1,6})"?', re.IGNORECASE)
QUOTED = re.compile(r'"([^"]*)"')
KEPT = re.compile(r"EPSG|\d{1,6}", re.IGNORECASE)
"""Quoted texts that are looked at: authority and code. Names may hold brackets, and are blanked."""
SYSTEM = re.compile(r"\b(PROJCS|PROJCRS|PROJECTEDCRS|GEOGCS|GEOGCRS|GEODCRS)\s*\[", re.IGNORECASE)
VERTICAL = re.compile(r"\b(VERT_CS|VERTCRS|VERTICALCRS)\s*\[", re.IGNORECASE)


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


def metres_of(records: Iterable[Any]) -> tuple[float | None, float | None]:
    """Metres per unit of x and y, and of heights, as the records say: 0 for degrees, None where they say nothing that
    is known here.

    Args:
        records: laspy's variable length records.
    """
    records = list(records)
    for text in (record.string for record in records if isinstance(getattr(record, "string", None), str)):
        if plan := _system(text):
            height = _system(text, VERTICAL)
            return 0.0 if plan[0].startswith("GEO") else _length(plan[1]), _length(height[1]) if height else None
    for record in records:
        keys = {int(key.id): int(key.value_offset) for key in getattr(record, "geo_keys", None) or ()
                if int(key.tiff_tag_location) == 0}
        if keys:
            degrees = keys.get(PROJECTED, 0) == 0 < keys.get(GEOGRAPHIC, 0) and LENGTH not in keys
            return 0.0 if degrees else METRES.get(keys.get(LENGTH, 0)), METRES.get(keys.get(HEIGHT, 0))
    return None, None


def _length(children: list[str]) -> float | None:
    """The unit of a system: it stands directly inside, or in newer texts inside of each axis."""
    found = [match for child in children if (match := UNIT.match(child))]
    found += [match for child in children if child.upper().startswith("AXIS") and (match := UNIT.search(child))]
    return float(found[0][1]) if found else None


def _of_text(text: str) -> int | None:
    """The code that stands directly inside the first projected or geographic system."""
    _, children = _system(text) or ("", [])
    codes = [match[1] for child in children if (match := CODE.match(child))]
    return int(codes[-1]) if codes else None


def _system(text: str, kind: re.Pattern[str] = SYSTEM) -> tuple[str, list[str]] | None:
    """The first projected or geographic system of well-known text: what it is, and what stands directly inside it. What
    lies further in belongs to its datum and its ellipsoid, what lies outside to a compound system or to heights."""
    text = QUOTED.sub(lambda quoted: quoted[0] if KEPT.fullmatch(quoted[1]) else '""', text[:LONGEST_WKT])
    found = kind.search(text)
    if not found:
        return None
    depth, end = 1, found.end()
    while end < len(text) and depth:
        depth += {"[": 1, "]": -1}.get(text[end], 0)
        end += 1
    return found[1].upper(), _direct_children(text[found.end():end - 1])


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
