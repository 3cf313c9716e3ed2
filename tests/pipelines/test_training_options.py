"""Options of a run that change how weights begin and which patches they see: they reach the stages, and what cannot go
together is refused before anything is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from domains.store import open_prepared
from models.encoder.flexible_patches import drawn_size
from pipelines import finetune, pretrain
from pipelines.finetune import resolve_start
from pipelines.pretrain import PretrainRun
from pipelines.settings import SettingsError, build
from pipelines.training.finetune_settings import FinetuneRun
from pipelines.training.labelled_model import build_model
from pipelines.training.training import TrainingFailed
from pipelines.weights.checkpoints import load_encoder
from pipelines.weights.tuned_checkpoints import load_tuned
from tests.fabricate import prepare, pretrain_settings

pytestmark = pytest.mark.usefixtures("no_tracking")

ADAN = {"optimiser": "adan", "betas": [0.98, 0.92, 0.99]}


def tuning(kind: str = "xray", steps: int = 6, **changes: Any) -> FinetuneRun:
    like = pretrain_settings(kind)
    paragraph = {"domain": like["domain"], "data": kind, "task": "bright", "encoder": like["encoder"], "seeds": [0],
                 "arms": ["scratch"], "grid": [1e-3], "validations": 2, "patience": 0, "machine": like["machine"],
                 "optimisation": {"steps": steps, "batch_size": 8, "log_every": 2, "betas": [0.9, 0.999]}, **changes}
    return build(FinetuneRun, paragraph, "finetune.test")


def product(encoder: torch.nn.Module) -> torch.Tensor:
    """What attention of the first block adds to a token, of what the token is."""
    attention = encoder.blocks[0].attention
    return (attention.proj.weight @ attention.qkv.weight.chunk(3)[2]).detach()


def test_a_pretraining_begins_with_mimetic_attention_and_moves_by_cautious_adan(tmp_path: Path) -> None:
    prepare(tmp_path / "data/prepared/xray")
    plan = {"steps": 4, "batch_size": 8, "learning_rate": 1e-5, "log_every": 2, "cautious": True, **ADAN}
    paragraph = pretrain_settings("xray", optimisation=plan)
    for name, more in (("mimetic", {"initialisation": "mimetic"}), ("plain", {})):
        metrics = pretrain.run(name, build(PretrainRun, {**paragraph, **more}, "pretrain.test"), tmp_path)
        assert metrics["steps"] == 4
    mimetic, plain = (load_encoder(tmp_path / "artifacts/pretrain" / name).encoder for name in ("mimetic", "plain"))
    assert float(product(mimetic).diagonal().mean()) == pytest.approx(-0.4, abs=0.15)
    assert float(product(plain).diagonal().mean()) > -0.2


def test_only_the_scratch_arm_is_mimetic_and_a_seed_decides(tmp_path: Path) -> None:
    data = open_prepared(prepare(tmp_path / "data/prepared/xray"))
    settings = tuning(initialisation="mimetic")
    start = resolve_start(settings, data.contract, tmp_path)
    task = data.contract.tasks["bright"]
    one, same, other = (build_model(start, settings.head, task, seed, initialisation="mimetic") for seed in (0, 0, 1))
    plain = build_model(start, settings.head, task, 0)
    assert torch.equal(product(one.encoder), product(same.encoder))
    assert not torch.allclose(product(one.encoder), product(other.encoder), atol=0.01)
    assert torch.equal(one.encoder.tokenizer.project.weight, plain.encoder.tokenizer.project.weight)
    assert torch.equal(one.head.output.weight, plain.head.output.weight), "arms and options share the head"


@pytest.mark.parametrize(("kind", "sizes"), [("xray", [[4, 4], [8, 8], [2, 4]]), ("multispectral", [[4, 4], [8, 8]]),
                                             ("ct", [[4, 4, 4], [6, 6, 6]])])
def test_a_fine_tuning_draws_patch_sizes_and_leaves_a_checkpoint_of_the_stored_one(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, sizes: list[list[int]]) -> None:
    prepare(tmp_path / "data/prepared" / kind, kind)
    drawn: list[tuple[int, ...]] = []

    def watched(*of: Any) -> tuple[int, ...]:
        drawn.append(drawn_size(*of))
        return drawn[-1]

    monkeypatch.setattr(finetune, "drawn_size", watched)
    settings = tuning(kind, steps=20, flexible_patches=sizes, initialisation="mimetic")
    finetune.run(kind, settings, tmp_path)
    assert {tuple(size) for size in sizes} == set(drawn)
    model, _, _ = load_tuned(tmp_path / "artifacts/finetune" / kind / "scratch/seed0")
    assert model.encoder.tokenizer.patch == model.encoder.tokenizer.stored == settings.encoder.tokenizer.patch


@pytest.mark.parametrize(("changes", "told"), [
    ({"flexible_patches": [[4, 4]], "protocol": "linear", "head": {"kind": "sample", "batch_norm": True}},
     "flexible_patches: found protocol linear"),
    ({"flexible_patches": [[4, 4]], "protocol": "knn", "head": {"kind": "nearest"}}, "expected full with sample"),
    ({"protocol": "linear"}, "protocol linear: found .* expected one linear layer on standardised features"),
    ({"protocol": "linear", "head": {"kind": "sample", "batch_norm": True, "hidden": 4}}, "neither `hidden` nor"),
    ({"initialisation": "mimetic", "arms": ["pretrained"]}, "initialisation mimetic is for the scratch arm"),
    ({"adapters": [{"kind": "lora"}]}, "adapters: found 1 with start scratch and arms .*expected a start"),
    ({"adapters": [{"kind": "lora"}], "start": "artifacts/pretrain/xray"}, "and the arm pretrained")])
def test_a_fine_tuning_that_could_not_use_an_option_is_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(SettingsError, match=told):
        tuning(**changes)


@pytest.mark.parametrize(("kind", "sizes", "told"), [
    ("xray", [[5, 5]], r"found \[5, 5\], expected 2 sizes that divide the samples' \[16, 16\]"),
    ("points", [[4, 4]], "found groups, expected a transformer on grid or bands")])
def test_patch_sizes_that_the_data_cannot_be_cut_at_are_refused_before_training(
        tmp_path: Path, kind: str, sizes: list[list[int]], told: str) -> None:
    prepare(tmp_path / "data/prepared" / kind, kind)
    with pytest.raises(ValueError, match=told):
        finetune.run(kind, tuning(kind, flexible_patches=sizes), tmp_path)


def test_a_pretraining_from_a_start_takes_its_weights_and_no_initialisation() -> None:
    with pytest.raises(SettingsError, match="found mimetic beside a start"):
        build(PretrainRun, pretrain_settings("xray", start="artifacts/pretrain/xray", initialisation="mimetic"), "test")


def test_gradients_are_clipped_under_bf16(tmp_path: Path) -> None:
    prepare(tmp_path / "data/prepared/xray")
    machine = {"accelerator": "cpu", "precision": "bf16-mixed"}
    plan = {"steps": 2, "batch_size": 8, "log_every": 1, "clip": 0.5}
    settings = build(PretrainRun, {**pretrain_settings("xray", optimisation=plan), "machine": machine}, "pretrain.test")
    assert pretrain.run("clipped", settings, tmp_path)["steps"] == 2


def test_data_of_another_domain_is_refused_before_training(tmp_path: Path) -> None:
    prepare(tmp_path / "data/prepared/xray")
    told = "domain: found satellite, expected medical, as which the data was ingested"
    with pytest.raises(ValueError, match=told):
        finetune.run("xray", tuning(domain="satellite"), tmp_path)
    with pytest.raises(ValueError, match=told):
        pretrain.run("xray", build(PretrainRun, pretrain_settings("xray", domain="satellite"), "test"), tmp_path)


def test_patches_as_large_as_the_sample_leave_nothing_to_hide_and_are_refused(tmp_path: Path) -> None:
    prepare(tmp_path / "data/prepared/xray")
    like = pretrain_settings("xray")
    like["encoder"] = {**like["encoder"], "tokenizer": {"kind": "grid", "patch": [16, 16]}}  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="found 1 to choose from in a sample, expected at least two patches"):
        pretrain.run("xray", build(PretrainRun, like, "test"), tmp_path)


def test_a_pretraining_that_has_diverged_says_so(tmp_path: Path) -> None:
    prepare(tmp_path / "data/prepared/xray")
    plan = {"steps": 4, "batch_size": 8, "learning_rate": 1e30, "log_every": 2, "warmup": 0.0}
    with pytest.raises(TrainingFailed, match="features are NaN or infinite.*has diverged. Lower learning_rate"):
        pretrain.run("xray", build(PretrainRun, pretrain_settings("xray", optimisation=plan), "test"), tmp_path)


def test_batch_norms_of_a_batch_of_one_are_refused_with_a_remedy(tmp_path: Path) -> None:
    prepare(tmp_path / "data/prepared/xray")
    settings = tuning(head={"kind": "sample", "batch_norm": True}, optimisation={"steps": 1, "batch_size": 1})
    with pytest.raises(ValueError, match="found 1 value per channel.*Use a larger batch_size"):
        finetune.run("xray", settings, tmp_path)
