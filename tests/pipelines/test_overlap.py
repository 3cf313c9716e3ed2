"""Scores of masks equal those computed from the pixels themselves, MONAI's Dice and scikit-learn's Jaccard."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.metrics import DiceMetric
from sklearn import metrics as judge

from domains.sample import UNKNOWN_CLASS
from pipelines.scoring import metrics, overlap
from pipelines.scoring.uncertainty import differences, estimates, output_estimates, spread

CLASSES = 3


def masks(seed: int, count: int = 14, classes: int = CLASSES) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Truths and predictions of different sizes; some lack a class, some hold pixels that nobody has looked at."""
    rng = np.random.default_rng(seed)
    truths, called = [], []
    for i in range(count):
        shape = (int(rng.integers(5, 12)), int(rng.integers(5, 12)))
        truth = rng.integers(0, classes, shape)
        truth[truth == 1 + i % (classes - 1)] *= int(i % 4 != 0)
        guess = np.where(rng.random(shape) < 0.6, truth, rng.integers(0, classes, shape))
        truth[rng.random(shape) < 0.1] = UNKNOWN_CLASS
        truths.append(truth.astype(np.uint8))
        called.append(guess.astype(np.uint8))
    return truths, called


def summed(truths: list[np.ndarray], called: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    told = np.stack([overlap.counts(a, b, CLASSES - 1) for a, b in zip(truths, called, strict=True)])
    return np.ones((len(truths), CLASSES - 1)), told


@pytest.mark.parametrize("seed", range(3))
def test_every_metric_equals_the_one_computed_from_pixels_under_every_weighting(seed: int) -> None:
    truths, called = masks(seed)
    labels, told = summed(truths, called)
    labels[3, 0] = np.nan                                                     # the class was not looked for there
    weights = np.random.default_rng(seed).poisson(1.0, (len(truths), 5)).astype(float)
    weights[:, 0] = 1
    means, by_class = metrics.score_with_outputs("segmentation", labels, told, weights)
    for r in range(weights.shape[1]):
        rows = np.repeat(np.arange(len(truths)), weights[:, r].astype(int))   # a resample, sample by sample
        found: dict[str, list[float]] = {name: [] for name in overlap.NAMES}
        for k in (1, 2):
            own = [(truths[i][truths[i] != UNKNOWN_CLASS] == k, called[i][truths[i] != UNKNOWN_CLASS] == k)
                   for i in rows if not np.isnan(labels[i, k - 1])]
            true, guess = (np.concatenate([pair[side] for pair in own]) for side in (0, 1))
            expected = {
                "dice": np.mean([2 * (a & b).sum() / (a.sum() + b.sum()) for a, b in own if a.any()]),
                "iou": judge.jaccard_score(true, guess), "precision": judge.precision_score(true, guess),
                "recall": judge.recall_score(true, guess),
                "false_alarms": np.mean([b.any() for a, b in own if not a.any()] or [np.nan])}
            for name, value in expected.items():
                assert by_class[k - 1][name][r] == pytest.approx(value, abs=1e-12, nan_ok=True), (name, k, r)
                found[name].append(value)
        for name, values in found.items():
            expected_mean = np.nanmean(values) if np.isfinite(values).any() else np.nan
            assert means[name][r] == pytest.approx(expected_mean, abs=1e-12, nan_ok=True)


def test_dice_equals_monais_which_leaves_samples_without_the_class_out_too() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, CLASSES, (9, 8, 8))
    truth[2][truth[2] == 1] = 0
    called = np.where(rng.random(truth.shape) < 0.7, truth, rng.integers(0, CLASSES, truth.shape))
    one_hot = [torch.nn.functional.one_hot(torch.from_numpy(x), CLASSES).movedim(-1, 1) for x in (called, truth)]
    theirs = DiceMetric(include_background=False, reduction="mean_batch")(*one_hot)
    theirs = torch.nanmean(theirs, 0)                                          # NaN there: no such class in the truth
    labels, told = summed(list(truth.astype(np.uint8)), list(called.astype(np.uint8)))
    _, by_class = metrics.score_with_outputs("segmentation", labels, told)
    assert [by_class[k]["dice"][0] for k in (0, 1)] == pytest.approx(theirs.tolist(), abs=1e-6)


def test_a_pixel_called_in_a_sample_without_the_class_costs_precision_and_is_an_alarm_but_no_dice() -> None:
    labels = np.ones((3, 1))
    clean = np.array([[8.0, 0, 2], [0, 0, 0], [0, 0, 0]])
    alarmed = np.array([[8.0, 0, 2], [0, 30, 0], [0, 0, 0]])
    before, after = (metrics.values("segmentation", labels, told) for told in (clean, alarmed))
    assert before["dice"] == after["dice"] == pytest.approx(16 / 18)
    assert (before["precision"], after["precision"]) == (1.0, pytest.approx(8 / 38))
    assert (before["iou"], after["iou"]) == (pytest.approx(0.8), pytest.approx(8 / 40))
    assert (before["false_alarms"], after["false_alarms"]) == (0.0, 0.5)


def test_a_sample_without_a_class_has_no_dice_of_it_and_its_own_mean_is_over_the_classes_that_it_holds() -> None:
    labels = np.array([[1.0, 1], [1, np.nan], [1, 1]])
    told = np.array([[8.0, 0, 2, 0, 5, 0], [3, 1, 1, 4, 0, 0], [0, 9, 0, 0, 0, 0]])
    np.testing.assert_allclose(overlap.per_sample_dice(labels, told), [[16 / 18, np.nan], [6 / 8, np.nan],
                                                                     [np.nan, np.nan]])
    both = np.stack([told, told * 0 + np.array([1.0, 1, 1, 1, 1, 1])])
    np.testing.assert_allclose(overlap.sample_means(labels, both), [(16 / 18 + 0.5 + 0.5) / 3, (0.75 + 0.5) / 2, 0.5])


def test_a_class_that_no_truth_holds_is_left_out_of_every_average_and_named() -> None:
    labels, told = np.ones((4, 2)), np.tile([5.0, 1, 1, 0, 3, 0], (4, 1))
    means, by_class = metrics.score_with_outputs("segmentation", labels, told)
    assert set(by_class) == {0} and metrics.absent_of("segmentation", labels, told) == (1,)
    assert means["dice"][0] == pytest.approx(10 / 12) and np.isnan(means["false_alarms"][0])
    nothing = metrics.values("segmentation", labels, np.tile([0.0, 3, 0, 0, 3, 0], (4, 1)))
    assert all(np.isnan(value) for value in nothing.values())


def test_a_model_that_calls_nothing_has_a_dice_of_zero_and_no_precision() -> None:
    told = metrics.values("segmentation", np.ones((2, 1)), [[0.0, 0, 9], [0, 0, 4]])
    assert told["dice"] == told["iou"] == told["recall"] == 0 and np.isnan(told["precision"])


def test_arms_are_compared_on_the_same_groups_and_an_interval_rests_on_those_that_hold_the_class() -> None:
    rng = np.random.default_rng(1)
    size = rng.integers(20, 200, 60) * (np.arange(60) % 3 > 0)                 # a third of the samples hold nothing

    def arm(share: float) -> np.ndarray:
        hit = np.round(size * np.clip(rng.normal(share, 0.05, (2, 60)), 0, 1))
        return np.stack([hit, np.round(0.1 * size) + np.zeros((2, 60)), size - hit], axis=2)

    groups = [f"g{i // 2}" for i in range(60)]
    better, worse = (spread("segmentation", np.ones((60, 1)), arm(share), groups, 300) for share in (0.9, 0.6))
    found = differences(better, worse)["dice"]
    assert found.low is not None and found.low > 0.1 and found.num_groups == 30
    assert better.support("dice") == len({groups[i] for i in range(60) if size[i]}) == 30
    assert better.support("false_alarms") == len({groups[i] for i in range(60) if not size[i]}) == 20
    assert estimates(better)["dice"].value == pytest.approx(output_estimates(better, "dice")[0].value)


@pytest.mark.parametrize(("labels", "told", "message"), [
    (np.ones((2, 2)), np.ones((2, 3)), "expected n K and n 3K"),
    (np.ones((2, 1)), np.full((2, 3), -1.0), "negative counts"),
    (np.ones((2, 1)), np.full((2, 3), np.nan), "NaN or infinite"),
])
def test_what_are_no_counts_is_refused_in_a_sentence(labels: np.ndarray, told: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        metrics.score("segmentation", labels, told)


def test_a_prediction_on_another_grid_is_refused() -> None:
    with pytest.raises(ValueError, match="grid of the prepared data"):
        overlap.counts(np.zeros((4, 4), np.uint8), np.zeros((2, 2), np.uint8), 1)
