"""Signals that ask a command to end: Ctrl-C, SIGTERM (what schedulers, containers and `kill` send), SIGUSR1 (what SLURM
can send ahead of a time limit) and SIGHUP (a terminal or a connection is gone). All of them are a KeyboardInterrupt, so
that blocks end, half-written files are taken away and tracked runs are closed as killed; the exit code says which one.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

SENT = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
"""Those that Python does not turn into an exception by itself."""
NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM", signal.SIGUSR1: "SIGUSR1", signal.SIGHUP: "SIGHUP"}


class ToldToStop(KeyboardInterrupt):
    """The command was asked to end by a signal."""

    def __init__(self, number: int, together: bool = False) -> None:
        """together: whether all processes of a training leave it with this one, after the same update."""
        super().__init__(number)
        self.number, self.together = number, together


def number_of(stop: KeyboardInterrupt) -> int:
    """The signal that it came of."""
    return stop.number if isinstance(stop, ToldToStop) else signal.SIGINT


def exit_code(stop: KeyboardInterrupt) -> int:
    """What a shell says of a command that ended by that signal: 130, 143, 138, 129."""
    return 128 + number_of(stop)


def raise_it(number: int, frame: FrameType | None) -> None:
    """The handler. What is sent again while blocks end would break them off: a scheduler and a parent may both send."""
    for sent in SENT:
        signal.signal(sent, signal.SIG_IGN)
    raise ToldToStop(number)


@contextlib.contextmanager
def ending_on_signals() -> Iterator[None]:
    """Inside, the first signal of SENT raises ToldToStop. Those that are ignored, or that somebody else handles, are
    left alone."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Python takes signals in the main thread only
        return
    ours = [number for number in SENT if signal.getsignal(number) == signal.SIG_DFL]
    for number in ours:
        signal.signal(number, raise_it)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


def say(sentence: str) -> None:
    """One line on stderr, also from within a handler: not by its buffer, which may be in the middle of a write."""
    with contextlib.suppress(OSError):  # a terminal that is gone has nobody to be told
        os.write(2, f"{sentence}\n".encode())
