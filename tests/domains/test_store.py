from __future__ import annotations

import copy
import mmap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from domains import contract as contracts
from domains.contract import Channel, Contract
from domains.integrity import damaged_samples
from domains.sample import ManifestRow, Piece, Task
from domains.seal import DamagedData
from domains.store import LEAKS, Prepared, Writer, open_prepared
from tests.domains.held_pages import mapped_bytes

CONTRACT = Contract("medical", "xray", (Channel("grey", "grey 0-255"),), "uint8", (4, 6),
                    tasks={"sick": Task("single_label", ("sick",), ("no", "yes"))})


def row(i: int, group: str = "", split: str = "train", source: str = "a") -> ManifestRow:
    return ManifestRow(Path(f"{i}.png"), f"{i}.png", group or f"g{i}", split, source)


def sample(i: int) -> np.ndarray:
    return np.random.default_rng(i).integers(0, 255, (1, 4 + i % 3, 6), dtype=np.uint8)


def write(folder: Path, rows: list[ManifestRow], labels: list[float] | None = None, shard_bytes: int = 100,
          masks: bool = True) -> Prepared:
    folder.mkdir(exist_ok=True)
    writer = Writer(folder, "uint8", CONTRACT.tasks, shard_bytes)
    for i, one in enumerate(rows):
        values = sample(i)
        mask = values[0] % 2 if masks and i % 2 else None
        writer.add(Piece(values, mask, {"shape": list(values.shape)}), one,
                   {"sick": np.array([labels[i] if labels else i % 2])}, "f" * 64)
    writer.close()
    contracts.save(CONTRACT, folder / "contract.json")
    return open_prepared(folder)


def test_what_was_written_is_read_whatever_the_shape_and_shard(tmp_path: Path) -> None:
    prepared = write(tmp_path, [row(i) for i in range(20)])
    assert len(list(tmp_path.glob("shard-*.npy"))) > 3
    for i in range(20):
        assert np.array_equal(prepared.values(i), sample(i))
        mask = prepared.mask(i)
        assert (mask is None) == (i % 2 == 0)
        assert mask is None or np.array_equal(mask, sample(i)[0] % 2)
    assert prepared.column("facts")[1] == {"shape": [1, 5, 6]}
    assert prepared.column("key")[3] == "3.png"


def test_a_sample_larger_than_a_shard_gets_one_of_its_own(tmp_path: Path) -> None:
    prepared = write(tmp_path, [row(i) for i in range(3)], shard_bytes=10)
    assert all(np.array_equal(prepared.values(i), sample(i)) for i in range(3))


def test_a_shard_is_a_plain_npy_file(tmp_path: Path) -> None:
    write(tmp_path, [row(0)])
    assert np.array_equal(np.load(tmp_path / "shard-00000.npy", allow_pickle=False), sample(0).ravel())


def test_values_are_read_only_views_of_the_map(tmp_path: Path) -> None:
    values = write(tmp_path, [row(0)]).values(0)
    owner: Any = values
    while isinstance(owner, np.ndarray):
        owner = owner.base
    assert isinstance(owner, mmap.mmap), "no copy: the bytes are the file's"
    with pytest.raises(ValueError, match="read-only"):
        values[0] = 1


def test_points_keep_one_mask_value_each(tmp_path: Path) -> None:
    writer = Writer(tmp_path, "float16")
    cloud = np.arange(30, dtype=np.float16).reshape(10, 3)
    writer.add(Piece(cloud, np.arange(10, dtype=np.uint8)), row(0))
    with pytest.raises(ValueError, match="mask"):
        writer.add(Piece(cloud, np.zeros(9, np.uint8)), row(1))
    writer.close()
    contracts.save(Contract("pointcloud", "points", (), "float16", (10,)), tmp_path / "contract.json")
    prepared = open_prepared(tmp_path)
    assert np.array_equal(prepared.values(0), cloud)
    assert prepared.mask(0) is not None and prepared.mask(0).shape == (10,)


def test_a_shard_that_was_cut_short_is_found_at_open(tmp_path: Path) -> None:
    write(tmp_path, [row(i) for i in range(6)])
    path = tmp_path / "shard-00001.npy"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DamagedData, match="shard-00001.npy"):
        open_prepared(tmp_path)


def test_a_shard_of_another_length_or_a_missing_one_is_found_at_open(tmp_path: Path) -> None:
    write(tmp_path, [row(i) for i in range(6)])
    np.save(tmp_path / "shard-00001.npy", np.zeros(7, np.uint8))
    with pytest.raises(DamagedData, match="found uint8"):
        open_prepared(tmp_path)
    (tmp_path / "shard-00001.npy").unlink()
    with pytest.raises(DamagedData, match="missing or cut short"):
        open_prepared(tmp_path)


def flip(path: Path, at: int) -> None:
    """Invert one bit of a file."""
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def test_a_flipped_bit_is_found_when_its_sample_is_read_first_and_named(tmp_path: Path) -> None:
    write(tmp_path, [row(i) for i in range(6)])
    flip(tmp_path / "shard-00001.npy", -1)
    flip(tmp_path / "mask-00000.npy", -1)
    prepared = open_prepared(tmp_path)
    assert damaged_samples(prepared) == [5]
    for read in (prepared.values, prepared.mask):
        with pytest.raises(DamagedData, match="row 5 of index.parquet"):
            read(5)
    with pytest.raises(DamagedData):
        list(prepared.stacks(np.arange(6), 10_000))
    assert np.array_equal(prepared.values(0), sample(0))
    assert not np.array_equal(open_prepared(tmp_path, check_reads=False).values(5), sample(5))


def test_a_flip_in_a_shards_header_is_found_at_open_even_in_its_padding(tmp_path: Path) -> None:
    write(tmp_path, [row(i) for i in range(6)])
    path = tmp_path / "shard-00000.npy"
    content = bytearray(path.read_bytes())
    content[content.index(b"  ") + 2] = ord("\t")
    path.write_bytes(content)
    with pytest.raises(DamagedData, match="shard-00000.npy"):
        open_prepared(tmp_path)


def test_rows_are_chosen_by_split_source_and_label(tmp_path: Path) -> None:
    rows = [row(0), row(1, split="val"), row(2, source="b"), row(3, split="test"), row(4, source="b")]
    prepared = write(tmp_path, rows, [0, 1, np.nan, 1, 0])
    assert prepared.rows(split="train").tolist() == [0, 2, 4]
    assert prepared.rows(split=("val", "test")).tolist() == [1, 3]
    assert prepared.rows(source="b", task="sick").tolist() == [4]
    assert prepared.labels("sick").dtype == np.float32
    assert np.isnan(prepared.labels("sick")[2, 0])


def test_the_pool_holds_no_group_of_val_or_test(tmp_path: Path) -> None:
    rows = [row(0, "a"), row(1, "b", "unlabelled"), row(2, "c", "val"), row(3, "c", "unlabelled"), row(4, "d", "test"),
            row(5, "d", "unlabelled"), row(6, "e")]
    assert write(tmp_path, rows).pool().tolist() == [0, 1, 6]


def test_the_pool_holds_nothing_that_repeats_a_held_out_sample(tmp_path: Path) -> None:
    write(tmp_path, [row(0), row(1, split="unlabelled"), row(2, split="test"), row(3, split="val"), row(4)])
    (tmp_path / LEAKS).write_text("key_a,split_a,key_b,split_b,what,score\n0.png,train,2.png,test,near,0.99\n"
                                  "1.png,unlabelled,3.png,val,exact,1\n3.png,val,2.png,test,exact,1\n")
    assert open_prepared(tmp_path).pool().tolist() == [4]


def test_the_digest_changes_with_any_label_and_with_nothing_else(tmp_path: Path) -> None:
    rows = [row(i) for i in range(4)]
    first = write(tmp_path / "a", rows, [0, 1, 0, 1]).digest
    assert write(tmp_path / "b", rows, [0, 1, 0, 1]).digest == first
    assert write(tmp_path / "c", rows, [0, 1, 0, 0]).digest != first


def test_a_pickled_handle_carries_no_samples(tmp_path: Path) -> None:
    prepared = write(tmp_path, [row(i) for i in range(200)], shard_bytes=2**20)
    prepared.values(0)
    another = copy.copy(prepared)  # by the same protocol as pickle
    assert another._maps == {}
    assert np.array_equal(another.values(7), sample(7))


def test_stacks_give_every_row_once_and_in_order(tmp_path: Path) -> None:
    prepared = write(tmp_path, [row(i) for i in range(20)])
    rows = np.array([0, 1, 2, 3, 6, 9, 12, 13, 19])
    seen = []
    for some, values in prepared.stacks(rows, 100):
        seen += some.tolist()
        assert all(np.array_equal(value, sample(int(i))) for i, value in zip(some, values, strict=True))
    assert seen == rows.tolist()


def test_walking_through_stacks_holds_one_stack_of_the_shards_and_not_all(tmp_path: Path) -> None:
    writer = Writer(tmp_path, "uint8", CONTRACT.tasks)
    for i in range(64):
        writer.add(Piece(np.full((1, 1024, 1024), i, np.uint8)), row(i), {"sick": np.zeros(1)})
    writer.close()
    contracts.save(CONTRACT, tmp_path / "contract.json")
    prepared = open_prepared(tmp_path, check_reads=False)
    before, most = mapped_bytes(), 0
    for rows, values in prepared.stacks(np.arange(64), 2**22):
        assert values.max() == rows[-1]
        most = max(most, mapped_bytes() - before)
    assert 2**22 <= most < 2**23


def test_a_forgotten_label_is_refused(tmp_path: Path) -> None:
    writer = Writer(tmp_path, "uint8", ["sick"])
    with pytest.raises(ValueError, match="give NaN for unknown"):
        writer.add(Piece(sample(0)), row(0))


def test_a_folder_without_an_index_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="lacuna ingest"):
        open_prepared(tmp_path)


def test_an_unknown_task_or_column_names_those_there_are(tmp_path: Path) -> None:
    prepared = write(tmp_path, [row(0)])
    with pytest.raises(ValueError, match="expected one of sick"):
        prepared.labels("well")
    with pytest.raises(ValueError, match="group"):
        prepared.column("patient")
