"""The stage `domain_adaptation` on masks: labels of the target are not read, the rebuilder is gone in the end, a killed
run ends with the same weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from domains.store import open_prepared
from pipelines import domain_adaptation
from pipelines.domain_adaptation import Adapting, DomainAdaptationRun
from pipelines.prediction.segmenting import segment
from pipelines.pretrain import PretrainRun
from pipelines.pretrain import run as pretrain
from pipelines.settings import SettingsError, build
from pipelines.training.batches import Source, domain_code
from pipelines.weights.tuned_checkpoints import load_tuned
from tests.fabricate import pretrain_settings
from tests.pipelines.deaths import MEASURED, dies_at
from tests.pipelines.mask_data import prepare_masks

METHOD: dict[str, Any] = {"kind": "masked_representation", "threshold": 0.4, "width": 16, "depth": 1, "num_heads": 2}


def asked(**changes: Any) -> DomainAdaptationRun:
    return build(DomainAdaptationRun, {
        "domain": "medical", "data": "discs", "labelled": "discs", "task": "discs", "start": "artifacts/pretrain/discs",
        "method": METHOD, "seeds": [0], "head": {"kind": "segment", "width": 8}, "labelled_sources": ["a"],
        "target_sources": ["b"], "machine": {"accelerator": "cpu", "save_every_seconds": 0},
        "optimisation": {"steps": 8, "batch_size": 8, "learning_rate": 1e-3, "betas": [0.9, 0.999], "log_every": 2},
        **changes}, "domain_adaptation.test")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("project")
    prepare_masks(root / "data/prepared/discs", count=72)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LACUNA_TRACKING", "off")
        pretrain("discs", build(PretrainRun, pretrain_settings("xray", 10, data="discs"), "pretrain.test"), root)
    return root


@pytest.fixture(autouse=True)
def _no_tracking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LACUNA_TRACKING", "off")


def test_the_rebuilder_is_gone_in_the_end_and_nothing_is_said_differently_without_it(project, monkeypatch):
    trained = []
    real = Adapting.result.fget
    monkeypatch.setattr(Adapting, "result", property(lambda self: trained.append(self) or real(self)))
    domain_adaptation.run("both", asked(), project)
    summary = json.loads((project / "artifacts/domain_adaptation/both/summary.json").read_text())
    weights = {arm: summary["chosen"][arm]["weights"] for arm in ("source_only", "adapted")}
    assert weights["source_only"] == weights["adapted"], "one model, whatever it was trained beside"
    names = set()
    for file in (project / "artifacts/domain_adaptation/both/adapted/seed0").rglob("*.safetensors"):
        with safe_open(file, "pt") as stored:
            names |= set(stored.keys())
    assert names and not [name for name in names if "rebuild" in name or "mask_token" in name or "teacher" in name]
    model, contract, _ = load_tuned(project / "artifacts/domain_adaptation/both/adapted/seed0")
    adapted = next(one for one in trained if one.beside is not None)
    assert any("rebuilder" in name for name in adapted.state_dict())
    prepared = open_prepared(project / "data/prepared/discs")
    source = Source(prepared, contract, domain_code("medical"), np.arange(2))
    device = torch.device("cpu")
    still = real(adapted).to(device).eval()
    assert np.array_equal(segment(model, source, 0, device), segment(still, source, 0, device))


def test_a_run_that_dies_ends_with_the_weights_of_one_that_did_not(project):
    run = asked(arms=["adapted"])
    domain_adaptation.run("whole", run, project)
    with dies_at(MEASURED + 6, domain_adaptation, "views_of_target"):
        domain_adaptation.run("died", run, project)
    domain_adaptation.run("died", run, project)
    assert json.loads((project / "reports/domain_adaptation/died/metrics.json").read_text())["resumed"]
    first, other = (load_tuned(project / f"artifacts/domain_adaptation/{name}/adapted/seed0")[0].state_dict()
                    for name in ("whole", "died"))
    assert all(torch.equal(first[key], other[key]) for key in first)


def test_masks_of_the_target_are_not_read(project, tmp_path):
    """The same samples with other masks in the target give the same weights."""
    prepared = project / "data/prepared/discs"
    domain_adaptation.run("as_it_is", asked(arms=["adapted"]), project)
    shards = sorted(prepared.glob("mask-*.npy"))
    before = {file: file.read_bytes() for file in shards}
    opened = open_prepared(prepared)
    try:
        rows = np.intersect1d(opened.rows(source=["b"]), opened.rows(task="discs"))
        for row in rows:
            mask = opened.mask(int(row))
            assert mask is not None
            place = before[shards[0]].find(mask.tobytes())
            assert place > 0
            changed = bytearray(shards[0].read_bytes())
            changed[place:place + mask.size] = bytes(mask.size)
            shards[0].write_bytes(bytes(changed))
        domain_adaptation.run("other_masks", asked(arms=["adapted"], machine={
            "accelerator": "cpu", "save_every_seconds": 0, "check_reads": False}), project)
    finally:
        for file, content in before.items():
            file.write_bytes(content)
    first, other = (load_tuned(project / f"artifacts/domain_adaptation/{name}/adapted/seed0")[0].state_dict()
                    for name in ("as_it_is", "other_masks"))
    assert all(torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize(("changes", "said"), [
    ({"head": {"kind": "sample"}}, "found masked_representation with head sample"),
    ({"method": {"kind": "averaged_teacher"}}, "found averaged_teacher with head segment"),
    ({"method": {**METHOD, "ratio": 0}}, "expected a share in")])
def test_settings_that_mean_nothing_are_refused(changes, said):
    with pytest.raises(SettingsError, match=said):
        asked(**changes)
