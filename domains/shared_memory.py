"""Memory that a reading process and its parent both see: how many rows were begun, and arrays on their way.

What goes through a pipe is copied into the kernel and out of it, page by page, and both are woken for every megabyte.
Here the child copies arrays in, and the parent out. The parent looks at its copy alone: what a child writes afterwards
reaches nothing that was looked at before. The memory is sealed against being cut or grown, so that no child can take
from under its parent what that reads. It has no name in any file system, asks for no room in /dev/shm, and is gone once
both processes have let go of it, however they ended.

Where the system has no such memory, or not for what is to be sent, arrays go through the pipe.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import select
import struct
import tempfile
from collections import deque
from collections.abc import Sequence

import numpy as np

NUMBERS = struct.Struct("<QQ")
"""Rows begun, which the child writes; frames whose arrays have been copied out, which its parent writes."""
FIRST = mmap.PAGESIZE
"""Where arrays begin."""
ROOM_BYTES = 2**25
"""For arrays: several frames of small files, or one large scene. It takes no memory where nothing was written, and is
written anew from its beginning whenever all has been taken, so that it stays in the processor's caches."""
LOOK_SECONDS = 0.001
"""How often a child that finds no room looks again."""


class Inbox:
    """The parent's side."""

    def __init__(self) -> None:
        self.file, self.room = _memory()
        """Descriptor, and bytes for arrays."""
        self._taken = 0
        self._memory = memoryview(mmap.mmap(self.file, FIRST + self.room)) if self.room else memoryview(b"")

    def begun(self) -> int:
        """How many rows the child has begun; a broken one may have written anything."""
        # Not out of the map: where the memory is a plain file, a child may have cut it.
        return int.from_bytes(os.pread(self.file, 8, 0), "little")

    def arrays(self, begin: int, num_bytes: int) -> memoryview:
        """What lies at a place that a child told. To be copied before it is looked at. Raises ValueError where there is
        no such place."""
        if not 0 <= begin <= begin + num_bytes <= self.room:
            raise ValueError("arrays that lie outside the shared memory")
        return self._memory[FIRST + begin:FIRST + begin + num_bytes]

    def took(self) -> None:
        """The arrays of one more frame have been copied."""
        self._taken += 1
        struct.pack_into("<Q", self._memory, 8, self._taken)

    def close(self) -> None:
        """Give it back, as soon as nobody looks at it any more."""
        self._memory = memoryview(b"")
        os.close(self.file)


def _memory() -> tuple[int, int]:
    """A new descriptor, and how many bytes there are for arrays."""
    try:
        file = os.memfd_create("replies", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except (AttributeError, OSError):  # no Linux, or forbidden
        with tempfile.TemporaryFile() as stream:
            file = os.dup(stream.fileno())
        os.ftruncate(file, FIRST)
        return file, 0
    os.ftruncate(file, FIRST + ROOM_BYTES)
    fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    return file, ROOM_BYTES


class Outbox:
    """The child's side."""

    def __init__(self, file: int) -> None:
        """file: the parent's descriptor."""
        self._memory = mmap.mmap(file, os.fstat(file).st_size)
        os.close(file)
        self._bytes = np.frombuffer(self._memory, np.uint8)[FIRST:]
        self._begun = 0
        self._put, self._under_way = 0, deque[tuple[int, int]]()
        """Frames so far, and where the arrays of those lie that have not been taken: first and last byte."""

    def begin_row(self) -> None:
        """One row more is begun: when the child dies, those that it had finished without a word are told from the one
        that it died on."""
        self._begun += 1
        struct.pack_into("<Q", self._memory, 0, self._begun)

    def put(self, arrays: Sequence[np.ndarray], num_bytes: int, replies: int) -> int | None:
        """Copy a frame's arrays, one after the other; waits until its parent has taken enough of those before.

        Args:
            replies: the pipe to the parent, by which its end is noticed.

        Returns:
            Where they begin; None for what has to go through the pipe.
        """
        if not 0 < num_bytes <= len(self._bytes):
            return None
        while (begin := self._room(num_bytes)) is None:
            self._wait(replies)
        place = begin
        for array in arrays:
            flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            self._bytes[place:place + len(flat)] = flat
            place += len(flat)
        self._put += 1
        self._under_way.append((begin, place))
        return begin

    def _room(self, num_bytes: int) -> int | None:
        """Where so many bytes may be written."""
        (taken,) = struct.unpack_from("<Q", self._memory, 8)
        while self._under_way and taken > self._put - len(self._under_way):
            self._under_way.popleft()
        if not self._under_way:
            return 0
        oldest, end = self._under_way[0][0], self._under_way[-1][1]
        if end > oldest:  # what is under way lies in one stretch
            return end if num_bytes <= len(self._bytes) - end else 0 if num_bytes < oldest else None
        return end if num_bytes < oldest - end else None

    def _wait(self, replies: int) -> None:
        parent = select.poll()
        parent.register(replies, 0)  # reports errors alone
        if parent.poll(1000 * LOOK_SECONDS):
            raise BrokenPipeError
