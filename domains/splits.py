"""Who is in train, val and test. A group (patient, scene or block, object) is never cut.

Group names may be patient numbers: messages show the beginnings of a few pseudonyms, never a name.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from domains import pseudonyms
from domains.rows import changed, column_of
from domains.sample import ManifestRow, Task

HELD = ("train", "val", "test")
"""The splits that must not share a group. Unlabelled rows may share one: the self-supervised pool leaves out those
whose group is in val or test."""
NUM_BINS = 5
"""Regression targets are stratified by quintile: few enough that each holds groups of a small data set."""


class GroupCut(ValueError):
    """A group lies in more than one of train, val and test."""


@dataclass(frozen=True)
class Splits:
    """How rows that come without a split are divided."""

    seed: int = 0
    """Another seed, another division; it depends on nothing else but the groups and labels."""
    val: float = 0.2
    """Share of rows for choosing: early stopping, temperature, settings."""
    test: float = 0.2
    """Share of rows that only evaluation touches."""

    def __post_init__(self) -> None:
        if not (0 <= self.val < 1 and 0 <= self.test < 1 and self.val + self.test < 1):
            raise ValueError(f"splits: found val {self.val} and test {self.test}, expected shares from 0 to 1 that "
                             "leave some for train.")


def pseudonym(group: str) -> str:
    """What stands for a group in messages and checkpoints: the key's id and twelve digits of a keyed hash. Of a group
    that the data set holds in clear (`files.pseudonymise: false`) it is twelve digits of a plain hash, which whoever
    guesses the name can make as well."""
    return pseudonyms.code_of(group) or hashlib.sha256(group.encode()).hexdigest()[:12]


def pseudonyms_of(groups: Sequence[str]) -> str:
    """A few groups as a message may show them."""
    return ", ".join(pseudonym(group) for group in groups[:3]) + (", ..." if len(groups) > 3 else "")


def cut_groups(groups: Iterable[str], splits: Iterable[str]) -> list[str]:
    """Groups that lie in more than one of train, val and test, sorted."""
    seen: dict[str, str] = {}
    cut = set()
    for group, split in zip(groups, splits, strict=True):
        if split in HELD and seen.setdefault(group, split) != split:
            cut.add(group)
    return sorted(cut)


def assert_no_group_is_cut(groups: Iterable[str], splits: Iterable[str]) -> None:
    """Raise GroupCut if a group lies in two of train, val and test. Every stage calls this before it writes."""
    cut = cut_groups(groups, splits)
    if cut:
        raise GroupCut(f"splits: found {len(cut)} groups in more than one of train, val and test "
                       f"({pseudonyms_of(cut)}). "
                       "Expected every group whole in one split. Remedy: correct the manifest's split column, or empty "
                       "it to have the rows divided anew; `domains.splits.cut_groups(groups, splits)` lists them.")


def assign(rows: Sequence[ManifestRow], settings: Splits, tasks: Mapping[str, Task],
           labels: Mapping[str, np.ndarray], units: Mapping[str, str] | None = None) -> Sequence[ManifestRow]:
    """Give a split to the rows that have none; rows of a group that has one follow it.

    Each stratum (source and labels) is divided by itself: its groups, sorted by a hash of seed and name, lie around a
    circle, each as long as its rows are many, and arcs of it are the splits. So every stratum has about the wanted
    shares, the outcome depends neither on the order of rows nor on a generator's state, and a group that is added later
    moves few others. Where there are so few groups that a split would get less than half or more than twice its share,
    they are dealt one by one instead.

    Args:
        labels: per task n k, NaN where unknown; used for stratification.
        units: group -> unit, for groups that belong together; None: each is its own unit. Groups of a unit go to one
            split: to that of the unit's rows that come with one (of most of them, should they differ).

    Raises:
        GroupCut: the manifest's own splits cut a group.
    """
    groups, given = column_of(rows, "group"), column_of(rows, "split")
    assert_no_group_is_cut(groups, given)
    units = units or {}
    known = {group: split for group, split in zip(groups, given, strict=True) if split in HELD}
    of_unit = _given(groups, given, units)
    open_rows: dict[str, list[int]] = defaultdict(list)
    for i, (group, split) in enumerate(zip(groups, given, strict=True)):
        unit = units.get(group, group)
        if not split and group not in known and unit not in of_unit:
            open_rows[unit].append(i)
    strata = _strata(column_of(rows, "source"), open_rows, tasks, labels)
    order = sorted(open_rows, key=lambda unit: (strata[unit], _rank(unit, settings.seed), unit))
    sizes = [len(open_rows[unit]) for unit in order]
    of_unit.update(_on_circles(order, sizes, strata, settings) or _deal(order, sizes, settings))
    splits = [split or known.get(group) or of_unit[units.get(group, group)]
              for group, split in zip(groups, given, strict=True)]
    assert_no_group_is_cut(groups, splits)
    return changed(rows, split=splits)


def _given(groups: Sequence[str], splits: Sequence[str], units: Mapping[str, str]) -> dict[str, str]:
    """Per unit the split that most of its rows come with."""
    tally: dict[str, Counter[str]] = defaultdict(Counter)
    for group, split in zip(groups, splits, strict=True):
        if split in HELD:
            tally[units.get(group, group)][split] += 1
    return {unit: max(HELD, key=lambda split: counts[split]) for unit, counts in tally.items()}


def _rank(group: str, seed: int) -> str:
    return hashlib.sha256(f"{seed}:{group}".encode()).hexdigest()


def _on_circles(order: Sequence[str], sizes: Sequence[int], strata: Mapping[str, tuple[str, ...]],
                settings: Splits) -> dict[str, str]:
    """Units to splits, stratum by stratum; nothing where a split would come out far from its share.

    Where a circle begins is drawn by the stratum's name: so many small strata, of which each is too small to be
    divided, have about the wanted shares together.
    """
    of_stratum: Counter[tuple[str, ...]] = Counter()
    for unit, size in zip(order, sizes, strict=True):
        of_stratum[strata[unit]] += size
    dealt, before = {}, Counter[tuple[str, ...]]()
    given: Counter[str] = Counter()
    for unit, size in zip(order, sizes, strict=True):
        stratum = strata[unit]
        start = int(_rank("\0".join(stratum), settings.seed), 16) / 16**64
        place = ((before[stratum] + size / 2) / of_stratum[stratum] + start) % 1
        before[stratum] += size
        dealt[unit] = ("test" if place < settings.test else "val" if place < settings.test + settings.val else "train")
        given[dealt[unit]] += size
    shares = _shares(settings)
    total = max(1, sum(sizes))
    fair = all(share / 2 <= given[split] / total <= 2 * share for split, share in shares.items())
    return dealt if fair else {}


def _shares(settings: Splits) -> dict[str, float]:
    return {"train": 1 - settings.val - settings.test, "test": settings.test, "val": settings.val}


def _deal(order: Sequence[str], sizes: Sequence[int], settings: Splits) -> dict[str, str]:
    """Walking along, each goes to the split that lacks most rows: as even as can be, but one unit more moves all that
    come after it."""
    shares = _shares(settings)
    given = dict.fromkeys(shares, 0)
    dealt, total = {}, 0
    for group, size in zip(order, sizes, strict=True):
        total += size
        split = max(shares, key=lambda name: shares[name] * total - given[name])
        dealt[group] = split
        given[split] += size
    return dealt


def _strata(sources: Sequence[str], members: Mapping[str, Sequence[int]], tasks: Mapping[str, Task],
            labels: Mapping[str, np.ndarray]) -> dict[str, tuple[str, ...]]:
    """Per unit its source and, per task, what its rows say."""
    binned = {name: _bins(labels[name]) if task.kind == "regression" else labels[name] for name, task in tasks.items()}
    return {group: (min(sources[i] for i in of_group),
                    *(_signature(binned[name][list(of_group)], tasks[name]) for name in sorted(tasks)))
            for group, of_group in members.items()}


def _signature(labels: np.ndarray, task: Task) -> str:
    """What a group's rows say of one task: its commonest class or bin, or every finding that any row has."""
    if not np.isfinite(labels).any():
        return "unknown"
    if task.kind in ("multi_label", "segmentation"):
        return "".join("1" if positive else "0" for positive in (labels == 1).any(axis=0))
    first = labels[:, 0]
    values, tally = np.unique(first[np.isfinite(first)], return_counts=True)
    return f"{values[np.argmax(tally)]:g}" if len(values) else "unknown"


def _bins(labels: np.ndarray) -> np.ndarray:
    binned = labels.copy()
    for column in binned.T:
        known = np.isfinite(column)
        if known.any():
            edges = np.quantile(column[known], np.linspace(0, 1, NUM_BINS + 1)[1:-1])
            column[known] = np.searchsorted(edges, column[known])
    return binned
