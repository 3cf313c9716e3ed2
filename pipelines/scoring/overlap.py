"""How well predicted masks lie on true ones, from counts alone: a sample of any size is three numbers per class.

Legend: n samples, K classes that are not background, R weightings of the samples.

A mask of a test set takes gigabytes, and resampling groups a thousand times must not look at pixels again. What every
metric here needs is how many pixels of a class were found (TP), wrongly called (FP) and missed (FN) in each sample.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from domains.sample import UNKNOWN_CLASS

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

NAMES = ("dice", "iou", "precision", "recall", "false_alarms")
"""The metrics, in the order of tables."""
RESTS_ON_ABSENCE = ("false_alarms",)
"""Metrics that know only the samples without a class; the others know those with it."""


def counts(truth: np.ndarray, called: np.ndarray, num_outputs: int) -> Floats:
    """3K numbers of one sample, class by class: TP, FP, FN.

    Args:
        truth: ... of class numbers, 0 background, UNKNOWN_CLASS where nobody has looked: such pixels count for nothing.
        called: the same shape, class numbers.
    """
    if truth.shape != called.shape:
        raise ValueError(f"masks: found a prediction of shape {called.shape} for a truth of shape {truth.shape}, "
                         "expected the same. Remedy: predict on the grid of the prepared data.")
    known = truth != UNKNOWN_CLASS
    pairs = truth[known].astype(np.int64) * (num_outputs + 1) + called[known].astype(np.int64)
    table = np.bincount(pairs, minlength=(num_outputs + 1) ** 2).reshape(num_outputs + 1, num_outputs + 1)
    found = table.diagonal()
    return np.stack([found, table.sum(0) - found, table.sum(1) - found], 1)[1:].reshape(-1).astype(np.float64)


def per_sample_dice(labels: npt.ArrayLike, predicted: npt.ArrayLike) -> Floats:
    """n K: 2 TP / (2 TP + FP + FN); NaN where the class was not looked for or is not in the truth.

    Args:
        labels: n K, NaN where a class was not looked for. predicted: n 3K.
    """
    found, wrong, missed, looked = _split(labels, predicted)
    return _divide(np.where(looked & (found + missed > 0), 2 * found, np.nan), 2 * found + wrong + missed)


def sample_means(labels: npt.ArrayLike, predicted: npt.ArrayLike) -> Floats:
    """n: each sample's Dice, the mean over the classes in its truth and over seeds; NaN where it holds none.

    Args:
        labels: n K. predicted: S n 3K.
    """
    of_seed = np.stack([per_sample_dice(labels, one) for one in np.asarray(predicted, dtype=np.float64)])  # S n K
    told = ~np.isnan(of_seed)
    return _divide(np.where(told, of_seed, 0.0).sum((0, 2)), told.sum((0, 2)).astype(np.float64))


def holding(labels: npt.ArrayLike, predicted: npt.ArrayLike) -> tuple[Bools, Bools]:
    """n K each: samples whose truth holds a class; samples in which it was looked for and is not."""
    found, _, missed, looked = _split(labels, predicted)
    held = found + missed > 0
    return looked & held, looked & ~held


def left_out(labels: npt.ArrayLike, predicted: npt.ArrayLike) -> tuple[int, ...]:
    """Classes that no truth holds: nothing can be said of how well they are found."""
    held, _ = holding(labels, predicted)
    return tuple(k for k in range(held.shape[1]) if not held[:, k].any())


def score_by_class(labels: Floats, predicted: Floats, weights: Floats) -> dict[int, dict[str, Floats]]:
    """Class -> metric -> R numbers, for each class that some truth holds; NaN where a weighting leaves nothing to say.

    Args:
        labels: n K, NaN where a class was not looked for. predicted: n 3K. weights: n R.
    """
    found, wrong, missed, looked = _split(labels, predicted)
    dice, (held, clear) = per_sample_dice(labels, predicted), holding(labels, predicted)
    absent = left_out(labels, predicted)
    scores = {}
    for k in range(looked.shape[1]):
        if k in absent:
            continue
        hit, false, lost = (np.where(looked[:, k], part[:, k], 0.0) @ weights for part in (found, wrong, missed))
        there = hit + lost > 0                      # some sample of the weighting holds the class
        alarmed = clear[:, k] & (wrong[:, k] > 0)
        scores[k] = {
            "dice": _divide(np.where(held[:, k], np.nan_to_num(dice[:, k]), 0.0) @ weights, held[:, k] @ weights),
            "iou": np.where(there, _divide(hit, hit + false + lost), np.nan),
            "precision": np.where(there, _divide(hit, hit + false), np.nan),
            "recall": _divide(hit, hit + lost),
            "false_alarms": _divide(alarmed @ weights, clear[:, k] @ weights),
        }
    return scores


def check(labels: Floats, predicted: Floats) -> None:
    """Raises ValueError where these are not labels and counts of the same samples."""
    if predicted.ndim != 2 or labels.shape != (len(predicted), predicted.shape[1] // 3) or predicted.shape[1] % 3:
        raise ValueError(f"segmentation: found labels of shape {labels.shape} and counts of shape {predicted.shape}, "
                         "expected n K and n 3K: TP, FP and FN of every class. Remedy: take both from the same rows.")
    if (predicted < 0).any():
        raise ValueError("segmentation: found negative counts, expected TP, FP and FN. Remedy: give counts of pixels, "
                         "not differences of them.")


def _split(labels: npt.ArrayLike, predicted: npt.ArrayLike) -> tuple[Floats, Floats, Floats, Bools]:
    """TP, FP, FN and whether a class was looked for, n K each."""
    y, p = np.asarray(labels, dtype=np.float64), np.asarray(predicted, dtype=np.float64)
    found, wrong, missed = (p[:, part::3] for part in range(3))
    return found, wrong, missed, ~np.isnan(y)


def _divide(a: Floats, b: Floats) -> Floats:
    """a / b, NaN where b is 0."""
    return np.divide(a, b, out=np.full(np.broadcast(a, b).shape, np.nan), where=np.asarray(b) != 0)
