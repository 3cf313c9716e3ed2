"""From the cells of a verdict to answers: curves over budgets of labels, paired differences, and how many labelled
groups a way of starting is worth.

Legend: S seeds, R resamples of test groups, column 0 of an array: all groups; b budgets; N all labelled groups.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.scoring.comparisons import Contrast, Difference, alone, together
from pipelines.scoring.metrics import Floats

STEPS = 100
"""Numbers of labelled groups, from the smallest budget to all, at which a curve is set against its baseline."""


@dataclass(frozen=True)
class Curve:
    """One way's scores, higher being better (errors are negated)."""

    scores: tuple[Floats, ...]
    """Per budget: S 1+R."""
    groups: tuple[int, ...]
    """Labelled training groups of each budget, rising."""

    def mean(self) -> Floats:
        """b 1+R: over seeds."""
        return np.stack([one.mean(axis=0) for one in self.scores])


def gain(way: Curve, baseline: Curve, num_groups: int, support: int = 0) -> Difference:
    """How much better a way is than the baseline, averaged over budgets; with its interval by itself.

    Args:
        num_groups: test groups. support: on how many of them the metric rests (Spread.support); 0: on all.
    """
    return alone(_contrast(way, baseline, num_groups, support))


def gains(curves: Mapping[str, Curve], baseline: str, num_groups: int, support: int = 0) -> dict[str, Difference]:
    """Every way beside the baseline; their intervals hold all at once."""
    return together({way: _contrast(one, curves[baseline], num_groups, support) for way, one in curves.items()
                     if way != baseline})


def _contrast(way: Curve, baseline: Curve, num_groups: int, support: int) -> Contrast:
    """Seeds go in pairs: a seed draws the same labelled groups for every way."""
    difference = np.mean([a - b for a, b in zip(way.scores, baseline.scores, strict=True)], axis=0)
    return Contrast((difference,), num_groups, support)


@dataclass(frozen=True)
class Worth:
    """Labelled groups that a way saves: what the baseline reaches with all of them, it reaches with so many fewer."""

    value: float
    low: float
    high: float
    capped: bool
    """The smallest budget reaches it already, so that it is worth at least this."""
    open: bool
    """So may the upper end: it may be worth more than `high`."""


def worth(way: Curve, baseline: Curve, told: Difference, support: int = 0) -> Worth | None:
    """How many labelled groups a way that helped is worth; None where it never reaches the baseline's last score, and
    where there is one budget alone.

    The interval are the numbers of groups that the data do not speak against (Fieller 1954): those at which the way's
    score, with the luck of test groups and of seeds, may be the baseline's with all of them. It is as sure as that of
    `told`, the way's gain.
    """
    saved = _saved(way.mean()[:, 0], float(baseline.mean()[-1, 0]), way.groups)
    if math.isnan(saved) or len(way.groups) < 2:
        return None
    sizes = np.geomspace(way.groups[0], way.groups[-1], STEPS)
    ahead = [alone(Contrast((_score_at(way, size) - baseline.scores[-1],), told.num_groups, support), told.level)
             for size in sizes]
    not_better = sizes[[one.sign <= 0 for one in ahead]]
    not_worse = sizes[[one.sign >= 0 for one in ahead]]
    most, all_of_them = float(sizes[-1] - sizes[0]), float(sizes[-1])
    low = all_of_them - float(not_better.max()) if len(not_better) else most
    high = all_of_them - float(not_worse.min()) if len(not_worse) else 0.0
    return Worth(saved, min(low, saved), max(high, saved), math.isclose(saved, most),
                 math.isclose(max(high, saved), most))


def _score_at(way: Curve, size: float) -> Floats:
    """S 1+R: between budgets on a log scale."""
    after = min(max(int(np.searchsorted(way.groups, size)), 1), len(way.groups) - 1)
    before, end = way.groups[after - 1], way.groups[after]
    share = (math.log(size) - math.log(before)) / (math.log(end) - math.log(before)) if end > before else 1.0
    share = min(max(share, 0.0), 1.0)
    return (1 - share) * way.scores[after - 1] + share * way.scores[after]


def _saved(scores: Floats, target: float, groups: Sequence[int]) -> float:
    """Groups fewer than all with which a curve, made to rise, reaches a target; between budgets on a log scale."""
    rising = rise(scores)
    if np.isnan(target) or rising[-1] < target:
        return math.nan
    first = int(np.argmax(rising >= target))
    if first == 0:
        return float(groups[-1] - groups[0])
    share = (target - rising[first - 1]) / (rising[first] - rising[first - 1])
    before, after = math.log(groups[first - 1]), math.log(groups[first])
    return float(groups[-1] - math.exp(before + share * (after - before)))


def rise(scores: Floats) -> Floats:
    """The nearest curve that never falls (pool adjacent violators): more labels do no harm but by chance."""
    blocks: list[tuple[float, int]] = []
    for score in scores:
        blocks.append((float(score), 1))
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (a, n), (b, m) = blocks[-2:]
            blocks[-2:] = [((a * n + b * m) / (n + m), n + m)]
    return np.concatenate([np.full(count, score) for score, count in blocks])

