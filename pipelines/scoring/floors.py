"""Floors: simple models on the same split, chosen on the same validation rows, scored by the same metrics.

Legend: n rows, F features, K outputs.

A deep model that does not beat logistic regression on mean intensities, or a forest on age and view, has learnt nothing
worth its cost, and a score alone does not show that.
"""

from __future__ import annotations

import dataclasses
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from domains.sample import TaskKind
from domains.store import Prepared
from pipelines.scoring import metrics
from pipelines.scoring.floor_features import FloorSettings, MaskFloor, ThumbnailFloor, features
from pipelines.scoring.metrics import Floats
from pipelines.scoring.pixel_floors import convergence_warning, mask_floor

Rows = npt.NDArray[np.int64]

PENALTIES = (0.01, 0.1, 1.0, 10.0)
"""Inverse strengths of the penalty tried for the linear model."""
LEAVES = (1, 5)
"""Least rows per leaf tried for the forest."""
TREES = 300


@dataclass(frozen=True)
class Question:
    """What simple models are asked, and how one of them is chosen."""

    kind: TaskKind
    """What sort of task."""
    num_outputs: int
    """Classes, findings or columns."""
    headline: str
    """The metric on validation rows that decides."""
    components: int = 0
    """Principal components to reduce the features to first; 0: none."""
    seed: int = 0
    """Of forests and components."""


@dataclass(frozen=True)
class Floor:
    """A fitted simple model's word on the test rows."""

    predicted: Floats
    """n K: probabilities, or numbers; n 3K counts of masks (overlap.counts)."""
    model: str
    """Which was chosen: "logistic C=0.1", "forest leaf=5"; of several outputs each with how often."""


def floor(prepared: Prepared, task: str, settings: FloorSettings, test: Rows, root: Path, headline: str,
          seed: int = 0) -> Floor:
    """Fit on labelled training rows, choose on validation rows, predict the test rows of a task."""
    train, val = (prepared.rows(split=split, task=task) for split in ("train", "val"))
    return floor_on(prepared, task, settings, (train, val, test), root, headline, seed)


def floor_on(prepared: Prepared, task: str, settings: FloorSettings, parts: tuple[Rows, Rows, Rows], root: Path,
             headline: str, seed: int = 0) -> Floor:
    """The same with the rows to fit on, to choose on and to predict named, such as those of a fold."""
    train, val, test = parts
    about = prepared.contract.tasks[task]
    check_floor(settings, about.kind)
    if isinstance(settings, MaskFloor):
        return Floor(*mask_floor(prepared, task, settings, parts, headline, seed))
    rows = np.concatenate([train, val, test])
    x = features(prepared, settings, rows, train, root)
    components = settings.components if isinstance(settings, ThumbnailFloor) else 0
    split = np.split(np.arange(len(rows)), [len(train), len(train) + len(val)])
    question = Question(about.kind, len(about.outputs), headline, components, seed)
    return fit(question, x, prepared.labels(task)[rows], split[0], split[1], split[2])


def check_floor(settings: FloorSettings, kind: TaskKind) -> None:
    """Refuse a floor that says nothing of such a task. Raises ValueError."""
    of_masks = isinstance(settings, MaskFloor)
    if of_masks != (kind == "segmentation"):
        masks, others = "pixels, points or prior", "facts, manifest, intensity, thumbnail or shape"
        wanted = masks if kind == "segmentation" else others
        raise ValueError(f"floors: found {settings.kind} for a {kind} task, expected {wanted}. Remedy: correct "
                         "`floors` of the run.")


def fit(question: Question, x: Floats, labels: npt.ArrayLike, train: Rows, val: Rows, test: Rows) -> Floor:
    """The best of several linear models and forests by the headline metric on validation rows.

    Args:
        x: n F, NaN where missing.
        labels: n 1 or n K, NaN unknown.
        train, val, test: rows of x.
    """
    y = np.asarray(labels, dtype=np.float64)
    if x.shape[1] == 0:
        raise ValueError("floor: found no feature at all, expected some. Remedy: leave this floor out; the data says "
                         "nothing of the sort.")
    if question.kind == "single_label":
        return _best(question, x, y, train, val, test)
    alone = dataclasses.replace(question, num_outputs=1)
    parts = []
    for k in range(question.num_outputs):
        known = ~np.isnan(y[:, k])
        parts.append(_best(alone, x, y[:, k:k + 1], train[known[train]], val[known[val]], test))
    chosen = [part.model for part in parts]
    counted = ", ".join(f"{name} ({chosen.count(name)})" for name in dict.fromkeys(chosen))
    return Floor(np.concatenate([part.predicted for part in parts], axis=1), counted if len(parts) > 1 else chosen[0])


def _best(question: Question, x: Floats, y: Floats, train: Rows, val: Rows, test: Rows) -> Floor:
    kind, targets = question.kind, y[train, 0]
    if len(targets) == 0 or (kind != "regression" and len(np.unique(targets)) < 2):
        return _constant(question, targets, len(test))
    best: tuple[float, Floor] | None = None
    models = candidates(question, len(train), x.shape[1])
    with warnings.catch_warnings():
        # A linear model that has not converged is a weaker candidate, and the choice below is by its score.
        warnings.filterwarnings("ignore", category=convergence_warning())
        for name, model in models:
            model.fit(x[train], targets if kind == "regression" else targets.astype(int))
            score = metrics.values(kind, y[val], _predict(model, question, x[val]))[question.headline]
            if best is None or metrics.better(question.headline, score, best[0]):
                best = (score, Floor(_predict(model, question, x[test]), name))
    assert best is not None, "there is at least one candidate"
    return best[1]


def candidates(question: Question, num_rows: int, num_features: int) -> list[tuple[str, Any]]:
    """Untrained models by name. Each fills in missing values and scales features from its training rows."""
    try:
        from sklearn.decomposition import PCA
        from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
        from sklearn.impute import SimpleImputer
        from sklearn.linear_model import LogisticRegression, Ridge
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
    except ImportError as error:
        raise ImportError("simple models need scikit-learn, which is not installed. Install it with: pip install "
                          "'lacuna[tracking]', or leave `floors` of the run empty.") from error

    def whole(model: Any) -> Any:
        steps: list[Any] = [SimpleImputer(strategy="median", keep_empty_features=True), StandardScaler()]
        if question.components and min(num_features, num_rows) > question.components:
            steps.append(PCA(question.components, random_state=question.seed))
        return make_pipeline(*steps, model)

    numbers = question.kind == "regression"
    forest = RandomForestRegressor if numbers else RandomForestClassifier
    models = [(f"ridge alpha={1 / c:g}", Ridge(alpha=1 / c)) if numbers else
              (f"logistic C={c:g}", LogisticRegression(C=c, max_iter=2000)) for c in PENALTIES]
    models += [(f"forest leaf={leaf}", forest(TREES, min_samples_leaf=leaf, random_state=question.seed, n_jobs=1))
               for leaf in LEAVES]
    return [(name, whole(model)) for name, model in models]


def _predict(model: Any, question: Question, x: Floats) -> Floats:
    """n K. Classes that no training row has get probability 0."""
    if len(x) == 0:
        return np.zeros((0, question.num_outputs))
    if question.kind == "regression":
        return np.asarray(model.predict(x), dtype=np.float64)[:, None]
    told = np.asarray(model.predict_proba(x), dtype=np.float64)
    if question.kind == "multi_label":
        return told[:, list(model.classes_).index(1)][:, None]
    result = np.zeros((len(x), question.num_outputs))
    result[:, model.classes_.astype(int)] = told
    return result


def _constant(question: Question, targets: Floats, num_rows: int) -> Floor:
    """Without two outcomes to tell apart there is nothing to fit."""
    if question.kind == "single_label":
        share = np.bincount(targets.astype(int), minlength=question.num_outputs) + 1e-9
        return Floor(np.tile(share / share.sum(), (num_rows, 1)), "constant")
    return Floor(np.full((num_rows, 1), targets.mean() if len(targets) else 0.0), "constant")
