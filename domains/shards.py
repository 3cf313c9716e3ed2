"""Numbered flat .npy files that hold samples end to end, and what a sample's bytes are called.

Legend: a sample is C H W, C D H W or M F; a mask lacks the channels.
"""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path
from typing import IO, Any

import numpy as np


def fingerprint(values: np.ndarray | None) -> str:
    """sha256 over dtype, shape and bytes of a sample or of a mask; empty where there is none."""
    if values is None:
        return ""
    digest = hashlib.sha256(f"{values.dtype.str}{values.shape}".encode())
    digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()


class Shards:
    """Appends flat arrays to numbered .npy files, streaming: one sample in memory at a time."""

    def __init__(self, folder: Path, name: str, dtype: str, max_bytes: int) -> None:
        self.folder, self.name, self.dtype, self.max_bytes = folder, name, np.dtype(dtype), max_bytes
        self.number, self.length = -1, 0
        self.file: IO[bytes] | None = None

    def append(self, values: np.ndarray) -> tuple[int, int]:
        """Write one sample; returns (shard, offset in elements)."""
        if self.file is None or (self.length and self.length * self.dtype.itemsize + values.nbytes > self.max_bytes):
            self._next()
        assert self.file is not None
        offset = self.length
        self.file.write(np.ascontiguousarray(values).data)
        self.length += values.size
        return self.number, offset

    def _next(self) -> None:
        self.close()
        self.number, self.length = self.number + 1, 0
        self.file = (self.folder / f"{self.name}-{self.number:05d}.npy").open("wb")
        self._header()

    def _header(self) -> None:
        assert self.file is not None
        self.file.write(npy_header(self.dtype, self.length))

    def close(self) -> None:
        """Write the final length into the header."""
        if self.file is None:
            return
        self.file.seek(0)
        self._header()
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        self.file = None


def npy_header(dtype: np.dtype[Any], length: int) -> bytes:
    """The header of a flat array; numpy pads it, so that the length may grow in place."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": dtype.str, "fortran_order": False, "shape": (length,)})
    return header.getvalue()
