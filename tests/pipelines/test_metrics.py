"""Every metric equals scikit-learn's, weighted and not, and what is not defined is NaN."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as judge

from pipelines.scoring import metrics

ROWS = 120


def _binary(seed: int, ties: bool = True) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, ROWS)
    p = np.clip(rng.normal(0.35 + 0.3 * y, 0.25), 0.001, 0.999)
    return y, np.round(p, 1 if ties else 12)


def _several(seed: int, num_classes: int = 5) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, num_classes, ROWS)
    z = rng.normal(size=(ROWS, num_classes)) + 1.2 * np.eye(num_classes)[y]
    return y, np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)


def _counts(seed: int, num: int = 4) -> np.ndarray:
    """Bootstrap-like weights, zeros among them."""
    return np.random.default_rng(seed).poisson(1.0, (ROWS, num)).astype(float)


@pytest.mark.parametrize("seed", range(3))
def test_two_classes_equal_scikit_learn_under_every_weighting_and_with_ties(seed: int) -> None:
    y, p = _binary(seed)
    w = np.c_[np.ones(ROWS), _counts(seed)]
    ours = metrics.score("single_label", y[:, None], np.c_[1 - p, p], w)
    called = np.c_[1 - p, p].argmax(axis=1)
    for r in range(w.shape[1]):
        s = {"sample_weight": w[:, r]}
        expected = {
            "auroc": judge.roc_auc_score(y, p, **s),
            "average_precision": judge.average_precision_score(y, p, **s),
            "accuracy": judge.accuracy_score(y, called, **s),
            "balanced_accuracy": judge.balanced_accuracy_score(y, called, **s),
            "f1": judge.f1_score(y, called, **s),
            "brier": judge.brier_score_loss(y, p, **s),
        }
        for name, value in expected.items():
            assert ours[name][r] == pytest.approx(value, abs=1e-12), (name, r)


@pytest.mark.parametrize("kind", ["single_label", "multi_label"])
def test_models_of_several_folds_are_ordered_each_by_itself(kind: str) -> None:
    """Brute force over pairs of one model; a model's average precision counts as often as it has positive rows."""
    y, p = _binary(3)
    models, w = np.arange(ROWS) % 4, np.c_[np.ones(ROWS), _counts(3)]
    y[models == 3] = 1  # a fold of one outcome has no pair to tell, and its rows no precision
    p = np.round(np.clip(p + 0.1 * models, 0, 1), 1)
    labels, predicted = y[:, None].astype(float), np.c_[1 - p, p] if kind == "single_label" else p[:, None]
    ours = metrics.score(kind, labels, predicted, w, models)
    for r in range(w.shape[1]):
        pair = w[:, None, r] * w[None, :, r] * ((y[:, None] == 1) & (y == 0) & (models[:, None] == models))
        ordered = (p[:, None] > p) + 0.5 * (p[:, None] == p)
        assert ours["auroc"][r] == pytest.approx((pair * ordered).sum() / pair.sum(), abs=1e-12)
        told = [(judge.average_precision_score(y[own], p[own], sample_weight=w[own, r]), w[own & (y == 1), r].sum())
                for own in (models == k for k in range(3))]
        values, positives = np.transpose(told)
        assert ours["average_precision"][r] == pytest.approx(np.average(values, weights=positives), abs=1e-12)
    pooled = metrics.score(kind, labels, predicted, w)
    assert ours["auroc"][0] > pooled["auroc"][0] and np.array_equal(ours["brier"], pooled["brier"])


@pytest.mark.parametrize("seed", range(3))
def test_several_classes_equal_scikit_learn_under_every_weighting(seed: int) -> None:
    y, p = _several(seed)
    w = np.c_[np.ones(ROWS), _counts(seed)]
    ours = metrics.score("single_label", y[:, None], p, w)
    one_hot = np.eye(p.shape[1])[y]
    for r in range(w.shape[1]):
        s = {"sample_weight": w[:, r]}
        expected = {
            "auroc": judge.roc_auc_score(one_hot, p, average="macro", **s),
            "average_precision": judge.average_precision_score(one_hot, p, average="macro", **s),
            "accuracy": judge.accuracy_score(y, p.argmax(axis=1), **s),
            "balanced_accuracy": judge.balanced_accuracy_score(y, p.argmax(axis=1), **s),
            "f1": judge.f1_score(y, p.argmax(axis=1), average="macro", **s),
            "brier": judge.brier_score_loss(y, p, labels=range(p.shape[1]), **s),
        }
        for name, value in expected.items():
            assert ours[name][r] == pytest.approx(value, abs=1e-12), (name, r)


def test_findings_equal_scikit_learn_on_the_rows_whose_label_is_known() -> None:
    rng = np.random.default_rng(0)
    labels = np.stack([_binary(s)[0] for s in range(3)], axis=1).astype(float)
    p = np.stack([_binary(s)[1] for s in range(3)], axis=1)
    labels[rng.random(labels.shape) < 0.3] = np.nan
    w = _counts(1)
    ours = metrics.score("multi_label", labels, p, w)
    for r in range(w.shape[1]):
        expected: dict[str, list[float]] = {}
        for k in range(3):
            known = ~np.isnan(labels[:, k])
            y, q, s = labels[known, k], p[known, k], {"sample_weight": w[known, r]}
            for name, value in {
                "auroc": judge.roc_auc_score(y, q, **s),
                "average_precision": judge.average_precision_score(y, q, **s),
                "accuracy": judge.accuracy_score(y, q >= 0.5, **s),
                "balanced_accuracy": judge.balanced_accuracy_score(y, q >= 0.5, **s),
                "f1": judge.f1_score(y, q >= 0.5, **s),
                "brier": judge.brier_score_loss(y, q, **s),
            }.items():
                expected.setdefault(name, []).append(value)
        for name, column in expected.items():
            assert ours[name][r] == pytest.approx(np.mean(column), abs=1e-12), (name, r)


def test_regression_equals_scikit_learn_and_a_resample_equals_its_repeated_rows() -> None:
    rng = np.random.default_rng(0)
    y = np.round(rng.normal(3, 1, ROWS), 1)  # rounded: ties
    p = np.round(0.6 * y + rng.normal(1.2, 0.5, ROWS), 1)
    w = np.c_[np.ones(ROWS), _counts(2)]
    ours = metrics.score("regression", y[:, None], p[:, None], w)
    for r in range(w.shape[1]):
        repeated = np.repeat(np.arange(ROWS), w[:, r].astype(int))
        a, b = y[repeated], p[repeated]
        assert ours["mae"][r] == pytest.approx(judge.mean_absolute_error(a, b), abs=1e-12)
        assert ours["rmse"][r] == pytest.approx(judge.root_mean_squared_error(a, b), abs=1e-12)
        assert ours["r2"][r] == pytest.approx(judge.r2_score(a, b), abs=1e-9)
        assert ours["spearman"][r] == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-9)


def test_a_weight_is_a_repetition_for_every_metric_of_every_kind() -> None:
    y, p = _several(3)
    findings = np.stack([_binary(s)[0] for s in range(3)], axis=1).astype(float)
    findings[::7, 1] = np.nan
    probability = np.stack([_binary(s)[1] for s in range(3)], axis=1)
    w = _counts(4, 3)
    for kind, labels, predicted in (("single_label", y[:, None], p), ("multi_label", findings, probability)):
        weighted = metrics.score(kind, labels, predicted, w)  # type: ignore[arg-type]
        for r in range(w.shape[1]):
            rows = np.repeat(np.arange(ROWS), w[:, r].astype(int))
            repeated = metrics.values(kind, labels[rows], predicted[rows])  # type: ignore[arg-type]
            for name, value in repeated.items():
                assert weighted[name][r] == pytest.approx(value, abs=1e-12), (kind, name)


def test_calibration_error_is_the_binned_gap_counted_by_hand() -> None:
    y, p = _several(5)
    right, certain = (p.argmax(axis=1) == y), p.max(axis=1)
    expected = 0.0
    for b in range(15):
        inside = (certain > b / 15) & (certain <= (b + 1) / 15)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - certain[inside].mean())
    assert metrics.values("single_label", y[:, None], p)["ece"] == pytest.approx(expected, abs=1e-12)


def test_calibration_error_is_zero_for_honest_and_large_for_boastful_probabilities() -> None:
    y = np.repeat([1, 1, 1, 0], 25)[:, None]
    assert metrics.values("single_label", y, np.tile([0.25, 0.75], (100, 1)))["ece"] == pytest.approx(0.0)
    assert metrics.values("single_label", y, np.tile([0.0, 1.0], (100, 1)))["ece"] == pytest.approx(0.25)


def test_perfect_calibration_shows_the_error_that_chance_calibration_error_says() -> None:
    rng = np.random.default_rng(0)
    p = rng.uniform(0.02, 0.98, (150, 2))
    p = p / p.sum(axis=1, keepdims=True)
    outcomes = [(rng.random(150) < p[:, 1]).astype(int)[:, None] for _ in range(300)]
    drawn = [metrics.values("single_label", outcome, p)["ece"] for outcome in outcomes]
    said = metrics.chance_calibration_error("single_label", np.zeros((150, 1)), p)
    assert said == pytest.approx(np.mean(drawn), rel=0.06) and said > 0.05
    many = np.tile(p, (40, 1))
    assert metrics.chance_calibration_error("single_label", np.zeros((6000, 1)), many) < said / 4
    labels = (rng.random((150, 2)) < p).astype(float)
    labels[:40, 0] = np.nan
    assert metrics.chance_calibration_error("multi_label", labels, p) > 0.05
    assert math.isnan(metrics.chance_calibration_error("regression", labels, p))


def test_a_single_outcome_makes_ranking_metrics_nan_and_leaves_accuracy() -> None:
    p = np.array([[0.2, 0.8], [0.6, 0.4]])
    result = metrics.values("single_label", [[1], [1]], p)
    assert all(math.isnan(result[name]) for name in ("auroc", "average_precision", "balanced_accuracy", "f1"))
    assert result["accuracy"] == 0.5
    assert metrics.left_out("single_label", [[1], [1]], 2) == (0, 1)


def test_a_class_that_never_occurs_is_left_out_and_never_scored_zero() -> None:
    y, p = _several(0, 4)
    y = np.where(y == 3, 0, y)
    ours = metrics.values("single_label", y[:, None], p)
    assert metrics.left_out("single_label", y[:, None], 4) == (3,)
    by_hand = np.mean([judge.roc_auc_score(y == k, p[:, k]) for k in range(3)])
    assert ours["auroc"] == pytest.approx(by_hand)
    assert ours["f1"] == pytest.approx(np.mean([judge.f1_score(y == k, p.argmax(axis=1) == k) for k in range(3)]))


def test_a_finding_without_both_outcomes_is_left_out() -> None:
    y, p = _binary(0)
    labels = np.stack([y, np.zeros(ROWS), np.full(ROWS, np.nan)], axis=1)
    ours = metrics.values("multi_label", labels, np.stack([p, p, p], axis=1))
    assert metrics.left_out("multi_label", labels, 3) == (1, 2)
    assert ours["auroc"] == pytest.approx(judge.roc_auc_score(y, p))
    assert list(metrics.score_with_outputs("multi_label", labels, np.stack([p, p, p], axis=1))[1]) == [0]


def test_a_weighting_without_a_class_averages_over_the_others_as_scikit_learn_does() -> None:
    y, p = _several(2, 4)
    w = np.c_[np.ones(ROWS), (y != 3).astype(float)]
    ours = metrics.score("single_label", y[:, None], p, w)
    kept = y != 3
    by_hand = np.mean([judge.roc_auc_score(y[kept] == k, p[kept, k]) for k in range(3)])
    assert ours["auroc"][1] == pytest.approx(by_hand) and ours["auroc"][0] != pytest.approx(by_hand)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that a predicted class does not occur
        expected = judge.balanced_accuracy_score(y[kept], p[kept].argmax(axis=1))
    assert ours["balanced_accuracy"][1] == pytest.approx(expected)


def test_a_resample_that_loses_an_outcome_is_nan_there_alone() -> None:
    y = np.array([1, 0, 0, 0])[:, None]
    p = np.array([0.9, 0.2, 0.4, 0.3])
    w = np.array([[1.0, 0.0], [1, 1], [1, 1], [1, 2]])
    ours = metrics.score("single_label", y, np.c_[1 - p, p], w)
    for name in ("auroc", "average_precision", "balanced_accuracy", "f1"):
        assert not math.isnan(ours[name][0]) and math.isnan(ours[name][1]), name


def test_a_constant_label_has_no_r2_and_no_rank_correlation() -> None:
    y = np.full((20, 1), 0.1 + 0.2)
    ours = metrics.values("regression", y, np.linspace(0, 1, 20)[:, None])
    assert math.isnan(ours["r2"]) and math.isnan(ours["spearman"]) and not math.isnan(ours["mae"])
    constant = metrics.values("regression", np.linspace(0, 1, 20)[:, None], y)
    assert math.isnan(constant["spearman"]) and not math.isnan(constant["r2"])


def test_unknown_labels_change_no_score() -> None:
    y, p = _several(1)
    extra = np.r_[y.astype(float), np.full(30, np.nan)][:, None]
    more = np.r_[p, np.tile(p[:1], (30, 1))]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert metrics.values("single_label", extra, more) == metrics.values("single_label", y[:, None], p)
    assert metrics.known_rows(extra).tolist() == list(range(ROWS))


def test_no_row_at_all_is_nan_and_no_crash() -> None:
    for kind, labels, p in (("single_label", np.zeros((0, 1)), np.zeros((0, 3))),
                            ("multi_label", np.full((4, 2), np.nan), np.full((4, 2), 0.5)),
                            ("regression", np.full((4, 1), np.nan), np.zeros((4, 1)))):
        assert all(math.isnan(v) for v in metrics.values(kind, labels, p).values()), kind  # type: ignore[arg-type]


def test_predictions_that_are_not_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="diverged"):
        metrics.values("single_label", [[0], [1]], [[0.5, float("nan")], [0.5, 0.5]])


def test_a_class_beyond_the_outputs_is_refused() -> None:
    with pytest.raises(ValueError, match="found class 2, expected below 2"):
        metrics.values("single_label", [[0], [2]], [[0.5, 0.5], [0.5, 0.5]])


def test_better_follows_the_direction_of_the_metric() -> None:
    assert metrics.better("auroc", 0.8, 0.7) and metrics.better("mae", 0.7, 0.8)
    assert metrics.better("auroc", 0.1, float("nan")) and not metrics.better("auroc", float("nan"), 0.1)
