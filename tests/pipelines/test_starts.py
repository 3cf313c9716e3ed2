import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from domains.contract import Channel, Contract, ContractMismatch
from models.encoder.band_groups import BandGroups
from models.encoder.patches import see_all
from models.encoder.positions import Table
from models.encoder.tokenizers import Bands, Grid, Groups
from models.encoder.transformer import Encoder, EncoderSettings, Shape
from pipelines import finetune, pretrain
from pipelines.settings import build, plain
from pipelines.training.finetune_settings import FinetuneRun
from pipelines.weights import checkpoints
from pipelines.weights.checkpoints import CheckpointError, load_encoder
from pipelines.weights.import_published import import_file
from pipelines.weights.starts import resolve
from pipelines.weights.tuned_checkpoints import load_tuned
from tests.fabricate import contract_of, prepare, pretrain_settings
from tests.pipelines.published_files import mae_file

SMALL = Shape(24, 2, 3)


def test_a_path_that_is_no_checkpoint_is_answered_with_what_was_probably_meant(tmp_path: Path) -> None:
    for arm in ("pretrained", "scratch"):
        (tmp_path / "run" / arm / "seed0").mkdir(parents=True)
        (tmp_path / "run" / arm / "seed0" / checkpoints.RECORD).touch()
    mae_file(tmp_path / "mae.pth")
    for path, said in (("run", "below it: pretrained/seed0, scratch/seed0"), ("run/scratch", "below it: seed0"),
                       ("mae.pth", "lacuna import"), ("nothing", "`lacuna pretrain`, `finetune` or `import`")):
        with pytest.raises(CheckpointError, match=said):
            checkpoints.read_record(tmp_path / path)


def published(root: Path, name: str = "mae", **options: Any) -> str:
    """An imported MAE file with patches of 4 x 4 on a grid of 3 x 3."""
    given = {"num_heads": 3, **options.pop("given", {})}
    mae_file(root / f"{name}.pth", patch=options.pop("file_patch", 4))
    import_file(root / f"{name}.pth", root / "artifacts/import" / name, given=given, **options)
    return f"artifacts/import/{name}"


def imported(root: Path, name: str, settings: EncoderSettings, contract: Contract) -> str:
    """A folder as an import of some other family leaves it."""
    torch.manual_seed(1)
    num_channels = len(contract.channels)
    checkpoints.save(root / name, {"encoder": Encoder(settings, num_channels)}, contract, {
        "kind": "imported", "family": "other", "encoder": plain(settings), "num_channels": num_channels,
        "provenance": {"file": "f.pth", "file_sha256": "0", "family": "other", "licence": "MIT"}})
    return name


def bands(*about: tuple[str, float | None], **more: Any) -> Contract:
    channels = tuple(Channel(name, "reflectance x 10000", nm, high=1e4, mean=128.0, std=64.0) for name, nm in about)
    return dataclasses.replace(contract_of("multispectral"), channels=channels, **more)


def features(start: Any, x: torch.Tensor) -> torch.Tensor:
    encoder = start.build().eval()
    patches = encoder.tokenizer.patchify(x)
    return encoder(patches, see_all(patches)).tokens


def test_films_are_taken_as_photographs_that_are_grey(tmp_path):
    path, data = published(tmp_path), contract_of("xray")
    start = resolve(path, None, data, tmp_path)
    x = torch.randn(2, 1, 16, 16)
    photograph = load_encoder(tmp_path / path).encoder.eval()
    patches = photograph.tokenizer.patchify(x.expand(-1, 3, -1, -1))
    assert torch.allclose(features(start, x), photograph(patches, see_all(patches)).tokens, atol=1e-5)
    assert start.contract == data and start.num_channels == 1, "the data's own statistics normalise"
    said = "\n".join(start.said)
    assert "sum of the kernels of R, G, B" in said and "the data's own mean and deviation" in said
    assert "table of positions resized from 3 x 3 to 4 x 4 (bicubic)" in said and "4 x 4 patches of 4 x 4" in said
    assert start.encoder.positions == Table(grid=(4, 4), learnt=False)


def test_bands_are_taken_by_wavelength_in_the_order_of_the_data(tmp_path):
    data = bands(("B4", 664.6), ("B2", 492.4), ("B3", 559.8))
    start = resolve(published(tmp_path), None, data, tmp_path)
    x = torch.randn(2, 3, 16, 16)
    assert torch.allclose(features(start, x[:, [0, 2, 1]]), features(resolve(
        published(tmp_path), None, bands(("R", None), ("G", None), ("B", None)), tmp_path), x), atol=1e-6)
    assert any("B2 (492.4 nm) is taken for B (460 nm)" in sentence for sentence in start.said)


def test_a_band_that_nobody_knows_is_refused_until_it_is_asked_for(tmp_path):
    data = bands(("B4", 664.6), ("B3", 559.8), ("B2", 492.4), ("B8", 832.8))
    with pytest.raises(ContractMismatch, match=r"found B8, expected .*R, G, B.*--new-channels"):
        resolve(published(tmp_path), None, data, tmp_path)
    path = published(tmp_path, "wider", given={"channels": ["B4", "B3", "B2"]}, new_channels=["B8"])
    start = resolve(path, None, data, tmp_path)
    x = torch.randn(2, 4, 16, 16)
    louder = torch.cat([x[:, :3], 100 * x[:, 3:]], 1)
    assert torch.equal(features(start, x), features(start, louder)), "a new channel has no say yet"


def test_a_patch_is_chosen_when_importing_and_one_that_does_not_divide_is_refused_with_that(tmp_path):
    with pytest.raises(ContractMismatch, match=r"patch \[5, 5\] does not divide .*--patch"):
        resolve(published(tmp_path, file_patch=5), None, contract_of("xray"), tmp_path)
    start = resolve(published(tmp_path, "halved", patch=[8, 8]), None, contract_of("xray"), tmp_path)
    assert start.encoder.tokenizer.patch == (8, 8) and start.encoder.positions.grid == (2, 2)


@pytest.mark.parametrize(("tokenizer", "theirs", "data", "said"), [
    (Grid(patch=(4, 4)), "image", "points", "found points, expected image"),
    (Grid(patch=(4, 4)), "image", "ct", "expected 2 axes"),
    (Grid(patch=(4, 4, 4)), "ct", "xray", "found xray, expected ct"),
    (Groups(num_groups=4, group_size=4), "points", "xray", "found xray, expected points"),
    (Bands(patch=(4, 4)), "multispectral", "xray", "found xray, expected multispectral")])
def test_weights_that_mean_nothing_on_the_data_are_refused(tmp_path, tokenizer, theirs, data, said):
    contract = contract_of("xray" if theirs == "image" else theirs)
    contract = dataclasses.replace(contract, kind=theirs, domain="image" if theirs == "image" else contract.domain)
    path = imported(tmp_path, "weights", EncoderSettings(tokenizer=tokenizer, size=SMALL), contract)
    with pytest.raises(ContractMismatch, match=said):
        resolve(path, None, contract_of(data), tmp_path)


def test_the_same_thing_measured_in_the_same_unit_keeps_the_scale_of_the_weights(tmp_path):
    data = contract_of("ct")
    settings = EncoderSettings(tokenizer=Grid(patch=(4, 4, 4)), size=SMALL, positions=Table(grid=(2, 2, 2)))
    window = Channel("HU", "HU", low=-175.0, high=250.0, mean=-175.0, std=425.0)
    theirs = dataclasses.replace(data, channels=(window,), spacing=None, orientation=None, tasks={})
    start = resolve(imported(tmp_path, "window", settings, theirs), None, data, tmp_path)
    assert start.contract.channels == (window,) and start.contract.tasks == data.tasks
    said = "\n".join(start.said)
    assert "as the published weights had them" in said and "do not say for which spacing" in said and "SPL" in said
    unstated = dataclasses.replace(theirs, channels=(Channel("HU", "HU"),))
    start = resolve(imported(tmp_path, "unstated", settings, unstated), None, data, tmp_path)
    assert start.contract == data, "0 to 1 with mean 0 and deviation 1 is what an import writes that knows no better"
    other = dataclasses.replace(theirs, channels=(dataclasses.replace(window, unit="grey 0-1"),))
    assert resolve(imported(tmp_path, "other", settings, other), None, data, tmp_path).contract == data


def test_clouds_are_taken_at_the_weights_scale_or_not_at_all(tmp_path):
    data = contract_of("points")
    settings = EncoderSettings(tokenizer=Groups(num_groups=4, group_size=4), size=SMALL)
    path = imported(tmp_path, "points", settings, dataclasses.replace(data, size=(1024,)))
    assert resolve(path, None, data, tmp_path).contract.normalisation == "unit_sphere"
    with pytest.raises(ContractMismatch, match="normalisation"):
        resolve(path, None, dataclasses.replace(data, normalisation="standardise"), tmp_path)


@pytest.mark.parametrize("tokenizer", [Bands(patch=(8, 8)), BandGroups(groups=((0, 1), (2,)), patch=(8, 8))])
def test_encoders_of_bands_are_told_which_of_theirs_the_data_has(tmp_path, tokenizer):
    theirs = bands(("B2", 492.4), ("B3", 559.8), ("B8", 832.8))
    path = imported(tmp_path, "bands", EncoderSettings(tokenizer=tokenizer, size=SMALL), theirs)
    start = resolve(path, None, bands(("nir", 840.0), ("B2", 492.4)), tmp_path)
    assert start.channels == (2, 0) and start.num_channels == 3
    assert start.build().tokenizer.channels == (2, 0) and any("nir (840 nm)" in sentence for sentence in start.said)
    with pytest.raises(ContractMismatch, match="found B11"):
        resolve(path, None, bands(("B11", 1613.7)), tmp_path)


def test_one_token_for_all_bands_takes_them_in_another_order_too(tmp_path):
    made_for = bands(("B2", 492.4), ("B3", 559.8), ("B4", 664.6))
    torch.manual_seed(1)
    encoder = Encoder(EncoderSettings(tokenizer=Grid(patch=(4, 4)), size=SMALL), 3)
    checkpoints.save(tmp_path / "ours", {"encoder": encoder}, made_for, {
        "kind": "pretrained", "encoder": plain(encoder.settings), "num_channels": 3})
    turned = resolve("ours", None, bands(("B4", 664.6), ("B2", 492.4), ("B3", 559.8)), tmp_path)
    x = torch.randn(2, 3, 16, 16)
    assert torch.allclose(features(turned, x[:, [2, 0, 1]]), features(resolve("ours", None, made_for, tmp_path), x),
                          atol=1e-6)
    assert any("mapped by name" in sentence for sentence in turned.said)


def test_a_subset_of_bands_keeps_its_codes_from_run_to_run(tmp_path):
    """Pretrained on all bands, gone on with on two, and started from again: each band keeps its own code."""
    prepare(tmp_path / "data/prepared/multispectral", "multispectral")
    paragraph = pretrain_settings("multispectral", steps=1)
    pretrain.run("all", build(pretrain.PretrainRun, paragraph, "test"), tmp_path)
    two = dataclasses.replace(contract_of("multispectral"), channels=contract_of("multispectral").channels[2:0:-1])
    start = resolve("artifacts/pretrain/all", None, two, tmp_path)
    assert start.channels == (2, 1) and start.contract.names == ("B4", "B3")
    encoder = start.build()
    checkpoints.save(tmp_path / "two", {"encoder": encoder}, start.contract, {
        "kind": "pretrained", "encoder": plain(encoder.settings), "num_channels": 3,
        "channels": list(encoder.tokenizer.channels)})
    one = dataclasses.replace(two, channels=two.channels[:1])
    assert resolve("two", None, one, tmp_path).channels == (2,)
    assert load_encoder(tmp_path / "two").encoder.tokenizer.channels == (2, 1)


def test_from_scratch_an_encoder_must_be_described_and_beside_a_start_it_must_be_the_starts(tmp_path):
    data = contract_of("xray")
    with pytest.raises(CheckpointError, match="`encoder` is not given"):
        resolve("scratch", None, data, tmp_path)
    asked = EncoderSettings(tokenizer=Grid(patch=(4, 4)), size=SMALL, drop_path=0.3, dropout=0.1)
    start = resolve("scratch", asked, data, tmp_path)
    torch.manual_seed(0)
    one = start.build()
    torch.manual_seed(0)
    assert checkpoints.state_hash(one) == checkpoints.state_hash(Encoder(asked, 1)) and start.provenance() == {}
    begun = resolve(published(tmp_path), asked, data, tmp_path)
    assert (begun.encoder.drop_path, begun.encoder.dropout) == (0.3, 0.1)
    with pytest.raises(CheckpointError, match="`encoder` differs"):
        resolve(published(tmp_path), dataclasses.replace(asked, size=Shape(48, 2, 3)), data, tmp_path)


def test_the_arm_from_scratch_has_the_fixed_positions_and_nothing_else_of_the_weights(tmp_path):
    start = resolve(published(tmp_path), None, contract_of("xray"), tmp_path)
    pretrained, scratch = start.build(), start.random().build()
    assert torch.equal(pretrained.place_code.rows, scratch.place_code.rows)
    other = dict(pretrained.named_parameters())
    same = [name for name, value in scratch.named_parameters()
            if value.requires_grad and value.dim() > 1 and torch.equal(value, other[name])]
    assert same == [] and start.random().record == {} and start.random().encoder == start.encoder


def test_an_imported_file_is_fine_tuned_on_films_and_the_result_says_where_it_comes_from(tmp_path, capsys):
    prepare(tmp_path / "data/prepared/xray")
    path = published(tmp_path)
    settings = build(FinetuneRun, {
        "domain": "medical", "data": "xray", "task": "bright", "start": path, "seeds": [0], "validations": 1,
        "optimisation": {"steps": 4, "batch_size": 8}, "machine": {"accelerator": "cpu"}}, "test")
    summary = finetune.run("films", settings, tmp_path)
    origin = json.loads((tmp_path / path / "checkpoint.json").read_text())["provenance"]
    assert summary["imported"] == {key: origin[key] for key in ("file", "file_sha256", "family", "licence")}
    assert "sum of the kernels" in capsys.readouterr().out
    model, contract, record = load_tuned(tmp_path / "artifacts/finetune/films/pretrained/seed0")
    assert record["provenance"]["imported"]["file"] == "mae.pth" and record["provenance"]["fitted"]
    assert record["provenance"]["start_weights"] and contract.names == ("grey",) and model.encoder.num_channels == 1
    _, _, scratch = load_tuned(tmp_path / "artifacts/finetune/films/scratch/seed0")
    assert "imported" not in scratch["provenance"]


def test_an_imported_encoder_of_photographs_reads_points_where_groups_are_described(tmp_path):
    path, data = published(tmp_path), contract_of("points")
    asked = EncoderSettings(tokenizer=Groups(num_groups=8, group_size=8, widths=(8, 8, 16)), size=SMALL)
    start = resolve(path, asked, data, tmp_path)
    photograph, encoder = load_encoder(tmp_path / path).encoder.state_dict(), start.build().state_dict()
    assert all(torch.equal(encoder[name], value) for name, value in photograph.items() if name.startswith("blocks"))
    assert torch.equal(encoder["place_code.plane.rows"], photograph["place_code.rows"])
    assert features(start, torch.randn(2, 64, 3)).shape == (2, 8, 24)
    assert "projected to 3 x 3 patches" in start.said[0] and start.contract == data
    assert start.provenance()["imported"]["family"] == "mae"
    assert set(start.fixed) == {"place_code.plane.rows"}, "what the file keeps fixed the arm from scratch has too"
    with pytest.raises(ContractMismatch, match="describe the new tokenizer"):
        resolve(path, None, data, tmp_path)


def test_an_imported_file_is_pretrained_further_on_films(tmp_path):
    prepare(tmp_path / "data/prepared/xray")
    paragraph = {key: value for key, value in pretrain_settings("xray", steps=2).items() if key != "encoder"}
    metrics = pretrain.run("more", build(pretrain.PretrainRun, {**paragraph, "start": published(tmp_path)}, "test"),
                           tmp_path)
    assert metrics["steps"] == 2
    loaded = load_encoder(tmp_path / "artifacts/pretrain/more")
    assert loaded.encoder.settings.positions == Table(grid=(4, 4), learnt=False) and loaded.encoder.num_channels == 1
    assert loaded.record["provenance"]["imported"]["family"] == "mae"
    again = resolve("artifacts/pretrain/more", None, contract_of("xray"), tmp_path)
    assert again.said == () and again.contract.channels == contract_of("xray").channels
