"""What all readers of medical files share: libraries are met once, bad bytes become a refusal, sizes are bounded."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import numpy as np

from domains.sample import Refused

MAX_PIXELS = 100_000_000
"""Largest film or slice that is decoded: twice the largest detector on the market, and 400 MB as floats."""

_REASONS = {"EOFError": "the file ends early", "BadGzipFile": "its checksum or compression is wrong",
            "error": "its compression is damaged", "IsalError": "its compression is damaged",
            "MemoryError": "needs more memory than is allowed",
            "InvalidDicomError": "it does not begin like one"}
"""What some exceptions mean here, by type name (zlib calls its own `error`)."""


def library(name: str) -> ModuleType:
    """A reading library, or one sentence that says how to install it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"{name.split('.')[0]} is missing, which reads medical files. "
                          "Install it with: pip install 'lacuna[medical]'") from error


@contextmanager
def parsing(what: str) -> Iterator[None]:
    """Turn whatever a parser raises on damaged bytes into a refusal. Parsers promise no exception types, and their
    messages may quote the header, so that only the type's name is passed on."""
    try:
        yield
    except (Refused, ImportError):
        raise
    except Exception as error:
        name = type(error).__name__
        raise Refused(f"not readable as {what} ({_REASONS.get(name, name)})") from error


def check_pixels(height: int, width: int) -> None:
    """Refuse a film or slice that is larger than any detector."""
    if not 0 < height * width <= MAX_PIXELS:
        raise Refused(f"{height} x {width} pixels, expected between 1 and {MAX_PIXELS}, which no detector has. Remedy: "
                      "save it smaller")


def check_voxels(shape: tuple[int, ...], most: int) -> None:
    """Refuse a volume that is larger than the settings allow."""
    if not 0 < int(np.prod(shape, dtype=np.float64)) <= most:
        raise Refused(f"{' x '.join(map(str, shape))} voxels, expected between 1 and {most} (max_voxels)")
