"""Small files in many formats, written by hand, for tests of readers."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from domains.sample import ManifestRow

SQUARES = np.array([[0, 3, 2, 1], [4, 5, 6, 7], [0, 1, 5, 4], [1, 2, 6, 5], [2, 3, 7, 6], [3, 0, 4, 7]])
"""The faces of a cube, seen from outside: normals point outwards."""
CORNERS = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 1], [1, 0, 1], [1, 1, 1], [0, 1, 1]], float)
TRIANGLES = np.concatenate([SQUARES[:, [0, 1, 2]], SQUARES[:, [0, 2, 3]]])


def row(path: Path, source: str = "") -> ManifestRow:
    return ManifestRow(path=path, key=path.name, group="g", split="", source=source)


def write_off(path: Path) -> None:
    faces = "\n".join("4 " + " ".join(map(str, face)) for face in SQUARES)
    path.write_text("OFF\n8 6 0\n" + "\n".join(" ".join(map(str, corner)) for corner in CORNERS) + f"\n{faces}\n")


def write_obj(path: Path, colours: np.ndarray | None = None, relative: bool = False) -> None:
    """A cube as many programs write it: comments, names, materials, texture numbers, a line that goes on."""
    lines = ["# a cube", "mtllib ../../etc/passwd", "o cube"]
    for i, corner in enumerate(CORNERS):
        more = "" if colours is None else " " + " ".join(map(str, colours[i]))
        lines.append("v " + " ".join(map(str, corner)) + more)
    lines += ["vt 0 0", "vn 0 0 1", "usemtl stone", "s off"]
    for face in SQUARES:
        named = [str(corner - 8) if relative else f"{corner + 1}/1/1" for corner in face]
        lines.append(f"f {named[0]} {named[1]} \\\n  {named[2]} {named[3]}  # a square")
    path.write_text("\n".join(lines) + "\n")


def write_stl(path: Path, text: bool = False, title: bytes = b"made by hand") -> None:
    corners = CORNERS[TRIANGLES].astype(np.float32)
    if text:
        facets = ["facet normal 0 0 0\n outer loop\n" + "".join(f"  vertex {x:g} {y:g} {z:g}\n" for x, y, z in facet)
                  + " endloop\nendfacet\n" for facet in corners.tolist()]
        path.write_text("solid cube\n" + "".join(facets) + "endsolid cube\n")
        return
    body = b"".join(struct.pack("<3f", 0, 0, 0) + facet.tobytes() + b"\0\0" for facet in corners)
    path.write_bytes(title.ljust(80, b" ") + struct.pack("<I", len(corners)) + body)


def write_ply(path: Path, layout: str = "binary_little_endian", faces: bool = True, mixed: bool = False,
              extra: dict[str, tuple[str, np.ndarray]] | None = None, points: np.ndarray = CORNERS) -> None:
    """A cube, or points: a face of another length (`mixed`), a table before the vertices and one after the faces, and
    further properties of the vertices (`extra`: name -> PLY's type, numbers)."""
    order = ">" if "big" in layout else "<"
    types = {"uchar": "u1", "ushort": "u2", "float": "f4", "double": "f8"}
    extra = extra or {}
    lists = [face.tolist() for face in SQUARES]
    if mixed:
        lists = [lists[0][:3], [lists[0][0], *lists[0][2:]], *lists[1:]]
    header = [f"ply\nformat {layout} 1.0\ncomment by hand\nelement camera 2\nproperty float f",
              f"element vertex {len(points)}", *(f"property double {axis}" for axis in "xyz"),
              *(f"property {kind} {name}" for name, (kind, _) in extra.items())]
    if faces:
        header += [f"element face {len(lists)}", "property uchar flag", "property list uchar int vertex_indices",
                   "element edge 1", "property ushort a"]
    table = np.zeros(len(points), [*((axis, f"{order}f8") for axis in "xyz"),
                                   *((name, order + types[kind]) for name, (kind, _) in extra.items())])
    for i, axis in enumerate("xyz"):
        table[axis] = points[:, i]
    for name, (_, numbers) in extra.items():
        table[name] = numbers
    if layout == "ascii":
        lines = ["1.5", "2.5", *(" ".join(repr(number.item()) for number in record) for record in table)]
        lines += [f"7 {len(face)} " + " ".join(map(str, face)) for face in lists] + ["9"] if faces else []
        path.write_text("\n".join([*header, "end_header", *lines]) + "\n")
        return
    body = np.array([1.5, 2.5], order + "f4").tobytes() + table.tobytes()
    if faces:
        body += b"".join(struct.pack(f"{order}BB{len(face)}i", 7, len(face), *face) for face in lists)
        body += struct.pack(f"{order}H", 9)
    path.write_bytes(("\n".join([*header, "end_header"]) + "\n").encode() + body)
