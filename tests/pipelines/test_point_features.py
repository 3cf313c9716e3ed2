"""Points with features and clouds of unequal numbers of points go from native files to predictions."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import lacuna
from domains.contract import ContractMismatch
from domains.store import open_prepared
from pipelines import finetune, ingest, pretrain
from pipelines.commands.describe import describe
from pipelines.ingest import DataRun
from pipelines.pretrain import PretrainRun
from pipelines.settings import build
from pipelines.training.finetune_settings import FinetuneRun
from tests import fabricate
from tests.domains.pointcloud.files import CORNERS, SQUARES

READ = {"kind": "points", "size": [64], "points_per_sample": 128, "min_points": 20, "sample": "farthest",
        "features": ["normals", "colour"]}
AUGMENT = {"turn": 0.5, "jitter": 0.01}


def write_box(path: Path, height: float, rng: np.random.Generator) -> None:
    """A coloured mesh."""
    corners = CORNERS * [*rng.uniform(0.5, 1, 2), height]
    lines = [f"v {x} {y} {z} {height / 4} 0.5 {rng.random()}" for x, y, z in corners]
    path.write_text("\n".join(lines + ["f " + " ".join(str(c + 1) for c in face) for face in SQUARES]) + "\n")


def write_few(path: Path, height: float, rng: np.random.Generator) -> None:
    """A cloud of fewer points than a model gets, fewer than it has groups for among them, and without features."""
    np.savetxt(path, rng.random((int(rng.choice([20, 40])), 3)) * [1, 1, height])


@pytest.fixture
def shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_tracking: None) -> Path:
    """Ingested meshes and sparse clouds, half of them tall."""
    pytest.importorskip("fpsample")
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "raw"
    folder.mkdir()
    rows = []
    for i in range(24):
        tall, rng = i % 2, np.random.default_rng(i)
        path = folder / f"s{i:02d}.{'obj' if i % 4 < 2 else 'xyz'}"
        (write_box if path.suffix == ".obj" else write_few)(path, 1.0 + 2 * tall, rng)
        rows.append({"path": path.name, "group": f"g{i}", "tall": tall,
                     "split": ("train", "train", "val", "test")[i // 2 % 4] if i < 20 else "unlabelled"})
    with (folder / "labels.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    run = {"domain": "pointcloud", "files": {"folder": "raw", "manifest": "raw/labels.csv"}, "read": READ,
           "tasks": {"tall": {"kind": "single_label", "columns": ["tall"], "classes": ["0", "1"]}}}
    ingest.run("shapes", build(DataRun, run, "ingest.shapes"), tmp_path)
    return tmp_path


def pretrain_on(root: Path, name: str = "shapes", **changes: Any) -> dict[str, Any]:
    encoder = {"tokenizer": {"kind": "groups", "num_groups": 32, "group_size": 8, "widths": [8, 16, 16]},
               "size": {"width": 24, "depth": 2, "num_heads": 2}}
    settings = fabricate.pretrain_settings("points", steps=4, encoder=encoder, augment=AUGMENT, **changes)
    return pretrain.run(name, build(PretrainRun, {**settings, "data": name}, f"pretrain.{name}"), root)


def test_a_run_with_features_and_short_clouds_goes_from_files_to_predictions(shapes: Path) -> None:
    prepared = open_prepared(shapes / "data/prepared/shapes")
    assert prepared.contract.names == ("x", "y", "z", "nx", "ny", "nz", "red", "green", "blue")
    assert {prepared.shape(i)[0] for i in range(24)} <= {20, 40, 128}
    assert "direction" in (said := describe(shapes / "data/prepared/shapes")) and "share of full scale" in said
    assert pretrain_on(shapes)["steps"] == 4
    assert np.asarray(Image.open(shapes / "reports/pretrain/shapes/reconstruction.png")).std() > 0
    tune = {"domain": "pointcloud", "data": "shapes", "task": "tall", "seeds": [0], "arms": ["pretrained"],
            "start": "artifacts/pretrain/shapes", "validations": 1, "augment": AUGMENT,
            "optimisation": {"steps": 3, "batch_size": 6}, "machine": {"accelerator": "cpu"}}
    finetune.run("shapes", build(FinetuneRun, tune, "finetune.shapes"), shapes)
    files = [str(shapes / "raw" / name) for name in ("s00.obj", "s02.xyz")]
    rows = lacuna.predict("artifacts/finetune/shapes/pretrained/seed0", files)
    assert len(rows) == 2 and all("reason" not in row or not row["reason"] for row in rows)


@pytest.mark.slow
def test_weights_of_features_are_not_taken_for_data_without_them(shapes: Path) -> None:
    pretrain_on(shapes)
    run = {"domain": "pointcloud", "files": {"folder": "raw", "manifest": "raw/labels.csv"},
           "read": {**READ, "features": [], "fill": "unknown"}}
    ingest.run("plain", build(DataRun, run, "ingest.plain"), shapes)
    with pytest.raises(ContractMismatch, match="expected also nx, ny, nz, red, green, blue"):
        pretrain_on(shapes, "plain", start="artifacts/pretrain/shapes")
    assert pretrain_on(shapes, "plain")["steps"] == 4
