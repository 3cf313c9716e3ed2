"""An error that leaves a stage which handles names of patients, without the names.

Our own errors are sentences that were written with this in mind. Any other may quote what it stumbled over: a file's
name, a cell of a table. Of those the type and the place are kept, also under --debug.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

HOME = Path(__file__).resolve().parents[2]
OURS = ("domains", "models", "pipelines")


class Fault(RuntimeError):
    """Something that should not have happened, told by type and place."""


@contextmanager
def nameless(stage: str, outputs: Sequence[Path]) -> Iterator[None]:
    """Replace what the block raises by a sentence without names, where it is not one of ours.

    Args:
        outputs: folders whose files may be named, since we name them.

    Raises:
        Fault: found, at which place, remedy.
    """
    try:
        yield
    except Exception as error:
        if _is_ours(error, outputs):
            raise
        frames = [f"{'/'.join(Path(frame.filename).parts[-2:])}:{frame.lineno} in {frame.name}"
                  for frame in traceback.extract_tb(error.__traceback__)]
        what = type(error).__name__ + (f" ({os.strerror(error.errno)})" if isinstance(error, OSError) and error.errno
                                       else "")
        told = Fault(f"{stage}: found {what} at {frames[-1]}. Its own text is left out, since it may name a patient. "
                     "Remedy: check that all files can be read; if they can, report this with the lines that --debug "
                     "shows.")
        told.add_note("\n".join(frames))
        raise told from None


def _is_ours(error: Exception, outputs: Sequence[Path]) -> bool:
    if isinstance(error, OSError):
        named = [Path(os.fsdecode(name)) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
        return all(any(path.is_relative_to(output) for output in outputs) for path in named)
    if isinstance(error, ImportError) or type(error).__module__.partition(".")[0] in OURS:
        return True
    # What our own code raises as a plain RuntimeError is a sentence; libraries put anything into one.
    last = traceback.extract_tb(error.__traceback__)[-1]
    return type(error) is RuntimeError and any(
        Path(last.filename).resolve().is_relative_to(HOME / folder) for folder in OURS)
