from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from domains import labels
from domains.sample import ManifestRow, Task
from domains.splits import GroupCut, Splits, assert_no_group_is_cut, assign, cut_groups, pseudonym

TASK = Task("single_label", ("y",), ("0", "1"))


def make_rows(num_groups: int, per_group: int = 3, split: str = "") -> list[ManifestRow]:
    rng = np.random.default_rng(0)
    return [ManifestRow(Path(f"{g}_{i}"), f"{g}_{i}", f"patient {g}", split, f"site {g % 2}",
                        columns={"y": str(int(g % 4 == 0))})
            for g in range(num_groups) for i in range(1 + int(rng.integers(per_group)))]


def divide(rows: list[ManifestRow], settings: Splits | None = None) -> list[ManifestRow]:
    return assign(rows, settings or Splits(), {"t": TASK}, {"t": labels.arrays(TASK, rows)})


def test_a_split_never_cuts_a_group() -> None:
    divided = divide(make_rows(200))
    assert {row.split for row in divided} == {"train", "val", "test"}
    assert cut_groups([row.group for row in divided], [row.split for row in divided]) == []


def test_splits_have_the_wanted_shares_in_every_stratum() -> None:
    divided = divide(make_rows(400))
    for source in ("site 0", "site 1"):
        for label in ("0", "1"):
            shares = Counter(row.split for row in divided if row.source == source and row.columns["y"] == label)
            total = sum(shares.values())
            if total:
                assert abs(shares["test"] / total - 0.2) < 0.05
                assert abs(shares["val"] / total - 0.2) < 0.05


def test_splits_do_not_depend_on_the_order_of_rows() -> None:
    rows = make_rows(100)
    forward = {row.key: row.split for row in divide(rows)}
    order = np.random.default_rng(1).permutation(len(rows))
    assert {row.key: row.split for row in divide([rows[i] for i in order])} == forward


def test_another_seed_makes_another_division_and_the_same_seed_the_same() -> None:
    rows = make_rows(100)
    first, again, other = (divide(rows, Splits(seed)) for seed in (0, 0, 1))
    assert first == again
    assert first != other


@pytest.mark.parametrize("num_groups", [60, 300, 1000])
def test_groups_that_are_added_move_few_of_those_that_were_there(num_groups: int) -> None:
    before = {row.group: row.split for row in divide(make_rows(num_groups))}
    for more in (1, num_groups // 20):
        after = {row.group: row.split for row in divide(make_rows(num_groups + more))}
        moved = sum(after[group] != split for group, split in before.items())
        assert moved <= 6 + more  # three borders in each of two strata, which one group moves by less than another


def test_many_strata_of_one_group_have_the_wanted_shares_together_and_stay_in_place() -> None:
    def divided(num: int) -> dict[str, str]:
        values = np.array([[i >> bit & 1 for bit in range(10)] for i in range(num)], np.float32)
        rows = [plain_row(f"g{i}") for i in range(num)]
        return {row.group: row.split for row in assign(rows, Splits(), {"t": Task("multi_label", tuple("abcdefghij"))},
                                                       {"t": values})}
    before, after = divided(1000), divided(1020)
    shares = Counter(before.values())
    assert abs(shares["test"] - 200) < 50 and abs(shares["val"] - 200) < 50
    assert {group: after[group] for group in before} == before


@pytest.mark.parametrize("num_groups", [4, 5, 6, 8, 12, 20])
@pytest.mark.parametrize("seed", range(5))
def test_a_few_groups_still_fill_every_split(num_groups: int, seed: int) -> None:
    rows = [dataclasses.replace(plain_row(f"g{i}"), source=f"site {i % 3}") for i in range(num_groups)]
    assert {row.split for row in assign(rows, Splits(seed), {}, {})} == {"train", "val", "test"}


def test_splits_that_the_manifest_gives_are_kept() -> None:
    rows = make_rows(30, split="train")
    rows[-1] = dataclasses.replace(rows[-1], group="other", split="unlabelled")
    assert divide(rows) == rows


def test_a_row_without_a_split_follows_its_group() -> None:
    rows = make_rows(50)
    rows[0] = dataclasses.replace(rows[0], split="test")
    rows = [dataclasses.replace(row, group=rows[0].group) if i < 10 else row for i, row in enumerate(rows)]
    assert {row.split for row in divide(rows)[:10]} == {"test"}


def test_planted_leakage_is_found_and_named_by_hash_alone() -> None:
    rows = make_rows(300, split="train")
    planted = sorted({row.group for row in rows})[:100]
    leaking = [*rows, *(dataclasses.replace(rows[0], key=f"copy {i}", group=group, split=("val", "test")[i % 2])
                        for i, group in enumerate(planted))]
    assert cut_groups([row.group for row in leaking], [row.split for row in leaking]) == planted
    with pytest.raises(GroupCut, match="found 100 groups") as caught:
        divide(leaking)
    assert "patient" not in str(caught.value)
    assert pseudonym(planted[0]) in str(caught.value)
    assert pseudonym(planted[3]) not in str(caught.value)


def test_an_unlabelled_row_may_share_a_held_out_group() -> None:
    assert_no_group_is_cut(["a", "a", "b"], ["test", "unlabelled", "train"])


@pytest.mark.parametrize("kind", ["multi_label", "regression"])
def test_findings_and_numbers_are_stratified_too(kind: str) -> None:
    rows = make_rows(200, per_group=1)
    index = np.arange(len(rows), dtype=np.float32)[:, None]
    values = (index % 10 == 0).astype(np.float32) if kind == "multi_label" else index
    divided = assign(rows, Splits(), {"t": Task(kind, ("y",))}, {"t": values})  # type: ignore[arg-type]
    test = np.array([row.split == "test" for row in divided])
    assert abs(values[test].mean() - values.mean()) < 0.2 * values.std()


def test_shares_that_leave_nothing_for_training_are_refused() -> None:
    with pytest.raises(ValueError, match="leave some for train"):
        Splits(val=0.5, test=0.5)


def plain_row(group: str, split: str = "") -> ManifestRow:
    return ManifestRow(Path(group), group, group, split, "")


def test_groups_of_a_unit_end_in_one_split_and_follow_a_row_that_came_with_one() -> None:
    rows = [plain_row(f"g{i:03d}") for i in range(200)] + [plain_row("given", "test"), plain_row("also", "val")]
    units = {f"g{i:03d}": f"g{i - i % 2:03d}" for i in range(100)} | {"g150": "g150", "given": "g150"}
    divided = {one.group: one.split for one in assign(rows, Splits(), {}, {}, units)}
    assert all(divided[f"g{i:03d}"] == divided[f"g{i + 1:03d}"] for i in range(0, 100, 2))
    assert divided["g150"] == divided["given"] == "test" and divided["also"] == "val"
    assert {split: sum(value == split for value in divided.values()) for split in ("val", "test")} == pytest.approx(
        {"val": 40, "test": 40}, abs=4)


def test_given_splits_that_differ_inside_a_unit_stay_as_they_are() -> None:
    rows = [plain_row("a", "train"), plain_row("b", "test"), plain_row("b", "test"), plain_row("c"), plain_row("a")]
    divided = assign(rows, Splits(), {}, {}, {"a": "a", "b": "a", "c": "a"})
    assert [one.split for one in divided] == ["train", "test", "test", "test", "train"], "a group before its unit"
