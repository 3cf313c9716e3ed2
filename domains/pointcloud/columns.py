"""Reads points that lie in rows of numbers: text files and .npy arrays."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from domains.pointcloud.cloud import WORDS, Cloud, attributes
from domains.sample import Refused

SHORTEST_LINE = len("1 2 3\n")
COMMENTS = ("#", "//")
MARK = "\ufeff".encode().decode("latin-1")
"""What some programs put before the first letter of a text in UTF-8."""
PLACES = {"easting": "x", "east": "x", "northing": "y", "north": "y", "elevation": "z", "elev": "z", "height": "z",
          "altitude": "z"}
"""What surveyors call the axes."""


def read_array(path: Path, columns: Sequence[str], max_points: int) -> Cloud:
    """A .npy array with one point per row. Raises Refused."""
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if array.ndim != 2 or array.shape[1] < 3 or array.dtype.kind not in "fiu":
        raise Refused(f"NPY: found an array with {array.ndim} axes of kind {array.dtype.kind}, expected numbers, one "
                      "point per row with x, y, z first")
    _limit("NPY", len(array), max_points)
    names = _as_told("NPY", columns, array.shape[1]) or ["x", "y", "z"]
    return _cloud(np.array(array[:, :len(names)]), names)


def read_text(path: Path, columns: Sequence[str], max_points: int) -> Cloud:
    """Numbers parted by white space, commas or semicolons, one point on each line. Lines that begin with a comment sign
    are passed over. The line above the numbers may name the columns, and must name x, y and z then unless `columns`
    does; so may a comment in the first line. Raises Refused."""
    _limit("XYZ", path.stat().st_size // SHORTEST_LINE, max_points)
    with path.open(encoding="latin-1") as file:
        first, lines = "", list[str]()
        for line in file:
            bare = line.removeprefix(MARK).strip() if not (first or lines) else line.strip()
            if bare and not first:
                first = bare
            if bare and not bare.startswith(COMMENTS):
                lines.append(bare)
    delimiter = next((sign for sign in ",;" if lines and sign in lines[0]), None)
    header = lines[0] if lines and not _is_number(lines[0].split(delimiter)[0]) else ""
    lines = lines[1:] if header else lines
    if not lines:
        return Cloud(np.zeros((0, 3)))
    names = _as_told("XYZ", columns, len(lines[0].split(delimiter))) or _as_named(header or first, delimiter)
    if header and not names:
        raise Refused("XYZ: found a line above the numbers that names columns, but not x, y and z, each once. Remedy: "
                      "say under `columns` what they are")
    names = names or ["x", "y", "z"]
    try:
        table = np.loadtxt(lines, dtype=np.float64, delimiter=delimiter, usecols=range(len(names)), ndmin=2)
    except ValueError as error:
        raise Refused(f"XYZ: found a line without {len(names)} numbers such as 1.5, parted by "
                      f"{'white space' if delimiter is None else delimiter}. It may be cut off, have decimal commas, "
                      "or begin with a number of points. Remedy: write one point on each line") from error
    return _cloud(table, names)


def _as_told(what: str, columns: Sequence[str], found: int) -> list[str]:
    """The settings' columns, checked against how many there are."""
    if len(columns) > found:
        raise Refused(f"{what}: found {found} columns, expected the {len(columns)} of the setting `columns`")
    return list(columns)


def _as_named(first: str, delimiter: str | None) -> list[str]:
    """Columns as a first line like `//X Y Z R G B` names them, empty where it names none."""
    words = [word.strip().strip('"') for word in first.lstrip("#/ ").split(delimiter)]
    names = [WORDS.get(word.lower(), PLACES.get(word.lower(), "-")) for word in words if word]
    named = [name for name in names if name != "-"]
    good = {"x", "y", "z"} <= set(named) and len(set(named)) == len(named)
    return names if good else []


def _cloud(table: np.ndarray, names: Sequence[str]) -> Cloud:
    columns = {name: table[:, i] for i, name in enumerate(names) if name != "-"}
    return Cloud(np.stack([columns[axis] for axis in "xyz"], axis=1).astype(np.float64), attributes(columns))


def _limit(what: str, promised: int, max_points: int) -> None:
    if promised > max_points:
        raise Refused(f"{what}: found a file that may hold {promised} points, expected at most {max_points} "
                      "(max_points)")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
