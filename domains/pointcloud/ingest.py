"""Reads meshes and point clouds into pieces: points in random order, centred.

`read` runs in a child process that may be killed, so it may trust nothing: headers are checked before a library sees
the file, every library call on file content is wrapped, and a refusal holds format names and numbers only.

Legend: M points, V vertices, T triangles.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np

from domains.contract import Channel, Contract
from domains.pointcloud import headers
from domains.pointcloud.off import read_off
from domains.pointcloud.surfaces import sample_surface
from domains.sample import Fact, ManifestRow, Piece, Refused

SUFFIXES = (".ply", ".off", ".pcd", ".las", ".laz", ".xyz", ".txt", ".npy")

FARTHEST_METRES = 10_000.0
"""Coordinates are clipped here when scale is kept: float32 still tells millimetres apart at this distance."""

NOISE_CLASSES = (7, 18)
"""ASPRS classes of points that the surveyor has marked as noise: low and high."""

APT_PACKAGES = {"libusb-1.0": "libusb-1.0-0", "libGL": "libgl1", "libEGL": "libegl1", "libX11": "libx11-6",
                "libgomp": "libgomp1", "libidn2": "libidn2-0", "libudev": "libudev1", "libstdc++": "libstdc++6"}
"""Debian and Ubuntu packages of the system libraries that open3d's wheel links to, found with ldd; libgomp is for the
wheels before 0.20."""


@dataclass(frozen=True)
class Points:
    """How meshes and point clouds are read."""

    kind: Literal["points"] = "points"
    """Tells the settings of the kinds apart."""
    size: tuple[int, ...] = (1024,)
    """How many points a model gets of each sample: [1024]."""
    points_per_sample: int = 8192
    """At most this many points are stored of each sample, drawn at random from a cloud and by area from a mesh;
    training takes `size` of them anew each time. A cloud that has fewer is stored as it is."""
    min_points: int = 64
    """Files, and tiles of them, with fewer finite points are refused."""
    scale: Literal["unit_sphere", "metres"] = "unit_sphere"
    """unit_sphere: scale is taken out, centroid to 0 and farthest point to 1; stored as float16, whose rounding of
    0.0005 is under a fiftieth of the distance between neighbours among 8,192 points on a sphere. metres: size carries
    meaning and is kept; stored as float32, since float16 would round a building to 3 cm."""
    metres_per_unit: float = 1.0
    """Length of the files' unit: 0.001 for millimetres, 0.3048 for feet."""
    y_up_sources: tuple[str, ...] = ()
    """Sources whose files have y pointing up, as many design programs do; they are turned so that z does."""
    tile_metres: float = 0.0
    """Cut each file into square tiles with this side, seen from above, for scenes too large for one sample. 0: whole.
    """
    drop_noise: bool = True
    """LAS, LAZ: leave out points flagged as withheld or classed as noise (7, 18)."""
    max_points: int = 50_000_000
    """Files that hold, or promise, more points than this are refused: 50 million take 1.2 GB as coordinates."""

    def __post_init__(self) -> None:
        if len(self.size) != 1 or self.size[0] < 1:
            raise ValueError(f"size: found {self.size}, expected one number of points. Set size: [1024].")
        if self.points_per_sample < self.size[0]:
            raise ValueError(f"points_per_sample: found {self.points_per_sample}, expected at least size, "
                             f"{self.size[0]}. Store more points, or ask for fewer.")
        if self.min_points < 1:
            raise ValueError(f"min_points: found {self.min_points}, expected at least 1.")
        if not 0 < self.metres_per_unit < float("inf"):
            raise ValueError(f"metres_per_unit: found {self.metres_per_unit}, expected a positive length. "
                             "Set 0.001 for millimetres, 1 for metres.")
        if not 0 <= self.tile_metres < float("inf"):
            raise ValueError(f"tile_metres: found {self.tile_metres}, expected a side in metres, or 0 for no tiles.")


Settings = Points


def suffixes(settings: Settings) -> tuple[str, ...]:
    """File endings that this kind reads."""
    return SUFFIXES


def contract(settings: Settings) -> Contract:
    """What the stored samples are; statistics and tasks are filled in by the stage."""
    metric = settings.scale == "metres"
    reach = FARTHEST_METRES if metric else 1.0
    unit = "m" if metric else "radius"
    return Contract(domain="pointcloud", kind="points",
                    channels=tuple(Channel(axis, unit, low=-reach, high=reach) for axis in "xyz"),
                    dtype="float32" if metric else "float16", size=settings.size,
                    normalisation="standardise" if metric else "unit_sphere")


def read(row: ManifestRow, settings: Settings) -> list[Piece]:
    """One file to one piece, or to its tiles. The same bytes give the same points. Raises Refused."""
    rng = np.random.default_rng(_seed(row.path))
    points, facts = _points_of(row.path, settings, rng)
    finite = np.isfinite(points).all(axis=1)
    points = points[finite].astype(np.float64) * settings.metres_per_unit
    facts["dropped_non_finite"] = int(len(finite) - len(points))
    if row.source in settings.y_up_sources:
        points = points[:, [2, 0, 1]]  # x y z to z x y: a turn, not a mirror image
    if not settings.tile_metres:
        return [_piece(points, facts, settings, rng)]
    pieces = []
    for place, tile in _tiles(points, settings.tile_metres):
        if len(tile) >= settings.min_points:
            pieces.append(_piece(tile, {**facts, "tile": list(place)}, settings, rng, f"@x{place[0]}y{place[1]}"))
    if not pieces:
        raise Refused(f"found no tile of {settings.tile_metres:g} m with {settings.min_points} points or more among "
                      f"{len(points)} points")
    return pieces


def implausible(pieces: list[Piece], settings: Settings) -> str | None:
    """A sentence when a sample of pieces contradicts the declared unit, else None."""
    extents = np.array([piece.facts["extent"] for piece in pieces], dtype=np.float64)
    plan, height = float(np.median(extents[:, :2].max(axis=1))), float(np.median(extents[:, 2]))
    if plan > 0 and height > 1000 * plan:
        return (f"extent: found clouds {height:.3g} high and {plan:.3g} wide, expected one unit for all three axes; "
                "x and y look like degrees. Remedy: reproject the files to a metric coordinate system.")
    largest = float(np.median(extents.max(axis=1)))
    if settings.scale == "metres" and not 1e-3 < largest < FARTHEST_METRES:
        return (f"extent: found samples {largest:.3g} m across (median), expected between a millimetre and "
                f"{FARTHEST_METRES:.0f} m. Remedy: set metres_per_unit to the length of the files' unit "
                "(0.001 for millimetres).")
    return None


def _seed(path: Path) -> int:
    """From the file's content, so that a copy under another name gives the same points."""
    with path.open("rb") as file:
        return int(hashlib.file_digest(file, "sha256").hexdigest(), 16)


def _piece(points: np.ndarray, facts: dict[str, Fact], settings: Points, rng: np.random.Generator,
           suffix: str = "") -> Piece:
    """Centre, scale and shuffle: in random order, the first k points are a fair sample for any k."""
    if len(points) < settings.min_points:
        raise Refused(f"found {len(points)} finite points, expected at least {settings.min_points} (min_points)")
    chosen = points[rng.permutation(len(points))[:settings.points_per_sample]]
    chosen = chosen - chosen.mean(axis=0)
    radius = float(np.linalg.norm(chosen, axis=1).max())
    if not 0 < radius < np.inf:
        raise Refused(f"found {len(points)} points that all lie in one place, expected a shape")
    facts = {**facts, "num_points": len(points), "extent": [float(e) for e in np.ptp(points, axis=0)], "radius": radius}
    if settings.scale == "unit_sphere":
        return Piece((chosen / radius).astype(np.float16), facts=facts, suffix=suffix)
    return Piece(chosen.clip(-FARTHEST_METRES, FARTHEST_METRES).astype(np.float32), facts=facts, suffix=suffix)


def _tiles(points: np.ndarray, side: float) -> Iterator[tuple[tuple[int, int], np.ndarray]]:
    """Squares on a grid that starts at the lowest x and y, those that hold points, in order."""
    cells = np.floor((points[:, :2] - points[:, :2].min(axis=0)) / side).astype(np.int64)
    order = np.lexsort((cells[:, 1], cells[:, 0]))
    cells = cells[order]
    starts = np.flatnonzero(np.any(cells[1:] != cells[:-1], axis=1)) + 1
    for members in np.split(order, starts):
        place = np.floor((points[members[0], :2] - points[:, :2].min(axis=0)) / side).astype(np.int64)
        yield (int(place[0]), int(place[1])), points[members]


# ---- formats ----

def _points_of(path: Path, settings: Points, rng: np.random.Generator) -> tuple[np.ndarray, dict[str, Fact]]:
    """M 3 coordinates in the file's unit, and facts."""
    suffix = path.suffix.lower()
    if suffix == ".off":
        return _sampled(*read_off(path, settings.max_points), settings, rng)
    if suffix == ".ply":
        promise = headers.read_ply(path)
        _limit("PLY", promise.num_points + promise.num_faces, settings)
        if promise.num_faces:
            return _sampled(*_ply_mesh(path, promise), settings, rng)
        return _ply_cloud(path, promise), {"format": "PLY"}
    if suffix == ".pcd":
        promise = headers.read_pcd(path)
        _limit("PCD", promise.num_points, settings)
        return _pcd(path, promise), {"format": "PCD"}
    if suffix in (".las", ".laz"):
        return _las(path, settings)
    if suffix == ".npy":
        return _array(path, settings), {"format": "NPY"}
    if suffix in (".xyz", ".txt"):
        return _text(path, settings), {"format": "XYZ"}
    raise Refused(f"found another file ending, expected one of {', '.join(SUFFIXES)}")


def _sampled(vertices: np.ndarray, triangles: np.ndarray, settings: Points,
             rng: np.random.Generator) -> tuple[np.ndarray, dict[str, Fact]]:
    points, area = sample_surface(vertices, triangles, settings.points_per_sample, rng)
    return points, {"format": "mesh", "num_vertices": len(vertices), "num_triangles": len(triangles),
                    "area": area * settings.metres_per_unit ** 2}


def _limit(what: str, promised: int, settings: Points) -> None:
    if promised > settings.max_points:
        raise Refused(f"{what}: found {promised} points or faces, expected at most {settings.max_points} (max_points)")


def _ply_mesh(path: Path, promise: headers.Promise) -> tuple[np.ndarray, np.ndarray]:
    with _parsing("PLY"):
        mesh = _open3d().io.read_triangle_mesh(str(path))
        vertices, triangles = np.asarray(mesh.vertices), np.asarray(mesh.triangles).astype(np.int64)
    if len(vertices) != promise.num_points:
        raise Refused(f"PLY: found {len(vertices)} vertices, expected the {promise.num_points} of the header")
    if len(triangles) and not 0 <= triangles.min() <= triangles.max() < len(vertices):
        raise Refused(f"PLY: a face names a vertex that is not among the {len(vertices)}")
    return vertices, triangles


def _ply_cloud(path: Path, promise: headers.Promise) -> np.ndarray:
    with _parsing("PLY"):
        cloud = _open3d().io.read_point_cloud(str(path), remove_nan_points=False, remove_infinite_points=False)
        points = np.asarray(cloud.points)
    return _as_promised("PLY", points, promise)


def _pcd(path: Path, promise: headers.Promise) -> np.ndarray:
    """By Open3D's tensor reader: the older one returns zeros for binary coordinates of 8 bytes, without a word."""
    with _parsing("PCD"):
        cloud = _open3d().t.io.read_point_cloud(str(path), remove_nan_points=False, remove_infinite_points=False)
        points = cloud.point.positions.numpy()
    return _as_promised("PCD", points, promise)


def _as_promised(what: str, points: np.ndarray, promise: headers.Promise) -> np.ndarray:
    if points.shape != (promise.num_points, 3):
        raise Refused(f"{what}: found {len(points)} points, expected the {promise.num_points} that the header promises")
    return points


def _las(path: Path, settings: Points) -> tuple[np.ndarray, dict[str, Fact]]:
    """Read in portions, so that only the coordinates of a large file are ever in memory."""
    laspy = library("laspy")
    with _parsing("LAS"), laspy.open(path) as file:
        _limit("LAS", int(file.header.point_count), settings)
        portions, found = [], 0
        for portion in file.chunk_iterator(1_000_000):
            xyz = np.stack([np.asarray(portion.x), np.asarray(portion.y), np.asarray(portion.z)], axis=1)
            found += len(xyz)
            portions.append(xyz[_wanted(portion)] if settings.drop_noise else xyz)
        promised = int(file.header.point_count)
    if found != promised:
        raise Refused(f"LAS: found {found} points, expected the {promised} that the header promises")
    points = np.concatenate(portions) if portions else np.zeros((0, 3))
    return points, {"format": "LAS", "dropped_noise": found - len(points)}


def _wanted(portion: Any) -> np.ndarray:
    return ~np.isin(np.asarray(portion.classification), NOISE_CLASSES) & (np.asarray(portion.withheld) == 0)


def _array(path: Path, settings: Points) -> np.ndarray:
    with _parsing("NPY"):
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    if array.ndim != 2 or array.shape[1] < 3 or array.dtype.kind not in "fiu":
        raise Refused(f"NPY: found an array with {array.ndim} axes of kind {array.dtype.kind}, expected numbers, one "
                      "point per row with x, y, z first")
    _limit("NPY", len(array), settings)
    return np.array(array[:, :3], dtype=np.float64)


def _text(path: Path, settings: Points) -> np.ndarray:
    """x y z first on each line; lines may begin with a comment sign, and the first may name the columns."""
    _limit("XYZ", path.stat().st_size // 6, settings)  # "1 2 3\n" is the shortest line
    with _parsing("XYZ"), path.open(encoding="latin-1") as file:
        lines = [line for line in file if line.strip() and not line.lstrip().startswith(("#", "//"))]
        delimiter = next((sign for sign in ",;" if lines and sign in lines[0]), None)
        if lines and not _is_number(lines[0].split(delimiter)[0]):
            lines = lines[1:]
        if not lines:
            return np.zeros((0, 3))
        return np.loadtxt(lines, dtype=np.float64, delimiter=delimiter, usecols=(0, 1, 2), ndmin=2)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


# ---- libraries ----

@contextmanager
def _parsing(what: str) -> Iterator[None]:
    """Turn whatever a parser raises on damaged bytes into a refusal. Parsers promise no exception types, and their
    messages may quote the file, so that only the type's name is passed on."""
    try:
        yield
    except (Refused, ImportError):
        raise
    except Exception as error:
        raise Refused(f"{what}: not readable ({type(error).__name__})") from error


def _open3d() -> ModuleType:
    open3d = library("open3d")
    open3d.utility.set_verbosity_level(open3d.utility.VerbosityLevel.Error)  # warnings would quote paths
    return open3d


def library(name: str) -> ModuleType:
    """Import open3d or laspy, or raise ImportError with one sentence on what to install."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(_what_is_missing(name, str(error))) from error


def _what_is_missing(name: str, message: str) -> str:
    """One sentence. A wheel that is installed but lacks a system library says "libGL.so.1: cannot open ..."."""
    shared = message.split(":")[0]
    if ".so" not in shared or "cannot open" not in message:
        return f"{name} is missing, which reads point clouds. Install it with: pip install 'lacuna[pointcloud]'"
    packages = " ".join(APT_PACKAGES.values())
    package = APT_PACKAGES.get(shared.split(".so")[0], "")
    return (f"{name} cannot be loaded, since the system library {shared} is missing"
            f"{f' (package {package})' if package else ''}. Install what it needs with: apt-get install -y {packages}")
