"""Reads PLY meshes and clouds, text and binary of either order of bytes, with normals, colours and intensity.

Ours, because Open3D's reader of meshes crashes on damaged files (a fifth of a thousand mutated ones ended in SIGSEGV)
and passes over intensity. Every number of the header has been checked by headers.py before this begins.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np

from domains.pointcloud.cloud import Cloud, Mesh, attributes
from domains.pointcloud.headers import CORNERS, Element, PlyHeader, Property, read_ply_header
from domains.pointcloud.polygons import by_corners, triangles_of
from domains.sample import Refused

STRIPS = ("tristrips", "tristrip", "triangle_strips")
"""Elements that hold strips of triangles."""
Columns = dict[str, np.ndarray]
Faces = list[np.ndarray]
"""Arrays of n corners, one per number of corners."""


def read_ply(path: Path, max_points: int) -> Mesh | Cloud:
    """A mesh where the file has faces, else a cloud. Raises Refused."""
    header = read_ply_header(path, max_points)
    _refuse_other_faces(header)
    columns, faces = _contents(path, header)
    if not {"x", "y", "z"} <= set(columns):
        raise Refused("PLY: the header names no x, y, z of a vertex")
    xyz = np.stack([columns[axis] for axis in "xyz"], axis=1).astype(np.float64)
    more = attributes(columns)
    if not faces:
        return Cloud(xyz, more)
    more.pop("normals", None)
    return Mesh(xyz, triangles_of(faces, len(xyz), "PLY"), more)


def columns_of(path: Path, header: PlyHeader) -> Columns:
    """Numbers of each property of the vertices, by its name in the file. Raises Refused."""
    return _contents(path, header)[0]


def _contents(path: Path, header: PlyHeader) -> tuple[Columns, Faces]:
    return (_text if header.layout == "ascii" else _binary)(path, header)


def _refuse_other_faces(header: PlyHeader) -> None:
    """A mesh whose faces are told in another way would look like a cloud of its corners."""
    for element in header.elements:
        if element.name in STRIPS and element.count:
            raise Refused("PLY: its triangles stand in strips, which are not read. Remedy: save the mesh with faces")
        if element.name == "face" and element.count and not any(one.name in CORNERS and one.count
                                                                for one in element.properties):
            raise Refused(f"PLY: found faces without a list named {' or '.join(CORNERS)}, expected one")


# ---- binary ----

def _binary(path: Path, header: PlyHeader) -> tuple[Columns, Faces]:
    data: np.ndarray = np.memmap(path, np.uint8, "r")
    order = ">" if header.layout == "binary_big_endian" else "<"
    columns: Columns = {}
    faces: Faces = []
    at = header.start
    for element in header.elements:
        if any(one.count for one in element.properties):
            lists, at = _binary_lists(data, at, element, order)
            faces = lists if element.name == "face" else faces
        else:
            record = np.dtype([(one.name, order + one.dtype) for one in element.properties])
            table, at = _cut(data, at, element.count, record), at + element.count * record.itemsize
            if element.name == "vertex":
                columns = {name: table[name] for name in record.names or ()}
    return columns, faces


def _cut(data: np.ndarray, at: int, count: int, record: np.dtype) -> np.ndarray:
    if at + count * record.itemsize > len(data):
        raise Refused("PLY: the file ends before the records that the header promises")
    return np.frombuffer(data, record, count, at) if record.itemsize and count else np.zeros(count, record)


def _binary_lists(data: np.ndarray, at: int, element: Element, order: str) -> tuple[Faces, int]:
    """Faces of an element whose records hold lists, and where the next element begins. Mostly all lists are as long as
    those of the first record: then all records are read at once."""
    if not element.count:
        return [], at
    lengths, _ = _walk(data, at, element, order, 1)
    fields: list[tuple[str, str] | tuple[str, str, tuple[int]]] = []
    for number, one in enumerate(element.properties):
        if one.count:
            fields += [(f"n{number}", order + one.count), (one.name, order + one.dtype, (lengths[0][number],))]
        else:
            fields.append((one.name, order + one.dtype))
    record = np.dtype(fields)
    if at + element.count * record.itemsize <= len(data):
        table = _cut(data, at, element.count, record)
        alike = all(bool((table[f"n{number}"] == lengths[0][number]).all())
                    for number, one in enumerate(element.properties) if one.count)
        if alike:
            faces = [table[one.name] for one in element.properties if one.name in CORNERS and one.count]
            return [_whole(some) for some in faces], at + element.count * record.itemsize
    return _unlike(data, at, element, order)


def _unlike(data: np.ndarray, at: int, element: Element, order: str) -> tuple[Faces, int]:
    """Lists of different lengths: record by record to find where each list lies, then all of a length at once."""
    lengths, places = _walk(data, at, element, order, element.count)
    named = [number for number, one in enumerate(element.properties) if one.name in CORNERS and one.count]
    end = places[-1][-1]
    if not named:
        return [], end
    number = named[0]
    dtype = np.dtype(order + element.properties[number].dtype)
    count, start = np.array([row[number] for row in lengths]), np.array([row[number] for row in places])
    faces: Faces = []
    for corners in dict.fromkeys(count.tolist()):
        first = start[count == corners]
        taken = data[first[:, None] + np.arange(corners * dtype.itemsize)]
        faces.append(_whole(np.ascontiguousarray(taken).view(dtype).reshape(len(first), corners)))
    return faces, end


def _walk(data: np.ndarray, at: int, element: Element, order: str, count: int) -> tuple[list[list[int]],
                                                                                       list[list[int]]]:
    """Per record the length of each property (1 for a number) and where its values begin, then where the record ends.
    """
    steps: list[tuple[Callable[[int], int] | None, int, int]] = [
        (_counter(data, order, one), int(one.count[1:] or 0), int(one.dtype[1:])) for one in element.properties]
    lengths, places = [], []
    for _ in range(count):
        own, begins = [], []
        for counter, count_size, size in steps:
            length = 1
            if counter is not None:
                if at + count_size > len(data):
                    raise Refused("PLY: the file ends before the records that the header promises")
                length = counter(at)
                at += count_size
            own.append(length)
            begins.append(at)
            at += length * size
            if length < 0 or at > len(data):
                raise Refused("PLY: a list is longer than the file, or shorter than nothing")
        lengths.append(own)
        places.append([*begins, at])
    return lengths, places


def _counter(data: np.ndarray, order: str, one: Property) -> Callable[[int], int] | None:
    """What reads the length of a list at a place of the file."""
    if not one.count:
        return None
    view, size, signed = data.data, int(one.count[1:]), one.count[0] == "i"
    return lambda at: int.from_bytes(view[at:at + size], "little" if order == "<" else "big", signed=signed)


# ---- text ----

def _text(path: Path, header: PlyHeader) -> tuple[Columns, Faces]:
    with path.open("rb") as file:
        file.seek(header.start)
        text = file.read().decode("latin-1")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of numpy, which only warned of what is no number before it raised
        try:
            numbers = np.fromstring(text, dtype=np.float64, sep=" ")
        except (ValueError, DeprecationWarning) as error:
            raise Refused("PLY: the data holds something that is no number") from error
    columns: Columns = {}
    faces: Faces = []
    at = 0
    for element in header.elements:
        if any(one.count for one in element.properties):
            lists, at = _text_lists(numbers, at, element)
            faces = lists if element.name == "face" else faces
            continue
        size = len(element.properties) * element.count
        table = numbers[at:at + size].reshape(element.count, -1) if len(numbers) >= at + size else None
        if table is None:
            raise Refused("PLY: the file ends before the records that the header promises")
        if element.name == "vertex":
            columns = {one.name: _byte(table[:, i]) if one.dtype == "u1" else table[:, i]
                       for i, one in enumerate(element.properties)}
        at += size
    return columns, faces


def _byte(values: np.ndarray) -> np.ndarray:
    """Numbers of a column of bytes, as such: its type tells the scale of a colour."""
    return np.nan_to_num(values).clip(0, 255).astype(np.uint8)


def _text_lists(numbers: np.ndarray, at: int, element: Element) -> tuple[Faces, int]:
    faces: list[list[int]] = []
    for _ in range(element.count):
        for one in element.properties:
            length = 1
            if one.count:
                if at >= len(numbers) or not 0 <= numbers[at] <= len(numbers) - at - 1:
                    raise Refused("PLY: a list is longer than the file, or shorter than nothing")
                length, at = int(numbers[at]), at + 1
            if at + length > len(numbers):
                raise Refused("PLY: the file ends before the records that the header promises")
            if one.count and one.name in CORNERS:
                faces.append(_whole(numbers[at:at + length]).tolist())
            at += length
    return by_corners(faces), at


def _whole(corners: np.ndarray) -> np.ndarray:
    """int64, with -1, which is no vertex, for what is no whole number or too large to be one."""
    if corners.dtype.kind in "iu":
        return corners.astype(np.int64)
    good = np.isfinite(corners) & (np.abs(corners) < 2**53)
    whole = np.where(good, corners, -1)
    return np.where(whole == np.floor(whole), whole, -1).astype(np.int64)
