"""Prepared data whose masks are what a test is about: discs (balls) that are brighter than what lies around them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np

from domains import contract as contracts
from domains.publish import write_text
from domains.sample import UNKNOWN_CLASS, ManifestRow, Piece, Task
from domains.store import Writer
from tests.fabricate import SIZES, contract_of

TASK = Task(kind="segmentation", columns=(), classes=("background", "disc", "rim"))
DISC, RIM = 60.0, 120.0
"""How much brighter than the background each class is."""


def prepare_masks(folder: Path, kind: str = "xray", count: int = 60, size: int = 24, seed: int = 0,
                  noise: float = 20.0) -> Path:
    """Samples of two per group: a disc with a rim at a drawn place; every fifth sample is empty, and a corner of every
    mask is unknown. Rows without a split have no mask either."""
    rng = np.random.default_rng(seed)
    contract = contract_of(kind)
    grid = contract.size if kind == "points" else (size,) * (len(SIZES[kind]) - 1)
    contract = dataclasses.replace(contract, tasks={"discs": TASK}, size=grid)
    folder.mkdir(parents=True, exist_ok=True)
    writer = Writer(folder, contract.dtype, tasks=["discs"])
    shape = (size,) * (len(SIZES[kind]) - 1)
    for i in range(count):
        group = i // 2
        split = ("train", "train", "train", "val", "test", "unlabelled")[group % 6]
        if kind == "points":
            values, mask = _cloud(rng, 10 * size, bool(i % 5))
        else:
            mask = _disc(rng, shape) if i % 5 else np.zeros(shape, np.uint8)
            values = 80 + np.choose(mask, (0.0, DISC, RIM)) + rng.normal(0, noise, (SIZES[kind][0], *shape))
            values = values.clip(0, 255)
            mask[(slice(0, 3),) * len(shape)] = UNKNOWN_CLASS
        row = ManifestRow(path=folder / f"{i}", key=f"s{i:03d}", group=f"g{group:03d}", split=split,
                          source="a" if group // 6 % 2 else "b")
        known = np.full(2, np.nan if split == "unlabelled" else 1.0, np.float32)
        piece = Piece(values.astype(contract.dtype), None if split == "unlabelled" else mask)
        writer.add(piece, row, {"discs": known})
    writer.close()
    contracts.save(contract, folder / "contract.json")
    write_text(folder / "reader.json", json.dumps({"kind": kind}))
    return folder


def _disc(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    places = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"))
    centre = rng.uniform(0.3, 0.7, len(shape)) * shape[0]
    far = np.sqrt(((places - centre.reshape(-1, *[1] * len(shape))) ** 2).sum(0))
    return np.select([far < 0.2 * shape[0], far < 0.28 * shape[0]], [1, 2], 0).astype(np.uint8)


def _cloud(rng: np.random.Generator, count: int, held: bool) -> tuple[np.ndarray, np.ndarray]:
    """Points on a ball, with a cap (class 1) and a belt (class 2) where it holds any."""
    points = rng.normal(size=(count, 3))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    mask = np.select([points[:, 2] > 0.5, np.abs(points[:, 2]) < 0.2], [1, 2], 0) * held
    return points, mask.astype(np.uint8)
