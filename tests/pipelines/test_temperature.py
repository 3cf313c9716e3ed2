"""Temperature scaling finds the likelihood's minimum, keeps rankings, and refuses where nothing is to be learnt."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import optimize, special

from pipelines.scoring import metrics
from pipelines.scoring.temperature import fit_temperature, negative_log_likelihood, probabilities


def _boastful(true_temperature: float, num_classes: int = 4, rows: int = 4000,
              seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are `true_temperature` times too large for the labels drawn from them."""
    rng = np.random.default_rng(seed)
    z = rng.normal(0, 1.5, (rows, num_classes))
    p = special.softmax(z, axis=1)
    y = (p.cumsum(axis=1) > rng.random((rows, 1))).argmax(axis=1)
    return z * true_temperature, y[:, None].astype(float)


@pytest.mark.parametrize("true_temperature", [0.5, 1.0, 3.0])
def test_it_finds_the_temperature_that_the_labels_were_drawn_with(true_temperature: float) -> None:
    fitted = fit_temperature(*_boastful(true_temperature), "single_label")
    assert fitted.value == pytest.approx(true_temperature, rel=0.08)
    assert fitted.note == ""


def test_it_is_the_minimum_that_scipy_finds() -> None:
    z, y = _boastful(2.0, rows=300)
    fitted = fit_temperature(z, y, "single_label")
    best = optimize.minimize_scalar(
        lambda t: -np.log(special.softmax(z / t, axis=1)[np.arange(300), y[:, 0].astype(int)]).mean(),
        bounds=(0.05, 20), method="bounded", options={"xatol": 1e-9})
    assert fitted.value == pytest.approx(best.x, rel=1e-4)
    assert fitted.nll_after == pytest.approx(best.fun, abs=1e-9)
    assert fitted.nll_before == pytest.approx(negative_log_likelihood(z, y, "single_label"))
    assert fitted.nll_after is not None and fitted.nll_before is not None and fitted.nll_after < fitted.nll_before


def test_findings_share_one_temperature_and_unknown_labels_are_left_out() -> None:
    rng = np.random.default_rng(0)
    z = rng.normal(0, 2, (2000, 3))
    y = (special.expit(z) > rng.random(z.shape)).astype(float)
    y[rng.random(z.shape) < 0.4] = np.nan
    fitted = fit_temperature(z * 2.5, y, "multi_label")
    assert fitted.value == pytest.approx(2.5, rel=0.08)
    assert fitted.num_rows == int((~np.isnan(y)).sum())


def test_rows_of_unknown_class_change_nothing() -> None:
    z, y = _boastful(2.0, rows=300)
    rng = np.random.default_rng(1)
    more, unknown = np.concatenate([z, 9 * rng.normal(size=(200, 4))]), np.concatenate([y, np.full((200, 1), np.nan)])
    assert fit_temperature(more, unknown, "single_label") == fit_temperature(z, y, "single_label")


def test_it_lowers_the_calibration_error_and_keeps_the_ranking() -> None:
    z, y = _boastful(4.0, num_classes=2)
    fitted = fit_temperature(z[:2000], y[:2000], "single_label")
    before = metrics.values("single_label", y[2000:], probabilities(z[2000:], "single_label"))
    after = metrics.values("single_label", y[2000:], probabilities(z[2000:], "single_label", fitted.value))
    assert after["ece"] < 0.5 * before["ece"]
    assert after["auroc"] == pytest.approx(before["auroc"], abs=1e-3) and after["accuracy"] == before["accuracy"]


def test_too_few_rows_give_one_and_say_so() -> None:
    z, y = _boastful(3.0, rows=12)
    fitted = fit_temperature(z, y, "single_label")
    assert fitted.value == 1.0 and "12 labelled validation rows" in fitted.note
    assert fit_temperature(z, np.full_like(y, np.nan), "single_label").value == 1.0


def test_a_validation_split_without_a_mistake_does_not_make_the_model_certain() -> None:
    z = np.eye(3)[np.arange(60) % 3] * 50
    fitted = fit_temperature(z, (np.arange(60) % 3)[:, None].astype(float), "single_label")
    assert fitted.value == 1.0 and "already predicted right" in fitted.note


def test_logits_that_point_the_wrong_way_are_flattened_to_the_limit() -> None:
    z, y = _boastful(1.0, num_classes=2)
    fitted = fit_temperature(-z, y, "single_label")
    assert fitted.value == 20.0 and "limit" in fitted.note


def test_probabilities_do_not_overflow() -> None:
    huge = np.array([[1e4, -1e4], [-1e4, 1e4]])
    assert np.array_equal(probabilities(huge, "single_label"), np.eye(2))
    assert np.array_equal(probabilities(huge, "multi_label"), np.eye(2))
    assert np.isfinite(negative_log_likelihood(huge, np.array([[1.0], [0.0]]), "single_label"))


def test_logits_that_are_not_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="diverged"):
        fit_temperature(np.full((30, 2), np.nan), np.zeros((30, 1)), "single_label")
