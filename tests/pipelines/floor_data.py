"""Prepared data whose label is told by nothing but the facts of its files."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from domains import contract as contracts
from domains.sample import ManifestRow, Piece, Task
from domains.store import Writer
from tests.fabricate import contract_of


def facts_data(folder: Path) -> Path:
    """Values of pure noise; the label is told by a fact of the file."""
    rng = np.random.default_rng(0)
    task = Task("single_label", ("told",), ("a", "b", "c"))
    contract = dataclasses.replace(contract_of("xray"), tasks={"told": task})
    folder.mkdir()
    writer = Writer(folder, contract.dtype, tasks=["told"])
    with (folder / "manifest.csv").open("w") as file:
        file.write("path,view,age,told\n")
        for i in range(150):
            label = int(rng.integers(3))
            split = ("train", "train", "train", "val", "test")[i % 5]
            row = ManifestRow(path=folder, key=f"film {i}.png", group=f"g{i}", split=split, source="")
            values = rng.integers(0, 255, (1, 16, 16)).astype(np.uint8)
            facts = {"spacing": [0.1 + 0.05 * label + 0.01 * rng.normal(), 0.2], "format": "png"}
            writer.add(Piece(values, facts=facts, suffix="@r0c0"), row, {"told": np.array([label], np.float32)})
            file.write(f"film {i}.png,{('AP', 'PA', 'lateral')[label]},{'' if i % 7 == 0 else 30 + i % 50},{label}\n")
    writer.close()
    contracts.save(contract, folder / "contract.json")
    return folder
