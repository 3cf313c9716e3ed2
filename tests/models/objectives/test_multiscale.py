"""SatMAE++: a small copy is hidden and predicted, and the whole image at finer scales."""

import pytest
import torch
from torch.nn.functional import interpolate

from models.encoder.band_groups import BandGroups
from models.encoder.masking import ChannelMasking, ConsistentMasking, RandomMasking
from models.encoder.patches import Mask
from models.encoder.tokenizers import Bands, Grid, Groups
from models.encoder.transformer import Encoder, EncoderSettings, Shape
from models.objectives.decoders import DecoderSettings
from models.objectives.multiscale import MultiScaleAutoencoder, MultiScaleSettings
from models.objectives.objective import build_objective
from models.objectives.readouts import GroupPixelReadout, PixelReadout
from tests.models.objectives.tiny import BATCH, chance, train, trainable

GROUPS = BandGroups(groups=((0, 3), (2,), (1, 4)), patch=(2, 2))
CASES = {
    "groups": (GROUPS, RandomMasking(), GroupPixelReadout()),
    "groups, consistent, normalised": (GROUPS, ConsistentMasking(), GroupPixelReadout(normalise_patch=True)),
    "groups, sampled": (GROUPS, ChannelMasking(ratio=0.5), GroupPixelReadout()),
    "bands": (Bands(patch=(2, 2)), ChannelMasking(ratio=0.5), PixelReadout()),
    "image": (Grid(patch=(2, 2)), RandomMasking(), PixelReadout(normalise_patch=True)),
}


def make(case: str, num_scales: int = 2) -> MultiScaleAutoencoder:
    tokenizer, masking, readout = CASES[case]
    torch.manual_seed(0)
    encoder = Encoder(EncoderSettings(tokenizer=tokenizer, size=Shape(24, 2, 2)), 5)
    settings = MultiScaleSettings(masking=masking, decoder=DecoderSettings(width=16, depth=1, num_heads=2),
                                  readout=readout, num_scales=num_scales, width=8)
    return build_objective(settings, encoder)


def samples(size: int = 32) -> torch.Tensor:
    torch.manual_seed(1)
    return interpolate(torch.randn(BATCH, 5, 4, 4), size=(size, size), mode="bilinear")


@pytest.mark.parametrize("case", CASES)
def test_the_loss_falls_on_one_batch_and_every_weight_gets_a_gradient(case):
    model = make(case)
    losses, touched = train(model, samples(), steps=16, rate=6e-3)
    assert sum(losses[-4:]) < 0.9 * sum(losses[:4])
    assert touched == trainable(model)


@pytest.mark.parametrize("case", CASES)
def test_the_picture_has_the_small_copy_and_the_whole(case):
    model, x = make(case), samples()
    made = model.reconstruct(x, None, chance())
    assert made.cut_from[0].shape == (BATCH, 5, 8, 8) and made.finest.shape == x.shape
    assert made.predicted.shape == (*made.mask.hidden.shape, made.patches.values.shape[2])
    named = made.mask.visible.shape[1] + made.mask.hidden.shape[1]
    assert named == made.patches.values.shape[1]                             # every band is kept for a picture


def test_a_scale_is_the_mean_of_the_known_pixels_around_its_own():
    model, x = make("image"), samples()
    small, middle, whole = model.scales(x, None)
    expected = interpolate(x, scale_factor=0.25, mode="bilinear")
    torch.testing.assert_close(small.x, expected)
    assert middle.x.shape[2:] == (16, 16) and whole.x is x and small.known is None
    known = torch.ones_like(x, dtype=torch.bool)
    known[0, :, :, :16] = False
    known[1, 2] = False
    known[2, 0, 1, 1] = False
    small, middle, whole = model.scales(x.masked_fill(~known, 77.0), known)
    assert not small.known[0, :, :, :4].any() and small.known[0, :, :, 4:].all() and not small.known[1, 2].any()
    assert small.known[2].all() and not small.x[~small.known].any()
    torch.testing.assert_close(small.x[3:], expected[3:])
    torch.testing.assert_close(small.x[2, 0, 0, 0], (x[2, 0, 1, 2] + x[2, 0, 2, 1] + x[2, 0, 2, 2]) / 3)


@pytest.mark.parametrize("case", CASES)
def test_unknown_pixels_are_neither_seen_nor_scored(case):
    model, x = make(case).eval(), samples()
    known = torch.ones_like(x, dtype=torch.bool)
    known[0, :, :, :16] = False
    known[1, 2] = False
    known[2, :, 5:9, 5:9] = False
    one, other = (model(x.masked_fill(~known, filler), known, chance()) for filler in (0.0, 50.0))
    for name in one:
        torch.testing.assert_close(one[name], other[name])
    everything = model(x, torch.ones_like(known), chance())
    torch.testing.assert_close(everything, model(x, None, chance()))


def test_pixels_of_dropped_patches_are_not_scored_at_any_scale():
    model, x = make("bands").eval(), samples()
    scales = model.scales(x, None)
    patches = model.encoder.tokenizer.patchify(scales[0].x)
    named = torch.arange(5 * 16).unflatten(0, (5, 16))[[0, 3]].flatten().expand(BATCH, -1)     # bands 0 and 3 alone
    made = model.decode(patches, Mask(named[:, ::2], named[:, 1::2]), scales[0].x.shape[2:])
    assert made.predicted.flatten(2).all(-1)[0].tolist() == [True, False, False, True, False]
    distance = model.distance(made, scales[1:])
    garbled = [scale._replace(x=scale.x.index_fill(1, torch.tensor([1, 2, 4]), 50.0)) for scale in scales[1:]]
    assert torch.equal(model.distance(made, garbled), distance)
    changed = [scale._replace(x=scale.x.index_fill(1, torch.tensor([3]), 50.0)) for scale in scales[1:]]
    assert model.distance(made, changed) > distance


def test_filler_at_the_end_of_a_list_changes_nothing():
    model, x = make("image").eval(), samples()
    scales = model.scales(x, None)
    patches = model.encoder.tokenizer.patchify(scales[0].x)
    order = torch.randperm(16).expand(BATCH, -1)
    plain = Mask(order[:, :5], order[:, 5:])
    valid = torch.tensor([True] * 11 + [False] * 2).expand(BATCH, -1)
    padded = Mask(plain.visible, torch.cat([plain.hidden, order[:, 5:7]], 1), None, valid)
    one, two = (model.decode(patches, mask, scales[0].x.shape[2:]) for mask in (plain, padded))
    torch.testing.assert_close(one.finer, two.finer)
    torch.testing.assert_close(model.distance(one, scales[1:]), model.distance(two, scales[1:]))


def test_the_weights_of_the_losses_are_the_published_ones():
    model, x = make("groups", num_scales=1).eval(), samples()
    losses = model(x, None, chance())
    small, whole = model.scales(x, None)
    made = model.attempt(small, model.masking, chance())
    torch.testing.assert_close(losses["finer_scales"], 0.4 * (made.finer[0] - whole.x).abs().mean())
    torch.testing.assert_close(losses["reconstruction"], 0.6 * model.readout(made.decoded, x, made.patches, made.mask))


def test_what_cannot_be_halved_and_what_is_no_image_is_refused():
    with pytest.raises(ValueError, match="expected sizes that 4 divides"):
        make("image")(samples(34), None, chance())
    with pytest.raises(ValueError, match="for images"):
        MultiScaleSettings().fits(EncoderSettings(tokenizer=Grid(patch=(4, 4, 4))))
    with pytest.raises(ValueError, match="take chamfer"):
        MultiScaleSettings().fits(EncoderSettings(tokenizer=Groups()))
    with pytest.raises(ValueError, match="needs groups of bands"):
        MultiScaleSettings(readout=GroupPixelReadout()).fits(EncoderSettings(tokenizer=Grid()))
    with pytest.raises(ValueError, match="at least 1"):
        MultiScaleSettings(num_scales=0)
