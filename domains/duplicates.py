"""Samples that lie on both sides of a split: the same bytes, nearly the same content, or the same ground.

Legend: n samples, S numbers of a signature, K samples of a stack.

A signature is a thumbnail with brightness and contrast taken out. Two samples repeat each other when the correlation of
their signatures is at least `NEAR`; `domains/near_search.py` finds every such pair.
"""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from domains.degrees import in_degrees
from domains.mapped import leave, on_disk
from domains.near_search import BLOCK, Search, Turn, near_pairs
from domains.store import Prepared

NEAR = {"xray": 0.99, "ct": 0.99, "multispectral": 0.99, "points": 0.9975}
"""Correlation from which on we call two samples near duplicates, chosen between what was measured. Films that were
re-encoded, resized, brightened or made noisy stay above 0.995; the likest of different patients reach 0.984. Neck CTs
at half the resolution stay above 0.996; different patients reach 0.987. Clouds of 4,096 points drawn anew from one
surface stay above 0.9978, and so do few pairs of different shapes, which look alike; clouds of a few hundred points are
told only when the points themselves are the same."""
CELLS = {2: 16, 3: 10}
"""Cells per axis of a thumbnail, for images and for volumes."""
VALUES_PER_CELL = 8
"""Along an axis; more are passed over, since a mean of eight is steady enough and a large volume stays small."""
KINDS = ("exact", "overlap", "near", "turned")
"""What two samples may have in common, the surest first."""
POINT_CELLS = 8
"""Cells per axis of the grid that stands for a cloud."""
POINTS = 8192
"""Points of a cloud that are looked at: enough that two draws from one surface differ by less than two shapes."""
MIN_OVERLAP = 0.01
"""Share of the smaller footprint from which on overlap is reported: resampling moves edges by a fraction of a pixel."""
MIN_OVERLAP_ACROSS = 0.1
"""The same of samples in different coordinate systems, whose boxes in degrees are turned by up to 4 degrees against the
ground and some percent too large."""
MAX_PAIRS = 100_000
"""No more of one sort are listed: a blank tile that occurs a thousand times makes half a million."""
STACK_VALUES = 2**19
"""Values that are made thumbnails of at once, which takes some twenty bytes each."""

Progress = Callable[[Iterable[Any], int], Iterable[Any]]
Signed = tuple[np.ndarray, Search]
"""Rows that have a signature, and a search of their signatures."""


@dataclass(frozen=True)
class Leak:
    """Two samples in different splits that repeat each other."""

    a: int
    """Row of the one in the earlier split of train, unlabelled, val, test."""
    b: int
    """Row of the other."""
    what: str
    """exact, near, turned (near once mirrored, turned or made a negative) or overlap."""
    score: float
    """1, the correlation, or the share of the smaller footprint."""


def find(prepared: Prepared, near: float | None = None, progress: Progress | None = None,
         signed: Signed | None = None) -> list[Leak]:
    """Every pair of samples in different splits that repeat each other, except train with unlabelled, which no score
    depends on. Sorted by kind, then by row.

    Args:
        near: correlation from which on samples are near duplicates. None: NEAR of this kind of data; above 1: none.
        signed: what `signatures` gave for these samples, where somebody has it already.
    """
    near = NEAR[prepared.contract.kind] if near is None else near
    sides = _sides(prepared)
    exact = exact_pairs(prepared.codes("sha256"), sides)
    found = [Leak(a, b, "exact", 1.0) for a, b in exact]
    same = set(exact)
    if near <= 1:
        rows, search = signed or signatures(prepared, progress)
        pairs = near_leaks(rows, search, sides, near)
        found += [Leak(a, b, "near", score) for a, b, score in pairs if (a, b) not in same]
        same |= {(a, b) for a, b, _ in pairs}
        best: dict[tuple[int, int], float] = {}
        for turn in turns(search.vectors.shape[1], prepared.contract.kind):
            for a, b, score in near_leaks(rows, search, sides, near, turn):
                best[a, b] = max(score, best.get((a, b), 0.0))
        found += [Leak(a, b, "turned", score) for (a, b), score in best.items() if (a, b) not in same]
    found += [Leak(a, b, "overlap", share) for a, b, share in _overlap_leaks(footprints(prepared), sides)]
    order = {kind: n for n, kind in enumerate(KINDS)}
    return sorted(found, key=lambda leak: (order[leak.what], leak.a, leak.b))


def table(prepared: Prepared, leaks: Sequence[Leak]) -> str:
    """The pairs as CSV: keys and splits of both, what they share, score."""
    rows = sorted({row for leak in leaks for row in (leak.a, leak.b)})
    keys, splits = prepared.texts("key", rows), prepared.texts("split", rows)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["key_a", "split_a", "key_b", "split_b", "what", "score"])
    writer.writerows([keys[leak.a], splits[leak.a], keys[leak.b], splits[leak.b], leak.what, f"{leak.score:.5f}"]
                     for leak in leaks)
    return text.getvalue()


def _sides(prepared: Prepared) -> np.ndarray:
    """0 train or unlabelled, 1 val, 2 test."""
    side = {"val": 1, "test": 2}
    return np.array([side.get(split, 0) for split in prepared.column("split")], np.int8)


def exact_pairs(contents: np.ndarray, sides: np.ndarray) -> list[tuple[int, int]]:
    """Pairs with one content on different sides.

    Args:
        contents: n numbers from 0, equal where the contents are.
    """
    pairs: list[tuple[int, int]] = []
    ranked = np.argsort(contents, kind="stable")
    starts = np.flatnonzero(np.diff(contents[ranked], prepend=-1))
    sizes = np.diff(starts, append=len(ranked))
    for start, size in zip(starts[sizes > 1].tolist(), sizes[sizes > 1].tolist(), strict=True):
        alike = ranked[start:start + size].tolist()
        pairs += [_ordered(a, b, sides) for n, a in enumerate(alike) for b in alike[n + 1:] if sides[a] != sides[b]]
        if len(pairs) > MAX_PAIRS:
            break
    return sorted(pairs[:MAX_PAIRS])


def _ordered(a: int, b: int, sides: np.ndarray) -> tuple[int, int]:
    return (a, b) if (sides[a], a) < (sides[b], b) else (b, a)


# ---- near ----

def signatures(prepared: Prepared, progress: Progress | None) -> Signed:
    """Rows that have a signature, and a search of their signatures n S of length 1. A sample without contrast has
    none."""
    all_rows = np.arange(len(prepared))
    stacks: Iterable[tuple[np.ndarray, np.ndarray]] = prepared.stacks(all_rows, STACK_VALUES)
    if progress:
        stacks = progress(stacks, len(prepared))
    vectors = np.zeros((0, 0), np.float32)
    for rows, values in stacks:
        some = signature(values, prepared.contract.unknown)
        vectors = vectors if vectors.size else on_disk(len(prepared), some.shape[1])
        vectors[rows] = some
        leave(vectors)
    has = np.zeros(len(vectors), bool)
    for begin in range(0, len(vectors), BLOCK):
        has[begin:begin + BLOCK] = np.abs(vectors[begin:begin + BLOCK]).sum(axis=1) > 0.5
        leave(vectors)
    kept = all_rows[has]
    for begin in range(0, len(kept), BLOCK):  # to the front, where nothing is overwritten that is still to be moved
        some_rows = kept[begin:begin + BLOCK]
        if some_rows[-1] >= begin + len(some_rows):
            vectors[begin:begin + len(some_rows)] = vectors[some_rows]
    return kept, Search(vectors[:len(kept)])


def signature(values: np.ndarray, unknown: float | None) -> np.ndarray:
    """K C H W, K C D H W or K M F -> K S, of length 1, or 0 where there is no contrast."""
    cells = _occupancy(values) if values.ndim == 3 else _thumbnail(values, unknown)
    cells = cells - cells.mean(axis=1, keepdims=True)
    length = np.linalg.norm(cells, axis=1, keepdims=True)
    scale = 1e-6 * np.abs(cells).max(initial=0.0) + 1e-6
    return np.where(length > scale, cells / np.maximum(length, scale), 0.0).astype(np.float32)


def _thumbnail(values: np.ndarray, unknown: float | None) -> np.ndarray:
    """Mean over channels and over the cells of a coarse grid; unknown values count as the channel's mean."""
    num = CELLS[values.ndim - 2]
    steps = (max(1, extent // (num * VALUES_PER_CELL)) for extent in values.shape[2:])
    values = values[(slice(None), slice(None), *(slice(None, None, step) for step in steps))]
    known = np.isfinite(values) if values.dtype.kind == "f" else np.ones(values.shape, bool)
    if unknown is not None and unknown == unknown:
        known &= values != unknown
    numbers = np.where(known, values, 0).astype(np.float32)
    axes = tuple(range(2, values.ndim))
    mean = numbers.sum(axis=axes, keepdims=True) / np.maximum(known.sum(axis=axes, keepdims=True), 1)
    cells = np.where(known, numbers - mean, 0).astype(np.float32).mean(axis=1)
    for axis in range(1, cells.ndim):
        cells = _shrink(cells, axis, num)
    return cells.reshape(len(cells), -1)


def _shrink(cells: np.ndarray, axis: int, num: int) -> np.ndarray:
    """Means over `num` equal stretches of an axis, whose ends may fall inside a value: so a sample and its copy of half
    the size give the same."""
    extent = cells.shape[axis]
    edges = np.arange(num + 1) * extent / num
    whole = np.minimum(edges.astype(np.int64), extent - 1)
    moved = np.moveaxis(cells, axis, -1)
    before = np.concatenate([np.zeros_like(moved[..., :1]), np.cumsum(moved, axis=-1)], axis=-1)[..., whole]
    until = before + (edges - whole).astype(np.float32) * moved[..., whole]
    return np.moveaxis(np.diff(until, axis=-1) * np.float32(num / extent), -1, axis)


def _occupancy(clouds: np.ndarray) -> np.ndarray:
    """K M F -> K cells: how many of a cloud's points lie about each node of a cube around it.

    A point counts for the eight nodes about it by nearness, and the cube's size comes from the mean distance to the
    centre, not the largest: so the counts hardly depend on which points were drawn from the surface.
    """
    places = np.moveaxis(clouds[:, ::max(1, clouds.shape[1] // POINTS), :3], 2, 0).astype(np.float32)
    places = places - places.mean(axis=2, keepdims=True)
    spread = np.sqrt((places**2).sum(axis=0).mean(axis=1))[:, None]
    # 2.2 spreads reach to the ends of nearly all shapes; what lies beyond counts at the faces.
    at = np.clip(places / np.maximum(4.4 * spread, 1e-12) + 0.5, 0, 1) * (POINT_CELLS - 1)
    node = np.minimum(at.astype(np.int64), POINT_CELLS - 2)
    part = at - node
    share = (1 - part, part)
    first = ((np.arange(len(clouds))[:, None] * POINT_CELLS + node[0]) * POINT_CELLS + node[1]) * POINT_CELLS + node[2]
    counts = np.zeros(len(clouds) * POINT_CELLS**3)
    for z, y, x in np.ndindex(2, 2, 2):
        weight = share[z][0] * share[y][1] * share[x][2]
        index = first + ((z * POINT_CELLS + y) * POINT_CELLS + x)
        counts += np.bincount(index.ravel(), weight.ravel(), minlength=len(counts))
    cells: np.ndarray = np.sqrt(counts.reshape(len(clouds), -1))
    return cells.astype(np.float32)


def turns(num: int, kind: str) -> Iterator[Turn]:
    """What makes, of signatures of `num` numbers, those that the samples would have, had they been mirrored, turned by
    right angles (images) or made a negative (films): as augmented copies that were saved to disk are."""
    if kind == "points":
        return  # a cloud may be turned by any angle, and no signature of ours stands that
    axes = 2 if num == CELLS[2] ** 2 else 3
    flips = [tuple(axis + 1 for axis in range(axes) if chosen >> axis & 1) for chosen in range(2**axes)]
    for swapped in (False, True) if axes == 2 else (False,):
        for flipped in flips:
            if swapped or flipped:
                yield partial(_mirrored, axes=axes, swapped=swapped, flipped=flipped)
    if kind == "xray":
        yield np.negative


def _mirrored(vectors: np.ndarray, axes: int, swapped: bool, flipped: tuple[int, ...]) -> np.ndarray:
    grid = vectors.reshape(-1, *[CELLS[axes]] * axes)
    other = np.flip(grid.swapaxes(1, 2) if swapped else grid, flipped)
    return np.ascontiguousarray(other.reshape(vectors.shape))


def near_leaks(rows: np.ndarray, search: Search, sides: np.ndarray, near: float,
               turn: Turn | None = None) -> list[tuple[int, int, float]]:
    """Pairs of `rows` on different sides whose correlation is at least `near`, sorted.

    Args:
        turn: what one of a pair is compared by, from `turns`.
    """
    pairs: list[tuple[int, int, float]] = []
    for left, right, scores in near_pairs(search, sides[rows], near, turn):
        pairs += [(*_ordered(int(rows[a]), int(rows[b]), sides), float(score))
                  for a, b, score in zip(left, right, scores, strict=True)]
        if len(pairs) > MAX_PAIRS:
            break
    return sorted(pairs)[:MAX_PAIRS]


# ---- ground ----

def footprints(prepared: Prepared) -> Sequence[dict[str, Any]]:
    """What `overlaps` takes; nothing for data that lies on no ground, whose facts would be read for nothing."""
    if prepared.contract.kind in ("xray", "ct"):
        return ()
    return [{name: facts[name] for name in ("bounds", "epsg", "crs") if name in facts} for facts in prepared.facts()]


def overlaps(facts: Sequence[dict[str, Any]], sides: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(a, b, share of the smaller) of samples on different sides whose footprints overlap, some at a time; from
    `bounds` (left, bottom, right, top) and `epsg`, or `crs` where that has no number."""
    by_system: dict[str, list[int]] = defaultdict(list)
    for i, fact in enumerate(facts):
        if fact.get("bounds"):
            by_system[str(fact.get("epsg") or fact.get("crs") or "")].append(i)
    for of_system in by_system.values():
        rows = np.array(of_system)
        boxes = np.array([facts[i]["bounds"] for i in of_system], np.float64)
        for a, b, shares in _sweep(boxes, sides[rows], MIN_OVERLAP):
            yield rows[a], rows[b], shares
    if len(by_system) > 1:
        yield from _across_systems(facts, by_system, sides)


def _across_systems(facts: Sequence[dict[str, Any]], by_system: Mapping[str, Sequence[int]],
                    sides: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The same of samples in different coordinate systems, by their boxes in degrees."""
    found = [(of_system, told) for system, of_system in by_system.items() if system.isdecimal()
             and (told := in_degrees(int(system), np.array([facts[i]["bounds"] for i in of_system], np.float64)))
             is not None]
    if len(found) < 2:
        return
    rows = np.concatenate([np.array(of_system) for of_system, _ in found])
    boxes = np.concatenate([told for _, told in found])
    systems = np.repeat(np.arange(len(found)), [len(of_system) for of_system, _ in found])
    near = np.zeros(len(rows), bool)  # to what another system covers: most of a large scene is not
    for number in np.unique(systems):
        others = boxes[systems != number]
        low, high = others[:, :2].min(axis=0), others[:, 2:].max(axis=0)
        near |= (systems == number) & (boxes[:, :2] < high).all(axis=1) & (boxes[:, 2:] > low).all(axis=1)
    rows, systems, boxes = rows[near], systems[near], boxes[near]
    for a, b, shares in _sweep(boxes, sides[rows], MIN_OVERLAP_ACROSS):
        apart = systems[a] != systems[b]
        if apart.any():
            yield rows[a[apart]], rows[b[apart]], shares[apart]


def _overlap_leaks(facts: Sequence[dict[str, Any]], sides: np.ndarray) -> list[tuple[int, int, float]]:
    pairs: list[tuple[int, int, float]] = []
    for some in overlaps(facts, sides):
        pairs += [(*_ordered(int(a), int(b), sides), float(share)) for a, b, share in zip(*some, strict=True)]
        if len(pairs) > MAX_PAIRS:
            break
    return sorted(pairs)[:MAX_PAIRS]


def _sweep(boxes: np.ndarray, sides: np.ndarray, least: float) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Walk from left to right; compare a box with those that begin before it ends."""
    order = np.argsort(boxes[:, 0], kind="stable")
    sorted_boxes, sorted_sides = boxes[order], sides[order]
    left, bottom, right, top = sorted_boxes.T
    area = (right - left) * (top - bottom)
    ends = np.searchsorted(left, right, side="left")
    for i in range(len(order)):
        j = np.arange(i + 1, ends[i])
        j = j[sorted_sides[j] != sorted_sides[i]]
        width = np.minimum(right[i], right[j]) - left[j]
        height = np.minimum(top[i], top[j]) - np.maximum(bottom[i], bottom[j])
        share = np.clip(width, 0, None) * np.clip(height, 0, None) / np.maximum(np.minimum(area[i], area[j]), 1e-12)
        hits = share >= least
        if hits.any():
            yield np.full(int(hits.sum()), order[i]), order[j[hits]], share[hits]
