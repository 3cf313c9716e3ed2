"""Reads OBJ meshes and clouds: vertices, with colours where there are some, and faces.

Ours, because a face may name vertices that do not exist, and because an OBJ file may name other files (materials,
textures): nothing but the file itself is ever opened.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from domains.pointcloud.cloud import Cloud, Mesh, attributes
from domains.pointcloud.polygons import by_corners, triangles_of
from domains.sample import Refused

SHORTEST_LINE = len("v 0 0 0\n")


def read_obj(path: Path, max_points: int) -> Mesh | Cloud:
    """A mesh, or a cloud where the file has no faces. Raises Refused."""
    if path.stat().st_size // SHORTEST_LINE > max_points:
        raise Refused(f"OBJ: found a file that may hold more than {max_points} vertices and faces (max_points)")
    vertices: list[str] = []
    faces: list[list[int]] = []
    for line in _lines(path):
        word, _, rest = line.partition(" ")
        if word == "v":
            vertices.append(rest)
        elif word == "f":
            faces.append(_corners(rest, len(vertices)))
    numbers = _numbers(vertices)
    more = attributes(dict(zip(("red", "green", "blue"), numbers.T[3:], strict=True)) if numbers.shape[1] == 6 else {})
    if not faces:
        return Cloud(numbers[:, :3], more)
    return Mesh(numbers[:, :3], triangles_of(by_corners(faces), len(numbers), "OBJ"), more)


def _lines(path: Path) -> Iterator[str]:
    """Lines without comments, words parted by single blanks, those that end in a backslash joined with the next."""
    before = ""
    with path.open(encoding="latin-1") as file:
        for raw in file:
            line = raw.split("#", 1)[0].rstrip()
            if line.endswith("\\"):
                before += line[:-1] + " "
                continue
            yield " ".join((before + line).split())
            before = ""


def _numbers(lines: list[str]) -> np.ndarray:
    """V 3, or V 6 where every vertex has a colour behind its place. A fourth number is a weight, passed over."""
    if not lines:
        raise Refused("OBJ: found no vertices")
    if not lines[0]:
        raise Refused("OBJ: a vertex line holds no three numbers")
    try:
        numbers = np.loadtxt(lines, dtype=np.float64, ndmin=2)
    except ValueError as error:
        raise Refused("OBJ: the vertex lines do not hold numbers, the same count on each") from error
    if numbers.shape[1] < 3:
        raise Refused("OBJ: a vertex line holds no three numbers")
    return numbers if numbers.shape[1] == 6 else numbers[:, :3]


def _corners(text: str, num_before: int) -> list[int]:
    """`1/1/1 2//2 -1` to vertex numbers from 0. Negative ones count back from the last vertex before the face."""
    try:
        named = [int(word.split("/", 1)[0]) for word in text.split()]
    except ValueError as error:
        raise Refused("OBJ: a face line does not hold numbers of vertices") from error
    if len(named) < 3:
        raise Refused("OBJ: a face has less than three corners")
    # 0 names no vertex; -1 here, it is refused with those beyond the end
    return [corner - 1 if corner >= 0 else corner + num_before if corner + num_before >= 0 else -1 for corner in named]
