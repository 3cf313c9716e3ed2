"""What a verdict computes: intervals that hold what they say, worth in labelled groups, curves that rise."""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pytest

from domains.store import open_prepared
from pipelines.training.label_budget import label_order, what_rows_hold, within_budget
from pipelines.training.true_masks import true_mask
from pipelines.verdicts.label_efficiency import Curve, Worth, gain, gains, rise, worth
from tests.pipelines.mask_data import prepare_masks


def curve(means: list[float], groups: tuple[int, ...], seeds: int = 3, noise: float = 0.0, resamples: int = 200,
          seed: int = 0) -> Curve:
    rng = np.random.default_rng(seed)
    return Curve(tuple(mean + noise * rng.normal(size=(seeds, 1)) + noise * rng.normal(size=(1, 1 + resamples))
                       * np.r_[0, np.ones(resamples)] for mean in means), groups)


def told(way: Curve, baseline: Curve) -> Worth | None:
    return worth(way, baseline, gain(way, baseline, 60))


def test_worth_is_the_labels_saved_on_a_logarithmic_scale():
    baseline = curve([0.60, 0.70, 0.80], (10, 40, 160))
    # reaches 0.80 halfway, on the log scale, between 10 and 40 groups: at 20
    ahead = curve([0.75, 0.85, 0.90], (10, 40, 160))
    found = told(ahead, baseline)
    assert found is not None and found.value == pytest.approx(160 - 20) and not found.capped and not found.open
    assert found.low == pytest.approx(140, abs=2) == found.high, "nothing is by chance here"
    at_once = told(curve([0.82, 0.85, 0.90], (10, 40, 160)), baseline)
    assert at_once is not None and at_once.value == at_once.low == 150 and at_once.capped and at_once.open
    assert told(curve([0.50, 0.60, 0.70], (10, 40, 160)), baseline) is None
    assert told(curve([0.9], (160,)), curve([0.8], (160,))) is None, "one budget says nothing of others"


def test_the_interval_of_worth_counts_seeds_as_well_as_groups():
    sizes, means = (10, 40, 160), np.array([0.70, 0.80, 0.90])
    exact = curve([0.60, 0.70, 0.80], sizes)
    for by_seed, by_group in ((0.05, 0.0), (0.0, 0.05)):
        groups = np.random.default_rng(0).normal(size=200)
        scores = means[:, None, None] + by_seed * np.array([-1, 0, 1])[:, None] + by_group * np.r_[0, groups]
        found = told(Curve(tuple(scores), sizes), exact)
        assert found is not None and found.value == pytest.approx(120) and found.low < 90 and found.high > 135


def test_the_interval_of_worth_is_as_sure_as_that_of_the_gain():
    way, baseline = (curve(means, (10, 40, 160), noise=0.02) for means in ([0.70, 0.80, 0.90], [0.60, 0.70, 0.80]))
    once = gain(way, baseline, 60)
    found = [worth(way, baseline, dataclasses.replace(once, level=level)) for level in (0.95, 0.999)]
    assert found[0] is not None and found[1] is not None and found[0].value == found[1].value
    assert found[1].low < found[0].low - 2 and found[1].high >= found[0].high


def test_a_curve_is_made_to_rise_by_the_nearest_one_that_does():
    np.testing.assert_allclose(rise(np.array([0.6, 0.5, 0.7, 0.65, 0.8])), [0.55, 0.55, 0.675, 0.675, 0.8])
    np.testing.assert_allclose(rise(np.array([3.0, 2.0, 1.0])), [2.0, 2.0, 2.0])


def test_equal_ways_are_called_different_no_more_often_than_promised():
    wrong = 0
    for trial in range(300):
        rng = np.random.default_rng(trial)
        truth = rng.normal(0, 0.02, size=(2, 3, 1))                                   # luck of seeds, each way
        tested = np.r_[rng.normal(0, 0.02), rng.normal(0, 0.02, 300)]                 # luck of test groups
        tested[1:] += tested[0]
        ways = {name: Curve((0.7 + truth[i] + (tested if i else 0) + np.zeros((3, 301)),), (50,))
                for i, name in enumerate(("scratch", "pretrained"))}
        wrong += gains(ways, "scratch", 60)["pretrained"].verdict != "no difference"
    assert wrong <= 0.05 * 300 + 3 * math.sqrt(300 * 0.05 * 0.95)


def test_too_few_groups_give_no_interval():
    found = gain(curve([0.9], (50,)), curve([0.5], (50,)), 5)
    assert found.verdict == "not estimable" and "5 test groups" in found.note


def test_every_beginning_of_the_label_order_holds_every_class_in_proportion_and_never_cuts_a_group():
    rng = np.random.default_rng(0)
    groups = np.array([f"g{i:03d}" for i in range(100) for _ in range(2)])
    labels = np.repeat(np.r_[np.zeros(80), np.ones(20)][rng.permutation(100)], 2)[:, None].astype(np.float32)
    of_group = dict(zip(groups, labels[:, 0], strict=True))
    order = label_order(groups, labels, seed=3)
    assert sorted(order) == sorted(set(groups))
    assert {of_group[name] for name in order[:2]} == {0.0, 1.0}
    for count in (10, 25, 50):
        assert abs(sum(of_group[name] for name in order[:count]) - 0.2 * count) <= 1.5
    assert label_order(groups, labels, seed=3) == order != label_order(groups, labels, seed=4)


def test_the_smallest_budget_holds_a_rare_class_too():
    groups, labels = [f"g{i:02d}" for i in range(60)], np.array([[float(i % 10 == 0)] for i in range(60)], np.float32)
    prepared = SimpleNamespace(column=lambda name: groups, labels=lambda task: labels,
                               contract=SimpleNamespace(tasks={"t": SimpleNamespace(kind="single_label")}))
    for seed in range(5):
        some = within_budget(prepared, "t", np.arange(60), 2 / 60, seed)
        assert sorted(labels[some, 0]) == [0, 1]


def test_numbers_are_spread_over_budgets_by_quarters():
    groups = np.array([f"g{i:02d}" for i in range(40)])
    ages = np.linspace(20, 80, 40, dtype=np.float32)[:, None]
    first = label_order(groups, ages, seed=0)[:4]
    assert {int(groups.tolist().index(name) // 10) for name in first} == {0, 1, 2, 3}


def test_a_mask_is_looked_through_once_however_often_it_is_asked_what_it_holds(tmp_path, monkeypatch):
    prepared = open_prepared(prepare_masks(tmp_path / "x", count=24))
    rows, read = prepared.rows(task="discs"), []
    by_hand = [[number in true_mask(prepared, "discs", int(row)) for number in (1, 2)] for row in rows]
    real = type(prepared).mask
    monkeypatch.setattr(type(prepared), "mask", lambda self, i: read.append(i) or real(self, i))
    first, again = (what_rows_hold(prepared, "discs", rows) for _ in range(2))
    assert np.array_equal(first, by_hand) and np.array_equal(again, by_hand) and sorted(read) == rows.tolist()


def test_a_budget_of_masks_holds_samples_with_and_without_a_class_in_proportion(tmp_path):
    prepared = open_prepared(prepare_masks(tmp_path / "x", count=240))
    train = prepared.rows(split="train", task="discs")
    held = what_rows_hold(prepared, "discs", train)
    assert set(np.unique(held)) == {0.0, 1.0} and (held[:, 0] == 0).mean() == pytest.approx(0.2, abs=0.05)
    for seed in range(4):
        some = within_budget(prepared, "discs", train, 0.17, seed)
        first = some[np.unique(np.array(prepared.column("group"))[some], return_index=True)[1]]
        assert 1 <= (what_rows_hold(prepared, "discs", first)[:, 0] == 0).sum() <= 3 and len(first) == 10
