"""The stage `domain_adaptation` on two sources made in place: what the target shows without labels is learnt from, its
labels are not, and what comes out is scored like any tuned model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from domains.contract import ContractMismatch
from domains.store import open_prepared
from models.encoder.chance import chance_of
from pipelines import domain_adaptation, evaluate
from pipelines.domain_adaptation import DomainAdaptationRun
from pipelines.evaluate import EvaluateRun, Leak
from pipelines.pretrain import PretrainRun
from pipelines.pretrain import run as pretrain
from pipelines.settings import SettingsError, build
from pipelines.training.batches import Source, domain_code
from pipelines.training.pool import group_hashes
from pipelines.training.two_domains import two_domains, views_of_target
from pipelines.weights.checkpoints import read_record
from pipelines.weights.starts import resolve
from pipelines.weights.tuned_checkpoints import load_tuned, predict
from tests.fabricate import prepare as prepare_other
from tests.fabricate import pretrain_settings
from tests.pipelines.deaths import MEASURED, dies_at
from tests.two_sources import prepare

ADVERSARY: dict[str, Any] = {"kind": "domain_adversarial"}
TEACHER: dict[str, Any] = {"kind": "averaged_teacher", "threshold": 0.7, "momentum": 0.9}


def paragraph(**changes: Any) -> dict[str, Any]:
    """A run of seconds, as params.yaml would have it."""
    both = {"labelled_sources": ["a"], "target_sources": ["b"]} if "labelled" not in changes else {}
    plan = {"steps": 6, "batch_size": 8, "learning_rate": 1e-3, "betas": [0.9, 0.999], "log_every": 2}
    return {"domain": "medical", "data": "films", "labelled": "films", "task": "bright",
            "start": "artifacts/pretrain/films", "method": ADVERSARY, "seeds": [0], "optimisation": plan, **both,
            "machine": {"accelerator": "cpu", "save_every_seconds": 0}, **changes}


def asked(**changes: Any) -> DomainAdaptationRun:
    return build(DomainAdaptationRun, paragraph(**changes), "domain_adaptation.test")


def long(steps: int) -> dict[str, Any]:
    return {"steps": steps, "batch_size": 32, "learning_rate": 1e-3, "betas": [0.9, 0.999]}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("project")
    prepare(root / "data/prepared/films")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LACUNA_TRACKING", "off")
        pretrain("films", build(PretrainRun, pretrain_settings("xray", 20, data="films"), "pretrain.test"), root)
    return root


@pytest.fixture(autouse=True)
def _no_tracking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LACUNA_TRACKING", "off")


def accuracy(root: Path, run: str, arm: str, source: str, data: str = "films") -> float:
    """On test rows of one source."""
    prepared = open_prepared(root / "data/prepared" / data)
    rows = np.intersect1d(prepared.rows(split="test"), prepared.rows(source=[source]))
    model, contract, _ = load_tuned(root / f"artifacts/domain_adaptation/{run}/{arm}/seed0")
    told = predict(model, Source(prepared, contract, domain_code("medical"), rows)).argmax(1)
    return float((told == prepared.labels("bright")[rows, 0]).mean())


def weights(root: Path, run: str, arm: str) -> str:
    return str(read_record(root / f"artifacts/domain_adaptation/{run}/{arm}/seed0")["weights_sha256"])


def test_an_adversary_makes_the_encoder_leave_a_shortcut_that_the_target_does_not_have(project):
    domain_adaptation.run("adversary", asked(optimisation=long(150)), project)
    assert accuracy(project, "adversary", "source_only", "a") > 0.95, "the marker tells the classes of the source"
    before, after = (accuracy(project, "adversary", arm, "b") for arm in ("source_only", "adapted"))
    assert before < 0.7 and after > before + 0.15


@pytest.mark.slow
def test_what_an_averaged_teacher_is_sure_of_teaches_a_sign_that_only_the_target_has(project):
    prepare(project / "data/prepared/halves", "second sign", count=800)
    run = asked(data="halves", labelled="halves", labelled_sources=["a"], target_sources=["b"],
                method={"kind": "averaged_teacher", "threshold": 0.9, "momentum": 0.97, "begins": 0.3},
                augment={"crop_scale": [0.2, 0.7]}, optimisation={**long(200), "learning_rate": 2e-3})
    domain_adaptation.run("teacher", run, project)
    assert accuracy(project, "teacher", "source_only", "a", "halves") > 0.9
    before, after = (accuracy(project, "teacher", arm, "b", "halves") for arm in ("source_only", "adapted"))
    assert before < 0.85 and after > before + 0.1


@pytest.mark.parametrize("method", [ADVERSARY, TEACHER], ids=["adversary", "teacher"])
def test_labels_of_the_target_are_not_read(project, method):
    prepare(project / "data/prepared/turned", turned=True)
    for data in ("films", "turned"):
        domain_adaptation.run(f"{data}_labels", asked(
            data=data, labelled=data, labelled_sources=["a"], target_sources=["b"],
            method={**method, "begins": 0.0} if method is TEACHER else method), project)
    for arm in ("source_only", "adapted"):
        first, other = (load_tuned(project / f"artifacts/domain_adaptation/{data}_labels/{arm}/seed0")[0].state_dict()
                        for data in ("films", "turned"))
        assert all(torch.equal(first[name], other[name]) for name in first)


def test_the_arms_differ_in_the_method_alone(project):
    domain_adaptation.run("one", asked(), project)
    domain_adaptation.run("two", asked(method=TEACHER), project)
    assert weights(project, "one", "source_only") == weights(project, "two", "source_only")
    assert len({weights(project, "one", arm) for arm in ("source_only", "adapted")}) == 2
    assert not list((project / ".work/domain_adaptation").iterdir())


@pytest.mark.parametrize("method", [ADVERSARY, TEACHER], ids=["adversary", "teacher"])
def test_a_run_that_dies_ends_with_the_weights_of_one_that_did_not(project, method):
    name = str(method["kind"])
    run = asked(method=method, arms=["adapted"], optimisation={**long(8), "batch_size": 8, "log_every": 2})
    domain_adaptation.run(f"whole_{name}", run, project)
    with dies_at(MEASURED + 6, domain_adaptation, "views_of_target"):
        domain_adaptation.run(f"died_{name}", run, project)
    domain_adaptation.run(f"died_{name}", run, project)
    assert json.loads((project / f"reports/domain_adaptation/died_{name}/metrics.json").read_text())["resumed"]
    first, other = (load_tuned(project / f"artifacts/domain_adaptation/{run}_{name}/adapted/seed0")[0].state_dict()
                    for run in ("whole", "died"))
    assert all(torch.equal(first[key], other[key]) for key in first)


def test_evaluate_scores_the_arms_by_source_and_registers_the_adapted_one(project):
    domain_adaptation.run("scored", asked(seeds=[0, 1]), project)
    scoring = {"domain": "medical", "finetune": "scored", "tuned_by": "domain_adaptation", "resamples": 100}
    evaluate.run("scored", build(EvaluateRun, scoring, "evaluate.scored"), project)
    told = json.loads((project / "reports/evaluate/scored/metrics.json").read_text())
    assert set(told["arms"]) == {"source_only", "adapted"} and told["baseline"] == "source_only"
    assert set(told["arms"]["adapted"]["per_source"]) == {"a", "b"}
    assert "adapted" in (project / "reports/evaluate/scored/summary.txt").read_text()
    summary = json.loads((project / "artifacts/domain_adaptation/scored/summary.json").read_text())
    assert evaluate.best_by_validation(summary)[0] == "adapted", "validation rows of the source cannot choose"


def test_groups_of_the_target_count_as_seen_and_are_not_tested_on(project):
    domain_adaptation.run("leaky", asked(), project)
    prepared = open_prepared(project / "data/prepared/films")
    pool = set(read_record(project / "artifacts/domain_adaptation/leaky/adapted/seed0")["pool_groups"])
    seen = np.intersect1d(prepared.rows(split="train"), prepared.rows(source=["b"]))
    assert set(group_hashes(prepared, seen)) <= pool
    assert not pool & set(group_hashes(prepared, prepared.rows(split="test")))
    for path in (project / "artifacts/domain_adaptation/leaky").glob("*/seed0/checkpoint.json"):
        record = json.loads(path.read_text())
        record["pool_groups"] += group_hashes(prepared, prepared.rows(split="test")[:1])
        path.write_text(json.dumps(record))
    scoring = {"domain": "medical", "finetune": "leaky", "tuned_by": "domain_adaptation", "resamples": 100}
    with pytest.raises(Leak, match="found 1 of .* test groups"):
        evaluate.run("leaky", build(EvaluateRun, scoring, "evaluate.leaky"), project)


def test_a_method_that_keeps_the_model_from_learning_the_labels_is_told_of():
    told = domain_adaptation.outweighed({"source_only": 0.45, "adapted": 0.69})
    assert "0.690 adapted, against 0.450" in told and "Lower its `weight`" in told
    assert not domain_adaptation.outweighed({"source_only": 0.45, "adapted": 0.5})
    assert not domain_adaptation.outweighed({"adapted": 0.69})


def test_two_data_runs_that_fit_one_contract_are_two_domains(project):
    prepare(project / "data/prepared/only_a", sources=("a",), count=160)
    prepare(project / "data/prepared/only_b", sources=("b",), count=160)
    domain_adaptation.run("apart", asked(data="only_b", labelled="only_a"), project)
    record = read_record(project / "artifacts/domain_adaptation/apart/adapted/seed0")
    origin = record["provenance"]
    assert origin["data_digest"] == open_prepared(project / "data/prepared/only_b").digest
    assert origin["labelled_digest"] == open_prepared(project / "data/prepared/only_a").digest
    for data in ("only_a", "only_b"):
        prepared = open_prepared(project / "data/prepared" / data)
        assert set(group_hashes(prepared, prepared.rows(split="train"))) <= set(record["pool_groups"])


def test_target_samples_of_a_batch_are_drawn_by_its_own_chance_from_the_target_alone(project):
    prepared = open_prepared(project / "data/prepared/films")
    start = resolve("artifacts/pretrain/films", None, prepared.contract, project)
    data, said = two_domains(prepared, prepared, start, "medical", "bright", ("films", "films"), (("a",), ("b",)))
    assert not said
    column = prepared.column("source")
    assert {column[row] for row in (*data.train.rows, *data.val.rows)} == {"a"}
    assert {column[row] for row in data.target.rows} == {"b"}
    ids = torch.arange(400)

    def drawn(step: int) -> torch.Tensor:
        return views_of_target(data, None, None, chance_of(0, step, 0, ids, 0 * ids), torch.device("cpu"))[0][0]

    assert torch.equal(drawn(1), drawn(1)) and not torch.equal(drawn(1), drawn(2))
    all_of_them = data.target.normalise(data.target.read(data.target.rows, None)[0])[0].flatten(1)
    apart = torch.cdist(drawn(1).flatten(1), all_of_them)
    assert apart.min(1).values.max() < 1e-3, "none but samples of the target"
    assert len(apart.argmin(1).unique()) > 0.8 * len(all_of_them), "and all of them in turn"


@pytest.mark.parametrize(("changes", "said"), [
    ({"start": "scratch"}, "start: found scratch, expected a checkpoint folder"),
    ({"target_sources": ["a"]}, "labelled_sources and target_sources: found"),
    ({"target_sources": []}, "labelled_sources and target_sources: found"),
    ({"method": {"kind": "further"}}, "expected one of domain_adversarial, averaged_teacher"),
    ({"seeds": []}, "seeds and arms need")], ids=["scratch", "same source", "no source", "method", "seeds"])
def test_settings_that_mean_nothing_are_refused(changes, said):
    with pytest.raises(SettingsError, match=said):
        asked(**changes)


def test_domains_that_do_not_fit_one_contract_are_refused(project):
    prepare_other(project / "data/prepared/ct", "ct")
    with pytest.raises(ContractMismatch, match="kind of data: found medical/ct"):
        domain_adaptation.run("foreign", asked(data="ct", labelled="films"), project)


@pytest.mark.parametrize(("changes", "said"), [
    ({"task": "dark"}, "task: found dark, expected one of bright"),
    ({"labelled_sources": ["c"]}, "labelled_sources: found no labelled"),
    ({"target_sources": ["c"]}, "pool of films: found no sample .* sources c .* others under `target_sources`")],
    ids=["task", "labelled", "target"])
def test_rows_that_are_not_there_are_missed_in_a_sentence(project, changes, said):
    with pytest.raises(ValueError, match=said):
        domain_adaptation.run("nothing", asked(**changes), project)
