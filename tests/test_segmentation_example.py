"""Masks from generated files to files with masks: the shipped example on the embedded nodules, and a survey in LAS."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from pipelines.scoring import overlap, surfaces

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.slow


def call(folder: Path, *command: str) -> str:
    """A command in a folder, with `lacuna` being the one of these sources."""
    tools = folder / "bin"
    tools.mkdir(exist_ok=True)
    (tools / "lacuna").write_text(f'#!/bin/sh\nexec {sys.executable} -m lacuna "$@"\n')
    (tools / "lacuna").chmod(0o755)
    environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT),
                   "LACUNA_TRACKING": "off"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-3000:]}\n{done.stderr[-5000:]}"
    return done.stdout


def evaluated(folder: Path, name: str) -> dict[str, Any]:
    told: dict[str, Any] = json.loads((folder / f"reports/evaluate/{name}/metrics.json").read_text())
    return told


def test_the_example_on_the_embedded_nodules_goes_from_files_to_masks(tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    folder = tmp_path / "segmentation"
    shutil.copytree(ROOT / "examples/segmentation", folder)
    params = yaml.safe_load((folder / "params.yaml").read_text())
    params["sample"]["ct"]["settings"] |= {"labelled": 120, "unlabelled": 16}
    params["pretrain"]["ct"] |= {"optimisation": {"steps": 4, "batch_size": 8}, "gates": {"min_std": 0, "min_rank": 0}}
    params["finetune"]["ct"] |= {"seeds": [0, 1], "validations": 1}
    params["finetune"]["ct"]["optimisation"] |= {"steps": 4}
    params["evaluate"]["ct"]["resamples"] = 100
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    call(folder, "bash", "run.sh", "ct")
    told = evaluated(folder, "ct")
    names = {*overlap.NAMES, *surfaces.NAMES}
    assert set(told["arms"]) == {"scratch", "pretrained"} and set(told["arms"]["scratch"]["metrics"]) == names
    assert told["floors"]["pixels"]["metrics"]["dice"]["value"] > 0
    assert any("in mm of the prepared grid" in note for note in told["notes"])
    assert (folder / "reports/evaluate/ct/masks.png").is_file()
    with (folder / "data/raw/ct/labels.csv").open() as file:
        tested = next(line for line in csv.DictReader(file) if line["split"] == "test" and line["mask_path"])
    source = folder / "data/raw/ct" / tested["path"]
    call(folder, "lacuna", "predict", "artifacts/finetune/ct/scratch/seed0", str(source), "--out", "out")
    (answer,) = json.loads((folder / "out/predictions.json").read_text())
    mask, scan = nibabel.load(folder / "out" / answer["mask"]), nibabel.load(source)
    assert mask.shape == scan.shape and np.allclose(mask.affine, scan.affine)
    assert set(np.unique(np.asarray(mask.dataobj))) <= {0, 1, 255}


CLASSES = {"ground": 2, "tree": 5, "pole": 15}


def survey(path: Path, rng: np.random.Generator) -> None:
    """A slope with trees (balls) and poles on it, 24 m a side, as LAS with the classes of its points."""
    laspy = pytest.importorskip("laspy")

    def height(xy: np.ndarray) -> np.ndarray:
        return 0.1 * xy[:, 0] + 0.3 * np.sin(xy[:, 1] / 4)

    ground = rng.uniform(0, 24, (1500, 2))
    parts = [np.column_stack([ground, height(ground) + rng.normal(0, 0.02, 1500)])]
    numbers = [np.full(1500, CLASSES["ground"])]
    for kind in ["tree"] * 5 + ["pole"] * 5:
        foot = rng.uniform(2, 22, (1, 2))
        count = 120 if kind == "tree" else 50
        if kind == "tree":
            crown = rng.normal(size=(count, 3))
            body = crown / np.linalg.norm(crown, axis=1, keepdims=True) * 1.2 + [0, 0, 3]
        else:
            body = np.column_stack([rng.normal(0, 0.03, (count, 2)), rng.uniform(0.1, 5, count)])
        parts.append(body + [*foot[0], height(foot)[0]])
        numbers.append(np.full(count, CLASSES[kind]))
    header = laspy.LasHeader(point_format=6, version="1.4")
    header.scales, header.offsets = np.full(3, 0.001), np.array([500_000.0, 5_400_000.0, 0.0])
    las = laspy.LasData(header)
    las.x, las.y, las.z = (np.concatenate(parts) + [500_000, 5_400_000, 100]).T
    las.classification = np.concatenate(numbers).astype(np.uint8)
    las.write(path)


def test_a_survey_goes_from_classed_files_to_a_class_for_every_point(tmp_path: Path) -> None:
    laspy = pytest.importorskip("laspy")
    raw, rng = tmp_path / "raw", np.random.default_rng(0)
    raw.mkdir()
    lines = ["path,group,split"]
    for i in range(20):
        survey(raw / f"s{i:02d}.las", rng)
        lines.append(f"s{i:02d}.las,g{i},{('train', 'train', 'val', 'test')[i % 4]}")
    (raw / "labels.csv").write_text("\n".join(lines) + "\n")
    params = {
        "ingest": {"survey": {
            "domain": "pointcloud",
            "files": {"folder": "raw", "manifest": "raw/labels.csv", "pseudonymise": False, "mask_column": "path"},
            "read": {"kind": "points", "size": [512], "points_per_sample": 1024, "scale": "metres",
                     "tile_metres": 12.0},
            "tasks": {"parts": {"kind": "segmentation", "classes": list(CLASSES), "values": list(CLASSES.values())}}}},
        "finetune": {"survey": {
            "domain": "pointcloud", "data": "survey", "task": "parts", "start": "scratch", "seeds": [0],
            "encoder": {"tokenizer": {"kind": "groups", "num_groups": 48, "group_size": 16},
                        "size": {"width": 48, "depth": 3, "num_heads": 4}},
            "head": {"kind": "segment", "width": 16}, "grid": [2e-3], "validations": 2,
            "optimisation": {"steps": 60, "batch_size": 8, "betas": [0.9, 0.999]}}},
        "evaluate": {"survey": {"domain": "pointcloud", "finetune": "survey", "resamples": 100,
                                "floors": [{"kind": "points", "points": 3000, "neighbours": [12, 40]}]}}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    for stage in params:
        call(tmp_path, "lacuna", stage, "survey")
    told = evaluated(tmp_path, "survey")
    assert set(told["arms"]["scratch"]["metrics"]) == set(overlap.NAMES), "points have no surface"
    dice = told["arms"]["scratch"]["metrics"]["dice"]["value"]
    floor = told["floors"]["points"]["metrics"]["dice"]["value"]
    assert dice > 0.4 and floor > 0.8, (dice, floor)
    asked = [raw / f"s{i:02d}.las" for i in (3, 7)]
    call(tmp_path, "lacuna", "predict", "artifacts/finetune/survey/scratch/seed0", *map(str, asked), "--out", "out")
    right = []
    for source, answer in zip(asked, json.loads((tmp_path / "out/predictions.json").read_text()), strict=True):
        before, after = laspy.read(source), laspy.read(tmp_path / "out" / answer["mask"])
        assert np.array_equal(before.xyz, after.xyz) and answer["not_looked_at"] == 0
        right.append(np.mean(np.asarray(before.classification) == np.asarray(after.classification)))
    assert min(right) > 0.7, right
