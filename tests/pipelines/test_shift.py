"""The stage `shift` on prepared data made in place: sources side by side, damage, and what is refused."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from domains import contract as contracts
from domains.store import open_prepared, replace_columns
from pipelines import domain_adaptation, finetune, shift
from pipelines.domain_adaptation import DomainAdaptationRun
from pipelines.evaluate import Leak
from pipelines.finetune import FinetuneRun
from pipelines.scoring.assessment import Unseen
from pipelines.scoring.shift_scores import Answers, compare
from pipelines.settings import SettingsError, build
from pipelines.shift import ShiftRun
from tests.fabricate import pretrain_settings, pretrained


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared films of sources a and b, and models that learnt from labels of `a` alone, or of both."""
    root = tmp_path_factory.mktemp("project")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LACUNA_TRACKING", "off")
        pretrained(root, count=288, steps=4)
        of_one_source(root / "data/prepared/xray")
        for name, task in (("one", "bright_a"), ("both", "bright")):
            finetune.run(name, build(FinetuneRun, tuning(task), name), root)
    return root


def of_one_source(folder: Path) -> None:
    """Add the task `bright_a`: the labels of source a. Sources change every six groups, so that splits hold both."""
    prepared = open_prepared(folder)
    task = prepared.contract.tasks["bright"]
    tasks = {"bright": task, "bright_a": dataclasses.replace(task, sources=("a",))}
    contract = dataclasses.replace(prepared.contract, tasks=tasks)
    groups = [int(group[1:]) for group in prepared.column("group")]
    sources = ["a" if group // 6 % 2 else "b" for group in groups]
    labels = np.where(np.array(sources)[:, None] == "a", prepared.labels("bright"), np.nan).astype(np.float32)
    table = pq.read_table(folder / "index.parquet")
    table = table.append_column("y.bright_a", table["y.bright"])
    pq.write_table(table, folder / "index.parquet")
    replace_columns(folder, {"y.bright_a": labels.tolist(), "source": sources})
    contracts.save(contract, folder / "contract.json")


def tuning(task: str) -> dict[str, Any]:
    return {"domain": "medical", "data": "xray", "task": task, "start": "artifacts/pretrain/xray", "grid": [3e-3],
            "seeds": [0, 1], "validations": 1, "patience": 0, "machine": pretrain_settings("xray")["machine"],
            "optimisation": {"steps": 30, "batch_size": 16, "betas": [0.9, 0.999]}}


def asked(**changes: Any) -> ShiftRun:
    paragraph = {"domain": "medical", "data": "xray", "task": "bright", "source": "a",
                 "models": {"before": "artifacts/finetune/one"}, "resamples": 200,
                 "corruptions": {"exposure": [40, 120], "noise": [16]}, **changes}
    return build(ShiftRun, paragraph, "shift.test")


@pytest.fixture(autouse=True)
def _no_tracking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LACUNA_TRACKING", "off")


def test_every_model_is_told_of_at_every_source_and_under_every_damage(project):
    models = {"before": "artifacts/finetune/one", "adapter": "artifacts/finetune/one"}
    counts = shift.run("page", asked(models=models), project)
    reports = project / "reports/shift/page"
    summary, page = (reports / "summary.txt").read_text(), (reports / "report.html").read_text()
    for name in ("scratch", "pretrained", "adapter scratch", "adapter pretrained"):
        assert f"{name}: trained on a" in summary and name in page
    assert page.count("data:image/png;base64,") == 3
    assert set(counts) == {"test groups of a", "test groups of b"} and min(counts.values()) >= 10
    with (reports / "robustness.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 * 3 and {row["unit"] for row in rows} == {"grey levels of 255"}
    told = pq.read_table(project / "artifacts/shift/page/predictions.parquet").to_pylist()
    assert {line["source"] for line in told} == {"a", "b"} and {line["seed"] for line in told} == {0, 1}


def test_the_same_shift_twice_gives_the_same_bytes(project):
    shift.run("again", asked(), project)
    reports = project / "reports/shift/again"
    before = {path.name: path.read_bytes() for path in reports.glob("*.*") if path.suffix in (".csv", ".png", ".txt")}
    shift.run("again", asked(), project)
    assert before == {name: (reports / name).read_bytes() for name in before} and len(before) >= 5


def test_what_the_scores_are_made_of_is_what_evaluate_would_predict(project):
    shift.run("plain", asked(corruptions={}), project)
    flat = json.loads((project / "reports/shift/plain/metrics.json").read_text())
    told = pq.read_table(project / "artifacts/shift/plain/predictions.parquet").to_pylist()
    for source in ("a", "b"):
        scores = []
        for seed in (0, 1):
            own = [line for line in told if (line["source"], line["arm"], line["seed"]) == (source, "scratch", seed)]
            bright = np.array([line["label"][0] == 1 for line in own])
            p = np.array([line["probabilities"][1] for line in own])
            pairs = p[bright][:, None] - p[~bright][None]
            scores.append(float((pairs > 0).mean() + (pairs == 0).mean() / 2))
        assert flat[f"scratch.score.{source}.auroc"] == pytest.approx(np.mean(scores), abs=1e-6)
    assert flat["scratch.gap.b.auroc"] == pytest.approx(flat["scratch.score.b.auroc"] - flat["scratch.score.a.auroc"])


def test_ways_of_adapting_at_prediction_are_lines_of_their_own_and_change_no_checkpoint(project):
    folder = project / "artifacts/finetune/one"
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    ways = [{"kind": "norm"}, {"kind": "tent"}, {"kind": "tent", "episodic": True}, {"kind": "lame", "neighbours": 3}]
    shift.run("ways", asked(test_time=ways), project)
    shift.run("none", asked(), project)
    summary = (project / "reports/shift/ways/summary.txt").read_text()
    for name in ("norm", "tent", "tent 2", "lame"):
        assert f"pretrained, {name} against pretrained at b" in summary
    ways_told, none_told = (json.loads((project / f"reports/shift/{name}/metrics.json").read_text())
                            for name in ("ways", "none"))
    values = {name: value for name, value in none_told.items() if not name.endswith((".low", ".high"))}
    assert values.items() <= ways_told.items(), "as trained, a model answers as if no way had been tried"
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_models_that_were_adapted_to_the_target_without_its_labels_are_lines_too(project):
    plan = {"steps": 3, "batch_size": 8, "learning_rate": 1e-3, "betas": [0.9, 0.999]}
    run = {"domain": "medical", "data": "xray", "labelled": "xray", "task": "bright",
           "start": "artifacts/pretrain/xray", "labelled_sources": ["a"], "target_sources": ["b"],
           "method": {"kind": "domain_adversarial", "hidden": 8}, "seeds": [0, 1], "optimisation": plan,
           "machine": pretrain_settings("xray")["machine"]}
    domain_adaptation.run("ab", build(DomainAdaptationRun, run, "ab"), project)
    models = {"before": "artifacts/finetune/one", "adapted": "artifacts/domain_adaptation/ab"}
    shift.run("adapted", asked(models=models, corruptions={}), project)
    summary = (project / "reports/shift/adapted/summary.txt").read_text()
    assert "adapted: trained on a" in summary and "source_only against scratch at b" in summary
    turned = {**run, "labelled_sources": ["b"], "target_sources": ["a"], "seeds": [0]}
    domain_adaptation.run("ba", build(DomainAdaptationRun, turned, "ba"), project)
    with pytest.raises(ValueError, match="learnt from labels of b, expected of a alone"):
        shift.run("turned", asked(models={**models, "adapted": "artifacts/domain_adaptation/ba"}), project)


def test_a_model_that_learnt_from_both_sources_is_refused(project):
    with pytest.raises(ValueError, match=r"labels of every source, expected of a alone.*sources: \[a\]"):
        shift.run("both", asked(models={"before": "artifacts/finetune/both"}), project)


def test_a_model_whose_groups_are_named_by_another_key_is_noted_as_not_looked_at(project):
    foreign = project / "artifacts/finetune/foreign"
    shutil.copytree(project / "artifacts/finetune/one", foreign)
    path = foreign / "pretrained/seed0/checkpoint.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "pool_groups": ["p_0123abcd-0123456789ab"]}))
    shift.run("foreign", asked(models={"before": "artifacts/finetune/foreign"}, corruptions={}), project)
    summary = (project / "reports/shift/foreign/summary.txt").read_text()
    assert "note: pretrained: groups are named by another key" in summary


def test_a_model_that_was_pretrained_on_a_test_group_is_refused(project):
    from pipelines.pretrain import group_hashes
    leaky = project / "artifacts/finetune/leaky"
    shutil.copytree(project / "artifacts/finetune/one", leaky)
    prepared = open_prepared(project / "data/prepared/xray")
    path = leaky / "pretrained/seed1/checkpoint.json"
    record = json.loads(path.read_text())
    record["pool_groups"] += group_hashes(prepared, prepared.rows(split="test")[:1])
    path.write_text(json.dumps(record))
    with pytest.raises(Leak, match="found 1 of"):
        shift.run("leaky", asked(models={"before": "artifacts/finetune/leaky"}), project)


@pytest.mark.parametrize(("changes", "message"), [
    ({"source": "c"}, "expected some of c"), ({"targets": ["d"]}, "expected some of d"),
    ({"corruptions": {"blur": [1]}}, "found blur, expected among exposure"),
    ({"corruptions": {"noise": [4, 2]}}, "rising strengths"), ({"corruptions": {"contrast": [2]}}, "up to 1"),
    ({"models": {"before": "artifacts/finetune/none"}}, "found no fine-tuned model"),
], ids=["source", "target", "name", "order", "limit", "model"])
def test_what_cannot_be_is_refused_in_a_sentence(project, changes, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        shift.run("wrong", asked(**changes), project)


@pytest.mark.parametrize(("changes", "message"), [
    ({"models": {"before": "scratch"}}, "before: found scratch"), ({"targets": ["a"]}, "targets: found a"),
    ({"resamples": 3}, "resamples"), ({"model": {}}, r"shift\.test\.model"),
], ids=["before", "target", "resamples", "key"])
def test_settings_that_mean_nothing_are_refused(changes, message):
    with pytest.raises(SettingsError, match=message):
        asked(**changes)


def sentences(project: Path, fall: float, returned: float) -> list[str]:
    """What is said of made-up predictions: good at a, worse by `fall` at b, of which one way returns a share."""
    prepared = open_prepared(project / "data/prepared/xray")
    unseen = Unseen(prepared, "bright", prepared.rows(split="test", task="bright"))
    sources, labels = np.array(unseen.column("source")), unseen.labels[:, 0]
    parts = {one: np.flatnonzero(sources == one) for one in ("a", "b")}

    def told(spoilt: float, seed: int) -> Answers:
        noise = np.random.default_rng(seed).normal(size=len(labels))
        signal = np.where(sources == "b", 1 - spoilt, 1.0) * 2 * (2 * labels - 1)
        p = 1 / (1 + np.exp(-(signal + noise)))
        return Answers({"0": 1.0}, np.stack([1 - p, p], 1)[None], {})

    answers = {("model", ""): told(fall, 0), ("model", "lame"): told(fall * (1 - returned), 1)}
    return compare("made", "a", unseen, parts, answers, "auroc", 500, 0, {}).sentences()


def test_a_fall_is_told_with_what_is_returned_of_it(project):
    said = sentences(project, fall=1.0, returned=0.9)
    assert said[0].startswith("Trained on a, model loses 0.") and "model, lame gives back 0." in said[0]
    assert "model: trained on a, AUROC falls from" in said[1] and "at b (difference -0." in said[1]
    assert "model, lame against model at b: returns 0." in said[2]
    assert "these 2 hold all at once" in said[3] and "exploratory" in said[3]


def test_primary_is_what_the_first_model_loses_and_what_is_tried_on_it(project):
    models = {"before": "artifacts/finetune/one", "adapter": "artifacts/finetune/one"}
    shift.run("primary", asked(models=models, test_time=[{"kind": "lame"}]), project)
    reports = project / "reports/shift/primary"
    rows = {row["model, way"]: row for row in csv.DictReader((reports / "table.csv").open())}
    starred = {(line, column) for line, row in rows.items() for column, cell in row.items() if cell.endswith(" *")}
    assert starred == {("scratch", "b - a"), ("scratch, lame", "gain, b"), ("pretrained", "gain, b"),
                       ("adapter scratch", "gain, b"), ("adapter pretrained", "gain, b")}
    summary, page = (reports / "summary.txt").read_text(), (reports / "report.html").read_text()
    assert "exploratory: pretrained, lame against pretrained at b" in summary and "these 5 hold all at once" in summary
    assert page.index("<strong>Trained on a") < page.index("<img") < page.index("<h2>Exploratory</h2>")


def test_no_fall_is_told_as_none_shown_with_what_would_stay_invisible(project):
    said = sentences(project, fall=0.0, returned=0.0)
    assert "could not be shown to lose anything" in said[0]
    assert "no fall could be shown" in said[1] and "would stay invisible" in said[1]
    assert "no difference could be shown" in said[2]
