"""Rows by columns are the rows that were put in, and take little memory."""

from __future__ import annotations

import dataclasses
import tracemalloc
from pathlib import Path

import pytest

from domains.pseudonyms import Key, hide
from domains.rows import Rows, changed
from domains.sample import ManifestRow
from domains.splits import Splits, assign

FOLDER = Path("/data/raw/films of a hospital with a name")


def row(i: int, mask: bool = False) -> ManifestRow:
    key = f"ward {i % 7}/{i}.png"
    return ManifestRow(FOLDER / key, key, f"patient {i // 2}", "", "abc"[i % 3],
                       FOLDER / f"m/{i}.png" if mask else None, {"sick": str(i % 2), "note": f"seen on day {i}"},
                       within=FOLDER)


def filled(rows: list[ManifestRow]) -> Rows:
    made = Rows(str(FOLDER), FOLDER)
    for one in rows:
        made.append(one)
    return made


@pytest.mark.parametrize("masks", [False, True])
def test_they_are_the_rows_that_were_put_in(masks: bool) -> None:
    rows = [row(i, masks and i % 3 > 0) for i in range(40)]
    made = filled(rows)
    assert list(made) == rows and made[7:9] == rows[7:9] and made[-1] == rows[-1] and len(made) == 40
    with pytest.raises(IndexError):
        made[40]


def test_other_splits_and_stand_ins_are_those_that_a_list_gets_and_leave_the_first_as_they_were() -> None:
    rows = [row(i) for i in range(40)]
    made, key = filled(rows), Key(b"x" * 32)
    for of_rows, of_list in ((hide(made, key), hide(rows, key)), (assign(made, Splits(), {}, {}),
                                                                  assign(rows, Splits(), {}, {}))):
        assert list(of_rows) == list(of_list) != rows
    assert list(made) == rows
    assert changed(made, source=["d"] * 40)[3] == dataclasses.replace(rows[3], source="d")
    assert hide(made, key)[3].path == rows[3].path


def test_a_row_more_takes_less_than_half_of_what_it_takes_as_an_object() -> None:
    def grown(made: object) -> int:
        before = tracemalloc.get_traced_memory()[0]
        for i in range(2000):
            made.append(row(i))  # type: ignore[attr-defined]
        return tracemalloc.get_traced_memory()[0] - before

    tracemalloc.start()
    try:
        objects, columns = grown([]), grown(kept := Rows(str(FOLDER), FOLDER))
    finally:
        tracemalloc.stop()
    assert len(kept) == 2000 and columns < objects / 2
