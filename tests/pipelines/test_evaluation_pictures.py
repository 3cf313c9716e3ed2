"""What is drawn is what is reported."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score, roc_curve

from pipelines.scoring.evaluation_pictures import difference_rows, reliability, roc, roc_points, score_rows
from pipelines.scoring.metrics import values
from tests.pipelines.evaluations import evaluation


def test_the_forest_holds_arms_sources_and_floors_with_their_intervals() -> None:
    rows = score_rows(evaluation())
    assert [name for name, *_ in rows] == ["scratch", "pretrained", "scratch, north", "pretrained, north",
                                           "floor: intensity"]
    assert rows[1][1:] == pytest.approx((0.85, 0.80, 0.89))
    assert [name for name, *_ in difference_rows(evaluation())] == ["pretrained - scratch", "the same, north"]


def test_the_drawn_roc_has_the_area_that_is_reported() -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 200)
    p = np.clip(rng.normal(0.4 + 0.2 * y, 0.2), 0, 1)
    line = roc("single_label", y[:, None].astype(np.float32), np.stack([1 - p, p], axis=-1)[None])
    assert line is not None and line[1][0] == 0 and line[1][-1] == 1
    assert np.trapezoid(line[1], line[0]) == pytest.approx(roc_auc_score(y, p), abs=0.01)
    for scores in (p, np.round(p, 1)):  # the second with many ties
        x, height, _ = roc_curve(y, scores, drop_intermediate=False)
        np.testing.assert_allclose(roc_points(y == 1, scores), (x, height), atol=1e-12)
    assert roc("single_label", np.ones((200, 1), np.float32), np.stack([1 - p, p], axis=-1)[None]) is None


def test_the_drawn_reliability_holds_the_reported_error() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (300, 2)).astype(np.float32)
    labels[::5, 0] = np.nan
    p = rng.random((300, 2))
    certain, right, count = reliability("multi_label", labels[:, :1], p[None, :, :1])
    assert (count * np.abs(certain - right)).sum() / count.sum() == pytest.approx(
        values("multi_label", labels[:, :1], p[:, :1])["ece"])
