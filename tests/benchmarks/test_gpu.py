"""The steps that are measured on a GPU run, and give rows that can be read, at sizes that a CPU can do."""

from __future__ import annotations

import pytest

from benchmarks import gpu


@pytest.mark.parametrize("case", gpu.TINY, ids=lambda case: case.name)
def test_each_case_compares_then_times_three_variants(case: gpu.Case) -> None:
    rows = gpu.measure(case, "cpu", compiled=False, rounds=2, steps=1)
    assert [row["variant"] for row in rows] == ["plain", "sdpa + compile", "ours"]
    assert all(row["samples/s"] > 0 and row["share of the limit"] > 0 for row in rows)
    assert "times plain" in rows[-1] and "times sdpa + compile" in rows[-1]


def test_point_mae_is_set_beside_the_way_of_its_release() -> None:
    rows = gpu.point_mae(True, "cpu", compiled=False, rounds=2, steps=1)
    assert [row["variant"] for row in rows] == ["every group embedded, eager", "ours"]
