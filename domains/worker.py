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
import os
import resource
import signal
import struct
import sys
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


MOST_PARTS = 512
"""Pieces of memory that are written by one call; Linux takes 1,024."""
SMALL_FILE = 2**18
"""Bytes of a file that is hashed in one go."""


def main() -> None:
    """Serve one parent until it closes the pipe."""
    requests, replies = sys.stdin.buffer, os.fdopen(os.dup(1), "wb", buffering=0)
    # Libraries print header text when they warn; none of it may reach a log or the reply channel.
    silence = os.open(os.devnull, os.O_RDWR)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    order = json.loads(requests.readline())
    limit_process(order["memory_bytes"])
    most = int(TIDY_SHARE * order["memory_bytes"])
    try:
        module = importlib.import_module(order["module"])
        settings = decode(order["settings"])
    except ImportError as error:
        send(replies, text_of({"missing": str(error)}))
        return
    send(replies, text_of({"ready": True}))
    memory = _Memory(most)
    for line in requests:
        signal.alarm(order["last_second"] + ALARM_SLACK)
        send(replies, *_answer(module, settings, asked(line), memory))
        signal.alarm(0)
        memory.tidy()


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
    """What this process holds, as the kernel counts it; asked for after every file, so that opening what tells it would
    cost more than reading it."""

    def __init__(self, most: int) -> None:
        """most: bytes that may be left over from one file to the next."""
        self.most, self.page = most, resource.getpagesize()
        self.now, self.so_far = (os.open(f"/proc/self/{name}", os.O_RDONLY) for name in ("statm", "status"))

    def tidy(self) -> None:
        """Give back what the last file left behind, so that the next one has the whole limit to itself."""
        if int(os.pread(self.now, 256, 0).split()[5]) * self.page > self.most:
            gc.collect()
            ctypes.CDLL(None).malloc_trim(0)

    def peak_bytes(self) -> int:
        """Most that was ever held. What getrusage tells begins with what the parent held when it forked."""
        return int(os.pread(self.so_far, 8192, 0).split(b"VmHWM:")[1].split(maxsplit=1)[0]) * 1024


def _answer(module: Any, settings: object, row: ManifestRow, memory: _Memory) -> tuple[bytes, list[np.ndarray]]:
    header: dict[str, Any] = {}
    try:
        links.refuse_leading_out([row.path], row.within)
        header["sha256"] = hash_of(row.path)
        found: list[Piece] | Part = module.read(row, settings)
        pieces, header["more"] = (found.pieces, found.more) if isinstance(found, Part) else (found, False)
        arrays = [array for piece in pieces for array in (piece.values, piece.mask) if array is not None]
        return text_of({**header, "pieces": [describe(piece) for piece in pieces],
                        "peak_bytes": memory.peak_bytes()}), arrays
    except Exception as error:
        return text_of({**header, **_told(error), "peak_bytes": memory.peak_bytes()}), []


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
    if piece.values.dtype.name not in DTYPES:
        raise Refused(f"the reader returned {piece.values.dtype.name}, expected one of {', '.join(DTYPES)}")
    return {"dtype": piece.values.dtype.name, "shape": list(piece.values.shape), "facts": piece.facts,
            "suffix": piece.suffix, "mask_shape": None if piece.mask is None else list(piece.mask.shape),
            "mask_dtype": None if piece.mask is None else piece.mask.dtype.name}


def text_of(header: dict[str, Any]) -> bytes:
    """A frame's header. Raises TypeError where facts hold what JSON does not."""
    return json.dumps(header, default=_plain).encode()


def send(stream: IO[bytes], header: bytes, arrays: Sequence[np.ndarray] = ()) -> None:
    """Write one frame to an unbuffered stream: lengths, a header from `text_of`, the bytes of the arrays. All in as few
    calls as there may be, since each may wake whoever reads."""
    bodies = [np.ascontiguousarray(array).reshape(-1).view(np.uint8).data for array in arrays]
    parts = deque([memoryview(LENGTHS.pack(len(header), sum(map(len, bodies))) + header), *bodies])
    while parts:
        written = os.writev(stream.fileno(), list(islice(parts, MOST_PARTS)))
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
