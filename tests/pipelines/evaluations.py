"""An evaluation made by hand, for tests that are about what is done with one."""

from __future__ import annotations

from pipelines.scoring.evaluation_record import ArmResult, Cost, Evaluation, FloorResult
from pipelines.scoring.uncertainty import Estimate


def estimate(value: float | None, low: float | None = None, high: float | None = None, note: str = "") -> Estimate:
    return Estimate(value, low, high, 40, 90, note)


def evaluation(difference: Estimate | None = None, std: float = 0.004, metric: str = "auroc", ours: float = 0.85,
               theirs: float = 0.81) -> Evaluation:
    """Two arms with three seeds each; the difference is what a test is about."""
    def arm(value: float) -> ArmResult:
        return ArmResult(metrics={metric: estimate(value, value - 0.05, value + 0.04)},
                         per_seed={metric: {"0": value, "1": value, "2": None}}, seed_std={metric: std},
                         per_source={"north": {metric: estimate(value)}}, per_output={"yes": estimate(value)},
                         temperature={"0": 1.5}, val_loss=0.4)

    difference = difference or estimate(0.04, 0.01, 0.07)
    return Evaluation(
        name="xray", domain="medical", finetune="xray", data="xray", task="opacity", kind="single_label",
        outputs=("no", "yes"), headline=metric, baseline="scratch",
        arms={"scratch": arm(theirs), "pretrained": arm(ours)},
        paired={"pretrained": {metric: difference}}, paired_per_source={"pretrained": {"north": estimate(0.03)}},
        floors={"intensity": FloorResult("forest", {metric: estimate(0.6, 0.5, 0.7)}, {"pretrained": estimate(0.2)})},
        cost=Cost(600, 75.0, {"scratch": 120, "pretrained": 120}, {"scratch": 30.0, "pretrained": 31.0}),
        num_rows=90, num_groups=40, resamples=1000, notes=("a note",))
