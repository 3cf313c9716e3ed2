"""What MLflow is told, event by event. The only import of mlflow.

Everything here runs on the thread of `pipelines/tracking/spool.py`, or for a command that reads; anything may fail,
and nothing of it reaches a stage.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from pipelines.tracking import lineage
from pipelines.tracking.spool import Event, Refusal, reason

DATABASE, ARTIFACTS = "mlflow.db", "mlartifacts"
"""The local store, under the project's root, ignored by git and DVC."""
CHILD, PARENT, PART = "stage", "pipeline", "cell"
"""Values of the tag `lacuna.role`."""
STATUSES = ("SCHEDULED", "RUNNING", "FINISHED", "KILLED", "FAILED")
SERVER_DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "0", "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_UV_AUTO_DETECT": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
"""Set where the environment does not say otherwise. MLflow's own are 120 s and 7 retries: a dead server would hold the
end of a stage for minutes. Retrying is the spool's work. And the use of this tool is reported to nobody."""
EXPERIMENT_TAGS = {
    "mlflow.experimentKind": "custom_model_development",
    "mlflow.note.content": "One run per pipeline invocation; open it (+) to see its stages. Models are named lacuna-*. "
                           "A stage that DVC restored from its cache did not run: the tag lacuna.upstream of the "
                           "stages after it names the run that made its outputs.",
}
"""What MLflow's pages take the experiment for, and what they say of it."""
UPLOAD_TIMEOUT = 120
"""Seconds that a server has to answer while a model is sent to it."""
NEVER_TAKEN = ("INVALID_PARAMETER_VALUE", "RESOURCE_ALREADY_EXISTS", "INVALID_STATE")
"""MLflow's error codes for what is wrong with the request; every other error may pass with time."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Store:
    """Where runs go."""

    uri: str
    """The tracking address; always handed on explicitly, since MLflow's defaults depend on the folder it is called
    in."""
    root: Path
    """The project whose spool and lock belong to it."""
    artifacts: str | None
    """Where files go, for the local store; None: the server decides."""

    @property
    def shown(self) -> str:
        """The address without a password, and relative to the project where it is the local store."""
        if self.artifacts is not None:
            return f"sqlite:///{DATABASE}"
        parts = urlsplit(self.uri)
        return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])) if parts.netloc else self.uri


def store(root: Path) -> Store:
    """MLFLOW_TRACKING_URI where it is set, else SQLite at the project's root."""
    home = lineage.store_root(root)
    given = os.environ.get("MLFLOW_TRACKING_URI", "").strip()
    if not given:
        return Store(f"sqlite:///{home / DATABASE}", home, (home / ARTIFACTS).as_uri())
    relative = re.fullmatch(r"sqlite:///([^/].*)", given)  # three slashes: relative to whichever folder one is in
    return Store(f"sqlite:///{home / relative[1]}" if relative else given, home, None)


def connect(where: Store) -> Server | None:
    """The MLflow client, or None with a sentence. Imported here, on the main thread: a thread that is importing while a
    loader forks leaves the child with a lock that nobody opens."""
    if os.environ.get("LACUNA_TRACKING", "").lower() == "off":
        return None
    for name, value in SERVER_DEFAULTS.items():
        os.environ.setdefault(name, value)
    try:
        importlib.import_module("mlflow")
        importlib.import_module("mlflow.tracking")
    except ImportError as error:
        log.warning("tracking is off: mlflow cannot be imported (%s). Numbers go to metrics.jsonl in the report. To "
                    "compare runs in MLflow: pip install 'lacuna[tracking]'", reason(error))
        return None
    for name in ("mlflow", "alembic", "urllib3.connectionpool"):
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # a traceback for what we say in a sentence
    warnings.filterwarnings("ignore", message=".*input example was not provided")
    return Server(where)


class Server:
    """Delivers events to MLflow. Used by one thread at a time; every method may fail, and delivering again does no
    harm."""

    def __init__(self, where: Store) -> None:
        self.store = where
        self.opened: dict[str, Any] = {}
        """What run.json takes over: ids, and the registered model."""
        self._client: Any = None
        self._data: tuple[str | None, str | None] = (None, None)  # name and digest of what a model's metrics are of

    def deliver(self, event: Event) -> None:
        """Send one event. Raises Refusal for one that the server will never take, and whatever the client raises."""
        from mlflow.exceptions import MlflowException

        ways: dict[str, Callable[[Event], None]] = {
            "open": self._open, "metrics": self._metrics, "tags": self._tags, "artifact": self._artifact,
            "model": self._model, "child": self._child, "end": self._end}
        try:
            ways[event["op"]](event)
        except MlflowException as error:
            if error.error_code in NEVER_TAKEN:
                raise Refusal(str(error)) from error
            raise

    @property
    def client(self) -> Any:
        """The client, made under a lock at first use: two processes that create the database's tables at once
        collide."""
        if self._client is None:
            with self._locked():
                self._client = self._ready_client()
        return self._client

    def _ready_client(self) -> Any:
        import mlflow
        from mlflow.exceptions import MlflowException

        client = mlflow.MlflowClient(self.store.uri, self.store.uri)
        try:
            client.search_experiments(max_results=1)
        except MlflowException as error:
            if self.store.artifacts is None or "out-of-date database schema" not in str(error):
                raise
            self._upgrade()
            client.search_experiments(max_results=1)
        return client

    def _upgrade(self) -> None:
        """Our own store, written by an older MLflow: keep a copy, then bring it up to date."""
        database = self.store.root / DATABASE
        copy = database.with_name(f"{DATABASE}-before-upgrade-{time.strftime('%Y%m%d-%H%M%S')}")
        shutil.copyfile(database, copy)
        log.warning("tracking: %s was written by an older MLflow; it is upgraded, and %s keeps it as it was.",
                    DATABASE, copy.name)
        command = [sys.executable, "-P", "-m", "mlflow", "db", "upgrade", self.store.uri]
        subprocess.run(command, check=True, capture_output=True)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Held over what two processes must not do at once: creating tables, and find-or-create."""
        local = self.store.uri.removeprefix("sqlite:///") if self.store.uri.startswith("sqlite:///") else ""
        path = Path(f"{local}-lock") if local else self.store.root / ".work" / "tracking.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    # ---- events

    def _open(self, event: Event) -> None:
        client = self.client
        with self._locked():
            experiment = self._experiment(event["experiment"])
            run = self._find(experiment, f"tags.`lacuna.run` = '{event['key']}'")
            if run is None:
                parent = self._parent(experiment, event)
                run = client.create_run(experiment, start_time=event["time"], run_name=event["name"], tags={
                    "mlflow.parentRunId": parent, "lacuna.run": event["key"], "lacuna.role": CHILD,
                    "lacuna.pipeline": event["pipeline"], "mlflow.source.name": "lacuna", "mlflow.source.type": "LOCAL",
                    "mlflow.source.git.commit": event["tags"].get("git.commit", "")})
        parent = run.data.tags.get("mlflow.parentRunId")
        self.opened = {**self.opened, "run_id": run.info.run_id, "parent_run_id": parent, "experiment_id": experiment}
        for identity in filter(None, (run.info.run_id, parent)):
            client.update_run(identity, status="RUNNING")
        data = [(path, digest) for path, digest in event["inputs"] if path.startswith("data/prepared/")]
        self._data = data[0] if data else (None, None)
        self._batch({"params": event["params"], "tags": event["tags"]})
        self._inputs(event)

    def _experiment(self, name: str) -> str:
        found = self.client.get_experiment_by_name(name)
        if found is None:
            return str(self.client.create_experiment(name, self.store.artifacts, EXPERIMENT_TAGS))
        if found.lifecycle_stage == "deleted":
            self.client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)

    def _find(self, experiment: str, text: str) -> Any:
        found = self.client.search_runs([experiment], text, max_results=1)
        return found[0] if found else None

    def _parent(self, experiment: str, event: Event) -> str:
        """The invocation's run in this experiment. MLflow nests runs of one experiment only, so that a pipeline over
        several domains has one in each, all with the same tag `lacuna.pipeline`."""
        key = event["pipeline"]
        run = self._find(experiment, f"tags.`lacuna.pipeline` = '{key}' and tags.`lacuna.role` = '{PARENT}'")
        if run is None:
            run = self.client.create_run(experiment, event["time"], run_name=event.get("called", "pipeline"), tags={
                "lacuna.pipeline": key, "lacuna.role": PARENT, "mlflow.source.name": "lacuna",
                "mlflow.source.type": "LOCAL", "git.commit": event["tags"].get("git.commit", "")})
        return str(run.info.run_id)

    def _batch(self, values: Mapping[str, Mapping[str, str]]) -> None:
        """Parameters and tags, a hundred at a time."""
        from mlflow.entities import Param, RunTag

        for kind, make in (("params", Param), ("tags", RunTag)):
            pairs = [make(key, text) for key, text in values.get(kind, {}).items()]
            for first in range(0, len(pairs), 100):
                self.client.log_batch(self.opened["run_id"], **{kind: pairs[first:first + 100]})

    def _inputs(self, event: Event) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        # What MetaDataset would make of them: a name, a source and a digest; nothing is loaded.
        inputs = [DatasetInput(Dataset(name=path, digest=digest, source_type="local", source=json.dumps({"uri": path})),
                               [InputTag("mlflow.data.context", event["context"])]) for path, digest in event["inputs"]]
        if inputs:
            self.client.log_inputs(self.opened["run_id"], datasets=inputs)

    def _metrics(self, event: Event) -> None:
        from mlflow.entities import Metric

        self.client.log_batch(self.opened["run_id"], metrics=[Metric(*point) for point in event["points"]])

    def _tags(self, event: Event) -> None:
        self._batch({"tags": event["values"]})

    def _artifact(self, event: Event) -> None:
        if not Path(event["file"]).is_file():
            raise Refusal(f"{Path(event['file']).name} is gone")
        self.client.log_artifact(self.opened["run_id"], event["file"], event["folder"])

    def _child(self, event: Event) -> None:
        """A finished part of the run, as a run below it; found again by its key when the event comes twice."""
        from mlflow.entities import Metric, Param, RunTag

        client, experiment = self.client, self.opened["experiment_id"]
        run = self._find(experiment, f"tags.`lacuna.run` = '{event['key']}'") or client.create_run(
            experiment, start_time=event["started"], run_name=event["name"], tags={
                "mlflow.parentRunId": self.opened["run_id"], "lacuna.run": event["key"], "lacuna.role": PART})
        params, tags = ([make(key, text) for key, text in event[kind].items()]
                        for kind, make in (("params", Param), ("tags", RunTag)))
        known = run.info.status == "FINISHED"  # its numbers and its end are there
        client.log_batch(run.info.run_id, [] if known else [Metric(*point) for point in event["points"]], params, tags)
        if not known:
            client.set_terminated(run.info.run_id, "FINISHED", end_time=event["time"])

    def _end(self, event: Event) -> None:
        """Close the run and its parent, which is what the worst of its stages is: one that goes on may end well."""
        client, parent = self.client, self.opened["parent_run_id"]
        client.set_terminated(self.opened["run_id"], event["status"], end_time=event["time"])
        if parent is None:
            return
        stages = client.search_runs([self.opened["experiment_id"]], f"tags.`mlflow.parentRunId` = '{parent}'")
        worst = max((run.info.status for run in stages), key=STATUSES.index)
        client.set_terminated(parent, worst, end_time=event["time"])

    # ---- models

    def _model(self, event: Event) -> None:
        """Log a checkpoint as a pyfunc, register it, and move the alias to it. The code that runs it goes along, so
        that a registered model still loads when the project has moved on, and where the project is not installed."""
        import mlflow

        from pipelines.prediction import pyfunc

        folder = Path(event["folder"])
        if not folder.is_dir():
            raise Refusal(f"checkpoint {folder.name} is gone")
        card = pyfunc.describe(folder)
        version = self._registered(event["name"], card.tags["model.weights"])
        if version is None:
            _set_default(self.store.uri)  # Model.log takes no address
            run = self.client.get_run(self.opened["run_id"])
            model = self.client.create_logged_model(
                run.info.experiment_id, event["name"], run.info.run_id, card.tags, run.data.params)
            with _patient():
                mlflow.models.Model.log(
                    artifact_path=None, name=event["name"], model_id=model.model_id, run_id=run.info.run_id,
                    flavor=pyfunc.unasked(mlflow.pyfunc), loader_module=pyfunc.__name__, data_path=str(folder),
                    code_paths=[*map(str, pyfunc.CODE)], signature=_signature(card), input_example=card.example,
                    validate_serving_input=False, pip_requirements=list(card.requirements), metadata=card.tags)
            if not self.client.search_registered_models(f"name = '{event['name']}'"):
                self.client.create_registered_model(event["name"])
            version = self.client.create_model_version(
                event["name"], f"models:/{model.model_id}", run_id=run.info.run_id, model_id=model.model_id)
        self._describe_version(event, card, version)

    def _registered(self, name: str, weights: str) -> Any:
        """The version that this run has registered already, when an event comes a second time."""
        run_id = self.opened["run_id"]
        found = self.client.search_model_versions(f"name = '{name}'")
        return next((v for v in found if v.run_id == run_id and v.tags.get("model.weights") == weights), None)

    def _describe_version(self, event: Event, card: Any, version: Any) -> None:
        from mlflow.entities import Metric

        client, name, number = self.client, event["name"], version.version
        run_id, model_id = self.opened["run_id"], version.source.removeprefix("models:/")
        tags = client.get_run(run_id).data.tags
        origin = ("git.commit", "lacuna.run", "lacuna.upstream", "lacuna.fingerprint")
        for key, text in {**card.tags, **{key: tags[key] for key in origin if key in tags}}.items():
            client.set_model_version_tag(name, number, key, text)
        if event["metrics"]:
            now = int(time.time() * 1000)
            client.log_batch(run_id, metrics=[
                Metric(key, value, now, 0, model_id=model_id, dataset_name=self._data[0], dataset_digest=self._data[1])
                for key, value in event["metrics"].items()])
        if event["alias"]:
            client.set_registered_model_alias(name, event["alias"], number)
        self.opened["model"] = {"name": name, "version": int(number), "model_id": model_id,
                                "uri": f"models:/{name}/{number}", "alias": event["alias"], **card.tags}

    # ---- reading

    def search(self, stage: str) -> list[dict[str, Any]]:
        """Runs of all our experiments as plain values, newest first."""
        ours = self.client.search_experiments(filter_string="name LIKE 'lacuna/%'")
        experiments = {experiment.experiment_id: experiment.name for experiment in ours}
        text = f"tags.`lacuna.role` = '{CHILD}'" + (f" and tags.`lacuna.stage` = '{stage}'" if stage else "")
        found, token = list[Any](), None
        while experiments:
            page = self.client.search_runs(list(experiments), text, max_results=1000, page_token=token)
            found, token = found + list(page), page.token
            if not token:
                break
        found.sort(key=lambda run: -run.info.start_time)  # a server sorts within each experiment
        return [{"run_id": run.info.run_id, "experiment": experiments[run.info.experiment_id],
                 "run_name": run.info.run_name, "status": run.info.status, "start_time": run.info.start_time,
                 "end_time": run.info.end_time, "params": dict(run.data.params), "metrics": dict(run.data.metrics),
                 "tags": {k: v for k, v in run.data.tags.items() if not k.startswith("mlflow.")}} for run in found]


@contextlib.contextmanager
def _patient() -> Iterator[None]:
    """Time for a server to store a large file before it answers. Only our one thread talks to it."""
    name, before = "MLFLOW_HTTP_REQUEST_TIMEOUT", os.environ.get("MLFLOW_HTTP_REQUEST_TIMEOUT", "0")
    os.environ[name] = str(max(int(before), UPLOAD_TIMEOUT))
    try:
        yield
    finally:
        os.environ[name] = before


def _set_default(uri: str) -> None:
    """MLflow's process-wide address. It also writes the environment variable, which would pass for a user's choice."""
    import mlflow

    before = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    if before is not None:
        os.environ["MLFLOW_TRACKING_URI"] = before


def _signature(card: Any) -> Any:
    from mlflow.models.signature import ModelSignature
    from mlflow.types.schema import ColSpec, ParamSchema, ParamSpec, Schema

    inputs, outputs = (Schema([ColSpec(kind, name) for name, kind in which]) for which in (card.inputs, card.outputs))
    params = ParamSchema([ParamSpec(name, kind, default) for name, kind, default in card.params])
    return ModelSignature(inputs=inputs, outputs=outputs, params=params)


@contextlib.contextmanager
def system_metrics(server: Server | None) -> Iterator[None]:
    """MLflow's own sampling of CPU, memory and GPU, for those who ask for it by its usual variable."""
    asked = os.environ.get("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "").lower() in ("true", "1")
    if not asked or server is None or not server.opened:
        yield
        return
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    monitor = SystemMetricsMonitor(server.opened["run_id"], resume_logging=True, tracking_uri=server.store.uri)
    monitor.start()
    try:
        yield
    finally:
        monitor.finish()
