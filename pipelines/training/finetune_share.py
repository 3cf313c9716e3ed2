"""A process that trains its share of a fine-tuning: every n-th training, left in the work folder for the process that
started it (pipelines/training/side_by_side.py), which goes through all of them afterwards and publishes.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from domains.store import open_prepared
from pipelines.finetune import resolve_start, trainings
from pipelines.settings import build
from pipelines.training.finetune_settings import FinetuneRun
from pipelines.training.label_budget import labelled_rows
from pipelines.training.resume import Work
from pipelines.training.side_by_side import Log, asked


def train(request: dict[str, Any], log: Log) -> None:
    """Train the share that the request names."""
    name, root = request["name"], Path(request["root"])
    settings: FinetuneRun = build(FinetuneRun, request["settings"], f"finetune.{name}")
    prepared = open_prepared(root / "data/prepared" / settings.data, settings.machine.check_reads)
    work = Work(**{**request["work"], "folder": Path(request["work"]["folder"])})
    start = resolve_start(settings, prepared.contract, root)
    rows = labelled_rows(prepared, settings.data, settings.task, settings.label_share, settings.label_seed)
    first, count = request["share"]
    trainings(name, settings, prepared, rows, start, work, log, slice(first, None, count))


if __name__ == "__main__":
    try:
        train(*asked(sys.argv[1:]))
    except Exception as error:
        # The process that started this one trains what is missing; if it fails there too, it is told in full there.
        print(f"finetune: a process of this training ended early ({type(error).__name__}: {error})", file=sys.stderr)
        sys.exit(1)
