"""Simple models see what they should, choose on validation rows, and reach what can be reached that way."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from domains.store import Prepared, open_prepared
from pipelines.scoring import metrics
from pipelines.scoring.floor_features import (
    FactsFloor,
    IntensityFloor,
    ManifestFloor,
    ShapeFloor,
)
from pipelines.scoring.floors import Question, fit, floor
from tests.fabricate import prepare
from tests.pipelines.floor_data import facts_data

ROOT = Path()


def _auroc(prepared: Prepared, task: str, predicted: np.ndarray, rows: np.ndarray) -> float:
    kind = prepared.contract.tasks[task].kind
    return metrics.values(kind, prepared.labels(task)[rows], predicted)["auroc"]


def test_mean_intensity_reaches_a_label_that_is_brightness(tmp_path: Path) -> None:
    prepared = open_prepared(prepare(tmp_path / "x", "xray", 120))
    test = prepared.rows(split="test", task="bright")
    told = floor(prepared, "bright", IntensityFloor("intensity"), test, ROOT, "auroc")
    assert told.predicted.shape == (len(test), 2) and _auroc(prepared, "bright", told.predicted, test) > 0.97
    again = floor(prepared, "bright", IntensityFloor("intensity"), test, ROOT, "auroc")
    np.testing.assert_array_equal(told.predicted, again.predicted)
    assert told.model == again.model


def test_the_shape_of_a_cloud_reaches_a_label_that_is_its_height(tmp_path: Path) -> None:
    prepared = open_prepared(prepare(tmp_path / "p", "points", 120))
    test = prepared.rows(split="test", task="bright")
    told = floor(prepared, "bright", ShapeFloor("shape"), test, ROOT, "auroc")
    assert _auroc(prepared, "bright", told.predicted, test) > 0.97


def test_facts_and_manifest_columns_reach_a_label_that_they_tell(tmp_path: Path) -> None:
    prepared = open_prepared(facts_data(tmp_path / "f"))
    test = prepared.rows(split="test", task="told")
    for settings in (FactsFloor("facts", ("spacing",)), FactsFloor("facts"),
                     ManifestFloor("manifest", "f/manifest.csv", ("view", "age"))):
        told = floor(prepared, "told", settings, test, tmp_path, "auroc")
        assert _auroc(prepared, "told", told.predicted, test) > 0.9, settings
    by_age = floor(prepared, "told", ManifestFloor("manifest", "f/manifest.csv", ("age",)), test, tmp_path, "auroc")
    assert _auroc(prepared, "told", by_age.predicted, test) < 0.75


def test_findings_are_fitted_each_on_the_rows_that_know_them() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 4))
    labels = (x[:, :2] + 0.3 * rng.normal(size=(300, 2)) > 0).astype(float)
    labels = np.c_[labels, np.zeros(300)]  # the third finding never occurs
    labels[rng.random(labels.shape) < 0.3] = np.nan
    rows = np.arange(300)
    told = fit(Question("multi_label", 3, "auroc"), x, labels, rows[:180], rows[180:240], rows[240:])
    assert told.predicted.shape == (60, 3) and (told.predicted[:, 2] == 0).all()
    result = metrics.score_with_outputs("multi_label", labels[240:], told.predicted)[1]
    assert min(float(result[k]["auroc"][0]) for k in (0, 1)) > 0.95
    assert "constant (1)" in told.model


def test_numbers_are_fitted_with_missing_features() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 3))
    y = 2 * x[:, :1] + 0.2 * rng.normal(size=(200, 1))
    x[rng.random(x.shape) < 0.05] = np.nan
    rows = np.arange(200)
    told = fit(Question("regression", 1, "mae"), x, y, rows[:120], rows[120:160], rows[160:])
    assert metrics.values("regression", y[160:], told.predicted)["r2"] > 0.8


def test_a_class_that_training_lacks_gets_probability_zero() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(90, 2))
    y = (x[:, :1] > 0).astype(float) * 2  # classes 0 and 2 of three
    rows = np.arange(90)
    told = fit(Question("single_label", 3, "auroc"), x, y, rows[:50], rows[50:70], rows[70:])
    assert (told.predicted[:, 1] == 0).all() and np.allclose(told.predicted.sum(axis=1), 1)


def test_the_candidate_with_the_best_validation_score_is_taken() -> None:
    # A checkerboard: no line tells it, a forest does.
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, size=(600, 2))
    y = (x[:, :1] * x[:, 1:] > 0).astype(float)
    rows = np.arange(600)
    told = fit(Question("single_label", 2, "auroc"), x, y, rows[:400], rows[400:500], rows[500:])
    assert told.model.startswith("forest")


def test_labels_of_test_rows_decide_nothing() -> None:
    """All wrong there, so that the worst candidate would look best."""
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, size=(300, 2))
    y = (x[:, :1] * x[:, 1:] > 0).astype(float)
    rows, wrong = np.arange(300), y.copy()
    wrong[250:] = 1 - y[250:]
    told = fit(Question("single_label", 2, "auroc"), x, wrong, rows[:200], rows[200:250], rows[250:])
    assert told.model.startswith("forest") and metrics.values("single_label", y[250:], told.predicted)["auroc"] > 0.8
