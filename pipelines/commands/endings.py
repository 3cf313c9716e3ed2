"""How a command ends that did not do what it was asked: a sentence on stderr, and an exit code."""

from __future__ import annotations

import signal
import sys

from pipelines.told_to_stop import NAMES, ToldToStop, exit_code, number_of, say
from pipelines.training.processes import follows

USER_ERROR, FAULT = 2, 1


def explained(error: Exception) -> int:
    """One sentence or a few; a traceback is for --debug."""
    expected = isinstance(error, ValueError | OSError | ImportError | RuntimeError | MemoryError)
    text = str(error).strip() or type(error).__name__
    if expected:
        print(f"lacuna: {text}", file=sys.stderr)
        code: int = getattr(error, "exit_code", USER_ERROR)
        return code
    print(f"lacuna: a fault of ours, {type(error).__name__}: {text}. Repeat with --debug before the command for the "
          "traceback, and report it.", file=sys.stderr)
    return FAULT


def stopped(stop: KeyboardInterrupt, goes_on: bool | None) -> int:
    """Of a training on several devices the first process alone says how it ended: where another one ended before it
    with a code that is not 0, whoever started them would kill the first, which has a tracked run to close.

    Args:
        goes_on: whether the same command takes up what was done; None where that is no question.
    """
    if follows() and isinstance(stop, ToldToStop) and stop.together:
        return 0
    kept = {True: "; what was finished is kept, and the same command goes on from there", None: "",
            False: "; nothing of it is kept, and the same command begins anew"}[goes_on]
    say(f"stopped by {NAMES[signal.Signals(number_of(stop))]}{kept}.")
    return exit_code(stop)
