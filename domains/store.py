"""Prepared data: a few memory-mappable .npy shards and an index with one row per sample.

Legend: C channels, D H W voxels or pixels, M points, F values per point, n samples, k outputs of a task.

A shard is a flat array; a sample is a contiguous slice of it. Training maps the shards and reads slices, so that memory
stays flat and nothing is decoded twice. Opening needs numpy and pyarrow alone.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from domains import contract as contracts
from domains import seal as seals
from domains.contract import Contract
from domains.layout import Layout
from domains.mapped import leave
from domains.sample import DTYPES, ManifestRow, Piece, mask_shape
from domains.seal import DamagedData
from domains.shards import Shards, fingerprint, npy_header

MAX_SHARD_BYTES = 256 * 2**20
"""Large enough that a million samples are a few hundred files, small enough to copy and check one at a time."""
ROWS_PER_WRITE = 2048
"""Index rows kept in memory, as Python objects of 2 kB each, before they go to the parquet file."""
LEAKS = "leaks.csv"
"""Pairs of samples across splits that hold the same content or ground; see domains/duplicates.py."""

_FIXED_COLUMNS = [
    ("key", pa.string()), ("shard", pa.int32()), ("offset", pa.int64()), ("shape", pa.list_(pa.int32())),
    ("mask_shard", pa.int32()), ("mask_offset", pa.int64()), ("group", pa.string()), ("split", pa.string()),
    ("source", pa.string()), ("sha256", pa.string()), ("mask_sha256", pa.string()),
    ("file_sha256", pa.string()), ("facts", pa.string()),
]


class Writer:
    """Writes shards and index into a folder that the caller publishes when all is written."""

    def __init__(self, folder: Path, dtype: str, tasks: Iterable[str] = (),
                 max_shard_bytes: int = MAX_SHARD_BYTES) -> None:
        if dtype not in DTYPES:
            raise ValueError(f"dtype of shards: found {dtype}, expected one of {', '.join(DTYPES)}.")
        self.dtype, self.tasks = np.dtype(dtype), tuple(tasks)
        self.num_samples = 0
        self.num_bytes = 0
        self._values = Shards(folder, "shard", dtype, max_shard_bytes)
        self._masks = Shards(folder, "mask", "uint8", max_shard_bytes)
        self._schema = pa.schema([*_FIXED_COLUMNS, *((f"y.{name}", pa.list_(pa.float32())) for name in self.tasks)])
        self._index = pq.ParquetWriter(folder / "index.parquet", self._schema, compression="zstd")
        self._rows: list[dict[str, Any]] = []

    def add(self, piece: Piece, row: ManifestRow, labels: Mapping[str, np.ndarray] | None = None,
            file_sha256: str = "") -> str:
        """Store one piece of the file that `row` names.

        Args:
            labels: per task a vector of floats, NaN where unknown. Every task must be given: an unknown label is said,
                not forgotten.
            file_sha256: hash of the raw file, for lineage.

        Returns:
            The sample's key: the row's key plus the piece's suffix.
        """
        labels = labels or {}
        if set(labels) != set(self.tasks):
            raise ValueError(f"labels: found {sorted(labels)}, expected {sorted(self.tasks)}; give NaN for unknown.")
        if piece.values.dtype != self.dtype:
            raise ValueError(f"values: found {piece.values.dtype}, expected {self.dtype}.")
        if piece.mask is not None and (piece.mask.dtype != np.uint8
                                       or piece.mask.shape != mask_shape(piece.values.shape)):
            raise ValueError(f"mask: found {piece.mask.dtype} {piece.mask.shape}, expected uint8 "
                             f"{mask_shape(piece.values.shape)}.")
        key = row.key + piece.suffix
        shard, offset = self._values.append(piece.values)
        mask_shard, mask_offset = (-1, -1) if piece.mask is None else self._masks.append(piece.mask)
        self._rows.append({
            "key": key, "shard": shard, "offset": offset, "shape": list(piece.values.shape),
            "mask_shard": mask_shard, "mask_offset": mask_offset, "group": row.group, "split": row.split,
            "source": row.source, "sha256": fingerprint(piece.values), "mask_sha256": fingerprint(piece.mask),
            "file_sha256": file_sha256, "facts": json.dumps(piece.facts, sort_keys=True),
            **{f"y.{name}": np.asarray(labels[name], np.float32).tolist() for name in self.tasks},
        })
        self.num_samples += 1
        self.num_bytes += piece.values.nbytes
        if len(self._rows) >= ROWS_PER_WRITE:
            self._flush()
        return key

    def _flush(self) -> None:
        if self._rows:
            self._index.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
            self._rows = []

    def close(self) -> None:
        """Finish shards and index."""
        self._flush()
        self._index.close()
        self._values.close()
        self._masks.close()


def replace_columns(folder: Path, columns: Mapping[str, Sequence[Any]]) -> None:
    """Write the index anew with other values in some columns, before the folder is published: splits and labels can
    depend on all samples, and so be known only after the last. Row groups stay as they are, one in memory at a time."""
    path, rewritten = folder / "index.parquet", folder / "index.parquet.new"
    with pq.ParquetFile(path) as old, pq.ParquetWriter(rewritten, old.schema_arrow, compression="zstd") as new:
        begin = 0
        for group in range(old.num_row_groups):
            table = old.read_row_group(group)
            for name, values in columns.items():
                at, some = table.schema.get_field_index(name), values[begin:begin + len(table)]
                table = table.set_column(at, table.schema.field(name), pa.array(some, table.schema.field(name).type))
            new.write_table(table)
            begin += len(table)
    rewritten.replace(path)


def open_prepared(folder: Path, check_reads: bool = True) -> Prepared:
    """Open a prepared folder. Every file but the shards is compared with the seal; every shard must have the header and
    the length that the index needs.

    Args:
        check_reads: compare each sample with its hash when it is read first in this process (about 30 microseconds for
            50 kB, once), so that nothing is learnt from a damaged one.

    Raises:
        FileNotFoundError: no prepared data there.
        DamagedData: something is not what was written.
    """
    folder = Path(folder)
    if not (folder / "index.parquet").is_file():
        there = sorted(path.parent.name for path in folder.parent.glob("*/index.parquet"))
        raise FileNotFoundError(f"no prepared data at {folder}: found no index.parquet. Run `lacuna ingest`"
                                + (f", or name one of {', '.join(there[:9])}." if there else "."))
    return Prepared(folder, check_reads)


class Prepared:
    """Prepared data, read-only. Values are views of memory-mapped shards: copy before writing to them."""

    def __init__(self, folder: Path, check_reads: bool = True, check_seal: bool = True) -> None:
        self.folder = folder
        if check_seal:
            self._check_seal()
        self.contract: Contract = contracts.load(folder / "contract.json")
        table = pq.read_table(folder / "index.parquet", columns=["shard", "offset", "shape", "mask_shard",
                                                                 "mask_offset"])
        shapes = table["shape"].combine_chunks()
        self._layout = Layout(table["shard"].to_numpy(), table["offset"].to_numpy(), table["mask_shard"].to_numpy(),
                              table["mask_offset"].to_numpy(), shapes.flatten().to_numpy(),
                              shapes.value_lengths().to_numpy())
        self._maps: dict[str, np.ndarray] = {}
        self._columns: dict[str, list[Any]] = {}
        self._labels: dict[str, np.ndarray] = {}
        self._to_check = {name: np.full(len(self), check_reads) for name in ("sha256", "mask_sha256")}
        self._hashes: dict[str, pa.Array] = {}
        self._check_sizes()

    def __len__(self) -> int:
        return len(self._layout)

    def __getstate__(self) -> dict[str, Any]:
        # A pickled memory map would carry its whole content to the worker process; each opens its own instead.
        return {**self.__dict__, "_maps": {}}

    def shape(self, i: int) -> tuple[int, ...]:
        """Shape of sample i."""
        return self._layout.shape(i)

    def values(self, i: int) -> np.ndarray:
        """Sample i as a read-only view of its shard: C H W, C D H W or M F in the contract's dtype. Raises DamagedData
        when it is read for the first time and is not what was written."""
        values = self._view(*self._layout.place(i))
        if self._to_check["sha256"][i]:
            self._check_sample(i, values, "sha256")
        return values

    def stacks(self, rows: np.ndarray, max_values: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(rows, values K C ... or K M F) for neighbours in `rows` that have one shape: at most `max_values` values,
        and at least one sample. A Python loop over a million small samples would cost more than the work on them.

        Once the next stack is asked for, the pages of this one's shards are given back: whoever walks through all
        samples would otherwise hold all of them."""
        start = 0
        while start < len(rows):
            here = self._layout.alike(rows[start:], max_values)
            yield here, self._stack(here)
            for name in {self.place(int(here[0])), self.place(int(here[-1]))}:
                leave(self._map(name))
            start += len(here)

    def _stack(self, rows: np.ndarray) -> np.ndarray:
        if not self._layout.adjoin(rows):
            return np.stack([self.values(int(i)) for i in rows])
        for i in rows[self._to_check["sha256"][rows]]:
            self.values(int(i))
        name, offset, shape = self._layout.place(int(rows[0]))
        return self._view(name, offset, (len(rows), *shape))

    def _view(self, name: str, offset: int, shape: tuple[int, ...]) -> np.ndarray:
        return self._map(name)[offset:offset + math.prod(shape)].reshape(shape)

    def mask(self, i: int) -> np.ndarray | None:
        """Sample i's mask of uint8 classes (255 unknown) as a read-only view, or None where it has none. Raises
        DamagedData like `values`."""
        if self._layout.mask_shard[i] < 0:
            return None
        mask = self._view(*self._layout.mask_place(i))
        if self._to_check["mask_sha256"][i]:
            self._check_sample(i, mask, "mask_sha256")
        return mask

    def unchecked(self) -> Prepared:
        """The same folder, opened to look at what is damaged."""
        return Prepared(self.folder, check_reads=False, check_seal=False)

    def place(self, i: int) -> str:
        """The shard that holds sample i, for messages."""
        return self._layout.place(i)[0]

    def gaps(self) -> np.ndarray:
        """Rows of samples, and of masks, that do not begin where the one before them in their shard ends."""
        return self._layout.gaps()

    @property
    def has_mask(self) -> np.ndarray:
        """n bool: which samples come with a mask."""
        has: np.ndarray = self._layout.mask_shard >= 0
        return has

    def column(self, name: str) -> list[Any]:
        """A column of the index (key, group, split, source, sha256, file_sha256, facts as dicts, ...) as a list."""
        if name not in self._columns:
            self._columns[name] = list(self.facts()) if name == "facts" else self._once_each(name)
        return self._columns[name]

    def _once_each(self, name: str) -> list[Any]:
        """A column whose equal texts are one object: a split or a source would otherwise be one for every sample."""
        found = self._arrow(name)
        if not pa.types.is_string(found.type):
            return list(found.to_pylist())
        encoded = found.combine_chunks().dictionary_encode()
        texts = encoded.dictionary.to_pylist()
        return [texts[code] for code in encoded.indices.to_pylist()]

    def texts(self, name: str, rows: Sequence[int]) -> dict[int, str]:
        """Row -> its text in a column of the index, for a few rows; a whole column takes 100 bytes a sample."""
        return dict(zip(rows, self._arrow(name).take(pa.array(rows, pa.int64())).to_pylist(), strict=True))

    def codes(self, name: str) -> np.ndarray:
        """n int64: a number for each text of a column, equal where the texts are, in the order of their first rows."""
        codes: np.ndarray = self._arrow(name).combine_chunks().dictionary_encode().indices.to_numpy()
        return codes.astype(np.int64)

    def facts(self) -> Iterator[dict[str, Any]]:
        """The facts of every sample, one after the other: all at once they take 1 kB each."""
        return (json.loads(text.as_py()) for text in self._arrow("facts"))

    def labels(self, task: str) -> np.ndarray:
        """float32 n k: a class index (single_label) or one number per column; NaN where unknown. Not to be written to:
        every caller gets the same array."""
        if task not in self.contract.tasks:
            raise ValueError(f"task: found {task}, expected one of {', '.join(self.contract.tasks) or '(none)'}. "
                             "Add it under `tasks` of the data run and ingest again.")
        if task not in self._labels:
            flat: np.ndarray = self._arrow(f"y.{task}").combine_chunks().flatten().to_numpy(zero_copy_only=False)
            self._labels[task] = flat.astype(np.float32).reshape(len(self), -1)
            if self.contract.tasks[task].kind == "segmentation":
                self._labels[task][~self.has_mask] = np.nan
            self._labels[task].flags.writeable = False
        return self._labels[task]

    def rows(self, split: str | Iterable[str] | None = None, source: str | Iterable[str] | None = None,
             task: str | None = None) -> np.ndarray:
        """int64 indices of the samples in these splits and sources, and with any label of this task; ascending."""
        keep = np.ones(len(self), bool)
        for name, wanted in (("split", split), ("source", source)):
            if wanted is not None:
                allowed = pa.array([wanted] if isinstance(wanted, str) else list(wanted), pa.string())
                keep &= pc.is_in(self._arrow(name), value_set=allowed).to_numpy(zero_copy_only=False)
        if task is not None:
            keep &= np.isfinite(self.labels(task)).any(axis=1)
        return np.flatnonzero(keep).astype(np.int64)

    def pool(self) -> np.ndarray:
        """What self-supervision may see: train and unlabelled samples whose group is in no val or test sample and that
        repeat none of them (an exact or near duplicate, or overlapping ground, found at ingest)."""
        split = self._arrow("split")
        held = pc.is_in(split, value_set=pa.array(["val", "test"]))
        held_groups = pc.unique(self._arrow("group").filter(held))
        free = pc.and_(pc.is_in(split, value_set=pa.array(["train", "unlabelled"])),
                       pc.invert(pc.is_in(self._arrow("group"), value_set=held_groups)))
        free = pc.and_(free, pc.invert(pc.is_in(self._arrow("key"), value_set=pa.array(self._repeats, pa.string()))))
        return np.flatnonzero(free.to_numpy(zero_copy_only=False)).astype(np.int64)

    @cached_property
    def _repeats(self) -> list[str]:
        """Keys of train or unlabelled samples that repeat a held-out one."""
        path = self.folder / LEAKS
        if not path.is_file():
            return []
        with path.open(newline="", encoding="utf-8") as file:
            pairs = list(csv.DictReader(file))
        sides = [(pair[f"key_{a}"], pair[f"split_{a}"], pair[f"split_{b}"]) for pair in pairs
                 for a, b in (("a", "b"), ("b", "a"))]
        return sorted({key for key, own, other in sides if own in ("train", "unlabelled") and other in ("val", "test")})

    @cached_property
    def digest(self) -> str:
        """sha256 over index, contract and leaks: changes when any sample, label, split or statistic does."""
        digest = hashlib.sha256()
        for name in ("index.parquet", "contract.json", LEAKS):
            path = self.folder / name
            digest.update(path.read_bytes() if path.is_file() else b"")
        return digest.hexdigest()

    def _check_sample(self, i: int, values: np.ndarray, column: str) -> None:
        if column not in self._hashes:
            self._hashes[column] = self._arrow(column).combine_chunks()
        if fingerprint(values) != self._hashes[column][i].as_py():
            raise DamagedData(f"{'mask' if column == 'mask_sha256' else 'sample'} {i} in {self.folder} (row {i} of "
                              "index.parquet): found other bytes than were written. Remedy: `lacuna verify` names all "
                              "that is damaged; copy the folder again from where it is whole, or ingest again.")
        self._to_check[column][i] = False

    def _arrow(self, name: str) -> pa.ChunkedArray:
        known = pq.read_schema(self.folder / "index.parquet").names
        if name not in known:
            raise ValueError(f"index column: found {name}, expected one of {', '.join(known)}.")
        return pq.read_table(self.folder / "index.parquet", columns=[name])[name]

    def _map(self, name: str) -> np.ndarray:
        if name not in self._maps:
            path = self.folder / name
            try:
                # as a plain array: numpy's subclass for maps costs a microsecond for every slice
                self._maps[name] = np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
            except (OSError, ValueError) as error:
                raise DamagedData(f"{path.name} in {self.folder} cannot be mapped ({type(error).__name__}): it is "
                                  "missing or cut short. Remedy: run `lacuna ingest` again.") from error
        return self._maps[name]

    def _check_seal(self) -> None:
        seal = seals.read(self.folder)
        small = [name for name in seal.hashes if not name.endswith(".npy")] if seal else []
        found = seals.damaged(self.folder, seal, small) if seal else []
        if found:
            raise DamagedData(f"{self.folder}: {'; '.join(found)}. Remedy: copy the folder again from where it is "
                              "whole, or ingest again; `lacuna verify` also names the runs that this data went into.")

    def _check_sizes(self) -> None:
        for name, lengths in self._layout.lengths().items():
            dtype = np.dtype(self.contract.dtype if name == "shard" else "uint8")
            for number, length in enumerate(lengths.tolist()):
                self._check(f"{name}-{number:05d}.npy", dtype, length)

    def _check(self, name: str, dtype: np.dtype, length: int) -> None:
        shard, expected = self._map(name), npy_header(dtype, length)
        with (self.folder / name).open("rb") as file:
            header = file.read(len(expected))
        if shard.dtype != dtype or shard.shape != (length,) or header != expected:
            raise DamagedData(f"{name} in {self.folder}: found {shard.dtype} {shard.shape}, expected {dtype} "
                              f"({length},). Remedy: run `lacuna ingest` again.")
