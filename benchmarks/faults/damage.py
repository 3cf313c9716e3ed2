"""Bytes that change after ingest, and who notices: `python -m benchmarks.faults.damage [NUMBER]`.

The four embedded samples are ingested as they ship, smaller. Then NUMBER (1,000) times one byte of one file of a
prepared folder is changed, each file as often as any other: shards with their headers, masks, index, contract, tables
and the seal itself. After each, `lacuna verify` must name the file and the run that was made from the data, and a stage
that opens and reads the data must stop: at open, at the first read of the sample, or, where it reads masks, of the
mask. A last round does the same to the files of a checkpoint.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.faults.small_project import draw, read
from domains.seal import DamagedData
from domains.store import open_prepared
from models.encoder.transformer import Encoder, EncoderSettings
from pipelines.commands.verify import verify
from pipelines.settings import build
from pipelines.training.batches import Source, domain_code
from pipelines.weights import checkpoints

RUNS = ("xray", "ct", "parcels", "shapes")
SMALLER = {"labelled": 24, "unlabelled": 12}


def main(num: int) -> int:
    """Print what noticed how many; 1 when anything went unnoticed."""
    with tempfile.TemporaryDirectory() as text:
        root = Path(text)
        for run in RUNS:
            make(root, run)
        rng = np.random.default_rng(0)
        began = time.monotonic()
        by_verify, by_stage = data_campaign(root, num, rng)
        print(f"prepared data, {num} changed bytes: named by lacuna verify {by_verify['file']}, with the run made from "
              f"it {by_verify['run']}; stopped a stage {sum(by_stage.values())} ("
              + ", ".join(f"{what} {count}" for what, count in by_stage.most_common()) + ")")
        num_checkpoint = max(1, num // 10)
        seen = checkpoint_campaign(root, num_checkpoint, rng)
        print(f"checkpoints, {num_checkpoint} changed bytes: named by lacuna verify {seen}")
        text, sound = verify([], root)
        print(text, f"{time.monotonic() - began:.0f} s", sep="\n")
    complete = by_verify["file"] == by_verify["run"] == sum(by_stage.values()) == num and seen == num_checkpoint
    return 0 if complete and sound else 1


def make(root: Path, run: str) -> None:
    """Sample files, prepared data and a checkpoint that says it was made from them."""
    draw(root, run, **SMALLER)
    read(root, run)
    prepared = open_prepared(root / "data/prepared" / run)
    encoder = Encoder(build(EncoderSettings, {"tokenizer": {"kind": "grid", "patch": [8, 8]},
                                              "size": {"width": 24, "depth": 1, "num_heads": 2}}, "encoder"), 1)
    checkpoints.save(root / "artifacts/pretrain" / run, {"encoder": encoder}, prepared.contract, {
        "kind": "pretrained", "encoder": encoder.settings, "num_channels": 1,
        "provenance": {"data": run, "data_digest": prepared.digest}})


def changed(path: Path, rng: np.random.Generator, look: Callable[[], None]) -> None:
    """Change one byte of a file, look, and put it back."""
    at, by = int(rng.integers(path.stat().st_size)), int(rng.integers(1, 256))
    with path.open("r+b") as file:
        file.seek(at)
        old = file.read(1)
        file.seek(at)
        file.write(bytes([old[0] ^ by]))
    try:
        look()
    finally:
        with path.open("r+b") as file:
            file.seek(at)
            file.write(old)


def data_campaign(root: Path, num: int, rng: np.random.Generator) -> tuple[Counter[str], Counter[str]]:
    """(what verify named, where a stage stopped) over `num` changed bytes."""
    files = [(run, path) for run in RUNS for path in sorted((root / "data/prepared" / run).iterdir())]
    by_verify: Counter[str] = Counter()
    by_stage: Counter[str] = Counter()

    def look(run: str, path: Path) -> None:
        text, sound = verify([f"data/prepared/{run}"], root, quick=True)
        by_verify["file"] += not sound and path.name in text
        by_verify["run"] += not sound and f"artifacts/pretrain/{run}" in text
        where = where_a_stage_stops(root / "data/prepared" / run)
        if where:
            by_stage[where] += 1

    for n in range(num):
        run, path = files[n % len(files)]
        changed(path, rng, lambda run=run, path=path: look(run, path))  # type: ignore[misc]
    return by_verify, by_stage


def where_a_stage_stops(folder: Path) -> str:
    """Open prepared data and read all of it as training and evaluation do, then the masks; empty when nothing stops."""
    try:
        prepared = open_prepared(folder)
    except DamagedData:
        return "at open"
    source = Source(prepared, prepared.contract, domain_code(prepared.contract.domain), np.arange(len(prepared)))
    try:
        source.read(source.rows, np.zeros((len(prepared), source.code.dataset.NUM_FETCH_DRAWS), np.float32))
    except DamagedData:
        return "at the sample's first read"
    try:
        for i in range(len(prepared)):
            prepared.mask(i)
    except DamagedData:
        return "at the mask's first read"
    return ""


def checkpoint_campaign(root: Path, num: int, rng: np.random.Generator) -> int:
    """How many changed bytes of checkpoints verify names."""
    files = sorted(path for path in (root / "artifacts/pretrain/xray").iterdir())
    seen = 0
    for n in range(num):
        path = files[n % len(files)]

        def look(path: Path = path) -> None:
            nonlocal seen
            text, sound = verify(["artifacts/pretrain/xray"], root)
            seen += not sound and path.name in text

        changed(path, rng, look)
    return seen


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000))
