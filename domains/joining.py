"""Groups that repeat each other, joined into units that go to one split together.

Legend: n samples, G groups.

Two patients with the same film, two scenes on the same ground: a split that cuts between them scores what it has
learnt by heart. Where the split is ours to choose, such groups are divided as one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from domains import duplicates
from domains.duplicates import KINDS, Leak, Signed
from domains.near_search import near_pairs
from domains.store import Prepared

MAX_SHARE = 0.2
"""Share of the rows above which a unit is too large to be divided fairly: more than a test set holds."""
MIN_CHAIN = 10
"""Groups from which on a unit is called a chain; in small data a pair of groups may be a fifth of all. When a chain
grows too large, the least sure kind of link is left out first."""


@dataclass(frozen=True)
class Joined:
    """Which groups belong together, and why."""

    units: dict[str, str] = field(default_factory=dict)
    """Group -> unit (the first of its groups by name), for the groups that were joined with another."""
    links: list[Leak] = field(default_factory=list)
    """The pairs of samples that join them: as few as will do."""
    left_apart: tuple[str, ...] = ()
    """Kinds of link that were found and not used, because they chain too much into one unit."""
    chain: float = 0.0
    """Share of the rows in the unit that those would have made."""

    def record(self) -> dict[str, Any]:
        """What summary.json says."""
        return {"joined_groups": len(self.units), "units": len(set(self.units.values())),
                "links": {kind: count for kind in KINDS if (count := sum(link.what == kind for link in self.links))},
                "left_apart": list(self.left_apart), "chain": round(self.chain, 4)}

    def said(self) -> list[str]:
        """Sentences for whoever ingests."""
        said = []
        if self.units:
            kinds = ", ".join(f"{kind} {count}" for kind, count in self.record()["links"].items())
            said.append(f"{len(self.units)} groups that repeat each other (links: {kinds}) were joined into "
                        f"{len(set(self.units.values()))} units, each whole in one split")
        if self.left_apart:
            said.append(f"repeats of kind {', '.join(self.left_apart)} chain {self.chain:.0%} of the rows into one "
                        f"unit, more than {MAX_SHARE:.0%}: no fair division would be left, so these are not kept "
                        "together; pairs across splits are listed in leaks.csv. Remedy: give the manifest a split "
                        "column (blocks of ground with a gap between them, say), or raise near_duplicates")
        return said


def join(prepared: Prepared, groups: Sequence[str], ours: np.ndarray, near: float,
         signed: Signed | None = None) -> Joined:
    """Find the groups that repeat each other.

    Args:
        groups: n names.
        ours: n bool: samples whose split is ours to choose. Unlabelled samples link nothing: they have no side.
        near: correlation from which on samples are near duplicates; above 1: none are.
        signed: what `duplicates.signatures` gave for these samples, where somebody has it already.
    """
    names, codes = np.unique(np.array(groups, dtype=object), return_inverse=True)
    labelled = np.array([split != "unlabelled" for split in prepared.column("split")], bool)
    if not ours.any() or len(names) < 2:
        return Joined()
    forest = _Forest(len(names), codes, labelled)
    forest.add(*_exact_links(prepared.codes("sha256"), labelled), "exact")
    for a, b, shares in duplicates.overlaps(duplicates.footprints(prepared), np.where(labelled, codes, -1)):
        forest.add(a, b, shares, "overlap")
    if near <= 1:
        rows, search = signed or duplicates.signatures(prepared, None)
        for turn in (None, *duplicates.turns(search.vectors.shape[1], prepared.contract.kind)):
            for left, right, score in near_pairs(search, codes[rows], near, turn):
                forest.add(rows[left], rows[right], score, "turned" if turn else "near")
    return _choose(names, codes, ours, forest.links)


def _exact_links(contents: np.ndarray, labelled: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each sample with the first that has the same content (an equal number)."""
    rows = np.flatnonzero(labelled)
    _, first, content = np.unique(contents[rows], return_index=True, return_inverse=True)
    before = rows[first[content]]
    again = before != rows
    return before[again], rows[again], np.ones(int(again.sum()))


class _Forest:
    """Which groups hang together; keeps only the links that join two trees, however many repeat each other."""

    def __init__(self, num_groups: int, codes: np.ndarray, labelled: np.ndarray) -> None:
        self.root = np.arange(num_groups)
        self.codes, self.labelled = codes, labelled
        self.links: list[Leak] = []

    def add(self, a: np.ndarray, b: np.ndarray, scores: np.ndarray, what: str) -> None:
        keep = self.labelled[a] & self.labelled[b]
        a, b, scores = a[keep], b[keep], scores[keep]
        while len(a):
            roots = self.root[self.codes[a]]
            apart = roots != self.root[self.codes[b]]
            a, b, scores, roots = a[apart], b[apart], scores[apart], roots[apart]
            # One link of every tree at a time: a thousand equal tiles cost a few rounds, not all their pairs.
            for k in np.unique(roots, return_index=True)[1]:
                self._link(int(a[k]), int(b[k]), float(scores[k]), what)
            self._flatten()

    def _link(self, a: int, b: int, score: float, what: str) -> None:
        left, right = self._find(int(self.codes[a])), self._find(int(self.codes[b]))
        if left != right:
            self.root[max(left, right)] = min(left, right)
            self.links.append(Leak(min(a, b), max(a, b), what, score))

    def _find(self, group: int) -> int:
        while self.root[group] != group:
            group = int(self.root[group])
        return group

    def _flatten(self) -> None:
        while not np.array_equal(further := self.root[self.root], self.root):
            self.root = further


def _choose(names: np.ndarray, codes: np.ndarray, ours: np.ndarray, links: list[Leak]) -> Joined:
    """The units by all kinds of link, or by the surest of them when a unit would be too large."""
    left_apart: tuple[str, ...] = ()
    chain = 0.0
    sizes = np.bincount(codes[ours], minlength=len(names))
    for count in range(len(KINDS), -1, -1):
        used = [link for link in links if link.what in KINDS[:count]]
        roots = _roots(len(names), codes, used)
        share = _largest_chain(roots, sizes)
        if share <= MAX_SHARE:
            break
        chain = max(chain, share)
        left_apart = (KINDS[count - 1], *left_apart)
    touched = {int(codes[row]) for link in used for row in (link.a, link.b)}
    # A unit without a group that is ours to place changes nothing.
    movable = {int(root) for root in np.unique(roots[np.flatnonzero(sizes)])}
    units = {str(names[group]): str(names[roots[group]]) for group in sorted(touched) if int(roots[group]) in movable}
    used = [link for link in used if str(names[codes[link.a]]) in units]
    found = {link.what for link in links}
    return Joined(units, used, tuple(kind for kind in left_apart if kind in found), chain)


def _roots(num_groups: int, codes: np.ndarray, links: Sequence[Leak]) -> np.ndarray:
    forest = _Forest(num_groups, codes, np.ones(len(codes), bool))
    for link in links:
        forest._link(link.a, link.b, link.score, link.what)
    forest._flatten()
    return forest.root


def _largest_chain(roots: np.ndarray, sizes: np.ndarray) -> float:
    """Share of the rows in the largest unit of more than MIN_CHAIN groups."""
    members = Counter(roots.tolist())
    rows = np.bincount(roots, sizes)
    return max((rows[root] / max(1, sizes.sum()) for root, count in members.items() if count > MIN_CHAIN), default=0.0)
