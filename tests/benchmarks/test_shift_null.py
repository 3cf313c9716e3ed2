"""A shift page on answers that do not differ calls a primary line in one of twenty draws or so; the script, small."""

from __future__ import annotations

from benchmarks.shift_null import MODELS, WAYS, measure


def test_pages_of_answers_without_any_difference_seldom_call_a_primary_line():
    called = measure(40, seeds=3, luck=0.3, resamples=200, models=MODELS[:2], ways=WAYS[:3])
    assert called.asked == 40 * (2 * 6 - 1)
    assert called.primary <= 6, "of 40, where 2 are to be expected and 7 come in one of 200 such tests"
    assert called.alone >= called.primary, "primary lines are some of all"
