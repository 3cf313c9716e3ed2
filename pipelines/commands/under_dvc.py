"""A stage that DVC has started ends when DVC does. DVC hands no SIGTERM on, so a stage would otherwise train on by
itself, and beside the one that the next `dvc repro` starts."""

from __future__ import annotations

import os
import select
import signal
import threading

from pipelines.told_to_stop import say
from pipelines.tracking.lineage import ancestors, is_dvc


def end_with_dvc() -> None:
    """From now on this process is sent SIGTERM when the DVC above it is gone; nothing where there is none, or where the
    system cannot tell."""
    found = next((pid for pid, _, command in ancestors(os.getpid()) if is_dvc(command)), None)
    if found is None or not hasattr(os, "pidfd_open"):
        return
    try:
        watched = os.pidfd_open(found)
    except OSError:  # a kernel before 5.3, or it has just ended and a shell will say so
        return

    def wait() -> None:
        poll = select.poll()
        poll.register(watched, select.POLLIN)
        poll.poll()
        say("\nDVC has ended: so does this stage.")
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()
