"""Few-shot episodes: a few labelled groups per class, and others that are to be told apart by the nearest class mean.

An episode is a pure function of (seed, number). Support and query come from different groups, one row of each.

Legend: N classes of an episode (ways), K support rows per class (shots), q query rows, E features, G query groups,
R resamples of them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor
from torch.nn.functional import normalize

from pipelines.scoring import metrics, ranking
from pipelines.scoring.metrics import Floats, Ints
from pipelines.scoring.uncertainty import Estimate, interval

Distance = Literal["cosine", "euclidean"]
SHARPNESS = 10.0
"""Likenesses are multiplied by this before the softmax: with it, episodes train well in either distance. It changes
who is nearest nowhere, and no ranking of two classes."""
REACH = 1.96
"""Standard errors to each side that hold 95 % of a normal distribution."""


@dataclass(frozen=True)
class Rows:
    """Labelled rows that episodes are drawn from."""

    rows: Ints
    """Of the index."""
    labels: Ints
    """Class of each."""
    groups: Ints
    """Group of each, as a number that is the same in every pool."""

    def groups_of(self, label: int) -> Ints:
        """Each group with a row of this class, once."""
        return np.unique(self.groups[self.labels == label])

    def only(self, classes: Sequence[int]) -> Rows:
        """The rows of some classes."""
        kept = np.isin(self.labels, list(classes))
        return Rows(self.rows[kept], self.labels[kept], self.groups[kept])


class Episode(NamedTuple):
    """Rows of the index, and what the query rows are."""

    classes: Ints
    """N of the task's classes, rising."""
    support: Ints
    """N K; the first k columns are the episode with k shots."""
    query: Ints
    """q, equally many of each class."""
    truth: Ints
    """q: place in `classes`."""


def draw(support: Rows, query: Rows, classes: Sequence[int], ways: int, shots: int, queries: int, seed: int,
         number: int) -> Episode:
    """One episode.

    Args:
        support, query: may be the same rows; no group gets on both sides.
        queries: rows per class at most; all classes get as many as the one with the fewest groups has.

    Raises:
        ValueError: of some class no group is left to ask about.
    """
    rng = np.random.default_rng([seed, number])
    chosen = np.sort(rng.choice(np.asarray(classes, np.int64), ways, replace=False))
    shown = [rng.permutation(support.groups_of(label))[:shots] for label in chosen]
    taken = np.concatenate(shown)
    asked = [rng.permutation(np.setdiff1d(query.groups_of(label), taken)) for label in chosen]
    count = min(queries, *(len(groups) for groups in asked))
    if not count:
        raise ValueError(f"few_shot: found no group to ask about that shows nothing in episode {number}, expected some "
                         "of each class. Groups hold several classes; lower `shots` or `ways`.")
    held = np.stack([_one_row_each(support, label, groups, rng) for label, groups in zip(chosen, shown, strict=True)])
    told = [_one_row_each(query, label, groups[:count], rng) for label, groups in zip(chosen, asked, strict=True)]
    return Episode(chosen, held, np.concatenate(told), np.repeat(np.arange(ways), count))


def able(support: Rows, query: Rows, classes: Sequence[int], shots: int) -> list[int]:
    """The classes with enough groups: `shots` to show, and one to ask about beside them."""
    same = support is query
    return [label for label in classes if len(support.groups_of(label)) >= shots + same
            and len(query.groups_of(label)) >= 1]


def likeness(query: Tensor, support: Tensor, distance: Distance) -> Tensor:
    """How like each query row is to the mean of each class's support rows: what a softmax makes probabilities of.

    Args:
        query: q E. support: N K E.

    Returns:
        q N: the cosine of the angle, or minus the mean squared difference, times SHARPNESS.
    """
    means = support.mean(1)
    if distance == "cosine":
        return SHARPNESS * normalize(query, dim=-1) @ normalize(means, dim=-1).T
    return -SHARPNESS * (query[:, None] - means).square().mean(-1)


@dataclass(frozen=True)
class Told:
    """What one way of telling classes apart reached over all episodes."""

    episodes: Mapping[str, Floats]
    """Metric -> one number per episode."""
    resampled: Mapping[str, Floats]
    """Metric -> 1+R: the mean over episodes, on all query groups and on each resample of them."""
    num_groups: int
    """Groups that any episode asked about."""
    num_rows: int
    """Rows likewise."""
    scarce: int
    """Groups that AUROC rests on."""
    shown: Shown
    """Which training groups each episode showed."""

    def over_episodes(self, metric: str) -> tuple[float, float, float]:
        """Mean, and the ends of the usual interval: what other episodes of the same groups would give."""
        return mean_and_ends(self.episodes[metric])

    def over_groups(self, metric: str) -> Estimate:
        """Mean, and an interval for other groups, asked about and shown."""
        return self.widened(metric, self.resampled[metric], self.episodes[metric], least=0.0)

    def widened(self, metric: str, resampled: Floats, values: Floats, least: float) -> Estimate:
        """The bootstrap over query groups, and on both sides what other training groups could do beside it."""
        support = self.scarce if metric in metrics.NEEDS_BOTH else self.num_groups
        found = interval(resampled, self.num_groups, self.num_rows, support)
        if found.value is None or found.low is None or found.high is None:
            return found
        luck = REACH**2 * luck_of_shown(values, self.shown)
        if math.isnan(luck):
            return dataclasses.replace(found, low=None, high=None, note="interval not estimable: every episode shows "
                                       "all training groups that there are")
        low, high = ((end - found.value) ** 2 + luck for end in (found.low, found.high))
        low, high = max(least, found.value - low**0.5), min(1.0, found.value + high**0.5)
        return dataclasses.replace(found, low=low, high=high)


class Shown(NamedTuple):
    """Training groups of E episodes."""

    classes: Ints
    """E N"""
    groups: Ints
    """E N K"""
    available: Mapping[int, int]
    """Class -> groups that there are."""


def luck_of_shown(values: Floats, shown: Shown) -> float:
    """The variance that the choice of training groups gives the mean over all episodes; NaN where every episode shows
    all that there are.

    The mean over supports of size K out of T groups is a U-statistic, whose variance is K^2 / T times that of what one
    group does to an episode that shows it (Hoeffding 1948, leading term); summed over classes, each by the square of
    the share of episodes that it is in. What a group does is seen in the mean over the episodes that show it, where it
    stands for (T - K) / (T - 1) of itself, since the others are drawn from the rest. Chance makes such means differ
    too, by as much less as they share episodes, and is taken off.

    Args:
        values: E, one per episode.
    """
    count, _, shots = shown.groups.shape
    effects, weights, unknown = [], [], 0.0
    for label, available in shown.available.items():
        within, way = np.nonzero(shown.classes == label)                    # episodes, and where it is in them
        weight = (len(within) / count) ** 2 * shots**2 / available
        groups = shown.groups[within, way].reshape(-1)
        _, place, often = np.unique(groups, return_inverse=True, return_counts=True)
        if available == shots or len(often) < 2 or len(groups) <= len(often):
            unknown += weight
            continue
        own = np.repeat(values[within], shots)
        means = np.bincount(place, own) / often
        by_chance = ((own - means[place]) ** 2).sum() / (len(own) - len(often))
        apart = (available - shots) / (available - 1)
        effects.append(means.var(ddof=1) / apart**2 - by_chance * (1 / often).mean() / apart)
        weights.append(weight)
    if not effects:
        return float("nan")
    known = float(np.dot(effects, weights))
    return max(0.0, known * (1 + unknown / sum(weights)))  # classes where it cannot be seen are taken to be like these


def mean_and_ends(values: Floats) -> tuple[float, float, float]:
    """Mean of independent numbers with 95 % either way; the ends are NaN for fewer than two."""
    mean = float(values.mean())
    reach = REACH * float(values.std(ddof=1)) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return mean, mean - reach, mean + reach


def differences(one: Told, other: Told, metric: str) -> tuple[tuple[float, float, float], Estimate]:
    """One minus another on the same episodes and draws: over episodes, over groups."""
    values, resampled = (ours[metric] - theirs[metric] for ours, theirs in ((one.episodes, other.episodes),
                                                                          (one.resampled, other.resampled)))
    return mean_and_ends(values), one.widened(metric, resampled, values, least=-1.0)


def tell(episodes: Sequence[Episode], predicted: Sequence[Floats], support: Rows, query: Rows,
         drawn: npt.NDArray[np.int64]) -> Told:
    """Score episodes.

    Args:
        predicted: q N probabilities per episode.
        support: what the episodes were drawn to show. query: what they asked about.
        drawn: G 1+R, how often each of `np.unique(query.groups)` counts; the first column is once each.
    """
    names = np.unique(query.groups)
    place = dict(zip(query.rows.tolist(), np.searchsorted(names, query.groups).tolist(), strict=True))
    alone: dict[str, list[float]] = {"accuracy": [], "auroc": []}
    total = {name: np.zeros(drawn.shape[1]) for name in alone}
    counted = {name: np.zeros(drawn.shape[1]) for name in alone}
    for episode, probabilities in zip(episodes, predicted, strict=True):
        weights = drawn[[place[row] for row in episode.query.tolist()]].astype(np.float64)     # q 1+R
        for name, column in _scores(episode.truth, probabilities, weights).items():
            alone[name].append(float(column[0]))
            defined = ~np.isnan(column)
            total[name][defined] += column[defined]
            counted[name] += defined
    asked = {row for episode in episodes for row in episode.query.tolist()}
    means = {name: np.where(counted[name] > 0, total[name] / np.maximum(counted[name], 1), np.nan) for name in alone}
    used = query.groups[np.isin(query.rows, list(asked))]
    labels = query.labels[np.isin(query.rows, list(asked))]
    sides = [min(len(set(used[labels == label])), len(set(used[labels != label]))) for label in set(labels.tolist())]
    num_groups = len(set(used.tolist()))
    scarce = min(sides) if len(sides) == 2 else min(num_groups, sum(sides))
    return Told({name: np.array(values) for name, values in alone.items()}, means, num_groups, len(asked), scarce,
                _shown(episodes, support))


def _shown(episodes: Sequence[Episode], support: Rows) -> Shown:
    order = np.argsort(support.rows)
    rows = np.stack([one.support for one in episodes])                      # E N K
    groups = support.groups[order][np.searchsorted(support.rows[order], rows)]
    classes = np.stack([one.classes for one in episodes])
    return Shown(classes, groups, {int(label): len(support.groups_of(label)) for label in np.unique(classes)})


def _scores(truth: Ints, probabilities: Floats, weights: Floats) -> dict[str, Floats]:
    """Accuracy and AUROC of one episode under each weighting; NaN where no row counts."""
    right = (probabilities.argmax(1) == truth)[:, None]
    whole = weights.sum(0)
    accuracy = np.where(whole > 0, (weights * right).sum(0) / np.maximum(whole, 1e-300), np.nan)
    shown = [1] if probabilities.shape[1] == 2 else range(probabilities.shape[1])
    areas = np.stack([ranking.auroc(truth == label, probabilities[:, label], weights) for label in shown])
    known = ~np.isnan(areas)
    area = np.where(known.any(0), np.where(known, areas, 0).sum(0) / np.maximum(known.sum(0), 1), np.nan)
    return {"accuracy": accuracy, "auroc": area}


def _one_row_each(pool: Rows, label: int, groups: Ints, rng: np.random.Generator) -> Ints:
    own = pool.labels == label
    return np.array([rng.choice(pool.rows[own & (pool.groups == group)]) for group in groups], np.int64)
