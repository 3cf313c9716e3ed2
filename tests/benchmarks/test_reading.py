"""What is timed when shards are read is what was stored."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.reading import KINDS, batches_of, check_batch, write

SMALL = {"X-ray 224": ((1, 24, 24), (24, 24)), "X-ray 256, crops of 224": ((1, 26, 26), (24, 24)),
         "CT 160^3, crops of 96^3": ((1, 9, 9, 9), (6, 6, 6)), "Sentinel-2, 12 bands of 120": ((12, 9, 9), (8, 8)),
         "points, 1,024 of 8,192": ((64, 3), (16,))}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_batches_hold_crops_of_what_was_stored(kind, tmp_path: Path) -> None:
    stored, size = SMALL[kind.name]
    small = replace(kind, stored=stored, size=size)
    check_batch(batches_of(write(small, tmp_path / "data", 6), small, 4))


def test_writing_to_a_batch_leaves_the_shard_alone(tmp_path: Path) -> None:
    small = replace(KINDS[0], stored=(1, 8, 8), size=(8, 8))
    batches = batches_of(write(small, tmp_path / "data", 4), small, 4)
    before = batches.batch(0, 0).raw.clone()
    batches.batch(0, 0).raw.zero_()
    assert before.any() and batches.batch(0, 0).raw.equal(before)
