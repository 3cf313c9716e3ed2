"""Trainings of one stage in processes of their own, side by side. Each process takes a share of the cores and the next
GPU. What it logs goes to the process that started it, which alone tracks and publishes; it ends when that one ends.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import IO, Any

from pipelines.told_to_stop import number_of, say
from pipelines.training.resume import REPOSITORY

PATIENCE = 60.0
"""Seconds that processes have to save what they were training, once they are asked to stop."""
RUN = """
import runpy, sys
try:
    from pipelines.told_to_stop import ending_on_signals, exit_code
    with ending_on_signals():
        runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
except KeyboardInterrupt as stop:
    sys.exit(exit_code(stop))
"""
"""What a process runs: a module that may be asked to stop, without a traceback where that is while it still loads."""
Told = Callable[[Mapping[str, Any], int], None]
"""Called with (numbers, step), like `Run.metrics`."""


def environment_of(number: int, count: int) -> dict[str, str]:
    """The environment of process `number` of `count`; it loads the code that this process has loaded."""
    paths = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    made = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "TQDM_POSITION": str(number),
            "OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // count))}
    if gpus := _gpus():
        made["CUDA_VISIBLE_DEVICES"] = gpus[number % len(gpus)]
    return made


def _gpus() -> list[str]:
    import torch
    given = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return [one for one in given.split(",") if one] or [str(i) for i in range(torch.cuda.device_count())]


def side_by_side(module: str, request: Mapping[str, Any], count: int, told: Told) -> int:
    """Run `count` processes of a module whose main calls `asked`, until all have ended.

    Args:
        module: dotted name; its process number i of n gets `request` with "share": [i, n].
        request: what JSON can hold.
        told: called in this thread with what they log.

    Returns:
        How many of them failed; each has said why on stderr.
    """
    children: list[_Child] = []
    try:
        for number in range(count):
            children.append(_start(module, {**request, "share": [number, count]}, environment_of(number, count)))
        _listen(children, told)
        return sum(child.process.wait() != 0 for child in children)
    except KeyboardInterrupt as stop:
        say(f"stopping: {count} processes finish their update and save it; Ctrl-C "
            f"{'again ' if number_of(stop) == signal.SIGINT else ''}stops at once.")
        _ask_to_stop(children, number_of(stop))
        raise
    finally:
        for child in children:
            child.end()


@dataclass
class _Child:
    process: subprocess.Popen[bytes]
    points: int
    """Where what it logs is read."""
    unread: bytes = field(default=b"")

    def end(self) -> None:
        """Kill it where it still runs, and let go of its pipes."""
        self.process.kill()
        self.process.wait()
        os.close(self.points)
        assert self.process.stdin is not None
        try:
            self.process.stdin.close()
        except BrokenPipeError:
            pass  # it ended before it had read its request: its exit status says so


def _start(module: str, request: Mapping[str, Any], environment: dict[str, str]) -> _Child:
    points, written = os.pipe()
    try:
        # A group of its own: Ctrl-C in a terminal reaches the parent alone, which hands it on once
        process = subprocess.Popen([sys.executable, "-P", "-c", RUN, module, str(written)], stdin=subprocess.PIPE,
                                   env=environment, pass_fds=(written,), process_group=0)
    finally:
        os.close(written)
    child = _Child(process, points)
    assert process.stdin is not None
    try:
        process.stdin.write(json.dumps(request).encode() + b"\n")
        process.stdin.flush()
    except BrokenPipeError:
        pass  # likewise
    return child


def _ask_to_stop(children: list[_Child], number: int) -> None:
    """Hand the signal on, and give them time to save; who has not ended by then is killed by the caller."""
    for child in children:
        child.process.send_signal(number)
    until = time.monotonic() + PATIENCE
    for child in children:
        try:
            child.process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            say("stopping: a process has not ended in time; what it had saved before is kept.")


def _listen(children: list[_Child], told: Told) -> None:
    with selectors.DefaultSelector() as selector:
        for child in children:
            selector.register(child.points, selectors.EVENT_READ, child)
        while selector.get_map():
            for key, _ in selector.select():
                child = key.data
                block = os.read(child.points, 1 << 16)
                if not block:
                    selector.unregister(child.points)
                *lines, child.unread = (child.unread + block).split(b"\n")
                for line in lines:
                    point = json.loads(line)
                    told(point["numbers"], point["step"])


# ---- in the child ----

class Log:
    """Takes numbers like a tracked run, and hands them to the process that started this one."""

    def __init__(self, to: IO[str]) -> None:
        self.to = to

    def metrics(self, values: Mapping[str, Any], step: int = 0) -> None:
        """One line."""
        self.to.write(json.dumps({"step": step, "numbers": dict(values)}) + "\n")
        self.to.flush()


def asked(arguments: list[str]) -> tuple[dict[str, Any], Log]:
    """(request, where to log), in a process that `side_by_side` started; from now on it ends with its parent."""
    request: dict[str, Any] = json.loads(sys.stdin.buffer.readline())

    def end() -> None:
        while os.read(sys.stdin.fileno(), 1):  # not by the buffer, whose lock would stand in the way of an exit
            pass
        os._exit(1)  # the parent is gone: nobody would publish this, and its successor trains the same

    threading.Thread(target=end, daemon=True).start()
    return request, Log(os.fdopen(int(arguments[0]), "w", encoding="utf-8"))

