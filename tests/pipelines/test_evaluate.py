"""Evaluation scores unseen rows only, says what it found in files that read back, and refuses what was seen before."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score

from domains.contract import ContractMismatch
from domains.publish import write_text
from domains.splits import GroupCut
from domains.store import LEAKS, open_prepared
from models.encoder.transformer import Encoder, EncoderSettings
from models.heads.predict_sample import SampleHead
from models.heads.task_loss import TaskLoss
from models.heads.tuned import Tuned, build_head
from pipelines import evaluate
from pipelines.evaluate import EvaluateRun, Leak, StaleCheckpoint
from pipelines.scoring.assessment import repeated_rows
from pipelines.scoring.evaluation_record import load
from pipelines.scoring.floor_features import IntensityFloor
from pipelines.settings import build, plain
from pipelines.training.batches import Source, domain_code
from pipelines.training.probes import fit_linear
from pipelines.weights.tuned_checkpoints import load_tuned, predict, save_tuned
from tests.fabricate import DOMAINS, TOKENIZERS, prepare

pytestmark = pytest.mark.usefixtures("no_tracking")

CPU = torch.device("cpu")
HEAD = SampleHead(batch_norm=True)
SEEDS = (0, 1)


def tune(root: Path, kind: str = "xray", count: int = 120, **record: Any) -> None:
    """Prepared data, and a finetune run of two arms and two seeds: `pretrained` is fitted, `scratch` is left random."""
    prepared = open_prepared(prepare(root / "data/prepared" / kind, kind, count))
    task, labels = prepared.contract.tasks["bright"], prepared.labels("bright")
    code = domain_code(DOMAINS[kind])
    train, val = (Source(prepared, prepared.contract, code, prepared.rows(split=split, task="bright"), labels)
                  for split in ("train", "val"))
    size = {"width": 24, "depth": 1, "num_heads": 2}
    settings = build(EncoderSettings, {"tokenizer": TOKENIZERS[kind], "size": size}, "encoder")
    losses: dict[str, dict[str, float]] = {"scratch": {}, "pretrained": {}}
    for arm, of_seed in losses.items():
        for seed in SEEDS:
            torch.manual_seed(seed)
            encoder = Encoder(settings, len(prepared.contract.channels))
            model = Tuned(encoder, build_head(HEAD, encoder.width, 2), TaskLoss("single_label", 2)).eval()
            if arm == "pretrained":
                fit_linear(model, train, val, CPU)
            of_seed[str(seed)] = float(model.loss(torch.from_numpy(predict(model, val)),
                                                  torch.from_numpy(labels[val.rows])))
            save_tuned(root / "artifacts/finetune" / kind / arm / f"seed{seed}", model, prepared.contract, HEAD, task, {
                "domain": DOMAINS[kind], "temperature": 1.7, "pool_groups": [],
                "provenance": {"data_digest": prepared.digest, "arm": arm, "seed": seed}, **record})
    chosen = {arm: {"val_loss": float(np.mean(list(of_seed.values()))), "val_loss_by_seed": of_seed}
              for arm, of_seed in losses.items()}
    write_text(root / "artifacts/finetune" / kind / "summary.json", json.dumps({
        "domain": DOMAINS[kind], "data": kind, "task": "bright", "arms": list(losses), "seeds": list(SEEDS),
        "chosen": chosen, "cost": {"pretrain_steps": 60, "pretrain_seconds": 7.5, "finetune_steps": {"scratch": 5,
                                                                                                  "pretrained": 5},
                                   "finetune_seconds": {"scratch": 1.0, "pretrained": 1.0}}}))


def settings_of(kind: str = "xray", **changes: Any) -> EvaluateRun:
    return build(EvaluateRun, {"domain": DOMAINS[kind], "finetune": kind, "resamples": 200, **changes}, "evaluate.run")


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project in which everything has run, on enough groups for intervals."""
    root = tmp_path_factory.mktemp("project")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LACUNA_TRACKING", "off")
        tune(root, count=240)
        evaluate.run("night", settings_of(floors=[plain(IntensityFloor("intensity"))]), root)
    return root


def test_scores_equal_predictions_made_by_hand(evaluated: Path) -> None:
    prepared = open_prepared(evaluated / "data/prepared/xray")
    rows = prepared.rows(split="test", task="bright")
    y = prepared.labels("bright")[rows, 0]
    result = load(evaluated / "reports/evaluate/night/metrics.json")
    for arm in ("scratch", "pretrained"):
        by_hand = []
        for seed in SEEDS:
            model, contract, _ = load_tuned(evaluated / f"artifacts/finetune/xray/{arm}/seed{seed}")
            logits = predict(model, Source(prepared, contract, domain_code("medical"), rows))
            by_hand.append(roc_auc_score(y, logits[:, 1] - logits[:, 0]))
            assert result.arms[arm].per_seed["auroc"][str(seed)] == pytest.approx(by_hand[-1])
        assert result.arms[arm].metrics["auroc"].value == pytest.approx(np.mean(by_hand))
        assert result.arms[arm].seed_std["auroc"] == pytest.approx(np.std(by_hand, ddof=1))


def test_predictions_lie_row_by_row_with_temperature_in_them_and_groups_hashed(evaluated: Path) -> None:
    table = pq.read_table(evaluated / "artifacts/evaluate/night/predictions.parquet").to_pylist()
    prepared = open_prepared(evaluated / "data/prepared/xray")
    rows = prepared.rows(split="test", task="bright")
    assert len(table) == len(rows) * (2 * len(SEEDS) + 1)
    part = [line for line in table if line["arm"] == "pretrained" and line["seed"] == 1]
    keys, groups = prepared.column("key"), prepared.column("group")
    assert [line["key"] for line in part] == [keys[row] for row in rows]
    assert [line["group"] for line in part] == [hashlib.sha256(groups[row].encode()).hexdigest()[:12] for row in rows]
    model, contract, _ = load_tuned(evaluated / "artifacts/finetune/xray/pretrained/seed1")
    logits = torch.from_numpy(predict(model, Source(prepared, contract, domain_code("medical"), rows)))
    np.testing.assert_allclose([line["probabilities"] for line in part], (logits / 1.7).softmax(-1), atol=1e-5)


def test_the_report_holds_arms_sources_floors_differences_cost_and_a_verdict(evaluated: Path) -> None:
    one = load(evaluated / "reports/evaluate/night/metrics.json")
    assert (one.headline, one.baseline, one.kind, one.outputs) == ("auroc", "scratch", "single_label", ("no", "yes"))
    assert one.num_groups == 20 and one.num_rows == 40
    difference = one.paired["pretrained"]["auroc"]
    ours, theirs = (one.arms[arm].metrics["auroc"].value for arm in ("pretrained", "scratch"))
    assert ours is not None and theirs is not None and difference.value == pytest.approx(ours - theirs)
    assert difference.low is not None and difference.low < 0, "two seeds of random weights differ by too much to say"
    assert one.floors["intensity"].metrics["auroc"].value is not None
    assert set(one.floors["intensity"].beaten_by) == {"scratch", "pretrained"}
    assert one.cost.pretrain_steps == 60 and one.arms["scratch"].temperature == {"0": 1.7, "1": 1.7}
    text = (evaluated / "reports/evaluate/night/summary.txt").read_text()
    assert "pretraining helped: AUROC" in text and "cost: pretraining 60 steps (8 s)" in text
    for name in ("arms.png", "difference.png", "roc.png", "reliability.png"):
        assert Image.open(evaluated / "reports/evaluate/night" / name).format == "PNG"
    assert not list((evaluated / "reports/evaluate/night").glob(".*tmp*"))


def test_the_same_run_again_gives_the_same_numbers(evaluated: Path) -> None:
    before = (evaluated / "reports/evaluate/night/metrics.json").read_text()
    evaluate.run("again", settings_of(floors=[plain(IntensityFloor("intensity"))]), evaluated)
    after = (evaluated / "reports/evaluate/again/metrics.json").read_text()
    assert after == before.replace('"night"', '"again"')


def test_a_test_group_in_the_pretraining_pool_is_a_leak(tmp_path: Path) -> None:
    prepared = open_prepared(prepare(tmp_path / "data/prepared/xray", count=48))
    tested = prepared.column("group")[prepared.rows(split="test")[0]]
    tune(tmp_path, count=48, pool_groups=[hashlib.sha256(tested.encode()).hexdigest()[:16], "0" * 16])
    with pytest.raises(Leak, match=r"leak: found 1 of 4 test groups .* expected none. Remedy") as caught:
        evaluate.run("x", settings_of(), tmp_path)
    assert f"({hashlib.sha256(tested.encode()).hexdigest()[:12]})" in str(caught.value)
    assert not (tmp_path / "reports/evaluate/x/metrics.json").exists()


def test_a_group_in_train_and_test_is_refused(tmp_path: Path) -> None:
    tune(tmp_path, count=48)
    index = tmp_path / "data/prepared/xray/index.parquet"
    table = pq.read_table(index)
    groups = table["group"].to_pylist()
    groups[table["split"].to_pylist().index("test")] = groups[table["split"].to_pylist().index("train")]
    pq.write_table(table.set_column(table.schema.get_field_index("group"), "group", [groups]), index)
    with pytest.raises(GroupCut, match="1 groups in more than one of train, val and test"):
        evaluate.run("x", settings_of(), tmp_path)


def test_weights_tuned_on_other_data_are_refused(tmp_path: Path) -> None:
    tune(tmp_path, count=48)
    prepare(tmp_path / "data/prepared/xray", count=48, seed=1)
    with pytest.raises(StaleCheckpoint, match="found weights tuned on data .* Remedy: run `lacuna finetune` again"):
        evaluate.run("x", settings_of(), tmp_path)


def test_weights_for_another_kind_of_data_are_refused(tmp_path: Path) -> None:
    tune(tmp_path, count=48)
    for contract in (tmp_path / "artifacts/finetune/xray").rglob("contract.json"):
        contract.write_text(contract.read_text().replace("grey 0-255", "HU"))
    with pytest.raises(ContractMismatch, match="unit of grey: found grey 0-255, expected HU"):
        evaluate.run("x", settings_of(), tmp_path)


@pytest.mark.parametrize("kind", ["ct", "multispectral", "points"])
def test_every_kind_of_data_is_scored_and_few_groups_get_no_interval(tmp_path: Path, kind: str) -> None:
    tune(tmp_path, kind, count=48)
    shown = evaluate.run("x", settings_of(kind), tmp_path)
    one = load(tmp_path / "reports/evaluate/x/metrics.json")
    assert shown["test groups"] == 4 and one.domain == DOMAINS[kind]
    assert one.paired["pretrained"]["auroc"].low is None
    assert "4 test groups, needs 10" in (tmp_path / "reports/evaluate/x/summary.txt").read_text()
    assert shown["verdict pretrained"].startswith("cannot tell")


def test_a_temperature_that_could_not_be_fitted_is_noted_once_for_its_seeds(tmp_path: Path) -> None:
    tune(tmp_path, count=48, temperature_fit={"note": "12 labelled validation rows, needs 20; T=1"})
    evaluate.run("x", settings_of(), tmp_path)
    assert load(tmp_path / "reports/evaluate/x/metrics.json").notes == (
        "temperature of scratch, seed 0, 1: 12 labelled validation rows, needs 20; T=1",
        "temperature of pretrained, seed 0, 1: 12 labelled validation rows, needs 20; T=1")


def test_repeated_content_is_noted(tmp_path: Path) -> None:
    tune(tmp_path, count=48)
    prepared = open_prepared(tmp_path / "data/prepared/xray")
    keys = prepared.column("key")
    train, test = (keys[prepared.rows(split=split)[0]] for split in ("train", "test"))
    unseen = evaluate.unseen_rows(tmp_path / "data/prepared/xray", "bright")
    assert repeated_rows(unseen) == 0
    write_text(tmp_path / "data/prepared/xray" / LEAKS,
               f"key_a,split_a,key_b,split_b\n{test},test,{train},train\n{train},train,{test},test\n")
    assert repeated_rows(unseen) == 1


def test_the_registered_model_is_chosen_by_validation_loss_and_not_by_its_test_score(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tune(tmp_path, count=48)
    path = tmp_path / "artifacts/finetune/xray/summary.json"
    tuned = json.loads(path.read_text())
    tuned["chosen"] = {"scratch": {"val_loss": 0.1, "val_loss_by_seed": {"0": 0.15, "1": 0.05}},
                       "pretrained": {"val_loss": 0.3, "val_loss_by_seed": {"0": 0.59, "1": 0.01}}}
    path.write_text(json.dumps(tuned))
    registered: list[tuple[Path, str, dict[str, float]]] = []
    monkeypatch.setattr("pipelines.tracking.tracked_run.Run.model",
                        lambda self, folder, name, metrics: registered.append((folder, name, metrics)))
    evaluate.run("x", settings_of(), tmp_path)
    evaluate.run("y", settings_of(register=False), tmp_path)
    [(folder, model, scores)] = registered
    assert (folder.parent.name, folder.name, model) == ("scratch", "seed1", "lacuna-x")
    one = load(tmp_path / "reports/evaluate/x/metrics.json")
    assert scores["accuracy"] == one.arms["scratch"].per_seed["accuracy"]["1"]


def test_wrong_settings_are_refused_in_a_sentence(tmp_path: Path) -> None:
    tune(tmp_path, count=48)
    with pytest.raises(ValueError, match="expected one of auroc, .* for a single_label task"):
        evaluate.run("x", settings_of(headline="mae"), tmp_path)
    with pytest.raises(ValueError, match="found satellite, expected medical"):
        evaluate.run("x", settings_of(domain="satellite"), tmp_path)
    with pytest.raises(ValueError, match="data: found ct, expected xray"):
        evaluate.run("x", settings_of(data="ct"), tmp_path)
    with pytest.raises(FileNotFoundError, match="Run `lacuna finetune other` first"):
        evaluate.run("x", settings_of(finetune="other"), tmp_path)
    with pytest.raises(ValueError, match="expected at least 100"):
        EvaluateRun("medical", "xray", resamples=10)


def test_a_machine_with_the_minimal_libraries_scores_without_pictures(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    tune(tmp_path, count=120)
    missing = {"sklearn", "scipy", "matplotlib", "PIL", "mlflow", "pandas"}
    for name in missing | {name for name in sys.modules if name.partition(".")[0] in missing}:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr("pipelines.report._said", set())
    evaluate.run("x", settings_of(), tmp_path)
    assert load(tmp_path / "reports/evaluate/x/metrics.json").paired["pretrained"]["auroc"].low is not None
    assert not list((tmp_path / "reports/evaluate/x").glob("*.png"))
    assert "no pictures: matplotlib is not installed" in capsys.readouterr().out
    with pytest.raises(ImportError, match=r"pip install 'lacuna\[tracking\]'"):
        evaluate.run("y", settings_of(floors=[{"kind": "intensity"}]), tmp_path)
