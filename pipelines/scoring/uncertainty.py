"""How far a test score can be trusted: bootstrap over groups, paired differences, and folds that never cut a group.

Legend: n rows, K outputs, S seeds of one arm, G groups, R resamples.

Rows of one patient, block or object are not independent, so groups are drawn with replacement, never rows. All arms see
the same draws: their common luck cancels in a difference, which makes its interval narrower than two apart.

The interval covers the choice of test groups. It holds the trained models fixed: the spread between seeds is reported
beside it, not inside it, because two or three seeds say too little about their own spread to be resampled.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from domains.sample import TaskKind
from pipelines.scoring import metrics, overlap
from pipelines.scoring.metrics import Floats

MIN_GROUPS = 10
"""With fewer test groups no interval is given: resampling three blocks only repeats those three blocks."""
MAX_UNDEFINED = 0.1
"""Above this share of resamples without the metric (a class lost both outcomes) no interval is given."""
RECENTRED = ("ece", "average_precision")
"""Metrics that chance raises on few rows, and a resample, with its repeated rows, raises once more: all percentiles of
the resamples may lie above the value. Their spread is kept and their mean is moved back to the value. In simulations
of 12 classes on 110 groups, intervals of the average precision then hold the truth in 83 % of trials, not in 76 %; of
two classes in 94 % either way."""
LEFT_OUT = "outputs left out of the average for want of an outcome"
LEVEL = 0.95
"""Share of such intervals that hold the true value, if the groups are a fair draw."""
ENTRIES = 250_000
"""Rows times resamples worked on at once: 2 MB of weights, which stay in a core's own cache."""


def with_interval(value: float | None, low: float | None, high: float | None, digits: int, signed: bool) -> str:
    """A number with its interval, as tables and sentences show it."""
    sign = "+" if signed else ""
    if value is None:
        return "not estimable"
    if low is None or high is None:
        return f"{value:{sign}.{digits}f} [no interval]"
    return f"{value:{sign}.{digits}f} [{low:{sign}.{digits}f}, {high:{sign}.{digits}f}]"


@dataclass(frozen=True)
class Estimate:
    """A number with what is known of its uncertainty."""

    value: float | None
    """On all rows; the mean over seeds. None: not estimable."""
    low: float | None
    """Lower end of the 95 % interval. None: not estimable, `note` says why."""
    high: float | None
    """Upper end, likewise."""
    num_groups: int
    """Groups with a known label: what was drawn."""
    num_rows: int
    """Rows with a known label."""
    note: str = ""
    """Why there is no value or no interval, how many resamples had no value, what was left out."""

    def text(self, digits: int = 3, signed: bool = False) -> str:
        """For tables: `0.812 [0.760, 0.858]`, `0.812 [no interval: 3 test groups, needs 10]`, `not estimable`."""
        return with_interval(self.value, self.low, self.high, digits, signed)


@dataclass(frozen=True)
class Spread:
    """One arm's metrics on all rows and on every resample. Column 0 of each array is all rows."""

    metrics: dict[str, Floats]
    """name -> S 1+R."""
    outputs: dict[int, dict[str, Floats]]
    """Class, finding or column -> name -> S 1+R."""
    num_groups: int
    """Groups that were drawn from."""
    num_rows: int
    """Rows in them."""
    absent: tuple[int, ...]
    """Outputs that the averages leave out; see metrics.left_out."""
    scarce: dict[int, int]
    """Output -> groups that hold its rarer outcome, or in a mask the class; what its AUROC or Dice rests on."""
    chance_ece: float
    """Calibration error that perfect calibration would show on these rows, mean over seeds; NaN for regression and
    masks."""
    clear: dict[int, int] = field(default_factory=dict)
    """Class of masks -> groups with a sample without it; what false alarms rest on."""

    def support(self, metric: str, output: int | None = None) -> int:
        """How many groups the metric rests on, of one output or of their average.

        Metrics that set positives against negatives know the rarer of the two only as well as its groups allow. An
        average over outputs rests on the groups of all of them, never on more than there are.
        """
        held = self.clear if metric in overlap.RESTS_ON_ABSENCE else self.scarce
        if metric not in (*metrics.NEEDS_BOTH, *overlap.RESTS_ON_ABSENCE):
            return self.num_groups
        return min(self.num_groups, sum(held.values()) if output is None else held[output])


def draw_groups(num_groups: int, resamples: int, seed: int) -> npt.NDArray[np.int64]:
    """G R: how often each group is drawn in each resample of as many groups; the same for the same arguments."""
    generator = np.random.default_rng([seed, num_groups])
    draws = generator.integers(0, num_groups, (resamples, num_groups))
    return np.stack([np.bincount(draw, minlength=num_groups) for draw in draws], axis=1)


def spread(kind: TaskKind, labels: npt.ArrayLike, predicted: npt.ArrayLike, groups: Sequence[str],
           resamples: int = 1000, seed: int = 0, among: Sequence[str] = (),
           models: npt.ArrayLike | None = None) -> Spread:
    """Score one arm on all rows and on resamples of its groups.

    Args:
        labels: n 1 or n K, NaN unknown; see metrics.score.
        predicted: S n K: one set of probabilities or numbers per seed; of masks S n 3K, see metrics.score.
        groups: the group of each row.
        among: draw among these groups, which hold all of `groups`, so that parts of the rows see the same draws.
        models: S n: which model of a seed predicted a row; see metrics. None: one model per seed.

    Two arms scored with the same labels, groups, resamples and seed see the same draws.
    """
    y, p = np.asarray(labels, dtype=np.float64), np.asarray(predicted, dtype=np.float64)
    if p.ndim != 3 or len(groups) != len(y):
        raise ValueError(f"predictions: found shape {p.shape} with {len(groups)} groups for {len(y)} rows, expected "
                         "seeds x rows x outputs and one group per row.")
    known = metrics.known_rows(y)
    said_by = np.zeros(p.shape[:2], np.int64) if models is None else np.asarray(models, np.int64)
    y, p, said_by = y[known], p[:, known], said_by[:, known]
    names, member = np.unique(np.asarray(groups, dtype=str)[known], return_inverse=True)
    every = np.unique(np.asarray(among, dtype=str)) if len(among) else names
    drawn = draw_groups(len(every), resamples, seed) if len(every) else np.zeros((0, resamples), np.int64)
    drawn = drawn[np.searchsorted(every, names)]
    drawn = np.concatenate([np.ones((len(names), 1), np.int64), drawn], axis=1)  # column 0: every group once
    step = max(1, ENTRIES // max(1, len(y)))
    per_seed = []
    for one, own in zip(p, said_by, strict=True):
        parts = []
        for start in range(0, drawn.shape[1], step):
            weights = drawn[member, start:start + step].astype(np.float64)
            parts.append(metrics.score_with_outputs(kind, y, one, weights, own))
        per_seed.append(parts)
    joined = {name: _join([[part[0][name] for part in parts] for parts in per_seed]) for name in metrics.NAMES[kind]}
    outputs = {k: {name: _join([[part[1][k][name] for part in parts] for parts in per_seed])
                   for name in per_seed[0][0][1][k]} for k in per_seed[0][0][1]} if len(p) else {}
    scarce, clear = {}, {}
    for k in outputs:
        if kind == "segmentation":
            scarce[k], clear[k] = (len(set(member[side[:, k]].tolist())) for side in overlap.holding(y, p[0]))
        else:
            scarce[k] = _scarcer(kind, y, k, member)
    chance = float(np.mean([metrics.chance_calibration_error(kind, y, one, seed=seed) for one in p]))
    absent = metrics.absent_of(kind, y, p[0]) if len(p) else ()
    return Spread(joined, outputs, len(names), len(y), absent, scarce, chance, clear)


def estimates(one: Spread, names: Sequence[str] = ()) -> dict[str, Estimate]:
    """Each metric of an arm: mean over its seeds, inside each resample."""
    left = f"{LEFT_OUT}: {len(one.absent)}" if one.absent else ""
    chance = "" if np.isnan(one.chance_ece) else f"perfect calibration would show {one.chance_ece:.3f} on these rows"
    fewer = thinned(one)
    found = {}
    for name, column in one.metrics.items():
        thin = fewer if name in metrics.NEEDS_BOTH else ""
        said, mean = _joined(thin, left, chance if name == "ece" else ""), _recentred(name, column.mean(axis=0))
        found[name] = interval(mean, one.num_groups, one.num_rows, one.support(name), said)
    return found


def thinned(one: Spread) -> str:
    """How many resamples average over fewer outputs than all rows do, as a rare class is in none of their groups."""
    lost = np.array([np.isnan(columns["auroc"][0, 1:]) for columns in one.outputs.values() if "auroc" in columns])
    if len(lost) < 2 or not lost.any():
        return ""
    return f"{int(lost.any(axis=0).sum())} of {lost.shape[1]} resamples average over fewer outputs"


def output_estimates(one: Spread, metric: str) -> dict[int, Estimate]:
    """One metric of every class, finding or column that has it."""
    return {k: interval(_recentred(metric, columns[metric].mean(axis=0)), one.num_groups, one.num_rows,
                        one.support(metric, k)) for k, columns in one.outputs.items() if metric in columns}


def differences(one: Spread, baseline: Spread) -> dict[str, Estimate]:
    """Each metric of an arm minus that of another on the same rows and draws: mean over seeds on each side first."""
    if (one.num_groups, one.num_rows) != (baseline.num_groups, baseline.num_rows):
        raise ValueError(f"paired difference: found {one.num_rows} rows in {one.num_groups} groups against "
                         f"{baseline.num_rows} in {baseline.num_groups}, expected the same rows on both sides.")
    return {name: interval(_recentred(name, column.mean(axis=0) - baseline.metrics[name].mean(axis=0), least=-1.0),
                           one.num_groups, one.num_rows, one.support(name))
            for name, column in one.metrics.items()}


def gap(one: Spread, other: Spread) -> dict[str, Estimate]:
    """Each metric on some rows minus that on others, drawn `among` the same groups: a group on both sides counts on
    both, so that the interval holds for separate groups and for shared ones."""
    names = {name: one.metrics[name].mean(axis=0) - other.metrics[name].mean(axis=0) for name in one.metrics}
    return {name: interval(_recentred(name, column, least=-1.0), min(one.num_groups, other.num_groups),
                           one.num_rows + other.num_rows, min(one.support(name), other.support(name)))
            for name, column in names.items()}


def interval(column: Floats, num_groups: int, num_rows: int, support: int, said: str = "") -> Estimate:
    """The estimate that a value (first entry) and its resamples (the rest) give.

    Percentiles are expanded for few groups (Hesterberg 2015, "What Teachers Should Know About the Bootstrap"): plain
    percentile intervals are too narrow by sqrt((G-1)/G) and by the normal in place of the t distribution, and then hold
    the truth less often than they say. G is the number of groups that the metric rests on (`Spread.support`): in
    simulations of an AUROC of 0.76 on 12 groups that holds the truth in 95 % of trials, in 90 % with all groups as G,
    and in 87 % unexpanded.
    """
    value, resampled = float(column[0]), column[1:]
    if np.isnan(value):
        reason = "no labelled test row" if num_rows == 0 else "the test rows lack an outcome"
        return Estimate(None, None, None, num_groups, num_rows, reason)
    if num_groups < MIN_GROUPS:
        reason = f"interval not estimable: {num_groups} test groups, needs {MIN_GROUPS}"
        return Estimate(value, None, None, num_groups, num_rows, _joined(reason, said))
    defined = resampled[~np.isnan(resampled)]
    undefined = len(resampled) - len(defined)
    lost = f"{undefined} of {len(resampled)} resamples without the metric" if undefined else ""
    if not len(defined) or undefined > MAX_UNDEFINED * len(resampled):
        reason = f"interval not estimable: {lost or 'no resamples'}, too few groups hold an outcome"
        return Estimate(value, None, None, num_groups, num_rows, _joined(reason, said))
    tail = expanded_tail(support)
    low, high = np.quantile(defined, [tail, 1 - tail])
    alike = "every resample gives the same value, so the interval is narrower than the truth" if low == high else ""
    return Estimate(value, float(low), float(high), num_groups, num_rows, _joined(lost, alike, said))


def _recentred(name: str, column: Floats, least: float = 0.0) -> Floats:
    """Value and resamples; of a metric in RECENTRED with the resamples moved to the value, within its range."""
    if name not in RECENTRED or np.isnan(column[1:]).all():
        return column
    return np.r_[column[:1], np.clip(column[1:] - np.nanmean(column[1:]) + column[0], least, 1.0)]


def expanded_tail(num_groups: int, level: float = LEVEL) -> float:
    """The share to cut at each end so that a percentile interval of a mean is as wide as its t interval."""
    num_groups = max(2, num_groups)
    reach = t_reach(level, num_groups - 1) * (num_groups / (num_groups - 1)) ** 0.5
    return NormalDist().cdf(-reach)


def t_reach(level: float, freedom: int) -> float:
    """How far to both sides of 0 a t distribution with `freedom` degrees has `level` of its mass.

    Bisection on the finite sums that hold for whole degrees (Abramowitz and Stegun 26.7.3 and 26.7.4), so that a
    machine with the minimal set of libraries can evaluate.
    """
    if freedom > 1000:
        return NormalDist().inv_cdf(0.5 + level / 2)  # the two differ by 0.1 % there

    def mass(angle: float) -> float:
        sine, square = math.sin(angle), math.cos(angle) ** 2
        term, total = (math.cos(angle), 0.0) if freedom % 2 else (1.0, 0.0)
        for k in range(1 + freedom % 2, freedom, 2):
            total += term
            term *= square * k / (k + 1)
        return 2 / math.pi * (angle + sine * total) if freedom % 2 else sine * total

    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if mass(middle) < level else (low, middle)
    return math.tan((low + high) / 2) * math.sqrt(freedom)


def seed_std(one: Spread) -> dict[str, float | None]:
    """Standard deviation between seeds on all rows (n - 1); None with fewer than two seeds or where not defined."""
    result: dict[str, float | None] = {}
    for name, column in one.metrics.items():
        values = column[:, 0]
        result[name] = float(values.std(ddof=1)) if len(values) > 1 and not np.isnan(values).any() else None
    return result


def by_source(sources: Sequence[str]) -> Mapping[str, npt.NDArray[np.int64]]:
    """Row indices of each source, by name; empty when there is one source only."""
    names = sorted(set(sources))
    column = np.asarray(sources, dtype=str)
    return {name: np.flatnonzero(column == name) for name in names} if len(names) > 1 else {}


def group_folds(groups: Sequence[str], labels: npt.ArrayLike, k: int, repeats: int,
                seed: int) -> list[npt.NDArray[np.int64]]:
    """Repeated group k-fold: k * repeats arrays of held-out rows; each repeat covers every row once.

    Groups are never cut. Folds are balanced by class (single_label), by the commonest patterns of findings
    (multi_label) or by quarters of the first column (regression); a row without a label is a stratum of its own.

    Args:
        labels: n 1 or n K; NaN unknown.
    """
    try:
        from sklearn.model_selection import StratifiedGroupKFold
    except ImportError as error:
        raise ImportError("folds need scikit-learn, which is not installed. Install it with: pip install "
                          "'lacuna[tracking]'.") from error

    num_groups = len(set(groups))
    if k < 2 or num_groups < k:
        raise ValueError(f"folds: found k={k} and {num_groups} groups, expected 2 <= k <= groups. "
                         "Remedy: lower k, or report the score without an interval.")
    strata = _strata(np.asarray(labels, dtype=np.float64))
    folds: list[npt.NDArray[np.int64]] = []
    for repeat in range(repeats):
        # Fixed strata, another order of groups: a repeat differs by its shuffle alone.
        state = int(np.random.default_rng([seed, repeat]).integers(2**31))
        splitter = StratifiedGroupKFold(k, shuffle=True, random_state=state)
        for _, held_out in splitter.split(strata, strata, list(groups)):
            if not len(held_out):
                raise ValueError(f"folds: found a fold without a row for k={k} and {num_groups} groups of very unequal "
                                 "size. Remedy: lower k.")
            folds.append(np.asarray(held_out, dtype=np.int64))
    return folds


def _scarcer(kind: TaskKind, labels: Floats, output: int, member: npt.NDArray[np.int64]) -> int:
    """Groups with the rarer outcome of an output (a group may hold both); of a number, all groups that have it."""
    column = labels[:, 0] if kind == "single_label" else labels[:, output]
    if kind == "regression":
        return len(set(member[~np.isnan(column)].tolist()))
    positive = column == (output if kind == "single_label" else 1)
    return min(len(set(member[side & ~np.isnan(column)].tolist())) for side in (positive, ~positive))


def _strata(labels: Floats) -> npt.NDArray[np.int64]:
    """n: one small number per row to balance folds by."""
    columns = labels.reshape(len(labels), -1)
    known = columns[~np.isnan(columns)]
    if len(known) and not np.equal(known, np.round(known)).all():
        edges = np.nanquantile(columns[:, 0], [0.25, 0.5, 0.75])
        return np.where(np.isnan(columns[:, 0]), 4, np.searchsorted(edges, columns[:, 0]))
    patterns = np.nan_to_num(columns, nan=-1.0)
    _, stratum, count = np.unique(patterns, axis=0, return_inverse=True, return_counts=True)
    stratum = stratum.reshape(-1)
    # Patterns rarer than a fold cannot be balanced; together they can.
    return np.where(count[stratum] >= 5, stratum, len(count)).astype(np.int64)


def _join(parts: list[list[Floats]]) -> Floats:
    return np.stack([np.concatenate(part) for part in parts])


def _joined(*texts: str) -> str:
    return "; ".join(text for text in texts if text)
