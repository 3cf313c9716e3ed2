"""What a reading process and its parent say to each other: requests as lines of JSON, replies as frames.

A frame is lengths, a JSON header, raw array bytes. It answers for several files where they are small. Nothing that a
parser could have been tricked into making is ever unpickled by the parent.
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
from typing import Any

import numpy as np

from domains.placement import described
from domains.sample import DTYPES, ManifestRow, Piece, Refused

LENGTHS = struct.Struct("<IQ")
"""Bytes of the JSON header, bytes of the arrays after it."""
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


def send(file: int, header: dict[str, Any], arrays: Sequence[np.ndarray] = (), words: Sequence[str] = ()) -> None:
    """Write one frame to a file descriptor, in as few calls as there may be, since each may wake whoever reads.

    Args:
        words: lines of JSON that go after the header.
    """
    text = "\n".join((_AS_TEXT.encode(header), *words)).encode()
    arrays = [np.ascontiguousarray(array) for array in arrays]
    parts: deque[Any] = deque([LENGTHS.pack(len(text), sum(array.nbytes for array in arrays)) + text, *arrays])
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
