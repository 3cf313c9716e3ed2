"""What a cell of a verdict learns from, chooses by and is tested on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from domains.store import Prepared, open_prepared
from pipelines import finetune
from pipelines.settings import build
from pipelines.training.finetune_settings import FinetuneRun
from pipelines.verdicts import cells
from pipelines.verdicts.cells import Cell, compute, rows_of
from tests.fabricate import prepare, pretrain_settings

pytestmark = pytest.mark.usefixtures("no_tracking")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return open_prepared(prepare(tmp_path_factory.mktemp("data") / "xray", count=144))


def cell(budget: float = 1.0, folds: int = 0, fold: int = 0, seed: int = 0, **changes: Any) -> Cell:
    like = pretrain_settings("xray")
    run = build(FinetuneRun, {
        "domain": "medical", "data": "xray", "task": "bright", "arms": ["scratch"], "encoder": like["encoder"],
        "machine": like["machine"], "validations": 1, "patience": 0, "grid": [1e-3],
        "optimisation": {"steps": 3, "batch_size": 8, "betas": [0.9, 0.999]}, **changes}, "finetune.test")
    return Cell("scratch", "full", budget, seed, replace(run, label_share=budget, label_seed=seed, seeds=(seed,)),
                folds, fold)


def groups_of(prepared: Prepared, rows: np.ndarray) -> set[str]:
    column = prepared.column("group")
    return {str(column[row]) for row in rows}


@pytest.mark.parametrize("seed", [0, 1])
def test_a_fold_is_tested_on_what_it_neither_learns_from_nor_chooses_by_and_no_group_is_cut(prepared, seed):
    labelled = prepared.rows(split=["train", "val", "test"], task="bright")
    tested: list[int] = []
    for fold in range(4):
        one = cell(folds=4, fold=fold, seed=seed)
        parts = rows_of(one, prepared)
        assert sorted(np.concatenate(parts).tolist()) == labelled.tolist(), "each row has one part"
        owners = [groups_of(prepared, part) for part in parts]
        assert all(owners) and not owners[0] & owners[1] and not owners[0] & owners[2] and not owners[1] & owners[2]
        assert np.array_equal(cells.tested_rows(one, prepared), parts.test)
        tested += parts.test.tolist()
    assert sorted(tested) == labelled.tolist(), "over all folds every row is tested once"


@pytest.mark.parametrize("folds", [0, 4])
def test_a_smaller_budget_is_a_part_of_a_larger_one_in_whole_groups_and_leaves_the_other_rows_alone(prepared, folds):
    whole = rows_of(cell(folds=folds, fold=1), prepared)
    everything, labels, larger = groups_of(prepared, whole.train), prepared.labels("bright")[:, 0], None
    for budget in (0.6, 0.3, 0.1, 0.01):
        rows = rows_of(cell(budget, folds, 1), prepared)
        owners = groups_of(prepared, rows.train)
        assert len(owners) == max(1, round(budget * len(everything)))
        assert rows.train.tolist() == [row for row in whole.train if groups_of(prepared, [row]) <= owners]
        assert larger is None or owners < larger
        assert len(owners) < 3 or set(labels[rows.train]) == {0.0, 1.0}
        assert np.array_equal(rows.val, whole.val) and np.array_equal(rows.test, whole.test)
        larger = owners
    assert groups_of(prepared, rows_of(cell(0.3, folds, 1, seed=1), prepared).train) != groups_of(
        prepared, rows_of(cell(0.3, folds, 1), prepared).train) or folds


def test_the_learning_rate_of_a_cell_is_that_of_the_least_validation_loss(prepared, tmp_path, monkeypatch):
    found, real = [], finetune.trial
    monkeypatch.setattr(finetune, "trial", lambda one: found.append(real(one)) or found[-1])
    one = cell(grid=[1e-5, 3e-3, 1e-4])
    told = compute(one, tmp_path / "cell", prepared, finetune.resolve_start(one.run, prepared.contract, tmp_path))
    best = min(found, key=lambda trial: trial.val_loss)
    assert len({trial.val_loss for trial in found}) == 3 and best is not found[0]
    assert (told.numbers["learning_rate"], told.numbers["val_loss"]) == (best.learning_rate, best.val_loss)
    assert told.numbers["steps"] == 9, "what was tried is part of the cost"


def test_before_the_first_training_the_time_of_all_cells_is_told_once(prepared, tmp_path, capsys):
    longer = {"optimisation": {"steps": 6, "batch_size": 8, "betas": [0.9, 0.999]}}
    some = [cell(protocol="linear", head={"kind": "sample", "batch_norm": True}), cell(),
            cell(seed=1, grid=[1e-3, 2e-3]), cell(seed=2, **longer)]
    start = finetune.resolve_start(some[0].run, prepared.contract, tmp_path)
    cells.compute_all(some, {one: tmp_path / str(number) for number, one in enumerate(some)}, prepared,
                      lambda one: start, "test")
    said = capsys.readouterr().out
    assert "4 cells are trained now; the time below is of all their steps" in said
    assert said.count("about") == 1 and "finetune scratch: 5 trainings of 3 steps" in said


def test_a_training_smooths_its_labels_as_its_settings_say(prepared, tmp_path):
    sharp, smooth = cell(), cell(label_smoothing=0.8)
    start = finetune.resolve_start(sharp.run, prepared.contract, tmp_path)
    said = [compute(one, tmp_path / f"{one.run.label_smoothing}", prepared, start).predicted for one in (sharp, smooth)]
    assert abs(said[1] - said[0]).max() > 1e-6
