"""Bombs are refused soon, in a child that stays small; those that take long to write are left to the campaign."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.faults import bombs, seeds

QUICK = [name for name in bombs.bombs() if "zeros" not in name and "inflates" not in name and "320 GB" not in name]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, seeds.Format]:
    return {form.name: form for form in seeds.formats(tmp_path_factory.mktemp("seeds"))}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize("name", QUICK)
def test_a_bomb_is_refused_and_its_child_stays_small(whole: dict[str, seeds.Format], tmp_path: Path, name: str) -> None:
    form, ending, write = bombs.bombs()[name]
    verdict = bombs.defuse(name, write(tmp_path / f"bomb{ending}"), whole[form].reader, whole[form].paths[0])
    assert verdict.reason
    assert verdict.peak <= bombs.PEAK_BYTES and verdict.grown <= bombs.PARENT_BYTES


def test_a_png_that_holds_more_than_its_pixels_is_refused(whole: dict[str, seeds.Format], tmp_path: Path) -> None:
    path = bombs._png(64, 64, 2**28)(tmp_path / "a.png")
    assert "bytes of compressed pixels" in bombs.defuse("a", path, whole["PNG"].reader, whole["PNG"].paths[0]).reason
