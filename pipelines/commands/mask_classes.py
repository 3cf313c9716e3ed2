"""Which classes do the masks of a folder hold? A few of them are read, in limited processes, and their numbers told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from domains.quarantine import Limits, Reader, read_all
from domains.sample import UNKNOWN_CLASS, ManifestRow
from pipelines.ingest import domain_reader
from pipelines.settings import build

MOST_READ = 40
"""Files whose masks are looked at, spread over the folder."""
LEAST_READ = 4
"""Of those that could be read, below which nothing is said of classes."""
REST = "rest"


def numbers_in_masks(folder: Path, pairs: Sequence[tuple[str, str]], domain: str, read: Mapping[str, Any],
                     rows: Mapping[str, Mapping[str, str]] | None = None) -> tuple[list[int], int]:
    """The numbers that masks hold, rising, without UNKNOWN_CLASS; and in how many files they were looked for.

    Args:
        pairs: (path, path of its mask), relative to the folder.
        read: the reader's settings.
        rows: other columns of the manifest by path, such as `source` or names of bands.
    """
    chosen = [pairs[i] for i in np.unique(np.linspace(0, len(pairs) - 1, min(MOST_READ, len(pairs))).astype(int))]
    found: set[int] = set()
    reader = domain_reader(domain)
    settings = build(reader.settings, dict(read), "read")
    asked = []
    for path, mask in chosen:
        columns = dict((rows or {}).get(path, {}))
        asked.append(ManifestRow(path=(folder / path).resolve(), key=path, group="", split="",
                                 source=columns.get("source", ""), mask_path=(folder / mask).resolve(),
                                 columns=columns))
    count = 0
    for outcome in read_all(asked, Reader(reader.ingest.__name__, settings), Limits(workers=1)):
        count += bool(outcome.pieces)
        for piece in outcome.pieces:
            found |= set() if piece.mask is None else set(np.unique(piece.mask).tolist())
    return sorted(found - {UNKNOWN_CLASS}), count


def task_of(numbers: Sequence[int], looked_at: int) -> tuple[dict[str, Any], str]:
    """A segmentation task for masks with these numbers, and what to say of it."""
    if len(numbers) < 2 or looked_at < LEAST_READ:
        task = {"kind": "segmentation", "classes": [REST, "marked"], "values": [0, 1]}
        return task, (f"Classes: {looked_at} masks could be read and looked at, which is too little to tell (or they "
                      "hold one number alone); taken for 0 (the rest) and 1. CHECK: name the numbers of your masks "
                      "under `classes` and `values`.")
    names = [REST, *(f"class_{number}" for number in numbers[1:])]
    counted = ", ".join(map(str, numbers))
    return {"kind": "segmentation", "classes": names, "values": list(numbers)}, (
        f"Classes: {looked_at} masks hold the numbers {counted}; the first is taken for what is left. CHECK: give them "
        "names, and add numbers that are rarer than that.")
