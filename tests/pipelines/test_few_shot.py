"""The stage `few_shot` on prepared data made in place: both ways are told, nothing leaks, what is kept predicts."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import lacuna
from domains.sample import Task
from domains.store import open_prepared
from pipelines import few_shot
from pipelines.evaluate import Leak
from pipelines.few_shot import Asked, FewShotRun, Scale, set_class_means
from pipelines.pretrain import group_hashes
from pipelines.settings import SettingsError, build, plain
from pipelines.training.batches import Source, domain_code
from pipelines.weights.checkpoints import load_encoder
from pipelines.weights.tuned_checkpoints import load_tuned, predict
from tests.fabricate import pretrained

TUNING = {"adapters": [{"kind": "prompts", "num_prompts": 2, "deep": True}], "steps": 6, "ways": 2, "shots": 2,
          "queries": 3, "validations": 2, "validation_episodes": 4, "learning_rate": 0.01}


def paragraph(**changes: Any) -> dict[str, Any]:
    return {"domain": "medical", "data": "xray", "task": "bright", "start": "artifacts/pretrain/xray",
            "shots": [1, 3], "queries": 4, "episodes": 12, "resamples": 100, "machine": {"accelerator": "cpu"},
            **changes}


def asked(**changes: Any) -> FewShotRun:
    return build(FewShotRun, paragraph(**changes), "few_shot.xray")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("project")
    pretrained(root, count=144, steps=4)
    return root


@pytest.fixture(autouse=True)
def _no_tracking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LACUNA_TRACKING", "off")


def test_the_command_tells_both_ways_with_both_intervals(project, monkeypatch, capsys):
    (project / "params.yaml").write_text(yaml.safe_dump({"few_shot": {"films": paragraph(prompts=TUNING)}}))
    monkeypatch.chdir(project)
    assert lacuna.main(["few-shot", "films"]) == 0
    out = capsys.readouterr().out
    assert "artifacts/few_shot/films" in out and "tuned 96 of" in out
    reports = project / "reports/few_shot/films"
    assert (reports / "summary.txt").read_text() in out
    lines = list(csv.DictReader((reports / "few_shot.csv").open()))
    assert [(one["way"], one["distance"], one["shots"]) for one in lines] == [
        (way, distance, shots) for way in ("scratch", "pretrained", "pretrained, tuned")
        for distance in ("cosine", "euclidean") for shots in ("1", "3")]
    assert all(one[f"{metric} {what}"].count("[") == 1 for one in lines for metric in ("accuracy", "auroc")
               for what in ("over episodes", "over groups"))
    gaps = list(csv.DictReader((reports / "differences.csv").open()))
    assert {one["difference"] for one in gaps} == {"pretrained - scratch", "pretrained, tuned - pretrained"}
    said = (reports / "summary.txt").read_text()
    assert "All episodes ask about the same 12 test groups" in said and "12 episodes of 2 classes" in said
    assert (reports / "few_shot.png").stat().st_size > 5_000
    episodes = list(csv.DictReader((project / "artifacts/few_shot/films/episodes.csv").open()))
    assert len(episodes) == 12 * 12
    own = [float(one["accuracy"]) for one in episodes
           if (one["way"], one["distance"], one["shots"]) == ("scratch", "cosine", "1")]
    assert f"{np.mean(own):.3f} [" in lines[0]["accuracy over episodes"]


def test_equal_runs_leave_equal_artifacts(project):
    kept = []
    for _ in range(2):
        few_shot.run("twice", asked(prompts=TUNING), project)
        folder = project / "artifacts/few_shot/twice"
        kept.append({path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*"))
                     if path.is_file()})
    assert kept[0] == kept[1]


def test_the_start_stays_and_the_model_that_is_kept_is_the_nearest_class_mean_of_all_training_rows(project):
    few_shot.run("plain", asked(), project)
    folder = project / "artifacts/few_shot/plain/model"
    model, contract, record = load_tuned(folder)
    trunk = load_encoder(project / "artifacts/pretrain/xray").encoder
    assert all(torch.equal(model.encoder.state_dict()[key], value) for key, value in trunk.state_dict().items())
    prepared = open_prepared(project / "data/prepared/xray")
    code = domain_code("medical")
    train, val = (prepared.rows(split=split, task="bright") for split in ("train", "val"))

    def features(rows: np.ndarray) -> torch.Tensor:
        raw, _ = Source(prepared, contract, code, rows).read(rows, None)
        x, known = Source(prepared, contract, code, rows).normalise(raw)
        with torch.no_grad():
            return model.features(x, known).double()

    shown, asked_about, labels = features(train), features(val), prepared.labels("bright")[train, 0]
    mean, spread = shown.mean(0), shown.std(0, correction=0)
    means = torch.stack([((shown - mean) / spread)[torch.from_numpy(labels == label)].mean(0) for label in (0, 1)])
    gap = (((asked_about - mean) / spread)[:, None] - means).square().mean(-1)
    said = predict(model, Source(prepared, contract, code, val))
    np.testing.assert_allclose(said[:, 1] - said[:, 0], 10 * (gap[:, 0] - gap[:, 1]), rtol=1e-3, atol=1e-3)
    assert record["provenance"]["protocol"] == "class means" and record["pool_groups"]


def test_what_was_tuned_is_kept_apart_from_the_start_and_small(project):
    few_shot.run("tuned", asked(prompts=TUNING), project)
    folder = project / "artifacts/few_shot/tuned/model"
    _, _, record = load_tuned(folder)
    assert [one["kind"] for one in record["adapters"]] == ["prompts"] and record["trunk"]["hash"]
    whole = (project / "artifacts/pretrain/xray/weights.safetensors").stat().st_size
    assert (folder / "weights.safetensors").stat().st_size < whole / 2


def test_a_class_without_training_rows_is_never_predicted():
    layer = torch.nn.Linear(3, 3)
    features, labels = torch.randn(6, 3), torch.tensor([0, 0, 0, 2, 2, 2])
    with torch.no_grad():
        set_class_means(layer, features, labels, Scale(torch.zeros(3), torch.ones(3)))
    assert 1 not in layer(torch.randn(50, 3)).argmax(1)


def test_episodes_of_tuning_hold_no_new_class_and_those_of_the_test_hold_no_other():
    rng = np.random.default_rng(0)
    split, group = np.repeat(["train", "val", "test"], [120, 60, 60]), np.arange(240) // 2
    labels = np.where(np.arange(240) % 9 == 0, np.nan, rng.integers(0, 5, 240)).astype(np.float32)[:, None]
    prepared: Any = SimpleNamespace(
        column=lambda name: list(split if name == "split" else group), labels=lambda task: labels,
        codes=lambda name: group.astype(np.int64),
        contract=SimpleNamespace(tasks={"kind": Task("single_label", ("kind",), tuple("abcde"))}),
        rows=lambda split, task, places=split: np.flatnonzero((places == split) & np.isfinite(labels[:, 0])))
    settings = asked(task="kind", new_classes=["b", "e"], prompts=TUNING)
    made = Asked(settings, prepared)
    assert all(set(one.classes) == {1, 4} and set(split[one.support.reshape(-1)]) == {"train"}
               and set(split[one.query]) == {"test"} for one in made.episodes)
    assert settings.prompts is not None
    training, validation = made.training(settings.prompts)
    for one in [training(i) for i in range(30)]:
        rows = np.r_[one.support.reshape(-1), one.query]
        assert set(split[rows]) == {"train"} and not set(labels[rows, 0]) & {1, 4}
        assert not set(group[one.support.reshape(-1)]) & set(group[one.query])
    assert all(set(split[one.query]) == {"val"} and not set(labels[one.query, 0]) & {1, 4} for one in validation)


def test_a_lone_new_class_and_an_unknown_one_are_refused(project):
    with pytest.raises(ValueError, match="found 1 classes with 3 training groups .* in test rows, expected at least 2"):
        few_shot.run("new", asked(new_classes=["yes"]), project)
    with pytest.raises(ValueError, match="found 'maybe', expected some of no, yes"):
        few_shot.run("new", asked(new_classes=["maybe"]), project)


def test_too_few_groups_are_told_by_class(project):
    with pytest.raises(ValueError, match=r"with 50 training groups .*no \(\d+ training and \d+ test groups\).*Lower"):
        few_shot.run("many", asked(shots=[50]), project)
    with pytest.raises(ValueError, match="found 2 classes .*expected at least 5"):
        few_shot.run("wide", asked(ways=5), project)


def test_a_test_group_that_was_pretrained_on_is_refused(project):
    record = project / "artifacts/pretrain/xray/checkpoint.json"
    before = record.read_text()
    prepared = open_prepared(project / "data/prepared/xray")
    told = json.loads(before)
    told["pool_groups"] += group_hashes(prepared, prepared.rows(split="test")[:1])
    record.write_text(json.dumps(told))
    try:
        with pytest.raises(Leak, match="leak: found 1 of .* validation and test groups"):
            few_shot.run("leaky", asked(), project)
    finally:
        record.write_text(before)


@pytest.mark.parametrize(("changes", "message"), [
    ({"shots": [5, 1]}, "shots: found"), ({"ways": 1}, "found ways 1"), ({"episodes": 1}, "episodes 1"),
    ({"resamples": 10}, "resamples: found 10"), ({"distances": ["manhattan"]}, "distances"),
    ({"prompts": {**TUNING, "adapters": []}}, "adapters: found none"),
    ({"prompts": TUNING, "arms": ["scratch"]}, "found no pretrained arm"),
    ({"start": "scratch"}, "`encoder` must be given"), ({"prompts": {"stepz": 3}}, r"prompts\.stepz"),
], ids=["shots", "ways", "episodes", "resamples", "distance", "adapters", "arm", "encoder", "key"])
def test_settings_that_mean_nothing_are_refused(changes, message):
    with pytest.raises(SettingsError, match=message):
        asked(**changes)


def test_settings_survive_being_saved():
    assert build(FewShotRun, plain(asked(prompts=TUNING)), "again") == asked(prompts=TUNING)
