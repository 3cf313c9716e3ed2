"""Reads OFF meshes.

Ours, because Open3D's reader takes the counts from the second line alone: files whose first line is "OFF 8 6 0" or
"OFF490 518 0" (ModelNet has hundreds) come back empty, and faces that name vertices which do not exist come back as
they are. Polygons are cut into fans of triangles.
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import numpy as np

from domains.pointcloud.cloud import Mesh
from domains.pointcloud.polygons import by_corners, triangles_of
from domains.sample import Refused

FIRST_LINE = re.compile(r"(?:ST)?(?:C)?(?:N)?OFF\s*(.*)", re.ASCII)
"""OFF and its variants with texture coordinates, colours and normals, which are passed over."""


def read_off(path: Path, max_points: int) -> Mesh:
    """Vertices and triangles. Raises Refused."""
    text = path.read_bytes().decode("latin-1")  # as text, ends of lines would be looked for twice
    raws = (raw.split("#", 1)[0] for raw in text.splitlines()) if "#" in text else text.splitlines()
    lines = list(filter(None, map(str.strip, raws)))
    match = FIRST_LINE.fullmatch(lines[0]) if lines else None
    if match is None:
        raise Refused("OFF: the file does not begin like one")
    counts, body = (match[1], lines[1:]) if match[1] else (" ".join(lines[1:2]), lines[2:])
    num_vertices, num_faces = _counts(counts)
    if max(num_vertices, num_faces) > max_points:
        raise Refused(f"OFF: the header promises {num_vertices} vertices and {num_faces} faces, over the limit of "
                      f"{max_points}")
    if len(body) < num_vertices + num_faces:
        raise Refused(f"OFF: found {len(body)} lines of data, expected the {num_vertices + num_faces} that the header "
                      "promises")
    vertices = _vertices(body[:num_vertices])
    return Mesh(vertices, _triangles(body[num_vertices:num_vertices + num_faces], num_vertices))


def _counts(text: str) -> tuple[int, int]:
    words = text.split()
    if len(words) < 2 or not all(word.isdecimal() and len(word) <= 12 for word in words[:2]):
        raise Refused("OFF: the header holds no counts of vertices and faces")
    return int(words[0]), int(words[1])


def _vertices(lines: list[str]) -> np.ndarray:
    try:
        return np.loadtxt(lines, dtype=np.float64, usecols=(0, 1, 2), ndmin=2).reshape(-1, 3)
    except (ValueError, IndexError) as error:
        raise Refused("OFF: a vertex line holds no three numbers") from error


def _triangles(lines: list[str], num_vertices: int) -> np.ndarray:
    threes = _all_threes(lines)
    if threes is not None:
        return triangles_of([threes], num_vertices, "OFF")
    try:
        faces = []
        for line in lines:
            words = line.split()
            corners = int(words[0])
            if corners >= 3:
                faces.append([int(word) for word in words[1:corners + 1]])
                if len(faces[-1]) != corners:
                    raise ValueError("too few corners")
        polygons = by_corners(faces)
    except (ValueError, OverflowError, IndexError) as error:
        raise Refused("OFF: a face line does not hold the corners it promises") from error
    return triangles_of(polygons, num_vertices, "OFF")


def _all_threes(lines: list[str]) -> np.ndarray | None:
    """T 3 of a mesh of triangles alone, as nearly all are, in one go; None for any other, or what is no such list."""
    if not lines:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # numpy would take 1.5 for a 1, and say that it should not
        try:
            table = np.loadtxt(lines, dtype=np.int64, usecols=(0, 1, 2, 3), ndmin=2)
        except (ValueError, IndexError, DeprecationWarning):
            return None
    return table[:, 1:] if bool((table[:, 0] == 3).all()) else None
