import pytest
import torch

from models.encoder.masking import BlockMasking, CellMasking, ChannelMasking, RandomMasking
from models.encoder.patches import Mask, Patches, take
from models.encoder.tokenizers import Bands, Grid, Groups
from models.encoder.transformer import EncoderSettings
from models.objectives.masked_autoencoder import MaskedAutoencoder, MaskedAutoencoderSettings
from models.objectives.objective import build_objective
from models.objectives.readouts import ChamferReadout, PixelReadout
from models.objectives.simmim import SimMIM, SimMIMSettings
from pipelines.pretrain import PretrainRun
from pipelines.settings import build
from tests.models.objectives.tiny import (
    chance,
    encoder,
    partly_known,
    samples,
    split,
    train,
    trainable,
    with_hidden_overwritten,
)

SETTINGS = {"image": SimMIMSettings(), "volume": SimMIMSettings(masking=CellMasking(ratio=0.5, cell=(2, 1, 1))),
            "bands": SimMIMSettings(masking=ChannelMasking(ratio=0.5)),
            "points": SimMIMSettings(masking=BlockMasking(ratio=0.5), readout=ChamferReadout(distance="l1"))}


def make(case: str) -> tuple[SimMIM, torch.Tensor]:
    model = build_objective(SETTINGS[case], encoder(case))
    assert isinstance(model, SimMIM)
    return model, samples(case)


@pytest.mark.parametrize("case", SETTINGS)
def test_the_loss_falls_on_one_batch_and_every_weight_gets_a_gradient(case):
    model, x = make(case)
    losses, touched = train(model, x)
    assert sum(losses[-4:]) < 0.85 * sum(losses[:4])
    assert touched == trainable(model)


@pytest.mark.parametrize("case", ["image", "volume", "bands"])
def test_what_is_hidden_does_not_reach_the_prediction(case):
    model, x = make(case)
    model.eval()
    result = model.reconstruct(x, None, chance())
    other = with_hidden_overwritten(model, x, result)
    assert torch.equal(model.reconstruct(other, None, chance()).predicted, result.predicted)


def test_the_loss_is_the_mean_absolute_difference_of_hidden_values():
    model, x = make("image")
    model.eval()
    result = model.reconstruct(x, None, chance())
    wanted = (result.predicted - take(result.patches.values, result.mask.hidden)).abs().mean()
    torch.testing.assert_close(model(x, None, chance())["reconstruction"], wanted)


def test_the_encoder_sees_the_whole_sequence_and_is_told_where_the_hidden_patches_are():
    model, x = make("image")
    model.eval()
    lengths = []
    model.encoder.blocks[0].register_forward_hook(lambda block, given, out: lengths.append(out.shape[1]))
    result = model.reconstruct(x, None, chance())
    assert lengths == [1 + 36]  # class token and every patch
    spread = model.restore(result.patches, result.mask).std(1).mean()
    assert spread > 1e-3, "mask tokens at different places come out different"


def test_the_order_of_the_lists_changes_nothing():
    model, x = make("image")
    model.eval()
    patches = model.encoder.tokenizer.patchify(x)
    mask = model.masking(patches, chance())
    turned = Mask(mask.visible.flip(1), mask.hidden.flip(1))
    torch.testing.assert_close(model.restore(patches, turned).flip(1), model.restore(patches, mask), rtol=1e-4,
                               atol=1e-5)


@pytest.mark.parametrize("case", ["image", "bands"])
def test_unknown_values_are_neither_seen_nor_scored(case):
    model, x = make(case)
    model.eval()
    known = partly_known(case, x)
    x = x.masked_fill(~known, 0.0)
    first = model(x, known, chance())["reconstruction"]
    patches = model.encoder.tokenizer.patchify(x, known)
    mask = model.masking(patches, chance())
    garbage = Patches(patches.values.masked_fill(~patches.known, 1e6), patches.place, patches.known, patches.grid)
    assert torch.equal(model.readout(model.restore(patches, mask), x, garbage, mask), first)


def test_filler_at_the_end_of_the_lists_changes_nothing():
    model, x = make("image")
    model.eval()
    patches = model.encoder.tokenizer.patchify(x)
    plain, padded = split(9, 36), split(9, 36, filler=2)
    torch.testing.assert_close(model.restore(patches, padded)[:, :27], model.restore(patches, plain))


def test_mask_tokens_leave_the_plain_encoder_as_it_is():
    """The seam is the encoder's own road: handing the seen tokens alone to `encode` is what its forward does."""
    one = encoder("image")
    x = samples("image")
    patches = one.tokenizer.patchify(x)
    mask = RandomMasking()(patches, chance())
    whole, handed = one(patches, mask, (0, 1)), one.encode(*one.embed(patches, mask.visible), None, (0, 1))
    assert torch.equal(whole.tokens, handed.tokens) and torch.equal(whole.summary, handed.summary)
    assert all(torch.equal(a, b) for a, b in zip(whole.layers, handed.layers, strict=True))


def test_it_costs_more_tokens_in_the_encoder_than_a_masked_autoencoder():
    x = samples("image")
    lengths = {}
    for name, made in (("mae", MaskedAutoencoder(MaskedAutoencoderSettings(), encoder("image"))),
                       ("simmim", SimMIM(SimMIMSettings(), encoder("image")))):
        made.encoder.blocks[0].register_forward_hook(
            lambda block, given, out, name=name: lengths.update({name: out.shape[1]}))
        made(x, None, chance())
    assert lengths == {"mae": 1 + 9, "simmim": 1 + 36}


@pytest.mark.parametrize(("tokenizer", "changes", "said"), [
    (Groups(), {}, "groups of points take chamfer"),
    (Groups(), {"readout": ChamferReadout()}, "groups of points lie on none. Take masking block"),
    (Grid(), {"masking": CellMasking(cell=(2, 2, 2))}, "found cell .2, 2, 2., expected 2 sizes"),
    (Bands(), {"masking": CellMasking(cell=(2, 2, 2))}, "expected 2 sizes"),
    (Grid(), {"masking": ChannelMasking()}, "needs one token per band")])
def test_combinations_that_mean_nothing_are_refused_with_the_reason(tokenizer, changes, said):
    with pytest.raises(ValueError, match=said):
        SimMIMSettings(**changes).fits(EncoderSettings(tokenizer=tokenizer))


def test_it_is_reached_by_a_paragraph_of_params():
    run = build(PretrainRun, {"domain": "medical", "data": "films", "objective": {
        "kind": "simmim", "masking": {"kind": "cells", "ratio": 0.5, "cell": [4, 4]},
        "readout": {"kind": "pixels", "error": "absolute"}}}, "test")
    assert run.objective == SimMIMSettings(masking=CellMasking(ratio=0.5, cell=(4, 4)),
                                           readout=PixelReadout(error="absolute"))
