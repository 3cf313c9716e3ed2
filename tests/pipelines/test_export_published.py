import argparse
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lacuna import export_weights, main
from models.encoder.patches import see_all
from models.published.translation import CannotImport
from pipelines import finetune, pretrain
from pipelines.settings import build
from pipelines.training.finetune_settings import FinetuneRun
from pipelines.weights.checkpoints import load_encoder, read_record
from pipelines.weights.import_published import import_file, load_imported
from pipelines.weights.open_published import open_published
from tests.fabricate import prepare, pretrain_settings
from tests.pipelines.published_files import mae_file, mae_tensors

GIVEN = {"num_heads": 3, "decoder_num_heads": 2}
RECORDED = [*(("mae", file, "mae") for file in ("pretrain.pth", "encoder_only_224.pth", "visualize_224.pth",
                                                "finetune_gap.pth", "finetune_cls.pth")),
            ("medical_mae", "pretrain.pth", "mae"), ("medical_mae", "finetune_multilabel.pth", "mae"),
            ("point_mae", "pretrain.pth", "point_mae"), ("point_mae", "finetune.pth", "point_mae")]


def same(one: dict, other: dict) -> bool:
    """Names, numbers and types."""
    return one.keys() == other.keys() and all(
        torch.equal(one[name], other[name]) and one[name].dtype == other[name].dtype for name in one)


@pytest.mark.parametrize("sizes", [
    {}, {"decoder": True}, {"patch": 3, "side": 5, "width": 36}, {"num_channels": 1, "depth": 1},
    {"num_channels": 5, "patch": 6, "side": 2, "decoder": True, "seed": 4}])
def test_a_file_that_was_imported_comes_out_bit_for_bit(tmp_path, sizes):
    tensors = mae_file(tmp_path / "file.pth", **sizes)
    import_file(tmp_path / "file.pth", tmp_path / "out", given=GIVEN)
    said = export_weights(tmp_path / "out", tmp_path / "again.pth", "mae")
    assert same(torch.load(tmp_path / "again.pth", weights_only=True)["model"], tensors)
    assert any("num_heads=3" in sentence for sentence in said)
    export_weights(tmp_path / "out", tmp_path / "again.safetensors", "mae")
    assert same(load_file(tmp_path / "again.safetensors"), tensors)


@pytest.mark.parametrize(("system", "file", "family"), RECORDED, ids=lambda value: str(value))
def test_recorded_files_come_out_bit_for_bit(tmp_path, shared_golden, system, file, family):
    path = shared_golden / system / file
    given = {"num_heads": 1, "decoder_num_heads": 1, "num_groups": 16, "group_size": 12, "num_points": 256}
    import_file(path, tmp_path / "out", given=given)
    export_weights(tmp_path / "out", tmp_path / "again.pth", family)
    assert same(open_published(tmp_path / "again.pth").tensors, open_published(path).tensors)
    level, prefix = {"mae": ("model", ""), "point_mae": ("base_model", "module.")}[family]
    raw = torch.load(tmp_path / "again.pth", weights_only=True)
    assert list(raw) == [level] and all(name.startswith(prefix) for name in raw[level])


def test_a_class_position_survives(tmp_path):
    tensors = mae_tensors()
    tensors["pos_embed"] = torch.randn_like(tensors["pos_embed"])
    torch.save({"model": tensors, "args": argparse.Namespace(num_heads=3)}, tmp_path / "file.pth")
    import_file(tmp_path / "file.pth", tmp_path / "out")
    export_weights(tmp_path / "out", tmp_path / "again.pth", "mae")
    assert same(open_published(tmp_path / "again.pth").tensors, tensors)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory) -> Path:
    """Two tiny pretrainings of ours: films with computed positions, and points."""
    root = tmp_path_factory.mktemp("pretrained")
    for kind in ("xray", "points"):
        prepare(root / "data/prepared" / kind, kind)
        pretrain.run(kind, build(pretrain.PretrainRun, pretrain_settings(kind, steps=2), "test"), root)
    return root


def test_our_own_pretraining_becomes_a_file_with_its_positions_written_out_and_comes_back(tmp_path, pretrained):
    folder = pretrained / "artifacts/pretrain/xray"
    seen = len(read_record(folder)["pool_groups"])
    assert f"the {seen} groups that it was pretrained on" in export_weights(folder, tmp_path / "ours.pth", "mae")[-1]
    tensors = torch.load(tmp_path / "ours.pth", weights_only=True)["model"]
    encoder = load_encoder(folder).encoder.eval()
    x = torch.randn(2, 1, 16, 16)
    patches = encoder.tokenizer.patchify(x)
    assert torch.equal(tensors["pos_embed"][:, 1:], encoder.place_code(patches.place, patches.grid)[:1])
    assert not tensors["pos_embed"][:, 0].any() and "decoder_pred.weight" in tensors
    import_file(tmp_path / "ours.pth", tmp_path / "back", given={"num_heads": 2, "decoder_num_heads": 2})
    again, _ = load_imported(tmp_path / "back")
    before, after = encoder(patches, see_all(patches)), again.encoder(patches, see_all(patches))
    assert torch.equal(before.tokens, after.tokens) and torch.equal(before.summary, after.summary)


def test_what_the_layout_has_no_place_for_is_refused_and_nothing_is_written(tmp_path, pretrained):
    points, xray = (pretrained / "artifacts/pretrain" / kind for kind in ("points", "xray"))
    with pytest.raises(CannotImport, match="MAE's layout holds encoders with a 2-D grid"):
        export_weights(points, tmp_path / "file.pth", "mae")
    with pytest.raises(CannotImport, match="Point-MAE's layout holds"):
        export_weights(xray, tmp_path / "file.pth", "point_mae")
    with pytest.raises(CannotImport, match="--family: found 'vit', expected one of mae, point_mae"):
        export_weights(xray, tmp_path / "file.pth", "vit")
    with pytest.raises(CannotImport, match="found a folder"):
        export_weights(xray, tmp_path, "mae")
    assert list(tmp_path.iterdir()) == []


def test_an_encoder_can_be_exported_alone(tmp_path, pretrained, capsys):
    folder = str(pretrained / "artifacts/pretrain/xray")
    code = main(["export", folder, "--family", "mae", "--out", str(tmp_path / "file.pth"), "--encoder-only"])
    said = capsys.readouterr().out
    assert code == 0 and "of encoder in the layout of mae" in said and "num_heads=2" in said and "grey" in said
    tensors = torch.load(tmp_path / "file.pth", weights_only=True)["model"]
    assert not any(name.startswith(("decoder", "mask_token")) for name in tensors) and "norm.weight" in tensors
    assert main(["export", "nowhere", "--family", "mae", "--out", str(tmp_path / "x.pth")]) == 2


def test_a_decoder_that_the_layout_has_no_place_for_stays_behind_and_that_is_said(tmp_path, pretrained):
    paragraph = pretrain_settings("xray", steps=1)
    paragraph["objective"]["decoder"] = {"kind": "hierarchical", "width": 16, "depth": 1, "num_heads": 2, "taps": [0]}
    pretrain.run("other", build(pretrain.PretrainRun, paragraph, "test"), pretrained)
    said = export_weights(pretrained / "artifacts/pretrain/other", tmp_path / "file.pth", "mae")
    assert any("left out: the parts of MaskedAutoencoder" in sentence for sentence in said)
    assert "mask_token" not in torch.load(tmp_path / "file.pth", weights_only=True)["model"]


def test_a_classifier_that_the_layout_would_misread_is_refused(tmp_path, pretrained):
    paragraph = {"domain": "medical", "data": "xray", "task": "bright", "start": "artifacts/pretrain/xray",
                 "arms": ["pretrained"], "seeds": [0], "validations": 1, "machine": {"accelerator": "cpu"},
                 "optimisation": {"steps": 1, "batch_size": 8}}
    finetune.run("ours", build(FinetuneRun, paragraph, "test"), pretrained)
    folder = pretrained / "artifacts/finetune/ours/pretrained/seed0"
    with pytest.raises(CannotImport, match="MAE's layout holds classifiers of one layer.*--encoder-only"):
        export_weights(folder, tmp_path / "file.pth", "mae")
    export_weights(folder, tmp_path / "file.pth", "mae", encoder_only=True)
    head = {"kind": "sample", "pool": "summary", "norm": "none"}
    finetune.run("theirs", build(FinetuneRun, {**paragraph, "head": head}, "test"), pretrained)
    export_weights(pretrained / "artifacts/finetune/theirs/pretrained/seed0", tmp_path / "file.pth", "mae")
    import_file(tmp_path / "file.pth", tmp_path / "back", given={"num_heads": 2, "channels": ["grey"]})
    assert load_imported(tmp_path / "back")[0].head.settings.pool == "summary"
