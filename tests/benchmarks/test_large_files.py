"""The script that reads large files tells what was read, and whether a refusal says what would allow it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.faults.large_files import CLOUDS, FILES, Large, told
from domains.quarantine import Limits


def cloud(num: int) -> Large:
    """So many points as NPY."""
    def write(folder: Path) -> Path:
        np.save(folder / "a.npy", np.random.default_rng(0).random((num, 3)).astype(np.float32))
        return folder / "a.npy"
    return Large(CLOUDS, write)


def test_a_file_that_is_read_and_a_refusal_that_names_its_setting_are_good_and_another_is_not(
        capsys: pytest.CaptureFixture[str]) -> None:
    limits = Limits(workers=1, memory_gb=0.5)
    assert told("small", cloud(1000), limits)
    assert told("too large for the limit", cloud(20_000_000), limits)
    assert not told("too few", cloud(3), limits)
    said = capsys.readouterr().out
    assert "small: 0 MB, 1 samples in 1 parts" in said
    assert "REFUSED: needs more memory than the 0.5 GiB of limits.memory_gb" in said
    assert said.count("NOT TOLD WHAT TO DO") == 1 and len(FILES) == 14
