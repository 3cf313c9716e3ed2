"""Teachers that average weights: they follow once per update, and a run that stops and goes on ends as one that did
not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from domains.store import open_prepared
from models.encoder.build import build_encoder
from models.objectives.hard_patches import HardPatches
from models.objectives.objective import build_objective
from pipelines import pretrain
from pipelines.pretrain import PretrainRun
from pipelines.settings import build
from pipelines.training.batches import Source, TrainingBatches, domain_code
from pipelines.training.training import Job, fit
from pipelines.weights.checkpoints import state_hash
from tests.fabricate import DOMAINS, Killed, killing, prepare, pretrain_settings, spoilt

DECODER = {"kind": "transformer", "width": 16, "depth": 1, "num_heads": 2}
OBJECTIVES: dict[str, tuple[str, dict[str, Any]]] = {
    "drop_positions": ("xray", {"kind": "drop_positions", "grid": [4, 4], "masking": {"kind": "random", "ratio": 0.5},
                                "width": 16, "depth": 1, "num_heads": 2}),
    "hard_patches": ("xray", {"kind": "hard_patches", "decoder": DECODER, "momentum": 0.8, "last_momentum": 0.9}),
    "hard_patches_points": ("points", {"kind": "hard_patches", "decoder": DECODER, "readout": {"kind": "chamfer"},
                                       "momentum": 0.8, "last_momentum": 0.9})}


def job_of(folder: Path, name: str, **changes: Any) -> Job:
    """A run of eight steps, always with the same first weights."""
    kind, objective = OBJECTIVES[name]
    machine = {"accelerator": "cpu", "save_every_seconds": 0, "accumulate": changes.pop("accumulate", 1)}
    settings = build(PretrainRun, pretrain_settings(kind, 8, objective=objective, machine=machine), "test")
    data = open_prepared(folder)
    torch.manual_seed(0)
    model = build_objective(settings.objective, build_encoder(settings.encoder, len(data.contract.channels)))
    source = Source(data, data.contract, domain_code(DOMAINS[kind]), data.pool())
    return Job(model=model, losses=lambda batch, chance: model(batch.x, batch.known, chance), source=source,
               augment=None, optimisation=settings.optimisation, machine=settings.machine, seed=5, num_blocks=2,
               **{"after_step": model.after_step, **changes})


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_run_that_stops_and_goes_on_ends_with_the_teacher_of_one_that_did_not(tmp_path, name):
    folder = prepare(tmp_path / "data", OBJECTIVES[name][0])
    whole = job_of(folder, name)
    fit(whole)
    killed = job_of(folder, name, resume=tmp_path / "resume.pt", every=1, watch=killing(5))
    with pytest.raises(Killed):
        fit(killed)
    assert torch.load(tmp_path / "resume.pt", weights_only=True)["step"] == 4
    resumed = job_of(folder, name, resume=tmp_path / "resume.pt")
    assert fit(resumed) == 8
    assert state_hash(resumed.model) == state_hash(whole.model)


def test_a_teacher_does_not_follow_an_update_that_was_left_out(tmp_path):
    folder = prepare(tmp_path / "data")
    job = job_of(folder, "hard_patches")
    left_out = TrainingBatches(job.source, job.seed, job.optimisation.batch_size, 8).batch(3, 0).ids.tolist()
    shares: list[float] = []
    job = job_of(folder, "hard_patches", after_step=shares.append)
    fit(replace(job, losses=spoilt(job.losses, left_out)))
    bad = {one.step for one in job.skips}
    assert 3 in bad and len(bad) < 8
    assert shares == [(step + 1) / 8 for step in range(8) if step not in bad]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_it_is_called_once_per_update_with_the_share_that_is_done(tmp_path, accumulate):
    folder = prepare(tmp_path / "data")
    shares: list[float] = []
    fit(job_of(folder, "hard_patches", accumulate=accumulate, after_step=shares.append))
    assert shares == [step / 8 for step in range(1, 9)]


def test_pretraining_calls_it_after_every_update(tmp_path, monkeypatch, no_tracking):
    prepare(tmp_path / "data/prepared/xray")
    shares: list[float] = []
    monkeypatch.setattr(HardPatches, "after_step", lambda self, share: shares.append(share))
    run = pretrain_settings("xray", 4, objective=OBJECTIVES["hard_patches"][1])
    pretrain.run("test", build(PretrainRun, run, "pretrain.test"), tmp_path)
    assert shares == [0.25, 0.5, 0.75, 1.0]
