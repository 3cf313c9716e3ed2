"""Ingest without reading libraries and tracking: a domain that reads .npy files, and files for it."""

from __future__ import annotations

import csv
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from pipelines.ingest import DomainReader
from pipelines.tracking import tracking
from tests.pipelines import fake_domain


class Silent:
    """Stands for a tracked run."""

    def __enter__(self) -> Silent:
        return self

    def __exit__(self, *_: object) -> None: ...
    def metrics(self, values: dict[str, float], step: int = 0) -> None: ...
    def picture(self, path: Path) -> None: ...
    def table(self, path: Path) -> None: ...


def stand_in(monkeypatch: pytest.MonkeyPatch, *modules: ModuleType) -> None:
    """Let modules that ask for a domain's reader get the one that reads .npy files, and nothing be tracked."""
    monkeypatch.setattr(tracking, "open_run", lambda **_: Silent())
    for module in modules:
        monkeypatch.setattr(module, "domain_reader",
                            lambda domain: DomainReader(fake_domain, fake_domain, fake_domain.Settings))


def make_files(root: Path, num: int = 60, bad: int = 0, splits: bool = False) -> None:
    """Files of two sources with two per group; the first `bad` are damaged."""
    rng = np.random.default_rng(0)
    folder = root / "data/raw/a"
    folder.mkdir(parents=True)
    with (folder / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "group", "split", "source", "sick", "age", "mask"])
        for i in range(num):
            values = rng.integers(0, 200, (1, 8 + i % 2, 8), dtype=np.uint8)
            np.save(folder / f"{i}.npy", values)
            np.save(folder / f"{i}_mask.npy", values[0] % 2)
            if i < bad:
                (folder / f"{i}.npy").write_text("damaged")
            split = ("train", "train", "val", "test", "unlabelled")[i // 2 % 5] if splits else ""
            writer.writerow([f"{i}.npy", f"patient {i // 2}", split, f"site {i // 2 % 2}",
                             "" if i % 7 == 0 else i // 4 % 2, 20 + i, f"{i}_mask.npy" if i % 3 == 0 else ""])
