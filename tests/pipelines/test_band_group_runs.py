"""Groups of bands go through the stages, and bands are found by name there too; SatMAE++ draws its finer picture."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from domains import contract as contracts
from pipelines import finetune, pretrain
from pipelines.pretrain import PretrainRun
from pipelines.settings import SettingsError, build
from pipelines.training.finetune_settings import FinetuneRun
from pipelines.weights.tuned_checkpoints import load_tuned
from tests import fabricate

pytestmark = pytest.mark.usefixtures("no_tracking")

ENCODER = {"tokenizer": {"kind": "band_groups", "groups": [[2, 0], [1]], "patch": [4, 4]},
           "size": {"width": 24, "depth": 2, "num_heads": 2}}
DECODER = {"width": 16, "depth": 1, "num_heads": 2}
OBJECTIVES = {
    "satmae": {"masking": {"kind": "consistent", "ratio": 0.5}, "decoder": DECODER,
               "readout": {"kind": "group_pixels"}},
    "satmae_sampled": {"masking": {"kind": "channels", "ratio": 0.5}, "decoder": DECODER,
                       "readout": {"kind": "group_pixels"}},
    "satmae_pp": {"kind": "multiscale", "masking": {"kind": "random", "ratio": 0.5}, "decoder": DECODER,
                  "readout": {"kind": "group_pixels"}, "num_scales": 1}}


def prepare(root: Path) -> None:
    fabricate.prepare(root / "data/prepared/multispectral", "multispectral")


@pytest.mark.parametrize("name", OBJECTIVES)
def test_pretraining_runs_and_leaves_a_picture(name: str, tmp_path: Path) -> None:
    prepare(tmp_path)
    settings = fabricate.pretrain_settings("multispectral", steps=2, encoder=ENCODER, objective=OBJECTIVES[name])
    metrics = pretrain.run(name, build(PretrainRun, settings, f"pretrain.{name}"), tmp_path)
    assert metrics["steps"] == 2
    picture = np.asarray(Image.open(tmp_path / f"reports/pretrain/{name}/reconstruction.png"))
    assert picture.std() > 0


def test_data_with_some_bands_in_another_order_starts_from_weights_of_groups(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(tmp_path)
    settings = fabricate.pretrain_settings("multispectral", steps=1, encoder=ENCODER, objective=OBJECTIVES["satmae"])
    pretrain.run("groups", build(PretrainRun, settings, "pretrain.groups"), tmp_path)
    monkeypatch.setitem(fabricate.SIZES, "multispectral", (2, 16, 16))
    folder = fabricate.prepare(tmp_path / "data/prepared/fewer", "multispectral", seed=1)
    contract = contracts.load(folder / "contract.json")
    blue, _, red = contract.channels
    contracts.save(dataclasses.replace(contract, channels=(red, blue)), folder / "contract.json")
    tune = build(FinetuneRun, {"domain": "satellite", "data": "fewer", "task": "bright", "seeds": [0],
                               "start": "artifacts/pretrain/groups", "arms": ["pretrained"], "validations": 1,
                               "optimisation": {"steps": 2, "batch_size": 8}, "machine": {"accelerator": "cpu"}},
                 "finetune.fewer")
    finetune.run("fewer", tune, tmp_path)
    model, _, record = load_tuned(tmp_path / "artifacts/finetune/fewer/pretrained/seed0")
    assert record["channels"] == [2, 0] and model.encoder.tokenizer.channels == (2, 0)


def test_groups_that_do_not_name_the_bands_are_refused_by_their_path() -> None:
    for groups, said in (([[0], [0, 1]], "every band once"), ([[0.5]], "groups.0")):
        tokenizer = {"kind": "band_groups", "groups": groups}
        with pytest.raises(SettingsError, match=said):
            build(PretrainRun, {"domain": "satellite", "data": "x", "encoder": {"tokenizer": tokenizer}}, "pretrain.x")
