"""Reads untrusted files in limited child processes: the parent sees pieces or a reason, whatever a file does.

A child reads file after file, so that isolation costs little; when a file makes it crash, hang or run out of memory,
that one file is quarantined and the child replaced. Results come back in the order of the rows. Of a file too large to
be held whole come parts, the next of which is asked for when the one before has been taken.
"""

from __future__ import annotations

import dataclasses
import os
import selectors
import signal
import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from domains import frames, worker
from domains.frames import MAX_REASON
from domains.outcome import DISHONEST, Outcome, outcome_of
from domains.reading_process import Child, Frame
from domains.sample import ManifestRow, Piece, mask_shape

WINDOW_PER_WORKER = 256
"""Rows that may be read ahead of the one that is due, per worker: a slow file must not let results pile up."""
READ_AHEAD_BYTES = 512 * 2**20
"""Results that may wait for the one that is due."""
FEEDING_SECONDS = 0.02
"""How long rows are gathered before they are sent: those of a data folder elsewhere are fetched first."""
LIED = "the reader broke its protocol"


@dataclass(frozen=True)
class Limits:
    """What one file may take before it is quarantined, and how many are read at once."""

    memory_gb: float = 2.0
    """Memory that a reading process may allocate, in GiB. What it maps does not count: libraries, arrays on the disk.
    """
    seconds: int = 20
    """Time for one file, or one part of it. The clock stands still while the process waits for a free processor, three
    times as long at most."""
    workers: int = 0
    """Reading processes. 0: one per CPU core, eight at most."""

    def __post_init__(self) -> None:
        if self.memory_gb < 0.5 or self.seconds < 1 or self.workers < 0:
            raise ValueError(f"limits: found memory_gb {self.memory_gb}, seconds {self.seconds}, workers "
                             f"{self.workers}; expected at least 0.5, 1 and 0.")

    @property
    def num_workers(self) -> int:
        """Reading processes on this machine."""
        return self.workers or min(8, len(os.sched_getaffinity(0)))


@dataclass(frozen=True)
class Reader:
    """What a child runs on each row: `read(row, settings)` of a module."""

    module: str
    """Import name of the domain's ingest module."""
    settings: object
    """The reader's settings: a dataclass at the top level of a module."""


@contextmanager
def spare_children() -> Iterator[list[Child]]:
    """Where `read_all` leaves its children for the next call by the same reader and limits: starting one costs as much
    as reading a hundred small files. They are ended in the end."""
    spare: list[Child] = []
    try:
        yield spare
    finally:
        for child in spare:
            child.deadline = 0.0
            child.end()


def read_all(rows: Sequence[ManifestRow], reader: Reader, limits: Limits, spare: list[Child] | None = None
             ) -> Generator[Outcome]:
    """Read every row; one outcome each (several for a file that comes in parts), in the rows' order.

    Args:
        spare: children that are taken first, and left again; from `spare_children`.

    Raises:
        ImportError: the reader lacks a library; the text names the extra to install.
        RuntimeError: a child cannot even start.
    """
    if rows:
        pool = _Pool(rows, reader, limits, spare)
        try:
            yield from pool.run()
        finally:
            pool.close()


class _Pool:
    def __init__(self, rows: Sequence[ManifestRow], reader: Reader, limits: Limits, spare: list[Child] | None) -> None:
        self.rows, self.reader, self.limits, self.spare = rows, reader, limits, spare
        self.selector = selectors.DefaultSelector()
        self.children: list[Child] = []
        self.next_row, self.due = 0, 0
        self.again: deque[int] = deque()
        self.suspects: set[int] = set()
        self.asked: dict[int, ManifestRow] = {}
        self.done: dict[int, Outcome] = {}
        self.before: dict[int, Outcome] = {}
        self.waiting_bytes = 0
        for _ in range(min(limits.num_workers, len(rows))):
            self._start()

    def run(self) -> Iterator[Outcome]:
        while self.due < len(self.rows):
            self._feed()
            self._receive()
            while self.due in self.done:
                outcome = self.done.pop(self.due)
                self.waiting_bytes -= outcome.num_bytes
                if outcome.more:  # only now, so that no more than one part of a file waits here
                    self.before[self.due] = dataclasses.replace(outcome, pieces=[])
                    self.again.appendleft(self.due)
                else:
                    self.before.pop(self.due, None)
                    self.due += 1
                yield outcome

    def close(self) -> None:
        for child in self.children:
            if self.spare is not None and child.is_idle():
                self.spare.append(child)
                continue
            child.deadline = 0.0
            child.end()
        self.selector.close()

    def _start(self) -> None:
        child = self._spare_child() or Child(self.reader.module, self.reader.settings,
                                             int(self.limits.memory_gb * 2**30), self.limits.seconds)
        self.children.append(child)
        self.selector.register(child.stdout, selectors.EVENT_READ, child)

    def _spare_child(self) -> Child | None:
        while self.spare:
            child = self.spare.pop()
            if child.is_idle():
                return child
            child.end()  # it has died meanwhile
        return None

    def _feed(self) -> None:
        """Give every child one row to read and one or more in hand, by turns."""
        # Towards the end rows are few: one process must not have them all in hand while others have none.
        most = max(2, (len(self.rows) - self.next_row) // (2 * len(self.children)))
        hungry = [child for child in self.children if len(child.pending) <= min(child.ahead, most) // 2]
        fed, began = hungry, time.monotonic()
        while fed and time.monotonic() - began < FEEDING_SECONDS:
            fed = [child for child in fed if len(child.pending) < min(child.ahead, most) and self._give(child)]
        for child in hungry:
            child.flush()

    def _give(self, child: Child) -> bool:
        """One row more, if there is one and it may be given."""
        # Rows that a dead child left behind come first: one of them is due soonest.
        i = self.again[0] if self.again else self.next_row
        full = i >= self.due + WINDOW_PER_WORKER * len(self.children) or self.waiting_bytes > READ_AHEAD_BYTES
        if i >= len(self.rows) or (full and i != self.due):
            return False
        if child.pending and not self.suspects.isdisjoint((i, child.pending[-1])):
            return False
        row = self._row(i)
        request = frames.request_of(row)
        if child.pending and len(request) + child.asked_bytes > child.room:
            return False
        if not self.again:
            self.next_row += 1
        else:
            self.again.popleft()
        self.asked[i] = row
        child.ask(i, request)
        return True

    def _row(self, i: int) -> ManifestRow:
        """What a child is asked: a row, or the part of it that is next."""
        return dataclasses.replace(self.rows[i], part=self.before[i].row.part + 1) if i in self.before else self.rows[i]

    def _receive(self) -> None:
        patience = max(0.0, min(child.deadline for child in self.children) - time.monotonic())
        arrived = self.selector.select(timeout=min(patience, 1.0))
        for key, _ in arrived:
            self._take(key.data)
        # Only children from whom nothing waited to be read can be late: this process may itself have been slow.
        heard = {id(key.data) for key, _ in arrived}
        for child in list(self.children):
            if id(child) not in heard and child.is_late():
                self._replace(child, f"took longer than the {self.limits.seconds} s of limits.seconds"
                              if child.ready else "")

    def _take(self, child: Child) -> None:
        before = len(child.pending)
        try:
            while (frame := child.receive()) is not None:
                self._finish(child, frame)
                child.took(frame)
                if not child.has_more:  # it may have by now: then the selector says so at once
                    break
            child.heard(before - len(child.pending))
            child.start_clock()
        except EOFError:
            self._replace(child, "")
        except DISHONEST:
            self._replace(child, LIED)

    def _finish(self, child: Child, frame: Frame) -> None:
        header, payload, said, begin = frame.header, frame.payload, 0, 0
        if "missing" in header:
            raise ImportError(str(header["missing"])[:MAX_REASON])
        if "ready" in header:
            child.ready = True
            return
        if len(header["answers"]) > len(child.pending):
            raise ValueError("answers to what was not asked")
        words = frame.lines(sum(header["pieces"]))
        for answer, num, size in zip(header["answers"], header["pieces"], header["bytes"], strict=True):
            if not (0 <= num <= len(words) - said and 0 <= size <= len(payload) - begin):
                raise ValueError("an answer larger than its frame")
            self._answered(child, {**answer, "pieces": words[said:said + num], "peak_bytes": header["peak_bytes"]},
                           _own(payload, begin, size))
            said, begin = said + num, begin + size
        if begin != len(payload):
            raise ValueError("answers do not fill their frame")

    def _answered(self, child: Child, answer: dict[str, Any], payload: bytearray | np.ndarray) -> None:
        if "missing" in answer:
            raise ImportError(str(answer["missing"])[:MAX_REASON])
        i = child.pending[0]
        if answer.get("memory") is True:
            answer["refused"] = f"needs more memory than the {self.limits.memory_gb:g} GiB of limits.memory_gb"
        outcome = outcome_of(self.asked[i], i, answer, payload)
        if i in self.before and outcome.sha256 != self.before[i].sha256:
            changed = "the file changed while it was read"
            outcome = dataclasses.replace(outcome, pieces=[], more=False, reason=changed)
        self._settle(child.take_answered(), outcome)

    def _settle(self, i: int, outcome: Outcome) -> None:
        if outcome.reason and i in self.before:
            outcome = dataclasses.replace(outcome, reason=f"from part {outcome.row.part + 1} on: {outcome.reason}")
        del self.asked[i]
        self.suspects.discard(i)
        self.done[i] = outcome
        self.waiting_bytes += outcome.num_bytes

    def _replace(self, child: Child, reason: str) -> None:
        """Quarantine the row that a child ended on, and start another child for the rest."""
        self.selector.unregister(child.stdout)
        self.children.remove(child)
        if reason:
            child.process.kill()
        code = child.end()
        if not child.ready:
            raise RuntimeError(f"the reading process ended before it was ready (exit code {code}). Expected it to "
                               f"import {self.reader.module}. Remedy: raise limits.memory_gb "
                               f"({self.limits.memory_gb}), or free memory on this machine.")
        if reason == LIED and (len(child.pending) > 1 or child.has_answered):
            # While a lie was on its way other files may have been begun: each is read again with none beside it, and
            # blamed where it was the only one that a child ever had.
            self.suspects.update(child.pending)
        elif child.pending:
            guilty = child.take_guilty()
            row = self.asked[guilty]
            self._settle(guilty, Outcome(row, guilty, reason=reason or _ending(code), sha256=_hash_or_nothing(row)))
        self.again.extendleft(reversed(child.pending))
        self._start()


def _own(payload: bytearray | memoryview, begin: int, size: int) -> bytearray | np.ndarray:
    """A part of a frame, copied, so that whoever keeps one sample does not keep all that came with it, and that the
    child, which may still write to a frame in shared memory, changes nothing once it has been looked at."""
    if isinstance(payload, bytearray) and size == len(payload):
        return payload
    return np.frombuffer(payload, np.uint8, size, begin).copy()  # numpy's memory: on huge pages, where it is large


def _ending(code: int) -> str:
    if code >= 0:
        return f"the reader ended with exit code {code}"
    name = signal.Signals(-code).name
    return f"the reader crashed ({name}{', probably for lack of memory' if name == 'SIGKILL' else ''})"


def _hash_or_nothing(row: ManifestRow) -> str:
    try:
        return worker.hash_of(row.path)
    except OSError:  # no such file: that is the reason's business
        return ""


def fault(piece: Piece, dtype: str, num_channels: int, num_dims: int, unknown: float | None) -> str:
    """Why a piece does not keep its contract; empty when it does.

    Args:
        num_dims: 2 for points, 3 for images, 4 for volumes.
    """
    values, mask = piece.values, piece.mask
    if values.dtype != np.dtype(dtype) or values.ndim != num_dims:
        return f"found {values.dtype} with {values.ndim} dimensions, expected {dtype} with {num_dims}"
    found = values.shape[-1] if num_dims == 2 else values.shape[0]
    if found != num_channels:
        return f"found {found} channels, expected {num_channels}"
    if mask is not None and (mask.dtype != np.uint8 or mask.shape != mask_shape(values.shape)):
        return f"found a mask of {mask.dtype} {mask.shape}, expected uint8 {mask_shape(values.shape)}"
    if values.dtype.kind == "f":
        finite = np.isfinite(values)
        if np.isinf(values).any() or (unknown is None and not finite.all()):
            return "found values that are not finite"
        if not finite.any():
            return "found no known value"
    return ""
