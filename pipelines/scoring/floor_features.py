"""What a simple model sees of a sample: facts about the file, statistics of its values, a tiny picture, its outline.

A score means little until a model that sees only these has been scored on the same split. None of them looks at labels.

Legend: n rows, F features, C channels, M points; NaN is "missing", which the models impute from training rows.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from domains import pseudonyms
from domains.contract import Contract
from domains.store import Prepared
from pipelines.scoring.metrics import Floats
from pipelines.tracking import lineage

PERCENTILES = (1, 5, 25, 50, 75, 95, 99)
MAX_VALUES = 2**20
"""Values per channel that statistics look at; of a larger volume every k-th, which moves no percentile visibly."""
MAX_CATEGORIES = 20
"""Most frequent texts of a column that get a feature each; rarer ones share one."""
MAX_PAIRS = 4096
"""Pairs of points whose distance is taken: the histogram's noise is then 2 % of a bin."""
D2_BINS, D2_REACH = 24, 3.0
"""Bins of the distance histogram, up to so many mean distances."""


@dataclass(frozen=True)
class FactsFloor:
    """Facts that the reader kept: spacing, original size, number of points."""

    kind: Literal["facts"]
    columns: tuple[str, ...] = ()
    """Which facts; empty: all."""


@dataclass(frozen=True)
class ManifestFloor:
    """Columns of the manifest: age, sex, view, scanner."""

    kind: Literal["manifest"]
    manifest: str
    """Path of the CSV, relative to the project."""
    columns: tuple[str, ...]
    """Which columns; numbers as they are, texts one feature per frequent value. Never a label column."""
    path_column: str = "path"
    """The column that holds the rows' paths."""

    def __post_init__(self) -> None:
        if not self.columns:
            raise ValueError("columns: found none, expected the manifest columns that the simple model may see.")


@dataclass(frozen=True)
class IntensityFloor:
    """Mean, spread and percentiles of every channel."""

    kind: Literal["intensity"]


@dataclass(frozen=True)
class ThumbnailFloor:
    """A tiny picture, reduced to its principal components."""

    kind: Literal["thumbnail"]
    size: int = 16
    """Pixels a side (half as many voxels a side in volumes)."""
    components: int = 32
    """Principal components kept."""


@dataclass(frozen=True)
class ShapeFloor:
    """Outline of a point cloud: proportions, eigenvalues, distances between points."""

    kind: Literal["shape"]
    scale_free: bool = True
    """Leave out everything that knows the size in metres or the number of points."""


@dataclass(frozen=True)
class PixelsFloor:
    """Of segmentation: each pixel by its values, their means over its surroundings and, of several bands, ratios."""

    kind: Literal["pixels"]
    pixels: int = 20_000
    """Training pixels that are looked at, as many of every class as there are."""
    scales: tuple[int, ...] = (5, 15)
    """Sides of the squares or cubes that means are taken over, in pixels."""
    place: bool = False
    """Look at where a pixel lies too: samples that were cut around what is looked for betray it."""

    def __post_init__(self) -> None:
        if self.pixels < 100 or any(size < 2 for size in self.scales):
            raise ValueError(f"found pixels {self.pixels} and scales {list(self.scales)}, expected at least 100 pixels "
                             "and scales from 2 on, such as [5, 15].")


@dataclass(frozen=True)
class PointsFloor:
    """Of segmentation: each point by its height above the lowest of its sample, its features, and the shape of its
    surroundings."""

    kind: Literal["points"]
    points: int = 20_000
    """Training points that are looked at, as many of every class as there are."""
    neighbours: tuple[int, ...] = (16, 64)
    """Numbers of nearest points whose shape is looked at: of points, since their density differs from file to file."""
    place: bool = False
    """Look at where a point lies in its sample too: objects that all stand the same way betray their parts by it."""

    def __post_init__(self) -> None:
        if self.points < 100 or any(count < 4 for count in self.neighbours):
            raise ValueError(f"found points {self.points} and neighbours {list(self.neighbours)}, expected at least "
                             "100 points and neighbours from 4 on, such as [16, 64].")


@dataclass(frozen=True)
class PriorFloor:
    """Of segmentation: the mean training mask, the same for every sample of one size."""

    kind: Literal["prior"]


MaskFloor = PixelsFloor | PointsFloor | PriorFloor
"""Those of segmentation."""
FloorSettings = FactsFloor | ManifestFloor | IntensityFloor | ThumbnailFloor | ShapeFloor | MaskFloor


def features(prepared: Prepared, settings: FloorSettings, rows: npt.NDArray[np.int64], train: npt.NDArray[np.int64],
             root: Path) -> Floats:
    """n F for these rows of the index. `train` are rows too; which texts count as frequent is read from them alone."""
    match settings:
        case FactsFloor():
            facts = prepared.column("facts")
            found = [_flat(facts[i]) for i in rows]
            wanted = settings.columns or tuple(sorted({name for one in found for name in one}))
            return encode(_narrow(found, wanted), [_flat(facts[i]) for i in train])
        case ManifestFloor():
            by_path = read_manifest(root / settings.manifest, settings.path_column, settings.columns)
            keys = prepared.column("key")
            if len(keys) and pseudonyms.key_of(keys[0].partition("@")[0]):
                key = pseudonyms.read_key(lineage.store_root(root))
                by_path = {key.of_file(os.path.normpath(path)): cells for path, cells in by_path.items()}
            return encode([_of_key(by_path, keys[i]) for i in rows], [_of_key(by_path, keys[i]) for i in train])
        case IntensityFloor():
            return np.stack([intensity(prepared.values(int(i)), prepared.contract) for i in rows])
        case ThumbnailFloor():
            return np.stack([thumbnail(prepared.values(int(i)), prepared.contract, settings.size) for i in rows])
        case ShapeFloor():
            if prepared.contract.kind != "points":
                raise ValueError(f"floor shape: found {prepared.contract.kind} data, expected points. "
                                 "Remedy: use intensity or thumbnail.")
            return np.stack([outline(np.asarray(prepared.values(int(i))), settings.scale_free) for i in rows])
        case PixelsFloor() | PointsFloor() | PriorFloor():
            raise AssertionError("floors of masks look at pixels, not at samples")


def encode(rows: Sequence[Mapping[str, Any]], train: Sequence[Mapping[str, Any]]) -> Floats:
    """Numbers as they are; texts as one 0/1 feature per value that is frequent in training rows; missing is NaN."""
    columns: list[Floats] = []
    for name in dict.fromkeys(name for row in rows for name in row):
        numbers = [_number(row.get(name)) for row in rows]
        if all(number is not None for number in numbers):
            columns.append(np.array(numbers, dtype=np.float64))
            continue
        texts, seen = ([str(row.get(name) or "") for row in part] for part in (rows, train))
        frequent = sorted(set(seen), key=lambda text: (-seen.count(text), text))[:MAX_CATEGORIES]
        columns += [np.array([text == value for text in texts], dtype=np.float64) for value in frequent]
        columns.append(np.array([text not in frequent for text in texts], dtype=np.float64))
    return np.stack(columns, axis=1) if columns else np.zeros((len(rows), 0))


def read_manifest(path: Path, path_column: str, columns: Sequence[str]) -> dict[str, dict[str, str]]:
    """path -> the named columns as text. Raises ValueError where a column is missing."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        missing = [name for name in (path_column, *columns) if name not in (reader.fieldnames or [])]
        if missing:
            raise ValueError(f"manifest {path.name}: found no column {', '.join(missing)}; it has "
                             f"{', '.join(reader.fieldnames or [])}. Remedy: correct `columns` of the floor.")
        return {row[path_column]: {name: row[name] for name in columns} for row in reader}


def intensity(values: np.ndarray, contract: Contract) -> Floats:
    """C (2 + percentiles + 1): mean, standard deviation, percentiles and share known of each channel, in its unit."""
    channels = values.T if contract.kind == "points" else values
    result = []
    for channel in channels:
        flat = np.ravel(channel)
        flat = flat[:: max(1, len(flat) // MAX_VALUES)].astype(np.float64)
        known = flat[known_values(flat, contract)]
        if len(known):
            result += [known.mean(), known.std(), *np.percentile(known, PERCENTILES), len(known) / len(flat)]
        else:
            result += [np.nan] * (2 + len(PERCENTILES)) + [0.0]
    return np.array(result)


def thumbnail(values: np.ndarray, contract: Contract, size: int) -> Floats:
    """Means over the cells of a grid, as many for a sample of any size; unknown cells take the channel's mean."""
    if contract.kind == "points":
        raise ValueError("floor thumbnail: found points, expected pictures or volumes. Remedy: use shape.")
    side = size if values.ndim == 3 else max(2, size // 2)
    x = np.asarray(values, dtype=np.float64)
    known = known_values(x, contract)
    total, count = np.where(known, x, 0.0), known.astype(np.float64)
    for axis in range(1, x.ndim):
        starts = np.arange(side) * x.shape[axis] // side  # equal starts repeat a pixel: a sample smaller than the grid
        total, count = (np.add.reduceat(part, starts, axis=axis) for part in (total, count))
    cells = np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0).reshape(len(x), -1)
    known_cells = ~np.isnan(cells)
    mean = np.where(known_cells, cells, 0.0).sum(axis=1) / np.maximum(known_cells.sum(axis=1), 1)
    return np.where(known_cells, cells, mean[:, None]).ravel()


def outline(points: np.ndarray, scale_free: bool) -> Floats:
    """Proportions, eigenvalue features, profile over height and distances between points of a cloud M F."""
    xyz = points[:, :3].astype(np.float64)
    xyz = xyz[np.isfinite(xyz).all(axis=1)]
    if len(xyz) < 2 or not np.ptp(xyz, axis=0).any():
        return np.full(len(_outline_of(np.eye(3), scale_free)), np.nan)
    return _outline_of(xyz, scale_free)


def known_values(x: np.ndarray, contract: Contract) -> npt.NDArray[np.bool_]:
    """Where a value is real and not the contract's mark for "no data here"."""
    finite: npt.NDArray[np.bool_] = np.isfinite(x)
    return finite if contract.unknown is None or np.isnan(contract.unknown) else finite & (x != contract.unknown)


def _outline_of(xyz: Floats, scale_free: bool) -> Floats:
    centred = xyz - xyz.mean(axis=0)
    spread, axes = np.linalg.eigh(centred.T @ centred / len(xyz))
    l3, l2, l1 = np.maximum(spread, 0.0)
    share = np.maximum(np.array([l1, l2, l3]) / (l1 + l2 + l3), 1e-12)
    eigen = [(l1 - l2) / l1, (l2 - l3) / l1, l3 / l1, share[2], np.cbrt(share.prod()), -(share * np.log(share)).sum(),
             abs(axes[2, 2]), abs(axes[2, 0])]  # the last two: how upright the longest and the shortest axis stand
    extent = np.ptp(xyz, axis=0)
    turned = np.sort(np.ptp(centred @ axes, axis=0))[::-1]
    proportions = [turned[1] / turned[0], turned[2] / turned[0], extent[2] / max(extent[:2].max(), 1e-12)]
    height = (xyz[:, 2] - xyz[:, 2].min()) / max(extent[2], 1e-12)
    radius = np.linalg.norm(centred, axis=1)
    radial = np.percentile(radius / radius.mean(), PERCENTILES)
    generator = np.random.default_rng(0)  # the same pairs for the same number of points: a feature, not chance
    a, b = generator.integers(0, len(xyz), (2, MAX_PAIRS))
    distance = np.linalg.norm(xyz[a] - xyz[b], axis=1)
    histogram = np.histogram(distance / max(distance.mean(), 1e-12), D2_BINS, (0, D2_REACH))[0] / MAX_PAIRS
    size = [] if scale_free else [*extent, *turned, np.log(turned[0]), radius.mean(), float(len(xyz))]
    return np.array([*eigen, *proportions, *np.percentile(height, (10, 25, 50, 75, 90)), *radial, *histogram, *size])


def _flat(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Lists become numbered columns: spacing.0, spacing.1."""
    flat: dict[str, Any] = {}
    for name, value in facts.items():
        if isinstance(value, list):
            flat |= {f"{name}.{i}": item for i, item in enumerate(value)}
        else:
            flat[name] = value
    return flat


def _narrow(rows: Sequence[dict[str, Any]], wanted: Sequence[str]) -> list[dict[str, Any]]:
    strangers = [name for name in wanted if not any(known == name or known.startswith(f"{name}.")
                                                    for row in rows for known in row)]
    if strangers:
        known = sorted({name for row in rows for name in row})
        raise ValueError(f"floor facts: found no fact {', '.join(strangers)}; there are {', '.join(known) or 'none'}. "
                         "Remedy: correct `columns` of the floor.")
    kept = [name for name in dict.fromkeys(name for row in rows for name in row)
            if any(name == one or name.startswith(f"{one}.") for one in wanted)]
    return [{name: row.get(name) for name in kept} for row in rows]


def _of_key(by_path: Mapping[str, dict[str, str]], key: str) -> dict[str, str]:
    """The manifest's row of a sample; the pieces of one file have a suffix behind an @."""
    found = by_path.get(key, by_path.get(key.rpartition("@")[0]))
    if found is None:
        raise ValueError("floor manifest: found a sample whose path is not in the manifest. "
                         "Remedy: name the manifest that the data was ingested from.")
    return found


def _number(value: Any) -> float | None:
    """A number, NaN where missing, None where it is a text."""
    if value is None or value == "":
        return np.nan
    try:
        return float(value)
    except (TypeError, ValueError):
        return None
