import dataclasses

import pytest
import torch

from models.encoder.masking import BlockMasking, ChannelMasking, RandomMasking
from models.encoder.patches import Mask, Patches
from models.encoder.tokenizers import Bands, Grid, Groups
from models.encoder.transformer import Encoder, EncoderSettings, Shape
from models.objectives.decoders import DecoderSettings
from models.objectives.objective import build_objective
from models.objectives.point_cmae import PointCMAE, PointCMAESettings, disagreement, in_place
from models.objectives.readouts import ChamferReadout, PixelReadout
from tests.models.objectives.tiny import chance, train, trainable, with_hidden_overwritten

POINTS = (Groups(num_groups=12, group_size=8, widths=(8, 16, 16), sampling="pointnet2"), (6, 64, 3))
CASES = {
    "points": (*POINTS, PointCMAESettings(agreement_weight=0.1)),
    "points in blocks": (*POINTS, PointCMAESettings(masking=BlockMasking(round_hidden="down"), agreement_weight=0.1)),
    "as released": (*POINTS, PointCMAESettings(agreement="all_pairs", summary_widths=(5, 7), agreement_weight=0.1,
                                               readout=ChamferReadout(distance="l1"))),
    "image": (Grid(patch=(4, 4)), (6, 1, 16, 16), PointCMAESettings(readout=PixelReadout(), agreement_weight=0.1)),
    "bands": (Bands(patch=(8, 8)), (6, 3, 16, 16), PointCMAESettings(
        masking=ChannelMasking(ratio=0.5), readout=PixelReadout(), agreement_weight=0.1)),
}


def make(case: str, **changes) -> tuple[PointCMAE, torch.Tensor]:
    tokenizer, shape, settings = CASES[case]
    torch.manual_seed(0)
    points = isinstance(tokenizer, Groups)
    encoder = Encoder(EncoderSettings(tokenizer=tokenizer, size=Shape(24, 2, 2), class_token=False,
                                      place_every_block=points), 3 if points else shape[1])
    decoder = DecoderSettings(width=24, depth=1, num_heads=2, place_every_block=points, project=not points)
    return build_objective(dataclasses.replace(settings, decoder=decoder, **changes), encoder), torch.randn(shape)


@pytest.mark.parametrize("case", CASES)
def test_the_loss_falls_on_one_batch_and_every_trained_weight_gets_a_gradient(case):
    model, x = make(case)
    assert set(model(x, None, chance())) == {"reconstruction", "agreement"}
    losses, touched = train(model, x, steps=32)
    assert sum(losses[-4:]) < 0.9 * sum(losses[:4])
    assert touched == trainable(model) and not any(name.startswith("project_summary") for name in touched)


def test_views_have_masks_of_their_own_and_the_same_chance_gives_the_same_losses():
    model, x = make("points")
    model.eval()
    patches = model.encoder.tokenizer.patchify(x)
    one, two = model.masking(patches, chance()), model.masking(patches, chance().branch(1))
    assert not torch.equal(one.hidden.sort(1).values, two.hidden.sort(1).values)
    torch.testing.assert_close(model(x, None, chance()), model(x, None, chance()), rtol=0, atol=0)
    torch.testing.assert_close(model(x, None, chance()), model.losses(x, patches, (one, two)), rtol=0, atol=0)
    assert model(x, None, chance(1))["reconstruction"] != model(x, None, chance())["reconstruction"]


def test_the_reconstruction_is_both_views_summed_and_a_picture_shows_the_first():
    model, x = make("points")
    model.eval()
    result = model.reconstruct(x, None, chance())
    masks = result.mask, model.masking(result.patches, chance().branch(1))
    embedded, total = model.embed(result.patches), 0.0
    for view, mask in zip((model.first, model.second), masks, strict=True):
        features = model.encode(view, embedded, result.patches, mask)
        decoded = view.decoder(features, result.patches, mask)
        total = total + view.readout(decoded, x, result.patches, mask)
        if view is model.first:
            torch.testing.assert_close(view.readout.predict(decoded, result.patches, mask), result.predicted)
    torch.testing.assert_close(model(x, None, chance())["reconstruction"], total)
    assert result.predicted.shape == (6, result.mask.hidden.shape[1], 24)


def brute_force(first: list, second: list, hidden: tuple, pairs: bool) -> tuple[float, int]:
    """Sum and number of 1 - cosine over one sample: rows by patch, sets of hidden patches of each view."""
    total, count = 0.0, 0
    for i in sorted(hidden[0] & hidden[1]):
        for j in range(len(first)) if pairs else [i]:
            total += 1 - float(torch.cosine_similarity(first[i], second[j], dim=0))
            count += 1
    return total, count


@pytest.mark.parametrize("count", [5, 12, 20])
def test_both_agreements_equal_brute_force_over_patches_hidden_in_both(count):
    generator = torch.Generator().manual_seed(count)
    masks, placed, hidden = [], [], []
    for _ in range(2):
        order = torch.stack([torch.randperm(count, generator=generator) for _ in range(3)])
        masks.append(Mask(order[:, :count // 3], order[:, count // 3:]))
        placed.append(torch.randn(3, count, 8, generator=generator))
        hidden.append([set(row.tolist()) for row in masks[-1].hidden])
    sequences = [rows.gather(1, torch.cat([mask.visible, mask.hidden], 1)[..., None].expand(-1, -1, 8))
                 for rows, mask in zip(placed, masks, strict=True)]
    sums = {pairs: [brute_force(list(placed[0][b]), list(placed[1][b]), (hidden[0][b], hidden[1][b]), pairs)
                    for b in range(3)] for pairs in (False, True)}
    per_sample = [total / max(number, 1) for total, number in sums[False]]
    same, pairs = (disagreement(*sequences, tuple(masks), count, kind) for kind in ("same_patch", "all_pairs"))
    assert same.item() == pytest.approx(sum(per_sample) / 3, abs=1e-5)
    assert pairs.item() == pytest.approx(sum(t for t, _ in sums[True]) / sum(n for _, n in sums[True]), abs=1e-5)


def test_agreement_is_zero_where_both_say_the_same_and_the_released_form_is_not():
    sequence = torch.randn(2, 10, 8)
    order = torch.arange(10).expand(2, -1)
    masks = (Mask(order[:, :4], order[:, 4:]),) * 2
    assert disagreement(sequence, sequence, masks, 10, "same_patch").item() == pytest.approx(0, abs=1e-6)
    assert disagreement(sequence, sequence, masks, 10, "all_pairs").item() > 0.5


def test_no_patch_hidden_in_both_costs_nothing():
    order = torch.arange(10).expand(2, -1)
    masks = Mask(order[:, :5], order[:, 5:]), Mask(order[:, 5:], order[:, :5])
    sequences = [torch.randn(2, 10, 8, requires_grad=True) for _ in range(2)]
    for kind in ("same_patch", "all_pairs"):
        loss = disagreement(*sequences, masks, 10, kind)
        loss.backward()
        assert loss.item() == 0 and all(bool(s.grad.isfinite().all()) for s in sequences)


def test_dropped_patches_and_filler_are_neither_placed_nor_compared():
    sequence = torch.arange(1.0, 7.0).reshape(1, 6, 1)
    # patch 3 is dropped; the second visible and the last hidden entries are filler that names real patches
    mask = Mask(torch.tensor([[0, 1]]), torch.tensor([[1, 2, 4, 0]]), torch.tensor([[True, False]]),
                torch.tensor([[True, True, True, False]]))
    placed, there, hidden = in_place(sequence, mask, 5)
    assert placed[0, :, 0].tolist() == [1, 3, 4, 0, 5]
    assert there[0].tolist() == [True, True, True, False, True]
    assert hidden[0].tolist() == [False, True, True, False, True]


def test_unknown_values_change_no_loss():
    model, x = make("bands", masking=RandomMasking(ratio=0.5))
    model.eval()
    known = torch.ones_like(x, dtype=torch.bool)
    known[0, 1] = False          # a band that is missing
    known[1, :, :, :8] = False   # nodata over half of a tile
    known[2, :, 3, 5] = False    # single pixels
    poison = x.masked_fill(~known, 0.0)
    patches = model.encoder.tokenizer.patchify(poison, known)
    masks = model.masking(patches, chance()), model.masking(patches, chance().branch(1))
    dropped = ~patches.usable()
    assert dropped.any() and masks[0].hidden_valid is not None
    worse = patches.values.masked_fill(dropped[..., None], 1e6)
    garbage = Patches(worse, patches.place, patches.known, patches.grid)
    torch.testing.assert_close(model.losses(x, garbage, masks), model.losses(x, patches, masks), rtol=0, atol=0)


def test_what_is_hidden_does_not_reach_a_view():
    model, x = make("image")
    model.eval()
    result = model.reconstruct(x, None, chance())
    other = with_hidden_overwritten(model, x, result)
    assert torch.equal(model.reconstruct(other, None, chance()).predicted, result.predicted)


@pytest.mark.parametrize(("settings", "encoder", "said"), [
    (PointCMAESettings(), EncoderSettings(tokenizer=Groups()), "found class_token: true, expected false"),
    (PointCMAESettings(), EncoderSettings(class_token=False), "grids and bands take pixels"),
    (PointCMAESettings(masking=ChannelMasking(), readout=PixelReadout()), EncoderSettings(class_token=False),
     "needs one token per band")])
def test_combinations_that_mean_nothing_are_refused_with_the_reason(settings, encoder, said):
    with pytest.raises(ValueError, match=said):
        settings.fits(encoder)
