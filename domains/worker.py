"""The child process that parses untrusted files; `domains/quarantine.py` starts, feeds and replaces it.

What it says, and how, is in `domains/frames.py`.
"""

from __future__ import annotations

import ctypes
import gc
import hashlib
import importlib
import json
import os
import resource
import signal
import stat
import time
import traceback
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from domains import frames, links
from domains.frames import decode, describe
from domains.sample import ManifestRow, Part, Piece, Refused
from domains.shared_memory import Outbox

START = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from domains.worker import main; main()"
"""What the child runs: with the parent's import path, so that a folder named `domains` where the user stands is never
imported instead."""
ALARM_SLACK = 5
"""Seconds after the last moment its parent would wait at which a child whose parent is gone ends itself."""
LIBRARY_BYTES = 4 * 2**30
"""Address space beyond the memory limit. Libraries and arrays on the disk are mapped into it, and cost no memory of
their own."""
TIDY_SHARE = 0.25
"""Share of the memory limit that a child may hold on to between files before it gives back what it can."""


MEMORY_SECONDS = 0.02
"""For how long what the kernel says of a process's memory is taken to be true still: asking after every file costs a
small one 1 or 2 %, and in so short a time none leaves much behind."""
SMALL_FILE = 2**18
"""Bytes of a file for which the reply to the one before may wait."""
HELD_WHOLE = 2**24
"""Bytes of a file that is read once, to be hashed and parsed."""
HELD_BYTES, HELD_SECONDS = 3 * 2**18, 0.05
"""Answers that are sent together. Waking the parent costs both sides some tenths of a millisecond, which what both need
to say so takes to come back into the processor's caches: as much as a small file."""
HELD_LETTERS = 2**20
"""Of what is said of the samples of several files, beyond which the next goes into another frame."""
MOST_LETTERS = frames.MAX_WORDS_BYTES - 2 * HELD_LETTERS
"""Of what is said of the samples of one file, or one part of it, so that it fits a frame with those before it."""


def main() -> None:
    """Serve one parent until it closes the pipe."""
    requests, pipe = _Requests(0), os.dup(1)
    # Libraries print header text when they warn; none of it may reach a log or the reply channel.
    silence = os.open(os.devnull, os.O_RDWR)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    order = json.loads(requests.line())
    outbox = Outbox(order["shared"])
    replies = _Replies(pipe, bytes.fromhex(order["token"]), outbox)
    limit_process(order["memory_bytes"])
    memory = _Memory(int(TIDY_SHARE * order["memory_bytes"]))
    try:
        module = importlib.import_module(order["module"])
        settings = decode(order["settings"])
    except ImportError as error:
        replies.say({"missing": str(error)[:frames.MAX_REASON]})
        return
    replies.say({"ready": True})
    for row in requests:
        began = time.monotonic()
        outbox.begin_row()
        signal.alarm(order["last_second"] + ALARM_SLACK)
        content = None if row.part else _content(row.path, SMALL_FILE)
        if content is None and replies.are_held:  # they must not wait for a file that may take long
            _hand_over(replies, memory)
            signal.alarm(order["last_second"] + ALARM_SLACK)
        replies.add(began, _answer(module, settings, row, content))
        if replies.are_due or not requests.waiting:
            _hand_over(replies, memory)


def _hand_over(replies: _Replies, memory: _Memory) -> None:
    signal.alarm(0)  # a parent that takes its time is no fault of a file; one that is gone ends the write
    replies.flush(memory.peak_bytes())
    memory.tidy()


class _Requests:
    """What the parent asks for. All lines that have come are read at once: between two files, whose reading displaces
    everything from the processor's caches, each would take several times as long."""

    def __init__(self, file: int) -> None:
        self._file, self._rows, self._lines, self._rest = file, deque[ManifestRow](), deque[bytes](), b""

    def line(self) -> bytes:
        """The next line as it came. Raises StopIteration at the end."""
        while not self._lines:
            some = os.read(self._file, 2**16)
            if not some:
                raise StopIteration
            *whole, self._rest = (self._rest + some).split(b"\n")
            self._lines.extend(whole)
        return self._lines.popleft()

    def __iter__(self) -> _Requests:
        return self

    def __next__(self) -> ManifestRow:
        if not self._rows:
            self._rows.extend(frames.asked([self.line(), *self._lines]))
            self._lines.clear()
        return self._rows.popleft()

    @property
    def waiting(self) -> bool:
        """Whether the next row is here, without asking the system."""
        return bool(self._rows)


class _Replies:
    """Answers on their way to the parent; like requests, they are put into words together, which between two files
    would take several times as long."""

    def __init__(self, file: int, token: bytes, outbox: Outbox) -> None:
        self._file, self._token, self._outbox = file, token, outbox
        self._since, self._num_bytes, self._sent = 0.0, 0, 0
        self._held: list[_Answer] = []

    def say(self, header: dict[str, Any]) -> None:
        """What is no answer."""
        frames.reply(self._file, self._token, self._sent, header)

    def add(self, began: float, answer: _Answer) -> None:
        """One more answer, to what was begun then."""
        self._since = self._since if self._held else began
        self._held.append(answer)
        self._num_bytes += answer.num_bytes

    @property
    def are_due(self) -> bool:
        """Whether enough has come together, or has taken long enough."""
        return self._num_bytes > HELD_BYTES or time.monotonic() - self._since > HELD_SECONDS

    @property
    def are_held(self) -> bool:
        """Whether there are any."""
        return bool(self._held)

    def flush(self, peak_bytes: int) -> None:
        """Send all that is held: in one frame, unless too much is said of it."""
        together: list[tuple[_Answer, list[str]]] = []
        num_letters = 0
        for answer, lines in map(_in_words, self._held):
            if num_letters > HELD_LETTERS:
                self._send(together, peak_bytes)
                together, num_letters = [], 0
            together.append((answer, lines))
            num_letters += sum(map(len, lines))
        self._send(together, peak_bytes)
        self._held, self._num_bytes = [], 0

    def _send(self, together: list[tuple[_Answer, list[str]]], peak_bytes: int) -> None:
        arrays = [array for answer, _ in together for array in answer.arrays]
        sizes = [answer.num_bytes for answer, _ in together]
        header = {"answers": [answer.header for answer, _ in together], "pieces": [len(lines) for _, lines in together],
                  "bytes": sizes, "peak_bytes": peak_bytes}
        said = [line for _, lines in together for line in lines]
        begin = self._outbox.put(arrays, sum(sizes), self._file)
        if begin is None:
            frames.reply(self._file, self._token, self._sent, header, said, sum(sizes), arrays)
        else:
            frames.reply(self._file, self._token, self._sent, header, said, sum(sizes), (), begin)
        self._sent += len(together)


def limit_process(memory_bytes: int) -> None:
    """Bound what a malicious or broken file can take: memory, core dumps, files written.

    RLIMIT_DATA counts what a process allocates for itself (since Linux 4.7 wherever it lies), and not the libraries it
    maps, whose size differs by a factor of ten between versions.
    """
    resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes + LIBRARY_BYTES, memory_bytes + LIBRARY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)


class _Memory:
    """What this process holds, as the kernel counts it; asked for so often that opening what tells it would cost more
    than reading it."""

    def __init__(self, most: int) -> None:
        """most: bytes that may be left over from one file to the next."""
        self.most, self.page = most, resource.getpagesize()
        self.peak, self.asked_at, self.tidied_at = 0, -MEMORY_SECONDS, -MEMORY_SECONDS
        self.now, self.so_far = (os.open(f"/proc/self/{name}", os.O_RDONLY) for name in ("statm", "status"))

    def tidy(self) -> None:
        """Give back what the last files left behind, so that the next one has the whole limit to itself."""
        if (now := time.monotonic()) - self.tidied_at < MEMORY_SECONDS:
            return
        self.tidied_at = now
        if int(os.pread(self.now, 256, 0).split()[5]) * self.page > self.most:
            gc.collect()
            ctypes.CDLL(None).malloc_trim(0)

    def peak_bytes(self) -> int:
        """Most that was ever held, as of MEMORY_SECONDS ago at most. What getrusage tells begins with what the parent
        held when it forked."""
        if (now := time.monotonic()) - self.asked_at >= MEMORY_SECONDS:
            self.asked_at = now
            self.peak = int(os.pread(self.so_far, 8192, 0).split(b"VmHWM:")[1].split(maxsplit=1)[0]) * 1024
        return self.peak


class _Answer(NamedTuple):
    """What became of a row."""

    header: dict[str, Any]
    pieces: Sequence[Piece] = ()
    arrays: Sequence[np.ndarray] = ()
    """Of the pieces, in the order in which they are sent."""
    num_bytes: int = 0
    """Of the arrays."""


def _answer(module: Any, settings: object, row: ManifestRow, content: bytes | None) -> _Answer:
    sha256 = ""
    try:
        if content is None:
            links.refuse_leading_out([row.path], row.within)
            content = None if row.part else _content(row.path, HELD_WHOLE)
        # A file whose content is here is no link, as opening it has shown.
        sha256 = hash_of(row.path) if content is None else hashlib.sha256(content).hexdigest()
        object.__setattr__(row, "sha256", sha256)  # nobody has seen the row yet; to make another would cost more
        object.__setattr__(row, "content", content)
        found: list[Piece] | Part = module.read(row, settings)
        pieces, more = (found.pieces, found.more) if isinstance(found, Part) else (found, False)
        arrays = [array for piece in pieces for array in (piece.values, piece.mask) if array is not None]
        return _Answer({"sha256": sha256, "more": more}, pieces, arrays, sum([array.nbytes for array in arrays]))
    except Exception as error:
        return _Answer({"sha256": sha256, **_told(error)})


def _in_words(answer: _Answer) -> tuple[_Answer, list[str]]:
    """An answer, and what is said of each of its pieces; a refusal, where that cannot be said."""
    try:
        lines = [describe(piece) for piece in answer.pieces]
        _check_length(sum(map(len, lines)), len(lines))
        return answer, lines
    except Exception as error:
        return _Answer({"sha256": answer.header["sha256"], **_told(error)}), []


def _check_length(num_letters: int, num_pieces: int) -> None:
    """What is said of a file's samples is no more than a parent believes."""
    if num_letters > MOST_LETTERS:
        raise Refused(f"found {num_pieces} samples in one file, of which {num_letters} letters would be said, expected "
                      f"at most {MOST_LETTERS}. Remedy: cut it into larger or fewer samples, or into several files.")


def _told(error: Exception) -> dict[str, Any]:
    if _is_for_memory(error):
        return {"memory": True}
    if isinstance(error, ImportError):
        return {"missing": str(error)[:frames.MAX_REASON]}
    # A parser's message may quote the file's header: only where and what kind is passed on.
    return {"refused": (str(error) if isinstance(error, Refused) else _where(error))[:frames.MAX_REASON]}


def _is_for_memory(error: BaseException | None) -> bool:
    """Whether memory ran out at the bottom of it: readers turn what libraries raise into refusals of their own."""
    while error is not None:
        if isinstance(error, MemoryError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _where(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file, or a part of it is missing"
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"the reader raised {type(error).__name__} at {'/'.join(Path(frame.filename).parts[-2:])}:{frame.lineno}"


def _content(path: Path, most: int) -> bytes | None:
    """What is in a file of at most so many bytes that is no link; None for all else, or where none can be opened."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:  # whoever reads it in earnest will say so
        return None
    try:
        return _short(file, most)
    except OSError:
        return None
    finally:
        os.close(file)


def _short(file: int, most: int) -> bytes | None:
    """What is in an open file, if that is little and stands still."""
    found = os.fstat(file)
    if not stat.S_ISREG(found.st_mode) or found.st_size > most:
        return None
    content = os.read(file, found.st_size + 1)
    return content if len(content) == found.st_size else None


def hash_of(path: Path) -> str:
    """sha256 of a file, or over the names and contents of a folder's files."""
    if path.is_dir():
        digest = hashlib.sha256()
        for file in sorted(file for file in path.rglob("*") if file.is_file()):
            digest.update(f"{file.relative_to(path).as_posix()}\0{hash_of(file)}\n".encode())
        return digest.hexdigest()
    with open(path, "rb", buffering=0) as stream:
        # hashlib would fill a buffer with as many zeros first.
        if (content := _short(stream.fileno(), SMALL_FILE)) is not None:
            return hashlib.sha256(content).hexdigest()
        stream.seek(0)
        return hashlib.file_digest(stream, "sha256").hexdigest()
