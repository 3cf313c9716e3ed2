"""What a reading process and its parent say to each other: requests as lines of JSON, replies as frames.

A frame is an opening, a JSON header, a line of JSON for each piece, and raw array bytes, which lie in memory that both
see (domains/shared_memory.py) or follow through the pipe. It answers for several files where they are small. Nothing
that a parser could have been tricked into making is ever unpickled by the parent.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import struct
from collections import deque
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from domains.placement import described
from domains.sample import DTYPES, ManifestRow, Piece, Refused

LENGTHS = struct.Struct("<IQ")
"""In a file of frames: bytes of the JSON header, bytes of the arrays after it."""
OPENING = struct.Struct("<16sQIIQq")
"""What a reply begins with; see Opening."""
TOKEN_BYTES = 16
IN_PIPE = -1
MOST_ROWS = 128
"""Rows that a child has in hand at most, and so answers in a frame."""
MAX_REASON = 300
"""Letters of a reason."""
MAX_HEADER_BYTES = 2**19
"""A header holds a hash and a reason for each of MOST_ROWS rows, whose letters JSON writes with 12 bytes at most."""
MAX_WORDS_BYTES = 2**25
"""What is said of all pieces of a frame. Scenes have the most, up to 2**15 tiles in a part, of which each takes half a
kilobyte, and more where bands are many and so tiles large and few."""
MOST_PARTS = 512
"""Pieces of memory that are written by one call; Linux takes 1,024."""


def describe(piece: Piece) -> str:
    """What a frame says of a piece, whose arrays follow it: one line of JSON.

    Raises:
        Refused: a type that is not stored.
        TypeError, ValueError: facts that JSON does not hold.
    """
    name = _NAMES.get(piece.values.dtype)
    if name is None:
        raise Refused(f"the reader returned {piece.values.dtype.name}, expected one of {', '.join(DTYPES)}")
    return _AS_TEXT.encode({
        "dtype": name, "shape": piece.values.shape, "facts": piece.facts, "suffix": piece.suffix,
        "mask_shape": None if piece.mask is None else piece.mask.shape,
        "mask_dtype": None if piece.mask is None else piece.mask.dtype.name,
        "placement": None if piece.placement is None else described(piece.placement)})


class Opening(NamedTuple):
    """What a reply begins with."""

    token: bytes
    """What the parent gave this child alone: bytes that come into the pipe by accident do not have it."""
    first: int
    """Answers that this child has sent before: they belong to rows by their order, so that one too many or too few
    would give each later file the answer of another."""
    header: int
    """Bytes of the JSON header."""
    words: int
    """Bytes of the lines of JSON that follow it."""
    arrays: int
    """Bytes of the arrays."""
    begin: int
    """Where these lie in the memory that both see; IN_PIPE: they follow."""


def send(file: int, header: dict[str, Any], arrays: Sequence[np.ndarray] = ()) -> None:
    """Write one frame to a file."""
    text = _AS_TEXT.encode(header).encode()
    arrays = [np.ascontiguousarray(array) for array in arrays]
    _write(file, [LENGTHS.pack(len(text), sum(array.nbytes for array in arrays)) + text, *arrays])


def reply(file: int, token: bytes, first: int, header: dict[str, Any], words: Sequence[str] = (), num_bytes: int = 0,
          arrays: Sequence[np.ndarray] = (), begin: int = IN_PIPE) -> None:
    """Write one reply to the pipe, in as few calls as there may be, since each may wake whoever reads.

    Args:
        num_bytes: of the arrays.
        arrays: those that follow in the pipe.
    """
    text, lines = _AS_TEXT.encode(header).encode(), "\n".join(words).encode()
    opening = OPENING.pack(*Opening(token, first, len(text), len(lines), num_bytes, begin))
    _write(file, [opening + text + lines, *(np.ascontiguousarray(array) for array in arrays)])


def _write(file: int, pieces: Sequence[bytes | np.ndarray]) -> None:
    parts: deque[Any] = deque(pieces)
    while parts:
        written = os.writev(file, list(islice(parts, MOST_PARTS)))
        while parts and written >= (length := _num_bytes(parts[0])):
            written -= length
            parts.popleft()
        if written:
            parts[0] = np.frombuffer(parts[0], np.uint8)[written:]


def _num_bytes(part: bytes | np.ndarray) -> int:
    return len(part) if isinstance(part, bytes) else part.nbytes


def request_of(row: ManifestRow) -> bytes:
    """One line that asks for a row; `asked` makes it a row again."""
    return json.dumps([str(row.path), row.key, row.group, row.split, row.source, row.mask_path and str(row.mask_path),
                       row.columns, row.part, row.within and str(row.within)]).encode() + b"\n"


def asked(lines: Sequence[bytes]) -> list[ManifestRow]:
    """The rows that lines of `request_of` ask for."""
    return [ManifestRow(Path(path), key, group, split, source, mask_path and Path(mask_path), columns, part,
                        within and Path(within))
            for path, key, group, split, source, mask_path, columns, part, within
            in json.loads(b"[%b]" % b",".join(lines))]


def _plain(value: object) -> object:
    """numpy numbers in facts, which readers come by easily."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"facts hold a {type(value).__name__}, expected numbers, texts and lists of them")


_AS_TEXT = json.JSONEncoder(default=_plain)
_NAMES = {np.dtype(name): name for name in DTYPES}
"""Types that are stored; numpy makes a type's name anew whenever it is asked for."""


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
