"""Prepared data made in place, for tests that are about what comes after ingest.

`python -m tests.fabricate` is also the program that the kill and the two-process tests start.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from domains import contract as contracts
from domains.contract import Channel, Contract
from domains.publish import write_text
from domains.sample import ManifestRow, Piece, Task
from domains.store import Writer, open_prepared
from models.encoder.chance import Chance, chance_of
from models.encoder.transformer import Encoder
from models.objectives.masked_autoencoder import MaskedAutoencoder
from pipelines import pretrain
from pipelines.pretrain import PretrainRun
from pipelines.settings import build
from pipelines.training.batches import Batch, Source, domain_code
from pipelines.training.processes import follows
from pipelines.training.training import Job, Losses, fit
from pipelines.weights.checkpoints import state_hash

SIZES = {"xray": (1, 16, 16), "ct": (1, 12, 12, 12), "multispectral": (3, 16, 16), "points": (64, 3)}
DOMAINS = {"xray": "medical", "ct": "medical", "multispectral": "satellite", "points": "pointcloud"}
TOKENIZERS = {"xray": {"kind": "grid", "patch": [4, 4]}, "ct": {"kind": "grid", "patch": [4, 4, 4]},
              "multispectral": {"kind": "bands", "patch": [8, 8]}, "points": {"kind": "groups", "num_groups": 8,
                                                                           "group_size": 8}}


def contract_of(kind: str) -> Contract:
    """A contract for random numbers of that kind."""
    shape = SIZES[kind]
    names = {"xray": ["grey"], "ct": ["HU"], "multispectral": ["B2", "B3", "B4"], "points": ["x", "y", "z"]}[kind]
    dtype = {"xray": "uint8", "ct": "int16", "multispectral": "uint16", "points": "float32"}[kind]
    unknown = {"ct": -32768.0, "multispectral": 65535.0}.get(kind)
    unit = {"xray": "grey 0-255", "ct": "HU", "multispectral": "reflectance x 10000", "points": "m"}[kind]
    low = -1e4 if kind in ("ct", "points") else 0
    mean, std = (0, 1) if kind == "points" else (128, 64)
    channels = tuple(Channel(name, unit, low=low, high=1e4, mean=mean, std=std) for name in names)
    return Contract(domain=DOMAINS[kind], kind=kind, channels=channels, dtype=dtype, unknown=unknown,
                    size=(shape[0],) if kind == "points" else shape[1:],
                    spacing={"ct": (2.0, 2.0, 2.0), "multispectral": (10.0, 10.0)}.get(kind),
                    orientation="SPL" if kind == "ct" else None,
                    normalisation="unit_sphere" if kind == "points" else "standardise",
                    tasks={"bright": Task("single_label", ("bright",), ("no", "yes"))})


def prepare(folder: Path, kind: str = "xray", count: int = 48, seed: int = 0) -> Path:
    """Write prepared data whose label is whether a sample's values were drawn high; two samples per group."""
    rng = np.random.default_rng(seed)
    contract = contract_of(kind)
    folder.mkdir(parents=True, exist_ok=True)
    writer = Writer(folder, contract.dtype, tasks=["bright"])
    for i in range(count):
        label, group = int(rng.integers(2)), i // 2
        split = ("train", "train", "train", "val", "test", "unlabelled")[group % 6]
        values = rng.normal(0, 1, SIZES[kind]) if kind == "points" else rng.integers(0, 200, SIZES[kind])
        values = values * np.array([1, 1, 1 + label]) if kind == "points" else values + 50 * label
        row = ManifestRow(path=folder / f"{i}", key=f"s{i:03d}", group=f"g{group:03d}", split=split,
                          source="a" if group % 2 else "b")
        labels = {"bright": np.array([np.nan if split == "unlabelled" else label], np.float32)}
        writer.add(Piece(values.astype(contract.dtype)), row, labels)
    writer.close()
    contracts.save(contract, folder / "contract.json")
    write_text(folder / "reader.json", json.dumps({"kind": kind}))
    return folder


def pretrain_settings(kind: str = "xray", steps: int = 8, **changes: object) -> dict[str, object]:
    """A pretraining run of seconds, as params.yaml would have it."""
    readout = {"kind": "chamfer"} if kind == "points" else {"kind": "pixels"}
    masking = {"kind": "channels", "ratio": 0.5} if kind == "multispectral" else {"kind": "random", "ratio": 0.5}
    return {"domain": DOMAINS[kind], "data": kind, "seed": 3,
            "encoder": {"tokenizer": TOKENIZERS[kind], "size": {"width": 24, "depth": 2, "num_heads": 2}},
            "objective": {"masking": masking, "decoder": {"width": 16, "depth": 1, "num_heads": 2}, "readout": readout},
            "optimisation": {"steps": steps, "batch_size": 8, "learning_rate": 1e-3, "log_every": 2},
            "machine": {"accelerator": "cpu", "save_every_seconds": 0}, "num_pictures": 2,
            "gates": {"min_std": 0, "min_rank": 0}, **changes}


def pretrained(root: Path, kind: str = "xray", count: int = 48, **changes: object) -> None:
    """Prepared data and an encoder that was pretrained on it, in a project, without tracking."""
    with patch.dict(os.environ, LACUNA_TRACKING="off"):
        prepare(root / "data/prepared" / kind, kind, count)
        pretrain.run(kind, build(PretrainRun, pretrain_settings(kind, **changes), "pretrain.test"), root)


def untrained(prepared: Path, kind: str, steps: int = 8, machine: dict[str, object] | None = None,
              optimiser: str = "adamw") -> tuple[Any, Any, Source]:
    """(settings, model, source) of a tiny run, always with the same first weights."""
    paragraph = pretrain_settings(kind, steps, machine=machine or {"accelerator": "cpu"})
    betas = [0.98, 0.92, 0.99] if optimiser == "adan" else [0.9, 0.95]
    paragraph["optimisation"] |= {"optimiser": optimiser, "betas": betas}  # type: ignore[operator]
    settings = build(PretrainRun, paragraph, "test")
    data = open_prepared(prepared)
    torch.manual_seed(0)
    model = MaskedAutoencoder(settings.objective, Encoder(settings.encoder, len(data.contract.channels)))
    return settings, model, Source(data, data.contract, domain_code(settings.domain), data.pool())


class Killed(Exception):
    """What stands for a process that ends in the middle of a training."""


def killing(at: int) -> Callable[[int], bool]:
    """A `watch` of a job that kills it after the update number `at`, before anything of that one is saved."""

    def watch(step: int) -> bool:
        if step == at:
            raise Killed
        return False

    return watch


def spoilt(losses: Losses, rows: Sequence[int]) -> Losses:
    """The same losses, and NaN for every batch that holds one of these rows of the index."""

    def compute(batch: Batch, chance: Chance) -> dict[str, torch.Tensor]:
        hit = torch.isin(batch.ids, torch.tensor(rows, dtype=torch.int64)).any()
        return {name: torch.where(hit, torch.nan, value) for name, value in losses(batch, chance).items()}

    return compute if rows else losses


def train_directly(prepared: Path, kind: str, steps: int, world: int, resume: Path | None, out: Path | None,
                   optimiser: str = "adamw", spoil: Sequence[int] = (), strategy: str = "auto") -> str:
    """Train without stage, tracking or report, in one process or in one of two; returns the hash of the weights.

    Args:
        spoil: rows of the index that make a loss NaN.
    """
    settings, model, source = untrained(prepared, kind, steps, {
        "accelerator": "cpu", "devices": world, "save_every_seconds": 0, "strategy": strategy},
        optimiser)
    fit(Job(model=model, losses=spoilt(lambda batch, chance: model(batch.x, batch.known, chance), spoil),
            source=source, augment=None, optimisation=settings.optimisation, machine=settings.machine, seed=5,
            num_blocks=2, resume=resume))
    if out is not None and not follows():  # cut weights are put together in the first process alone
        torch.save({name: value.clone() for name, value in model.state_dict().items()}, out)
    return state_hash(model)


@torch.no_grad()
def restored(prepared: Path, kind: str, weights: Path | None) -> torch.Tensor:
    """What a model with these weights (None: the first ones) predicts for the hidden patches of eight samples."""
    _, model, source = untrained(prepared, kind)
    if weights is not None:
        model.load_state_dict(torch.load(weights, weights_only=True))
    raw, _ = source.read(source.rows[:8], None)
    ids = torch.arange(8)
    chance = chance_of(0, 0, 0, ids, 0 * ids)
    prediction: torch.Tensor = model.eval().reconstruct(*source.normalise(raw), chance).predicted
    return prediction


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("prepared", type=Path)
    parser.add_argument("--kind", default="xray")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--world", type=int, default=1)
    parser.add_argument("--optimiser", default="adamw")
    parser.add_argument("--resume", type=Path, default=None)
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--spoil", type=int, nargs="*", default=[])
    parser.add_argument("--strategy", default="auto")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(train_directly(given.prepared, given.kind, given.steps, given.world, given.resume, given.out,
                         given.optimiser, given.spoil, given.strategy))
    sys.exit(0)
