"""Writes the classes that a model calls points by, for every point of a cloud: LAS and LAZ with their field
`classification`, all other clouds as PLY with a column `label`.

A model has seen some of a file's points. Each of these keeps its own answer. Any other point gets the mean answer of
the three seen ones that lie nearest to it on the file's own coordinates, by the inverse of the squared distance, as
the head itself brings tokens to points (PointNet++, Qi et al. 2017, section 3.4), whichever chip they were seen in.

`read` runs in a limited child process, as readers do: it makes the whole new file out of the old one.

Legend: N points of the file, n points seen, K classes without the background.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from domains.pointcloud import las_header
from domains.pointcloud.cloud import CHANNELS, Mesh, span
from domains.pointcloud.headers import read_ply_header
from domains.pointcloud.ingest import PORTION, contents_of, parsing, seen
from domains.pointcloud.las import is_noise, xyz_of
from domains.pointcloud.libraries import library
from domains.pointcloud.ply import columns_of
from domains.pointcloud.settings import Points
from domains.sample import UNKNOWN_CLASS, ManifestRow, Piece, Refused

NEIGHBOURS = 3
"""Seen points that decide for one that was not seen."""
CELLS = 256
"""Along x and along y: points are asked about cell by cell, three times as fast as in an order that jumps about."""
LABEL = "label"
OLD_FORMATS, OLD_MOST = 6, 31
"""Point formats of LAS below this number have five bits for a class."""
PLY_NAMES = {"i1": "char", "u1": "uchar", "i2": "short", "u2": "ushort", "i4": "int", "u4": "uint", "f4": "float",
             "f8": "double"}
COLOURS = CHANNELS["colour"]


@dataclass(frozen=True)
class Labelling:
    """What classes of points are written from."""

    points: Points
    """How the model's files are read, which says which of their points it has seen."""
    numbers: tuple[int, ...]
    """K+1: what each class is called in files, the background's first."""
    names: tuple[str, ...]
    """K+1."""


Settings = Labelling


def ending(path: Path) -> str:
    """Of the file that is made for a cloud."""
    suffix = path.suffix.lower()
    return suffix if suffix in (".las", ".laz") else ".ply"


def read(row: ManifestRow, settings: Labelling) -> list[Piece]:
    """One piece whose values are the bytes of the new file, uint8.

    Facts: `counts`, points of each class; `not_looked_at`, points that have no place, and those of a LAS file that were
    left out as noise or withheld: they keep the class that the file gives them.

    Args:
        row: whose mask_path is a .npy of n K+1 probabilities: piece by piece, point by point, as stored.

    Raises:
        Refused.
    """
    assert row.mask_path is not None, "answers come as a file beside the cloud"
    said = np.load(row.mask_path, allow_pickle=False)
    rows = np.concatenate(seen(row, settings.points))
    if len(rows) != len(said):
        raise Refused("the file changed while it was read")
    order = np.argsort(rows)
    make = _las if row.path.suffix.lower() in (".las", ".laz") else _ply
    content, counts, left = make(row.path, settings, rows[order], said[order])
    return [Piece(np.frombuffer(content, np.uint8), facts={"counts": counts.tolist(), "not_looked_at": left})]


# ---- every point ----

class Neighbours:
    """Answers for points that were not seen, from those that were."""

    def __init__(self, xyz: np.ndarray, said: np.ndarray) -> None:
        """xyz: n 3, where the seen points lie. said: n K+1, what the model says of them."""
        self.said = said
        self.tree = library("scipy.spatial").cKDTree(xyz)

    def told(self, xyz: np.ndarray) -> np.ndarray:
        """N 3 -> N K+1."""
        if not len(xyz):
            return np.zeros((0, self.said.shape[1]), self.said.dtype)
        order = _by_place(xyz)
        told = np.empty((len(xyz), self.said.shape[1]), self.said.dtype)
        told[order] = self._told(xyz[order])
        return told

    def _told(self, xyz: np.ndarray) -> np.ndarray:
        far, nearest = self.tree.query(xyz, k=min(NEIGHBOURS, len(self.said)))
        far, nearest = far.reshape(len(xyz), -1), nearest.reshape(len(xyz), -1)
        first = far[:, :1]
        # Shares of the nearest, so that no distance is too small to divide by; those at the very place decide alone.
        share = np.divide(first, far, out=np.ones_like(far), where=far > 0) ** 2
        share[(first[:, 0] == 0)[:, None] & (far > 0)] = 0
        share /= share.sum(axis=1, keepdims=True)
        return np.einsum("nk,nkc->nc", share, self.said[nearest])


def _by_place(xyz: np.ndarray) -> np.ndarray:
    """N: an order in which neighbours follow each other."""
    low, high = span(xyz[:, :2])
    wide = np.where(high > low, high - low, 1)
    cells = ((xyz[:, :2] - low) / wide * (CELLS - 1)).astype(np.uint16)
    return np.argsort(cells[:, 0] * np.uint16(CELLS) + cells[:, 1], kind="stable")


def _called(xyz: np.ndarray, near: Neighbours, first: int, rows: np.ndarray, said: np.ndarray) -> np.ndarray:
    """Classes of a portion of the file's points that begins with number `first`.

    Args:
        rows: n, numbers of the seen points, rising. said: n K+1.
    """
    low, high = np.searchsorted(rows, [first, first + len(xyz)])
    told = near.told(xyz)
    told[rows[low:high] - first] = said[low:high]
    return np.asarray(told.argmax(axis=1))


# ---- LAS and LAZ ----

def _las(path: Path, settings: Labelling, rows: np.ndarray, said: np.ndarray) -> tuple[memoryview, np.ndarray, int]:
    """The new file, portion by portion: records, header, coordinate system and all fields but one as they were."""
    laspy = library("laspy")
    table = np.array(settings.numbers, np.uint8)
    counts, left, out = np.zeros(len(table), np.int64), 0, io.BytesIO()
    las_header.check(path)
    with parsing("LAS"), laspy.open(path) as file:
        kind = file.header.point_format.id
        if kind < OLD_FORMATS and table.max() > OLD_MOST:
            raise Refused(f"LAS: found point format {kind}, whose classes end at {OLD_MOST}, expected {OLD_FORMATS} or "
                          f"later for a model that calls a class {table.max()}. Convert the file first")
        near = Neighbours(_seen_places(file, rows), said)
        file.seek(0)
        with laspy.open(out, mode="w", header=file.header, do_compress=path.suffix.lower() == ".laz",
                        closefd=False) as writer:
            for first, portion in _portions(file):
                called = _called(xyz_of(portion), near, first, rows, said)
                kept = is_noise(portion) if settings.points.drop_noise else np.zeros(len(called), bool)
                portion.classification = np.where(kept, np.asarray(portion.classification), table[called])
                writer.write_points(portion)
                counts += np.bincount(called[~kept], minlength=len(table))
                left += int(np.count_nonzero(kept))
            if file.header.version.minor >= 4 and file.evlrs:
                writer.write_evlrs(file.evlrs)
    return out.getbuffer(), counts, left


def _portions(file: Any) -> Iterator[tuple[int, Any]]:
    """Portions of points, and the number of the first of each."""
    first = 0
    for portion in file.chunk_iterator(PORTION):
        yield first, portion
        first += len(portion)


def _seen_places(file: Any, rows: np.ndarray) -> np.ndarray:
    """n 3: where the points with these rising numbers lie."""
    found = []
    for first, portion in _portions(file):
        low, high = np.searchsorted(rows, [first, first + len(portion)])
        found.append(xyz_of(portion)[rows[low:high] - first])
    return np.concatenate(found)


# ---- PLY ----

def _ply(path: Path, settings: Labelling, rows: np.ndarray, said: np.ndarray) -> tuple[bytes, np.ndarray, int]:
    """A cloud with the columns that it had, in their types, and `label` behind the coordinates."""
    with parsing("PLY"):
        columns = _columns(path, settings.points)
        xyz = np.stack([columns[axis] for axis in "xyz"], axis=1).astype(np.float64)
        called = np.full(len(xyz), UNKNOWN_CLASS, np.int64)
        finite = np.isfinite(xyz).all(axis=1)
        called[finite] = Neighbours(xyz[rows], said).told(xyz[finite]).argmax(axis=1)
        called[rows] = said.argmax(axis=1)
        table = np.full(256, UNKNOWN_CLASS, np.uint8)
        table[:len(settings.numbers)] = settings.numbers
        columns.pop(LABEL, None)
        named = {**{axis: columns.pop(axis) for axis in "xyz"}, LABEL: table[called], **columns}
        counts = np.bincount(called[finite], minlength=len(settings.numbers))
        return _ply_bytes(named, settings), counts, int(np.count_nonzero(~finite))


def _columns(path: Path, settings: Points) -> dict[str, np.ndarray]:
    """Name -> N numbers in a type that PLY has. Raises Refused."""
    suffix = path.suffix.lower()
    if suffix == ".ply":
        header = read_ply_header(path, settings.max_points)
        types = {one.name: one.dtype for element in header.elements if element.name == "vertex"
                 for one in element.properties}
        with np.errstate(invalid="ignore"):
            return {name: values.astype("<" + types[name]) for name, values in columns_of(path, header).items()}
    cloud, _ = contents_of(path, suffix, settings)
    assert not isinstance(cloud, Mesh), "a mesh has no points that were seen"
    columns = {axis: cloud.xyz[:, i] for i, axis in enumerate("xyz")}
    for name, channels in (*CHANNELS.items(), ("class", ("class",))):
        if name in cloud.more:
            columns |= {channel: cloud.more[name][:, i] for i, channel in enumerate(channels)}
    return {name: _in_a_type_of_ply(name, values) for name, values in columns.items()}


def _in_a_type_of_ply(name: str, values: np.ndarray) -> np.ndarray:
    """The numbers as they are; bytes where colours and classes fit, as programs expect them; doubles for long ones."""
    fits = name in (*COLOURS, "class") and bool(np.isin(values, np.arange(256)).all())
    if fits:
        return values.astype("<u1")
    return values.astype("<" + values.dtype.str[1:] if values.dtype.str[1:] in PLY_NAMES else "<f8")


def _ply_bytes(columns: dict[str, np.ndarray], settings: Labelling) -> bytes:
    table = np.empty(len(columns["x"]), [(name, values.dtype) for name, values in columns.items()])
    for name, values in columns.items():
        table[name] = values
    means = [f"comment {LABEL} {number} is {''.join(c if c.isprintable() and c.isascii() else '?' for c in name)}"
             for number, name in zip(settings.numbers, settings.names, strict=True)]
    header = ["ply", "format binary_little_endian 1.0", *means, f"element vertex {len(table)}",
              *(f"property {PLY_NAMES[values.dtype.str[1:]]} {name}" for name, values in columns.items()), "end_header"]
    return "\n".join(header).encode("latin-1") + b"\n" + table.tobytes()
