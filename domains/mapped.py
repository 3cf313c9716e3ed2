"""Arrays that lie in files and not in this process's memory, however large they are.

Legend: n vectors, S numbers of each.
"""

from __future__ import annotations

import mmap
import os
import tempfile

import numpy as np


def on_disk(num: int, size: int) -> np.ndarray:
    """n S float32 of zeros in a nameless temporary file (TMPDIR says where): a million thumbnails take a gigabyte,
    of which little is looked at twice.

    Raises:
        OSError: no room for it.
    """
    with tempfile.TemporaryFile() as file:
        num_bytes = max(1, 4 * num * size)
        os.posix_fallocate(file.fileno(), 0, num_bytes)  # a full disk would otherwise end the process at some write
        return np.frombuffer(mmap.mmap(file.fileno(), num_bytes), np.float32, num * size).reshape(num, size)


def leave(vectors: np.ndarray) -> None:
    """Take the pages of a mapped array (one of `on_disk`, a shard) out of this process's memory, and of any view of it
    those of the whole; they come back from the file when they are looked at. Other arrays stay as they are."""
    base: object = vectors
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, memoryview):
        base = base.obj
    if isinstance(base, mmap.mmap):
        base.madvise(mmap.MADV_DONTNEED)
