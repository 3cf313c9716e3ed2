"""The stage `adapt` on prepared data made in place: weights go on, what they have seen is remembered, a killed run ends
with the weights of one that was not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from domains.contract import ContractMismatch
from domains.store import open_prepared
from models.objectives.masked_autoencoder import MaskedAutoencoder
from pipelines import adapt, verdict
from pipelines.adapt import AdaptRun
from pipelines.evaluate import Leak
from pipelines.settings import SettingsError, build
from pipelines.training.pool import group_hashes
from pipelines.verdict import VerdictRun
from pipelines.weights import checkpoints
from pipelines.weights.checkpoints import CheckpointError, load_encoder, part_weights, read_record
from pipelines.weights.starts import resolve
from tests.fabricate import prepare, pretrain_settings, pretrained
from tests.pipelines.deaths import MEASURED, dies_at
from tests.pipelines.published_files import mae_file

TWICE = {"kind": "self_distillation", "teacher_steps": 6}


def paragraph(kind: str = "xray", **changes: Any) -> dict[str, Any]:
    """A run of seconds, as params.yaml would have it."""
    like = pretrain_settings(kind, steps=8)
    kept = ("domain", "data", "seed", "optimisation", "machine", "num_pictures", "gates")
    return {**{key: like[key] for key in kept}, "start": f"artifacts/pretrain/{kind}", **changes}


def asked(kind: str = "xray", **changes: Any) -> AdaptRun:
    return build(AdaptRun, paragraph(kind, **changes), "adapt.test")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of one data set, and another data set with other values."""
    root = tmp_path_factory.mktemp("project")
    pretrained(root)
    prepare(root / "data/prepared/mine", count=96, seed=1)
    return root


@pytest.fixture(autouse=True)
def _no_tracking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LACUNA_TRACKING", "off")


def weights(root: Path, path: str) -> str:
    return str(read_record(root / path)["weights_sha256"])


def distance(root: Path, one: str, other: str) -> float:
    """How far apart the weights of two encoders are."""
    first, second = (load_encoder(root / path).encoder.state_dict() for path in (one, other))
    return float(sum((first[name] - second[name]).square().sum() for name in first)) ** 0.5


def test_further_pretraining_goes_on_with_all_weights_of_the_start(project):
    long = {"steps": 60, "batch_size": 16, "learning_rate": 1e-3, "log_every": 5}
    kept = adapt.run("kept", asked(data="mine", optimisation=long), project)
    anew = adapt.run("anew", asked(data="mine", optimisation=long, keep_parts=False), project)
    assert kept["loss"] < kept["first_loss"]
    assert kept["first_loss"] < anew["first_loss"], "a decoder that has learnt restores better at first"
    assert 0 < distance(project, "artifacts/adapt/kept", "artifacts/pretrain/xray")
    assert (project / "reports/adapt/kept/reconstruction.png").stat().st_size > 1000
    record = read_record(project / "artifacts/adapt/kept")
    assert record["objective"] == read_record(project / "artifacts/pretrain/xray")["objective"], "null: the start's own"
    assert record["provenance"]["start_weights"] == weights(project, "artifacts/pretrain/xray")
    assert not list((project / ".work/adapt").iterdir())


def test_data_is_normalised_by_the_numbers_of_the_start(project):
    adapt.run("numbers", asked(data="mine"), project)
    contract = load_encoder(project / "artifacts/adapt/numbers").contract
    assert contract.channels == load_encoder(project / "artifacts/pretrain/xray").contract.channels


def test_no_step_away_the_start_is_what_it_was(project):
    start = resolve("artifacts/pretrain/xray", None, open_prepared(project / "data/prepared/mine").contract, project)
    objective, said = adapt.begin(adapt.as_pretraining(asked(data="mine"), start), start, project)
    assert said == ["decoder goes on as it was", "readout goes on as it was"]
    for part, module in objective.named_children():
        held = part_weights(project / "artifacts/pretrain/xray", part)
        assert all(torch.equal(value, held[name]) for name, value in module.state_dict().items())


@pytest.mark.parametrize(("objective", "reason"), [
    ({"kind": "simmim"}, "the start was pretrained with masked_autoencoder, and this is simmim"),
    ({"decoder": {"width": 32, "depth": 1, "num_heads": 2}}, "holds none of this shape")], ids=["kind", "shape"])
def test_another_objective_than_the_start_s_begins_its_parts_anew_and_says_so(project, capsys, objective, reason):
    adapt.run("other", asked(data="mine", objective=objective), project)
    assert reason in capsys.readouterr().out


def test_published_weights_go_on_with_their_licence(project):
    from pipelines.weights.import_published import import_file
    mae_file(project / "mae.pth", patch=4)
    import_file(project / "mae.pth", project / "artifacts/import/mae", given={"num_heads": 3})
    mild = {"decoder": {"width": 16, "depth": 1, "num_heads": 2}}
    adapt.run("mae", asked(data="mine", start="artifacts/import/mae", objective=mild), project)
    origin = read_record(project / "artifacts/adapt/mae")["provenance"]["imported"]
    assert origin["licence"] and origin["family"] == "mae"
    adapt.run("again", asked(data="mine", start="artifacts/adapt/mae"), project)
    assert read_record(project / "artifacts/adapt/again")["provenance"]["imported"] == origin


def test_self_distillation_keeps_the_student_nearer_to_its_teacher_than_the_start_is(project):
    long = {"steps": 60, "batch_size": 16, "learning_rate": 1e-3, "log_every": 5}
    method = {"kind": "self_distillation", "weight": 5.0}
    adapt.run("student", asked(data="mine", optimisation=long, method=method), project)
    folder = project / "artifacts/adapt/student"
    assert read_record(folder)["provenance"]["teacher_sha256"] == weights(project, "artifacts/adapt/student/teacher")
    assert read_record(folder)["provenance"]["steps"] == 120
    curve = (project / "reports/adapt/student/loss.csv").read_text().splitlines()
    at = curve[0].split(",").index("self_distillation")
    apart = [float(line.split(",")[at]) for line in curve[1:]]
    assert apart[-1] < 0.7 * apart[0]
    assert (project / "reports/adapt/student/teacher/loss.csv").is_file()


def test_the_teacher_is_plain_further_pretraining_bit_for_bit(project):
    adapt.run("plain", asked(data="mine"), project)
    adapt.run("both", asked(data="mine", method={"kind": "self_distillation"}), project)
    one, other = (load_encoder(project / path).encoder for path in ("artifacts/adapt/plain",
                                                                    "artifacts/adapt/both/teacher"))
    assert checkpoints.state_hash(one) == checkpoints.state_hash(other)
    start = load_encoder(project / "artifacts/pretrain/xray").encoder
    assert checkpoints.state_hash(load_encoder(project / "artifacts/adapt/both").encoder) not in (
        checkpoints.state_hash(one), checkpoints.state_hash(start))


@pytest.mark.parametrize("kind", ["ct", "multispectral", "points"])
def test_every_kind_of_data_is_distilled(tmp_path, kind):
    pretrained(tmp_path, kind)
    metrics = adapt.run("more", asked(kind, method=TWICE), tmp_path)
    assert metrics["teacher_steps"] == 6 and metrics["loss"] > 0


@pytest.mark.parametrize("phase", ["teacher", "student"])
def test_a_run_that_dies_in_either_phase_ends_with_the_same_weights(project, phase):
    whole = f"artifacts/adapt/whole_{phase}"
    run = asked(data="mine", method=TWICE, seed=7)
    adapt.run(f"whole_{phase}", run, project)
    what = (MaskedAutoencoder, "forward") if phase == "teacher" else (adapt, "feature_distance")
    with dies_at(MEASURED + 5, *what):
        adapt.run(f"died_{phase}", run, project)
    work = next((project / ".work/adapt").glob(f"died_{phase}-*"))
    assert (work / "teacher/checkpoint.json").is_file() == (phase == "student")
    assert (work / ("teacher.pt" if phase == "teacher" else "resume.pt")).is_file()
    assert adapt.run(f"died_{phase}", run, project)["resumed"]
    assert weights(project, f"artifacts/adapt/died_{phase}") == weights(project, whole)
    assert weights(project, f"artifacts/adapt/died_{phase}/teacher") == weights(project, f"{whole}/teacher")


@pytest.mark.slow
def test_a_run_that_is_killed_in_both_phases_ends_with_the_same_weights(project, tmp_path):
    long = {"steps": 60, "batch_size": 8, "learning_rate": 1e-3, "log_every": 2}
    runs = {name: paragraph(data="mine", optimisation=long, method={"kind": "self_distillation"})
            for name in ("left", "killed")}
    (project / "params.yaml").write_text(yaml.safe_dump({"adapt": runs}))
    command = [sys.executable, "-m", "lacuna", "adapt"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}

    def kill_once_there(pattern: str) -> None:
        started = subprocess.Popen([*command, "killed"], cwd=project, env=environment, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 300
        while not list((project / ".work/adapt").glob(pattern)) and time.monotonic() < deadline:
            assert started.poll() is None, "it had ended before it was killed; make the run longer"
            time.sleep(0.01)
        started.send_signal(signal.SIGKILL)
        assert started.wait() == -signal.SIGKILL

    kill_once_there("killed-*/teacher.pt")
    assert not list((project / ".work/adapt").glob("killed-*/teacher"))
    kill_once_there("killed-*/resume.pt")
    for name in ("killed", "left"):
        subprocess.run([*command, name], cwd=project, env=environment, check=True, stdout=subprocess.DEVNULL)
    for part in ("", "/teacher"):
        assert weights(project, f"artifacts/adapt/killed{part}") == weights(project, f"artifacts/adapt/left{part}")


def test_what_the_start_has_seen_is_remembered_by_both_encoders(project):
    adapt.run("seen", asked(data="mine", method=TWICE), project)
    before = set(read_record(project / "artifacts/pretrain/xray")["pool_groups"])
    mine = open_prepared(project / "data/prepared/mine")
    own = set(group_hashes(mine, mine.pool()))
    assert own - before, "the data of the start has other groups"
    for path in ("artifacts/adapt/seen", "artifacts/adapt/seen/teacher"):
        assert set(read_record(project / path)["pool_groups"]) == before | own


@pytest.mark.parametrize("arm", ["further", "distilled"])
def test_a_verdict_takes_both_arms_and_refuses_a_test_group_that_the_start_had_seen(project, arm):
    start = project / "artifacts/pretrain/xray/checkpoint.json"
    mine, before = open_prepared(project / "data/prepared/mine"), start.read_text()
    run = asked(data="mine", method=TWICE, seed=20)
    place = {"further": "artifacts/adapt/{}/teacher", "distilled": "artifacts/adapt/{}"}[arm]
    tuning = {"grid": [1e-3], "validations": 1, "patience": 0, "machine": paragraph()["machine"],
              "optimisation": {"steps": 2, "batch_size": 8, "betas": [0.9, 0.999]}}

    def judged(name: str) -> VerdictRun:
        return build(VerdictRun, {
            "domain": "medical", "data": "mine", "task": "bright", "tuning": tuning, "budgets": [1.0], "seeds": [0, 1],
            "resamples": 100, "arms": {"pretrained": "artifacts/pretrain/xray", arm: place.format(name)}}, "verdict.x")

    adapt.run("clean", run, project)
    verdict.run(f"clean_{arm}", judged("clean"), project)
    told = json.loads(before)
    told["pool_groups"] += group_hashes(mine, mine.rows(split="test")[:1])
    try:
        start.write_text(json.dumps(told))
        adapt.run("dirty", run, project)
    finally:
        start.write_text(before)
    with pytest.raises(Leak, match=f"found 1 of .* groups in what arm {arm} "):
        verdict.run(f"dirty_{arm}", judged("dirty"), project)


@pytest.mark.parametrize(("changes", "said"), [
    ({"start": "scratch"}, r"start: found scratch, expected a checkpoint folder .* `lacuna pretrain` begins without"),
    ({"objective": {"kind": "distillation"}}, "objective: found distillation"),
    ({"method": {"kind": "forther"}}, "method.kind: found 'forther', expected one of further, self_distillation"),
    ({"method": {"kind": "further", "weight": 1}}, r"unknown key: adapt\.test\.method\.weight"),
    ({"teacher": "scratch"}, r"unknown key: adapt\.test\.teacher")],
    ids=["scratch", "teacher", "kind", "weight", "key"])
def test_settings_that_mean_nothing_are_refused(changes, said):
    with pytest.raises(SettingsError, match=said):
        asked(**changes)


def test_a_start_of_another_kind_of_data_is_refused(project, tmp_path):
    prepare(project / "data/prepared/ct", "ct")
    with pytest.raises(ContractMismatch, match=r"kind of data: found medical/ct, expected medical/xray"):
        adapt.run("foreign", asked("ct", start="artifacts/pretrain/xray"), project)


def test_a_start_that_does_not_say_how_it_was_pretrained_needs_an_objective(project):
    path = project / "artifacts/pretrain/xray/checkpoint.json"
    before = path.read_text()
    told = json.loads(before)
    del told["objective"]
    path.write_text(json.dumps(told))
    try:
        with pytest.raises(CheckpointError, match="does not say with which objective to go on"):
            adapt.run("mute", asked(data="mine"), project)
    finally:
        path.write_text(before)
