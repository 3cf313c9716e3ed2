"""Point-MAE's files at sizes other than the recorded ones: round trips bit for bit, the published counts, refusals."""

import dataclasses

import pytest
import torch

from domains.contract import enforce
from domains.pointcloud import ingest
from models.encoder.chance import chance_of
from models.encoder.masking import RandomMasking
from models.encoder.tokenizers import Groups
from models.encoder.transformer import Encoder, EncoderSettings, Shape
from models.heads.predict_sample import PredictSample, SampleHead
from models.objectives.decoders import DecoderSettings
from models.objectives.masked_autoencoder import MaskedAutoencoder, MaskedAutoencoderSettings
from models.objectives.readouts import ChamferReadout
from models.published.families import translate
from models.published.point_mae import export
from models.published.rebuild import rebuild
from models.published.translation import CannotImport, Published
from pipelines.weights.import_published import contract_of, import_file, load_imported

GIVEN = {"num_heads": 5, "decoder_num_heads": 3, "num_groups": 9, "group_size": 7, "num_points": 50, "mask_ratio": 0.45}
SMALL = Shape(30, 3, 5)


def pretrained(shape=SMALL, decoder=(2, 3), groups=(9, 7), widths=(6, 10, 14)) -> MaskedAutoencoder:
    encoder = Encoder(EncoderSettings(
        tokenizer=Groups(num_groups=groups[0], group_size=groups[1], widths=widths, sampling="pointnet2"), size=shape,
        class_token=False, place_every_block=True, qkv_bias=False, norm_eps=1e-5, embed_hidden=True), 3)
    settings = MaskedAutoencoderSettings(
        masking=RandomMasking(ratio=0.45, round_hidden="down"), readout=ChamferReadout(),
        decoder=DecoderSettings(width=shape.width, depth=decoder[0], num_heads=decoder[1], place_every_block=True,
                                project=False, qkv_bias=False, norm_eps=1e-5))
    return perturbed(MaskedAutoencoder(settings, encoder))


def tuned() -> tuple[Encoder, PredictSample]:
    encoder = Encoder(EncoderSettings(
        tokenizer=Groups(num_groups=9, group_size=7, widths=(6, 10, 14), sampling="pointnet2"), size=SMALL,
        class_position=True, place_every_block=True, qkv_bias=False, norm_eps=1e-5), 3)
    head = PredictSample(SampleHead(pool="summary_max", norm="none", layers=(20, 11, 8)), 30, 13)
    return perturbed(encoder), perturbed(head)


def perturbed(module):
    """Batch norms as after some training, so that no statistic is 0 or 1."""
    torch.manual_seed(1)
    for value in module.state_dict().values():
        value.copy_(torch.rand(value.shape) + 0.1 if value.is_floating_point() else torch.tensor(17))
    return module.eval()


def read(tensors, **given):
    return rebuild(translate(Published(tensors, given={**GIVEN, **given})))


def points(count: int = 50) -> torch.Tensor:
    return torch.randn(4, count, 3, generator=torch.Generator().manual_seed(3))


def chance():
    return chance_of(0, 0, 0, torch.arange(4), torch.zeros(4, dtype=torch.int64))


def test_the_published_size_has_the_published_number_of_tensors_and_parameters():
    made = pretrained(Shape(384, 12, 6), (4, 6), (64, 32), (128, 256, 512))
    tensors = export(made.encoder, (1024,), made)
    counters = ("running_mean", "running_var", "num_batches_tracked")
    assert len(tensors) == 209
    assert sum(value.numel() for name, value in tensors.items() if not name.endswith(counters)) == 29_006_432
    assert tensors["MAE_encoder.encoder.second_conv.3.weight"].shape == (384, 512, 1)
    assert tensors["increase_dim.0.weight"].shape == (96, 384, 1)
    found = translate(Published(tensors))  # of this size everything is known
    assert found.settings["encoder"].tokenizer == made.encoder.settings.tokenizer
    assert found.settings["encoder"].shape == Shape(384, 12, 6) and found.size == (1024,)
    masking = found.settings["objective"].masking
    assert masking == RandomMasking(ratio=0.6, round_hidden="down")


def test_a_pretraining_goes_out_and_comes_back_bit_for_bit():
    made = pretrained()
    tensors = export(made.encoder, (50,), made)
    back = read(tensors)
    assert all(torch.equal(value, back.objective.state_dict()[name]) for name, value in made.state_dict().items())
    again = export(back.encoder, (50,), back.objective)
    assert list(again) == list(tensors) and all(torch.equal(again[name], tensors[name]) for name in tensors)
    torch.testing.assert_close(back.objective(points(), None, chance()), made(points(), None, chance()))


def test_a_classifier_goes_out_and_comes_back_bit_for_bit():
    encoder, head = tuned()
    tensors = export(encoder, (50,), head=head)
    back = read(tensors)
    patches = encoder.tokenizer.patchify(points())
    assert torch.equal(back.head(back.encoder(patches), patches, points()), head(encoder(patches), patches, points()))
    again = export(back.encoder, (50,), head=back.head)
    assert list(again) == list(tensors) and all(torch.equal(again[name], tensors[name]) for name in tensors)
    assert back.head.settings.layers == (20, 11, 8) and len(back.head.output.bias) == 13


def test_a_file_as_the_release_wraps_it_is_imported_and_fits_unit_sphere_clouds(tmp_path):
    made = pretrained()
    tensors = {f"module.{name}": value for name, value in export(made.encoder, (50,), made).items()}
    torch.save({"base_model": tensors, "optimizer": {}, "epoch": 3, "metrics": {}, "best_metrics": {}},
               tmp_path / "pretrain.pth")
    record = import_file(tmp_path / "pretrain.pth", tmp_path / "out", given=GIVEN)
    assert record["family"] == "point_mae" and len(record["report"]["mapped"]) == len(tensors)
    back, _ = load_imported(tmp_path / "out")
    torch.testing.assert_close(back.objective(points(), None, chance()), made(points(), None, chance()))
    found = translate(Published(export(made.encoder, (50,), made), given=GIVEN))
    assert not enforce(ingest.contract(ingest.Points(size=(50,))), contract_of(found))


def test_what_weights_do_not_tell_is_asked_for_by_name():
    encoder, head = tuned()
    tensors = export(encoder, (50,), head=head)
    for name in ("num_heads", "num_groups", "group_size", "num_points"):
        given = {key: value for key, value in GIVEN.items() if key != name}
        with pytest.raises(CannotImport, match=f"--set {name}="):
            translate(Published(tensors, given=given))


def test_a_missing_tensor_is_named():
    made = pretrained()
    tensors = export(made.encoder, (50,), made)
    del tensors["MAE_encoder.encoder.first_conv.1.running_var"]
    with pytest.raises(CannotImport, match=r"encoder\.tokenizer\.point\.1\.running_var: found none"):
        read(tensors)


@pytest.mark.parametrize("change", [{"qkv_bias": True}, {"norm_eps": 1e-6}, {"place_every_block": False},
                                    {"class_token": True}])
def test_what_the_layout_cannot_hold_is_not_written(change):
    settings = dataclasses.replace(pretrained().encoder.settings, **change)
    with pytest.raises(CannotImport, match="Point-MAE's layout holds"):
        export(Encoder(settings, 3), (50,))


def test_a_head_or_a_decoder_that_the_layout_cannot_hold_is_not_written():
    encoder, _ = tuned()
    with pytest.raises(CannotImport, match=r"layers: \[256, 256\]"):
        export(encoder, (50,), head=PredictSample(SampleHead(), 30, 13))
    made = pretrained()
    other = MaskedAutoencoder(MaskedAutoencoderSettings(
        readout=ChamferReadout(), decoder=DecoderSettings(width=12, depth=1, num_heads=2)), made.encoder)
    with pytest.raises(CannotImport, match="project: false"):
        export(made.encoder, (50,), other)


def test_the_published_rules_hide_38_of_64():
    made = pretrained()
    mask = RandomMasking(ratio=0.6, round_hidden="down")(
        made.encoder.tokenizer.patchify(points())._replace(place=torch.zeros(4, 64, 3)), chance())
    assert mask.hidden.shape[1] == 38
