"""The stage `verdict` on prepared data made in place: cells are kept, leaks are refused, every way is answered for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines import finetune, pretrain, verdict
from pipelines.evaluate import Leak
from pipelines.finetune_settings import FinetuneRun
from pipelines.pretrain import PretrainRun
from pipelines.settings import SettingsError, build
from pipelines.verdict import VerdictRun
from tests.fabricate import pretrain_settings, pretrained

pytestmark = pytest.mark.usefixtures("no_tracking")

LORA = {"adapters": [{"kind": "lora", "rank": 2}], "grid": [1e-2]}


def asked(**changes: Any) -> VerdictRun:
    like = pretrain_settings("xray")
    paragraph = {"domain": "medical", "data": "xray", "task": "bright",
                 "arms": {"pretrained": "artifacts/pretrain/xray"},
                 "tuning": {"grid": [1e-3], "validations": 1, "patience": 0, "machine": like["machine"],
                            "optimisation": {"steps": 3, "batch_size": 8, "betas": [0.9, 0.999]}},
                 "budgets": [0.25, 1.0], "seeds": [0, 1], "resamples": 100, **changes}
    return build(VerdictRun, paragraph, "verdict.xray")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("project")
    pretrained(root, count=144, steps=4)
    return root


def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which ways are trained from here on."""
    ways: list[str] = []
    real = finetune.trial

    def counted(name: str, *args: Any) -> Any:
        ways.append(name)
        return real(name, *args)

    monkeypatch.setattr(finetune, "trial", counted)
    return ways


def test_every_way_is_answered_for_and_cells_are_kept(project, monkeypatch):
    ways = trained(monkeypatch)
    both = asked(adaptations={"full": {}, "lora": LORA}, floors=[{"kind": "intensity"}], longer=2, watts=100.0)
    headlines = verdict.run("xray", both, project)
    assert len(ways) == 2 * 2 * 4  # budgets, seeds; scratch, scratch longer, full, lora
    reports = project / "reports/verdict/xray"
    page = (reports / "report.html").read_text()
    summary = (reports / "summary.txt").read_text()
    for name in ("scratch", "scratch, longer", "pretrained full", "pretrained lora", "floor: intensity"):
        assert name in summary and name in page
    assert "pretraining on your" in headlines["verdict 1"]
    assert (reports / "curves.png").stat().st_size > 10_000 and "data:image/png;base64," in page
    ways.clear()
    assert verdict.run("xray", both, project) == headlines
    assert not ways


def test_one_more_arm_computes_that_arm_alone(project, monkeypatch):
    verdict.run("more", asked(), project)
    other = pretrain_settings("xray", steps=4, seed=9)
    pretrain.run("other", build(PretrainRun, other, "pretrain.test"), project)
    ways = trained(monkeypatch)
    arms = {"pretrained": "artifacts/pretrain/xray", "other": "artifacts/pretrain/other"}
    verdict.run("more", asked(arms=arms), project)
    assert set(ways) == {"other full"} and len(ways) == 4


def test_a_killed_verdict_goes_on_where_it_was(project, monkeypatch):
    real, calls = finetune.trial, []

    def dies(name: str, *args: Any) -> Any:
        calls.append(name)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(name, *args)

    run = asked(tuning={**asked().tuning, "grid": [2e-3]})
    monkeypatch.setattr(finetune, "trial", dies)
    with pytest.raises(KeyboardInterrupt):
        verdict.run("killed", run, project)
    monkeypatch.setattr(finetune, "trial", real)
    ways = trained(monkeypatch)
    verdict.run("killed", run, project)
    assert len(ways) == 8 - 2


def test_shares_of_the_cells_together_are_all(project, monkeypatch):
    run = asked(tuning={**asked().tuning, "grid": [3e-3]})
    counts = [verdict.run("shared", run, project, (i, 3))["cells"] for i in range(3)]
    assert sum(counts) == 8
    ways = trained(monkeypatch)
    verdict.run("shared", run, project)
    assert not ways


def test_an_arm_that_has_seen_a_test_group_is_refused_before_anything_is_trained(project, monkeypatch):
    record = project / "artifacts/pretrain/xray/checkpoint.json"
    before = record.read_text()
    told = json.loads(before)
    from domains.store import open_prepared
    from pipelines.pretrain import group_hashes
    prepared = open_prepared(project / "data/prepared/xray")
    told["pool_groups"] += group_hashes(prepared, prepared.rows(split="test")[:1])
    record.write_text(json.dumps(told))
    ways = trained(monkeypatch)
    try:
        with pytest.raises(Leak, match="found 1 of .* validation and test groups in what arm pretrained"):
            verdict.run("leaky", asked(tuning={**asked().tuning, "grid": [7e-3]}), project)
    finally:
        record.write_text(before)
    assert not ways


def test_the_recipe_is_a_paragraph_that_validates(project):
    verdict.run("recipe", asked(adaptations={"full": {}, "lora": LORA}), project)
    paragraphs = yaml.safe_load((project / "reports/verdict/recipe/recipe.yaml").read_text())
    run = build(FinetuneRun, paragraphs["recipe"], "finetune.recipe")
    assert run.data == "xray" and run.seeds == (0, 1) and run.label_share == 1.0


@pytest.mark.parametrize(("changes", "message"), [
    ({"budgets": [1.0, 0.5]}, "budgets: found"), ({"seeds": [0]}, "seeds: found"),
    ({"arms": {"pretrained": "scratch"}}, "pretrained: found scratch"),
    ({"arms": {"pretrained": "artifacts/pretrain/xray", "mine": "x"}}, r"arms\.mine"),
    ({"longer": 1}, "longer: found 1"),
], ids=["budgets", "seeds", "scratch", "arm", "longer"])
def test_settings_that_mean_nothing_are_refused(changes, message):
    with pytest.raises(SettingsError, match=message):
        asked(**changes)


def test_a_wrong_key_of_an_adaptation_is_refused_by_its_path(project):
    with pytest.raises(SettingsError, match=r"verdict\.x\.adaptations\.lora\.adapterz"):
        verdict.run("x", asked(adaptations={"full": {}, "lora": {"adapterz": []}}), project)
    with pytest.raises(ValueError, match="expected one that does"):
        verdict.run("x", asked(adaptations={"lora": LORA}), project)
