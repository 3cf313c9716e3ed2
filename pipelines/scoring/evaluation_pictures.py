"""Pictures of an evaluation: scores and differences with intervals, ROC, reliability, predicted over true numbers, or
every sample's Dice.

Legend: n test rows, S seeds, K outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from domains.sample import TaskKind
from pipelines import report
from pipelines.report import Row
from pipelines.scoring import metrics, overlap
from pipelines.scoring.evaluation_record import Evaluation
from pipelines.scoring.metrics import Bools, Floats
from pipelines.scoring.uncertainty import Estimate

GRID = np.linspace(0.0, 1.0, 201)
"""False positive rates at which curves of seeds, classes or findings are averaged."""
MAX_CLOUD = 4000
"""Dots of one arm in a scatter plot."""


def draw(folder: Path, evaluation: Evaluation, labels: np.ndarray, predicted: Mapping[str, Floats]) -> list[Path]:
    """Write the pictures that this kind of task has; returns those that were written.

    Args:
        labels: n 1 or n K, NaN unknown.
        predicted: arm -> S n K, of masks S n 3K.
    """
    title, unit = f"{evaluation.name}: {evaluation.task}", metrics.METRICS[evaluation.headline].title
    pictures = {"arms.png": lambda path: report.forest(path, score_rows(evaluation), unit, title)}
    if evaluation.paired:
        pictures["difference.png"] = lambda path: report.forest(
            path, difference_rows(evaluation), f"difference in {unit}", title, zero=True)
    if evaluation.kind == "segmentation":
        strips = {arm: overlap.sample_means(labels, p) for arm, p in predicted.items()}
        pictures["samples.png"] = lambda path: report.strips(path, strips, "Dice of a sample", title)
    elif evaluation.kind == "regression":
        clouds = {arm: _cloud(labels, p) for arm, p in predicted.items()}
        pictures["predicted.png"] = lambda path: report.scatter(path, clouds, ("true", "predicted"), title)
    else:
        kind = evaluation.kind
        curves = {arm: line for arm, p in predicted.items() if (line := roc(kind, labels, p)) is not None}
        bins = {arm: reliability(kind, labels, p) for arm, p in predicted.items()}
        axes = ("false positive rate", "true positive rate")
        pictures["roc.png"] = lambda path: report.curves(path, curves, axes, title)
        pictures["reliability.png"] = lambda path: report.reliability(path, bins, title)
    return [folder / name for name, call in pictures.items() if call(folder / name)]


def score_rows(evaluation: Evaluation) -> list[Row]:
    """Arms, then arms by source, then floors: the headline metric of each."""
    metric = evaluation.headline
    rows = [_row(arm, result.metrics[metric]) for arm, result in evaluation.arms.items()]
    rows += [_row(f"{arm}, {source}", estimates[metric]) for arm, result in evaluation.arms.items()
             for source, estimates in result.per_source.items()]
    return rows + [_row(f"floor: {name}", one.metrics[metric]) for name, one in evaluation.floors.items()]


def difference_rows(evaluation: Evaluation) -> list[Row]:
    """Arms minus the baseline, on all rows and by source."""
    rows = []
    for arm, estimates in evaluation.paired.items():
        rows.append(_row(f"{arm} - {evaluation.baseline}", estimates[evaluation.headline]))
        rows += [_row(f"the same, {source}", one) for source, one in evaluation.paired_per_source.get(arm, {}).items()]
    return rows


def roc(kind: TaskKind, labels: np.ndarray, predicted: Floats) -> tuple[Floats, Floats] | None:
    """False and true positive rates, averaged over seeds and over outputs with both outcomes; None without any."""
    absent = metrics.left_out(kind, labels, predicted.shape[2])
    told = [1] if kind == "single_label" and predicted.shape[2] == 2 else range(predicted.shape[2])
    heights = []
    for k in told:
        column = labels[:, 0] if kind == "single_label" else labels[:, k]
        known = ~np.isnan(column)
        positive = column[known] == (k if kind == "single_label" else 1)
        for one in predicted if k not in absent else []:
            height = np.interp(GRID, *roc_points(positive, one[known, k]))
            height[0] = 0.0  # the curve rises at 0 itself; averages begin in the corner
            heights.append(height)
    return (GRID, np.mean(heights, axis=0)) if heights else None


def roc_points(positive: Bools, scores: Floats) -> tuple[Floats, Floats]:
    """False and true positive rate at every threshold, from (0, 0) to (1, 1)."""
    order = np.argsort(-scores, kind="stable")
    last = np.r_[np.flatnonzero(np.diff(scores[order])), len(scores) - 1]  # rows of equal score are called together
    found, called = np.cumsum(positive[order])[last], last + 1
    return np.r_[0.0, (called - found) / (~positive).sum()], np.r_[0.0, found / positive.sum()]


def reliability(kind: TaskKind, labels: np.ndarray, predicted: Floats) -> tuple[Floats, Floats, Floats]:
    """Mean confidence, share right and number of the bins that hold any; rows of all seeds together."""
    pairs = [metrics.confidence(kind, labels, one) for one in predicted]
    certain, right = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
    place = metrics.bin_of(certain)
    count = np.bincount(place, minlength=metrics.BINS).astype(np.float64)
    held = count > 0
    means = [np.bincount(place, values, minlength=metrics.BINS)[held] / count[held] for values in (certain, right)]
    return means[0], means[1], count[held]


def _cloud(labels: np.ndarray, predicted: Floats) -> tuple[Floats, Floats]:
    """True and mean predicted numbers of all columns, thinned evenly."""
    known = ~np.isnan(labels)
    true, told = labels[known].astype(np.float64), predicted.mean(axis=0)[known]
    some = np.linspace(0, len(true) - 1, min(len(true), MAX_CLOUD)).astype(int)
    return true[some], told[some]


def _row(name: str, one: Estimate) -> Row:
    return name, one.value, one.low, one.high
