"""Growth is set against operations: four times the pixels, or bands, need at least four times of them."""

from __future__ import annotations

from benchmarks import growth


def test_a_point_gives_its_time_and_its_memory() -> None:
    found = growth.measure(32, 1, bands=False, steps=1)
    assert found["seconds"] > 0 and found["bytes"] >= 0


def test_operations_grow_faster_than_tokens() -> None:
    for bands, (small, large) in ((False, ((224, 1), (448, 1))), (True, ((112, 1), (112, 4)))):
        (little, few), (much, many) = growth.operations(*small, bands), growth.operations(*large, bands)
        assert many == 4 * few and 4 < much / little < 16
