"""Losses and gradients that are not finite: the update is left out, everywhere alike, and nothing else changes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from models.encoder.chance import Chance
from pipelines.training import training_module
from pipelines.training.bad_steps import NotFinite
from pipelines.training.batches import Batch, TrainingBatches
from pipelines.training.training import Job, fit
from pipelines.weights.checkpoints import state_hash
from tests.fabricate import Killed, killing, prepare, spoilt, untrained

STEPS = 24


def job_of(folder: Path, spoil: Sequence[int] = (), kind: str = "xray", steps: int = STEPS, **plan: Any) -> Job:
    settings, model, source = untrained(folder, kind, steps, {"accelerator": "cpu", "save_every_seconds": 0})
    losses = spoilt(lambda batch, chance: model(batch.x, batch.known, chance), spoil)
    return Job(model=model, losses=losses, source=source, augment=None, machine=settings.machine, seed=5, num_blocks=2,
               optimisation=dataclasses.replace(settings.optimisation, **plan))


def ids_of(job: Job, step: int) -> list[int]:
    return TrainingBatches(job.source, job.seed, job.optimisation.batch_size, STEPS).batch(step, 0).ids.tolist()


def test_an_update_that_is_not_finite_changes_nothing_and_its_samples_are_named(tmp_path):
    folder = prepare(tmp_path / "data")
    row = ids_of(job_of(folder), 0)[0]
    spoilt_job = job_of(folder, [row])
    seen: list[tuple[int, dict[str, float]]] = []
    fit(dataclasses.replace(spoilt_job, log=lambda step, numbers: seen.append((step, numbers))))
    hit = [step for step in range(STEPS) if row in ids_of(spoilt_job, step)]
    assert [one.step for one in spoilt_job.skips] == hit and 1 < len(hit) < STEPS
    assert all(one.rows == tuple(ids_of(spoilt_job, one.step)) and one.what == "loss" for one in spoilt_job.skips)
    assert [(step, numbers["skipped_steps"]) for step, numbers in seen if "skipped_steps" in numbers] == [
        (step + 1, n + 1) for n, step in enumerate(hit)]
    assert all(torch.isfinite(torch.tensor(numbers["loss"])) for _, numbers in seen if "loss" in numbers)
    only_bad = job_of(folder, spoilt_job.source.rows.tolist(), steps=3, roll_back_after=9)
    first = state_hash(only_bad.model)
    with pytest.raises(NotFinite, match="in all 3 updates, so nothing was learnt"):
        fit(only_bad)
    assert state_hash(only_bad.model) == first and len(only_bad.skips) == 3


def test_a_gradient_that_is_not_finite_is_found_under_a_finite_loss(tmp_path):
    job = job_of(prepare(tmp_path / "data"))
    calls = iter(range(STEPS))

    def losses(batch: Batch, chance: Chance) -> dict[str, torch.Tensor]:
        weight = next(job.model.parameters())
        nothing = (0 * weight.sum()).abs().sqrt() if next(calls) == 7 else 0  # 0, whose slope is infinite
        return {name: value + nothing for name, value in job.model(batch.x, batch.known, chance).items()}

    fit(dataclasses.replace(job, losses=losses))
    assert [(one.step, one.what) for one in job.skips] == [(7, "gradient")]
    assert all(torch.isfinite(weight).all() for weight in job.model.parameters())


def test_running_statistics_are_not_spoilt_by_a_batch_that_is_not_finite(tmp_path):
    folder = prepare(tmp_path / "data", "points")
    job = job_of(folder, kind="points")
    row = ids_of(job, 3)[0]
    real = job.source.fetch
    values = {int(r): real(int(r), None) for r in job.source.rows}
    values[row] = values[row] * float("nan")
    object.__setattr__(job.source, "fetch", lambda r, draws: values[r])
    fit(job)
    assert job.skips and all(row in one.rows and one.not_finite == (row,) for one in job.skips)
    buffers = dict(job.model.named_buffers())
    assert any("running_mean" in name for name in buffers), "this tokenizer keeps batch statistics"
    assert all(torch.isfinite(buffer.float()).all() for buffer in buffers.values())


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_run_that_stops_and_goes_on_skips_and_goes_back_like_one_that_did_not(tmp_path, accumulate):
    folder = prepare(tmp_path / "data")
    rows = ids_of(job_of(folder), 5)[:2]

    def job(**changes: Any) -> Job:
        made = job_of(folder, rows, roll_back_after=2, max_roll_backs=99, keep_good_every=3)
        return dataclasses.replace(made, machine=dataclasses.replace(made.machine, accumulate=accumulate), **changes)

    whole = job()
    fit(whole)
    assert any(one.back_to > 0 for one in whole.skips), "the test is about roll-backs too"
    for stop in (4, 10, 16):
        file = tmp_path / f"{stop}.pt"
        with pytest.raises(Killed):
            fit(job(resume=file, every=1, watch=killing(stop + 1)))
        assert torch.load(file, weights_only=True)["step"] == stop
        resumed = job(resume=file)
        fit(resumed)
        assert state_hash(resumed.model) == state_hash(whole.model) and resumed.skips == whole.skips, stop


def test_bad_updates_in_a_row_lead_back_to_a_good_state(tmp_path):
    folder = prepare(tmp_path / "data")
    job = job_of(folder, roll_back_after=3, keep_good_every=4)
    at: dict[int, str] = {}

    def losses(batch: Batch, chance: Chance) -> dict[str, torch.Tensor]:
        step = len(at)
        at[step] = state_hash(job.model)
        factor = torch.nan if 9 <= step < 12 else 1.0
        return {name: value * factor for name, value in job.model(batch.x, batch.known, chance).items()}

    fit(dataclasses.replace(job, losses=losses))
    assert at[9] == at[10] == at[11] != at[8], "the first ones are only left out"
    assert at[12] == at[8], "then back to the state after step 8, which had a good step since"
    assert [one.back_to for one in job.skips] == [-1, -1, 8] and at[13] != at[12]


def test_a_state_whose_first_update_is_bad_is_none_to_go_back_to(tmp_path):
    job = job_of(prepare(tmp_path / "data"), roll_back_after=3, keep_good_every=4)
    at: list[str] = []

    def losses(batch: Batch, chance: Chance) -> dict[str, torch.Tensor]:
        at.append(state_hash(job.model))
        factor = torch.nan if 8 < len(at) <= 11 else 1.0  # from the first update on the weights that step 8 has left
        return {name: value * factor for name, value in job.model(batch.x, batch.known, chance).items()}

    fit(dataclasses.replace(job, losses=losses))
    assert [one.back_to for one in job.skips] == [-1, -1, 4]
    assert at[11] == at[4] != at[8]


def test_a_training_that_never_recovers_stops_with_its_own_exit_code_and_keeps_the_last_good_state(tmp_path):
    folder = prepare(tmp_path / "data")
    begins = ids_of(job_of(folder), 3)
    job = dataclasses.replace(job_of(folder, roll_back_after=4, max_roll_backs=2, steps=200),
                              resume=tmp_path / "resume.pt")
    count = iter(range(1000))

    def losses(batch: Batch, chance: Chance) -> dict[str, torch.Tensor]:
        factor = torch.nan if next(count) >= 5 else 1.0
        return {name: value * factor for name, value in job.model(batch.x, batch.known, chance).items()}

    with pytest.raises(NotFinite, match=r"in 4 updates in a row.*going back to a good state 2 times.*Lower") as stopped:
        fit(dataclasses.replace(job, losses=losses))
    assert stopped.value.exit_code == 5 and len(job.skips) == 12 and begins
    left = torch.load(tmp_path / "resume.pt", weights_only=True)
    assert left["step"] > 0 and all(torch.isfinite(value.float()).all() for value in left["model"].values())


def test_reading_the_verdict_a_step_late_changes_nothing(tmp_path, monkeypatch):
    folder = prepare(tmp_path / "data")
    rows = ids_of(job_of(folder), 5)[:1]
    late, at_once = (job_of(folder, rows, keep_good_every=3) for _ in range(2))
    fit(at_once)
    monkeypatch.setattr(training_module, "can_skip_on_device", lambda optimizer: True)
    fit(late)
    assert state_hash(late.model) == state_hash(at_once.model) and late.skips == at_once.skips != []
