"""Every kind of task is assessed whole: sources apart, outputs apart, arms and floors on the same resamples."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from domains.sample import Task
from pipelines.evaluate import EvaluateRun
from pipelines.scoring.assessment import Arm, Unseen, assess
from pipelines.scoring.evaluation_pictures import draw
from pipelines.scoring.evaluation_record import Evaluation, from_json
from pipelines.scoring.floors import Floor
from pipelines.scoring.metrics import HEADLINE, values
from pipelines.scoring.outcome import summary, verdict

ROWS, GROUPS = 240, 80
TASKS = {"single_label": Task("single_label", ("y",), ("a", "b", "c")),
         "multi_label": Task("multi_label", ("p", "q", "never")),
         "regression": Task("regression", ("size",))}


def _problem(kind: str) -> tuple[Unseen, dict[str, np.ndarray]]:
    """Labels, and predictions of two arms of which `pretrained` is nearer to them; source `south` is harder."""
    rng = np.random.default_rng(0)
    group = np.arange(ROWS) % GROUPS
    hard = np.where(group % 2, 2.0, 0.5)[:, None]
    if kind == "single_label":
        labels = rng.integers(0, 3, GROUPS)[group][:, None].astype(np.float32)
        target, size = np.eye(3)[labels[:, 0].astype(int)], 3
    elif kind == "multi_label":
        labels = np.c_[rng.integers(0, 2, (GROUPS, 2))[group], np.zeros(ROWS)].astype(np.float32)
        labels[::9, 0] = np.nan
        target, size = np.nan_to_num(labels), 3
    else:
        labels = rng.normal(5, 2, GROUPS)[group][:, None].astype(np.float32)
        target, size = labels, 1

    def predicted(noise: float) -> np.ndarray:
        raw = np.stack([target + noise * hard * rng.normal(size=(ROWS, size)) for _ in range(2)])
        if kind == "single_label":
            return np.exp(raw) / np.exp(raw).sum(axis=2, keepdims=True)
        return 1 / (1 + np.exp(2 - 4 * raw)) if kind == "multi_label" else raw

    columns = {"group": [f"g{g}" for g in group], "source": [("north", "south")[g % 2] for g in group],
               "key": [f"k{i}" for i in range(ROWS)]}
    prepared: Any = SimpleNamespace(contract=SimpleNamespace(tasks={"t": TASKS[kind]}), labels=lambda task: labels,
                                    column=columns.__getitem__, folder=Path("nowhere"),
                                    rows=lambda **which: np.arange(ROWS))
    return Unseen(prepared, "t", np.arange(ROWS)), {"scratch": predicted(1.0), "pretrained": predicted(0.4)}


def _assessed(kind: str, baseline: str = "scratch") -> tuple[Evaluation, Unseen, dict[str, np.ndarray]]:
    unseen, predicted = _problem(kind)
    arms = {arm: Arm(p, {"0": 1.0, "1": 1.0}, ("temperature: a note",)) for arm, p in predicted.items()}
    rng = np.random.default_rng(1)
    guess = predicted["scratch"][0][rng.permutation(ROWS)]
    asked = EvaluateRun("medical", "f", resamples=200, baseline=baseline)
    tuned = {"data": "d", "chosen": {arm: {"val_loss": 0.5} for arm in arms}, "cost": {"pretrain_steps": 10}}
    floors = {"intensity": Floor(guess, "forest leaf=1")}
    return assess("run", asked, HEADLINE[TASKS[kind].kind], tuned, unseen, arms, floors), unseen, predicted


@pytest.mark.parametrize("kind", list(TASKS))
def test_an_assessment_is_whole_readable_and_drawn(kind: str, tmp_path: Path) -> None:
    one, unseen, predicted = _assessed(kind)
    assert from_json(one.to_json()) == one
    assert one.num_groups == GROUPS and one.headline == HEADLINE[TASKS[kind].kind]
    text = summary(one)
    assert "pretraining helped" in text and "by source" in text and "simple models on the same split" in text
    pictures = draw(tmp_path, one, unseen.labels, predicted)
    own = {"predicted.png"} if kind == "regression" else {"roc.png", "reliability.png"}
    assert {picture.name for picture in pictures} == {"arms.png", "difference.png"} | own
    assert {file.name for file in tmp_path.iterdir()} == {picture.name for picture in pictures}


@pytest.mark.parametrize("kind", list(TASKS))
def test_sources_are_scored_on_their_own_rows_and_differ_where_one_is_harder(kind: str) -> None:
    one, unseen, predicted = _assessed(kind)
    part = np.array(unseen.column("source")) == "south"
    by_hand = [values(TASKS[kind].kind, unseen.labels[part], p[part])[one.headline] for p in predicted["scratch"]]
    scored = one.arms["scratch"].per_source
    assert scored["south"][one.headline].value == pytest.approx(np.mean(by_hand))
    assert scored["south"][one.headline].num_groups == GROUPS // 2
    north, south = scored["north"][one.headline].value, scored["south"][one.headline].value
    assert north is not None and south is not None and (north < south) == (kind == "regression")
    assert set(one.paired_per_source["pretrained"]) == {"north", "south"}


def test_a_finding_that_never_occurs_is_named_and_left_out() -> None:
    one, _, _ = _assessed("multi_label")
    assert list(one.arms["pretrained"].per_output) == ["p", "q"]
    assert "1 of 3 outputs lack an outcome among the test rows and are left out of averages: never" in one.notes[0]


def test_arms_beat_a_floor_by_paired_differences() -> None:
    one, _, _ = _assessed("single_label")
    floor = one.floors["intensity"]
    difference, ours = floor.beaten_by["pretrained"], one.arms["pretrained"].metrics["auroc"].value
    assert ours is not None and floor.metrics["auroc"].value is not None
    assert difference.value == pytest.approx(ours - floor.metrics["auroc"].value)
    assert difference.low is not None and difference.low > 0


def test_seeds_that_differ_as_much_as_the_arms_leave_it_open() -> None:
    unseen, predicted = _problem("regression")
    # The second seed of `pretrained` is as much too high as the first is right; both beat `scratch` on every group.
    predicted["pretrained"] = np.stack([unseen.labels, unseen.labels + 0.95])
    predicted["scratch"] = np.stack([unseen.labels + 1.0] * 2)
    arms = {arm: Arm(p, {"0": 1.0, "1": 1.0}) for arm, p in predicted.items()}
    tuned = {"data": "d", "chosen": {arm: {"val_loss": 0.5} for arm in arms}}
    one = assess("run", EvaluateRun("medical", "f", resamples=200), "mae", tuned, unseen, arms, {})
    found = one.paired["pretrained"]["mae"]
    assert found.value == pytest.approx(-0.525) and found.low is not None and found.high is not None
    assert found.high > 0 and verdict(one).startswith("cannot tell") and "more seeds would narrow it" in verdict(one)
    alone = {arm: Arm(p[:1], {"0": 1.0}) for arm, p in predicted.items()}
    certain = assess("run", EvaluateRun("medical", "f", resamples=200), "mae", tuned, unseen, alone, {})
    assert verdict(certain).startswith("pretraining helped") and "1 seed (one seed: what" in verdict(certain)
    assert "other seeds would do is not in the interval" in summary(certain)


def test_a_baseline_that_is_not_an_arm_gives_way_to_the_first(tmp_path: Path) -> None:
    assert _assessed("single_label", baseline="linear")[0].baseline == "scratch"
    assert list(_assessed("single_label", baseline="pretrained")[0].paired) == ["scratch"]
    alone = dataclasses.replace(_assessed("single_label")[0], paired={}, paired_per_source={})
    assert "arms.png" in {picture.name for picture in draw(tmp_path, alone, _problem("single_label")[0].labels, {})}
    assert not (tmp_path / "difference.png").exists()
