"""Reconstruction of groups of bands: a band is compared with itself, and comes back at its own place."""

import pytest
import torch

from models.encoder.band_groups import BandGroups
from models.encoder.masking import ChannelMasking, ConsistentMasking, RandomMasking
from models.encoder.patches import take
from models.encoder.tokenizers import Bands, Grid
from models.encoder.transformer import Encoder, EncoderSettings, Shape
from models.objectives.decoders import DecoderSettings
from models.objectives.masked_autoencoder import MaskedAutoencoder, MaskedAutoencoderSettings
from models.objectives.readouts import GroupPixelReadout, PixelReadout
from tests.models.objectives.tiny import BATCH, chance, train, trainable

GROUPS = ((0, 4, 2), (3,), (5, 1))
MASKINGS = [RandomMasking(ratio=0.6), ConsistentMasking(ratio=0.5), ChannelMasking(ratio=0.5)]


def make(masking=MASKINGS[0], readout=None) -> MaskedAutoencoder:
    torch.manual_seed(0)
    encoder = Encoder(EncoderSettings(tokenizer=BandGroups(groups=GROUPS, patch=(4, 4)), size=Shape(24, 2, 2)), 6)
    settings = MaskedAutoencoderSettings(masking=masking, decoder=DecoderSettings(width=16, depth=1, num_heads=2),
                                         readout=readout or GroupPixelReadout())
    return MaskedAutoencoder(settings, encoder)


def samples() -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(BATCH, 6, 16, 16).cumsum(-1) / 2


@pytest.mark.parametrize(("masking", "readout"), [
    *((masking, GroupPixelReadout()) for masking in MASKINGS),
    (MASKINGS[1], GroupPixelReadout(normalise_patch=True)), (MASKINGS[0], PixelReadout())])
def test_the_loss_falls_on_one_batch_and_every_weight_gets_a_gradient(masking, readout):
    model = make(masking, readout)
    losses, touched = train(model, samples(), steps=24, rate=6e-3)
    assert sum(losses[-4:]) < 0.9 * sum(losses[:4])
    assert touched == trainable(model)


def test_a_planted_band_signature_comes_back_from_its_own_group():
    """Every band is a constant of its own, and each group's layer says just the constants of its bands, in its own
    order: nothing is left to be wrong. With groups and bands mixed up, as in the release, it could not be 0."""
    signature = torch.tensor([10.0, 20.0, 30.0, 40.0, 50.0, 60.0])
    x = signature[None, :, None, None].expand(BATCH, 6, 16, 16).clone()
    model = make()
    with torch.no_grad():
        for layer, group in zip(model.readout.project, GROUPS, strict=True):
            layer.weight.zero_()
            layer.bias.copy_(signature[list(group)].repeat_interleave(16))
    assert model(x, None, chance())["reconstruction"].item() == 0
    made = model.reconstruct(x, None, chance())
    values = made.patches.values.scatter(1, made.mask.hidden[..., None].expand_as(made.predicted), made.predicted)
    assert torch.equal(model.encoder.tokenizer.unpatchify(values, (16, 16)), x)
    assert model(x.flip(1), None, chance())["reconstruction"].item() > 100


def test_a_patch_counts_the_same_however_many_bands_its_group_has():
    model, x = make(), samples()
    with torch.no_grad():
        for i, layer in enumerate(model.readout.project):
            layer.weight.zero_()
            layer.bias.fill_(float(i + 1))
    patches = model.encoder.tokenizer.patchify(torch.zeros_like(x))
    mask = model.masking(patches, chance())
    group = take(patches.place, mask.hidden)[..., 0]
    decoded = torch.zeros(BATCH, mask.hidden.shape[1], 16)
    torch.testing.assert_close(model.readout(decoded, x, patches, mask), (group + 1).square().mean())


def test_normalised_targets_take_the_statistics_of_all_bands_at_a_place():
    model, x = make(readout=GroupPixelReadout(normalise_patch=True)), samples()
    patches = model.encoder.tokenizer.patchify(x)
    mask = model.masking(patches, chance())
    with torch.no_grad():
        for layer in model.readout.project:
            layer.weight.zero_()
            layer.bias.zero_()
    cells = x.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).flatten(3).double()          # B 4 4 6*16
    target = (cells - cells.mean(-1, keepdim=True)) / (cells.var(-1, keepdim=True) + 1e-6).sqrt()
    target = target.flatten(1, 2).unflatten(2, (6, 16))                      # B 16 6 16
    each = []
    for sample in range(BATCH):
        place = take(patches.place, mask.hidden)[sample].long().tolist()
        each.append(torch.stack([target[sample, 4 * y + col, list(GROUPS[g])].square().mean() for g, y, col in place]))
    decoded = torch.zeros(BATCH, mask.hidden.shape[1], 16)
    loss = model.readout(decoded, x, patches, mask).double()
    torch.testing.assert_close(loss, torch.stack([row.mean() for row in each]).mean(), rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        restored = model.readout.predict(decoded, patches, mask)             # zeros mean the place's own mean
    first = take(patches.place, mask.hidden)[0, 0].long().tolist()
    torch.testing.assert_close(float(restored[0, 0, 0]), float(cells[0, first[1], first[2]].mean()))


@pytest.mark.parametrize("readout", [GroupPixelReadout(), GroupPixelReadout(normalise_patch=True)])
@pytest.mark.parametrize("masking", MASKINGS, ids=lambda masking: masking.kind)
def test_unknown_values_and_dropped_groups_are_neither_seen_nor_scored(masking, readout):
    model, x = make(masking, readout), samples()
    model.eval()
    known = torch.ones_like(x, dtype=torch.bool)
    known[0, 3] = False          # a band that is a whole group
    known[1, :, :, :8] = False   # nodata over half of a tile
    known[2, 1, 3, 5] = False    # a single value
    blank = x.masked_fill(~known, 0.0)
    first = model(blank, known, chance())["reconstruction"]
    patches = model.encoder.tokenizer.patchify(blank, known)
    mask = model.masking(patches, chance())
    decoded = model.decoder(model.encoder(patches, mask), patches, mask)
    garbage = patches._replace(values=patches.values.masked_fill(~patches.known, 1e4))
    assert torch.equal(model.readout(decoded, blank, garbage, mask), first)
    everything = torch.ones_like(x, dtype=torch.bool)
    torch.testing.assert_close(model(x, everything, chance()), model(x, None, chance()))


def test_what_needs_groups_or_bands_is_refused_on_anything_else():
    for masking, readout, tokenizer, said in [
            (RandomMasking(), GroupPixelReadout(), Grid(), "needs groups of bands"),
            (RandomMasking(), GroupPixelReadout(), Bands(), "needs groups of bands"),
            (ConsistentMasking(), PixelReadout(), Grid(), "needs one token per band")]:
        with pytest.raises(ValueError, match=said):
            MaskedAutoencoderSettings(masking=masking, readout=readout).fits(EncoderSettings(tokenizer=tokenizer))
