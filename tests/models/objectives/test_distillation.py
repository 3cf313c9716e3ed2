"""Distillation: a frozen teacher, under the student's own mask or seeing everything; what it says is what is learnt."""

import dataclasses

import pytest
import torch

from models.encoder.masking import ChannelMasking, RandomMasking
from models.encoder.patches import see_all, take
from models.encoder.tokenizers import Bands, Grid, Groups
from models.encoder.transformer import Encoder, EncoderSettings, Shape
from models.objectives.decoders import DecoderSettings
from models.objectives.distillation import (
    Distillation,
    DistillationSettings,
    MatchBlocks,
    MatchDecoder,
    check_teacher,
)
from models.objectives.objective import build_objective
from models.objectives.readouts import ChamferReadout
from tests.models.objectives.tiny import TOKENIZERS, chance, encoder, partly_known, samples, split, train, trainable

DECODER = DecoderSettings(width=16, depth=1, num_heads=2)
MATCHES = {"blocks": {"match": MatchBlocks()}, "decoder": {"match": MatchDecoder(), "reconstruction_weight": 0.0}}
MORE = {"image": {}, "volume": {}, "bands": {"masking": ChannelMasking(ratio=0.5)},
        "points": {"readout": ChamferReadout(), "masking": RandomMasking(ratio=0.5)}}


def teacher_of(case: str, **changes) -> Encoder:
    """Wider and deeper than the student, with other weights."""
    one = encoder(case, **{"size": Shape(32, 4, 4), "class_token": False, **changes})
    torch.manual_seed(7)
    with torch.no_grad():
        for weight in one.parameters():
            weight.add_(0.02 * torch.randn_like(weight))
    return one


def make(case: str, match: str = "blocks") -> tuple[Distillation, torch.Tensor]:
    settings = DistillationSettings(decoder=DECODER, **MORE[case], **MATCHES[match])
    model = build_objective(settings, encoder(case), teacher_of(case))
    assert isinstance(model, Distillation)
    return model, samples(case)


@pytest.mark.parametrize("match", MATCHES)
@pytest.mark.parametrize("case", MORE)
def test_the_loss_falls_on_one_batch_and_every_weight_but_the_teacher_s_gets_a_gradient(case, match):
    model, x = make(case, match)
    before = {name: value.clone() for name, value in model.teacher.state_dict().items()}
    losses, touched = train(model, x, steps=40)
    assert sum(losses[-4:]) < 0.9 * sum(losses[:4])
    assert touched == trainable(model) and not any(name.startswith("teacher.") for name in touched)
    after = model.teacher.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items()), "batch statistics included"


@pytest.mark.parametrize("match", MATCHES)
def test_the_student_comes_closer_to_the_teacher(match):
    model, x = make("image", match)
    first = float(model(x, None, chance())["distillation"].detach())
    train(model, x)
    assert float(model(x, None, chance())["distillation"].detach()) < 0.6 * first


def test_a_student_that_says_what_the_teacher_says_has_no_loss():
    """The same encoder on both sides, and projections that change nothing."""
    one, same = encoder("image"), encoder("image")
    model = Distillation(DistillationSettings(decoder=DECODER), one, same)
    with torch.no_grad():
        model.project.weight.copy_(torch.eye(24))
        model.project.bias.zero_()
    assert model.eval()(samples("image"), None, chance())["distillation"] < 1e-6


def test_blocks_three_quarters_up_are_compared_unless_others_are_named_and_later_ones_are_dropped():
    image = {"tokenizer": TOKENIZERS["image"]}
    large = Encoder(EncoderSettings(size=Shape(16, 24, 2), **image), 1)
    base = Encoder(EncoderSettings(size=Shape(8, 12, 2), **image), 1)
    model = Distillation(DistillationSettings(decoder=DECODER), base, large)
    assert (model.student_block, model.teacher_block, len(model.teacher.blocks)) == (8, 17, 18)
    named = Distillation(DistillationSettings(decoder=DECODER, match=MatchBlocks(student_block=1, teacher_block=0)),
                         encoder("image"), teacher_of("image"))
    assert (named.student_block, len(named.teacher.blocks)) == (1, 1)


def test_a_teacher_of_blocks_sees_what_the_student_sees_and_nothing_else():
    model, x = make("image")
    model.eval()
    patches = model.encoder.tokenizer.patchify(x)
    mask = model.masking(patches, chance())
    values = patches.values.scatter(1, mask.hidden[..., None].expand(-1, -1, 16), 99.0)
    features, _ = model.restore(patches, mask, (model.student_block,))
    assert torch.equal(model.compare_blocks(features, patches, mask),
                       model.compare_blocks(features, patches._replace(values=values), mask))


def test_a_teacher_of_decoders_sees_everything_and_is_compared_everywhere():
    model, x = make("image", "decoder")
    model.eval()
    patches = model.encoder.tokenizer.patchify(x)
    mask = model.masking(patches, chance())
    _, decoded = model.restore(patches, mask)
    target = take(model.teacher(patches, see_all(patches)).tokens, torch.cat([mask.visible, mask.hidden], 1))
    wanted = torch.nn.functional.smooth_l1_loss(model.project(decoded), target, beta=2.0)
    torch.testing.assert_close(model.compare_decoded(decoded, patches, mask, 2.0), wanted)


def test_without_weight_the_restored_patches_teach_the_readout_alone():
    model, x = make("image", "decoder")
    model(x, None, chance())["reconstruction"].backward()
    moved = {name for name, p in model.named_parameters() if p.grad is not None}
    assert moved == {"readout.project.weight", "readout.project.bias"}


def test_the_teacher_stays_in_eval_mode():
    model, _ = make("points")
    model.train()
    assert model.training and not any(module.training for module in model.teacher.modules())


def test_a_teacher_of_more_bands_is_given_its_own_numbers_for_them():
    student, wise = encoder("bands"), Encoder(EncoderSettings(tokenizer=TOKENIZERS["bands"], size=Shape(32, 2, 4)), 5)
    wise.tokenizer.read_channels((4, 0, 2))
    settings = DistillationSettings(decoder=DECODER, **MORE["bands"])
    model = Distillation(settings, student, wise).eval()
    x = samples("bands")
    patches = student.tokenizer.patchify(x)
    theirs = model.patches_of_teacher(patches, x, None)
    assert theirs.place[0, :, 0].unique().tolist() == [0, 2, 4] and torch.equal(theirs.values, patches.values)
    assert model(x, None, chance())["distillation"].isfinite()
    own = Distillation(settings, encoder("bands"), teacher_of("bands"))
    assert own.patches_of_teacher(patches, x, None) is patches


@pytest.mark.parametrize("match", MATCHES)
@pytest.mark.parametrize("case", ["image", "bands"])
def test_unknown_values_reach_no_loss(case, match):
    model, x = make(case, match)
    known = partly_known(case, x)
    known[3] = False
    known[3, :1, :4, :4] = True
    x = x.masked_fill(~known, 0.0)
    losses = model(x, known, chance())
    torch.stack(list(losses.values())).sum().backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_filler_at_the_end_of_the_lists_changes_nothing():
    plain, padded = split(9, 36), split(9, 36, filler=2)
    for match in MATCHES:
        model, x = make("image", match)
        model.eval()
        patches = model.encoder.tokenizer.patchify(x)
        told = []
        for mask in (plain, padded):
            features, decoded = model.restore(patches, mask, (1,))
            told.append(model.compare_blocks(features, patches, mask) if match == "blocks"
                        else model.compare_decoded(decoded, patches, mask, 2.0))
        torch.testing.assert_close(told[0], told[1])


@pytest.mark.parametrize(("theirs", "said"), [
    (Grid(patch=(8, 8)), "must cut a sample into the same patches"), (Bands(patch=(4, 4)), "the same patches")])
def test_a_teacher_that_cuts_other_patches_is_refused(theirs, said):
    with pytest.raises(ValueError, match=said):
        check_teacher(encoder("image"), Encoder(EncoderSettings(tokenizer=theirs, size=Shape(32, 2, 4)), 1))
    with pytest.raises(ValueError, match="found Linear, expected a transformer"):
        check_teacher(encoder("image"), torch.nn.Linear(1, 1))


def test_a_teacher_of_points_may_have_a_wider_network_for_a_group():
    wide = Groups(num_groups=12, group_size=8, widths=(32, 48, 64))
    check_teacher(encoder("points"), Encoder(EncoderSettings(tokenizer=wide, size=Shape(32, 2, 4)), 3))


def test_settings_that_mean_nothing_are_refused_with_the_reason():
    with pytest.raises(ValueError, match="nothing would train the decoder"):
        DistillationSettings(reconstruction_weight=0.0)
    with pytest.raises(ValueError, match="teacher_block: found 4, expected 0 to 3"):
        Distillation(DistillationSettings(match=MatchBlocks(teacher_block=4)), encoder("image"), teacher_of("image"))
    with pytest.raises(ValueError, match="found no teacher, expected one for distillation alone"):
        build_objective(DistillationSettings(), encoder("image"))


@pytest.mark.parametrize("normalise", [True, False])
def test_blocks_are_compared_by_the_mean_absolute_difference_of_each_sample_s_seen_patches(normalise):
    model, x = make("image")
    model.eval().match = MatchBlocks(normalise=normalise)
    patches, mask = model.encoder.tokenizer.patchify(x), split(9, 36, filler=2)
    features, _ = model.restore(patches, mask, (model.student_block,))
    own = model.project(features.layers[0][:, -11:])[:, :9].detach().double()
    told = model.teacher(patches, mask, (model.teacher_block,)).layers[0][:, -11:][:, :9].double()
    if normalise:
        own, told = (one / one.square().sum(-1, keepdim=True).sqrt() for one in (own, told))
    found = model.compare_blocks(features, patches, mask).detach().double()
    torch.testing.assert_close(found, (own - told).abs().mean(), rtol=1e-5, atol=0)


def test_directions_are_compared_unless_asked_otherwise():
    model, x = make("image", "blocks")
    model.eval()
    before = model(x, None, chance())["distillation"].detach()
    with torch.no_grad():
        model.project.weight *= 3
        model.project.bias *= 3
    torch.testing.assert_close(model(x, None, chance())["distillation"].detach(), before)
    model.match = dataclasses.replace(model.match, normalise=False)
    assert abs(float(model(x, None, chance())["distillation"].detach() - before)) > 0.01
