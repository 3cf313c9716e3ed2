"""What a fine-tuning learns from, chooses by and leaves alone; one run, looked at from several sides."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from domains.store import Prepared, open_prepared
from models.heads.task_loss import TaskLoss
from pipelines import finetune
from pipelines.scoring.temperature import fit_temperature
from pipelines.settings import build
from pipelines.training.batches import Source, domain_code
from pipelines.training.finetune_settings import FinetuneRun
from pipelines.weights.tuned_checkpoints import load_tuned, predict
from tests.fabricate import prepare, pretrain_settings

LABELS = Prepared.labels
RATES, SEEDS = (3e-2, 1e-3), (0, 1)


class Ran(NamedTuple):
    root: Path
    prepared: Prepared
    learnt: set[int]
    """Rows that were read with a crop that was drawn, as training reads them."""
    read: set[int]
    """All that were read."""


def mistaken(self: Prepared, task: str) -> np.ndarray:
    """Labels of which a quarter are wrong: without mistakes there is neither a temperature nor too long a training."""
    labels = LABELS(self, task).copy()
    wrong = np.random.default_rng(0).random(len(labels)) < 0.25
    labels[wrong] = 1 - labels[wrong]
    return labels


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ran]:
    root = tmp_path_factory.mktemp("project")
    prepared = open_prepared(prepare(root / "data/prepared/xray", count=240))
    learnt, read, fetch = set(), set(), Source.fetch

    def noted(self: Source, row: int, draws: np.ndarray | None) -> np.ndarray:
        read.add(row)
        learnt.update([row] if draws is not None else [])
        return fetch(self, row, draws)

    like = pretrain_settings("xray")
    run = build(FinetuneRun, {
        "domain": "medical", "data": "xray", "task": "bright", "encoder": like["encoder"], "seeds": list(SEEDS),
        "arms": ["scratch"], "grid": list(RATES), "validations": 6, "patience": 0, "machine": like["machine"],
        "optimisation": {"steps": 24, "batch_size": 16, "log_every": 4, "betas": [0.9, 0.999]}}, "finetune.test")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LACUNA_TRACKING", "off")
        patch.setattr(Source, "fetch", noted)
        patch.setattr(Prepared, "labels", mistaken)
        finetune.run("one", run, root)
        patch.setattr(Source, "fetch", fetch)
        yield Ran(root, prepared, learnt, read)


def source_of(ran: Ran, split: str) -> Source:
    return Source(ran.prepared, ran.prepared.contract, domain_code("medical"),
                  ran.prepared.rows(split=split, task="bright"), ran.prepared.labels("bright"))


def curve(ran: Ran, seed: int, rate: float) -> list[float]:
    """Validation losses of a training, in order."""
    lines = map(json.loads, (ran.root / "reports/finetune/one/metrics.jsonl").read_text().splitlines())
    key = f"scratch.seed{seed}.lr{rate:g}.val_loss"
    return [line[key] for line in lines if key in line]


def chosen_of(ran: Ran) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((ran.root / "artifacts/finetune/one/summary.json").read_text())
    return dict(summary["chosen"]["scratch"])


def test_training_rows_are_learnt_from_validation_rows_looked_at_and_test_rows_not_read(ran: Ran) -> None:
    train, val = (set(ran.prepared.rows(split=split, task="bright").tolist()) for split in ("train", "val"))
    assert ran.learnt == train
    assert ran.read == train | val


def test_the_weights_with_the_least_validation_loss_are_kept(ran: Ran) -> None:
    rate = chosen_of(ran)["learning_rate"]
    for seed in SEEDS:
        losses = curve(ran, seed, rate)
        model, _, record = load_tuned(ran.root / f"artifacts/finetune/one/scratch/seed{seed}")
        val = source_of(ran, "val")
        loss = torch.nn.functional.cross_entropy(torch.from_numpy(predict(model, val)).double(), torch.from_numpy(
            ran.prepared.labels("bright")[val.rows, 0]).long(), model.loss.weight.double(), reduction="none").mean()
        assert isinstance(model.loss, TaskLoss)
        assert float(loss) == pytest.approx(min(losses), rel=1e-4)
        assert record["provenance"]["val_loss"] == pytest.approx(min(losses), rel=1e-4)
    assert any(min(curve(ran, seed, rate)) < curve(ran, seed, rate)[-1] for seed in SEEDS for rate in RATES)


def test_the_learning_rate_is_that_of_the_least_mean_validation_loss(ran: Ran) -> None:
    mean = {rate: np.mean([min(curve(ran, seed, rate)) for seed in SEEDS]) for rate in RATES}
    assert chosen_of(ran)["learning_rate"] == min(mean, key=lambda rate: mean[rate])
    assert abs(mean[RATES[0]] - mean[RATES[1]]) > 0.01, "the choice is no matter of rounding"


def test_the_temperature_is_fitted_on_validation_rows(ran: Ran) -> None:
    for seed in SEEDS:
        model, _, record = load_tuned(ran.root / f"artifacts/finetune/one/scratch/seed{seed}")
        fitted = {}
        for split in ("train", "val", "test"):
            source = source_of(ran, split)
            labels = ran.prepared.labels("bright")[source.rows]
            fitted[split] = fit_temperature(predict(model, source), labels, "single_label").value
        assert record["temperature"] == pytest.approx(fitted["val"], rel=1e-3)
        assert record["temperature_fit"]["num_rows"] == len(source_of(ran, "val").rows) >= 20
        assert all(abs(fitted[split] - record["temperature"]) > 0.01 for split in ("train", "test"))
