"""A process for tests of pipelines/training/side_by_side.py: says that it is there, and waits."""

import os
import sys
import time
from pathlib import Path

from pipelines.training.side_by_side import asked

if __name__ == "__main__":
    request, log = asked(sys.argv[1:])
    (Path(request["mark"]) / str(os.getpid())).touch()
    time.sleep(600)
