"""Differences with both sorts of luck hold the truth as often as they say, alone and several at once."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
from scipy import stats

from pipelines.scoring import comparisons
from pipelines.scoring.comparisons import Contrast, alone, beside, freedom_of_groups, together
from pipelines.scoring.uncertainty import Spread, draw_groups


def side(rng: np.random.Generator, groups: int, seeds: int, by_group: float, by_seed: float, by_both: float,
         drawn: np.ndarray) -> np.ndarray:
    """S 1+R: mean over groups of what each seed scores on each of them."""
    scores = (by_group * rng.normal(size=groups) + by_seed * rng.normal(size=(seeds, 1))
              + by_both * rng.normal(size=(seeds, groups)))
    return scores @ drawn / groups


def draws(groups: int, resamples: int = 300) -> np.ndarray:
    return np.concatenate([np.ones((groups, 1), int), draw_groups(groups, resamples, 0)], axis=1)


def test_the_error_is_that_of_means_over_groups_and_over_seeds():
    """Beside the textbook: the mean of S x G numbers, whose rows and columns have luck of their own."""
    rng, groups, seeds = np.random.default_rng(0), 30, 4
    scores = (rng.normal(size=groups) + rng.normal(size=(seeds, 1)) + rng.normal(size=(seeds, groups)))
    found = alone(Contrast((scores @ draws(groups, 40_000) / groups,), groups))
    of_groups, of_seeds = scores.mean(0).var(ddof=1) / groups, scores.mean(1).var(ddof=1) / seeds
    apart = scores - scores.mean(0) - scores.mean(1)[:, None] + scores.mean()
    of_both = (apart**2).sum() / (seeds - 1) / (groups - 1) / (seeds * groups)
    assert found.error_groups**2 == pytest.approx(of_groups, rel=0.03)
    assert found.error_seeds**2 == pytest.approx(of_seeds)
    freedom = (of_groups + of_seeds) ** 2 / (of_groups**2 / (groups - 1) + of_seeds**2 / (seeds - 1))
    reach = stats.t.ppf(0.975, freedom) * math.sqrt(of_groups + of_seeds - of_both)
    assert found.high == pytest.approx(scores.mean() + reach, rel=0.03)
    assert found.low == pytest.approx(scores.mean() - reach, rel=0.03)


@pytest.mark.parametrize(("by_group", "by_seed", "by_both"), [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0.2, 1)],
                         ids=["groups", "seeds", "both", "all"])
@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_intervals_hold_the_truth_whatever_the_luck_is_of(seeds, by_group, by_seed, by_both):
    rng, groups, trials = np.random.default_rng(seeds), 20, 300
    drawn = draws(groups)
    held = [alone(Contrast((side(rng, groups, seeds, by_group, by_seed, by_both, drawn),), groups)).sign == 0
            for _ in range(trials)]
    assert np.mean(held) >= 0.95 - 3 * math.sqrt(0.05 * 0.95 / trials)


def test_two_models_have_seeds_of_their_own():
    rng, groups, trials = np.random.default_rng(0), 20, 300
    drawn = draws(groups)
    held = []
    for _ in range(trials):
        one, other = (side(rng, groups, seeds, 0.1, by_seed, 1, drawn) for seeds, by_seed in ((3, 0.2), (4, 0.6)))
        held.append(alone(Contrast((one, -other), groups)).sign == 0)
    assert 0.95 - 3 * math.sqrt(0.05 * 0.95 / trials) <= np.mean(held)


def test_a_true_difference_of_the_size_called_detectable_shows_in_four_of_five_repeats():
    rng, groups = np.random.default_rng(1), 30
    found = alone(Contrast((side(rng, groups, 1, 1, 0, 1, draws(groups)),), groups))
    reach = found.high - found.value
    assert stats.norm.sf((reach - found.detectable) / found.error_groups) == pytest.approx(0.8, abs=1e-3)


def test_seeds_of_two_arms_are_independent_even_where_their_scores_rise_and_fall_together():
    """The second seed of one arm has no more to do with the second of another than with its first."""
    rng, groups = np.random.default_rng(2), 20
    scores = side(rng, groups, 3, 0.1, 1.0, 0.0, draws(groups))
    arms = [Spread({"auroc": one}, {}, groups, 40, (), {}, math.nan) for one in (scores, scores + 0.02)]
    found = beside({"arm": arms[1]}, arms[0])["arm"]["auroc"]
    of_seeds = math.sqrt(2 * scores[:, 0].var(ddof=1) / 3)
    assert found.value == pytest.approx(0.02)
    assert found.high - 0.02 > stats.t.ppf(0.975, 4) * of_seeds * 0.9
    floor = dataclasses.replace(arms[0], metrics={"auroc": scores[:1]})           # one seed: no luck of seeds
    assert beside({"arm": dataclasses.replace(arms[1], metrics={"auroc": scores[:1] + 0.02})},
                  floor)["arm"]["auroc"].high == pytest.approx(0.02)


@pytest.mark.parametrize("shared", [0.0, 0.9], ids=["apart", "from one baseline"])
def test_of_many_equal_ways_one_is_called_different_in_one_of_twenty_pages_at_most(shared):
    rng, groups, trials, ways = np.random.default_rng(1), 30, 200, 6
    drawn, called, levels, by_itself = draws(groups), 0, [], 0
    for _ in range(trials):
        common = side(rng, groups, 3, shared**0.5, 0, 0, drawn)
        own = [(1 - shared) ** 0.5 * side(rng, groups, 3, 1, 0.05, 0.3, drawn) for _ in range(ways)]
        contrasts = {str(i): Contrast((common + one,), groups) for i, one in enumerate(own)}
        told = together(contrasts)
        called += any(one.sign for one in told.values())
        by_itself += any(alone(one).sign for one in contrasts.values())
        levels.append(told["0"].level)
    margin = 3 * math.sqrt(0.05 * 0.95 / trials)
    assert called / trials <= 0.05 + margin
    assert all(0.95 <= level <= 1 - 0.05 / ways + 1e-12 for level in levels)
    if shared:
        assert np.mean(levels) < 1 - 0.05 / 4, "what goes together costs less than Bonferroni asks"
    else:
        assert by_itself / trials > 0.15, "without a correction this is how often some way is called different"


def test_what_cannot_be_told_is_said_and_spoils_no_other():
    rng = np.random.default_rng(0)
    whole, few = side(rng, 30, 3, 1, 0, 0, draws(30)), side(rng, 5, 3, 1, 0, 0, draws(5))
    lost = whole.copy()
    lost[:, 1:60] = np.nan
    undefined = whole.copy()
    undefined[0, 0] = np.nan
    contrasts = {"whole": Contrast((whole,), 30), "few": Contrast((few,), 5), "lost": Contrast((lost,), 30),
                 "undefined": Contrast((undefined,), 30), "one seed": Contrast((whole[:1],), 30)}
    told = together(contrasts)
    assert told["few"].verdict == told["lost"].verdict == told["undefined"].verdict == "not estimable"
    assert "5 test groups" in told["few"].note and "59 of 300 resamples" in told["lost"].note
    assert told["undefined"].text() == "not estimable" and told["few"].text().endswith("[no interval]")
    assert "one seed" in told["one seed"].note and told["one seed"].low is not None
    for name, other in itertools.product(("whole", "one seed"), ("few", "lost", "undefined")):
        assert told[name].level < 1 - 0.05 / 2 + 1e-12, (name, other)


def test_ways_that_never_differ_are_no_difference():
    same = Contrast((np.zeros((3, 301)),), 30)
    assert together({"a": same, "b": same})["a"].verdict == "no difference"
    assert alone(same).text() == "+0.000 [+0.000, +0.000]"


@pytest.mark.parametrize("level", [0.95, 0.99])
def test_the_reach_of_broken_degrees_of_freedom_is_that_of_the_t_distribution(level):
    for freedom in (1, 1.2, 1.5, 1.9, 2.5, 3.3, 7.7, 40.2):
        assert comparisons._t_reach(level, freedom) == pytest.approx(stats.t.ppf(0.5 + level / 2, freedom), rel=0.07)


def test_few_groups_of_the_rarer_outcome_count_for_little():
    assert [round(freedom_of_groups(40, support), 1) for support in (0, 40, 25, 20, 6, 1)] == [39, 39, 24, 38, 6.9, 1]
