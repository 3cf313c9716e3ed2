"""Reads meshes and point clouds into pieces: points centred, in random order or farthest first.

`read` runs in a child process that may be killed, so it may trust nothing: headers are checked before a library sees
the file, every parse of file content is wrapped, and a refusal holds format names and numbers only.

Legend: M points, F values per point.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from domains.contract import Channel, Contract
from domains.pointcloud import las_header
from domains.pointcloud.chips import Chips, Extent
from domains.pointcloud.cloud import CHANNELS, Cloud, Mesh, attributes, classes_of, join, largest, span, stored
from domains.pointcloud.columns import read_array, read_text
from domains.pointcloud.farthest import farthest_first
from domains.pointcloud.georeference import epsg_of, metres_of
from domains.pointcloud.headers import read_pcd_header
from domains.pointcloud.las import ROW, Records, check_unit, cloud_of, is_noise
from domains.pointcloud.libraries import library
from domains.pointcloud.obj import read_obj
from domains.pointcloud.off import read_off
from domains.pointcloud.ply import read_ply
from domains.pointcloud.settings import Points
from domains.pointcloud.stl import read_stl
from domains.pointcloud.surfaces import sample_mesh
from domains.sample import Fact, ManifestRow, Piece, Refused

SUFFIXES = (".ply", ".off", ".obj", ".stl", ".pcd", ".las", ".laz", ".xyz", ".txt", ".npy")

FARTHEST_METRES = 10_000.0
"""Coordinates are clipped here when scale is kept: float32 still tells millimetres apart at this distance."""
FARTHEST_AMONG = 2**18
"""Points of a cloud, drawn at random, among which farthest ones are chosen: some 0.3 s and a dozen megabytes."""
FARTHEST_OF_MESH = 4
"""Points that are drawn by area for each farthest one that is stored."""
ROUNDED = 0.002
"""Share of a cloud's extent that the rounding of its coordinates may be."""
PORTION = 1_000_000
"""Points of a LAS file that are decoded at once."""
WHOLE = 4_000_000
"""A LAS file with more points is thinned while it is read, since only some of them are stored in the end."""

PCD_ATTRIBUTES = {"normals": CHANNELS["normals"], "colors": CHANNELS["colour"], "intensity": CHANNELS["intensity"],
                  "label": ("class",), "class": ("class",), "classification": ("class",)}
"""What Open3D calls an attribute of a PCD file, and our channels of it."""

Settings = Points


def suffixes(settings: Settings) -> tuple[str, ...]:
    """File endings that this kind reads."""
    return SUFFIXES


def contract(settings: Settings) -> Contract:
    """What the stored samples are; statistics and tasks are filled in by the stage."""
    metric = settings.scale == "metres"
    reach = FARTHEST_METRES if metric else 1.0
    channels = [Channel(axis, "m" if metric else "radius", low=-reach, high=reach) for axis in "xyz"]
    for feature in (name for name in CHANNELS if name in settings.features):
        unit, low = ("direction", -1.0) if feature == "normals" else ("share of full scale", 0.0)
        channels += [Channel(name, unit, low=low, high=1.0) for name in CHANNELS[feature]]
    gaps = settings.features or settings.fill == "unknown"
    return Contract(domain="pointcloud", kind="points", channels=tuple(channels),
                    dtype="float32" if metric else "float16", size=settings.size,
                    unknown=float("nan") if gaps else None,
                    normalisation="standardise" if metric else "unit_sphere")


def read(row: ManifestRow, settings: Settings) -> list[Piece]:
    """One file to one piece, or to its tiles. The same bytes give the same points. A row whose mask is the file itself
    keeps the classes of its points. Raises Refused."""
    classes = row.mask_path is not None
    if classes and row.mask_path != row.path:
        raise Refused("its mask is another file, expected the same one: masks of clouds are classes of their points")
    return _read(row, settings, classes, False)


def seen(row: ManifestRow, settings: Settings) -> list[np.ndarray]:
    """Which points of a file `read` stores, piece by piece in their stored order: M int64 each, from 0. Raises Refused,
    of a mesh too, whose stored points are none of the file's."""
    pieces = _read(row, settings, False, True)
    if any(piece.rows is None for piece in pieces):
        raise Refused("found a mesh, expected a cloud: between the corners of a triangle there is no point of the file")
    return [piece.rows for piece in pieces if piece.rows is not None]


def _read(row: ManifestRow, settings: Settings, classes: bool, numbered: bool) -> list[Piece]:
    """Pieces of a file, with the classes of their points and with their numbers in the file where asked for."""
    rng = np.random.default_rng(_seed(row))
    suffix, y_up = row.path.suffix.lower(), row.source in settings.y_up_sources
    if suffix in (".las", ".laz"):
        return _las_pieces(row.path, settings, y_up, rng, classes, numbered)
    contents, facts = contents_of(row.path, suffix, settings)
    if not classes or isinstance(contents, Mesh):  # between the corners of a triangle there is no class
        contents.more.pop("class", None)
    for name in set(contents.more) - {*settings.features, "class"}:  # nothing is stored of it
        del contents.more[name]
    if classes and "class" not in contents.more:
        raise Refused("found no class of its points, expected a cloud with a column class, label or classification")
    _refuse_rounded(contents.vertices if isinstance(contents, Mesh) else contents.xyz)
    if isinstance(contents, Mesh):
        contents, facts = _sampled(contents, settings, rng)
    elif numbered:
        contents.more[ROW] = np.arange(len(contents.xyz))[:, None]
    cloud = _in_metres(contents, settings, y_up)
    facts["dropped_non_finite"] = len(contents.xyz) - len(cloud.xyz)
    if not settings.tile_metres:
        return [_piece(cloud, _extent(cloud), largest(cloud), facts, settings, rng)]
    chips = _chips(settings, rng)
    chips.add(cloud)
    return _of_chips(chips, facts, settings, y_up, rng)


def implausible(pieces: list[Piece], settings: Settings) -> str | None:
    """A sentence when a sample of pieces contradicts the declared unit, else None."""
    extents = np.array([piece.facts["extent"] for piece in pieces], dtype=np.float64)
    plan, height = float(np.median(extents[:, :2].max(axis=1))), float(np.median(extents[:, 2]))
    if plan > 0 and height > 1000 * plan:
        return (f"extent: found clouds {height:.3g} high and {plan:.3g} wide, expected one unit for all three axes; "
                "x and y look like degrees. Remedy: reproject the files to a metric coordinate system.")
    top = float(np.median(extents.max(axis=1)))
    if settings.scale == "metres" and not 1e-3 < top < FARTHEST_METRES:
        return (f"extent: found samples {top:.3g} m across (median), expected between a millimetre and "
                f"{FARTHEST_METRES:.0f} m. Remedy: set metres_per_unit to the length of the files' unit "
                "(0.001 for millimetres).")
    return None


def _seed(row: ManifestRow) -> int:
    """From the file's content, so that a copy under another name gives the same points."""
    if row.sha256:
        return int(row.sha256, 16)
    with row.path.open("rb") as file:
        return int(hashlib.file_digest(file, "sha256").hexdigest(), 16)


def _in_metres(cloud: Cloud, settings: Points, y_up: bool) -> Cloud:
    """The finite points, in metres, with z pointing up."""
    finite = np.isfinite(cloud.xyz)
    if not finite.all():
        cloud = cloud.take(finite.all(axis=1))
    xyz, more = cloud.xyz.astype(np.float64, copy=False), dict(cloud.more)
    if settings.metres_per_unit != 1:
        xyz = xyz * settings.metres_per_unit
    if y_up:  # x y z to z x y: a turn, not a mirror image
        xyz = xyz[:, [2, 0, 1]]
        more |= {name: values[:, [2, 0, 1]] for name, values in more.items() if name == "normals"}
    return Cloud(xyz, more)


def _refuse_rounded(xyz: np.ndarray) -> None:
    """Numbers of 32 bits tell 0.5 m apart at a northing of five million: an object that was saved so lies on a few
    planes, and its file does not say it."""
    known = np.isfinite(xyz)
    finite = xyz if known.all() else xyz[known.all(axis=1)]
    if not len(finite):
        return
    low, high = span(finite)
    across = float((high - low).max())
    for axis, most in zip(finite.T, np.maximum(abs(low), abs(high)), strict=True):
        if most < np.finfo(np.float32).max and np.array_equal(axis, axis.astype(np.float32)):
            step = float(np.spacing(np.float32(most)))
            if step > ROUNDED * across > 0:
                raise Refused(f"found coordinates up to {most:.0f} in 32 bits, which lie {step:.2g} apart there, in a "
                              f"file that is {across:.3g} across. Remedy: save it in 64 bits, or take an offset off "
                              "before")


def _extent(cloud: Cloud) -> Extent:
    nowhere = np.zeros(3)
    return Extent(len(cloud.xyz), *span(cloud.xyz)) if len(cloud.xyz) else Extent(0, nowhere, nowhere)


# ---- pieces ----

def _chips(settings: Points, rng: np.random.Generator) -> Chips:
    limit = FARTHEST_AMONG if settings.sample == "farthest" else settings.points_per_sample
    return Chips(settings.tile_metres, limit, rng)


def _of_chips(chips: Chips, facts: dict[str, Fact], settings: Points, y_up: bool,
              rng: np.random.Generator) -> list[Piece]:
    """A piece per chip that holds enough points."""
    pieces = []
    for place, extent, cloud in chips.chips():
        if extent.count >= settings.min_points:
            own = {**facts, "tile": list(place)}
            if not y_up:  # turned coordinates lie on no map
                bounds = [*extent.low[:2], *extent.high[:2]]
                own["bounds"] = [float(edge) / settings.metres_per_unit for edge in bounds]
            pieces.append(_piece(cloud, extent, chips.largest, own, settings, rng, f"@x{place[0]}y{place[1]}",
                                 on_a_map=not y_up))
    if not pieces:
        found = sum(extent.count for extent in chips.extents.values())
        raise Refused(f"found no tile of {settings.tile_metres:g} m with {settings.min_points} points or more among "
                      f"{found} points")
    return pieces


def _piece(cloud: Cloud | Records, extent: Extent, top: dict[str, float], facts: dict[str, Fact], settings: Points,
           rng: np.random.Generator, suffix: str = "", on_a_map: bool = False) -> Piece:
    """Choose, centre and scale. In random order the first k points are a fair sample for any k; chosen farthest first
    they are the k that cover the shape best."""
    if extent.count < settings.min_points:
        noise = f" besides {facts['dropped_noise']} marked as noise (drop_noise)" if facts.get("dropped_noise") else ""
        raise Refused(f"found {extent.count} finite points{noise}, expected at least {settings.min_points} "
                      "(min_points)")
    cloud = _chosen(cloud, settings, rng)
    with np.errstate(over="ignore", invalid="ignore"):  # of coordinates that only damage makes so large
        centre = cloud.xyz.mean(axis=0)
        places = cloud.xyz - centre
        radius = float(np.linalg.norm(places, axis=1).max())
    if not 0 < radius < np.inf:
        raise Refused(f"found {extent.count} points that all lie in one place, expected a shape")
    facts = {**facts, "num_points": extent.count, "extent": [float(e) for e in extent.high - extent.low],
             "radius": radius}
    unit_sphere = settings.scale == "unit_sphere"
    if on_a_map:
        facts |= {"origin": [float(c) / settings.metres_per_unit for c in centre],
                  "stored_unit": (radius if unit_sphere else 1.0) / settings.metres_per_unit}
    places = places / radius if unit_sphere else places.clip(-FARTHEST_METRES, FARTHEST_METRES)
    values = np.concatenate([places, stored(cloud, settings.features, top, settings.full_intensity)], axis=1)
    return Piece(values.astype(np.float16 if unit_sphere else np.float32), mask=classes_of(cloud), facts=facts,
                 suffix=suffix, rows=cloud.more[ROW][:, 0] if ROW in cloud.more else None)


def _chosen(cloud: Cloud | Records, settings: Points, rng: np.random.Generator) -> Cloud:
    """The points to store, in the order in which they are stored."""
    drawn = rng.permutation(cloud.num)
    if settings.sample == "random":
        return cloud.take(drawn[:settings.points_per_sample])
    some, first = cloud.take(drawn[:FARTHEST_AMONG]), cloud.take(np.zeros(1, np.intp))
    return some.take(farthest_first(some.xyz - first.xyz, settings.points_per_sample))


# ---- formats ----

def contents_of(path: Path, suffix: str, settings: Points) -> tuple[Mesh | Cloud, dict[str, Fact]]:
    """What a file other than LAS holds, in its own unit, and facts. Raises Refused."""
    if suffix in (".off", ".obj", ".stl", ".ply"):
        read_mesh = {".off": read_off, ".obj": read_obj, ".stl": read_stl, ".ply": read_ply}[suffix]
        what = suffix[1:].upper()
        with parsing(what):
            return read_mesh(path, settings.max_points), {"format": what}
    if suffix == ".pcd":
        promised = read_pcd_header(path)
        _limit("PCD", promised, settings)
        return _pcd(path, promised), {"format": "PCD"}
    if suffix == ".npy":
        with parsing("NPY"):
            return read_array(path, settings.columns, settings.max_points), {"format": "NPY"}
    if suffix in (".xyz", ".txt"):
        with parsing("XYZ"):
            return read_text(path, settings.columns, settings.max_points), {"format": "XYZ"}
    raise Refused(f"found another file ending, expected one of {', '.join(SUFFIXES)}")


def _sampled(mesh: Mesh, settings: Points, rng: np.random.Generator) -> tuple[Cloud, dict[str, Fact]]:
    several = FARTHEST_OF_MESH if settings.sample == "farthest" else 1
    cloud, area = sample_mesh(mesh, several * settings.points_per_sample, rng, "normals" in settings.features)
    return cloud, {"format": "mesh", "num_vertices": len(mesh.vertices), "num_triangles": len(mesh.triangles),
                   "area": area * settings.metres_per_unit ** 2}


def _limit(what: str, promised: int, settings: Points) -> None:
    if promised > settings.max_points:
        raise Refused(f"{what}: found {promised} points, expected at most {settings.max_points} (max_points)")


def _pcd(path: Path, promised: int) -> Cloud:
    """By Open3D's tensor reader: the older one returns zeros for binary coordinates of 8 bytes, without a word."""
    with parsing("PCD"):
        cloud = _open3d().t.io.read_point_cloud(str(path), remove_nan_points=False, remove_infinite_points=False)
        points = cloud.point.positions.numpy()
        named = {name: cloud.point[name].numpy() for name in PCD_ATTRIBUTES if name in cloud.point}
    if points.shape != (promised, 3):
        raise Refused(f"PCD: found {len(points)} points, expected the {promised} that the header promises")
    columns = {channel: values[:, i] for name, values in named.items()
               if values.shape == (len(points), len(PCD_ATTRIBUTES[name]))
               for i, channel in enumerate(PCD_ATTRIBUTES[name])}
    return Cloud(points, attributes(columns))


def _las_pieces(path: Path, settings: Points, y_up: bool, rng: np.random.Generator, classes: bool,
                numbered: bool) -> list[Piece]:
    """A LAS file portion by portion, so that of a scene that is cut, or of a very large file, only what may be stored
    is ever in memory; of one of a single portion, only what is stored becomes coordinates."""
    laspy = library("laspy")
    facts: dict[str, Fact] = {"format": "LAS", "dropped_noise": 0, "dropped_non_finite": 0}
    chips, whole, records, found = _chips(settings, rng), list[Cloud](), None, 0

    def cloud_at(some: Any, rows: np.ndarray) -> Cloud:
        return _in_metres(cloud_of(some, settings, classes, rows if numbered else None), settings, y_up)

    las_header.check(path)
    with parsing("LAS"), laspy.open(path) as file:
        promised = int(file.header.point_count)
        _limit("LAS", promised, settings)
        streamed = bool(settings.tile_metres) or promised > WHOLE
        told = [*file.header.vlrs, *(file.evlrs or ())]
        code = epsg_of(told)
        check_unit(*metres_of(told), settings)
        for portion in file.chunk_iterator(PORTION):
            first, found = found, found + len(portion)
            wanted = ~is_noise(portion) if settings.drop_noise else np.ones(len(portion), bool)
            _count(facts, "dropped_noise", len(portion) - int(np.count_nonzero(wanted)))
            if found == promised == len(portion) and not streamed:
                records = Records(portion, wanted, settings, cloud_at)
                if records.extent is not None:
                    continue
            some, rows = (portion, np.arange(first, found)) if wanted.all() else \
                (portion[wanted], first + np.flatnonzero(wanted))
            cloud = cloud_at(some, rows)
            _count(facts, "dropped_non_finite", len(rows) - len(cloud.xyz))
            if streamed:
                chips.add(cloud)
            else:
                whole.append(cloud)
    if found != promised:
        raise Refused(f"LAS: found {found} points, expected the {promised} that the header promises")
    if code is not None and not y_up:
        facts["epsg"] = code
    if settings.tile_metres:
        return _of_chips(chips, facts, settings, y_up, rng)
    if streamed:
        nothing = (0, 0), _extent(join([])), join([])  # where every point was left out; `_piece` refuses it
        _, extent, cloud = next(chips.chips(), nothing)
        return [_piece(cloud, extent, chips.largest, facts, settings, rng, on_a_map=not y_up)]
    if records is not None and records.extent is not None:
        return [_piece(records, records.extent, records.largest, facts, settings, rng, on_a_map=not y_up)]
    cloud = join(whole)
    return [_piece(cloud, _extent(cloud), largest(cloud), facts, settings, rng, on_a_map=not y_up)]


def _count(facts: dict[str, Fact], name: str, more: int) -> None:
    facts[name] = int(str(facts[name])) + more


# ---- libraries ----

@contextmanager
def parsing(what: str) -> Iterator[None]:
    """Turn whatever a parser raises on damaged bytes into a refusal. Parsers promise no exception types, and their
    messages may quote the file, so that only the type's name is passed on."""
    try:
        yield
    except (Refused, ImportError, MemoryError):
        raise
    except Exception as error:
        raise Refused(f"{what}: not readable ({type(error).__name__})") from error


def _open3d() -> ModuleType:
    open3d = library("open3d")
    open3d.utility.set_verbosity_level(open3d.utility.VerbosityLevel.Error)  # warnings would quote paths
    return open3d
