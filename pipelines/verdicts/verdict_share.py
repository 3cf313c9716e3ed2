"""A process that trains its share of a verdict's cells: every n-th, kept where the process that started it
(pipelines/training/side_by_side.py) looks for them afterwards.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from pipelines import verdict
from pipelines.settings import build
from pipelines.training.side_by_side import asked


def train(request: dict[str, Any]) -> None:
    """Train the share that the request names."""
    name, (first, count) = request["name"], request["share"]
    settings: verdict.VerdictRun = build(verdict.VerdictRun, request["settings"], f"verdict.{name}")
    verdict.run(name, settings, Path(request["root"]), (first, count))


if __name__ == "__main__":
    try:
        train(asked(sys.argv[1:])[0])
    except Exception as error:
        # The process that started this one trains what is missing; if it fails there too, it is told in full there.
        print(f"verdict: a process of this verdict ended early ({type(error).__name__}: {error})", file=sys.stderr)
        sys.exit(1)
