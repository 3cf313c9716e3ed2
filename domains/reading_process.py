"""One limited child process, seen from its parent: how it is started, fed, timed, heard and ended."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import subprocess
import sys
import time
from collections import deque
from typing import Any, NamedTuple

from domains import frames, worker
from domains.frames import IN_PIPE, OPENING, Opening
from domains.shared_memory import Inbox

START_SECONDS = 120
"""How long a child may take to import its reader on a busy machine."""
MOST_PATIENCE = 3
"""Times the limit in seconds that a file gets at most on a machine too busy to let its process run."""
PIPE_BYTES = 2**20
"""What a child may write before the parent has read it."""
COME_BYTES = 2**20 + 2**18
"""Read at once: one call brings a whole frame that answers for several small files."""
MOST_AHEAD, AHEAD_SECONDS = frames.MOST_ROWS, 0.2
"""Rows that a child has in hand, the one that it reads included: two, or more where they take so little time that it
answers several at once."""
ACCOUNT_SECONDS = 0.5
"""For how long what the kernel says of a process's waiting is taken to be true still."""
_ENVIRONMENT = ("PATH", "HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "TZ", "TMPDIR", "GDAL_DATA", "PROJ_DATA",
                "PROJ_LIB")
"""What a child inherits: no credentials, which a parser has no use for."""


_ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(2**25), "MALLOC_TRIM_THRESHOLD_": str(2**27)}
"""For glibc: arrays of less than 32 MB come from memory that the process has already, of which it keeps 128 MB. Else
each array of some megabytes is asked of the system and given back, and the pages, zeroed anew, cost a film of
1,024 x 1,024 as much as all else that is done to it (docs/benchmarks.md)."""


class Frame(NamedTuple):
    """One frame of a child, of which nothing has been believed yet."""

    header: Any
    words: bytes
    """The lines after the header."""
    payload: bytearray | memoryview
    """Arrays; to be copied before they are looked at, and before `took`."""
    shared: bool
    """Whether they lie in memory that the child can write to."""

    def lines(self, num: int) -> list[bytes]:
        """The lines after the header. Raises ValueError where they are not `num`."""
        if self.words.count(b"\n") + 1 != max(num, 1) or (num == 0 and self.words):
            raise ValueError("other words than the header tells of")
        return self.words.split(b"\n") if num else []


class Child:
    """One child process and the state of the reply that is being received."""

    def __init__(self, module: str, settings: object, memory_bytes: int, seconds: int) -> None:
        kept = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        # One thread per child: the pool is the parallelism, and each BLAS thread would take address space.
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        places = json.dumps([os.path.abspath(place) for place in sys.path])
        self._inbox, self._token = Inbox(), secrets.token_bytes(frames.TOKEN_BYTES)
        self._heard_rows, self._unheard = 0, 0
        # -P: a json.py in the folder where the user stands is not what START imports.
        self.process = subprocess.Popen(
            [sys.executable, "-B", "-P", "-c", worker.START, places],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, pass_fds=[self._inbox.file],
            env={**kept, **threads, **_ALLOCATOR})
        assert self.process.stdin is not None and self.process.stdout is not None
        self.stdin, self.stdout = self.process.stdin, self.process.stdout
        os.set_blocking(self.stdout.fileno(), False)
        # Large arrays in fewer pieces: every one costs two switches between the processes.
        with contextlib.suppress(PermissionError):  # the user's allowance of pipe memory is spent; slower, not wrong
            fcntl.fcntl(self.stdout.fileno(), fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self.room = fcntl.fcntl(self.stdin.fileno(), fcntl.F_GETPIPE_SZ) // 2
        """Requests below this size together fit the pipe while the child is busy, so that sending them cannot block:
        of each page of it at least half is used."""
        self.max_bytes = memory_bytes
        self.seconds = seconds
        self.pending: deque[int] = deque()
        self.asked_bytes, self._asked_each = 0, deque[int]()
        self.ahead = 2
        self.ready = False
        self.begun, self.waited, self.asked_at = time.monotonic(), 0.0, -ACCOUNT_SECONDS
        self.deadline = self.begun + START_SECONDS
        self._come = memoryview(bytearray(COME_BYTES))
        self._left = memoryview(b"")
        self._expect_frame()
        self.write(json.dumps({"module": module, "settings": frames.encode(settings), "memory_bytes": memory_bytes,
                               "last_second": MOST_PATIENCE * seconds, "shared": self._inbox.file,
                               "token": self._token.hex()}).encode() + b"\n")
        self.flush()

    def ask(self, row: int, line: bytes) -> None:
        """One row more is pending."""
        self.pending.append(row)
        self._asked_each.append(len(line))
        self.asked_bytes += len(line)
        if len(self.pending) == 1:
            self.start_clock()
        self.write(line)

    def write(self, line: bytes) -> None:
        """One line, sent with the next `flush`. A child that has just died is noticed when its reply channel ends."""
        try:
            self.stdin.write(line)
        except BrokenPipeError:
            self.deadline = 0.0

    def flush(self) -> None:
        """Send what was written."""
        try:
            self.stdin.flush()
        except BrokenPipeError:
            self.deadline = 0.0

    def heard(self, rows: int) -> None:
        """Replies to so many rows have come together: from how long they took follows how many it is given ahead."""
        if rows:
            took = max(time.monotonic() - self.begun, 1e-6)
            self.ahead = max(2, min(MOST_AHEAD, int(AHEAD_SECONDS * rows / took)))

    def take_answered(self) -> int:
        """The row that a reply belongs to, which is pending no more."""
        self._heard_rows += 1
        self.asked_bytes -= self._asked_each.popleft()
        return self.pending.popleft()

    def take_guilty(self) -> int:
        """Once it has ended: the row that it ended on, which is pending no more. It may have finished others since it
        was last heard; and it may have written nonsense into the memory that both see."""
        guilty = self.pending[min(max(self._unheard, 1), len(self.pending)) - 1]
        self.pending.remove(guilty)
        return guilty

    @property
    def has_answered(self) -> bool:
        """Whether it has read any file before those that are pending."""
        return self._heard_rows > 0

    def is_idle(self) -> bool:
        """Whether it is there, starting perhaps, and has nothing to do."""
        return not self.pending and self.process.poll() is None

    def start_clock(self) -> None:
        """The first pending row begins now."""
        if self.ready:
            self.begun = time.monotonic()
            if self.begun - self.asked_at >= ACCOUNT_SECONDS:
                self.asked_at, self.waited = self.begun, self._waiting_for_processor()
            # What is pending first may begin as late as the answers before it are held.
            self.deadline = self.begun + self.seconds + worker.HELD_SECONDS if self.pending else float("inf")

    def is_late(self) -> bool:
        """Whether the time is up. A process that a busy machine has kept waiting gets that time again; one that sleeps
        or hangs does not."""
        now = time.monotonic()
        if now > self.deadline and self.ready and self.deadline:
            waited = self._waiting_for_processor() - self.waited
            self.deadline = self.begun + worker.HELD_SECONDS + min(self.seconds + waited,
                                                                   MOST_PATIENCE * self.seconds)
        return now > self.deadline

    def _waiting_for_processor(self) -> float:
        """Seconds that its main thread has been ready to run and was not let, so far; 0 where the kernel keeps no
        account."""
        try:
            with open(f"/proc/{self.process.pid}/schedstat", encoding="ascii") as file:
                return int(file.read().split()[1]) / 1e9
        except (OSError, IndexError):
            return 0.0

    def _expect_frame(self) -> None:
        self._stage, self._buffer, self._filled = 0, bytearray(OPENING.size), 0
        self._text = b""

    @property
    def has_more(self) -> bool:
        """Whether something has been read of the next frame."""
        return len(self._left) > 0

    def _read(self) -> bool:
        """Go on filling the buffer; what comes beyond it waits. False when nothing has arrived."""
        lacks = len(self._buffer) - self._filled
        if self._left:
            some = self._left[:lacks]
            self._buffer[self._filled:self._filled + len(some)] = some
            self._filled, self._left = self._filled + len(some), self._left[len(some):]
            return True
        with memoryview(self._buffer) as view:
            count = self._arrived([view[self._filled:], self._come])
        self._filled += min(count, lacks)
        self._left = self._come[:max(0, count - lacks)]
        return count > 0

    def _arrived(self, places: list[memoryview]) -> int:
        """Bytes read into the places; 0 when nothing has arrived."""
        try:
            count = os.readv(self.stdout.fileno(), places)
        except BlockingIOError:
            return 0
        if count == 0:
            raise EOFError
        return count

    def receive(self) -> Frame | None:
        """Take what has arrived; a whole frame when there is one, to be used before the next is received. Raises
        EOFError at the end of the stream and ValueError on a frame that no honest child sends."""
        if self._filled == self._stage == 0:
            self._left = self._left or self._come[:self._arrived([self._come])]
            if not self._left:
                return None
            if (frame := self._whole_frame()) is not None:
                return frame
        while True:
            while self._filled < len(self._buffer):
                if not self._read():
                    return None
            if self._stage == 0:
                self._opening = self._checked(self._buffer)
                self._stage, self._filled = 1, 0
                self._buffer = bytearray(self._opening.header + self._opening.words)
            elif self._stage == 1:
                self._text = bytes(self._buffer)
                self._stage, self._filled = 2, 0
                self._buffer = bytearray(self._opening.arrays if self._opening.begin == IN_PIPE else 0)
            else:
                frame = self._frame(self._opening, self._text, self._buffer)
                self._expect_frame()
                return frame

    def _whole_frame(self) -> Frame | None:
        """The next frame, if all of it has come already."""
        first = OPENING.size
        if len(self._left) < first:
            return None
        opening = self._checked(self._left[:first])
        middle = first + opening.header + opening.words
        end = middle + (opening.arrays if opening.begin == IN_PIPE else 0)
        if len(self._left) < end:
            return None
        frame = self._frame(opening, bytes(self._left[first:middle]), self._left[middle:end])
        self._left = self._left[end:]
        return frame

    def _checked(self, packed: bytearray | memoryview) -> Opening:
        """What a reply begins with, if an honest child of this parent may say so now."""
        opening = Opening._make(OPENING.unpack(packed))
        if opening.token != self._token or opening.first != self._heard_rows:
            raise ValueError("a reply out of turn, or by somebody else")
        if (opening.header > frames.MAX_HEADER_BYTES or opening.words > frames.MAX_WORDS_BYTES
                or opening.arrays > self.max_bytes):
            raise ValueError("a reply larger than the limits")
        return opening

    def _frame(self, opening: Opening, text: bytes, payload: bytearray | memoryview) -> Frame:
        shared = opening.begin != IN_PIPE
        return Frame(json.loads(text[:opening.header]), text[opening.header:],
                     self._inbox.arrays(opening.begin, opening.arrays) if shared else payload, shared)

    def took(self, frame: Frame) -> None:
        """Of this frame nothing is needed any more."""
        if frame.shared:
            self._inbox.took()

    def end(self) -> int:
        """Kill, reap and close; returns how the process ended."""
        # A child that crashed by itself has already ended; give it the moment that its exit status needs.
        try:
            self.process.wait(timeout=0.5 if self.deadline else 0.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
        code = self.process.wait()
        try:
            self.stdin.close()
        except BrokenPipeError:  # bytes for a reader that is gone
            pass
        self.stdout.close()
        self._unheard = self._inbox.begun() - self._heard_rows
        self._inbox.close()
        return code
