"""Every objective of the masked family goes through the stage: it trains, a picture is drawn, and a checkpoint is left
that another run can begin with. Distillation takes its teacher from one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from domains import contract as contracts
from domains.seal import hash_file
from domains.store import open_prepared
from pipelines import pretrain
from pipelines.pretrain import PretrainRun, group_hashes
from pipelines.settings import SettingsError, build
from pipelines.weights.checkpoints import load_encoder, read_record
from tests.fabricate import TOKENIZERS, prepare, pretrain_settings

pytestmark = pytest.mark.usefixtures("no_tracking")

DECODER = {"kind": "transformer", "width": 24, "depth": 1, "num_heads": 2}
CHAMFER = {"readout": {"kind": "chamfer"}}
RUNS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "colour_noise": ("ct", {"kind": "masked_autoencoder", "decoder": DECODER,
                            "masking": {"kind": "colour_noise", "ratio": 0.5}}, {}),
    "colour_noise_points": ("points", {"kind": "masked_autoencoder", "decoder": DECODER, **CHAMFER,
                                       "masking": {"kind": "colour_noise", "ratio": 0.5}}, {}),
    "simmim": ("xray", {"kind": "simmim", "masking": {"kind": "cells", "ratio": 0.5, "cell": [2, 2]}}, {}),
    "pcp_mae": ("points", {"kind": "pcp_mae", "decoder": DECODER}, {"positions": {"kind": "waves"},
                                                                     "class_token": False}),
    "hard_patches": ("multispectral", {"kind": "hard_patches", "ratio": 0.5, "decoder": DECODER}, {}),
    "drop_positions": ("xray", {"kind": "drop_positions", "grid": [4, 4], "width": 16, "depth": 1, "num_heads": 2,
                                "masking": {"kind": "random", "ratio": 0.25}}, {}),
    "latent_alignment": ("ct", {"kind": "latent_alignment", "regressor_depth": 1, "decoder_depth": 1}, {})}


def paragraph(kind: str, objective: dict[str, Any], encoder: dict[str, Any], **more: Any) -> dict[str, Any]:
    settings = pretrain_settings(kind, steps=4, objective=objective, **more)
    return {**settings, "encoder": {**settings["encoder"], **encoder}}  # type: ignore[dict-item]


@pytest.mark.parametrize("name", RUNS)
def test_a_run_trains_draws_a_picture_and_leaves_an_encoder(tmp_path: Path, name: str) -> None:
    kind, objective, encoder = RUNS[name]
    prepare(tmp_path / "data/prepared" / kind, kind)
    settings = build(PretrainRun, paragraph(kind, objective, encoder), f"pretrain.{name}")
    metrics = pretrain.run(name, settings, tmp_path)
    assert metrics["steps"] == 4 and torch.tensor([metrics["loss"], metrics["first_loss"]]).isfinite().all()
    assert (tmp_path / f"reports/pretrain/{name}/reconstruction.png").stat().st_size > 500
    loaded = load_encoder(tmp_path / "artifacts/pretrain" / name)
    assert build(PretrainRun, paragraph(kind, loaded.record["objective"], encoder), "again").objective == (
        settings.objective)


def stage(root: Path, name: str, kind: str = "xray", **changes: Any) -> dict[str, Any]:
    settings = build(PretrainRun, {**pretrain_settings(kind, steps=4), **changes}, f"pretrain.{name}")
    pretrain.run(name, settings, root)
    return read_record(root / "artifacts/pretrain" / name)


@pytest.mark.parametrize("match", [{"kind": "blocks"}, {"kind": "decoder"}])
@pytest.mark.parametrize("kind", ["xray", "points"])
def test_a_student_learns_from_a_checkpoint_and_records_it(tmp_path: Path, kind: str, match: dict[str, str]) -> None:
    prepare(tmp_path / "data/prepared" / kind, kind)
    large = {"tokenizer": TOKENIZERS[kind], "size": {"width": 32, "depth": 4, "num_heads": 4}}
    stage(tmp_path, "teacher", kind, encoder=large)
    folder = tmp_path / "artifacts/pretrain/teacher"
    before = hash_file(folder / "weights.safetensors")
    objective = {**pretrain_settings(kind)["objective"], "kind": "distillation", "match": match}  # type: ignore[dict-item]
    record = stage(tmp_path, "student", kind, objective=objective, teacher="artifacts/pretrain/teacher")
    assert record["provenance"]["teacher"] == "artifacts/pretrain/teacher"
    assert record["provenance"]["teacher_sha256"] == read_record(folder)["weights_sha256"]
    assert hash_file(folder / "weights.safetensors") == before
    from safetensors import safe_open
    with safe_open(tmp_path / "artifacts/pretrain/student/weights.safetensors", framework="pt") as file:
        parts = {name.split(".")[0] for name in file.keys()}  # .keys(): the file is no mapping
    assert parts == {"encoder", "decoder", "readout", "project"}, "the teacher is a checkpoint of its own"
    assert (tmp_path / "reports/pretrain/student/reconstruction.png").stat().st_size > 500


def test_a_student_from_scratch_normalises_as_its_teacher_does(tmp_path: Path) -> None:
    folder = prepare(tmp_path / "data/prepared/xray")
    stage(tmp_path, "teacher")
    other = json.loads((folder / "contract.json").read_text())
    other["channels"][0] |= {"mean": 100.0, "std": 50.0}
    (folder / "contract.json").write_text(json.dumps(other))
    objective = {**pretrain_settings()["objective"], "kind": "distillation"}  # type: ignore[dict-item]
    stage(tmp_path, "student", objective=objective, teacher="artifacts/pretrain/teacher")
    contract = contracts.load(tmp_path / "artifacts/pretrain/student/contract.json")
    assert (contract.channels[0].mean, contract.channels[0].std) == (128.0, 64.0)


def test_what_teacher_and_start_have_seen_counts_as_seen(tmp_path: Path) -> None:
    """Or a student could be tested on a patient that its teacher has learnt from."""
    folder = prepare(tmp_path / "data/prepared/xray")
    stage(tmp_path, "teacher", sources=["a"])
    rows = open_prepared(folder)
    of_a, of_b = (set(group_hashes(rows, pretrain.pool_rows(rows, (source,)))) for source in ("a", "b"))
    assert of_a - of_b, "the sources have groups of their own"
    objective = {**pretrain_settings()["objective"], "kind": "distillation"}  # type: ignore[dict-item]
    student = stage(tmp_path, "student", sources=["b"], objective=objective, teacher="artifacts/pretrain/teacher")
    assert set(student["pool_groups"]) == of_a | of_b
    after = stage(tmp_path, "after", sources=["b"], start="artifacts/pretrain/teacher")
    assert set(after["pool_groups"]) == of_a | of_b


@pytest.mark.parametrize(("objective", "teacher"), [
    ("distillation", "scratch"), ("masked_autoencoder", "artifacts/pretrain/teacher")])
def test_a_teacher_is_named_for_distillation_alone(objective: str, teacher: str) -> None:
    paragraph = {**pretrain_settings(), "objective": {"kind": objective}, "teacher": teacher}
    with pytest.raises(SettingsError, match="expected a checkpoint folder with distillation, and scratch with any"):
        build(PretrainRun, paragraph, "test")
