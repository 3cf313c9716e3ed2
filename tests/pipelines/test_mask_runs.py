"""Masks go all the way: models that were tuned on them are evaluated, weighed in a verdict and tested under damage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from domains.store import open_prepared
from pipelines import evaluate, finetune, pretrain, shift, verdict
from pipelines.evaluate import EvaluateRun
from pipelines.finetune import FinetuneRun
from pipelines.prediction.segmenting import segment
from pipelines.pretrain import PretrainRun
from pipelines.scoring import overlap, surfaces
from pipelines.scoring.evaluation_record import load
from pipelines.settings import build
from pipelines.shift import ShiftRun
from pipelines.training.batches import Source, domain_code
from pipelines.training.true_masks import true_mask
from pipelines.verdict import VerdictRun
from pipelines.weights.tuned_checkpoints import load_tuned
from tests.fabricate import pretrain_settings
from tests.pipelines.mask_data import prepare_masks

pytestmark = pytest.mark.usefixtures("no_tracking")

TUNING = {"grid": [5e-3], "validations": 1, "patience": 0, "head": {"kind": "segment", "width": 8},
          "machine": {"accelerator": "cpu", "save_every_seconds": 0},
          "optimisation": {"steps": 30, "batch_size": 8, "betas": [0.9, 0.999]}}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Films with discs, an encoder pretrained on them, and models of both arms."""
    root = tmp_path_factory.mktemp("project")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LACUNA_TRACKING", "off")
        prepare_masks(root / "data/prepared/xray", "xray", 144, 16)
        pretrain.run("xray", build(PretrainRun, pretrain_settings("xray", 4), "pretrain.test"), root)
        finetune.run("discs", build(FinetuneRun, {
            "domain": "medical", "data": "xray", "task": "discs", "start": "artifacts/pretrain/xray",
            "seeds": [0, 1], **TUNING}, "finetune.test"), root)
    return root


def test_what_evaluate_says_of_a_model_is_what_its_masks_give(project: Path) -> None:
    settings = build(EvaluateRun, {"domain": "medical", "finetune": "discs", "resamples": 200}, "evaluate.test")
    evaluate.run("discs", settings, project)
    one = load(project / "reports/evaluate/discs/metrics.json")
    prepared = open_prepared(project / "data/prepared/xray")
    rows = prepared.rows(split="test", task="discs")
    for arm in ("scratch", "pretrained"):
        model, contract, _ = load_tuned(project / f"artifacts/finetune/discs/{arm}/seed1")
        source = Source(prepared, contract, domain_code("medical"), rows)
        dice: list[list[float]] = [[], []]
        for row in rows:
            truth = true_mask(prepared, "discs", int(row))
            called = segment(model, source, int(row), torch.device("cpu")).argmax(0)
            for k in (1, 2):
                a, b = (truth == k)[truth < 255], (called == k)[truth < 255]
                if a.any():
                    dice[k - 1].append(2 * (a & b).sum() / (a.sum() + b.sum()))
        assert one.arms[arm].per_seed["dice"]["1"] == pytest.approx(np.mean([np.mean(each) for each in dice]))
        assert one.arms[arm].temperature == {"0": 1.0, "1": 1.0}
        far = np.array([surfaces.distances(
            true_mask(prepared, "discs", int(row)), segment(model, source, int(row), torch.device("cpu")).argmax(0), 2)
            for row in rows])
        for at, name in enumerate(surfaces.NAMES):
            assert one.arms[arm].per_seed[name]["1"] == pytest.approx(np.nanmean(far[:, at::2], 0).mean())
            told = one.arms[arm].metrics[name]
            assert told.low < told.value < told.high
        lines = pq.read_table(project / "artifacts/evaluate/discs/predictions.parquet").to_pylist()
        mine = [line["distances"] for line in lines if (line["arm"], line["seed"]) == (arm, 1)]
        np.testing.assert_allclose(np.array(mine), far)
    assert set(surfaces.NAMES) <= set(one.paired["pretrained"]) and "in pixels of the prepared grid" in str(one.notes)
    assert (project / "reports/evaluate/discs/masks.png").is_file()


def asked(**changes: Any) -> VerdictRun:
    return build(VerdictRun, {"domain": "medical", "data": "xray", "task": "discs", "resamples": 200, "tuning": TUNING,
                              "arms": {"pretrained": "artifacts/pretrain/xray"}, "seeds": [0, 1],
                              "budgets": [0.25, 1.0], "floors": [{"kind": "prior"}], **changes}, "verdict.test")


def test_a_verdict_on_masks_is_told_in_dice_and_goes_on_where_it_was_killed(project: Path,
                                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[str] = []
    real = finetune.trial

    def dies(one: finetune.Planned) -> finetune.Trial:
        if len(trained) == 5:
            raise KeyboardInterrupt
        trained.append(one.name)
        return real(one)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(finetune, "trial", dies)
        verdict.run("discs", asked(), project)
    monkeypatch.setattr(finetune, "trial", lambda one: trained.append(one.name) or real(one))
    said = verdict.run("discs", asked(), project)
    assert len(trained) == 2 * 2 * 2, "two ways, two budgets, two seeds, each trained once"
    assert "Dice" in str(said) and "AUROC" not in str(said)
    cells = sorted((project / "artifacts/verdict/discs").glob("*.npy"))
    counts = np.stack([np.load(path) for path in cells])
    prepared = open_prepared(project / "data/prepared/xray")
    rows = prepared.rows(split="test", task="discs")
    assert counts.shape == (8, len(rows), 6) and (counts == np.round(counts)).all()
    held = counts[:, :, 0::3] + counts[:, :, 2::3]
    assert (held == held[:1]).all(), "what the truth holds is the same for every cell"
    text = (project / "reports/verdict/discs/report.html").read_text()
    assert "Dice" in text and "AUROC" not in text
    flat = json.loads((project / "reports/verdict/discs/metrics.json").read_text())
    assert any(key.endswith("groups.dice") for key in flat) and "floor.prior.dice" in flat


def test_damage_that_turns_a_sample_turns_what_it_is_compared_with(project: Path) -> None:
    """With truth for prediction nothing is lost under any damage, a quarter turn included."""
    settings = build(ShiftRun, {"domain": "medical", "data": "xray", "task": "discs", "source": "a", "resamples": 200,
                                "models": {"before": "artifacts/finetune/discs"},
                                "corruptions": {"rotation": [90], "noise": [30]}}, "shift.test")
    unseen, _ = shift.rows_by_source(evaluate.unseen_rows(project / "data/prepared/xray", "discs"), settings)
    kinds = shift.corruptions_of(settings, unseen.prepared.contract)
    for name in ("rotation", "noise"):
        view = shift.View("a", shift.Damage(name, kinds[name].strengths[0]))
        moved = shift.truth_of(view, unseen, kinds)
        assert moved is not None
        for row in unseen.rows[:4]:
            before, after = true_mask(unseen.prepared, "discs", int(row)), moved(int(row))
            assert np.array_equal(before, after) == (name == "noise")
            dice = overlap.counts(after, after % 255, 2)
            assert dice[1::3].sum() == dice[2::3].sum() == 0
            assert dice[::3].sum() == pytest.approx(((before > 0) & (before < 255)).sum(), abs=2)


def test_ways_of_adapting_at_prediction_are_refused_for_masks(project: Path) -> None:
    settings = build(ShiftRun, {"domain": "medical", "data": "xray", "task": "discs", "source": "a",
                                "models": {"before": "artifacts/finetune/discs"}, "test_time": [{"kind": "norm"}]}, "s")
    with pytest.raises(ValueError, match="found norm for the segmentation task discs"):
        shift.run("discs", settings, project)
