"""The child process that parses untrusted files; `domains/quarantine.py` starts, feeds and replaces it.

It talks in frames: lengths, a JSON header, raw array bytes. Nothing that a parser could have been tricked into making
is ever unpickled by the parent.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
import os
import resource
import signal
import struct
import sys
import traceback
from pathlib import Path
from typing import IO, Any

import numpy as np

from domains.sample import DTYPES, ManifestRow, Part, Piece, Refused

LENGTHS = struct.Struct("<IQ")
"""Bytes of the JSON header, bytes of the arrays after it."""
START = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from domains.worker import main; main()"
"""What the child runs: with the parent's import path, so that a folder named `domains` where the user stands is never
imported instead."""
ALARM_SLACK = 5
"""Seconds after the wall clock at which a child whose parent is gone ends itself."""


def main() -> None:
    """Serve one parent until it closes the pipe."""
    requests, replies = sys.stdin.buffer, os.fdopen(os.dup(1), "wb", buffering=0)
    # Libraries print header text when they warn; none of it may reach a log or the reply channel.
    silence = os.open(os.devnull, os.O_RDWR)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    order = json.loads(requests.readline())
    limit_process(order["memory_bytes"])
    try:
        module = importlib.import_module(order["module"])
        settings = decode(order["settings"])
    except ImportError as error:
        _send(replies, {"missing": str(error)}, [])
        return
    _send(replies, {"ready": True}, [])
    for line in requests:
        signal.alarm(order["seconds"] + ALARM_SLACK)
        header, arrays = _answer(module, settings, decode(json.loads(line)))
        _send(replies, header, arrays)
        signal.alarm(0)


def limit_process(memory_bytes: int) -> None:
    """Bound what a malicious or broken file can take: address space, core dumps, files written."""
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)


def _answer(module: Any, settings: object, row: ManifestRow) -> tuple[dict[str, Any], list[np.ndarray]]:
    header: dict[str, Any] = {}
    try:
        header["sha256"] = hash_of(row.path)
        found: list[Piece] | Part = module.read(row, settings)
        pieces, header["more"] = (found.pieces, found.more) if isinstance(found, Part) else (found, False)
        header["pieces"] = json.loads(json.dumps([_describe(piece) for piece in pieces], default=_plain))
        arrays = [array for piece in pieces for array in (piece.values, piece.mask) if array is not None]
    except Refused as refusal:
        header, arrays = {**header, "refused": str(refusal)}, []
    except ImportError as error:
        header, arrays = {"missing": str(error)}, []
    except MemoryError:
        header, arrays = {**header, "refused": "needs more memory than memory_gb allows"}, []
    except Exception as error:  # a parser's message may quote the file's header: only where and what kind is passed on
        header, arrays = {**header, "refused": _where(error)}, []
    header["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return header, arrays


def _where(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file, or a part of it is missing"
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"the reader raised {type(error).__name__} at {'/'.join(Path(frame.filename).parts[-2:])}:{frame.lineno}"


def _describe(piece: Piece) -> dict[str, Any]:
    if piece.values.dtype.name not in DTYPES:
        raise Refused(f"the reader returned {piece.values.dtype.name}, expected one of {', '.join(DTYPES)}")
    return {"dtype": piece.values.dtype.name, "shape": list(piece.values.shape), "facts": piece.facts,
            "suffix": piece.suffix, "mask_shape": None if piece.mask is None else list(piece.mask.shape),
            "mask_dtype": None if piece.mask is None else piece.mask.dtype.name}


def _send(replies: IO[bytes], header: dict[str, Any], arrays: list[np.ndarray]) -> None:
    text = json.dumps(header).encode()
    parts = [np.ascontiguousarray(array) for array in arrays]
    _write(replies, LENGTHS.pack(len(text), sum(part.nbytes for part in parts)) + text)
    for part in parts:
        _write(replies, part.reshape(-1).view(np.uint8).data)


def _write(replies: IO[bytes], content: bytes | memoryview) -> None:
    rest = memoryview(content)
    while len(rest):
        rest = rest[replies.write(rest):]


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
    with path.open("rb") as stream:
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
