"""A verdict's intervals hold a known truth about as often as they say; a small version of the script."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks.verdict_coverage import CURVE, Trial, measure, scores, true_worth
from pipelines.scoring import ranking


def test_the_truth_of_the_made_scores_is_what_it_is_said_to_be():
    trial = Trial(20_000, 1, luck=0.3, areas=(0.70, 0.82))
    labels = np.repeat(np.arange(trial.groups) < trial.groups / 2, 2)
    areas = np.array([[float(ranking.auroc(labels, budgets[0][0], np.ones((len(labels), 1)))[0])
                       for budgets in scores(np.random.default_rng(seed), trial, labels.astype(float))]
                      for seed in range(60)])
    np.testing.assert_allclose(areas.mean(0), trial.areas, atol=4 * 0.06 / math.sqrt(60))
    assert true_worth(Trial(40, 3, **CURVE)) == pytest.approx(77.7, abs=0.1)  # type: ignore[arg-type]


def test_intervals_of_gain_and_of_worth_hold_the_truth():
    held = measure(Trial(40, 3, 0.2, resamples=200, **CURVE), 40)  # type: ignore[arg-type]
    least = 0.95 - 3 * math.sqrt(0.05 * 0.95 / 40)
    assert held.told == 40 and held.held >= least
    assert held.worth_told >= 20 and held.worth_held >= least
    assert held.row().count("|") == 11
