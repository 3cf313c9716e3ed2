"""What a verdict says of every kind of task beside scores made by hand: numbers whose error is to be low, findings of
which some are unknown, masks as counts, scores that are all alike."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from domains.sample import Task
from pipelines.scoring.uncertainty import spread
from pipelines.settings import build
from pipelines.training.finetune_settings import FinetuneRun
from pipelines.verdict import VerdictRun
from pipelines.verdicts import verdict_answer
from pipelines.verdicts.cells import Cell, Told
from pipelines.verdicts.verdict_answer import answer_of, joined
from pipelines.verdicts.verdict_report import Answer

ROWS, GROUPS = 80, 40
TASKS = {"regression": Task("regression", ("size", "age")), "multi_label": Task("multi_label", ("p", "q")),
         "segmentation": Task("segmentation", (), ("background", "disc"))}
RUN = FinetuneRun(domain="medical", data="d", task="t", start="artifacts/pretrain/p")
NOISE = {"scratch": 1.0, "pretrained full": 0.3}


def problem(kind: str) -> tuple[np.ndarray, dict[tuple[str, float, int], np.ndarray]]:
    """Labels, some unknown, and what each way says with each budget and seed; pretrained is nearer to the truth."""
    rng = np.random.default_rng(0)
    labels = (np.ones((ROWS, 1)) if kind == "segmentation" else rng.integers(0, 2, (ROWS, 2)).astype(float)
              if kind == "multi_label" else rng.normal(5, 2, (ROWS, 2)))
    labels[::7, 0] = np.nan
    size = np.where(np.arange(ROWS) % 5, rng.integers(20, 40, ROWS), 0)
    told = {}
    for way, noise in NOISE.items():
        for budget in (0.5, 1.0):
            for seed in (0, 1, 2):
                error = noise * (1.5 - budget / 2) * rng.normal(size=(ROWS, 2))
                if kind == "segmentation":
                    missed = np.minimum(size, np.abs(error[:, 0] * 10).astype(int))
                    told[way, budget, seed] = np.stack([size - missed, np.abs(error[:, 1] * 10).astype(int), missed], 1)
                elif kind == "multi_label":
                    told[way, budget, seed] = 1 / (1 + np.exp(-(2 * np.nan_to_num(labels) - 1 + 2 * error)))
                else:
                    told[way, budget, seed] = np.nan_to_num(labels) + error
    return labels, told


def by_hand(kind: str, labels: np.ndarray, predicted: np.ndarray) -> float:
    known = ~np.isnan(labels)
    if kind == "regression":
        return float(np.mean([np.abs(predicted[known[:, k], k] - labels[known[:, k], k]).mean() for k in (0, 1)]))
    if kind == "multi_label":
        return float(np.mean([roc_auc_score(labels[known[:, k], k], predicted[known[:, k], k]) for k in (0, 1)]))
    hit, wrong, missed = predicted[known[:, 0]].T
    held = hit + missed > 0
    return float((2 * hit[held] / (2 * hit + wrong + missed)[held]).mean())


def answered(kind: str, labels: np.ndarray, told: dict[tuple[str, float, int], np.ndarray],
             losses: dict[tuple[str, float], float] | None = None) -> Answer:
    columns = {"group": [f"g{row % GROUPS}" for row in range(ROWS)]}
    known = np.flatnonzero(~np.isnan(labels).all(axis=1))
    prepared: Any = SimpleNamespace(contract=SimpleNamespace(tasks={"t": TASKS[kind]}, kind="xray"),
                                    rows=lambda **which: known, labels=lambda task: labels, column=columns.__getitem__)
    cells = {}
    for (way, budget, seed), predicted in told.items():
        arm, _, adaptation = way.partition(" ")
        loss = NOISE[way] if losses is None else losses[way, budget]
        numbers = {"val_loss": loss, "learning_rate": 1e-3, "steps": 3, "seconds": 1.0, "trained": 1,
                   "weights": 1, "groups": round(20 * budget)}
        cells[Cell(arm, adaptation or "full", budget, seed, RUN)] = Told(predicted[known], numbers)
    settings = build(VerdictRun, {"domain": "medical", "data": "d", "task": "t", "budgets": [0.5, 1.0],
                                  "resamples": 200, "arms": {"pretrained": "artifacts/pretrain/p"}}, "verdict.v")
    starts: Any = {"pretrained": SimpleNamespace(record={})}
    return answer_of("v", settings, prepared, cells, Path("nowhere"), starts)


@pytest.mark.parametrize("kind", list(TASKS))
def test_a_gain_is_the_mean_difference_of_scores_made_by_hand_and_above_zero_where_it_is_better(kind: str) -> None:
    labels, told = problem(kind)
    answer = answered(kind, labels, told)
    mean = {way: np.mean([by_hand(kind, labels, one) for (own, _, _), one in told.items() if own == way])
            for way in NOISE}
    sign = -1 if kind == "regression" else 1
    gain = answer.gains["pretrained full"]
    assert gain.value == pytest.approx(sign * (mean["pretrained full"] - mean["scratch"])) and gain.value > 0
    assert gain.verdict == "helped" and "better by +" in answer.sentence("pretrained full")
    for (way, budget), at in {(way, budget): i for way in NOISE for i, budget in enumerate((0.5, 1.0))}.items():
        scores = [by_hand(kind, labels, one) for (own, share, _), one in told.items() if (own, share) == (way, budget)]
        assert answer.ways[way].scores[at].value == pytest.approx(np.mean(scores))


@pytest.mark.parametrize("best", list(NOISE))
def test_the_recipe_is_what_validation_rows_prefer_with_all_labels_whatever_test_rows_say(best: str) -> None:
    labels, told = problem("multi_label")
    losses = {(way, budget): 0.1 if (way == best) == (budget == 1.0) else 0.2 for way in NOISE for budget in (0.5, 1.0)}
    assert answered("multi_label", labels, told, losses).recipe[0] == best


@pytest.mark.parametrize("kind", list(TASKS))
def test_the_recipe_is_ahead_of_a_floor_by_the_difference_of_scores_made_by_hand(
        kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    labels, told = problem(kind)
    known = np.flatnonzero(~np.isnan(labels).all(axis=1))
    simple = told["scratch", 0.5, 0]
    monkeypatch.setattr(verdict_answer, "_floors", lambda *asked: {
        "thumbnail": verdict_answer.Said(simple[known][None], np.zeros((1, len(known)), np.int64))})
    answer = answered(kind, labels, told)
    best = np.mean([by_hand(kind, labels, told["pretrained full", 1.0, seed]) for seed in (0, 1, 2)])
    sign = -1 if kind == "regression" else 1
    assert answer.recipe[0] == "pretrained full"
    assert answer.ahead["thumbnail"].value == pytest.approx(sign * (best - by_hand(kind, labels, simple)))
    assert answer.ahead["thumbnail"].value > 0


@pytest.mark.parametrize("kind", list(TASKS))
def test_ways_that_say_the_same_are_no_difference(kind: str) -> None:
    labels, told = problem(kind)
    alike = {(way, budget, seed): told["scratch", budget, seed] for way, budget, seed in told}
    gain = answered(kind, labels, alike).gains["pretrained full"]
    assert (gain.value, gain.low, gain.high) == (0, 0, 0) and gain.verdict == "no difference"


@pytest.mark.parametrize(("kind", "headline", "said"), [
    ("multi_label", "auroc", "any gain would"), ("regression", "mae", "a gain under 1.800 would"),
    ("multi_label", "dice", "any gain would"), ("multi_label", "hausdorff95", "a gain under 1.800 would")])
def test_no_gain_is_named_that_a_score_below_one_cannot_have(kind: str, headline: str, said: str) -> None:
    labels, told = problem(kind)
    alike = {(way, budget, seed): told["scratch", budget, seed] for way, budget, seed in told}
    answer = answered(kind, labels, alike)
    wide = dataclasses.replace(answer.gains["pretrained full"], low=-1.5, high=1.5, detectable=1.8)
    asked = dataclasses.replace(answer, headline=headline, gains={"pretrained full": wide})
    assert said in asked.sentence("pretrained full")


def test_an_outcome_that_no_tested_row_has_is_not_estimable_and_not_no_difference() -> None:
    labels, told = problem("multi_label")
    labels[~np.isnan(labels)] = 1
    answer = answered("multi_label", labels, told)
    assert answer.gains["pretrained full"].verdict == "not estimable"
    assert answer.sentence("pretrained full").endswith("the test rows lack an outcome.")
    assert not any(key.startswith("pretrained full.gain.") for key in answer.flat())


def test_with_folds_each_models_scores_are_set_against_its_own_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model of every second fold says a little more of every row, which makes no ordering of its own rows worse."""
    rows, folds = np.arange(ROWS), 2
    monkeypatch.setattr(verdict_answer, "tested_rows", lambda cell, prepared: rows[cell.fold::folds])
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 2, (ROWS, 2)).astype(float)
    tested = verdict_answer.Tested(rows, labels, [f"g{row % GROUPS}" for row in rows])
    settings: Any = SimpleNamespace(seeds=(0, 1))
    own, honest = {}, []
    for seed in settings.seeds:
        said = np.clip(labels + rng.normal(size=labels.shape), -1, 2) / 6 + 0.2
        honest.append(np.mean([[roc_auc_score(labels[k::2, j], said[k::2, j]) for j in (0, 1)] for k in (0, 1)]))
        for fold in range(folds):
            own[Cell("scratch", "full", 1.0, seed, RUN, folds, fold)] = Told(said[fold::folds] + 0.5 * fold, {})
    one = joined(own, settings, None, tested)  # type: ignore[arg-type]
    found = spread("multi_label", labels, one.predicted, tested.groups, 20, models=one.models).metrics["auroc"][:, 0]
    pooled = spread("multi_label", labels, one.predicted, tested.groups, 20).metrics["auroc"][:, 0]
    assert np.allclose(found, honest, atol=0.02) and (found > pooled + 0.1).all()
