"""One stage's run as the stage sees it: numbers, pictures, tables and tags go in, nothing ever comes out as an error.

Whatever a server does, reports/<stage>/<name>/ holds metrics.jsonl (every number) and run.json (lineage).
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Concatenate, ParamSpec

from domains import publish
from pipelines.tracking import lineage, loggable
from pipelines.tracking.spool import Event, reason

CURVES = "metrics.jsonl"
"""In the report: one line per call of `metrics`, {"step": 10, "time": 1700000000.0, "loss": 0.7}."""
IDENTITY = "tracking.json"
"""In the resume folder: which run a killed stage goes on with."""

log = logging.getLogger(__name__)
P = ParamSpec("P")


def _never_raises(method: Callable[Concatenate[Run, P], None]) -> Callable[Concatenate[Run, P], None]:
    """A stage must not end because a number could not be logged; it is said once per kind of call."""

    @functools.wraps(method)
    def wrapped(self: Run, /, *args: P.args, **kwargs: P.kwargs) -> None:
        try:
            if not self.silent:
                method(self, *args, **kwargs)
        except Exception as error:  # whatever a caller handed in or a disk answers: it is said, the stage goes on
            self.say(method.__name__, f"tracking: {method.__name__} was not logged. {reason(error)}")

    return wrapped


class Run:
    """Made by `tracking.open_run`."""

    def __init__(self, record: dict[str, Any], report: Path, send: Callable[[Event], None] | None,
                 resume: Path | None = None, silent: bool = False) -> None:
        self.record, self.report, self.resume, self.silent = record, report, resume, silent
        self._send = send or (lambda event: None)
        self._said: set[str] = set()
        self._seen: dict[tuple[int, str], float] = {}
        self._curves: list[IO[str]] = []
        if not silent:
            self._open_curves()

    @property
    def run_id(self) -> str | None:
        """MLflow's id; None while no server has seen the run."""
        return self.record.get("run_id")

    @property
    def key(self) -> str:
        """Our own id, known from the start and kept over a resume: the run's tag `lacuna.run`."""
        return str(self.record["key"])

    @_never_raises
    def metrics(self, values: Mapping[str, Any], step: int = 0) -> None:
        """Log numbers. A point that the run logged before it was killed, and computes again, is not logged twice."""
        now = time.time()
        points = dict(loggable.metric(key, value) for key, value in values.items())
        points = {key: value for key, value in points.items() if not self._was_logged(step, key, value)}
        if not points:
            return
        line = json.dumps({"step": step, "time": round(now, 3), **points}) + "\n"
        for file in self._curves:
            file.write(line)
        self._send({"op": "metrics", "points": [[key, value, int(now * 1000), step] for key, value in points.items()]})

    @_never_raises
    def picture(self, path: Path) -> None:
        """Show a PNG or SVG under `pictures`."""
        self._artifact(path, "pictures")

    @_never_raises
    def table(self, path: Path) -> None:
        """Show a CSV under `tables`, when its columns are numbers or may hold text
        (`pipelines/tracking/loggable.py`)."""
        loggable.check_table(path)
        self._artifact(path, "tables")

    @_never_raises
    def tag(self, key: str, value: object) -> None:
        """Set a tag whose key begins with one of loggable.TAG_SPACES."""
        name, text = loggable.tag(key, value)
        self._send({"op": "tags", "values": {name: text}})

    @_never_raises
    def description(self, sentences: Sequence[str], page: str) -> None:
        """What the run's page in MLflow says first.

        Args:
            sentences: what was found.
            page: what summary.txt holds below it: tables of numbers, with names of settings, outputs and sources.
        """
        self._send({"op": "tags", "values": loggable.description(sentences, page)})

    @_never_raises
    def child(self, name: str, settings: Mapping[str, Any], values: Mapping[str, Any], seconds: float,
              tags: Mapping[str, str]) -> None:
        """A finished part of this run, shown as a run below it.

        Args:
            name: what tells it from the other parts of this run; the same name again is the same part.
            settings: logged as its parameters.
            values: numbers of it.
            seconds: how long it took.
        """
        ended = int(time.time() * 1000)
        self._send({"op": "child", "key": hashlib.sha256(f"{self.key} {name}".encode()).hexdigest()[:32], "name": name,
                    "params": loggable.parameters(settings, self.report.parents[2].resolve()),
                    "points": [[*loggable.metric(key, value), ended, 0] for key, value in values.items()],
                    "tags": dict(loggable.tag(key, value) for key, value in tags.items()),
                    "started": ended - int(seconds * 1000), "time": ended})

    @_never_raises
    def model(self, folder: Path, name: str, metrics: Mapping[str, float] | None = None,
              alias: str | None = "champion") -> None:
        """Register a tuned checkpoint folder as a pyfunc that reads native files.

        Args:
            folder: the checkpoint; it must stay as it is until the run has ended.
            name: of the registered model, `lacuna-<track>`.
            metrics: of this model; linked to it beside the run.
            alias: moved to this version; None leaves it where it is.
        """
        points = dict(loggable.metric(key, value) for key, value in (metrics or {}).items())
        self._send({"op": "model", "folder": str(folder.resolve()), "name": name, "metrics": points, "alias": alias})

    def say(self, topic: str, sentence: str) -> None:
        """Warn once per topic."""
        if topic not in self._said:
            self._said.add(topic)
            log.warning("%s", sentence)

    def write_record(self) -> None:
        """Write run.json as things stand."""
        try:
            lineage.write_record(self.report / lineage.RUN_FILE, self.record)
        except OSError as error:
            self.say("record", f"tracking: {self.report / lineage.RUN_FILE} was not written ({error.strerror}).")

    def close_curves(self) -> None:
        """Put metrics.jsonl on the disk."""
        for file in self._curves:
            try:
                file.close()
            except OSError as error:  # a full disk: the stage's own error says so, and must not be hidden by this one
                self.say("curves", f"tracking: {CURVES} was not written to its end ({error.strerror}).")
        self._curves = []

    def forget_identity(self) -> None:
        """A finished run is not gone on with: the next one of the same settings is another run."""
        if self.resume is not None:
            (self.resume / IDENTITY).unlink(missing_ok=True)
            (self.resume / CURVES).unlink(missing_ok=True)

    def _artifact(self, path: Path, folder: str) -> None:
        if not path.is_file():
            raise FileNotFoundError(f"no file {path.name} in {path.parent}")
        self._send({"op": "artifact", "file": str(path.resolve()), "folder": folder})

    def _was_logged(self, step: int, key: str, value: float) -> bool:
        before = self._seen.get((step, key))
        return before is not None and (before == value or (math.isnan(before) and math.isnan(value)))

    def _open_curves(self) -> None:
        """DVC empties the report before a stage runs, so a resumable run keeps its curves in the resume folder too."""
        try:
            self.report.mkdir(parents=True, exist_ok=True)
            if self.resume is not None:
                publish.write_text(self.resume / IDENTITY, json.dumps(
                    {"key": self.key, "lives": self.record["lives"]}) + "\n")
                kept = self.resume / CURVES
                if kept.is_file() and self.record["lives"] > 1:
                    self._seen = dict(_points(kept))
                    shutil.copyfile(kept, self.report / CURVES)
                self._curves.append(kept.open("a" if self._seen else "w", buffering=1, encoding="utf-8"))
            self._curves.append((self.report / CURVES).open("a" if self._seen else "w", buffering=1, encoding="utf-8"))
        except OSError as error:
            self.say("curves", f"tracking: {CURVES} cannot be written in {self.report} ({error.strerror}).")


def _points(file: Path) -> Iterator[tuple[tuple[int, str], float]]:
    """Every point of a metrics.jsonl; a last line cut by a kill is left out."""
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            point = json.loads(line)
        except json.JSONDecodeError:
            continue
        for key in point.keys() - {"step", "time"}:
            yield (point["step"], key), point[key]
