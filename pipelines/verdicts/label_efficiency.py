"""From the cells of a verdict to answers: curves over budgets of labels, paired differences, and how many labelled
groups a way of starting is worth.

Legend: S seeds, R resamples of test groups, column 0 of an array: all groups; b budgets.

A difference rests on two sorts of luck: which groups are tested, and which seed and labels a model got. The first is
told by resampling groups, the second by the spread between seeds; their squares add up, and a t distribution with the
degrees of freedom of both together (Welch 1947, Satterthwaite 1946) gives the reach. With several ways beside one
baseline the level is divided among them (Bonferroni), so that all intervals together hold with 95 %.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.scoring.metrics import Floats
from pipelines.scoring.uncertainty import LEVEL, MIN_GROUPS, t_reach

POWER_REACH = 0.8416
"""Standard normal quantile of 0.8: a true gain this many standard errors beyond the interval's reach shows in four of
five repeats."""


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


@dataclass(frozen=True)
class Gain:
    """How much better a way is than the baseline, averaged over budgets."""

    value: float
    low: float | None
    """None: too few test groups to say."""
    high: float | None
    detectable: float | None
    """A true gain under this would have stayed invisible in more than one of five repeats."""
    error_groups: float
    """Standard error from the choice of test groups."""
    error_seeds: float
    """Standard error from seeds and the labels that they drew."""
    num_groups: int

    @property
    def verdict(self) -> str:
        """helped, hurt, no difference, or not estimable."""
        if self.low is None or self.high is None:
            return "not estimable"
        return "helped" if self.low > 0 else "hurt" if self.high < 0 else "no difference"


def gain(way: Curve, baseline: Curve, num_groups: int, comparisons: int) -> Gain:
    """The paired difference, averaged over budgets; see the module's text.

    Args:
        num_groups: test groups. comparisons: ways that are set against the baseline.
    """
    difference = np.mean([a - b for a, b in zip(way.scores, baseline.scores, strict=True)], axis=0)  # S 1+R
    value = float(difference[:, 0].mean())
    resampled = difference[:, 1:].mean(axis=0)
    resampled = resampled[~np.isnan(resampled)]
    error_groups = float(resampled.std(ddof=1)) * math.sqrt(num_groups / max(num_groups - 1, 1))
    seeds = len(difference)
    error_seeds = float(difference[:, 0].std(ddof=1)) / math.sqrt(seeds) if seeds > 1 else math.nan
    if num_groups < MIN_GROUPS or seeds < 2 or not len(resampled):
        return Gain(value, None, None, None, error_groups, error_seeds, num_groups)
    error = math.hypot(error_groups, error_seeds)
    spread = error_groups**4 / (num_groups - 1) + error_seeds**4 / (seeds - 1)
    freedom = max(1, int(error**4 / spread)) if spread else 1001
    reach = t_reach(1 - (1 - LEVEL) / comparisons, freedom) * error
    return Gain(value, value - reach, value + reach, reach + POWER_REACH * error, error_groups, error_seeds, num_groups)


@dataclass(frozen=True)
class Worth:
    """Labelled groups that a way saves: what the baseline reaches with all of them, it reaches with so many fewer."""

    value: float
    low: float
    high: float
    capped: bool
    """The smallest budget reaches it already, so that it is worth at least this."""


def worth(way: Curve, baseline: Curve) -> Worth | None:
    """How many labelled groups a way that helped is worth; None where it never reaches the baseline's last score.

    Each resample of test groups gives a number of its own; the interval is their middle 95 %.
    """
    ours, theirs = way.mean(), baseline.mean()
    saved = [_saved(ours[:, r], float(theirs[-1, r]), way.groups) for r in range(ours.shape[1])]
    if math.isnan(saved[0]):
        return None
    low, high = np.quantile(np.nan_to_num(saved[1:], nan=0.0), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Worth(saved[0], float(low), float(high), math.isclose(saved[0], way.groups[-1] - way.groups[0]))


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


def gains(curves: Mapping[str, Curve], baseline: str, num_groups: int) -> dict[str, Gain]:
    """Every way beside the baseline."""
    others = [way for way in curves if way != baseline]
    return {way: gain(curves[way], curves[baseline], num_groups, len(others)) for way in others}
