"""A Swin encoder goes through the stages as a transformer does. Without a kind, a transformer is meant."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from models.encoder.swin import SwinSettings
from models.encoder.transformer import EncoderSettings
from pipelines import finetune, pretrain
from pipelines.pretrain import PretrainRun
from pipelines.settings import SettingsError, build, plain
from pipelines.training.finetune_settings import FinetuneRun
from pipelines.weights import checkpoints
from pipelines.weights.tuned_checkpoints import load_tuned
from tests import fabricate

SWIN = {"kind": "swin", "patch": [2, 2], "feature_size": 4, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2],
        "window": [3, 3]}
TRANSFORMER = {"tokenizer": {"kind": "grid", "patch": [8, 8]}, "size": {"width": 24, "depth": 1, "num_heads": 2}}
TUNE = {"domain": "medical", "data": "xray", "task": "bright"}


def test_pretraining_and_fine_tuning_run_and_leave_checkpoints_that_load(tmp_path: Path, monkeypatch,
                                                                         no_tracking) -> None:
    monkeypatch.setitem(fabricate.SIZES, "xray", (1, 64, 64))
    fabricate.prepare(tmp_path / "data/prepared/xray")
    settings = fabricate.pretrain_settings("xray", steps=2, encoder=SWIN, num_pictures=1,
                                           objective={"kind": "swin_proxy_tasks", "code": 8})
    metrics = pretrain.run("xray", build(PretrainRun, settings, "pretrain.xray"), tmp_path)
    assert {"inpainting", "rotation", "contrastive"} <= set(
        (tmp_path / "reports/pretrain/xray/loss.csv").read_text().splitlines()[0].replace("loss.", "").split(","))
    assert metrics["steps"] == 2 and (tmp_path / "reports/pretrain/xray/reconstruction.png").is_file()
    start = tmp_path / "artifacts/pretrain/xray"
    assert checkpoints.load_encoder(start).encoder.settings == build(SwinSettings, SWIN, "swin")
    tune = build(FinetuneRun, {**TUNE, "start": "artifacts/pretrain/xray", "seeds": [0], "arms": ["pretrained"],
                               "drop_path": 0.1, "optimisation": {"steps": 2, "batch_size": 8, "layer_decay": 0.8},
                               "validations": 1, "machine": {"accelerator": "cpu"}}, "finetune.xray")
    finetune.run("xray", tune, tmp_path)
    model, _, record = load_tuned(tmp_path / "artifacts/finetune/xray/pretrained/seed0")
    assert model.encoder.settings.drop_path == 0.1 and record["encoder"]["kind"] == "swin"


def test_without_a_kind_an_encoder_is_a_transformer(tmp_path: Path) -> None:
    run = build(PretrainRun, {"domain": "medical", "data": "xray", "encoder": TRANSFORMER}, "pretrain.xray")
    tune = build(FinetuneRun, {**TUNE, "encoder": TRANSFORMER}, "finetune.xray")
    assert run.encoder == tune.encoder == build(EncoderSettings, TRANSFORMER, "encoder")
    assert plain(run)["encoder"]["kind"] == "transformer"
    old = {key: value for key, value in plain(run)["encoder"].items() if key != "kind"}
    assert checkpoints.encoder_settings(json.loads(json.dumps(old)), "checkpoint.json: encoder") == run.encoder


def test_a_swin_encoder_without_its_kind_is_asked_for_it() -> None:
    raw = {key: value for key, value in SWIN.items() if key != "kind"}
    with pytest.raises(SettingsError, match=r"finetune\.xray\.encoder\.kind"):
        build(FinetuneRun, {**TUNE, "encoder": raw}, "finetune.xray")


def test_an_encoder_that_drops_nothing_is_refused_under_masked_autoencoding() -> None:
    with pytest.raises(SettingsError, match="takes whole maps"):
        build(PretrainRun, {"domain": "medical", "data": "xray", "encoder": SWIN}, "pretrain.xray")
