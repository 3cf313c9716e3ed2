"""Every pair of unit vectors that correlate by at least so much, without comparing all pairs.

Legend: n vectors, S numbers of each, L leaves.

Vectors with that correlation are at most `reach` apart, and so are their projections onto any directions. The vectors
are cut into leaves of neighbours by their first principal coordinates; two leaves are compared only if their boxes are
that near, a pair fully only if its coordinates are. The search is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from domains.mapped import leave

LEAF = 512
"""Vectors that are compared at once: large enough for the matrix product, small enough that boxes tell much."""
NUM_COORDINATES = 32
MOST_AT_ONCE = 4
"""Leaves on the other side of one comparison: its 4 MB stay in a processor's cache."""

BLOCK = 2048
"""Vectors that are turned, projected or compared in full at once: copies of them then take a few MB, however many there
are."""

Turn = Callable[[np.ndarray], np.ndarray]
"""Other pictures of the same samples, from their vectors: n S -> n S."""
Found = tuple[np.ndarray, np.ndarray, np.ndarray]
"""a, b, correlation of some pairs."""


@dataclass(frozen=True)
class _Leaves:
    """Vectors in the order of their leaves."""

    order: np.ndarray
    """n: which vector is where."""
    coordinates: np.ndarray
    """n NUM_COORDINATES + 2 in that order: c, 1, -|c|^2 / 2, so that one product with c, -|c|^2 / 2, 1 of another gives
    minus half of their squared distance."""
    starts: np.ndarray
    """L + 1."""
    low: np.ndarray
    """L NUM_COORDINATES: the boxes' corners."""
    high: np.ndarray


class Search:
    """Vectors to compare, and what all comparisons of them share, made when it is first asked for.

    Args:
        vectors: n S float32, each of length 1.
    """

    def __init__(self, vectors: np.ndarray) -> None:
        self.vectors = vectors

    @cached_property
    def directions(self) -> np.ndarray:
        """S NUM_COORDINATES."""
        return _principal(self.vectors)

    @cached_property
    def leaves(self) -> _Leaves:
        """The vectors as they are."""
        return _leaves(_projected(self.vectors, self.directions, None))


def near_pairs(search: Search, sides: np.ndarray, near: float, turn: Turn | None = None) -> Iterator[Found]:
    """Pairs a < b on different sides whose correlation is at least `near`, some at a time.

    Args:
        sides: n integers.
        turn: what b is compared by, where it is another picture of the same samples (turned over, say).
    """
    vectors = search.vectors
    if len(vectors) < 2 or len(np.unique(sides)) < 2:
        return
    reach = float(np.sqrt(max(0.0, 2 - 2 * near))) + 1e-5
    left = search.leaves
    right = left if turn is None else _leaves(_projected(vectors, search.directions, turn))
    for i in range(len(left.low)):
        gaps = np.maximum(0, np.maximum(right.low - left.high[i], left.low[i] - right.high))
        close = np.flatnonzero((gaps**2).sum(axis=1) <= reach**2)
        if turn is None:
            close = close[close >= i]
        for first in range(0, len(close), MOST_AT_ONCE):
            found = _compare(left, i, right, close[first:first + MOST_AT_ONCE], sides, reach, turn is None)
            yield from _scored(*found, vectors, turn, near)


def _principal(vectors: np.ndarray) -> np.ndarray:
    """S NUM_COORDINATES: the directions in which a subset of the vectors differs most."""
    subset = vectors[::max(1, len(vectors) // 4096)].astype(np.float64)
    leave(vectors)
    subset -= subset.mean(axis=0)
    _, directions = np.linalg.eigh(subset.T @ subset)
    return np.ascontiguousarray(directions[:, ::-1][:, :NUM_COORDINATES], dtype=np.float32)


def _projected(vectors: np.ndarray, directions: np.ndarray, turn: Turn | None) -> np.ndarray:
    coordinates = np.empty((len(vectors), directions.shape[1]), np.float32)
    for begin in range(0, len(vectors), BLOCK):
        block = vectors[begin:begin + BLOCK]
        np.matmul(turn(block) if turn else block, directions, out=coordinates[begin:begin + BLOCK])
        leave(vectors)
    return coordinates


def _leaves(coordinates: np.ndarray) -> _Leaves:
    """Halve at the median of the widest coordinate until few are left."""
    parts, todo = [], [np.arange(len(coordinates))]
    while todo:
        members = todo.pop()
        if len(members) <= LEAF:
            parts.append(members)
            continue
        inside = coordinates[members]
        widest = int(np.argmax(inside.max(axis=0) - inside.min(axis=0)))
        ranked = np.argpartition(inside[:, widest], len(members) // 2)
        todo += [members[ranked[:len(members) // 2]], members[ranked[len(members) // 2:]]]
    starts = np.cumsum([0, *map(len, parts)])
    num = coordinates.shape[1]
    ordered = np.ones((len(coordinates), num + 2), np.float32)
    low, high = np.empty((2, len(parts), num), np.float32)
    for n, members in enumerate(parts):
        leaf = coordinates[members]
        low[n], high[n] = leaf.min(axis=0), leaf.max(axis=0)
        ordered[starts[n]:starts[n + 1], :num] = leaf
        ordered[starts[n]:starts[n + 1], -1] = -0.5 * (leaf**2).sum(axis=1)
    return _Leaves(np.concatenate(parts), ordered, starts, low, high)


def _compare(left: _Leaves, i: int, right: _Leaves, leaves: np.ndarray, sides: np.ndarray, reach: float,
             same: bool) -> tuple[np.ndarray, np.ndarray]:
    """Candidates of leaf i of the left with some leaves of the right, by their first coordinates."""
    ours = np.arange(left.starts[i], left.starts[i + 1])
    theirs = np.concatenate([np.arange(right.starts[j], right.starts[j + 1]) for j in leaves])
    swapped = right.coordinates[theirs]
    swapped[:, -2:] = swapped[:, :-3:-1]
    near = left.coordinates[ours] @ swapped.T >= -0.5 * (reach**2 + 1e-4)
    rows, columns = np.divmod(np.flatnonzero(near), len(theirs))
    first, second = left.order[ours[rows]], right.order[theirs[columns]]
    # Of one set, a leaf meets itself, and a pair would be found twice there; of two, every pair is found both ways.
    wanted = (sides[first] != sides[second]) & ((ours[rows] < theirs[columns]) if same else (first < second))
    first, second = first[wanted], second[wanted]
    return (np.minimum(first, second), np.maximum(first, second)) if same else (first, second)


def _scored(a: np.ndarray, b: np.ndarray, vectors: np.ndarray, turn: Turn | None, near: float) -> Iterator[Found]:
    for begin in range(0, len(a), 65_536):
        left, right = a[begin:begin + 65_536], b[begin:begin + 65_536]
        scores = np.empty(len(left), np.float32)
        for first in range(0, len(left), BLOCK):
            ours, theirs = vectors[left[first:first + BLOCK]], vectors[right[first:first + BLOCK]]
            np.einsum("ns,ns->n", ours, turn(theirs) if turn else theirs, out=scores[first:first + BLOCK])
        hit = scores >= near
        if hit.any():
            yield left[hit], right[hit], scores[hit]
