"""Damaged files of every format are accepted or quarantined, with hash and reason; a small campaign."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.faults import mutated_files, seeds


@pytest.mark.parametrize("name", ["DICOM", "PNG", "NIfTI, gzip", "GeoTIFF", "NPY", "OFF", "LAS"])
def test_every_damaged_file_is_accepted_or_quarantined_with_hash_and_reason(whole: list[seeds.Format], tmp_path: Path,
                                                                            name: str) -> None:
    form = next(form for form in whole if form.name == name)
    tally = mutated_files.fuzz(form, tmp_path / "damaged", count=24, seed=1)
    assert tally.sound and tally.files == 24
    assert tally.quarantined, "of 24 damaged files some cannot be read"
    if name in ("PNG", "NIfTI, gzip"):
        assert not tally.differ, "damage passed the checksums"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[seeds.Format]:
    return seeds.formats(tmp_path_factory.mktemp("seeds"))


@pytest.mark.parametrize("way", mutated_files.WAYS)
def test_the_same_seed_damages_the_same_bytes_and_always_some(way: str) -> None:
    first, second = (mutated_files.mutate(b"abcdefgh" * 40, b"12345678" * 30, way, np.random.default_rng(3))
                     for _ in range(2))
    assert first == second != b"abcdefgh" * 40
