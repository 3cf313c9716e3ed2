"""Differences with all that makes them uncertain, and several of them at once.

Legend: S seeds, R resamples of test groups, column 0 of an array: all groups; m comparisons; g, s, i: standard errors.

A difference rests on two sorts of luck: which groups are tested, and which seed (with the labels that it drew) a model
got. The first is told by resampling groups, the second by the spread between seeds. What is a chance of a seed and a
group together is in both, so that their squares add up less what both hold: g^2 + s^2 - i^2, and never less than either
(as variances clustered two ways; Cameron, Gelbach and Miller 2011). A t distribution with the degrees of freedom of
both together (Welch 1947, Satterthwaite 1946) gives the reach.

Of m differences that are told together, all intervals hold at once with 95 %: their level is that of the smallest of m
p-values over the resamples (Westfall and Young 1993). Differences that go together, as those from one baseline do, cost
less than the Bonferroni level 5 % / m, which is the least that is taken.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from pipelines.scoring.metrics import Floats
from pipelines.scoring.uncertainty import LEVEL, MAX_UNDEFINED, MIN_GROUPS, Estimate, Spread, t_reach, with_interval

POWER_REACH = 0.8416
"""Standard normal quantile of 0.8: a true difference this many standard errors beyond the interval's reach shows in
four of five repeats."""
Name = TypeVar("Name", bound=Hashable)
DRAWS = 10_000
"""Of luck, to find the level that several differences share; at least so many."""


@dataclass(frozen=True, eq=False)
class Contrast:
    """A difference, before its interval."""

    sides: tuple[Floats, ...]
    """S 1+R each, to be added up. Seeds of one side are independent of those of another: two models are the two sides
    (the second negated); where seeds go in pairs, their differences are the one side."""
    num_groups: int
    """Test groups that were drawn from."""
    support: int = 0
    """On how many of them the metric rests (Spread.support); 0: on all."""


@dataclass(frozen=True)
class Difference:
    """A difference of two scores."""

    value: float
    """NaN: a score is not defined."""
    low: float | None
    """Lower end of the 95 % interval; None: not estimable, `note` says why."""
    high: float | None
    detectable: float | None
    """A true difference under this would have stayed invisible in more than one of five repeats."""
    error_groups: float
    """Standard error from the choice of test groups."""
    error_seeds: float
    """Standard error from seeds and the labels that they drew; NaN with one seed on a side, whose luck is then not in
    the interval."""
    num_groups: int
    """Test groups that were drawn from."""
    level: float = LEVEL
    """Of this interval by itself: above 95 % where several hold at once."""
    note: str = ""
    """Why there is no interval, what it does not hold, or what would narrow it."""

    @property
    def verdict(self) -> str:
        """Of a difference that is above 0 where it is better: helped, hurt, no difference, or not estimable."""
        if self.low is None:
            return "not estimable"
        return {1: "helped", -1: "hurt", 0: "no difference"}[self.sign]

    @property
    def sign(self) -> int:
        """1 or -1 where the interval leaves out zero, else 0."""
        if self.low is None or self.high is None:
            return 0
        return 1 if self.low > 0 else -1 if self.high < 0 else 0

    def text(self, digits: int = 3) -> str:
        """`+0.041 [+0.010, +0.072]`, `+0.041 [no interval]`, `not estimable`."""
        return with_interval(None if math.isnan(self.value) else self.value, self.low, self.high, digits, signed=True)


@dataclass(frozen=True)
class _Errors:
    """Of one contrast."""

    groups: float
    seeds: float
    both: float
    freedom: float
    resampled: Floats
    """R, NaN where the metric is not defined."""

    @property
    def whole(self) -> float:
        """The standard error."""
        groups, seeds = self.groups**2, 0.0 if math.isnan(self.seeds) else self.seeds**2
        return math.sqrt(max(groups, seeds, groups + seeds - self.both**2))


def together(contrasts: Mapping[Name, Contrast]) -> dict[Name, Difference]:
    """Differences whose 95 % intervals hold all at once."""
    errors = {name: _errors(one) for name, one in contrasts.items()}
    told = [name for name, one in contrasts.items() if not _lacking(one, errors[name])]
    level = _level_of_each([errors[name] for name in told])
    return {name: _difference(one, errors[name], level) for name, one in contrasts.items()}


def alone(contrast: Contrast, level: float = LEVEL) -> Difference:
    """A difference whose interval holds by itself, with 95 % or another level."""
    return _difference(contrast, _errors(contrast), level)


def beside(arms: Mapping[str, Spread], other: Spread) -> dict[str, dict[str, Estimate]]:
    """Arm -> metric -> the arm minus another on the same rows and draws; of each metric the intervals hold at once.

    Args:
        other: its seeds are independent of the arms'; with one it has no luck of seeds, as a simple model has none.

    Raises:
        ValueError: other rows on one side.
    """
    found: dict[str, dict[str, Estimate]] = {arm: {} for arm in arms}
    for arm, own in arms.items():
        if (own.num_groups, own.num_rows) != (other.num_groups, other.num_rows):
            raise ValueError(f"paired difference: found {own.num_rows} rows in {own.num_groups} groups of {arm} "
                             f"against {other.num_rows} in {other.num_groups}, expected the same rows on both sides.")
    for metric, theirs in other.metrics.items():
        told = together({arm: Contrast(
            (own.metrics[metric] - theirs,) if len(theirs) == 1 else (own.metrics[metric], -theirs),
            own.num_groups, own.support(metric)) for arm, own in arms.items()})
        for arm, one in told.items():
            value = None if math.isnan(one.value) else one.value
            found[arm][metric] = Estimate(value, one.low, one.high, one.num_groups, other.num_rows, one.note)
    return found


def _difference(contrast: Contrast, errors: _Errors, level: float) -> Difference:
    value = float(sum(side[:, 0].mean() for side in contrast.sides))
    lacking = _lacking(contrast, errors)
    if lacking:
        return Difference(value, None, None, None, errors.groups, errors.seeds, contrast.num_groups, level, lacking)
    reach = _t_reach(level, errors.freedom) * errors.whole
    note = ("one seed: what other seeds would do is not in the interval" if math.isnan(errors.seeds) else
            "luck of seeds is more of it than luck of test groups, so more seeds would narrow it"
            if errors.seeds > errors.groups else "")
    return Difference(value, value - reach, value + reach, reach + POWER_REACH * errors.whole, errors.groups,
                      errors.seeds, contrast.num_groups, level, note)


def _lacking(contrast: Contrast, errors: _Errors) -> str:
    """Why no interval can be given; empty where one can."""
    if any(np.isnan(side[:, 0]).any() for side in contrast.sides):
        return "the test rows lack an outcome"
    if contrast.num_groups < MIN_GROUPS:
        return f"interval not estimable: {contrast.num_groups} test groups, needs {MIN_GROUPS}"
    undefined, count = int(np.isnan(errors.resampled).sum()), len(errors.resampled)
    if undefined > MAX_UNDEFINED * count:
        return (f"interval not estimable: {undefined} of {count} resamples without the metric, too few groups hold an "
                "outcome")
    return ""


def _errors(contrast: Contrast) -> _Errors:
    count = max(contrast.num_groups, 2)
    narrow = count / (count - 1)  # a bootstrap's variance is that of G groups over G, not over G - 1
    resampled = np.sum([side[:, 1:].mean(axis=0) for side in contrast.sides], axis=0)
    known = ~np.isnan(resampled)
    groups = narrow * float(resampled[known].var(ddof=1)) if known.sum() > 1 else math.nan
    of_side, both, freedom_of_side = [], 0.0, 0.0
    for side in contrast.sides:
        seeds = len(side)
        if seeds < 2:
            of_side.append(math.nan)
            continue
        square = float(side[:, 0].var(ddof=1)) / seeds
        of_side.append(square)
        freedom_of_side += square**2 / (seeds - 1)
        apart = side[:, 1:][:, known] - side[:, 1:][:, known].mean(axis=0)
        both += narrow * float(apart.var(axis=1, ddof=1).sum()) / (seeds * (seeds - 1)) if known.sum() > 1 else 0.0
    seeds_square = sum(of_side)
    known_seeds = not math.isnan(seeds_square)
    spread = groups**2 / freedom_of_groups(contrast.num_groups, contrast.support) + known_seeds * freedom_of_side
    total = groups + (seeds_square if known_seeds else 0.0)
    freedom = max(1.0, total**2 / spread) if spread > 0 else math.inf
    return _Errors(math.sqrt(groups), math.sqrt(seeds_square), math.sqrt(both), freedom, resampled)


def _t_reach(level: float, freedom: float) -> float:
    """`t_reach` also between whole degrees: its logarithm is nearly linear in 1 / freedom."""
    if freedom > 1000:
        return t_reach(level, 1001)
    below = int(freedom)
    ends = [t_reach(level, whole) for whole in (below, below + 1)]
    share = (1 / below - 1 / freedom) * below * (below + 1)
    return float(ends[0] ** (1 - share) * ends[1] ** share)


def freedom_of_groups(num_groups: int, support: int = 0) -> float:
    """Degrees of freedom of what `num_groups` groups say where a metric rests on `support` of them (0: on all).

    Where it sets the support against the others, as AUROC sets groups with the rarer outcome against those without,
    they are those of two means of unequal numbers (Welch 1947): 38 for 20 of 40 groups, 7 for 6 of 40.
    """
    if not 1 < support <= num_groups / 2:
        return max(1, (support or num_groups) - 1)
    others = num_groups - support
    return float((1 / support + 1 / others)**2 / (1 / support**2 / (support - 1) + 1 / others**2 / (others - 1)))


def _level_of_each(errors: list[_Errors]) -> float:
    """The level of each interval with which all hold at once with LEVEL."""
    count = len(errors)
    if count < 2:
        return LEVEL
    resampled = np.stack([one.resampled for one in errors])  # m R
    resampled = resampled[:, ~np.isnan(resampled).any(axis=0)]
    if resampled.shape[1] < 100:
        return 1 - (1 - LEVEL) / count
    deviations = resampled - resampled.mean(axis=1, keepdims=True)
    deviations = np.tile(deviations, -(-DRAWS // deviations.shape[1]))
    # Luck of seeds is drawn for each difference by itself: too few seeds to see what goes together, and this is wider.
    seeds = np.array([[0.0 if math.isnan(one.seeds) else one.seeds] for one in errors])
    deviations += seeds * np.random.default_rng(0).normal(size=deviations.shape)
    place = np.abs(deviations).argsort(axis=1).argsort(axis=1)
    smallest = 1 - (place.max(axis=0) + 0.5) / deviations.shape[1]  # the smallest of m p-values, of each draw
    each = float(np.quantile(smallest, 1 - LEVEL))
    return 1 - min(max(each, (1 - LEVEL) / count), 1 - LEVEL)
