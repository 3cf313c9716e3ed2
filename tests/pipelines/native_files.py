"""Tiny native files of every domain, ingested for real, with an untrained checkpoint on them: for tests of what comes
after training."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from domains.sample import Task
from domains.store import Prepared, open_prepared
from models.encoder.transformer import Encoder, EncoderSettings
from models.heads.predict_sample import SampleHead
from models.heads.task_loss import TaskLoss
from models.heads.tuned import Tuned, build_head
from pipelines.settings import build
from pipelines.weights.tuned_checkpoints import save_tuned

DOMAINS = {"xray": "medical", "ct": "medical", "multispectral": "satellite", "points": "pointcloud"}
READ: dict[str, dict[str, Any]] = {
    "xray": {"kind": "xray", "size": [16, 16]},
    "ct": {"kind": "ct", "size": [8, 8, 8], "spacing": [2, 2, 2], "check_units": False},
    "multispectral": {
        "kind": "multispectral",
        "sensor": "sentinel2",
        "bands": ["B2", "B3", "B4"],
        "size": [16, 16],
        "file_bands": ["B2", "B3", "B4"],
        "check_units": False,
    },
    "points": {"kind": "points", "size": [64], "points_per_sample": 128},
}
TOKENIZERS = {
    "xray": {"kind": "grid", "patch": [8, 8]},
    "ct": {"kind": "grid", "patch": [4, 4, 4]},
    "multispectral": {"kind": "bands", "patch": [8, 8]},
    "points": {"kind": "groups", "num_groups": 8, "group_size": 8},
}
TASKS = {
    "single_label": Task("single_label", ("y",), ("no", "yes")),
    "multi_label": Task("multi_label", ("a", "b")),
    "regression": Task("regression", ("age",)),
}


def write_file(path: Path, kind: str, seed: int) -> Path:
    """One file of random content in a real format."""
    rng = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    match kind:
        case "xray":
            from PIL import Image

            Image.fromarray(rng.integers(0, 255, (20, 24), dtype=np.uint8)).save(path.with_suffix(".png"))
            return path.with_suffix(".png")
        case "ct":
            import nibabel

            image = nibabel.Nifti1Image(
                rng.integers(-900, 900, (10, 9, 8)).astype(np.int16), np.diag([2.0, 2.0, 2.0, 1.0])
            )
            target = path.with_name(f"{path.name}.nii.gz")
            nibabel.save(image, target)
            return target
        case "multispectral":
            import rasterio

            target = path.with_suffix(".tif")
            with rasterio.open(
                target,
                "w",
                driver="GTiff",
                width=16,
                height=16,
                count=3,
                dtype="uint16",
                transform=rasterio.transform.from_origin(500000, 5000000, 10, 10),
                crs="EPSG:32631",
            ) as out:
                out.write(rng.integers(100, 5000, (3, 16, 16), dtype=np.uint16))
            return target
        case _:
            target = path.with_suffix(".npy")
            np.save(target, rng.normal(0, 1, (200, 3)).astype(np.float32))
            return target


def ingest_files(root: Path, kind: str, count: int = 6) -> tuple[list[Path], Prepared]:
    """`count` files under data/raw, ingested by the stage itself."""
    from pipelines.ingest import DataRun, run

    files = [write_file(root / f"data/raw/f{i}", kind, i) for i in range(count)]
    with (root / "data/raw/labels.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["path", "group", "split", "y", "a", "b", "age"])
        for i, path in enumerate(files):
            table.writerow([path.name, f"g{i}", ("train", "train", "val")[i % 3], i % 2, i % 2, (i + 1) % 2, 20 + i])
    settings = {
        "domain": DOMAINS[kind],
        "files": {"folder": "data/raw", "manifest": "data/raw/labels.csv"},
        "read": READ[kind],
        "tasks": {
            name: {"kind": task.kind, "columns": list(task.columns), "classes": list(task.classes) and ["0", "1"]}
            for name, task in TASKS.items()
        },
        "limits": {"workers": 1},
        "near_duplicates": 2.0,
    }
    before = os.environ.get("LACUNA_TRACKING")
    os.environ["LACUNA_TRACKING"] = "off"
    try:
        run("run", build(DataRun, settings, "ingest.run"), root)
    finally:
        os.environ.pop("LACUNA_TRACKING") if before is None else os.environ.update(LACUNA_TRACKING=before)
    return files, open_prepared(root / "data/prepared/run")


def tuned(folder: Path, prepared: Prepared, kind: str, task: str = "single_label", temperature: float = 1.7) -> Tuned:
    """An untrained model of a task, saved as finetune would save it."""
    torch.manual_seed(3)
    settings = build(
        EncoderSettings, {"tokenizer": TOKENIZERS[kind], "size": {"width": 24, "depth": 1, "num_heads": 2}}, "test"
    )
    encoder = Encoder(settings, len(prepared.contract.channels))
    if kind == "multispectral":
        encoder.tokenizer.read_channels((0, 1, 2))
    about = TASKS[task]
    model = Tuned(
        encoder, build_head(SampleHead(), encoder.width, len(about.outputs)), TaskLoss(about.kind, len(about.outputs))
    )
    for parameter in model.head.parameters():  # heads begin at zero, which would answer alike for every file
        torch.nn.init.normal_(parameter)
    save_tuned(
        folder,
        model.eval(),
        prepared.contract,
        SampleHead(),
        about,
        {
            "domain": DOMAINS[kind],
            "temperature": temperature,
            "reader": json.loads((prepared.folder / "reader.json").read_text()),
            "provenance": {"arm": "scratch", "seed": 0, "task": task, "data_digest": prepared.digest},
        },
    )
    return model
