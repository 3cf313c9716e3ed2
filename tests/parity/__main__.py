"""`python -m tests.parity DIR`: every recorded case through the importer and the project's own forward.

DIR is laid out like the recorded reference outputs: one folder per system with checkpoints, io.safetensors (`in/`,
`out/`) and meta.json. Sizes, heads and groups are read from meta.json; nothing is keyed to those of one set. Prints one
line per output with the largest absolute and relative error; exit code 1 beyond the tolerance, or when a recorded
output was not compared.
"""

from __future__ import annotations

import sys
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
        for line in compare(root / system, system):
            failed |= not line.passed
            print(line)
    print("FAILED" if failed else "all recorded outputs agree")
    sys.exit(failed)
