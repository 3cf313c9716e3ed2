"""Prepared data of two sources made in place: what tells the classes apart in one is of no use in the other."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from domains import contract as contracts
from domains.publish import write_text
from domains.sample import ManifestRow, Piece
from domains.store import Writer
from tests.fabricate import contract_of

SIDE, PATCH = 16, 4


def film(rng: np.random.Generator, label: int, source: str) -> np.ndarray:
    """1 H W grey levels. The true sign, in both sources: a faint texture of stripes, along or across. Source a has a
    marker in a corner too, bright in one class and dark in the other; b has it at one level."""
    stripes = np.indices((SIDE, SIDE))[label] // 2 % 2 * 2.0 - 1
    values = 110 + 4 * stripes + rng.normal(0, 25, (SIDE, SIDE))
    values[:PATCH, :PATCH] = rng.normal({"a": (20, 200), "b": (60, 60)}[source][label], 10, (PATCH, PATCH))
    return np.clip(values, 0, 255)[None]


def prepare(folder: Path, count: int = 600, sources: tuple[str, ...] = ("a", "b"), turned: bool = False) -> Path:
    """Write prepared data; two samples per group, each group of one source. turned: labels of b say the opposite."""
    rng = np.random.default_rng(0)
    contract = contract_of("xray")
    folder.mkdir(parents=True, exist_ok=True)
    writer = Writer(folder, contract.dtype, tasks=["bright"])
    for i in range(count):
        group, label = i // 2, int(rng.integers(2))
        source, split = sources[group % len(sources)], ("train", "train", "val", "test")[group // len(sources) % 4]
        row = ManifestRow(path=folder / f"{i}", key=f"{source}{i:04d}", group=f"{source}{group:04d}", split=split,
                          source=source)
        writer.add(Piece(film(rng, label, source).astype(contract.dtype)), row,
                   {"bright": np.array([1 - label if turned and source == "b" else label], np.float32)})
    writer.close()
    contracts.save(contract, folder / "contract.json")
    write_text(folder / "reader.json", json.dumps({"kind": "xray"}))
    return folder
