"""What a summary counts of channels that are not in every sample, and how it is shown."""

import dataclasses
from pathlib import Path

import numpy as np

from domains import contract as contracts
from domains.sample import ManifestRow, Piece
from domains.store import Writer, open_prepared
from pipelines.commands.describe import _gaps
from pipelines.intake import data_summary
from tests.fabricate import contract_of


def test_missing_and_dead_bands_are_counted_and_shown(tmp_path: Path) -> None:
    contract = dataclasses.replace(contract_of("multispectral"), tasks={})
    first, second, third = contract.names
    writer = Writer(tmp_path, "uint16", [])
    rng = np.random.default_rng(0)
    for i in range(10):
        facts: dict[str, list[str]] = {"bands": [first, second, third][:3 if i < 6 else 2]}
        if i < 4:
            facts["dead_bands"] = [third]
        values = rng.integers(1, 9000, (3, 8, 8)).astype(np.uint16)
        writer.add(Piece(values, facts=dict(facts)), ManifestRow(tmp_path / str(i), str(i), f"g{i}", "train", ""), {})
    writer.close()
    contracts.save(contract, tmp_path / "contract.json")
    summary = data_summary.summarise(open_prepared(tmp_path), [], [])
    assert summary["gaps"] == {third: {"missing": 4, "dead": 4}}
    assert _gaps(summary) == f"{third}: missing in 4, dead (one value while others vary) in 4 of 10 samples"
    assert _gaps({"samples": 10}) == ""
