"""What the embedded samples promise, with the shipped runs: a task that can be learnt from scratch but not from means
or metadata, and a shift between the two sources that costs something."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from sklearn.metrics import roc_auc_score

from domains.sample import Task
from domains.store import Prepared, open_prepared
from pipelines import finetune, ingest, sample
from pipelines.pretrain import PretrainRun
from pipelines.scoring.floor_features import FloorSettings, ManifestFloor
from pipelines.scoring.floors import floor
from pipelines.settings import build
from pipelines.training.batches import Source, domain_code
from pipelines.training.finetune_settings import FinetuneRun
from pipelines.weights.tuned_checkpoints import load_tuned, predict

ROOT = Path(__file__).resolve().parent.parent
PARAMS: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text())
LABELS = {"path", "mask_path", "group", "split", "source"}
SEEDS = (0, 1)

pytestmark = pytest.mark.slow


@dataclass
class Made:
    """One ingested sample, with a task that has labels of the first source alone."""

    root: Path
    name: str
    tuning: FinetuneRun
    prepared: Prepared
    sources: list[str]

    def train(self, task: str) -> list[Any]:
        """Models of every seed, trained from scratch with the shipped settings."""
        run = dataclasses.replace(self.tuning, task=task, start="scratch", arms=("scratch",), seeds=SEEDS)
        finetune.run(f"{self.name}_{task}", run, self.root)
        return [load_tuned(self.root / f"artifacts/finetune/{self.name}_{task}/scratch/seed{seed}") for seed in SEEDS]

    def auroc(self, models: list[Any], rows: np.ndarray) -> float:
        """Mean over seeds on these rows, by the labels of the shipped task."""
        labels = self.prepared.labels(self.tuning.task)
        scores = []
        for model, contract, record in models:
            logits = predict(model, Source(self.prepared, contract, domain_code(record["domain"]), rows))
            scores.append(roc_auc_score(labels[rows, 0], logits[:, 1] - logits[:, 0]))
        return float(np.mean(scores))


@pytest.fixture(scope="module", params=PARAMS["sample"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    name = request.param
    root = tmp_path_factory.mktemp(name)
    patch = pytest.MonkeyPatch()
    patch.setenv("LACUNA_TRACKING", "off")
    sample.run(name, build(sample.SampleRun, PARAMS["sample"][name], name), root)
    data = build(ingest.DataRun, PARAMS["ingest"][name], name)
    tuning = build(FinetuneRun, PARAMS["finetune"][name], name)
    encoder = build(PretrainRun, PARAMS["pretrain"][name], name).encoder
    with (root / data.files.manifest).open(newline="") as file:
        sources = sorted({row["source"] for row in csv.DictReader(file)})
    task: Task = data.tasks[tuning.task]
    tasks = {**data.tasks, "first_only": dataclasses.replace(task, sources=(sources[0],))}
    ingest.run(name, dataclasses.replace(data, tasks=tasks), root)
    prepared = open_prepared(root / "data/prepared" / name)
    yield Made(root, name, dataclasses.replace(tuning, encoder=encoder), prepared, sources)
    patch.undo()


def test_the_task_can_be_learnt_from_scratch_and_leaves_room(made):
    rows = made.prepared.rows(split="test", task=made.tuning.task)
    assert 0.70 <= made.auroc(made.train(made.tuning.task), rows) <= 0.95


def test_neither_means_nor_metadata_give_the_label_away(made):
    rows = made.prepared.rows(split="test", task=made.tuning.task)
    labels = made.prepared.labels(made.tuning.task)[rows, 0]
    manifest = PARAMS["ingest"][made.name]["files"]["manifest"]
    with (made.root / manifest).open(newline="") as file:
        columns = tuple(column for column in next(csv.reader(file))
                        if column not in LABELS and column not in label_columns(made.name))
    floors: list[FloorSettings] = [ManifestFloor("manifest", manifest, ("source", *columns))]
    if made.prepared.contract.kind != "points":
        means = np.array([np.nanmean(np.where(made.prepared.values(int(row)) == made.prepared.contract.unknown, np.nan,
                                              made.prepared.values(int(row)).astype(float))) for row in rows])
        score = roc_auc_score(labels, means)
        assert max(score, 1 - score) <= 0.60, "mean intensity"
    for one in floors:
        told = floor(made.prepared, made.tuning.task, one, rows, made.root, "auroc", 0).predicted
        assert roc_auc_score(labels, told.reshape(len(rows), -1)[:, -1]) <= 0.60, one.kind


def test_a_model_of_one_source_pays_for_the_other(made):
    models = made.train("first_only")
    first, second = (made.prepared.rows(split="test", source=source, task=made.tuning.task) for source in made.sources)
    assert made.auroc(models, first) - made.auroc(models, second) >= 0.05


def label_columns(name: str) -> set[str]:
    """Every manifest column that is, or follows from, what a task could predict."""
    return {column for task in PARAMS["ingest"][name]["tasks"].values() for column in task["columns"]} | {
        "heart_mm", "diameter_mm"}
