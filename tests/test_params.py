"""Every shipped run validates and builds; what no field takes is refused by its dotted path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from models.encoder.build import build_encoder
from models.encoder.chance import chance_of
from models.objectives.objective import build_objective
from pipelines.adapt import AdaptRun
from pipelines.domain_adaptation import DomainAdaptationRun
from pipelines.evaluate import EvaluateRun
from pipelines.few_shot import FewShotRun
from pipelines.finetune import build_augment
from pipelines.ingest import DataRun, domain_reader
from pipelines.pretrain import PretrainRun
from pipelines.sample import SampleRun
from pipelines.settings import SettingsError, build, load_run, plain
from pipelines.shift import ShiftRun
from pipelines.training.batches import domain_code
from pipelines.training.finetune_settings import FinetuneRun
from pipelines.verdict import VerdictRun, tunings

ROOT = Path(__file__).resolve().parent.parent
SETTINGS: dict[str, Any] = {"sample": SampleRun, "ingest": DataRun, "pretrain": PretrainRun, "adapt": AdaptRun,
                            "finetune": FinetuneRun, "evaluate": EvaluateRun, "verdict": VerdictRun,
                            "few_shot": FewShotRun, "shift": ShiftRun, "domain_adaptation": DomainAdaptationRun}
FILES = {"params.yaml": yaml.safe_load((ROOT / "params.yaml").read_text()),
         "examples/real/params.yaml": yaml.safe_load((ROOT / "examples/real/params.yaml").read_text()),
         "examples/methods/params.yaml": yaml.safe_load((ROOT / "examples/methods/params.yaml").read_text()),
         "examples/segmentation/params.yaml": yaml.safe_load(
             (ROOT / "examples/segmentation/params.yaml").read_text()),
         "examples/shift/params.yaml": yaml.safe_load((ROOT / "examples/shift/params.yaml").read_text()),
         "examples/claims/params.yaml": yaml.safe_load((ROOT / "examples/claims/params.yaml").read_text())}
RUNS = [pytest.param(file, stage, name, id=f"{file}:{stage}.{name}") for file, params in FILES.items()
        for stage in SETTINGS for name in params.get(stage) or {}]


def data_contract(file: str, data: str) -> Any:
    run = build(DataRun, FILES[file]["ingest"][data], f"ingest.{data}")
    reader = domain_reader(run.domain)
    return reader.ingest.contract(build(reader.settings, run.read, f"ingest.{data}.read"))


@pytest.mark.parametrize(("file", "stage", "name"), RUNS)
def test_every_shipped_run_validates_and_survives_being_saved(file, stage, name):
    settings = build(SETTINGS[stage], FILES[file][stage][name], f"{stage}.{name}")
    assert build(SETTINGS[stage], plain(settings), "again") == settings


@pytest.mark.parametrize(("file", "name"), [(file, name) for file in FILES for name in FILES[file].get("verdict", {})])
def test_the_cells_of_every_shipped_verdict_validate(file, name):
    assert tunings(name, build(VerdictRun, FILES[file]["verdict"][name], f"verdict.{name}"))


@pytest.mark.parametrize(("file", "name"), [(file, name) for file in FILES for name in FILES[file].get("pretrain", {})])
def test_every_shipped_pretraining_builds_and_makes_a_step_within_64_visible_tokens(file, name):
    settings = build(PretrainRun, FILES[file]["pretrain"][name], f"pretrain.{name}")
    contract = data_contract(file, settings.data)
    channels = len(contract.channels)
    teacher = None
    if settings.teacher != "scratch":
        other = FILES[file]["pretrain"][settings.teacher.removeprefix("artifacts/pretrain/")]
        teacher = build_encoder(build(PretrainRun, other, "teacher").encoder, channels)
    model = build_objective(settings.objective, build_encoder(settings.encoder, channels), teacher)
    x = torch.randn(2, *contract.size, 3) if contract.kind == "points" else torch.randn(2, channels, *contract.size)
    if settings.augment is not None:
        code = domain_code(settings.domain)
        augment = build(code.augment.Augment, settings.augment, "augment")
        x, _ = code.augment.augment(x, None, torch.rand(2, code.augment.NUM_DRAWS), augment)
    ids = torch.arange(2)
    chance = chance_of(0, 0, 0, ids, 0 * ids)
    losses = model(x, None, chance)
    assert losses and all(loss.isfinite() for loss in losses.values())
    if settings.encoder.kind == "transformer":  # Swin's windows make no square of the number of tokens
        assert model.reconstruct(x, None, chance).mask.visible.shape[1] <= 64


@pytest.mark.parametrize(("file", "name"), [(file, name) for file in FILES for name in FILES[file].get("finetune", {})])
def test_every_shipped_fine_tuning_names_data_task_and_start_that_exist(file, name):
    params = FILES[file]
    settings = build(FinetuneRun, params["finetune"][name], f"finetune.{name}")
    build_augment(name, settings)
    assert settings.task in params["ingest"][settings.data]["tasks"]
    assert settings.start == "scratch" or settings.start.removeprefix("artifacts/pretrain/") in params["pretrain"]
    shifts = [folder for run in params.get("shift", {}).values() for folder in run["models"].values()]
    assert any(run["finetune"] == name for run in params.get("evaluate", {}).values()) or (
        f"artifacts/finetune/{name}" in shifts), "nobody scores it"


@pytest.mark.parametrize(("stage", "path"), [
    ("sample", "colour"), ("ingest", "files.foldr"), ("ingest", "tasks.opacity.column"),
    ("pretrain", "encoder.tokenizer.patches"), ("pretrain", "objective.masking.ration"),
    ("pretrain", "objective.decoder.dropout"), ("finetune", "head.pooling"), ("finetune", "optimisation.lr"),
    ("evaluate", "bootstrap")])
def test_an_unknown_key_is_refused_by_its_dotted_path_however_deep(tmp_path, stage, path):
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    here = params[stage]["xray"]
    *parts, last = path.split(".")
    for part in parts:
        here = here.setdefault(part, {"kind": "sample"} if part == "head" else {})
    here[last] = 1
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    with pytest.raises(SettingsError, match=rf"unknown key: {stage}\.xray\.{path.replace('.', r'.')}\."):
        load_run(stage, "xray", SETTINGS[stage], tmp_path)


@pytest.mark.parametrize(("change", "said"), [
    ({"objective": {"masking": {"kind": "randon"}}},
     "pretrain.xray.objective.masking.kind: found 'randon', expected one of random, block"),
    ({"objective": {"readout": {"kind": "chamfer"}}}, "groups of points take chamfer, grids and bands take pixels"),
    ({"optimisation": {"steps": 0}}, "must be at least 1"),
    ({"encoder": {"size": {"width": 10, "depth": 1, "num_heads": 3}}}, "not a multiple of num_heads 3"),
    ({"domain": "medicine"}, "found 'medicine', expected 'medical', 'satellite' or 'pointcloud'"),
    ({"seed": "zero"}, "pretrain.xray.seed: found 'zero'")])
def test_a_wrong_value_is_refused_with_what_was_found_and_expected(tmp_path, change, said):
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["pretrain"]["xray"] |= change
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    with pytest.raises(SettingsError) as refused:
        load_run("pretrain", "xray", PretrainRun, tmp_path)
    assert said in str(refused.value)


def test_a_run_that_is_not_there_is_refused_with_the_nearest_name(tmp_path):
    (tmp_path / "params.yaml").write_text("pretrain: {xray: {}, shapes: {}}")
    with pytest.raises(SettingsError, match="It has: xray, shapes. Did you mean xray?"):
        load_run("pretrain", "x-ray", PretrainRun, tmp_path)
