"""Arrays in files: what is left comes back, and takes no memory meanwhile."""

from __future__ import annotations

import numpy as np

from domains.mapped import leave, on_disk
from tests.domains.held_pages import mapped_bytes


def test_an_array_that_was_left_takes_no_memory_and_keeps_what_was_written() -> None:
    vectors = on_disk(4096, 4096)
    before = mapped_bytes()
    vectors[:] = np.arange(4096, dtype=np.float32)
    assert mapped_bytes() - before > 0.9 * vectors.nbytes
    leave(vectors[7:9])
    assert mapped_bytes() - before < 0.1 * vectors.nbytes
    assert np.array_equal(vectors[[0, 4095]], np.tile(np.arange(4096, dtype=np.float32), (2, 1)))


def test_other_arrays_may_be_left_too() -> None:
    array = np.arange(5)
    leave(array)
    assert array.tolist() == [0, 1, 2, 3, 4]


def test_no_vectors_are_an_empty_array() -> None:
    assert on_disk(0, 256).shape == (0, 256)
