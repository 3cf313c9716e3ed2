"""Point-CMAE as a run of `pretrain`: settings, training, picture, and an encoder that loads alone."""

import torch

from domains.store import open_prepared
from models.objectives.objective import build_objective
from models.objectives.point_cmae import PointCMAE
from pipelines.pretrain import PretrainRun
from pipelines.settings import build, plain
from pipelines.training.batches import Source, domain_code
from pipelines.training.reconstruction import reconstruction_rows
from pipelines.training.training import Job, fit
from pipelines.weights import checkpoints
from pipelines.weights.starts import resolve
from tests.fabricate import prepare, pretrain_settings


def test_a_run_trains_draws_and_saves_it(tmp_path):
    raw = pretrain_settings("points", steps=24)
    raw["encoder"] |= {"class_token": False, "embed_hidden": True}
    raw["encoder"]["tokenizer"] = {**raw["encoder"]["tokenizer"], "sampling": "pointnet2", "widths": [8, 16, 16]}
    raw["objective"] = {"kind": "point_cmae", "masking": {"kind": "random", "ratio": 0.6, "round_hidden": "down"},
                        "decoder": {"width": 24, "depth": 1, "num_heads": 2, "project": False}}
    settings = build(PretrainRun, raw, "pretrain.points")
    data = open_prepared(prepare(tmp_path / "prepared", "points"))
    start = resolve(settings.start, settings.encoder, data.contract, tmp_path)
    encoder, contract = start.build(), start.contract
    objective = build_objective(settings.objective, encoder)
    assert isinstance(objective, PointCMAE)
    source, curve = Source(data, contract, domain_code(settings.domain), data.pool()), []
    fit(Job(model=objective, losses=lambda batch, chance: objective(batch.x, batch.known, chance), source=source,
            augment=None, optimisation=settings.optimisation, machine=settings.machine, seed=0, num_blocks=2,
            log=lambda step, numbers: curve.append(numbers)))
    assert curve[-1]["loss"] < curve[0]["loss"] and {"reconstruction", "agreement"} <= set(curve[0])
    rows = reconstruction_rows(objective, source, source.rows[:2], 0, torch.device("cpu"))
    assert len(rows) == 2 and all(len(pictures) == 3 and pictures[2].std() > 0 for pictures in rows)
    checkpoints.save(tmp_path / "out", dict(objective.named_children()), contract, {
        "kind": "pretrained", "encoder": plain(settings.encoder), "num_channels": 3})
    loaded = checkpoints.load_encoder(tmp_path / "out").encoder
    assert checkpoints.state_hash(loaded) == checkpoints.state_hash(objective.encoder)
