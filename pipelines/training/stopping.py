"""Ctrl-C in the middle of a training: the update that is being made is finished and saved, then the run ends. A second
Ctrl-C ends it at once."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stop:
    """Whether a training was asked to stop."""

    def __init__(self) -> None:
        self.asked = False


@contextmanager
def stopping_after_an_update(waits: bool) -> Iterator[Stop]:
    """Inside, the first Ctrl-C is left to the training, which looks at what is given here after each update.

    Args:
        waits: whether there is something to save, and one process alone: several would not stop after the same update.

    Raises:
        KeyboardInterrupt: also where Lightning, which catches it, has made sys.exit(1) of it.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # Python takes signals in the main thread only
        return
    before = signal.getsignal(signal.SIGINT)

    def ask(number: int, frame: FrameType | None) -> None:
        stop.asked = True
        signal.signal(signal.SIGINT, before)
        print("\nstopping: this update is finished and saved first; Ctrl-C again stops at once, without saving.",
              file=sys.stderr, flush=True)

    if waits and before is signal.default_int_handler:
        signal.signal(signal.SIGINT, ask)
    try:
        yield stop
    except SystemExit as leaving:
        if isinstance(leaving.__context__, KeyboardInterrupt):
            raise leaving.__context__ from None
        raise
    finally:
        signal.signal(signal.SIGINT, before)  # Lightning turns it off when it ends
