"""A process for tests of pipelines/training/side_by_side.py: says that it is there, and waits. Asked to stop, it takes
a moment to save, where the request says so."""

import os
import sys
import time
from pathlib import Path

from pipelines.told_to_stop import number_of
from pipelines.training.side_by_side import asked

if __name__ == "__main__":
    request, log = asked(sys.argv[1:])
    mark = Path(request["mark"]) / str(os.getpid())
    mark.touch()
    try:
        time.sleep(600)
    except KeyboardInterrupt as stop:
        if request.get("saves"):
            time.sleep(1)
            mark.write_text(str(number_of(stop)))
        raise
