"""The embedded point-cloud sample: vessels as design meshes (OFF, PLY) and as laser scans (PLY, LAS, LAZ), with a task.

`cad` holds whole, clean surfaces; `scan` what a scanner saw of such objects from one to three places, with noise and
pieces of ground. The gap between the two is the shift that a model trained on one of them pays for on the other.
"""

from __future__ import annotations

import csv
import datetime
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from domains.pointcloud.libraries import library
from domains.pointcloud.scanner import Scanner, scan
from domains.pointcloud.shapes import Mesh, vessel

SOURCES = ("cad", "scan")
SPLITS = ("train",) * 5 + ("val",) * 2 + ("test",) * 3
"""Of ten labelled objects. The test share is large because the sample is small, and its intervals would be wide."""
LABEL_MISSING = 0.05
"""Share of labelled files whose label was lost: unknown, which must not count as negative."""
SURVEY_CORNER = np.array([512_000.0, 5_403_000.0, 240.0])
"""Map coordinates, in metres, around which the LAS scans lie."""


@dataclass(frozen=True)
class Sample:
    """What to generate."""

    kind: Literal["points"] = "points"
    """Which of the domain's kinds."""
    labelled: int = 560
    """Files with labels, over all splits and both sources."""
    unlabelled: int = 640
    """Files for pretraining only."""
    seed: int = 0
    """The same seed writes the same bytes."""

    def __post_init__(self) -> None:
        if self.labelled < 0 or self.unlabelled < 0 or self.labelled + self.unlabelled < 1:
            raise ValueError(f"counts: found {self.labelled} labelled and {self.unlabelled} unlabelled, "
                             "expected numbers from 0 and at least one sample.")


def make(folder: Path, settings: Sample) -> None:
    """Write the files and labels.csv (path, group, split, source, right_handed, ribs) into `folder`."""
    for source in SOURCES:
        (folder / source).mkdir(parents=True, exist_ok=True)
    rows = _objects(folder, settings.labelled, True, settings.seed)
    rows += _objects(folder, settings.unlabelled, False, settings.seed)
    with (folder / "labels.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _objects(folder: Path, count: int, labelled: bool, seed: int) -> list[dict[str, Any]]:
    """Objects until there are `count` files, half of each source. Some objects come as a mesh and as scans, some as
    several scans: the group says that they are one object."""
    rows: list[dict[str, Any]] = []
    left = {"cad": count // 2, "scan": count - count // 2}
    deal = np.random.default_rng([seed, int(labelled)])
    splits: list[str] = []
    for number in itertools.count():
        if not left["cad"] and not left["scan"]:
            return rows
        splits = splits or [str(split) for split in deal.permutation(SPLITS)]
        split = splits.pop() if labelled else "unlabelled"
        # A generator per object: a change to one of them leaves the others as they are
        rows += _object(folder, f"{'object' if labelled else 'extra'}{number:04d}", split, left,
                        np.random.default_rng([seed, int(labelled), number]))
    return rows


def _object(folder: Path, group: str, split: str, left: dict[str, int],
            rng: np.random.Generator) -> list[dict[str, Any]]:
    right_handed = bool(rng.random() < 0.5)
    (vertices, triangles), ribs = vessel(rng, right_handed)
    mesh = vertices * rng.uniform(0.5, 2.5), triangles  # metres
    rows = []
    for source, number in _forms(left, rng):
        left[source] -= 1
        name = f"{source}/{group}_{number}"
        path = _write_cad(folder, name, mesh, rng) if source == "cad" else _write_scan(folder, name, mesh, rng)
        known = split != "unlabelled" and rng.random() >= LABEL_MISSING
        rows.append({"path": path, "group": group, "split": split, "source": source,
                     "right_handed": int(right_handed) if known else "", "ribs": ribs if known else ""})
    return rows


def _forms(left: dict[str, int], rng: np.random.Generator) -> list[tuple[str, int]]:
    """In what an object comes: a mesh, one or two scans, or both; as far as files of that source are still to be made.
    """
    both = rng.random() < 0.25
    meshes = int(left["cad"] > 0 and (both or rng.random() < 0.6 or not left["scan"]))
    scans = min(left["scan"], int(rng.integers(1, 3))) if both or not meshes else 0
    return [("cad", 0)] * meshes + [("scan", number) for number in range(scans)]


# ---- files ----

def _write_cad(folder: Path, name: str, mesh: Mesh, rng: np.random.Generator) -> str:
    suffix = str(rng.choice([".off", ".ply"]))
    writer: Callable[[Path, Mesh], None] = _write_off if suffix == ".off" else _write_ply_mesh
    writer(folder / f"{name}{suffix}", mesh)
    return f"{name}{suffix}"


def _write_scan(folder: Path, name: str, mesh: Mesh, rng: np.random.Generator) -> str:
    size = float(np.ptp(mesh[0][:, 2]))
    points = scan((mesh[0] / size, mesh[1]), Scanner(), rng) * size
    suffix = str(rng.choice([".ply", ".las", ".laz"], p=[0.5, 0.4, 0.1]))
    if suffix == ".ply":
        _write_ply_cloud(folder / f"{name}{suffix}", points)
    else:
        _write_las(folder / f"{name}{suffix}", points + SURVEY_CORNER + rng.uniform(0, 500, 3) * [1, 1, 0.05])
    return f"{name}{suffix}"


def _write_off(path: Path, mesh: Mesh) -> None:
    vertices, triangles = mesh
    lines = ["OFF", f"{len(vertices)} {len(triangles)} 0"]
    lines += [f"{x:.5f} {y:.5f} {z:.5f}" for x, y, z in vertices.tolist()]
    lines += [f"3 {a} {b} {c}" for a, b, c in triangles.tolist()]
    path.write_text("\n".join(lines) + "\n")


def _write_ply_mesh(path: Path, mesh: Mesh) -> None:
    vertices, triangles = mesh
    faces = np.zeros(len(triangles), dtype=[("count", "u1"), ("corners", "<i4", 3)])
    faces["count"], faces["corners"] = 3, triangles
    _write_ply(path, vertices, f"element face {len(faces)}\nproperty list uchar int vertex_indices\n", faces.tobytes())


def _write_ply_cloud(path: Path, points: np.ndarray) -> None:
    _write_ply(path, points, "", b"")


def _write_ply(path: Path, points: np.ndarray, more_header: str, more_data: bytes) -> None:
    header = (f"ply\nformat binary_little_endian 1.0\nelement vertex {len(points)}\n"
              f"property float x\nproperty float y\nproperty float z\n{more_header}end_header\n")
    path.write_bytes(header.encode() + points.astype("<f4").tobytes() + more_data)


def _write_las(path: Path, points: np.ndarray) -> None:
    laspy = library("laspy")
    header = laspy.LasHeader(point_format=0, version="1.2")
    header.creation_date = datetime.date(2024, 1, 1)  # the day of writing would make the bytes differ
    header.scales, header.offsets = np.full(3, 0.001), np.floor(points.min(axis=0))
    las = laspy.LasData(header)
    las.x, las.y, las.z = points.T
    las.write(path)
