"""Scores of an order of rows: AUROC, average precision, the correlation of ranks; each for many weightings at once.

Legend: n rows, R weightings of the rows (one column per bootstrap resample), B blocks of equal score.

Rows of several models are ordered within each model alone, since two models need not agree on where zero is (Forman &
Scholz 2010, "Apples-to-apples in cross-validation studies").
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]


def auroc(positive: Bools, scores: Floats, weights: Floats) -> Floats:
    """Area under the receiver operating characteristic, from the counts of positives above negatives."""
    return ranking(positive, scores, weights, np.zeros(len(scores), np.int64))["auroc"]


def spearman(a: Floats, b: Floats, weights: Floats) -> Floats:
    """Correlation of the ranks that the rows have inside each weighting."""
    ranks = [_ranks(x, weights) for x in (a, b)]
    total = weights.sum(axis=0)
    x, y = (r - divide((weights * r).sum(axis=0), total) for r in ranks)
    spread = (weights * x * x).sum(axis=0) * (weights * y * y).sum(axis=0)
    # Two different ranks are at least half apart, so a spread this small is rounding about a constant.
    return divide((weights * x * y).sum(axis=0), np.sqrt(np.where(spread > 1e-6, spread, 0.0)))


def ranking(positive: Bools, scores: Floats, weights: Floats, models: Ints) -> dict[str, Floats]:
    """AUROC: of all pairs of a positive and a negative row of one model. Average precision: the mean over positive rows
    of the precision among the rows of their model, of those models that have a negative row."""
    right = pairs = area = found = np.zeros(weights.shape[1])
    for model in np.unique(models):
        own = np.flatnonzero(models == model)
        ordered, precisions, positives, negatives = _counts(positive, scores, weights, own)
        right, pairs = right + ordered, pairs + positives * negatives
        area, found = area + np.where(negatives > 0, precisions, 0), found + np.where(negatives > 0, positives, 0)
    return {"auroc": divide(right, pairs), "average_precision": divide(area, found)}


def _counts(positive: Bools, scores: Floats, weights: Floats, own: Ints) -> tuple[Floats, Floats, Floats, Floats]:
    """Of these rows: pairs in the right order, sum of precisions over positive rows, positive rows, negative rows; R
    each. One pass over the thresholds, which lie between blocks of equal score."""
    order = own[np.argsort(-scores[own], kind="stable")]
    starts = np.flatnonzero(np.r_[True, np.diff(scores[order]) < 0])
    sorted_weights = weights[order]
    size = np.add.reduceat(sorted_weights, starts, axis=0)  # B R, by falling score
    hits = np.add.reduceat(sorted_weights * positive[order, None], starts, axis=0)
    found, called = np.cumsum(hits, axis=0), np.cumsum(size, axis=0)
    positives, negatives = found[-1], called[-1] - found[-1]
    # Negatives below a block, and half of those in it: all, less those above, less half of those inside.
    beaten = negatives - (called - found) + 0.5 * (size - hits)
    area = (hits * found / np.maximum(called, 1e-300)).sum(axis=0)
    return (hits * beaten).sum(axis=0), area, positives, negatives


def _ranks(x: Floats, weights: Floats) -> Floats:
    """n R: the mean rank that each row's value has when every row is repeated as often as its weight says."""
    order = np.argsort(x, kind="stable")
    block = np.cumsum(np.r_[0, np.diff(x[order]) > 0]) if len(x) else np.zeros(0, dtype=np.int64)
    starts = np.flatnonzero(np.r_[True, np.diff(block) > 0]) if len(x) else np.zeros(0, dtype=np.int64)
    size = np.add.reduceat(weights[order], starts, axis=0) if len(x) else np.zeros_like(weights)
    rank = np.cumsum(size, axis=0) - size + (size + 1) / 2  # B R
    result = np.empty_like(weights)
    result[order] = rank[block]
    return result


def divide(a: Floats, b: Floats) -> Floats:
    """a / b, NaN where b is 0: the metric is not defined there."""
    return np.divide(a, b, out=np.full(np.broadcast(a, b).shape, np.nan), where=np.asarray(b) != 0)
