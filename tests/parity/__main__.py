"""`python -m tests.parity DIR`: every recorded case through the importer and the project's own forward.

DIR is laid out like the recorded reference outputs: one folder per system with checkpoints, io.safetensors (`in/`,
`out/`) and meta.json. Sizes, heads and groups are read from meta.json; nothing is keyed to those of one set. Prints one
line per output with the largest absolute and relative error; exit code 1 beyond the tolerance, when a recorded output
was not compared, or when a system broke off.
"""

from __future__ import annotations

import sys
import traceback
from pathlib import Path

from tests.parity.compare import SYSTEMS, compare

if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(f"usage: python -m tests.parity DIR [SYSTEM...]   systems: {', '.join(SYSTEMS)}")
    root, chosen = Path(sys.argv[1]), sys.argv[2:] or list(SYSTEMS)
    failed = False
    for system in chosen:
        if not (root / system).is_dir():
            print(f"{system}: no folder {root / system}")
            failed = True
            continue
        try:
            for line in compare(root / system, system):
                failed |= not line.passed
                print(line, flush=True)
        except Exception as error:  # the other systems are still to be compared
            traceback.print_exc()
            print(f"FAIL {system:56} broke off: {type(error).__name__}: {error}", flush=True)
            failed = True
    print("FAILED" if failed else "all recorded outputs agree")
    sys.exit(failed)
