"""Reads STL meshes, binary and text.

Ours, because what the file promises must be checked against its length before anything is allocated, and because many
binary files begin with the word `solid`, by which text is told elsewhere.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from domains.pointcloud.cloud import Mesh
from domains.sample import Refused

HEADER = 80
FACET = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
"""A triangle of a binary file. Its normal is passed over: many programs leave it at 0."""
SHORTEST_VERTEX = len("vertex 0 0 0\n")


def read_stl(path: Path, max_points: int) -> Mesh:
    """Vertices, three per triangle as the format has them, and triangles. Raises Refused."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(HEADER + 4)
    if len(head) < 15:
        raise Refused("STL: the file does not begin like one")
    promised = int.from_bytes(head[HEADER:], "little") if len(head) == HEADER + 4 else -1
    is_text = head.lstrip()[:5].lower() == b"solid" and size != HEADER + 4 + promised * FACET.itemsize
    corners = _text(path, size, max_points) if is_text else _binary(path, size, promised, max_points)
    return Mesh(corners, np.arange(len(corners), dtype=np.int64).reshape(-1, 3))


def _binary(path: Path, size: int, promised: int, max_points: int) -> np.ndarray:
    if promised < 0 or size < HEADER + 4 + promised * FACET.itemsize:
        raise Refused(f"STL: found {size} bytes, expected the {max(promised, 0)} triangles that the header promises")
    _limit(promised, max_points)
    facets = np.fromfile(path, FACET, promised, offset=HEADER + 4)
    return facets["corners"].reshape(-1, 3).astype(np.float64)


def _text(path: Path, size: int, max_points: int) -> np.ndarray:
    _limit(size // (3 * SHORTEST_VERTEX), max_points)
    with path.open(encoding="latin-1") as file:
        told = [line for line in file if line.lstrip()[:6].lower() in ("vertex", "facet ", "endsol", "end so")]
    lines = [line for line in told if line.lstrip()[:6].lower() == "vertex"]
    facets = sum(line.lstrip()[:6].lower() == "facet " for line in told)
    if not lines or len(lines) != 3 * facets:
        raise Refused(f"STL: found {len(lines)} corners in {facets} triangles, expected three in each")
    if told[-1].lstrip()[:3].lower() != "end":
        raise Refused("STL: the file ends early, before a line that ends the solid")
    try:
        return np.loadtxt(lines, dtype=np.float64, usecols=(1, 2, 3), ndmin=2)
    except (ValueError, IndexError) as error:
        raise Refused("STL: a corner holds no three numbers") from error


def _limit(promised: int, max_points: int) -> None:
    if promised > max_points:
        raise Refused(f"STL: found {promised} triangles, expected at most {max_points} (max_points)")
