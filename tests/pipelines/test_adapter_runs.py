"""Adapters in `finetune`: the start stays as it is, what is added is kept apart and small, and comes back right."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from domains.contract import ContractMismatch
from domains.store import open_prepared
from models.adapters.prior_prompts import memories
from models.adapters.seams import added
from pipelines import evaluate, finetune, pretrain
from pipelines.evaluate import EvaluateRun
from pipelines.pretrain import PretrainRun
from pipelines.settings import SettingsError, build
from pipelines.training.batches import Source, domain_code, in_order
from pipelines.training.finetune_settings import FinetuneRun
from pipelines.weights.checkpoints import CheckpointError, load_encoder
from pipelines.weights.tuned_checkpoints import fold, load_tuned, predict
from tests.fabricate import pretrain_settings, pretrained

pytestmark = pytest.mark.usefixtures("no_tracking")

EVERY = [[{"kind": "lora", "rank": 2}], [{"kind": "prompts", "num_prompts": 2, "deep": True}],
         [{"kind": "gated_prompts", "num_prompts": 2}], [{"kind": "singular_values"}], [{"kind": "bias"}],
         [{"kind": "bottleneck", "width": 4}],
         [{"kind": "dynamic_prompts", "num_prompts": 2, "width": 4}],
         [{"kind": "lora", "rank": 2}, {"kind": "prompts", "num_prompts": 2}]]

POINT_PEFT = [{"kind": "prior_prompts", "num_blocks": 1, "neighbours": 3, "width": 4, "memory": 64},
              {"kind": "geometry", "neighbours": 4, "width": 4}]


def named(adapters: list[dict[str, Any]]) -> str:
    return "-".join(one["kind"] for one in adapters)


def tuning(kind: str, adapters: list[dict[str, Any]], **changes: Any) -> FinetuneRun:
    like = pretrain_settings(kind)
    paragraph = {"domain": like["domain"], "data": kind, "task": "bright", "start": f"artifacts/pretrain/{kind}",
                 "arms": ["pretrained"], "adapters": adapters, "seeds": [0], "grid": [1e-2], "validations": 1,
                 "patience": 0, "machine": like["machine"],
                 "optimisation": {"steps": 6, "batch_size": 8, "log_every": 2, "betas": [0.9, 0.999]}, **changes}
    return build(FinetuneRun, paragraph, "finetune.test")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project folder with a pretrained encoder for films and one for clouds."""
    root = tmp_path_factory.mktemp("project")
    for kind in ("xray", "points"):
        pretrained(root, kind, steps=2)
    return root


def told(folder: Path, root: Path, kind: str = "xray") -> np.ndarray:
    model, contract, record = load_tuned(folder)
    prepared = open_prepared(root / "data/prepared" / kind)
    return predict(model, Source(prepared, contract, domain_code(record["domain"]), prepared.rows(split="val")))


@pytest.mark.parametrize("adapters", EVERY, ids=named)
def test_a_start_is_left_as_it_is_and_what_is_added_is_small_and_comes_back(adapters, project, capsys):
    name = named(adapters)
    finetune.run(name, tuning("xray", adapters), project)
    folder = project / "artifacts/finetune" / name / "pretrained/seed0"
    trunk = load_encoder(project / "artifacts/pretrain/xray").encoder.state_dict()
    model, _, record = load_tuned(folder)
    if name in ("prompts", "bottleneck", "gated_prompts"):
        own = {key.replace(".wrapped", ""): value for key, value in model.encoder.state_dict().items()}
        assert all(torch.equal(own[key], value) for key, value in trunk.items())
    assert [one["kind"] for one in record["adapters"]] == [one["kind"] for one in adapters]
    assert all(value.abs().sum() > 0 for _, value in added(model.encoder))
    whole = (project / "artifacts/pretrain/xray/weights.safetensors").stat().st_size
    assert (folder / "weights.safetensors").stat().st_size < whole / 2
    chosen = json.loads((folder.parent.parent / "summary.json").read_text())["chosen"]["pretrained"]
    assert 0 < chosen["trained_weights"] < chosen["weights"] / 2
    assert f"trains {chosen['trained_weights']} of {chosen['weights']} weights" in capsys.readouterr().out


@pytest.mark.parametrize("adapters", EVERY, ids=named)
def test_a_model_made_to_stand_alone_answers_the_same_without_its_start(adapters, project, tmp_path):
    name = named(adapters)
    if not (project / "artifacts/finetune" / name).is_dir():
        finetune.run(name, tuning("xray", adapters), project)
    folder = project / "artifacts/finetune" / name / "pretrained/seed0"
    said = fold(folder, tmp_path / "alone")
    assert "folded into the weights" in said
    np.testing.assert_allclose(told(tmp_path / "alone", project), told(folder, project), rtol=1e-4, atol=1e-5)
    assert "trunk" not in json.loads((tmp_path / "alone/checkpoint.json").read_text()) or \
        json.loads((tmp_path / "alone/checkpoint.json").read_text())["trunk"] is None


def test_a_moved_project_is_found_again_and_a_lone_folder_is_refused(project, tmp_path):
    finetune.run("moved", tuning("xray", EVERY[0]), project)
    before = told(project / "artifacts/finetune/moved/pretrained/seed0", project)
    shutil.copytree(project, tmp_path / "elsewhere")
    moved = tmp_path / "elsewhere/artifacts/finetune/moved/pretrained/seed0"
    np.testing.assert_allclose(told(moved, project), before, rtol=1e-5, atol=1e-6)
    shutil.copytree(project / "artifacts/finetune/moved/pretrained/seed0", tmp_path / "lone")
    with pytest.raises(CheckpointError, match="found no artifacts/pretrain/xray above it.*lacuna merge"):
        load_tuned(tmp_path / "lone")


def test_another_start_under_the_same_name_is_refused(project, tmp_path):
    finetune.run("other", tuning("xray", EVERY[0]), project)
    shutil.copytree(project, tmp_path / "elsewhere")
    plan = {"steps": 2, "batch_size": 8, "learning_rate": 1e-3, "log_every": 2}
    pretrain.run("xray", build(PretrainRun, pretrain_settings("xray", optimisation=plan, seed=5), "pretrain.test"),
                 tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="made on an encoder with the hash"):
        load_tuned(tmp_path / "elsewhere/artifacts/finetune/other/pretrained/seed0")


def test_batch_statistics_of_a_frozen_start_stay(project):
    finetune.run("clouds", tuning("points", EVERY[0]), project)
    trunk = load_encoder(project / "artifacts/pretrain/points").encoder.state_dict()
    model, _, _ = load_tuned(project / "artifacts/finetune/clouds/pretrained/seed0")
    means = [name for name in trunk if "running_mean" in name]
    assert means
    assert all(torch.equal(model.encoder.state_dict()[name], trunk[name]) for name in means)


def test_prior_prompts_remember_what_the_start_says_of_labelled_training_rows_and_of_no_other(project, tmp_path):
    finetune.run("point_peft", tuning("points", POINT_PEFT), project)
    folder = project / "artifacts/finetune/point_peft/pretrained/seed0"
    model, contract, record = load_tuned(folder)
    start = load_encoder(project / "artifacts/pretrain/points").encoder.eval()
    prepared = open_prepared(project / "data/prepared/points")
    train = prepared.rows(split="train", task="bright")
    source = Source(prepared, contract, domain_code(record["domain"]), train)
    expected = in_order(source, lambda batch: start(start.tokenizer.patchify(batch.x)).tokens.amax(1), 8,
                        torch.device("cpu"))
    memory = next(memories(model.encoder))
    assert int(memory.filled) == len(train) < len(prepared)
    torch.testing.assert_close(memory.bank[:len(train)], torch.from_numpy(expected), rtol=1e-4, atol=1e-5)
    assert not memory.bank[len(train):].any()
    chosen = json.loads((folder.parent.parent / "summary.json").read_text())["chosen"]["pretrained"]
    assert chosen["weights"] == sum(value.numel() for value in model.parameters())
    added_weights = sum(value.numel() for _, value in added(model.encoder))
    assert chosen["trained_weights"] == added_weights + sum(value.numel() for value in model.head.parameters())
    assert "kept beside them: prior_prompts, geometry" in fold(folder, tmp_path / "alone")
    np.testing.assert_allclose(told(tmp_path / "alone", project, "points"), told(folder, project, "points"),
                               rtol=1e-4, atol=1e-5)


def test_an_encoder_of_films_becomes_the_frozen_trunk_of_one_of_points(project, tmp_path):
    encoder = {"tokenizer": {"kind": "groups", "num_groups": 8, "group_size": 8, "widths": [8, 8, 16]},
               "size": {"width": 24, "depth": 2, "num_heads": 2}}
    across = tuning("points", [{"kind": "any2point", "num_cells": 3, "width": 4}], start="artifacts/pretrain/xray",
                    encoder=encoder, arms=["scratch", "pretrained"])
    finetune.run("across", across, project)
    folder = project / "artifacts/finetune/across/pretrained/seed0"
    trunk = load_encoder(project / "artifacts/pretrain/xray").encoder.state_dict()
    model, _, record = load_tuned(folder)
    own = {name.replace(".wrapped", ""): value for name, value in model.encoder.state_dict().items()}
    assert all(torch.equal(own[name], value) for name, value in trunk.items() if name.startswith(("blocks", "norm")))
    assert (model.encoder.tokenizer.point[1].running_mean != 0).any(), "the new tokenizer's statistics are learnt"
    chosen = json.loads((project / "artifacts/finetune/across/summary.json").read_text())["chosen"]
    tokenizer = sum(value.numel() for value in model.encoder.tokenizer.parameters())
    assert tokenizer < chosen["pretrained"]["trained_weights"] < chosen["pretrained"]["weights"]
    assert chosen["scratch"]["trained_weights"] == chosen["scratch"]["weights"]
    fold(folder, tmp_path / "alone")
    np.testing.assert_allclose(told(tmp_path / "alone", project, "points"), told(folder, project, "points"),
                               rtol=1e-4, atol=1e-5)
    with pytest.raises(ContractMismatch, match="expected xray, which the weights have seen.*describe the new"):
        finetune.run("none", tuning("points", EVERY[0], start="artifacts/pretrain/xray"), project)
    with pytest.raises(ContractMismatch, match="encoder.size: found"):
        finetune.run("wide", tuning("points", EVERY[0], start="artifacts/pretrain/xray",
                                    encoder={**encoder, "size": "small"}), project)


def test_the_scratch_arm_is_trained_whole_beside_an_adapter_and_both_are_scored(project, capsys):
    both = tuning("xray", EVERY[0], arms=["scratch", "pretrained"])
    finetune.run("both", both, project)
    evaluate.run("both", build(EvaluateRun, {"domain": "medical", "finetune": "both", "data": "xray",
                                             "resamples": 100}, "evaluate.both"), project)
    chosen = json.loads((project / "artifacts/finetune/both/summary.json").read_text())["chosen"]
    assert chosen["scratch"]["trained_weights"] == chosen["scratch"]["weights"]
    _, _, record = load_tuned(project / "artifacts/finetune/both/scratch/seed0")
    assert not record["adapters"]


@pytest.mark.parametrize(("changes", "message"), [
    ({"protocol": "linear"}, "expected protocol full"),
    ({"optimisation": {"steps": 2, "layer_decay": 0.75}}, "found layer_decay 0.75, expected 1"),
    ({"flexible_patches": [[8, 8]]}, "flexible_patches"),
    ({"adapters": [{"kind": "lorra"}]}, "lora"),
    ({"adapters": [{"kind": "lora", "rnk": 2}]}, r"adapters\.0\.rnk"),
], ids=["protocol", "layer_decay", "flexible", "kind", "key"])
def test_what_does_not_go_with_adapters_is_refused(changes, message):
    with pytest.raises(SettingsError, match=message):
        tuning("xray", changes.pop("adapters", EVERY[0]), **changes)


@pytest.mark.parametrize(("adapters", "said"), [
    ([{"kind": "geometry"}], "geometry: found a tokenizer GridTokenizer"),
    ([{"kind": "prior_prompts", "neighbours": 999}], "expected at least as many as neighbours, 999"),
    ([{"kind": "prompts"}, {"kind": "gated_prompts"}], "has prompts already")])
def test_adapters_that_have_no_room_are_refused_before_any_arm_is_trained(adapters, said, project):
    with pytest.raises(ValueError, match=said):
        finetune.run("no_room", tuning("xray", adapters, arms=["scratch", "pretrained"]), project)
    assert not list((project / ".work/finetune").glob("no_room*"))
