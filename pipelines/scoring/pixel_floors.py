"""Floors of segmentation: what can be told of a pixel (voxel, point) by its own value and its surroundings, and what
by its place.

Legend: n samples, K classes that are not background, N pixels or points of a sample, C channels, F features,
T thresholds.

Water shows in the ratio of two bands, a lung in its Hounsfield units, and a heart lies where hearts lie. A deep model
must beat what these alone give. Both floors end in probabilities per pixel, and one rule makes masks of them: the most
probable class that is not background, where it is at least as probable as a threshold, which validation rows choose.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt

from domains.contract import Contract
from domains.sample import UNKNOWN_CLASS, mask_shape
from domains.store import Prepared
from pipelines.scoring import metrics, overlap
from pipelines.scoring.floor_features import MaskFloor, PixelsFloor, PointsFloor, PriorFloor, known_values
from pipelines.scoring.metrics import Floats
from pipelines.scoring.point_floors import point_features
from pipelines.training.true_masks import true_mask

Rows = npt.NDArray[np.int64]
Tell = Callable[[int], npt.NDArray[np.float32]]
"""Row of the index -> (K+1) ... probabilities."""
Describe = Callable[[np.ndarray], npt.NDArray[np.float32]]
"""Stored values of a sample -> N F."""

THRESHOLDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999)
MAX_TRAIN_ROWS, MAX_VAL_ROWS = 240, 120
"""Samples that are looked at; of more, so many are drawn."""
MAX_BANDS = 16
"""Of more bands no ratios are made: there would be hundreds."""


def mask_floor(prepared: Prepared, task: str, settings: MaskFloor,
               parts: tuple[Rows, Rows, Rows], headline: str, seed: int = 0) -> tuple[Floats, str]:
    """Learn from the first rows, choose by the second, and count what is right on the third.

    Returns:
        n 3K counts, and which model was chosen.

    Raises:
        ValueError: the data are not of a sort that this floor can be asked about.
    """
    train, val, test = parts
    some = np.sort(np.random.default_rng([seed, 1]).permutation(val)[:MAX_VAL_ROWS])
    told = (place_model(prepared, task, train) if isinstance(settings, PriorFloor)
            else pixel_models(prepared, task, settings, train, seed))
    # A floor is chosen by how masks overlap: false alarms alone would choose to call nothing.
    metric = "dice" if headline in overlap.RESTS_ON_ABSENCE else headline
    labels = prepared.labels(task)
    best: tuple[float, str, Tell, float] | None = None
    for name, tell in told:
        for threshold, one in zip(THRESHOLDS, summed(prepared, task, some, tell, THRESHOLDS), strict=True):
            score = metrics.values("segmentation", labels[some], one)[metric]
            if best is None or metrics.better(metric, score, best[0]):
                best = (score, name, tell, threshold)
    assert best is not None, "there is at least one model"
    _, name, tell, threshold = best
    return summed(prepared, task, test, tell, (threshold,))[0], f"{name} from {threshold:g}"


def summed(prepared: Prepared, task: str, rows: Rows, tell: Tell, thresholds: Sequence[float]) -> Floats:
    """T n 3K: TP, FP and FN of every class, of what a model calls from each threshold on."""
    outputs = len(prepared.contract.tasks[task].outputs)
    found = np.zeros((len(thresholds), len(rows), 3 * outputs))
    for i, row in enumerate(rows):
        probabilities, truth = tell(int(row))[1:], true_mask(prepared, task, int(row))
        best, top = probabilities.argmax(0) + 1, probabilities.max(0)
        for at, threshold in enumerate(thresholds):
            found[at, i] = overlap.counts(truth, np.where(top >= threshold, best, 0), outputs)
    return found


def place_model(prepared: Prepared, task: str, train: Rows) -> list[tuple[str, Tell]]:
    """How often each class lies at a place, over the training masks. Raises ValueError where samples differ in size."""
    about = prepared.contract.tasks[task]
    shapes = {prepared.shape(int(row)) for row in prepared.rows(split=("train", "val", "test"), task=task)}
    if len(shapes) != 1 or prepared.contract.kind == "points":
        raise ValueError(f"floor prior: found {prepared.contract.kind} samples of {len(shapes)} shapes, expected grids "
                         "of one shape: only then does a place mean the same in all. Remedy: use "
                         f"{'points' if prepared.contract.kind == 'points' else 'pixels'}.")
    labels = prepared.labels(task)
    often = np.zeros((len(about.outputs) + 1, *next(iter(shapes))[1:]))
    looked = np.zeros_like(often)
    for row in train:
        truth = true_mask(prepared, task, int(row))
        known = truth != UNKNOWN_CLASS
        for k, asked in enumerate([1.0, *labels[row]]):
            if asked == 1.0:
                often[k] += known & (truth == k)
                looked[k] += known
    share = np.divide(often, looked, out=np.zeros_like(often), where=looked > 0).astype(np.float32)
    return [("place", lambda row: share)]


def pixel_models(prepared: Prepared, task: str, settings: PixelsFloor | PointsFloor, train: Rows,
                 seed: int) -> list[tuple[str, Tell]]:
    """A linear model and boosted trees on the features of single pixels or points, fitted on a balanced sample of them.
    Raises ValueError for pixels of points, and the other way round."""
    describe, count = described(prepared.contract, settings)
    outputs = len(prepared.contract.tasks[task].outputs)
    x, y = balanced(prepared, task, describe, count, train, seed)
    models = []
    with warnings.catch_warnings():
        # A linear model that has not converged is a weaker candidate, and validation rows choose.
        warnings.filterwarnings("ignore", category=convergence_warning())
        for name, model in _candidates(seed):
            if len(np.unique(y)) > 1:
                model.fit(x, y)
            models.append((name, _teller(prepared, describe, model, outputs, y)))
    return models


def described(contract: Contract, settings: PixelsFloor | PointsFloor) -> tuple[Describe, int]:
    """What tells the features of a sample's pixels or points, and how many of these are to be learnt from."""
    if isinstance(settings, PointsFloor) != (contract.kind == "points"):
        wanted = "pixels" if isinstance(settings, PointsFloor) else "points"
        raise ValueError(f"floor {settings.kind}: found {contract.kind} data, expected "
                         f"{'points' if wanted == 'pixels' else 'pictures or volumes'}. Remedy: use {wanted}.")
    if isinstance(settings, PointsFloor):
        return partial(point_features, settings=settings), settings.points
    return partial(pixel_features, contract=contract, settings=settings), settings.pixels


def balanced(prepared: Prepared, task: str, describe: Describe, count: int, train: Rows,
             seed: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Features and class of `count` training pixels at most (rounded up), as many of every class as there are.

    Background counts only in samples where every class was looked for: elsewhere it may be one of them.
    """
    outputs, labels = len(prepared.contract.tasks[task].outputs), prepared.labels(task)
    rng = np.random.default_rng([seed, 2])
    order = rng.permutation(train)
    holders: list[list[int]] = [[] for _ in range(outputs + 1)]
    for row in order:
        truth = true_mask(prepared, task, int(row))
        for k in np.unique(truth[truth != UNKNOWN_CLASS]).tolist():
            if len(holders[k]) < MAX_TRAIN_ROWS // (outputs + 1) and (k or not np.isnan(labels[row]).any()):
                holders[k].append(int(row))
        if all(len(held) >= MAX_TRAIN_ROWS // (outputs + 1) for held in holders):
            break
    xs: list[npt.NDArray[np.float32]] = []
    ys: list[npt.NDArray[np.int64]] = []
    for row in sorted({row for held in holders for row in held}):
        features = describe(prepared.values(row))
        truth = true_mask(prepared, task, row).reshape(-1)
        for k, held in enumerate(holders):
            if row in held:
                here = np.flatnonzero(truth == k)
                share = -(-count // ((outputs + 1) * len(held)))
                chosen = here if len(here) <= share else rng.choice(here, share, replace=False)
                xs.append(features[chosen])
                ys.append(np.full(len(chosen), k, np.int64))
    if not xs:
        raise ValueError("floor: found no training pixel or point of a known class, expected some. Remedy: look at the "
                         "masks with `lacuna describe`.")
    return np.concatenate(xs), np.concatenate(ys)


def pixel_features(values: np.ndarray, contract: Contract, settings: PixelsFloor) -> npt.NDArray[np.float32]:
    """N F of one sample: each pixel's values, their means over squares (cubes) of so many pixels a side, of several
    bands the normalised difference of each pair, as water and vegetation are told by, and, where asked for, its place
    and distance from the middle as shares of the sample's size; NaN where unknown.

    Args:
        values: C H W or C D H W in stored units.
    """
    x = np.asarray(values, dtype=np.float64)
    known = known_values(x, contract)
    parts = [np.where(known, x, np.nan), *(local_mean(x, known, size) for size in settings.scales)]
    if contract.kind == "multispectral" and 1 < len(x) <= MAX_BANDS:
        own = parts[0]
        pairs = [(own[a] - own[b], own[a] + own[b]) for a, b in combinations(range(len(x)), 2)]
        parts.append(np.stack([np.divide(above, below, out=np.full_like(above, np.nan), where=below != 0)
                               for above, below in pairs]))
    if settings.place:
        places = np.stack(np.meshgrid(*((np.arange(n) + 0.5) / n - 0.5 for n in x.shape[1:]), indexing="ij"))
        parts += [places, np.sqrt((places**2).sum(axis=0))[None]]
    whole: npt.NDArray[np.float32] = np.concatenate(parts).reshape(sum(map(len, parts)), -1).T.astype(np.float32)
    return whole


def local_mean(x: Floats, known: npt.NDArray[np.bool_], size: int) -> Floats:
    """C ... of the mean over the known values among the `size` nearest along every axis; NaN where none is known."""
    total, count = np.where(known, x, 0.0), known.astype(np.float64)
    for axis in range(1, x.ndim):
        length = x.shape[axis]
        low = np.clip(np.arange(length) - size // 2, 0, length)
        high = np.clip(np.arange(length) + (size + 1) // 2, 0, length)
        total, count = (_between(part, low, high, axis) for part in (total, count))
    return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0.5)


def _between(x: Floats, low: Rows, high: Rows, axis: int) -> Floats:
    """Sums of x from `low` to before `high` along an axis."""
    start = np.zeros([1 if at == axis else n for at, n in enumerate(x.shape)])
    upto = np.concatenate([start, x.cumsum(axis)], axis)
    return np.asarray(upto.take(high, axis) - upto.take(low, axis))


def convergence_warning() -> type[Warning]:
    """What scikit-learn says of a linear model that was stopped early."""
    from sklearn.exceptions import ConvergenceWarning

    kind: type[Warning] = ConvergenceWarning
    return kind


def _candidates(seed: int) -> list[tuple[str, Any]]:
    try:
        from sklearn.ensemble import HistGradientBoostingClassifier
        from sklearn.impute import SimpleImputer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
    except ImportError as error:
        raise ImportError("simple models need scikit-learn, which is not installed. Install it with: pip install "
                          "'lacuna[tracking]', or leave `floors` of the run empty.") from error
    linear = make_pipeline(SimpleImputer(strategy="median", keep_empty_features=True), StandardScaler(),
                           LogisticRegression(C=1.0, max_iter=500))
    trees = HistGradientBoostingClassifier(max_iter=150, min_samples_leaf=20, early_stopping=False, random_state=seed)
    return [("logistic", linear), ("boosted trees", trees)]


def _teller(prepared: Prepared, describe: Describe, model: Any, outputs: int, y: npt.NDArray[np.int64]) -> Tell:
    """A fitted model asked about every pixel of a sample. Classes that no training pixel has get probability 0."""
    seen = np.unique(y)

    def tell(row: int) -> npt.NDArray[np.float32]:
        values = prepared.values(row)
        x = describe(values)
        told = np.zeros((outputs + 1, len(x)), np.float32)
        told[seen] = model.predict_proba(x).T if len(seen) > 1 else 1.0
        return told.reshape(outputs + 1, *mask_shape(values.shape))

    return tell
