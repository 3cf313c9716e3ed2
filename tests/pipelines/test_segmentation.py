"""Fine-tuning on masks: discs are found, crops and windows fit, a killed run ends with the same weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from domains import contract as contracts
from domains.sample import UNKNOWN_CLASS
from domains.store import open_prepared
from models.heads.tuned import Tuned
from pipelines import finetune
from pipelines.prediction.segmenting import segment, segment_values
from pipelines.settings import SettingsError, build
from pipelines.training.batches import Source, domain_code
from pipelines.training.finetune_settings import FinetuneRun
from pipelines.training.labelled_model import build_model
from pipelines.training.true_masks import true_mask
from pipelines.weights.checkpoints import read_record
from pipelines.weights.tuned_checkpoints import load_tuned
from tests.fabricate import DOMAINS, TOKENIZERS
from tests.pipelines.deaths import dies_at
from tests.pipelines.mask_data import prepare_masks


def tuning(kind: str = "xray", steps: int = 60, **changes: Any) -> FinetuneRun:
    return build(FinetuneRun, {
        "domain": DOMAINS[kind], "data": kind, "task": "discs", "arms": ["scratch"], "seeds": [0], "grid": [3e-3],
        "encoder": {"tokenizer": TOKENIZERS[kind], "size": {"width": 24, "depth": 2, "num_heads": 2}},
        "head": {"kind": "segment", "width": 8}, "validations": 2, "patience": 0,
        "machine": {"accelerator": "cpu", "save_every_seconds": 0},
        "optimisation": {"steps": steps, "batch_size": 8, "betas": [0.9, 0.999], "log_every": 2}, **changes},
        "finetune.test")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("project")
    for kind in ("xray", "ct", "multispectral", "points"):
        prepare_masks(root / "data/prepared" / kind, kind, size=16 if kind == "ct" else 24)
    return root


@pytest.fixture(autouse=True)
def _no_tracking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LACUNA_TRACKING", "off")


def told(root: Path, kind: str, name: str, arm: str = "scratch") -> tuple[Tuned, Source]:
    prepared = open_prepared(root / "data/prepared" / kind)
    model, contract, _ = load_tuned(root / f"artifacts/finetune/{name}/{arm}/seed0")
    return model, Source(prepared, contract, domain_code(DOMAINS[kind]), prepared.rows(split="test", task="discs"))


def overlap(model: Tuned, source: Source) -> float:
    """Share of the pixels of either that truth and prediction of the disc have in common."""
    both = either = 0
    for row in source.rows:
        truth = true_mask(source.prepared, "discs", int(row))
        found = segment(model, source, int(row), torch.device("cpu")).argmax(0)
        known = truth != UNKNOWN_CLASS
        both += int(((truth > 0) & (found > 0) & known).sum())
        either += int((((truth > 0) | (found > 0)) & known).sum())
    return both / either


@pytest.mark.parametrize("kind", ["xray", "ct", "multispectral", "points"])
def test_what_masks_mark_is_found_in_unseen_samples(project, kind):
    summary = finetune.run(kind, tuning(kind, steps=200 if kind == "points" else 60), project)
    assert summary["chosen"]["scratch"]["val_loss"] < (0.8 if kind == "points" else 0.7)
    assert overlap(*told(project, kind, kind)) > 0.6


def test_every_point_of_a_cloud_is_told_once_whatever_a_model_takes_at_a_time(project):
    prepared = open_prepared(project / "data/prepared/points")
    contract = dataclasses.replace(prepared.contract, size=(24,))
    source = Source(prepared, contract, domain_code("pointcloud"), np.arange(1))
    values = np.random.default_rng(0).normal(size=(64, 3)).astype(contract.dtype)

    class Local(nn.Module):
        def forward(self, x: torch.Tensor, known: torch.Tensor | None = None) -> torch.Tensor:
            return torch.stack([x[..., 0].sign(), -x[..., 0].sign()], 1) * 5

    for count in (64, 48, 24, 10):
        found = segment_values(Local(), source, values[:count], torch.device("cpu"))
        assert found.shape == (2, count)
        portions = [values[:count]] if count <= 24 else np.split(values[:count], range(24, count, 24))
        sides = [portion[:, 0] > portion[:, 0].mean() for portion in portions[:1]]   # the centroid is the portion's own
        assert ((found[0] > found[1])[:len(sides[0])] == sides[0]).mean() > 0.9


def test_a_linear_probe_trains_the_head_alone(project):
    run = tuning(protocol="linear", head={"kind": "segment", "design": "linear"}, steps=10)
    finetune.run("linear", run, project)
    finetune.run("whole", dataclasses.replace(run, protocol="full"), project)
    linear, whole = (told(project, "xray", name)[0] for name in ("linear", "whole"))
    contract = open_prepared(project / "data/prepared/xray").contract
    start = finetune.resolve_start(run, contract, project).random()
    fresh = build_model(start, run.head, contract.tasks["discs"], 0)

    def moved(model: Tuned) -> list[bool]:
        pairs = zip(model.encoder.parameters(), fresh.encoder.parameters(), strict=True)
        return [not torch.equal(now, before) for now, before in pairs]

    assert not any(moved(linear)) and not torch.equal(linear.head.output.weight, fresh.head.output.weight)
    assert any(moved(whole))


def test_a_run_that_dies_ends_with_the_same_weights(project):
    run = tuning(steps=12, augment={"crop_scale": [0.5, 1.0], "flip_left_right": 0.5})
    finetune.run("left", run, project)
    with dies_at(12, Tuned, "mistakes"):
        finetune.run("died", run, project)
    finetune.run("died", run, project)
    left, died = (read_record(project / f"artifacts/finetune/{name}/scratch/seed0")["weights_sha256"]
                  for name in ("left", "died"))
    assert left == died


class Local(nn.Module):
    """Says of each pixel what its own value says."""

    def forward(self, x: torch.Tensor, known: torch.Tensor | None = None) -> torch.Tensor:
        return torch.cat([x[:, :1], -x[:, :1], 2 * x[:, :1]], 1)


@pytest.mark.parametrize(("size", "stored"), [((8, 8), (1, 8, 8)), ((8, 8), (1, 21, 9)), ((8, 12, 12), (1, 20, 7, 31))])
def test_windows_cover_a_sample_of_any_size_and_say_of_a_place_what_one_look_says(project, size, stored):
    kind = "ct" if len(size) == 3 else "xray"
    prepared = open_prepared(project / "data/prepared" / kind)
    contract = dataclasses.replace(prepared.contract, size=size)
    source = Source(prepared, contract, domain_code("medical"), np.arange(1))
    values = np.random.default_rng(0).integers(0, 200, stored).astype(contract.dtype)
    whole = dataclasses.replace(contract, size=stored[1:])
    x, known = source.code.dataset.normalise(torch.from_numpy(values[None]), whole)
    expected = Local()(x, known).softmax(1)[0]
    found = segment_values(Local(), source, values, torch.device("cpu"))
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("changes", "said"), [
    ({"head": {"kind": "sample"}}, "found sample for discs, a segmentation task, expected segment"),
    ({"protocol": "knn"}, "knn takes kind: nearest"), ({"around_classes": 1.5}, "expected a share from 0 to 1")])
def test_what_does_not_go_with_masks_is_refused_before_anything_is_trained(project, changes, said):
    with pytest.raises((ValueError, SettingsError), match=said):
        finetune.run("refused", tuning(**changes), project)


def test_a_class_that_was_not_looked_for_is_unknown_in_the_true_mask(tmp_path):
    folder = prepare_masks(tmp_path / "data")
    contract = contracts.load(folder / "contract.json")
    task = dataclasses.replace(contract.tasks["discs"], classes=("background", "rim"), values=(0, 2))
    contracts.save(dataclasses.replace(contract, tasks={"discs": task}), folder / "contract.json")
    prepared = open_prepared(folder)
    row = next(int(row) for row in prepared.rows(split="train") if 1 in prepared.mask(int(row)))
    stored = prepared.mask(row)
    found = true_mask(prepared, "discs", row)
    assert (found[stored == 1] == UNKNOWN_CLASS).all() and (found[stored == 2] == 1).all()
