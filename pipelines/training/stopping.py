"""A signal in the middle of a training: the update that is being made is finished and saved, then the run ends. A
second Ctrl-C ends it at once.

Several processes of one training must leave it after the same update, and the signal reaches them at different times,
or only one of them: after every update they tell each other whether they were asked, from processor to processor, so
that no device is waited for.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from torch import distributed

from pipelines.told_to_stop import NAMES, SENT, ToldToStop, raise_it, say
from pipelines.training.processes import follows

PATIENCE = 30.0
"""Seconds that the first process waits for those that it started, once all is saved."""
Handler = Callable[[int, FrameType | None], Any] | int | None


class Stop:
    """Whether a training was asked to stop, and by which signal (0: it was not)."""

    def __init__(self, handlers: Mapping[int, Handler] | None = None) -> None:
        self.asked = 0
        self._handlers = handlers or {}
        self._group: Any = None

    def begin(self, processes: int) -> None:
        """From now on signals are ours, and not Lightning's, whose handler sends to the other processes from wherever
        the signal has met this one. Every process must call it, once the trainer has begun."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if processes > 1:
            self._group = distributed.new_group(backend="gloo")

    def agreed(self) -> int:
        """The signal to leave the training by, the same in every process; each must call it after each update."""
        if self._group is None:
            return self.asked
        told = torch.tensor([self.asked])
        distributed.all_reduce(told, distributed.ReduceOp.MAX, group=self._group)
        return int(told)

    def leave(self, number: int, started: list[Any]) -> None:
        """End this process's part in the training, once all are here: the first one has saved then.

        Args:
            started: the processes that this one has started; Lightning would kill them, and then, because they were
                killed, this one.

        Raises:
            ToldToStop: always.
        """
        if self._group is not None:
            distributed.barrier(group=self._group)
        for process in started:
            process.wait(PATIENCE)
        raise ToldToStop(number, together=self._group is not None)

    def end(self) -> None:
        """Let go of what `begin` made."""
        if self._group is not None:
            distributed.destroy_process_group(self._group)
            self._group = None


@contextmanager
def stopping_after_an_update(waits: bool) -> Iterator[Stop]:
    """Inside, the first signal is left to the training, which looks at what is given here after each update.

    Args:
        waits: whether there is something to save; if not, a signal ends the training at once.

    Raises:
        KeyboardInterrupt: also where Lightning, which catches it, has made sys.exit(1) of it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield Stop()  # Python takes signals in the main thread only
        return
    before: dict[int, Handler] = {number: signal.getsignal(number) for number in NAMES}

    def ask(number: int, frame: FrameType | None) -> None:
        if stop.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not stop.asked and not follows():
            say(f"\nstopping by {NAMES[signal.Signals(number)]}: this update is finished and saved first; "
                f"Ctrl-C {'again ' if number == signal.SIGINT else ''}stops at once, without saving.")
        stop.asked = stop.asked or number

    # A handler of whoever calls us stays; so does a signal that is ignored, as Ctrl-C is in the background of a shell
    taken = [number for number, handler in before.items() if waits and handler in (
        (signal.SIG_DFL, raise_it) if number in SENT else (signal.default_int_handler,))]
    stop = Stop({**before, **dict.fromkeys(taken, ask)})
    for number in taken:
        signal.signal(number, ask)
    try:
        yield stop
        if stop.asked and not follows():
            raise ToldToStop(stop.asked)  # it came after the last update had been looked at: what follows has not begun
    except SystemExit as leaving:
        if isinstance(leaving.__context__, KeyboardInterrupt):
            raise leaving.__context__ from None
        raise
    finally:
        # Once it ends by one of SENT, what is sent again would break off whoever still has a run to close (raise_it)
        ends = stop.asked in SENT or any(handler is raise_it and signal.getsignal(number) == signal.SIG_IGN
                                         for number, handler in before.items())
        for number, handler in before.items():  # Lightning turns Ctrl-C off when it ends
            signal.signal(number, signal.SIG_IGN if ends and handler is raise_it else handler)
        stop.end()
