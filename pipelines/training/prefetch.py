"""Reading batches ahead of the training, in a thread of its own.

What a batch holds is a function of its step, so the bits are those of reading in turn. A thread and no process: samples
are views of memory maps, which another process would have to copy.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
_END = object()


def ahead(batches: Iterable[T], depth: int) -> Generator[T]:
    """The same batches in the same order, `depth` of them read before they are asked for; 0: none, and no thread.

    Closing the generator ends the thread, after the batch that it is reading. What reading raises is raised where the
    batch would have come.
    """
    if depth == 0:
        yield from batches
        return
    reading = iter(batches)
    thread = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
    try:
        waiting = deque(thread.submit(next, reading, _END) for _ in range(depth))
        while (batch := waiting.popleft().result()) is not _END:
            waiting.append(thread.submit(next, reading, _END))
            yield batch  # type: ignore[misc]
    finally:
        thread.shutdown(cancel_futures=True)
