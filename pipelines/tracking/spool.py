"""Sends events to a server from a thread of its own, and keeps on disk what the server does not take.

An event is a small dictionary that JSON can hold. `put` only appends to a list, so a step never waits for a server.
What cannot be sent lies in `<folder>/<key>.jsonl`, first line the event that opens the run, until a retry or `sync`
sends it. Sending twice must do no harm: after a cut in the middle an event goes out again.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import re
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from domains import publish

Event = dict[str, Any]
Deliver = Callable[[Event], None]

INTERVAL = 1.0
"""Seconds between two deliveries: one request for many points."""
FIRST_RETRY, LAST_RETRY = 10.0, 300.0
"""Seconds until a server that failed is tried again; doubles from the first to the last."""
MAX_POINTS = 1000
"""Metric points in one request; MLflow takes 1000."""

log = logging.getLogger(__name__)


class Refusal(Exception):
    """The server understood an event and will never take it; keeping it would block those after it."""


def merged(events: list[Event]) -> list[Event]:
    """The same events with neighbouring metrics joined, up to what one request may carry."""
    out: list[Event] = []
    for event in events:
        last = out[-1] if out else {}
        if event["op"] == "metrics" == last.get("op") and len(last["points"]) + len(event["points"]) <= MAX_POINTS:
            last["points"] = last["points"] + event["points"]
        else:
            out.append(dict(event))
    return out


class Sender:
    """Delivers the events of one run, in order.

    Args:
        opening: the event that finds or creates the run; delivered first, and first in the spool, so that a spool can
        be
            sent without anything else.
        deliver: sends one event; raises Refusal for one that is never taken, anything else when the server fails.
    """

    def __init__(self, opening: Event, deliver: Deliver, folder: Path) -> None:
        self._opening, self._deliver, self._folder = opening, deliver, folder
        self._file = folder / f"{opening['key']}.jsonl"
        self._lock = threading.Lock()  # the queue: held for an append or a swap, so that `put` never waits
        self._disk = threading.Lock()  # the spool file and what is being sent
        self._queue: list[Event] = [opening]
        self._sending: list[Event] = []
        self._wake, self._tried = threading.Event(), threading.Event()
        self._closing = self._abandoned = self._spooled = self._warned = False
        self._retry_at, self._delay = 0.0, FIRST_RETRY
        self._held: IO[str] | None = None
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)
        self._thread.start()

    @property
    def failing(self) -> bool:
        """Whether events lie on the disk because the server did not take them."""
        return self._spooled

    def put(self, event: Event) -> None:
        """Hand over an event. Returns at once."""
        with self._lock:
            self._queue.append(event)

    def wait_for_first(self, patience: float) -> bool:
        """Wait until the opening was tried. False when the server is still thinking."""
        return self._tried.wait(patience)

    def close(self, patience: float) -> bool:
        """Send what is left, for at most `patience` seconds; what is not sent then is spooled. True: all was sent."""
        self._closing = True
        self._wake.set()
        self._thread.join(patience)
        with self._disk:
            self._abandoned = True
            left = self._sending + self._take()
            if left:
                self._append(left)
                self._warn("it did not answer in time")
        if self._held is not None:
            self._held.close()
            _claim_file(self._file).unlink(missing_ok=True)
        return not self._spooled

    def _take(self) -> list[Event]:
        with self._lock:
            events, self._queue = self._queue, []
        return events

    def _work(self) -> None:
        while True:
            closing = self._closing  # read before the queue: nothing is put after close
            with self._disk:
                self._sending = merged(self._take())
            if self._sending or (closing and self._spooled):
                self._send(last_chance=closing)
            self._tried.set()
            if closing:
                return
            self._wake.wait(INTERVAL)

    def _send(self, last_chance: bool) -> None:
        if self._spooled and time.monotonic() < self._retry_at and not last_chance:
            with self._disk:
                if not self._abandoned:
                    self._append(self._sending)
                    self._sending = []
            return
        pending = (read(self._file) if self._spooled else []) + self._sending
        done = 0
        try:
            for event in pending:
                _deliver_or_refuse(self._deliver, event)
                done += 1
        except Exception as error:  # whatever a server, a driver or a network may raise: the run goes on without it
            self._keep(pending[done:], error)
            return
        with self._disk:
            if not self._abandoned:
                self._sending = []
                _remove(self._file)
                self._spooled, self._delay = False, FIRST_RETRY

    def _keep(self, left: list[Event], error: Exception) -> None:
        with self._disk:
            if self._abandoned:
                return
            self._append(left, replace=True)
            self._sending = []
        self._retry_at, self._delay = time.monotonic() + self._delay, min(2 * self._delay, LAST_RETRY)
        self._warn(reason(error))

    def _append(self, events: list[Event], replace: bool = False) -> None:
        new = replace or not self._file.exists()
        if new and events[:1] != [self._opening]:
            events = [self._opening, *events]
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            if self._held is None:
                self._held = _claim(self._file)
            text = "".join(json.dumps(_with_copy(event, self._file)) + "\n" for event in events)
            if new:
                publish.write_text(self._file, text)
            else:
                with self._file.open("a", encoding="utf-8") as file:
                    file.write(text)
            self._spooled = True
        except OSError as error:
            log.warning("tracking: %d events are lost to MLflow, since %s cannot be written (%s); the metrics are in "
                        "the run's metrics.jsonl.", len(events), self._file, error.strerror)

    def _warn(self, why: str) -> None:
        if not self._warned:
            log.warning("tracking: the MLflow server did not take this run's data (%s); the run goes on and keeps it "
                        "in %s. Send it later with `lacuna sync`.", why, self._file)
        self._warned = True


def reason(error: BaseException) -> str:
    """One short line of an error whose text may be a page, without the password that an address in it may hold."""
    lines = re.sub(r"//[^/@\s]*@", "//", str(error)).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__


def read(file: Path) -> list[Event]:
    """The events of a spool file. A last line that a power cut left unfinished is left out."""
    events = []
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            events.append(json.loads(line))
        except json.JSONDecodeError:
            log.warning("tracking: an unfinished line in %s is left out.", file)
    return events


def sync(folder: Path, deliver: Deliver) -> tuple[int, int]:
    """Send every spool file of this folder that no living run writes to.

    Returns:
        How many runs were sent whole, and how many are left.
    """
    sent = left = 0
    for file in sorted(folder.glob("*.jsonl")):
        claim = _claim(file)
        if claim is None:
            log.warning("tracking: %s belongs to a run that is still going; left to it.", file.name)
            left += 1
            continue
        with claim:
            whole = _send_file(file, deliver)
            sent, left = sent + whole, left + (not whole)
        _claim_file(file).unlink(missing_ok=True)
    return sent, left


def _send_file(file: Path, deliver: Deliver) -> bool:
    events = merged(read(file))
    done = 0
    try:
        for event in events:
            _deliver_or_refuse(deliver, event)
            done += 1
    except Exception as error:  # whatever a server, a driver or a network may raise: what is left stays
        publish.write_text(file, "".join(json.dumps(event) + "\n" for event in events[:1] + events[max(done, 1):]))
        log.warning("tracking: %s: %d of %d events sent, then %s.", file.name, done, len(events), reason(error))
        return False
    _remove(file)
    return True


def _deliver_or_refuse(deliver: Deliver, event: Event) -> None:
    try:
        deliver(event)
    except Refusal as error:
        log.warning("tracking: the server refused %s: %s", event["op"], reason(error))


def _with_copy(event: Event, spool: Path) -> Event:
    """Reports may be gone when they are sent (a queued DVC experiment runs in a copy that is deleted): keep their
    files."""
    source = Path(event.get("file", ""))
    if "file" not in event or not source.is_file() or source.is_relative_to(_files_folder(spool)):
        return event
    # A folder for each content: the same name may come again with another picture in it.
    target = _files_folder(spool) / hashlib.sha256(source.read_bytes()).hexdigest()[:16] / source.name
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    return {**event, "file": str(target)}


def _remove(spool: Path) -> None:
    spool.unlink(missing_ok=True)
    shutil.rmtree(_files_folder(spool), ignore_errors=True)


def _files_folder(spool: Path) -> Path:
    return spool.with_suffix(".files")


def _claim_file(spool: Path) -> Path:
    return spool.with_suffix(".claim")


def _claim(spool: Path) -> IO[str] | None:
    """Hold a spool file for this process until the handle is closed; None when another one holds it."""
    handle = _claim_file(spool).open("w")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        handle.close()
        return None
    return handle
