"""The verdict follows the interval of the paired difference, the direction of the metric, and the seeds."""

from __future__ import annotations

import dataclasses

import pytest

from pipelines.scoring.evaluation_record import ArmResult, Cost, Evaluation
from pipelines.scoring.outcome import cost_sentence, duration, verdict
from pipelines.scoring.uncertainty import Estimate


def _evaluation(value: float | None, low: float | None, high: float | None, note: str = "", std: float | None = 0.004,
                metric: str = "auroc") -> Evaluation:
    def arm(score: float) -> ArmResult:
        seeds = {"0": score, "1": score}
        return ArmResult({metric: Estimate(score, None, None, 40, 90)}, {metric: seeds}, {metric: std})

    return Evaluation(name="xray", domain="medical", finetune="xray", data="xray", task="opacity", kind="single_label",
                      outputs=("no", "yes"), headline=metric, baseline="scratch",
                      arms={"scratch": arm(0.8), "pretrained": arm(0.8 + (value or 0))},
                      paired={"pretrained": {metric: Estimate(value, low, high, 40, 90, note)}})


@pytest.mark.parametrize(("low", "high", "value", "metric", "start"), [
    (0.01, 0.07, 0.04, "auroc", "pretraining helped:"),
    (-0.07, -0.01, -0.04, "auroc", "pretraining did not help, it was worse:"),
    (-0.02, 0.05, 0.02, "auroc", "cannot tell"),
    (0.01, 0.07, 0.04, "mae", "pretraining did not help, it was worse:"),
    (-0.07, -0.01, -0.04, "mae", "pretraining helped:"),
])
def test_the_word_follows_the_interval_and_the_direction(low: float, high: float, value: float, metric: str,
                                                         start: str) -> None:
    said = verdict(_evaluation(value, low, high, metric=metric))
    assert said.startswith(start) and f"difference {value:+.3f}" in said and "40 test groups and 2 seeds" in said


def test_an_interval_that_holds_zero_says_how_much_is_still_possible() -> None:
    assert "gained up to 0.050 or lost up to 0.020" in verdict(_evaluation(0.02, -0.02, 0.05))
    assert "gained up to 0.020 or lost up to 0.050" in verdict(_evaluation(0.02, -0.02, 0.05, metric="mae"))
    assert "gained up to 0.000 or lost up to 0.000" in verdict(_evaluation(0.0, 0.0, 0.0))


def test_without_an_interval_or_an_arm_it_cannot_tell_and_says_why() -> None:
    said = verdict(_evaluation(0.04, None, None, "interval not estimable: 8 test groups, needs 10"))
    assert said.startswith("cannot tell") and "8 test groups, needs 10" in said
    few = dataclasses.replace(_evaluation(0.04, None, None, "needs 10"), num_groups=3, labelled_groups=15)
    assert "`folds: 5` in its paragraph tests all 15 labelled groups" in verdict(few)
    assert "label more groups; 6 have" in verdict(dataclasses.replace(few, labelled_groups=6))
    assert "not estimable (the test rows lack an outcome)" in verdict(
        _evaluation(None, None, None, "the test rows lack an outcome"))
    alone = dataclasses.replace(_evaluation(0.04, 0.01, 0.07), paired={})
    assert "no arm pretrained beside scratch" in verdict(alone)


def test_the_cost_of_pretraining_stands_beside() -> None:
    said = cost_sentence(Cost(600, 75.0, {"scratch": 120, "pretrained": 120}, {"scratch": 400.0}))
    assert said == ("cost: pretraining 600 steps (75 s), fine-tuning scratch 120 steps (7 min), "
                    "fine-tuning pretrained 120 steps")
    assert cost_sentence(Cost()) == ""
    assert duration(7300) == "2.0 h"
