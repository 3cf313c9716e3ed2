"""The child process that parses untrusted files; `domains/quarantine.py` starts, feeds and replaces it.

It talks in frames: lengths, a JSON header, raw array bytes. Nothing that a parser could have been tricked into making
is ever unpickled by the parent.
"""

from __future__ import annotations

import ctypes
import dataclasses
import gc
import hashlib
import importlib
import json
import mmap
import os
import resource
import signal
import stat
import struct
import time
import traceback
from collections import deque
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np

from domains import links
from domains.sample import DTYPES, ManifestRow, Part, Piece, Refused

LENGTHS = struct.Struct("<IQ")
"""Bytes of the JSON header, bytes of the arrays after it."""
COUNT = struct.Struct("<Q")
"""Rows begun, in memory that both sides see."""
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
MOST_PARTS = 512
"""Pieces of memory that are written by one call; Linux takes 1,024."""
SMALL_FILE = 2**18
"""Bytes of a file that is hashed in one go, and for which the reply to the one before may wait."""
HELD_BYTES, HELD_SECONDS = 2**18, 0.02
"""Replies that are sent together: waking the parent costs both sides, a file of a millisecond most of all."""


def main() -> None:
    """Serve one parent until it closes the pipe."""
    requests, replies = _Requests(0), _Replies(os.dup(1))
    # Libraries print header text when they warn; none of it may reach a log or the reply channel.
    silence = os.open(os.devnull, os.O_RDWR)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    order = json.loads(requests.line())
    begun = Count(order["begun"])
    limit_process(order["memory_bytes"])
    most = int(TIDY_SHARE * order["memory_bytes"])
    try:
        module = importlib.import_module(order["module"])
        settings = decode(order["settings"])
    except ImportError as error:
        replies.add({"missing": str(error)})
        replies.flush()
        return
    replies.add({"ready": True})
    replies.flush()
    memory = _Memory(most)
    for row in requests:
        if replies.held and not _is_small(row):
            replies.flush()
        begun.up()
        signal.alarm(order["last_second"] + ALARM_SLACK)
        replies.add(*_answer(module, settings, row, memory))
        signal.alarm(0)  # a parent that takes its time is no fault of this file; one that is gone ends the next write
        if replies.are_due or not requests.waiting:
            replies.flush()
        memory.tidy()


class Count:
    """How many rows the child has begun, in memory that its parent sees: when it dies, those that it had finished
    without a word are told from the one that it died on."""

    def __init__(self, file: int) -> None:
        """file: descriptor of memory that is as long as COUNT."""
        self._memory, self._value = mmap.mmap(file, COUNT.size), 0

    def up(self) -> None:
        """One more."""
        self._value += 1
        COUNT.pack_into(self._memory, 0, self._value)

    def read(self) -> int:
        """As the other side left it; a broken child may have written anything."""
        return int(COUNT.unpack_from(self._memory)[0])

    def close(self) -> None:
        """Give the memory back."""
        self._memory.close()


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
            self._rows.append(asked(self.line()))
            self._rows.extend(map(asked, self._lines))
            self._lines.clear()
        return self._rows.popleft()

    @property
    def waiting(self) -> bool:
        """Whether the next row is here, without asking the system."""
        return bool(self._rows)


class _Replies:
    """Frames on their way to the parent; like requests, they are put into words together."""

    def __init__(self, file: int) -> None:
        self._file, self._since, self._num_bytes = file, 0.0, 0
        self.held: list[tuple[dict[str, Any], Sequence[np.ndarray]]] = []

    def add(self, header: dict[str, Any], arrays: Sequence[np.ndarray] = ()) -> None:
        """One more frame."""
        self._since = self._since if self.held else time.monotonic()
        self.held.append((header, arrays))
        self._num_bytes += sum(array.nbytes for array in arrays)

    @property
    def are_due(self) -> bool:
        """Whether enough has come together, or the first has waited long enough."""
        return self._num_bytes > HELD_BYTES or time.monotonic() - self._since > HELD_SECONDS

    def flush(self) -> None:
        """Send all that is held."""
        _write_out(self._file, [part for header, arrays in self.held for part in _frame(header, arrays)])
        self.held, self._num_bytes = [], 0


def _is_small(row: ManifestRow) -> bool:
    """Whether reading it takes so little that what is held may wait for it."""
    try:
        found = os.lstat(row.path)
    except OSError:  # it is not there, which takes no time to find out
        return True
    return stat.S_ISREG(found.st_mode) and found.st_size <= SMALL_FILE and not row.part


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


def _answer(module: Any, settings: object, row: ManifestRow, memory: _Memory
            ) -> tuple[dict[str, Any], list[np.ndarray]]:
    header: dict[str, Any] = {}
    try:
        links.refuse_leading_out([row.path], row.within)
        header["sha256"] = hash_of(row.path)
        found: list[Piece] | Part = module.read(dataclasses.replace(row, sha256=header["sha256"]), settings)
        pieces, header["more"] = (found.pieces, found.more) if isinstance(found, Part) else (found, False)
        arrays = [array for piece in pieces for array in (piece.values, piece.mask) if array is not None]
        return {**header, "pieces": [describe(piece) for piece in pieces], "peak_bytes": memory.peak_bytes()}, arrays
    except Exception as error:
        return {**header, **_told(error), "peak_bytes": memory.peak_bytes()}, []


def _told(error: Exception) -> dict[str, Any]:
    if _is_for_memory(error):
        return {"memory": True}
    if isinstance(error, ImportError):
        return {"missing": str(error)}
    # A parser's message may quote the file's header: only where and what kind is passed on.
    return {"refused": str(error) if isinstance(error, Refused) else _where(error)}


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


def describe(piece: Piece) -> dict[str, Any]:
    """What a frame's header says of a piece, whose arrays follow it. Raises Refused for a type that is not stored."""
    name = _NAMES.get(piece.values.dtype)
    if name is None:
        raise Refused(f"the reader returned {piece.values.dtype.name}, expected one of {', '.join(DTYPES)}")
    return {"dtype": name, "shape": list(piece.values.shape), "facts": piece.facts,
            "suffix": piece.suffix, "mask_shape": None if piece.mask is None else list(piece.mask.shape),
            "mask_dtype": None if piece.mask is None else piece.mask.dtype.name,
            "placement": None if piece.placement is None else vars(piece.placement)}


def send(stream: IO[bytes], header: dict[str, Any], arrays: Sequence[np.ndarray] = ()) -> None:
    """Write one frame to an unbuffered stream."""
    _write_out(stream.fileno(), _frame(header, arrays))


def _frame(header: dict[str, Any], arrays: Sequence[np.ndarray]) -> list[memoryview]:
    """Lengths, header, the bytes of the arrays."""
    try:
        text = _AS_TEXT.encode(header).encode()
    except (TypeError, ValueError) as error:  # facts that JSON does not hold
        return _frame({"sha256": header.get("sha256", ""), **_told(error)}, ())
    bodies = [np.ascontiguousarray(array).reshape(-1).view(np.uint8).data for array in arrays]
    return [memoryview(LENGTHS.pack(len(text), sum(map(len, bodies))) + text), *bodies]


def _write_out(file: int, frames: Sequence[memoryview]) -> None:
    """In as few calls as there may be, since each may wake whoever reads."""
    parts = deque(frames)
    while parts:
        written = os.writev(file, list(islice(parts, MOST_PARTS)))
        while parts and written >= len(parts[0]):
            written -= len(parts.popleft())
        if written:
            parts[0] = parts[0][written:]


def request_of(row: ManifestRow) -> bytes:
    """One line that asks for a row; `asked` makes it a row again."""
    return json.dumps([str(row.path), row.key, row.group, row.split, row.source, row.mask_path and str(row.mask_path),
                       row.columns, row.part, row.within and str(row.within)]).encode() + b"\n"


def asked(line: bytes) -> ManifestRow:
    """The row that a line of `request_of` asks for."""
    path, key, group, split, source, mask_path, columns, part, within = json.loads(line)
    return ManifestRow(Path(path), key, group, split, source, mask_path and Path(mask_path), columns, part,
                       within and Path(within))


def _plain(value: object) -> object:
    """numpy numbers in facts, which readers come by easily."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"facts hold a {type(value).__name__}, expected numbers, texts and lists of them")


_AS_TEXT = json.JSONEncoder(default=_plain)
_NAMES = {np.dtype(name): name for name in DTYPES}
"""Types that are stored; numpy makes a type's name anew whenever it is asked for."""


def hash_of(path: Path) -> str:
    """sha256 of a file, or over the names and contents of a folder's files."""
    if path.is_dir():
        digest = hashlib.sha256()
        for file in sorted(file for file in path.rglob("*") if file.is_file()):
            digest.update(f"{file.relative_to(path).as_posix()}\0{hash_of(file)}\n".encode())
        return digest.hexdigest()
    with open(path, "rb", buffering=0) as stream:
        if os.fstat(stream.fileno()).st_size <= SMALL_FILE:  # hashlib would fill a buffer of as many zeros first
            return hashlib.sha256(stream.read()).hexdigest()
        return hashlib.file_digest(stream, "sha256").hexdigest()


def encode(value: Any) -> Any:
    """Settings and rows as JSON values that `decode` turns back into the same types."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        name = f"{type(value).__module__}:{type(value).__qualname__}"
        return {"": name, "fields": {f.name: encode(getattr(value, f.name)) for f in dataclasses.fields(value)}}
    if isinstance(value, Path):
        return {"": "path", "text": str(value)}
    if isinstance(value, tuple):
        return {"": "tuple", "items": [encode(item) for item in value]}
    if isinstance(value, dict):
        return {"": "dict", "items": [[key, encode(item)] for key, item in value.items()]}
    if isinstance(value, list):
        return [encode(item) for item in value]
    return value


def decode(value: Any) -> Any:
    """The inverse of `encode`. Used by the child on what its parent sent, never the other way."""
    if isinstance(value, list):
        return [decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    match value[""]:
        case "path":
            return Path(value["text"])
        case "tuple":
            return tuple(decode(item) for item in value["items"])
        case "dict":
            return {key: decode(item) for key, item in value["items"]}
        case name:
            module, _, attribute = name.partition(":")
            cls = getattr(importlib.import_module(module), attribute)
            return cls(**{key: decode(item) for key, item in value["fields"].items()})
