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


Shift = Literal["shortcut", "second sign"]


def film(rng: np.random.Generator, label: int, source: str, shift: Shift) -> np.ndarray:
    """1 H W grey levels; the true sign, in both sources, is a texture of stripes, along or across."""
    return np.clip((_shortcut if shift == "shortcut" else _second_sign)(rng, label, source), 0, 255)[None]


def _shortcut(rng: np.random.Generator, label: int, source: str) -> np.ndarray:
    """The stripes are faint. Source a has a marker in a corner, bright in one class and dark in the other; b has it at
    one level."""
    stripes = np.indices((SIDE, SIDE))[label] // 2 % 2 * 2.0 - 1
    values = 110 + 4 * stripes + rng.normal(0, 25, (SIDE, SIDE))
    values[:PATCH, :PATCH] = rng.normal({"a": (20, 200), "b": (60, 60)}[source][label], 10, (PATCH, PATCH))
    return values


def _second_sign(rng: np.random.Generator, label: int, source: str) -> np.ndarray:
    """The stripes lie in the left half, and half of the films of b have hardly any. The right half of b, and of b
    alone, is bright in one class and dark in the other."""
    stripes = np.indices((SIDE, SIDE))[label] // 2 % 2 * 2.0 - 1
    values = 110 + (25.0 if source == "a" else rng.choice([25.0, 1.0])) * stripes + rng.normal(0, 25, (SIDE, SIDE))
    level = 30.0 * (2 * label - 1) if source == "b" else 0.0
    values[:, SIDE // 2:] = 110 + level + rng.normal(0, 10) + rng.normal(0, 25, (SIDE, SIDE // 2))
    return values


def prepare(folder: Path, shift: Shift = "shortcut", count: int = 600, sources: tuple[str, ...] = ("a", "b"),
            turned: bool = False) -> Path:
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
