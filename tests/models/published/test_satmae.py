"""Files of SatMAE and SatMAE++ at sizes of no recorded set, written here under their names."""

import argparse

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, linear

from models.encoder.band_groups import BandGroups
from models.encoder.masking import ConsistentMasking, RandomMasking
from models.encoder.positions import GridAndGroup, Table
from models.encoder.tokenizers import Grid
from models.encoder.transformer import Encoder, EncoderSettings, Shape
from models.heads.predict_sample import PredictSample, SampleHead
from models.objectives.decoders import DecoderSettings
from models.objectives.masked_autoencoder import MaskedAutoencoder, MaskedAutoencoderSettings
from models.objectives.multiscale import MultiScaleAutoencoder, MultiScaleSettings
from models.objectives.objective import build_objective
from models.objectives.readouts import GroupPixelReadout, PixelReadout
from models.published import mae
from models.published.families import translate
from models.published.mae import blocks_back, layer_back
from models.published.rebuild import rebuild
from models.published.translation import CannotImport, Published
from pipelines.weights.import_published import contract_of, import_file, load_imported
from tests.models.objectives.tiny import chance

GROUPS, PATCH, GRID = ((4, 0, 2), (3,), (1, 6, 5)), 3, (2, 4)
SLOTS = [band for group in GROUPS for band in group]
GIVEN = {"num_heads": 5, "decoder_num_heads": 2, "groups": [list(group) for group in GROUPS], "grid": list(GRID)}
UP = {"up_conv": "up", "up_norm": "up_norm", "res_block.conv1": "first", "res_block.conv2": "second",
      "res_norm": "norm", "proj_out": "image"}
POSITIONS = GridAndGroup(grid=Table(grid=GRID, learnt=False), channel_dim=6)


def stirred(module: nn.Module) -> nn.Module:
    torch.manual_seed(2)
    with torch.no_grad():
        for value in module.parameters():
            value += 0.3 * torch.randn_like(value)
    return module.eval()


def pretrained(num_scales: int) -> MaskedAutoencoder | MultiScaleAutoencoder:
    encoder = Encoder(EncoderSettings(tokenizer=BandGroups(groups=GROUPS, patch=(PATCH, PATCH)), size=Shape(20, 3, 5),
                                      positions=POSITIONS, mlp_width=28), 7)
    parts = {"masking": RandomMasking(ratio=0.6), "readout": GroupPixelReadout(),
             "decoder": DecoderSettings(width=14, depth=2, num_heads=2, positions=POSITIONS, class_position=True,
                                        mlp_width=10)}
    return stirred(build_objective(MultiScaleSettings(num_scales=num_scales, width=9, **parts) if num_scales else
                                   MaskedAutoencoderSettings(**parts), encoder))


def encoder_names(encoder: Encoder) -> dict[str, Tensor]:
    code, place = encoder.class_position, encoder.place_code
    zeros = torch.zeros(1, 1, place.grid.rows.shape[1])
    first, of_group = (zeros, None) if code is None else (code[..., :zeros.shape[2]], code[..., zeros.shape[2]:])
    out = {"cls_token": encoder.class_token, "pos_embed": torch.cat([first, place.grid.rows[None]], 1),
           "channel_embed": place.rows[None], **blocks_back(encoder.blocks, "blocks")}
    if of_group is not None:
        out["channel_cls_embed"] = of_group
    for i, layer in enumerate(encoder.tokenizer.project):
        out |= {f"patch_embed.{i}.proj.weight": layer.weight.unflatten(1, (len(GROUPS[i]), PATCH, PATCH)),
                f"patch_embed.{i}.proj.bias": layer.bias}
    return out


def decoder_names(model: MaskedAutoencoder | MultiScaleAutoencoder) -> dict[str, Tensor]:
    decoder, readout = model.decoder, model.readout
    rows = decoder.place_code.grid.rows
    first, of_group = decoder.class_position.split([rows.shape[1], 6], -1)
    out = {"mask_token": decoder.mask_token, "decoder_pos_embed": torch.cat([first, rows[None]], 1),
           "decoder_channel_embed": torch.cat([decoder.place_code.rows[None], of_group], 1),
           **layer_back(decoder.embed, "decoder_embed"), **blocks_back(decoder.blocks, "decoder_blocks"),
           **layer_back(decoder.norm, "decoder_norm")}
    for i, layer in enumerate(readout.project):
        out |= layer_back(layer, f"decoder_pred.{i}")
    return out


def upscale_names(model: MultiScaleAutoencoder, blocks: list[str], order: list[int]) -> dict[str, Tensor]:
    out = {"proj_up_conv.weight": model.upscale.widen.weight[:, order], "proj_up_conv.bias": model.upscale.widen.bias,
           **layer_back(model.upscale.norm, "proj_up_norm")}
    for name, step in zip(blocks, model.upscale.steps, strict=True):
        for theirs, ours in UP.items():
            out |= layer_back(step.get_submodule(ours), f"{name}.{theirs}")
    return out


def named(model: MaskedAutoencoder | MultiScaleAutoencoder) -> dict[str, Tensor]:
    out = encoder_names(model.encoder) | layer_back(model.encoder.norm, "norm") | decoder_names(model)
    if isinstance(model, MultiScaleAutoencoder):
        out |= upscale_names(model, [f"up_block{i + 1}" for i in range(len(model.upscale.steps))], SLOTS)
    return {name: value.detach().clone().contiguous() for name, value in out.items()}


@pytest.mark.parametrize("num_scales", [0, 1, 2, 3])
def test_pretrained_files_come_back_bit_for_bit_and_none_of_it_is_left(num_scales, tmp_path):
    model = pretrained(num_scales)
    path = tmp_path / "file.pth"
    args = argparse.Namespace(mask_ratio=0.6, norm_pix_loss=False)
    torch.save({"model": named(model), "epoch": 3, "args": args}, path)
    record = import_file(path, tmp_path / "out", given=GIVEN)
    assert record["family"] == "satmae" and not record["report"]["dropped"] and not record["report"]["not_in_file"]
    back, _ = load_imported(tmp_path / "out")
    assert back.encoder.settings == model.encoder.settings and type(back.objective) is type(model)
    for name, value in model.state_dict().items():
        assert torch.equal(back.objective.state_dict()[name], value), name
    x = torch.randn(6, 7, 6 * 2**num_scales, 12 * 2**num_scales)
    torch.testing.assert_close(back.objective(x, None, chance()), model(x, None, chance()))


def test_predictions_of_the_small_copy_are_turned_to_what_the_file_s_kernel_wants():
    model = pretrained(2)
    theirs = named(model)["proj_up_conv.weight"]
    image = torch.randn(2, 7, 6, 12)
    torch.testing.assert_close(model.upscale.widen(image),
                               conv2d(image[:, SLOTS], theirs, model.upscale.widen.bias))
    back = rebuild(translate(Published(named(model), given=GIVEN))).objective
    torch.testing.assert_close(back.upscale(image), model.upscale(image))


def test_embeddings_and_predictions_are_those_of_each_group_s_own_tensors():
    theirs = named(pretrained(0))
    made = rebuild(translate(Published(theirs, given=GIVEN)))
    x = torch.randn(2, 7, 6, 12)
    patches = made.encoder.tokenizer.patchify(x)
    embedded = made.encoder.tokenizer.embed(patches.values, patches.place).chunk(3, 1)
    decoded = torch.randn(2, 24, 14)
    image = made.encoder.tokenizer.unpatchify(made.objective.readout.guess(decoded, patches.place), (6, 12))
    for i, group in enumerate(GROUPS):
        weight, bias = (theirs[f"patch_embed.{i}.proj.{name}"] for name in ("weight", "bias"))
        expected = conv2d(x[:, list(group)], weight, bias, stride=PATCH).flatten(2).transpose(1, 2)
        torch.testing.assert_close(embedded[i], expected)
        weight, bias = (theirs[f"decoder_pred.{i}.{name}"] for name in ("weight", "bias"))
        said = linear(decoded.chunk(3, 1)[i], weight, bias).unflatten(2, (len(group), PATCH, PATCH))    # B L c p p
        for slot, band in enumerate(group):
            cell = image[:, band].unfold(1, PATCH, PATCH).unfold(2, PATCH, PATCH).flatten(1, 2)
            torch.testing.assert_close(cell, said[:, :, slot])


@pytest.mark.parametrize("pool", ["mean", "summary"])
def test_classifiers_come_back_with_the_class_token_s_position(pool):
    encoder = stirred(Encoder(EncoderSettings(
        tokenizer=BandGroups(groups=GROUPS, patch=(PATCH, PATCH)), size=Shape(20, 3, 5), class_position=True,
        positions=GridAndGroup(grid=Table(grid=GRID), channel_dim=6, learnt=True), mlp_width=28,
        last_norm=pool == "summary"), 7))
    norm = "layer" if pool == "mean" else "none"
    head = stirred(PredictSample(SampleHead(pool=pool, norm=norm, norm_eps=1e-6), 20, 4))
    norms = layer_back(head.norm, "fc_norm") if pool == "mean" else layer_back(encoder.norm, "norm")
    tensors = {name: value.detach().clone() for name, value in
               (encoder_names(encoder) | layer_back(head.output, "head") | norms).items()}
    made = rebuild(translate(Published(tensors, given=GIVEN)))
    assert made.objective is None and made.encoder.settings == encoder.settings
    x = torch.randn(2, 7, 6, 12)
    patches = encoder.tokenizer.patchify(x)
    torch.testing.assert_close(made.head(made.encoder(patches), patches, x), head(encoder(patches), patches, x))


def test_the_rgb_variant_is_mae_with_one_larger_scale():
    encoder = Encoder(EncoderSettings(tokenizer=Grid(patch=(4, 4)), size=Shape(20, 3, 5), positions=Table(
        grid=(3, 3), learnt=False), mlp_width=28), 3)
    model = stirred(build_objective(MultiScaleSettings(
        masking=RandomMasking(ratio=0.5), readout=PixelReadout(), num_scales=1, width=12, decoder=DecoderSettings(
            width=14, depth=2, num_heads=2, positions=Table(grid=(3, 3), learnt=False), mlp_width=10)), encoder))
    tensors = {**mae.export(encoder, (12, 12), objective=model),
               **upscale_names(model, ["up_block"], [0, 1, 2])}
    file = Published(tensors, args={"mask_ratio": 0.5}, given={"num_heads": 5, "decoder_num_heads": 2})
    found = translate(file)
    assert found.family == "satmae" and set(found.names) == set(tensors) and "Apache" in found.licence
    assert contract_of(found).names == ("B", "G", "R")
    back = rebuild(found).objective
    x = torch.randn(6, 3, 24, 24)
    torch.testing.assert_close(back(x, None, chance()), model(x, None, chance()))


def test_mae_takes_no_file_of_this_family_and_this_takes_none_of_mae():
    group, plus = (Published({name: value.detach() for name, value in named(pretrained(n)).items()}) for n in (0, 2))
    assert not mae.recognise(group) and not mae.recognise(plus)
    model = MaskedAutoencoder(MaskedAutoencoderSettings(decoder=DecoderSettings(width=16, depth=1, num_heads=2)),
                              Encoder(EncoderSettings(tokenizer=Grid(patch=(4, 4)), size=Shape(20, 1, 5)), 3))
    exported = Published(mae.export(model.encoder, (12, 12), objective=model))
    assert mae.recognise(exported)
    assert translate(Published(exported.tensors, given={"num_heads": 5, "decoder_num_heads": 2})).family == "mae"


def test_groups_come_from_the_user_the_file_or_a_published_model_and_are_never_guessed():
    tensors = named(pretrained(0))
    given = {key: value for key, value in GIVEN.items() if key != "groups"}
    args = {"grouped_bands": GIVEN["groups"], "spatial_mask": True, "norm_pix_loss": True}
    found = translate(Published(tensors, args, given))
    assert found.settings["encoder"].tokenizer.groups == GROUPS
    assert found.settings["objective"].masking == ConsistentMasking(ratio=0.75)
    assert found.settings["objective"].readout.normalise_patch
    other = [[6, 5, 4], [0], [1, 2, 3]]
    assert translate(Published(tensors, args, {**given, "groups": other})).settings["encoder"].tokenizer.groups == \
        tuple(map(tuple, other))
    with pytest.raises(CannotImport, match=r"--set groups="):
        translate(Published(tensors, {}, given))
    with pytest.raises(CannotImport, match=r"expected groups of \[3, 1, 3\]"):
        translate(Published(tensors, {}, {**given, "groups": [[0, 1], [2, 3], [4, 5, 6]]}))
    with pytest.raises(CannotImport, match="every band once"):
        translate(Published(tensors, {}, {**given, "groups": [[0, 1, 2], [2], [4, 5, 6]]}))


def test_the_published_size_needs_nothing_said_and_names_its_bands():
    """Names and shapes of the large model, on a device that holds no numbers."""
    with torch.device("meta"):
        tensors = {"cls_token": torch.empty(1, 1, 1024), "pos_embed": torch.empty(1, 145, 768),
                   "channel_embed": torch.empty(1, 3, 256)}
        for i, bands in enumerate((4, 4, 2)):
            tensors |= {f"patch_embed.{i}.proj.weight": torch.empty(1024, bands, 8, 8),
                        f"patch_embed.{i}.proj.bias": torch.empty(1024)}
        for i in range(24):
            tensors |= {f"blocks.{i}.mlp.fc1.weight": torch.empty(4096, 1024),
                        f"blocks.{i}.attn.qkv.weight": torch.empty(3072, 1024)}
    found = translate(Published(tensors))
    encoder = found.settings["encoder"]
    assert encoder.shape == Shape(1024, 24, 16) and found.size == (96, 96)
    assert encoder.tokenizer.groups == ((0, 1, 2, 6), (3, 4, 5, 7), (8, 9))
    contract = contract_of(found)
    assert contract.names == ("B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B11", "B12")
    first = contract.channels[0]
    assert ((first.low - first.mean) / first.std, (first.high - first.mean) / first.std) == pytest.approx((0, 1))
    unknown = contract_of(translate(Published(named(pretrained(0)), given=GIVEN)))
    assert unknown.names[0] == "channel 0"
