import pytest
import torch

from models.encoder.masking import ChannelMasking, RandomMasking
from models.encoder.patches import Mask, Patches, take
from models.encoder.tokenizers import Bands, Grid, Groups
from models.encoder.transformer import Encoder, EncoderSettings, Shape
from models.objectives.decoders import DecoderSettings
from models.objectives.masked_autoencoder import MaskedAutoencoder, MaskedAutoencoderSettings
from models.objectives.readouts import ChamferReadout, PixelReadout, Pixels
from tests.models.objectives.tiny import chance, train, trainable, with_hidden_overwritten

CASES = {
    "image": (Grid(patch=(4, 4)), (6, 1, 16, 16), RandomMasking(), PixelReadout()),
    "volume": (Grid(patch=(4, 4, 4)), (6, 1, 8, 8, 8), RandomMasking(ratio=0.5), PixelReadout(normalise_patch=True)),
    "bands": (Bands(patch=(8, 8)), (6, 3, 16, 16), ChannelMasking(ratio=0.5), PixelReadout()),
    "points": (Groups(num_groups=8, group_size=8), (6, 64, 3), RandomMasking(ratio=0.6), ChamferReadout()),
}


def make(case: str) -> tuple[MaskedAutoencoder, torch.Tensor]:
    tokenizer, shape, masking, readout = CASES[case]
    torch.manual_seed(0)
    encoder = Encoder(EncoderSettings(tokenizer=tokenizer, size=Shape(24, 2, 2)), shape[1] if case != "points" else 3)
    settings = MaskedAutoencoderSettings(masking=masking, decoder=DecoderSettings(width=16, depth=1, num_heads=2),
                                         readout=readout)
    return MaskedAutoencoder(settings, encoder), torch.randn(shape)


@pytest.mark.parametrize("case", CASES)
def test_the_loss_falls_on_one_batch_and_every_weight_gets_a_gradient(case):
    model, x = make(case)
    losses, touched = train(model, x)
    assert sum(losses[-4:]) < 0.8 * sum(losses[:4])
    assert touched == trainable(model)


@pytest.mark.parametrize("case", CASES)
def test_the_same_chance_gives_the_same_loss(case):
    model, x = make(case)
    model.eval()
    one, two, other = (float(model(x, None, chance(step))["reconstruction"]) for step in (1, 1, 2))
    assert one == two != other


def test_what_is_hidden_does_not_reach_the_encoder():
    model, x = make("image")
    model.eval()
    result = model.reconstruct(x, None, chance())
    other = with_hidden_overwritten(model, x, result)
    assert torch.equal(model.reconstruct(other, None, chance()).predicted, result.predicted)


def test_unknown_values_are_neither_seen_nor_scored():
    model, x = make("bands")
    model.eval()
    known = torch.ones_like(x, dtype=torch.bool)
    known[0, 1] = False          # a band that is missing
    known[1, :, :, :8] = False   # nodata over half of a tile
    known[2, :, 3, 5] = False    # single pixels
    poison = x.masked_fill(~known, 0.0)
    first = model(poison, known, chance())["reconstruction"]
    patches = model.encoder.tokenizer.patchify(poison, known)
    mask = model.masking(patches, chance())
    decoded = model.decoder(model.encoder(patches, mask), patches, mask)
    garbage = Patches(patches.values.masked_fill(~patches.known, 1e6), patches.place, patches.known)
    assert torch.equal(model.readout(decoded, poison, garbage, mask), first)


def test_loss_with_everything_known_is_the_plain_mean():
    model, x = make("image")
    model.eval()
    known = torch.ones_like(x, dtype=torch.bool)
    torch.testing.assert_close(model(x, known, chance()), model(x, None, chance()))


def test_normalised_targets_follow_the_paper():
    model, x = make("volume")
    result = model.reconstruct(x, None, chance())
    patches, mask = result.patches, result.mask
    decoded = torch.zeros(6, mask.hidden.shape[1], 16)
    with torch.no_grad():
        model.readout.project.weight.zero_()
        model.readout.project.bias.zero_()
    target = patches.values.gather(1, mask.hidden[..., None].expand(-1, -1, 64)).double()
    target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
    loss = model.readout(decoded, x, patches, mask).double()
    torch.testing.assert_close(loss, target.square().mean(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("readout", [PixelReadout(), PixelReadout(error="absolute"), PixelReadout(normalise_patch=True),
                                     PixelReadout(normalise_patch=True, biased_variance=True)])
def test_a_loss_is_the_mean_over_known_values_of_a_sample_then_over_samples(readout):
    """Value by value in float64; a patch is normalised by its own known values."""
    torch.manual_seed(0)
    values, known, place = torch.randn(3, 4, 6) * 3 + 5, torch.rand(3, 4, 6) < 0.7, torch.zeros(3, 4, 2)
    known[0] = True
    known[1, 3] = False
    known[..., :2] = known[..., :2] | (torch.arange(4) < 3)[:, None]         # two known ones make a deviation
    patches = Patches(values.masked_fill(~known, -50.0), place, known)
    mask = Mask(torch.tensor([[0]] * 3), torch.tensor([[1, 2, 3]] * 3), None, torch.tensor([[True, True, True],
                                                                                           [True, True, False],
                                                                                           [True, False, False]]))
    encoder = Encoder(EncoderSettings(tokenizer=Grid(patch=(2, 3)), size=Shape(24, 1, 2)), 1)
    pixels, decoded = Pixels(readout, 8, encoder), torch.randn(3, 3, 8)
    guess, per_sample = pixels.project(decoded).detach().double(), []
    for b in range(3):
        errors = []
        for h in range(3):
            there = known[b, h + 1]
            if not mask.hidden_valid[b, h]:
                continue
            target, said = values[b, h + 1, there].double(), guess[b, h, there]
            if readout.normalise_patch:
                target = (target - target.mean()) / (target.var(correction=int(not readout.biased_variance))
                                                     + 1e-6).sqrt()
            errors += [abs(e) if readout.error == "absolute" else e * e for e in (said - target).tolist()]
        per_sample.append(sum(errors) / len(errors))
    loss = float(pixels(decoded, torch.empty(0), patches, mask).detach())
    assert loss == pytest.approx(sum(per_sample) / 3, rel=1e-5)


@pytest.mark.parametrize("biased", [False, True])
def test_a_picture_of_what_was_asked_for_is_the_sample_itself_although_patches_are_normalised(biased):
    model, x = make("image")
    x = 3 * x + 5
    patches = model.encoder.tokenizer.patchify(x)
    mask = model.masking(patches, chance())
    pixels = Pixels(PixelReadout(normalise_patch=True, biased_variance=biased), 8, model.encoder)
    wanted, _ = pixels.target(patches, mask)
    assert wanted.abs().max() < 4
    torch.testing.assert_close(pixels.in_input_units(wanted, patches, mask), take(patches.values, mask.hidden))


@pytest.mark.parametrize(("tokenizer", "masking", "readout", "said"), [
    (Groups(), RandomMasking(), PixelReadout(), "groups of points take chamfer"),
    (Grid(), RandomMasking(), ChamferReadout(), "grids and bands take pixels"),
    (Grid(), ChannelMasking(), PixelReadout(), "needs one token per band")])
def test_combinations_that_mean_nothing_are_refused_with_the_reason(tokenizer, masking, readout, said):
    with pytest.raises(ValueError, match=said):
        MaskedAutoencoderSettings(masking=masking, readout=readout).fits(EncoderSettings(tokenizer=tokenizer))


def test_filler_at_the_end_of_a_list_changes_nothing():
    model, x = make("image")
    model.eval()
    patches = model.encoder.tokenizer.patchify(x)
    plain = Mask(torch.arange(4).expand(6, -1), torch.arange(4, 16).expand(6, -1))
    padded = Mask(torch.cat([plain.visible, torch.zeros(6, 2, dtype=torch.int64)], 1), plain.hidden,
                  torch.arange(6).expand(6, -1) < 4)
    one, two = model.encoder(patches, plain), model.encoder(patches, padded)
    torch.testing.assert_close(two.tokens[:, :4], one.tokens)
    torch.testing.assert_close(two.summary, one.summary)


def test_a_picture_keeps_every_band_although_training_samples_bands():
    encoder = Encoder(EncoderSettings(tokenizer=Bands(patch=(4, 4)), size=Shape(12, 1, 2)), 5)
    settings = MaskedAutoencoderSettings(masking=ChannelMasking(max_channels=1), readout=PixelReadout(),
                                         decoder=DecoderSettings(width=12, depth=1, num_heads=2))
    model = MaskedAutoencoder(settings, encoder)
    result = model.reconstruct(torch.randn(2, 5, 8, 8), None, chance(batch=2))
    assert result.mask.visible.shape[1] + result.mask.hidden.shape[1] == 5 * 4
