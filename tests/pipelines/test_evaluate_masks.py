"""An evaluation of masks scores every arm, source, class and floor in Dice, and draws what was found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from domains.publish import write_text
from domains.store import open_prepared
from pipelines import evaluate
from pipelines.commands.compare import compare
from pipelines.evaluate import EvaluateRun
from pipelines.scoring import answers, mask_pictures, metrics
from pipelines.scoring.evaluation_record import load
from pipelines.settings import build
from pipelines.training.batches import Source
from pipelines.training.true_masks import true_mask
from tests.fabricate import DOMAINS
from tests.pipelines.mask_data import TASK, prepare_masks

pytestmark = pytest.mark.usefixtures("no_tracking")

SEEDS = (0, 1)
FLOORS = [{"kind": "pixels", "pixels": 900, "scales": [3, 7]}, {"kind": "prior"}]


class Stand(torch.nn.Module):
    """Stands for a model that was tuned, by the folder where it would lie."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.seed, self.arm = int(folder.name[-1]), folder.parent.name


def drawn(model: Stand, source: Source, row: int, device: torch.device) -> np.ndarray:
    """The truth, with more of its pixels changed by `scratch` than by `pretrained`."""
    truth = true_mask(source.prepared, "discs", row)
    chance = np.random.default_rng([row, model.seed])
    wrong = chance.random(truth.shape) < (0.3 if model.arm == "scratch" else 0.1)
    return np.eye(3)[np.where(wrong, chance.integers(0, 3, truth.shape), truth % 255)].transpose(-1, *range(truth.ndim))


def project(root: Path, kind: str, patch: pytest.MonkeyPatch, count: int = 120) -> None:
    """Prepared data, and a finetune run of two arms and two seeds that `drawn` answers for."""
    prepared = open_prepared(prepare_masks(root / "data/prepared" / kind, kind, count, 12 if kind == "ct" else 24))
    record = {"task": TASK, "temperature": 1.0, "pool_groups": [], "provenance": {"data_digest": prepared.digest}}
    for module in (evaluate, mask_pictures):
        patch.setattr(module, "load_tuned", lambda at: (Stand(at), prepared.contract, record))
    patch.setattr(evaluate, "read_record", lambda at: record)
    patch.setattr(answers, "segment", drawn)
    chosen = {arm: {"val_loss": loss, "val_loss_by_seed": {"0": loss, "1": loss + 1}}
              for arm, loss in (("scratch", 0.9), ("pretrained", 0.4))}
    (root / "artifacts/finetune" / kind).mkdir(parents=True)
    write_text(root / "artifacts/finetune" / kind / "summary.json", json.dumps({
        "domain": DOMAINS[kind], "data": kind, "task": "discs", "arms": list(chosen), "seeds": list(SEEDS),
        "chosen": chosen}))


def asked(kind: str, **changes: Any) -> EvaluateRun:
    return build(EvaluateRun, {"domain": DOMAINS[kind], "finetune": kind, "resamples": 200, "register": False,
                               "floors": FLOORS, **changes}, "evaluate.run")


@pytest.fixture
def evaluated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    project(tmp_path, "xray", monkeypatch)
    evaluate.run("discs", asked("xray"), tmp_path)
    return tmp_path


def test_arms_classes_sources_and_floors_are_told_in_dice(evaluated: Path) -> None:
    one = load(evaluated / "reports/evaluate/discs/metrics.json")
    assert (one.kind, one.headline, one.outputs) == ("segmentation", "dice", ("disc", "rim"))
    ours, theirs = (one.arms[arm].metrics["dice"].value for arm in ("pretrained", "scratch"))
    assert ours is not None and theirs is not None and ours > theirs + 0.05
    difference = one.paired["pretrained"]["dice"]
    assert difference.value == pytest.approx(ours - theirs) and difference.low is not None and difference.low > 0
    by_class = [one.arms["pretrained"].per_output[name].value for name in ("disc", "rim")]
    assert np.mean([value for value in by_class if value is not None]) == pytest.approx(ours)
    assert set(one.arms["scratch"].per_source) == {"a", "b"} and set(one.floors) == {"pixels", "prior"}
    pixels, prior = (one.floors[name].metrics["dice"].value for name in ("pixels", "prior"))
    assert pixels is not None and prior is not None and pixels > 0.6 > prior > 0.1
    said = (evaluated / "reports/evaluate/discs/summary.txt").read_text()
    assert "pretraining helped: Dice" in said and "false alarms" in said
    assert "Dice is told of the samples that hold a class: disc in" in said
    assert "Dice" in compare([], evaluated)


def test_counts_of_every_row_and_class_read_back_to_the_same_scores(evaluated: Path) -> None:
    table = pq.read_table(evaluated / "artifacts/evaluate/discs/predictions.parquet").to_pylist()
    part = [line for line in table if (line["arm"], line["seed"]) == ("pretrained", 1)]
    labels, counts = (np.array([line[name] for line in part]) for name in ("label", "counts"))
    dice = metrics.values("segmentation", labels, counts)["dice"]
    one = load(evaluated / "reports/evaluate/discs/metrics.json")
    assert dice == pytest.approx(one.arms["pretrained"].per_seed["dice"]["1"])
    prepared = open_prepared(evaluated / "data/prepared/xray")
    truth = true_mask(prepared, "discs", prepared.column("key").index(part[0]["key"]))
    assert counts[0, 0] + counts[0, 2] == (truth == 1).sum() and counts[0, 3] + counts[0, 5] == (truth == 2).sum()


@pytest.mark.parametrize("kind", ["ct", "multispectral", "points"])
def test_samples_of_every_kind_are_drawn_with_their_outlines(kind: str, tmp_path: Path,
                                                             monkeypatch: pytest.MonkeyPatch) -> None:
    project(tmp_path, kind, monkeypatch, 60)
    evaluate.run("discs", asked(kind, floors=[]), tmp_path)
    for name in ("masks.png", "samples.png", "arms.png", "difference.png"):
        assert Image.open(tmp_path / "reports/evaluate/discs" / name).size[0] > 400
    colours = set(map(tuple, np.asarray(Image.open(tmp_path / "reports/evaluate/discs/masks.png")
                                        .convert("RGB")).reshape(-1, 3).tolist()))
    assert (255, 122, 0) in colours and (0, 194, 255) in colours, "each class has an outline of its own colour"


def test_the_sheet_shows_the_worst_the_middle_and_the_best_and_an_alarm_where_nothing_is() -> None:
    told = np.array([[10.0 * i, 0, 100 - 10 * i] for i in range(11)] + [[0.0, 3, 0], [0.0, 7, 0]])
    found = mask_pictures.choose(np.ones((13, 1), np.float32), told)
    assert [(one.at, one.why) for one in found] == [
        (0, "worst"), (1, "worst"), (4, "middle"), (5, "middle"), (9, "best"), (10, "best"), (12, "nothing there")]


def test_a_floor_that_means_nothing_is_refused_before_any_model_is_asked(tmp_path: Path,
                                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    project(tmp_path, "xray", monkeypatch, 60)
    monkeypatch.setattr(evaluate, "predict_arm", lambda *args: pytest.fail("asked"))
    with pytest.raises(ValueError, match="found intensity for a segmentation task, expected pixels, points or prior"):
        evaluate.run("discs", asked("xray", floors=[{"kind": "intensity"}]), tmp_path)
