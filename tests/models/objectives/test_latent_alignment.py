"""Latent alignment: codes of hidden patches are regressed from seen ones, and everything decoded goes through them."""

import pytest
import torch

from models.encoder.masking import BlockMasking, ChannelMasking, RandomMasking
from models.encoder.patches import Mask, Patches
from models.encoder.tokenizers import Grid, Groups
from models.encoder.transformer import EncoderSettings
from models.objectives.latent_alignment import LatentAlignment, LatentAlignmentSettings
from models.objectives.objective import build_objective
from models.objectives.readouts import ChamferReadout
from pipelines.pretrain import PretrainRun
from pipelines.settings import build
from tests.models.objectives.tiny import (
    BATCH,
    chance,
    encoder,
    partly_known,
    samples,
    split,
    train,
    trainable,
    with_hidden_overwritten,
)

SMALL = {"regressor_depth": 2, "decoder_depth": 1}
SETTINGS = {"image": LatentAlignmentSettings(**SMALL),
            "volume": LatentAlignmentSettings(masking=BlockMasking(ratio=0.5), **SMALL),
            "bands": LatentAlignmentSettings(masking=ChannelMasking(ratio=0.5), **SMALL),
            "points": LatentAlignmentSettings(readout=ChamferReadout(), **SMALL)}


def make(case: str) -> tuple[LatentAlignment, torch.Tensor]:
    model = build_objective(SETTINGS[case], encoder(case))
    assert isinstance(model, LatentAlignment)
    return model, samples(case)


@pytest.mark.parametrize("case", SETTINGS)
def test_the_loss_falls_on_one_batch_and_every_weight_gets_a_gradient(case):
    model, x = make(case)
    losses, touched = train(model, x)
    assert sum(losses[-4:]) < 0.85 * sum(losses[:4])
    assert touched == trainable(model)


@pytest.mark.parametrize("case", ["image", "points"])
def test_regressed_codes_come_closer_to_the_encoder_s_own(case):
    model, x = make(case)
    first = float(model(x, None, chance())["alignment"].detach())
    train(model, x)
    assert float(model(x, None, chance())["alignment"].detach()) < 0.5 * first


def test_codes_do_not_collapse_while_they_are_aligned():
    """The decoder must restore patches from them, so they cannot all become the same."""
    model, x = make("image")
    train(model, x)
    patches = model.encoder.tokenizer.patchify(x)
    mask = model.masking(patches, chance())
    assert model.encode_hidden(patches, mask).std(1).mean() > 0.2


def test_what_is_hidden_does_not_reach_the_prediction():
    model, x = make("image")
    model.eval()
    result = model.reconstruct(x, None, chance())
    other = with_hidden_overwritten(model, x, result)
    assert torch.equal(model.reconstruct(other, None, chance()).predicted, result.predicted)


def test_the_target_is_the_encoder_on_hidden_patches_alone_and_has_no_gradient():
    model, x = make("image")
    model.eval()
    patches = model.encoder.tokenizer.patchify(x)
    mask = model.masking(patches, chance())
    target = model.encode_hidden(patches, mask)
    assert not target.requires_grad
    torch.testing.assert_close(target, model.encoder(patches, Mask(mask.hidden, mask.hidden[:, :0])).tokens)
    values = patches.values.scatter(1, mask.visible[..., None].expand(-1, -1, 16), 99.0)
    assert torch.equal(model.encode_hidden(patches._replace(values=values), mask), target)


def test_the_decoder_knows_nothing_but_codes_and_places():
    model, x = make("image")
    model.eval()
    patches = model.encoder.tokenizer.patchify(x)
    mask = model.masking(patches, chance())
    codes = model.regress(patches, mask)
    blank = patches._replace(values=torch.zeros_like(patches.values))
    assert torch.equal(model.decode(codes, patches, mask), model.decode(codes, blank, mask))


@pytest.mark.parametrize("case", ["image", "bands"])
def test_unknown_values_are_neither_seen_nor_scored_and_a_sample_with_nothing_hidden_is_no_nan(case):
    model, x = make(case)
    known = partly_known(case, x)
    known[3] = False
    known[3, :1, :4, :4] = True  # one patch: seen, nothing hidden
    x = x.masked_fill(~known, 0.0)
    losses = model(x, known, chance())
    torch.stack(list(losses.values())).sum().backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    model.eval()
    patches = model.encoder.tokenizer.patchify(x, known)
    mask = model.masking(patches, chance())
    decoded = model.decode(model.regress(patches, mask), patches, mask)
    garbage = Patches(patches.values.masked_fill(~patches.known, 1e6), patches.place, patches.known, patches.grid)
    assert torch.equal(model.readout(decoded, x, garbage, mask), model.readout(decoded, x, patches, mask))


def test_no_nan_without_a_class_token_either():
    model = LatentAlignment(SETTINGS["image"], encoder("image", class_token=False))
    x, known = samples("image"), torch.ones_like(samples("image"), dtype=torch.bool)
    known[0] = False
    known[0, :, :4, :4] = True
    losses = model(x.masked_fill(~known, 0.0), known, chance())
    torch.stack(list(losses.values())).sum().backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_filler_at_the_end_of_the_lists_changes_nothing():
    model, x = make("image")
    model.eval()
    patches = model.encoder.tokenizer.patchify(x)
    plain, padded = split(9, 36), split(9, 36, filler=2)
    one, two = model.regress(patches, plain), model.regress(patches, padded)
    torch.testing.assert_close(two[:, :27], one)
    torch.testing.assert_close(model.encode_hidden(patches, padded)[:, :27], model.encode_hidden(patches, plain))
    torch.testing.assert_close(model.decode(two, patches, padded)[:, :27], model.decode(one, patches, plain))


def test_the_alignment_is_the_weighted_mean_of_squares_over_hidden_patches_that_there_are():
    model, x = make("image")
    model.eval()
    known = partly_known("image", x)
    patches = model.encoder.tokenizer.patchify(x * known, known)
    mask = model.masking(patches, chance())
    assert mask.hidden_valid is not None and not mask.hidden_valid.all(), "the case has filler"
    square = (model.regress(patches, mask) - model.encode_hidden(patches, mask)).square().mean(-1)
    by_hand = torch.stack([row[valid].mean() for row, valid in zip(square, mask.hidden_valid, strict=True)]).mean()
    torch.testing.assert_close(model(x * known, known, chance())["alignment"], 2 * by_hand)


def test_a_query_knows_its_own_place_and_looks_at_the_other_queries():
    model, x = make("image")
    model.eval()
    patches = model.encoder.tokenizer.patchify(x)
    mask = Mask(torch.arange(9).expand(BATCH, -1), torch.tensor([20, 30, 35]).expand(BATCH, -1))
    codes = model.regress(patches, mask)
    assert float((codes[:, 0] - codes[:, 1]).detach().abs().amax(-1).min()) > 0.01
    turned = model.regress(patches, mask._replace(hidden=mask.hidden.flip(1)))
    torch.testing.assert_close(turned.flip(1), codes)
    fewer = model.regress(patches, mask._replace(hidden=mask.hidden[:, :2]))
    assert float((fewer[:, 0] - codes[:, 0]).detach().abs().max()) > 1e-4
    moved = model.regress(patches, mask._replace(hidden=torch.tensor([20, 30, 12]).expand(BATCH, -1)))
    assert float((moved[:, 0] - codes[:, 0]).detach().abs().max()) > 1e-4, "what the others ask for is seen too"


def test_equal_codes_are_decoded_by_their_places():
    model, x = make("image")
    model.eval()
    patches = model.encoder.tokenizer.patchify(x)
    mask = Mask(torch.arange(9).expand(BATCH, -1), torch.tensor([20, 30, 35]).expand(BATCH, -1))
    decoded = model.decode(torch.zeros(BATCH, 3, 24), patches, mask).detach()
    assert float((decoded[:, 0] - decoded[:, 1]).abs().amax(-1).min()) > 0.1
    turned = model.decode(torch.zeros(BATCH, 3, 24), patches, mask._replace(hidden=mask.hidden.flip(1))).detach()
    torch.testing.assert_close(turned.flip(1), decoded)


@pytest.mark.parametrize(("tokenizer", "changes", "said"), [
    (Groups(), {}, "groups of points take chamfer"),
    (Grid(), {"masking": ChannelMasking()}, "needs one token per band")])
def test_combinations_that_mean_nothing_are_refused_with_the_reason(tokenizer, changes, said):
    with pytest.raises(ValueError, match=said):
        LatentAlignmentSettings(**changes).fits(EncoderSettings(tokenizer=tokenizer))
    with pytest.raises(ValueError, match="expected at least 1"):
        LatentAlignmentSettings(regressor_depth=0)


def test_it_is_reached_by_a_paragraph_of_params():
    run = build(PretrainRun, {"domain": "medical", "data": "films", "objective": {
        "kind": "latent_alignment", "regressor_depth": 2, "masking": {"kind": "random", "ratio": 0.5}}}, "test")
    assert run.objective == LatentAlignmentSettings(regressor_depth=2, masking=RandomMasking(ratio=0.5))
