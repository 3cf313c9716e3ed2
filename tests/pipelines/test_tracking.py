"""Runs arrive in MLflow with parents, inputs and tags, go on after a kill, and never stop a step."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.tracking import lineage, spool, tracking

mlflow = pytest.importorskip("mlflow", reason="tracking needs mlflow: pip install 'lacuna[tracking]'")

PROJECT = Path(tracking.__file__).parents[1]


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with its tables, made once: that takes seconds."""
    folder = tmp_path_factory.mktemp("store")
    mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db").search_experiments()
    return folder / "mlflow.db"


@pytest.fixture
def root(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A project with a local store and one prepared folder; no variable of the tester's own shell gets in."""
    for name in (
        "MLFLOW_TRACKING_URI",
        "DVC_ROOT",
        "DVC_STAGE",
        "LACUNA_PIPELINE",
        "LACUNA_TRACKING",
        "RANK",
        "LOCAL_RANK",
    ):
        monkeypatch.delenv(name, raising=False)
    shutil.copyfile(empty_store, tmp_path / "mlflow.db")
    (tmp_path / "data/prepared/xray").mkdir(parents=True)
    (tmp_path / "data/prepared/xray/index.parquet").write_text("index")
    yield tmp_path


def _client(root: Path) -> Any:
    return mlflow.MlflowClient(f"sqlite:///{root}/mlflow.db")


def _record(root: Path, stage: str, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(lineage.run_file(stage, name, root).read_text())
    return found


def test_a_stage_is_a_child_run_with_parameters_tags_inputs_and_curves(root: Path) -> None:
    picture = root / "p.png"
    picture.write_bytes(b"png")
    with tracking.open_run(
        stage="ingest", name="xray", root=root, settings={"read": {"size": [64, 64]}}, domain="medical"
    ):
        pass
    with tracking.open_run(
        stage="pretrain",
        name="xray",
        root=root,
        settings={"steps": 3},
        domain="medical",
        inputs={"data/prepared/xray": None},
        fingerprint="abcdef0123",
    ) as run:
        for step in range(3):
            run.metrics({"loss": 1.0 / (step + 1), "bad": float("nan")}, step=step)
        run.picture(picture)
        run.tag("lacuna.device", "cpu")
        run.description(["pretraining helped."], "arm      AUROC\nscratch  0.8\n")
    ingest, pretrain = (_record(root, stage, "xray") for stage in ("ingest", "pretrain"))
    stored = _client(root).get_run(pretrain["run_id"])
    assert stored.info.run_name == "pretrain-xray-abcdef01" and stored.info.status == "FINISHED"
    assert _client(root).get_experiment(stored.info.experiment_id).name == "lacuna/medical"
    assert stored.data.tags["mlflow.parentRunId"] == ingest["parent_run_id"] == pretrain["parent_run_id"]
    assert stored.data.params == {"steps": "3"} and stored.data.tags["lacuna.device"] == "cpu"
    shown = "**pretraining helped.**\n\n```\narm      AUROC\nscratch  0.8\n```"
    assert stored.data.tags["mlflow.note.content"] == shown
    digest = lineage.digest(root / "data/prepared/xray")
    assert stored.data.tags["dvc.dep.data/prepared/xray"] == pretrain["inputs"]["data/prepared/xray"] == digest
    (dataset,) = stored.inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.dataset.digest, dataset.tags[0].value) == (
        "data/prepared/xray",
        digest,
        "pretrain",
    )
    assert pretrain["upstream"] == [ingest["run_id"]] and pretrain["tracking"] == "on"
    assert [m.value for m in _client(root).get_metric_history(pretrain["run_id"], "loss")] == [1.0, 0.5, 1 / 3]
    assert [a.path for a in _client(root).list_artifacts(pretrain["run_id"], "pictures")] == ["pictures/p.png"]
    assert (root / "mlartifacts" / pretrain["run_id"]).is_dir()
    lines = [json.loads(line) for line in (root / "reports/pretrain/xray/metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(0, 1.0), (1, 0.5), (2, 1 / 3)]
    parent = _client(root).get_run(pretrain["parent_run_id"])
    assert parent.info.status == "FINISHED" and parent.data.tags["lacuna.role"] == "pipeline"


def test_a_part_of_a_run_is_a_run_below_it_and_comes_later_where_the_server_is_down(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(name: str) -> None:
        with tracking.open_run(stage="verdict", name=name, root=root, settings={}, domain="medical") as run:
            for _ in range(2):  # the same part again is the same part
                run.child("scratch, seed 0", {"arm": "scratch", "seed": 0}, {"val_loss": 0.5}, 2.0,
                          {"lacuna.kept": "false"})

    def parts(parent: str) -> list[Any]:
        experiment = _client(root).get_experiment_by_name("lacuna/medical").experiment_id
        found: list[Any] = _client(root).search_runs([experiment], f"tags.mlflow.parentRunId = '{parent}'")
        return found

    told("up")
    (part,) = parts(_record(root, "verdict", "up")["run_id"])
    assert part.info.run_name == "scratch, seed 0" and part.info.status == "FINISHED"
    assert part.data.params == {"arm": "scratch", "seed": "0"} and part.data.metrics == {"val_loss": 0.5}
    assert part.data.tags["lacuna.role"] == "cell" and part.info.end_time - part.info.start_time == 2000
    monkeypatch.setattr(tracking, "FAILING_PATIENCE", 0.5)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    told("down")
    assert _record(root, "verdict", "down")["tracking"] == "spooled"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert tracking.sync(root) == (1, 0)
    (late,) = [run for run in tracking.search(root) if run["tags"]["lacuna.name"] == "down"]
    assert [part.info.run_name for part in parts(late["run_id"])] == ["scratch, seed 0"]


def test_a_damaged_lock_file_costs_a_sentence_and_not_the_stage(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("DVC_STAGE", "pretrain@xray")
    (root / "dvc.lock").write_text("<<<<<<< HEAD\n- a\nb: c\n")
    with tracking.open_run(
        stage="pretrain", name="xray", root=root, settings={}, domain="medical", inputs={"data/prepared/xray": None}
    ):
        pass
    assert _record(root, "pretrain", "xray")["status"] == "FINISHED"
    assert "part of the lineage is left out" in caplog.text


def test_a_failed_stage_says_what_kind_of_error_and_its_pipeline_stays_failed(root: Path) -> None:
    with (
        pytest.raises(ValueError, match="DOE"),
        tracking.open_run(stage="ingest", name="xray", root=root, settings={}, domain="medical"),
    ):
        raise ValueError("cannot read /ward/DOE^JOHN.dcm")
    with tracking.open_run(stage="ingest", name="ct", root=root, settings={}, domain="medical"):
        pass
    failed = _client(root).get_run(_record(root, "ingest", "xray")["run_id"])
    assert failed.info.status == "FAILED" and failed.data.tags["lacuna.error"] == "ValueError"
    assert b"DOE" not in (root / "mlflow.db").read_bytes()
    assert _client(root).get_run(_record(root, "ingest", "ct")["parent_run_id"]).info.status == "FAILED"


def test_a_stage_that_went_on_and_ended_well_leaves_its_pipeline_well(root: Path) -> None:
    work = root / ".work/pretrain/xray-1"
    work.mkdir(parents=True)
    asked = {"stage": "pretrain", "name": "xray", "root": root, "settings": {}, "domain": "medical",
             "resume_folder": work}
    with pytest.raises(KeyboardInterrupt), tracking.open_run(**asked):
        raise KeyboardInterrupt
    first = _record(root, "pretrain", "xray")
    assert _client(root).get_run(first["parent_run_id"]).info.status == "KILLED"
    with tracking.open_run(**asked):
        pass
    again = _record(root, "pretrain", "xray")
    assert again["run_id"] == first["run_id"] and again["parent_run_id"] == first["parent_run_id"]
    assert _client(root).get_run(first["parent_run_id"]).info.status == "FINISHED"


@pytest.mark.parametrize(("pipeline", "called"), [("", "pretrain-xray"), ("night-3", "night-3")])
def test_a_stage_begun_by_hand_lies_under_a_run_with_its_name(
        root: Path, monkeypatch: pytest.MonkeyPatch, pipeline: str, called: str) -> None:
    monkeypatch.setenv("LACUNA_PIPELINE", pipeline)
    with tracking.open_run(stage="pretrain", name="xray", root=root, settings={}, domain="medical"):
        pass
    parent = _client(root).get_run(_record(root, "pretrain", "xray")["parent_run_id"])
    assert parent.info.run_name == called


def test_a_bad_call_is_said_and_the_stage_goes_on(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    table = root / "t.csv"
    table.write_text("key,auroc\nDOE.dcm,0.9\n")
    with tracking.open_run(stage="evaluate", name="xray", root=root, settings={}, domain="medical") as run:
        run.metrics({"loss": "not a number"})
        run.table(table)
        run.picture(root / "missing.png")
        run.tag("PatientID", "17")
        run.metrics({"loss": 1.0})
    assert len([r for r in caplog.records if "was not logged" in r.message]) == 4
    assert _client(root).get_run(run.run_id).data.metrics == {"loss": 1.0}


CHILD = """
import sys, time
sys.path.insert(0, {project!r})
from pathlib import Path
from pipelines.commands import endings
from pipelines.tracking import tracking
root = Path({root!r})
try:
  with tracking.open_run(stage="pretrain", name={name!r}, root=root, settings={{"a": 1}}, domain="medical",
                         resume_folder=root / ".work/pretrain" / {name!r}) as run:
    for step in range({first}, {last}):
        run.metrics({{"loss": 10.0 - step}}, step=step)
    print("ready", flush=True)
    time.sleep({sleep})
except KeyboardInterrupt as stop:
    sys.exit(endings.stopped(stop, True))
"""


def _start(root: Path, name: str, first: int, last: int, sleep: float) -> subprocess.Popen[str]:
    """A stage in a process of its own, started where the user may stand."""
    (root / ".work/pretrain" / name).mkdir(parents=True, exist_ok=True)
    code = CHILD.format(project=str(PROJECT), root=str(root), name=name, first=first, last=last, sleep=sleep)
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=root
    )


def _stage(root: Path, first: int, last: int, sleep: float) -> subprocess.Popen[str]:
    """The same, up to the point where it has logged."""
    child = _start(root, "xray", first, last, sleep)
    assert child.stdout is not None and child.stdout.readline().strip() == "ready"
    return child


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_stage_goes_on_with_the_same_run(root: Path, number: signal.Signals) -> None:
    child = _stage(root, 0, 6, sleep=60)
    time.sleep(2 * spool.INTERVAL)
    child.send_signal(number)
    code = child.wait(30)
    before = _record(root, "pretrain", "xray")
    if number == signal.SIGTERM:
        assert code == 128 + signal.SIGTERM and before["status"] == "KILLED"
        assert _client(root).get_run(before["run_id"]).info.status == "KILLED"
    shutil.rmtree(root / "reports")  # as DVC does before it runs a stage again
    assert _stage(root, 4, 9, sleep=0).wait(30) == 0
    after = _record(root, "pretrain", "xray")
    stored = _client(root).get_run(before["run_id"])
    assert after["run_id"] == before["run_id"] and after["lives"] == 2 and stored.info.status == "FINISHED"
    history = _client(root).get_metric_history(before["run_id"], "loss")
    assert [(m.step, m.value) for m in sorted(history, key=lambda m: m.step)] == [(s, 10.0 - s) for s in range(9)]
    lines = (root / "reports/pretrain/xray/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(9))
    assert _stage(root, 0, 1, sleep=0).wait(30) == 0
    assert _record(root, "pretrain", "xray")["run_id"] != before["run_id"], "a finished run is not gone on with"


def test_a_finished_stage_leaves_no_resume_folder_behind_that_its_caller_removed(root: Path) -> None:
    work = root / ".work/pretrain/xray-1"
    work.mkdir(parents=True)
    with tracking.open_run(
        stage="pretrain", name="xray", root=root, settings={}, domain="medical", resume_folder=work
    ) as run:
        run.metrics({"loss": 1.0})
        shutil.rmtree(work)
    assert not work.exists() and run.record["status"] == "FINISHED"


def test_with_a_dead_server_numbers_stay_and_sync_brings_them_later(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://someone:secret@127.0.0.1:{port}")
    with tracking.open_run(
        stage="pretrain",
        name="xray",
        root=root,
        settings={"a": 1},
        domain="medical",
        inputs={"data/prepared/xray": None},
    ) as run:
        for step in range(5):
            run.metrics({"loss": float(step)}, step=step)
    record = _record(root, "pretrain", "xray")
    assert record["run_id"] is None and record["tracking"] == "spooled" and record["status"] == "FINISHED"
    assert "secret" not in json.dumps(record) and "secret" not in caplog.text
    assert caplog.text.count("lacuna sync") == 1
    assert len((root / "reports/pretrain/xray/metrics.jsonl").read_text().splitlines()) == 5
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert tracking.sync(root) == (1, 0)
    assert tracking.sync(root) == (0, 0)
    (found,) = tracking.search(root)
    assert (
        found["status"] == "FINISHED"
        and found["metrics"] == {"loss": 4.0}
        and found["tags"]["lacuna.run"] == record["key"]
    )


def test_a_server_that_never_answers_holds_up_no_step(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "OPENING_PATIENCE", 0.2)
    monkeypatch.setattr(tracking, "CLOSING_PATIENCE", 0.2)
    answered = threading.Event()
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(8)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{deaf.getsockname()[1]}")
        with tracking.open_run(stage="pretrain", name="xray", root=root, settings={}, domain="medical") as run:
            for step in range(1000):
                run.metrics({"loss": float(step)}, step=step)
            answered.set()
    assert answered.is_set() and _record(root, "pretrain", "xray")["tracking"] == "spooled"
    events = spool.read(next((root / "spool").glob("*.jsonl")))
    assert sum(len(event.get("points", [])) for event in events) == 1000


def test_without_mlflow_one_sentence_is_said_and_the_numbers_are_kept(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with tracking.open_run(stage="pretrain", name="xray", root=root, settings={}, domain="medical") as run:
        run.metrics({"loss": 1.0})
        run.tag("lacuna.device", "cpu")
    assert _record(root, "pretrain", "xray")["tracking"] == "off"
    assert len(caplog.records) == 1 and "pip install 'lacuna[tracking]'" in caplog.text
    assert "1.0" in (root / "reports/pretrain/xray/metrics.jsonl").read_text()


def test_other_ranks_log_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    with tracking.open_run(stage="pretrain", name="xray", root=root, settings={}, domain="medical") as run:
        run.metrics({"loss": 1.0})
    assert run.run_id is None and not (root / "reports").exists()


def test_a_queued_experiment_writes_to_the_store_of_the_real_project(
    root: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path_factory.mktemp("scratch copy")
    monkeypatch.setenv("DVC_ROOT", str(root))
    with tracking.open_run(stage="pretrain", name="xray", root=copy, settings={}, domain="medical") as run:
        run.metrics({"loss": 1.0})
    assert (copy / "reports/pretrain/xray/run.json").is_file() and not (copy / "mlflow.db").exists()
    assert _client(root).get_run(run.run_id).data.metrics == {"loss": 1.0}


def test_a_relative_address_means_the_project_and_not_the_current_folder(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///other.db")
    assert tracking.store(root).uri == f"sqlite:///{root}/other.db"


@pytest.mark.slow
def test_four_processes_may_be_the_first_at_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "mlflow.db").unlink()
    monkeypatch.setenv("LACUNA_PIPELINE", "together")
    names = [f"run{i}" for i in range(4)]
    children = [_start(root, name, 0, 2, sleep=0) for name in names]
    outputs = [child.communicate(timeout=120) for child in children]
    assert [child.returncode for child in children] == [0] * 4, outputs
    assert all("tracking" not in err for _, err in outputs), outputs
    assert {run["tags"]["lacuna.name"] for run in tracking.search(root)} == set(names)
    assert len({_record(root, "pretrain", name)["parent_run_id"] for name in names}) == 1


@pytest.mark.slow
def test_a_store_of_an_older_mlflow_is_copied_and_upgraded(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real, calls = mlflow.MlflowClient.search_experiments, []

    def old_at_first(client: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:  # what MLflow says of a store whose tables lack a column
            raise mlflow.exceptions.MlflowException(
                "Detected out-of-date database schema (found version a, but expected b)."
            )
        return real(client, *args, **kwargs)

    monkeypatch.setattr(mlflow.MlflowClient, "search_experiments", old_at_first)
    with tracking.open_run(stage="pretrain", name="xray", root=root, settings={}, domain="medical"):
        pass
    assert _record(root, "pretrain", "xray")["tracking"] == "on", caplog.text
    (copy,) = root.glob("mlflow.db-before-upgrade-*")
    assert copy.stat().st_size > 0 and "older MLflow" in caplog.text
