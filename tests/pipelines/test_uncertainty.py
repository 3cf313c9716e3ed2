"""Intervals hold the truth as often as they say, pairing narrows them, and nothing is said where nothing is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from pipelines.scoring import uncertainty
from pipelines.scoring.uncertainty import (
    Estimate,
    differences,
    draw_groups,
    estimates,
    gap,
    group_folds,
    seed_std,
    spread,
    t_reach,
)


def _grouped(seed: int, num_groups: int = 40, shared: float = 0.7, gain: float = 1.0,
             rows: tuple[int, int] = (1, 6)) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Scores, labels and groups; a label belongs to its group, as of a patient, whose rows share most noise."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(*rows, num_groups)
    member = np.repeat(np.arange(num_groups), sizes)
    y = rng.integers(0, 2, num_groups)[member]
    noise = np.sqrt(shared) * rng.normal(size=num_groups)[member] + np.sqrt(1 - shared) * rng.normal(size=len(member))
    return gain * y + noise, y, [f"patient {m}" for m in member]


def _probabilities(score: np.ndarray) -> np.ndarray:
    p = 1 / (1 + np.exp(-score))
    return np.stack([1 - p, p], axis=-1)


def test_draws_are_whole_resamples_and_the_same_for_the_same_seed() -> None:
    drawn = draw_groups(17, 200, seed=3)
    assert drawn.shape == (17, 200) and (drawn.sum(axis=0) == 17).all()
    assert np.array_equal(drawn, draw_groups(17, 200, seed=3))
    assert not np.array_equal(drawn, draw_groups(17, 200, seed=4))
    assert abs(drawn.mean() - 1) < 1e-12 and abs(drawn.var() - 16 / 17) < 0.05


def test_resampled_values_equal_scikit_learn_on_the_rows_of_the_drawn_groups() -> None:
    score, y, groups = _grouped(0)
    result = spread("single_label", y[:, None], _probabilities(score)[None], groups, resamples=20, seed=5)
    names, member = np.unique(groups, return_inverse=True)
    drawn = draw_groups(len(names), 20, 5)
    for r in range(20):
        rows = np.concatenate([np.flatnonzero(member == g) for g in np.repeat(np.arange(len(names)), drawn[:, r])])
        assert result.metrics["auroc"][0, r + 1] == pytest.approx(roc_auc_score(y[rows], score[rows]), abs=1e-12)


def test_working_in_small_blocks_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    score, y, groups = _grouped(1)
    p = np.stack([_probabilities(score), _probabilities(score * 0.5 + 0.1)])
    whole = spread("single_label", y[:, None], p, groups, resamples=50)
    monkeypatch.setattr(uncertainty, "ENTRIES", len(y) * 7)
    blocks = spread("single_label", y[:, None], p, groups, resamples=50)
    for name in whole.metrics:
        np.testing.assert_allclose(whole.metrics[name], blocks.metrics[name], atol=1e-12)
    np.testing.assert_allclose(whole.outputs[1]["auroc"], blocks.outputs[1]["auroc"], atol=1e-12)


@pytest.mark.parametrize("num_groups", [12, 40])
def test_group_intervals_hold_the_true_value_about_95_times_in_100(num_groups: int) -> None:
    # The truth: AUROC of this process over very many groups, weighted by rows as the estimate is.
    score, y, _ = _grouped(10_000, num_groups=20_000)
    truth = roc_auc_score(y, score)
    inside = total = 0
    for seed in range(200):
        score, y, groups = _grouped(seed, num_groups)
        result = estimates(spread("single_label", y[:, None], _probabilities(score)[None], groups, 300, seed))["auroc"]
        if result.low is not None and result.high is not None:
            total += 1
            inside += result.low <= truth <= result.high
    assert total > 180
    assert 0.91 <= inside / total <= 0.99  # 200 trials: two standard errors are 0.03


def test_row_intervals_would_hold_it_far_less_often() -> None:
    score, y, _ = _grouped(10_000, num_groups=20_000, rows=(4, 9))
    truth = roc_auc_score(y, score)
    inside = {"groups": 0, "rows": 0}
    for seed in range(120):
        score, y, groups = _grouped(seed, 40, rows=(4, 9))
        for name, unit in (("groups", groups), ("rows", [str(i) for i in range(len(y))])):
            one = spread("single_label", y[:, None], _probabilities(score)[None], unit, 200, seed)
            result = estimates(one)["auroc"]
            assert result.low is not None and result.high is not None
            inside[name] += result.low <= truth <= result.high
    assert inside["rows"] / 120 < 0.8 < 0.9 <= inside["groups"] / 120


def test_a_paired_interval_is_narrower_than_two_apart_when_predictions_go_together() -> None:
    score, y, groups = _grouped(2, num_groups=60)
    rng = np.random.default_rng(0)
    other = score + 0.15 * rng.normal(size=len(score)) + 0.2 * y
    a, b = (spread("single_label", y[:, None], _probabilities(s)[None], groups, 500) for s in (other, score))
    paired = differences(a, b)["auroc"]
    alone = [estimates(one)["auroc"] for one in (a, b)]
    assert paired.low is not None and paired.high is not None
    widths = [one.high - one.low for one in alone if one.high is not None and one.low is not None]
    apart = float(np.hypot(*widths))
    assert paired.high - paired.low < 0.5 * apart
    assert paired.value == pytest.approx(alone[0].value - alone[1].value)  # type: ignore[operator]


def test_the_paired_interval_holds_the_true_difference_about_95_times_in_100() -> None:
    def arms(seed: int, num_groups: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
        score, y, groups = _grouped(seed, num_groups)
        return score, score + 0.3 * y + 0.4 * np.random.default_rng([seed, 1]).normal(size=len(y)), y, groups

    a, b, y, _ = arms(10_000, 20_000)
    truth = roc_auc_score(y, b) - roc_auc_score(y, a)
    inside = 0
    for seed in range(200):
        a, b, y, groups = arms(seed, 30)
        one, two = (spread("single_label", y[:, None], _probabilities(s)[None], groups, 200, seed) for s in (b, a))
        result = differences(one, two)["auroc"]
        assert result.low is not None and result.high is not None
        inside += result.low <= truth <= result.high
    assert 0.90 <= inside / 200 <= 0.99


def _two_sources(seed: int, shared: bool) -> tuple[uncertainty.Spread, uncertainty.Spread]:
    """Spreads of a good source and of a worse one, whose groups are other ones, or the same."""
    score, y, groups = _grouped(seed, gain=1.5)
    worse, z, others = _grouped(seed if shared else seed + 10_000, gain=0.5)
    others = others if shared else [f"other {name}" for name in others]
    every = [*groups, *others]
    return (spread("single_label", y[:, None], _probabilities(score)[None], groups, 200, among=every),
            spread("single_label", z[:, None], _probabilities(worse)[None], others, 200, among=every))


def test_the_interval_of_a_gap_between_sources_holds_the_true_gap_about_95_times_in_100() -> None:
    true = stats.norm.cdf(0.5 / 2**0.5) - stats.norm.cdf(1.5 / 2**0.5)
    held = 0
    for seed in range(150):
        here, there = _two_sources(seed, shared=False)
        found = gap(there, here)["auroc"]
        assert found.low is not None and found.high is not None
        held += found.low <= true <= found.high
    assert 0.90 <= held / 150 <= 0.99


def test_groups_that_lie_in_both_sources_are_drawn_together() -> None:
    """The same patients at both: their common luck cancels, which narrows the interval."""
    widths = []
    for shared in (True, False):
        found = [gap(*reversed(_two_sources(seed, shared)))["auroc"] for seed in range(10)]
        widths.append(np.mean([one.high - one.low for one in found if one.high is not None and one.low is not None]))
    assert widths[0] < 0.9 * widths[1]


def test_drawing_among_more_groups_changes_no_value() -> None:
    score, y, groups = _grouped(3)
    alone = spread("single_label", y[:, None], _probabilities(score)[None], groups, 100)
    among = spread("single_label", y[:, None], _probabilities(score)[None], groups, 100, among=[*groups, "one more"])
    assert alone.metrics["auroc"][0, 0] == among.metrics["auroc"][0, 0] and alone.num_groups == among.num_groups


def test_each_group_counts_as_often_as_it_was_drawn_among_the_others() -> None:
    score, y, groups = _grouped(3)
    every = sorted({*groups, "a group that comes first", "zz one that comes last"})
    result = spread("single_label", y[:, None], _probabilities(score)[None], groups, 20, seed=5, among=every[::-1])
    drawn = draw_groups(len(every), 20, 5)
    for r in range(20):
        rows = np.concatenate([np.flatnonzero(np.array(groups) == name).repeat(times)
                               for name, times in zip(every, drawn[:, r], strict=True)])
        assert result.metrics["auroc"][0, r + 1] == pytest.approx(roc_auc_score(y[rows], score[rows]), abs=1e-12)


def test_equal_arms_differ_by_exactly_nothing() -> None:
    score, y, groups = _grouped(3)
    one = spread("single_label", y[:, None], _probabilities(score)[None], groups, 100)
    result = differences(one, one)["auroc"]
    assert (result.value, result.low, result.high) == (0.0, 0.0, 0.0)


def test_seeds_are_averaged_inside_each_resample() -> None:
    score, y, groups = _grouped(4)
    seeds = np.stack([_probabilities(score + 0.5 * np.random.default_rng(s).normal(size=len(y))) for s in range(3)])
    together = spread("single_label", y[:, None], seeds, groups, 100)
    alone = [spread("single_label", y[:, None], seeds[s:s + 1], groups, 100) for s in range(3)]
    mean = np.mean([one.metrics["auroc"][0] for one in alone], axis=0)
    np.testing.assert_allclose(together.metrics["auroc"].mean(axis=0), mean)
    result = estimates(together)["auroc"]
    assert result.value == pytest.approx(mean[0])
    assert seed_std(together)["auroc"] == pytest.approx(np.std([one.metrics["auroc"][0, 0] for one in alone], ddof=1))
    assert seed_std(alone[0])["auroc"] is None


def test_fewer_than_ten_groups_give_a_value_without_an_interval() -> None:
    score, y, groups = _grouped(5, num_groups=8)
    result = estimates(spread("single_label", y[:, None], _probabilities(score)[None], groups))["auroc"]
    assert result.value is not None and result.low is None and result.high is None
    assert "8 test groups, needs 10" in result.note and "[no interval]" in result.text()


def test_a_test_split_with_one_outcome_is_not_estimable() -> None:
    score, y, groups = _grouped(6)
    result = estimates(spread("single_label", np.zeros((len(y), 1)), _probabilities(score)[None], groups))
    assert result["auroc"].value is None and result["auroc"].text() == "not estimable"
    assert result["auroc"].note == "the test rows lack an outcome"
    assert result["accuracy"].value is not None


def test_resamples_that_lose_an_outcome_are_counted_and_too_many_end_the_interval() -> None:
    score, _, groups = _grouped(7, num_groups=30, rows=(2, 3))
    names = sorted(set(groups))

    def auroc(num_positive_groups: int) -> Estimate:
        y = np.isin(groups, names[:num_positive_groups]).astype(float)[:, None]
        return estimates(spread("single_label", y, _probabilities(score)[None], groups, 1000))["auroc"]

    few, enough = auroc(1), auroc(4)
    assert few.value is not None and few.low is None and "of 1000 resamples without the metric" in few.note
    assert enough.low is not None and "of 1000 resamples without the metric" in enough.note
    lost = int(enough.note.split()[0])
    assert 1 <= lost <= 60  # about 1000 * (1 - 4/30)^30 = 14


def test_an_average_rests_on_the_groups_of_the_rarer_outcomes() -> None:
    score, _, groups = _grouped(7, num_groups=30)
    y = np.isin(groups, sorted(set(groups))[:4]).astype(float)[:, None]
    two = spread("single_label", y, _probabilities(score)[None], groups, 10)
    assert two.support("auroc") == 4 and two.support("accuracy") == 30
    member = np.unique(groups, return_inverse=True)[1]
    p = np.full((len(y), 3), 1 / 3)
    three = spread("single_label", (member % 3)[:, None], p[None], groups, 10)
    assert three.scarce == {0: 10, 1: 10, 2: 10} and three.support("auroc") == 30
    assert three.support("auroc", 1) == 10


def test_perfect_separation_admits_that_its_interval_is_too_narrow() -> None:
    _, y, groups = _grouped(7, num_groups=30)
    result = estimates(spread("single_label", y[:, None], _probabilities(9.0 * y)[None], groups, 100))["auroc"]
    assert result.value == 1.0 and "narrower than the truth" in result.note


def test_the_interval_of_a_calibration_error_holds_its_value_and_says_what_chance_does() -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        z = rng.normal(0, 1.5, 60)
        y = (1 / (1 + np.exp(-z)) > rng.random(60)).astype(float)[:, None]  # perfectly calibrated
        groups = [str(i // 2) for i in range(60)]
        one, other = (spread("single_label", y, _probabilities(score)[None], groups, 200) for score in (z, 2 * z))
        result = estimates(one)["ece"]
        assert result.low is not None and result.high is not None and result.value is not None
        assert 0 <= result.low <= result.value <= result.high
        assert "perfect calibration would show 0." in result.note
        change = differences(other, one)["ece"]
        assert change.low is not None and change.high is not None and change.value is not None
        assert change.low <= change.value <= change.high


def test_many_rare_classes_keep_an_interval_and_say_how_often_one_was_missing() -> None:
    rng = np.random.default_rng(0)
    y = np.arange(60) % 20  # three groups of one row each
    p = np.eye(20)[y] + rng.random((60, 20))
    p /= p.sum(axis=1, keepdims=True)
    result = estimates(spread("single_label", y[:, None], p[None], [str(i) for i in range(60)], 300))
    auroc = result["auroc"]
    assert auroc.low is not None and auroc.high is not None and auroc.value is not None
    assert auroc.low < auroc.value < auroc.high and "resamples average over fewer outputs" in auroc.note
    assert "fewer outputs" not in result["accuracy"].note


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 9, 10, 79, 500, 1001])
def test_the_reach_of_the_t_distribution_is_scipys(freedom: int) -> None:
    assert t_reach(0.95, freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-9 if freedom < 1000 else 2e-3)


def test_groups_without_a_label_are_not_counted() -> None:
    score, y, groups = _grouped(8, num_groups=20)
    labels = y.astype(float)
    labels[np.isin(groups, sorted(set(groups))[:5])] = np.nan
    result = estimates(spread("single_label", labels[:, None], _probabilities(score)[None], groups, 50))["auroc"]
    assert result.num_groups == 15 and result.num_rows == int((~np.isnan(labels)).sum())


def test_a_row_with_one_known_finding_of_two_counts() -> None:
    score, y, groups = _grouped(8, num_groups=30)
    labels = np.stack([y, 1 - y], axis=1).astype(float)
    labels[::2, 0] = labels[1::2, 1] = np.nan
    labels[np.array(groups) == groups[0]] = np.nan                           # nothing is known of the first group
    p = np.stack([_probabilities(score)[:, 1], _probabilities(-score)[:, 1]], axis=1)
    one = spread("multi_label", labels, p[None], groups, 20)
    assert (one.num_groups, one.num_rows) == (29, sum(group != groups[0] for group in groups))
    for k in range(2):
        known = ~np.isnan(labels[:, k])
        assert one.outputs[k]["auroc"][0, 0] == pytest.approx(roc_auc_score(labels[known, k], p[known, k]))


def test_findings_carry_an_estimate_each_and_say_what_was_left_out() -> None:
    score, y, groups = _grouped(9)
    p = np.stack([_probabilities(score)[:, 1]] * 2, axis=1)[None]
    labels = np.stack([y, np.ones(len(y))], axis=1)
    one = spread("multi_label", labels, p, groups, 100)
    result = uncertainty.output_estimates(one, "auroc")
    assert list(result) == [0] and result[0].value == pytest.approx(roc_auc_score(y, score))
    assert "want of an outcome: 1" in estimates(one)["auroc"].note


def test_regression_has_intervals_too() -> None:
    score, _, groups = _grouped(10)
    truth = score + 0.3 * np.random.default_rng(0).normal(size=len(score))
    result = estimates(spread("regression", truth[:, None], score[None, :, None], groups, 200))
    for name in ("mae", "rmse", "r2", "spearman"):
        one = result[name]
        assert one.low is not None and one.high is not None and one.value is not None
        assert one.low < one.value < one.high, name


def test_folds_cut_no_group_cover_every_row_once_per_repeat_and_repeat_exactly() -> None:
    _, y, groups = _grouped(11, num_groups=23)
    folds = group_folds(groups, y[:, None], k=5, repeats=3, seed=0)
    assert len(folds) == 15
    for repeat in range(3):
        part = folds[repeat * 5:repeat * 5 + 5]
        assert sorted(np.concatenate(part).tolist()) == list(range(len(y)))
        owners = [{groups[i] for i in fold} for fold in part]
        assert sum(map(len, owners)) == len(set(groups))
    assert all(np.array_equal(a, b) for a, b in zip(folds, group_folds(groups, y[:, None], 5, 3, 0), strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(folds[:5], folds[5:10], strict=True))


def test_folds_hold_each_class_about_as_often() -> None:
    _, y, groups = _grouped(12, num_groups=80)
    shares = [y[fold].mean() for fold in group_folds(groups, y[:, None], k=4, repeats=2, seed=1)]
    assert max(shares) - min(shares) < 0.12


def test_folds_take_findings_numbers_and_unknown_labels() -> None:
    score, y, groups = _grouped(13, num_groups=30)
    findings = np.stack([y, np.where(np.arange(len(y)) % 3, 1.0, np.nan)], axis=1)
    for labels in (findings, score[:, None]):
        folds = group_folds(groups, labels, k=3, repeats=1, seed=0)
        assert sorted(np.concatenate(folds).tolist()) == list(range(len(y)))


def test_more_folds_than_groups_are_refused() -> None:
    with pytest.raises(ValueError, match="k=5 and 3 groups"):
        group_folds(["a", "b", "c"], [[0], [1], [0]], k=5, repeats=1, seed=0)
