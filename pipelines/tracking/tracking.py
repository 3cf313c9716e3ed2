"""Runs, curves, pictures, datasets and models in MLflow.

Tracking never stops or slows a step: everything becomes an event that another thread sends
(`pipelines/tracking/spool.py`), a server that fails costs one warning, and the numbers always lie in the stage's report
as well (`pipelines/tracking/tracked_run.py`).

One experiment per domain; in it one parent run per pipeline invocation, and below that a run per stage.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pipelines.settings import fingerprint as fingerprint_of
from pipelines.settings import plain
from pipelines.told_to_stop import ending_on_signals
from pipelines.tracking import lineage, loggable
from pipelines.tracking.mlflow_server import DATABASE, Server, connect, store, system_metrics
from pipelines.tracking.spool import Event, Sender, reason
from pipelines.tracking.spool import sync as sync_spools
from pipelines.tracking.tracked_run import IDENTITY, Run
from pipelines.training.processes import follows

SPOOL = "spool"
"""Under the project's root, ignored by git and DVC: what no server has taken yet."""
OPENING_PATIENCE = 5.0
"""Seconds that a stage's start waits for the server to open its run, so that run.json names the run from the start."""
CLOSING_PATIENCE, FAILING_PATIENCE = 120.0, 3.0
"""Seconds that a stage's end waits for what is still to be sent: to a server that answers (a model may be large), and
to one that has failed or when the stage was told to stop."""

log = logging.getLogger(__name__)
T = TypeVar("T")


def ui_command(root: Path) -> str:
    """The command that shows the runs in a browser, and where to look there: MLflow's pages open on language models."""
    where = store(root)
    hint = "choose `Model training` at the top left"
    command = f"mlflow ui --backend-store-uri sqlite:///{DATABASE}  # then open http://127.0.0.1:5000 and {hint}"
    return command if where.artifacts else f"open {where.shown} and {hint}"


@contextlib.contextmanager
def open_run(*, stage: str, name: str, root: Path, settings: Any, domain: str,
             inputs: Mapping[str, str | None] | None = None, fingerprint: str = "",
             resume_folder: Path | None = None) -> Iterator[Run]:
    """Track one stage. Whatever happens to the server, the block runs; run.json and metrics.jsonl are written.

    Args:
        root: the project as the stage sees it; its reports/ is written. (The store may lie elsewhere: DVC_ROOT.)
        settings: the resolved settings, a dataclass or a mapping; logged as parameters.
        inputs: what the stage reads, relative to `root`, with a digest where the caller knows one. Inside a DVC stage
            DVC's own is taken; where neither knows, it is computed.
        fingerprint: of settings, data and code; its beginning goes into the run's name.
        resume_folder: where the stage keeps its resume state. A stage that was killed and starts again with the same
            folder goes on with the same run; a stage that ended well starts a new one.
    """
    started = time.time()
    report = lineage.run_file(stage, name, root).parent
    if follows():  # their numbers are the first process's, or have been gathered by it
        yield Run({"key": ""}, report, None, silent=True)
        return
    record, opening = _describe(stage, name, root, settings, domain, inputs or {}, fingerprint, resume_folder, started)
    server = connect(store(root))
    record["tracking"] = "off" if server is None else "on"
    sender = None if server is None else Sender(opening, server.deliver, server.store.root / SPOOL)
    run = Run(record, report, sender.put if sender else None, resume_folder)
    status = "FAILED"
    try:
        with ending_on_signals():
            if sender is not None and server is not None:
                sender.wait_for_first(OPENING_PATIENCE)
                run.record |= server.opened
            run.write_record()
            with system_metrics(server):
                yield run
        status = "FINISHED"
    except BaseException as error:
        status = _status_of(error)
        run.tag("lacuna.error", type(error).__name__)  # never the text: it may quote a file
        raise
    finally:
        _close(run, status, sender, server)


def sync(root: Path) -> tuple[int, int]:
    """Send what earlier runs could not. Returns how many runs were sent, and how many are left."""
    where = store(root)
    if not any((where.root / SPOOL).glob("*.jsonl")):
        return 0, 0
    server = connect(where)
    return (0, len(list((where.root / SPOOL).glob("*.jsonl")))) if server is None else \
        sync_spools(where.root / SPOOL, server.deliver)


def search(root: Path, stage: str = "") -> list[dict[str, Any]]:
    """Every run of every domain as plain values, newest first; empty when there is no store yet.

    Raises:
        RuntimeError: with a sentence, when mlflow is missing or the server does not answer.
    """
    where = store(root)
    if where.artifacts and not (where.root / DATABASE).is_file():
        return []
    server = connect(where)
    if server is None:
        raise RuntimeError("runs cannot be listed without mlflow. Install it with: pip install 'lacuna[tracking]'")
    try:
        return server.search(stage)
    except Exception as error:
        raise RuntimeError(f"the MLflow server at {where.shown} did not answer ({reason(error)}). Start it, or unset "
                           "MLFLOW_TRACKING_URI to use the local store.") from error


def _describe(stage: str, name: str, root: Path, settings: Any, domain: str, inputs: Mapping[str, str | None],
              fingerprint: str, resume_folder: Path | None, started: float) -> tuple[dict[str, Any], Event]:
    """What run.json says, and the event that opens the run."""
    digests: dict[str, str] = _or_nothing(lambda: lineage.digests(inputs, root), {})
    values = plain(settings)
    fingerprint = fingerprint or fingerprint_of(stage, name, values, digests)
    key, lives = _identity(resume_folder)
    git = lineage.git_state(root)

    def shown(path: str) -> str:
        return loggable.path_or_text(path, root.resolve())

    upstream: list[str] = _or_nothing(lambda: lineage.upstream(inputs, root), [])
    from_dvc: dict[str, str] = _or_nothing(lambda: lineage.stage_dependencies(root), {})
    record = {
        "run_id": None, "parent_run_id": None, "experiment_id": None, "experiment": f"lacuna/{domain}",
        "tracking_uri": store(root).shown, "key": key, "lives": lives, "stage": stage, "name": name,
        "fingerprint": fingerprint, "inputs": digests, "upstream": upstream, "commit": git["git.commit"],
        "status": "RUNNING", "model": None,
    }
    tags = {**git, **{f"dvc.dep.{shown(path)}": value for path, value in {**digests, **from_dvc}.items()},
            "lacuna.stage": stage, "lacuna.name": name, "lacuna.fingerprint": fingerprint, "lacuna.lives": lives,
            **({"lacuna.upstream": " ".join(upstream)} if upstream else {}),
            **({"dvc.stage": os.environ["DVC_STAGE"]} if "DVC_STAGE" in os.environ else {}),
            **({"dvc.exp": os.environ["DVC_EXP_NAME"]} if "DVC_EXP_NAME" in os.environ else {})}
    opening: Event = {
        "op": "open", "key": key, "pipeline": lineage.pipeline_key(), "experiment": f"lacuna/{domain}",
        "name": f"{stage}-{name}-{fingerprint[:8]}", "called": lineage.called(stage, name), "time": int(started * 1000),
        "tags": dict(loggable.tag(tag, value) for tag, value in tags.items()),
        "params": loggable.parameters(values, root.resolve()), "context": stage,
        "inputs": [[shown(path), digest] for path, digest in digests.items()],
    }
    return record, opening


def _or_nothing(find: Callable[[], T], nothing: T) -> T:
    """Lineage that cannot be found (a damaged dvc.lock, a file that may not be read) is no reason to fail a stage."""
    try:
        return find()
    except Exception as error:  # whatever a file of somebody else may hold: it is said
        log.warning("tracking: a part of the lineage is left out. %s", reason(error))
        return nothing


def _identity(resume_folder: Path | None) -> tuple[str, int]:
    """The key of the run that a killed stage left in its resume folder, or a new one; and which life of it this is."""
    if resume_folder is not None and (resume_folder / IDENTITY).is_file():
        left = json.loads((resume_folder / IDENTITY).read_text())
        return left["key"], left["lives"] + 1
    return uuid.uuid4().hex, 1


def _status_of(error: BaseException) -> str:
    if isinstance(error, SystemExit) and error.code in (None, 0):
        return "FINISHED"
    return "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"


def _close(run: Run, status: str, sender: Sender | None, server: Server | None) -> None:
    run.close_curves()
    run.record["status"] = status
    if sender is not None and server is not None:
        sender.put({"op": "end", "status": status, "time": int(time.time() * 1000)})
        hurry = sender.failing or status == "KILLED"
        whole = sender.close(FAILING_PATIENCE if hurry else CLOSING_PATIENCE)
        run.record |= server.opened
        run.record["tracking"] = "on" if whole else "spooled"
    run.write_record()
    if status == "FINISHED":
        run.forget_identity()
