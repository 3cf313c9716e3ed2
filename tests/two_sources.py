"""Prepared data of two sources made in place: what tells the classes apart in one is of no use in the other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import numpy as np

from domains import contract as contracts
from domains.publish import write_text
from domains.sample import ManifestRow, Piece
from domains.store import Writer
from tests.fabricate import contract_of

SIDE, PATCH = 16, 4


def film(rng: np.random.Generator, label: int, source: str, shift: Literal["shortcut", "gain"]) -> np.ndarray:
    """1 H W grey levels. The true sign, in both sources: a texture of stripes, along or across. shortcut: the labelled
    source has a marker in a corner too, bright in one class; the target has it at one level. gain: the target's
    stripes are fainter."""
    stripes = np.indices((SIDE, SIDE))[label] // 2 % 2 * 2.0 - 1
    other = source == "b"
    strength = 4.0 if shift == "shortcut" else (30.0 if not other else 7.0)
    values = 110 + strength * stripes + rng.normal(0, 25, (SIDE, SIDE))
    if shift == "shortcut":
        values[:PATCH, :PATCH] = rng.normal(60 if other else (200 if label else 20), 10, (PATCH, PATCH))
    return np.clip(values, 0, 255)[None]


def prepare(folder: Path, shift: Literal["shortcut", "gain"] = "shortcut", count: int = 600,
            sources: tuple[str, ...] = ("a", "b"), turned: bool = False) -> Path:
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
        writer.add(Piece(film(rng, label, source, shift).astype(contract.dtype)), row,
                   {"bright": np.array([1 - label if turned and source == "b" else label], np.float32)})
    writer.close()
    contracts.save(contract, folder / "contract.json")
    write_text(folder / "reader.json", json.dumps({"kind": "xray"}))
    return folder
