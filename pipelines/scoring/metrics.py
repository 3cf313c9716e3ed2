"""Scores of predictions against labels, each stated once and computed the same way for a point value and a resample.

Legend: n rows, K outputs, R weightings of the rows (one column per bootstrap resample), B blocks of equal score.

Rows of several folds come with `models`, n: which model said it. What orders rows (AUROC, average precision) sets a
row against rows of its own model alone, since two models need not agree on where zero is (Forman & Scholz 2010,
"Apples-to-apples in cross-validation studies").

A bootstrap resample is nothing but a count per row, so every metric takes weights `n R` and gives R numbers: a point
value is the column of ones. That makes a thousand resamples one matrix operation, and keeps a value and its interval
from ever following two definitions. numpy alone is needed, because fine-tuning picks its epoch by a metric on machines
without scikit-learn; tests/pipelines/test_metrics.py proves every number here against scikit-learn.

What is not defined (AUROC where one outcome never occurs) is NaN here and "not estimable" in a report, never 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from domains.sample import TaskKind
from pipelines.scoring import overlap
from pipelines.scoring.ranking import divide, ranking, spearman

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]

BINS = 15
"""Bins of equal width over [0, 1] in the expected calibration error and in the reliability plot."""
THRESHOLD = 0.5
"""A finding is called present from this probability on (multi_label)."""


@dataclass(frozen=True)
class Metric:
    """How to read one metric."""

    title: str
    """What tables and plots call it."""
    higher_is_better: bool
    """Which way is up."""
    meaning: str
    """The definition, for whoever compares it with another tool's."""
    is_share: bool = True
    """Whether it lies between 0 and 1 on any data, so that no gain can be more than 1."""


METRICS: dict[str, Metric] = {
    "auroc": Metric("AUROC", True, "Chance that a positive row scores above a negative one of the same model, ties "
                    "half. Several classes: each against the rest, then the mean; several findings: the mean."),
    "average_precision": Metric("average precision", True, "Sum of precision times gain in recall over the thresholds, "
                                "without interpolation; averaged over classes or findings like AUROC."),
    "accuracy": Metric("accuracy", True, "Share of rows whose most probable class is right; per finding at 0.5."),
    "balanced_accuracy": Metric("balanced accuracy", True, "Mean over the classes of the share found; per finding the "
                                "mean of sensitivity and specificity at 0.5."),
    "f1": Metric("F1", True, "2 TP / (2 TP + FP + FN) of the second class of two; of several classes the mean; "
                 "per finding at 0.5."),
    "ece": Metric("ECE", False, f"Expected calibration error: {BINS} bins of equal width (low, high], mean over bins "
                  "of |share right - mean confidence| weighted by rows. Confidence is the probability of the predicted "
                  "class (single_label) or of the finding (multi_label, against its presence). Chance alone "
                  "makes it positive on few rows: see `chance_calibration_error`."),
    "brier": Metric("Brier", False, "Mean squared difference of probability and outcome: of the second class of two, "
                    "summed over several classes, averaged over findings.", is_share=False),
    "mae": Metric("MAE", False, "Mean absolute error in the unit of the label; averaged over columns.", is_share=False),
    "rmse": Metric("RMSE", False, "Root of the mean squared error, per column, then averaged.", is_share=False),
    "r2": Metric("R2", True, "1 - squared error / squared distance from the mean of the same rows; averaged over "
                 "columns.", is_share=False),
    "spearman": Metric("Spearman", True, "Correlation of ranks, ties sharing their mean rank; averaged over columns.",
                       is_share=False),
    "dice": Metric("Dice", True, "2 TP / (2 TP + FP + FN) in pixels of each sample, averaged over the samples whose "
                   "truth holds the class, then over classes. Samples without the class are left out: see false "
                   "alarms."),
    "iou": Metric("IoU", True, "TP / (TP + FP + FN), pixels of all samples together, wrong ones in samples without the "
                  "class too; averaged over classes. Not defined where no truth holds the class."),
    "precision": Metric("precision", True, "TP / (TP + FP), pixels of all samples together; averaged over classes. Not "
                        "defined where nothing was called the class, or no truth holds it."),
    "recall": Metric("recall", True, "TP / (TP + FN), pixels of all samples together; averaged over classes."),
    "false_alarms": Metric("false alarms", False, "Share of the samples without a class in which some pixel was called "
                           "it, averaged over classes. Not defined where every sample holds the class."),
    "hausdorff95": Metric("Hausdorff 95 %", False, "The larger of two 95th percentiles: distances from each surface of "
                          "a class to the other, true and predicted; averaged over the samples whose truth holds the "
                          "class, then over classes. Where nothing was called it, the sample's diagonal counts.",
                          is_share=False),
    "surface_distance": Metric("surface distance", False, "Mean of the same distances, both ways together; averaged "
                               "likewise.", is_share=False),
}

NEEDS_BOTH = ("auroc", "average_precision", "balanced_accuracy", "f1", "dice", "iou", "precision", "recall",
              "hausdorff95", "surface_distance")
"""Metrics that set one outcome against the other, and know no more than the rarer of the two allows; of masks, than the
groups that hold the class."""

HEADLINE: dict[TaskKind, str] = {"single_label": "auroc", "multi_label": "auroc", "regression": "mae",
                                 "segmentation": "dice"}
"""The one number per kind of task that a run is told by, unless its settings name another."""

NAMES: dict[TaskKind, tuple[str, ...]] = {
    "single_label": ("auroc", "average_precision", "accuracy", "balanced_accuracy", "f1", "ece", "brier"),
    "multi_label": ("auroc", "average_precision", "accuracy", "balanced_accuracy", "f1", "ece", "brier"),
    "regression": ("mae", "rmse", "r2", "spearman"),
    "segmentation": overlap.NAMES,
}
"""The metrics of each kind of task, in the order of tables."""


def values(kind: TaskKind, labels: npt.ArrayLike, predicted: npt.ArrayLike) -> dict[str, float]:
    """Every metric of the kind as one number; NaN where it is not defined. See `score`."""
    return {name: float(column[0]) for name, column in score(kind, labels, predicted).items()}


def score(kind: TaskKind, labels: npt.ArrayLike, predicted: npt.ArrayLike, weights: npt.ArrayLike | None = None,
          models: npt.ArrayLike | None = None) -> dict[str, Floats]:
    """Every metric of the kind, for each weighting of the rows.

    Args:
        labels: n 1 class indices (single_label), n K of 0/1 (multi_label), n K numbers (regression) or n K of 1 where
            a class was looked for (segmentation); NaN is unknown and left out.
        predicted: n K: probabilities over the classes, probability of each finding, or numbers; n 3K: TP, FP, FN in
            pixels, class by class (segmentation, see overlap.counts).
        weights: n R, how often each row counts; None is once each.
        models: n whole numbers: which model predicted the row, see above; None is one model for all.

    Returns:
        name -> R numbers. Classes, findings and columns are averaged over those that have both outcomes under the
        weighting (`left_out` names the others); NaN where none has.
    """
    return score_with_outputs(kind, labels, predicted, weights, models)[0]


def score_with_outputs(kind: TaskKind, labels: npt.ArrayLike, predicted: npt.ArrayLike,
                       weights: npt.ArrayLike | None = None, models: npt.ArrayLike | None = None,
                       ) -> tuple[dict[str, Floats], dict[int, dict[str, Floats]]]:
    """What `score` gives, and the metrics that one class, finding or column has of its own: output -> name -> R.

    Outputs that `left_out` names are absent. Of two classes only the second is told.
    """
    labels, predicted, weights = _checked(kind, labels, predicted, weights)
    models = np.zeros(len(predicted), np.int64) if models is None else np.asarray(models, np.int64)
    if models.shape != (len(predicted),):
        raise ValueError(f"models: found shape {models.shape} for {len(predicted)} rows, expected one number per row.")
    if kind == "single_label":
        known = ~np.isnan(labels[:, 0])
        y, p, w = labels[known, 0].astype(int), predicted[known], weights[known]
        classes = _classes(y, p, w, models[known])
        means = _mean_over_outputs(("auroc", "average_precision", "f1"), classes, w.shape[1])
        return {**means, **_rows(y, p, w)}, classes
    outputs = (overlap.score_by_class(labels, predicted, weights) if kind == "segmentation"
               else _by_output(kind, labels, predicted, weights, models))
    return _mean_over_outputs(NAMES[kind], outputs, weights.shape[1]), outputs


def absent_of(kind: TaskKind, labels: npt.ArrayLike, predicted: npt.ArrayLike) -> tuple[int, ...]:
    """`left_out` of n predictions, and of masks, whose counts tell what the truth holds."""
    told = np.asarray(predicted, dtype=np.float64)
    return overlap.left_out(labels, told) if kind == "segmentation" else left_out(kind, labels, told.shape[1])


def left_out(kind: TaskKind, labels: npt.ArrayLike, num_outputs: int) -> tuple[int, ...]:
    """Outputs that no average may take in: a class or finding without both outcomes, a column without any number."""
    known = np.asarray(labels, dtype=np.float64)
    if kind == "single_label":
        occurring = set(known[~np.isnan(known)].astype(int).tolist())
        return tuple(k for k in range(num_outputs) if k not in occurring or len(occurring) < 2)
    if kind == "regression":
        return tuple(k for k in range(num_outputs) if np.isnan(known[:, k]).all())
    return tuple(k for k in range(num_outputs) if not ((known[:, k] == 1).any() and (known[:, k] == 0).any()))


def known_rows(labels: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Rows with at least one known label; the others count for nothing, neither as rows nor as groups."""
    return np.flatnonzero(~np.isnan(np.asarray(labels, dtype=np.float64)).all(axis=1))


def better(metric: str, a: float, b: float) -> bool:
    """Whether `a` is a better value of the metric than `b`. NaN is never better, and anything is better than NaN."""
    if np.isnan(a) or np.isnan(b):
        return bool(np.isnan(b) and not np.isnan(a))
    return a > b if METRICS[metric].higher_is_better else a < b


def under(metric: str, what: str, detectable: float) -> str:
    """What stays invisible of gains or falls: "a gain under 0.040", or "any gain" where the score can have none that is
    larger."""
    return f"any {what}" if METRICS[metric].is_share and detectable >= 1 else f"a {what} under {detectable:.3f}"


def confidence(kind: TaskKind, labels: npt.ArrayLike, predicted: npt.ArrayLike) -> tuple[Floats, Floats]:
    """What the calibration error compares: confidences and whether each was right (0 or 1), over known labels."""
    labels, predicted, _ = _checked(kind, labels, predicted, None)
    if kind == "single_label":
        known = ~np.isnan(labels[:, 0])
        return predicted[known].max(axis=1), (predicted[known].argmax(axis=1) == labels[known, 0]).astype(np.float64)
    known = ~np.isnan(labels)
    return predicted[known], labels[known]


def chance_calibration_error(kind: TaskKind, labels: npt.ArrayLike, predicted: npt.ArrayLike, draws: int = 200,
                             seed: int = 0) -> float:
    """The calibration error that these predictions would show on as many rows if they were perfectly calibrated.

    Gaps of both signs count alike, so an error of 0.06 on a hundred rows may be nothing but chance. Outcomes are drawn
    with the predicted probabilities, rows independent; NaN where the error itself is not defined, as for numbers and
    masks.
    """
    y, p, _ = _checked(kind, labels, predicted, None)
    if kind in ("regression", "segmentation"):
        return float("nan")
    generator = np.random.default_rng(seed)
    absent = left_out(kind, y, p.shape[1])
    columns = [p.max(axis=1)[~np.isnan(y[:, 0])]] if kind == "single_label" else \
        [p[~np.isnan(y[:, k]), k] for k in range(p.shape[1]) if k not in absent]
    errors = []
    for certain in columns:
        drawn = (generator.random((len(certain), draws)) < certain[:, None]).astype(np.float64)
        errors.append(calibration_error(drawn, certain, np.ones((len(certain), draws))).mean())
    return float(np.mean(errors)) if errors else float("nan")


def bin_of(probability: Floats) -> npt.NDArray[np.int64]:
    """Which of BINS bins (low, high] a probability falls into; 0 itself falls into the first."""
    return np.clip(np.ceil(probability * BINS).astype(np.int64) - 1, 0, BINS - 1)


# One output at a time. `positive` is n of True and False, `weights` n R.


def calibration_error(right: Floats, certain: Floats, weights: Floats) -> Floats:
    """Expected calibration error, see METRICS["ece"]. `right` is n, or n R with other outcomes for each weighting."""
    right = right[:, None] if right.ndim == 1 else right
    place = bin_of(certain)
    order = np.argsort(place, kind="stable")
    starts = np.flatnonzero(np.diff(place[order], prepend=-1))
    missed = (right - certain[:, None])[order] * weights[order]
    gap = np.add.reduceat(missed, starts, axis=0) if len(starts) else weights
    return divide(np.abs(gap).sum(axis=0), weights.sum(axis=0))  # a bin's gap: rows times (share right - confidence)


def _rows(y: Ints, p: Floats, w: Floats) -> dict[str, Floats]:
    """What several classes have together."""
    chosen = p.argmax(axis=1)
    right = (chosen == y).astype(np.float64)
    outcome = y[:, None] == np.arange(p.shape[1])  # n K
    square = ((p - outcome) ** 2)[:, 1:].sum(axis=1) if p.shape[1] == 2 else ((p - outcome) ** 2).sum(axis=1)
    absent = left_out("single_label", y[:, None], p.shape[1])
    total = w.sum(axis=0)
    recalls = [_recall(outcome[:, k], chosen == k, w) for k in range(p.shape[1]) if k not in absent]
    return {
        "accuracy": divide(right @ w, total),
        "balanced_accuracy": _mean(recalls, w.shape[1]),
        "ece": calibration_error(right, p.max(axis=1), w),
        "brier": divide(square @ w, total),
    }


def _classes(y: Ints, p: Floats, w: Floats, models: Ints) -> dict[int, dict[str, Floats]]:
    """Each class against the rest."""
    chosen, num_classes = p.argmax(axis=1), p.shape[1]
    absent = left_out("single_label", y[:, None], num_classes)
    told = [1] if num_classes == 2 else range(num_classes)
    return {k: {**ranking(y == k, p[:, k], w, models), "f1": _f1(y == k, chosen == k, w)}
            for k in told if k not in absent}


def _by_output(kind: TaskKind, labels: Floats, predicted: Floats, weights: Floats,
               models: Ints) -> dict[int, dict[str, Floats]]:
    one: Callable[[Floats, Floats, Floats, Ints], dict[str, Floats]] = _finding if kind == "multi_label" else _column
    absent = left_out(kind, labels, predicted.shape[1])
    result = {}
    for k in range(predicted.shape[1]):
        if k not in absent:
            known = ~np.isnan(labels[:, k])
            result[k] = one(labels[known, k], predicted[known, k], weights[known], models[known])
    return result


def _finding(label: Floats, p: Floats, w: Floats, models: Ints) -> dict[str, Floats]:
    positive, called = label == 1, p >= THRESHOLD
    sensitivity = divide((positive & called) @ w, positive @ w)
    specificity = divide((~positive & ~called) @ w, ~positive @ w)
    return {
        **ranking(positive, p, w, models),
        "accuracy": divide((positive == called) @ w, w.sum(axis=0)),
        "balanced_accuracy": (sensitivity + specificity) / 2,
        "f1": _f1(positive, called, w),
        "ece": calibration_error(label, p, w),
        "brier": divide((p - label) ** 2 @ w, w.sum(axis=0)),
    }


def _column(label: Floats, p: Floats, w: Floats, models: Ints) -> dict[str, Floats]:
    """Numbers have the label's own unit, whichever model says them: ranks are taken over all rows."""
    total, error = w.sum(axis=0), p - label
    square = divide(error**2 @ w, total)
    mean = divide(label @ w, total)
    variance = divide((w * (label[:, None] - mean) ** 2).sum(axis=0), total)
    # Below the rounding of the sums themselves the labels are one constant, and R2 has no meaning.
    variance = np.where(variance > 1e-12 * np.maximum(mean**2, 1e-300), variance, 0.0)
    return {"mae": divide(np.abs(error) @ w, total), "rmse": np.sqrt(square), "r2": 1 - divide(square, variance),
            "spearman": spearman(label, p, w)}


def _recall(positive: Bools, called: Bools, w: Floats) -> Floats:
    """NaN without a positive or without a negative row in the weighting."""
    return np.where(~positive @ w > 0, divide((positive & called) @ w, positive @ w), np.nan)


def _f1(positive: Bools, called: Bools, w: Floats) -> Floats:
    """NaN likewise."""
    hits, wrong = (positive & called) @ w, (positive != called) @ w
    both = (positive @ w > 0) & (~positive @ w > 0)
    return np.where(both, divide(2 * hits, 2 * hits + wrong), np.nan)


def _mean_over_outputs(names: tuple[str, ...], outputs: dict[int, dict[str, Floats]], width: int) -> dict[str, Floats]:
    return {name: _mean([output[name] for output in outputs.values()], width) for name in names}


def _mean(columns: list[Floats], width: int) -> Floats:
    """Over the outputs that are defined under each weighting: what the average is on all rows, it is on a resample."""
    if not columns:
        return np.full(width, np.nan)
    stacked = np.stack(columns)  # outputs R
    return divide(np.nansum(stacked, axis=0), (~np.isnan(stacked)).sum(axis=0).astype(np.float64))


def _checked(kind: TaskKind, labels: npt.ArrayLike, predicted: npt.ArrayLike,
             weights: npt.ArrayLike | None) -> tuple[Floats, Floats, Floats]:
    y, p = np.asarray(labels, dtype=np.float64), np.asarray(predicted, dtype=np.float64)
    if kind == "segmentation":
        overlap.check(y, p)
    expected = (len(p), 1) if kind == "single_label" else y.shape if kind == "segmentation" else p.shape
    if p.ndim != 2 or y.shape != expected:
        raise ValueError(f"{kind}: found labels of shape {y.shape} and predictions of shape {p.shape}, expected labels "
                         f"of shape {expected} and one row of predictions each. Remedy: take both from the same rows.")
    if not np.isfinite(p).all():
        raise ValueError(f"predictions: found {int((~np.isfinite(p)).sum())} of {p.size} that are NaN or infinite, "
                         "expected finite numbers. Remedy: the training diverged; train again at a lower rate.")
    if kind == "single_label" and (y[~np.isnan(y)] >= p.shape[1]).any():
        raise ValueError(f"labels: found class {int(np.nanmax(y))}, expected below {p.shape[1]}, the number of "
                         "outputs. Remedy: fine-tune again on the data as it is now; its classes have changed.")
    if kind == "multi_label" and not np.isin(y[~np.isnan(y)], (0.0, 1.0)).all():
        raise ValueError("labels: found values besides 0 and 1 in a multi_label task. "
                         "Remedy: use kind: regression, or give 0, 1 or nothing.")
    w = np.ones((len(p), 1)) if weights is None else np.asarray(weights, dtype=np.float64)
    return y, p, w
