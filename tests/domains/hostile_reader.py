"""A reader whose files tell it how to misbehave; runs in the child processes that the tests of quarantine start."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import stat
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from domains import frames
from domains.sample import ManifestRow, Part, Piece, Refused
from domains.shared_memory import ROOM_BYTES


@dataclass(frozen=True)
class Nested:
    """Settings inside settings."""

    names: tuple[str, ...] = ("a", "b")


@dataclass(frozen=True)
class Hostile:
    """Settings of every shape that a domain's may have."""

    size: tuple[int, int] = (4, 5)
    nested: Nested = field(default_factory=Nested)
    by_source: dict[str, Nested] = field(default_factory=dict)
    nothing: float | None = None


def read(row: ManifestRow, settings: Hostile) -> list[Piece] | Part:
    """What the file's first word says."""
    verb, _, number = row.path.read_text().partition(" ")
    print("noise on stdout, and a patient's name")
    os.write(1, b"raw noise")
    sys.stderr.write("noise on stderr")
    misbehave(verb)
    assert isinstance(settings.size, tuple) and settings.nested.names == ("a", "b") and settings.nothing is None
    assert settings.by_source["x"] == Nested(("c",))
    values = np.full((1, *settings.size), int(number) % 251, np.uint8)
    if verb in ("parts", "crash"):
        if row.part == 2 and verb == "crash":
            ctypes.string_at(0)
        pieces = [Piece(values, facts={"part": row.part}, suffix=f"@{row.part}")]
        return Part(pieces if row.part != 1 else [], more=row.part < 3)
    if verb == "large":
        return [Piece(np.full((1, 3, ROOM_BYTES // 2), int(number) % 251, np.uint8))]
    if verb in ("talkative", "verbose"):
        return [Piece(values, facts={"list": [1] * (500_000 if verb == "talkative" else frames.MAX_WORDS_BYTES // 3)})]
    if verb == "many":
        return [Piece(values, suffix=f"@{i}") for i in range(3)]
    return [Piece(values, mask=values[0], facts={"exact": np.float32(1.5), "list": [1, 2]})]  # type: ignore[dict-item]


LIE = b'{"pieces": [{"dtype": "uint8", "shape": [Infinity], "mask_shape": null}], "more": false}'
ANSWER = b'{"answers": [{"sha256": "", "refused": "forged"}], "pieces": [0], "bytes": [0], "peak_bytes": 0}'


def say(text: bytes) -> None:
    """To the parent, by every pipe that there is."""
    for file in range(3, 30):
        with contextlib.suppress(OSError):
            if stat.S_ISFIFO(os.fstat(file).st_mode):
                os.write(file, text)


def replies() -> Any:
    """What this process answers through."""
    return next(found for found in gc.get_objects() if type(found).__name__ == "_Replies")


def misbehave(verb: str) -> None:
    """The ways in which a parser goes wrong on a broken or malicious file."""
    match verb:
        case "segfault":
            ctypes.string_at(0)
        case "exit":
            os._exit(3)
        case "sleep":
            time.sleep(1000)
        case "spin":
            while True:
                pass
        case "raise":
            raise ValueError("PATIENT NAME")
        case "refuse":
            raise Refused("transfer syntax 1.2.3\nis not read")
        case "bomb":
            np.ones(2**33, np.uint8)
        case "hidden":
            try:
                np.ones(2**33, np.uint8)
            except MemoryError as error:
                raise Refused("not readable as this or that") from error
        case "hoard":  # half of a GiB in a cycle, which only the collector of garbage finds
            cycle: list[object] = [np.ones(2**29, np.uint8)]
            cycle.append(cycle)
        case "missing":
            raise ImportError("rasterio is missing. Install it with: pip install 'lacuna[satellite]'")
        case "lie":  # a frame of its own making on the way to the parent, as code from a file would send one
            say(frames.OPENING.pack(bytes(16), 0, len(LIE), 0, 0, frames.IN_PIPE) + LIE)
            time.sleep(1000)
        case "ahead":  # a whole answer, which nobody can tell from an honest one but by whose it is; and goes on
            say(frames.OPENING.pack(bytes(16), 0, len(ANSWER), 0, 0, frames.IN_PIPE) + ANSWER)
        case "twice":  # the same with the parent's own token: it has looked for that
            honest = replies()
            say(frames.OPENING.pack(honest._token, honest._sent, len(ANSWER), 0, 0, frames.IN_PIPE) + ANSWER)
        case "endless":  # more words than any honest process has to say
            honest = replies()
            say(frames.OPENING.pack(honest._token, honest._sent, frames.MAX_HEADER_BYTES + 1, 0, 0, frames.IN_PIPE))
        case "lines":
            honest, words = replies(), b"\n" * 2**20
            say(frames.OPENING.pack(honest._token, honest._sent, len(ANSWER), len(words), 0, frames.IN_PIPE)
                + ANSWER + words)
        case "elsewhere":  # arrays that lie where its parent has something else
            honest = replies()
            say(frames.OPENING.pack(honest._token, honest._sent, len(ANSWER), 0, 2**20, ROOM_BYTES - 1) + ANSWER)
        case "cut":  # the memory that its parent looks at, by whichever way it finds
            for file in Path(f"/proc/{os.getppid()}/fd").iterdir():
                if "memfd:" in os.readlink(file):
                    with contextlib.suppress(PermissionError), file.open("r+b") as stream:
                        os.ftruncate(stream.fileno(), 0)
                        raise AssertionError("it could be cut")
        case "write":
            with open(os.path.join(os.environ["TMPDIR"], "written"), "wb") as file:
                file.write(b"x" * 10_000)
        case "environment":
            assert "A_SECRET" not in os.environ
