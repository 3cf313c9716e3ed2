"""From shards to batches: `python -m benchmarks.reading [--rounds 9] [--scale 1.0]`.

Writes prepared data of the usual sizes into a temporary folder and reads training batches from it in one process, as
training does: shuffled, cropped by chance, in the stored integers. Each batch is first compared with samples that are
cut by hand from the raw file. Files are in the page cache, since each was just written.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.mae_step import check, our_optimiser, pair_of, stepper
from benchmarks.paired import Stillness, in_turns, quartiles, report, told
from domains import contract as contracts
from domains.contract import Channel, Contract
from domains.sample import ManifestRow, Piece
from domains.store import Writer, open_prepared
from models.encoder.transformer import SIZES
from pipelines.training.batches import Source, TrainingBatches, domain_code, on_device


@dataclass(frozen=True)
class Kind:
    """Prepared data of one kind."""

    name: str
    domain: Any
    kind: Any
    stored: tuple[int, ...]
    """Shape of a stored sample."""
    size: tuple[int, ...]
    """What a model gets."""
    dtype: str
    count: int
    """Samples written."""
    batch: int
    bar: float = 0.0
    """Samples per second that are asked for; 0: none."""


KINDS = (
    Kind("X-ray 224", "medical", "xray", (1, 224, 224), (224, 224), "uint8", 1024, 256, bar=20_000),
    Kind("X-ray 256, crops of 224", "medical", "xray", (1, 256, 256), (224, 224), "uint8", 1024, 256),
    Kind("CT 160^3, crops of 96^3", "medical", "ct", (1, 160, 160, 160), (96, 96, 96), "int16", 32, 8),
    Kind("Sentinel-2, 12 bands of 120", "satellite", "multispectral", (12, 120, 120), (120, 120), "uint16", 256, 64),
    Kind("points, 1,024 of 8,192", "pointcloud", "points", (8192, 3), (1024,), "float16", 1024, 128),
)


def write(kind: Kind, folder: Path, count: int) -> Path:
    """Prepared data of random numbers."""
    channels = kind.stored[-1] if kind.kind == "points" else kind.stored[0]
    contract = Contract(domain=kind.domain, kind=kind.kind, channels=tuple(
        Channel(f"c{i}", "", low=-1e4, high=1e4, mean=100.0, std=50.0) for i in range(channels)), dtype=kind.dtype,
        size=kind.size, normalisation="unit_sphere" if kind.kind == "points" else "standardise")
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    writer = Writer(folder, kind.dtype)
    base = rng.integers(0, 255, (math.prod(kind.stored) + count,))
    for i in range(count):
        values = base[i:i + math.prod(kind.stored)].reshape(kind.stored).astype(kind.dtype)
        writer.add(Piece(values), ManifestRow(folder / str(i), str(i), str(i), "train", ""))
    writer.close()
    contracts.save(contract, folder / "contract.json")
    return folder


def batches_of(folder: Path, kind: Kind, batch: int, checked: bool = False) -> TrainingBatches:
    """Training batches of the folder, as a run would read them."""
    prepared = open_prepared(folder, check_reads=checked)
    source = Source(prepared, prepared.contract, domain_code(kind.domain), prepared.pool())
    return TrainingBatches(source, 0, batch, 10**9)


def check_batch(batches: TrainingBatches) -> None:
    """Raises AssertionError unless each sample of a batch is a piece of its stored sample, at a place that its own
    draws name: what `fetch` cuts out of a copy that was read without the store."""
    source = batches.source
    batch = batches.batch(0, 0)
    again = batches.batch(0, 0)
    assert torch.equal(batch.raw, again.raw), "a batch differs from itself"
    contents = [np.load(path) for path in sorted(source.prepared.folder.glob("shard-*.npy"))]
    whole = np.concatenate(contents).reshape(len(source.prepared), *source.prepared.shape(0))
    draws = batches.draws(batch)
    for i, row in enumerate(batch.ids.tolist()):
        expected = source.code.dataset.fetch(whole[row], source.contract, draws[i])
        assert np.array_equal(batch.raw[i].numpy(), expected), f"sample {row} of the batch is not what was stored"


def reader(batches: TrainingBatches) -> Callable[[], None]:
    """Reads the next batch each time."""
    step = 0

    def read() -> None:
        nonlocal step
        batches.batch(step, 0)
        step += 1
    return read


def share_of_step(folder: Path, kind: Kind, batch: int, rounds: int, size: str) -> dict[str, Any]:
    """Reading beside an MAE step on what was read."""
    pair = pair_of(SIZES[size], kind.size, (16, 16), batch, channels=1)
    check(pair, torch.float32)
    batches = batches_of(folder, kind, batch)
    step = stepper(pair.ours, pair.our_loss, our_optimiser(pair.ours), torch.float32)
    raw = batches.batch(0, 0)

    def prepare() -> None:
        on_device(batches.source, raw, 0, None, torch.device("cpu"))
    seconds = in_turns({"read": reader(batches), "prepare": prepare, "step": step}, rounds)
    total = [sum(times) for times in zip(*seconds.values(), strict=True)]
    reading = quartiles([a / b for a, b in zip(seconds["read"], total, strict=True)])
    preparing = quartiles([a / b for a, b in zip(seconds["prepare"], total, strict=True)])
    return {"what": f"share of an MAE-{size} step, {batch} films: reading", "share": f"{reading.middle:.4f}",
            "of normalising": f"{preparing.middle:.4f}", "ms": 1000 * quartiles(seconds["read"]).middle}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the samples that is written")
    parser.add_argument("--size", default="small", choices=SIZES, help="encoder of the step beside reading")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch, Stillness() as still:
        for number, kind in enumerate(KINDS):
            count = max(int(kind.count * chosen.scale), 4)
            batch = min(kind.batch, count)
            folder = write(kind, Path(scratch) / str(number), count)
            plain, checked = batches_of(folder, kind, batch), batches_of(folder, kind, batch, checked=True)
            check_batch(plain)
            first = max(count // batch - 1, 1)  # rounds in which every sample is read for the first time
            seconds = in_turns({"read": reader(plain), "first": reader(checked)}, chosen.rounds)
            rate = quartiles([batch / s for s in seconds["read"]])
            checked_rate = quartiles([batch / s for s in seconds["first"][:first]])
            rows.append({"what": kind.name, "batch": batch, "samples/s": rate.middle,
                         "quartiles": f"{rate.low:,.0f} to {rate.high:,.0f}",
                         "GB/s": rate.middle * math.prod(kind.size) * _per_place(kind) / 1e9,
                         "first read, checked, samples/s": checked_rate.middle,
                         "verdict": "" if not kind.bar else
                         told(rate.middle >= kind.bar, f"bar {kind.bar:,.0f}")})
            print(f"{kind.name}: {rate.middle:,.0f} samples/s", flush=True)
        rows.append(share_of_step(Path(scratch) / "0", KINDS[0], 8, chosen.rounds, chosen.size))
    report("reading", rows, still)


def _per_place(kind: Kind) -> int:
    """Bytes per pixel, voxel or point."""
    channels = kind.stored[-1] if kind.kind == "points" else kind.stored[0]
    return channels * np.dtype(kind.dtype).itemsize


if __name__ == "__main__":
    main()
