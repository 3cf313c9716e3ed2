"""Mask laws: visible, hidden and dropped are disjoint and cover all; what holds no data is never seen or asked for."""

import pytest
import torch

from models.encoder.chance import Chance, chance_of
from models.encoder.mask_lists import split_by_score
from models.encoder.masking import (
    BlockMasking,
    CellMasking,
    ChannelMasking,
    ColourNoiseMasking,
    ConsistentMasking,
    RandomMasking,
)
from models.encoder.patches import Patches

MASKINGS = [RandomMasking(ratio=0.75), RandomMasking(ratio=0.9), BlockMasking(ratio=0.6), ChannelMasking(ratio=0.5),
            ConsistentMasking(ratio=0.75), *(ColourNoiseMasking(ratio=0.75, colour=colour, per_band=True)
                                             for colour in ("red", "green", "blue", "purple"))]


def chance(step: int = 0, batch: int = 6) -> Chance:
    return chance_of(0, step, 0, torch.arange(batch), torch.zeros(batch, dtype=torch.int64))


def patches(known: bool, batch: int = 6, bands: int = 4, side: int = 4) -> Patches:
    """Bands x side x side places; with `known`, sample 0 lacks band 1, sample 1 lacks half of every band, sample 2 has
    one patch only."""
    axes = [torch.arange(n).float() for n in (bands, side, side)]
    place = torch.stack([a.flatten() for a in torch.meshgrid(*axes, indexing="ij")], -1).expand(batch, -1, -1)
    values = torch.randn(batch, place.shape[1], 8)
    if not known:
        return Patches(values, place)
    usable = torch.ones(batch, place.shape[1], dtype=torch.bool)
    usable[0] &= place[0, :, 0] != 1
    usable[1] &= place[1, :, 1] < side // 2
    usable[2] = torch.arange(place.shape[1]) == 5
    return Patches(values, place, usable[..., None].expand(-1, -1, 8))


def valid(index: torch.Tensor, flags: torch.Tensor | None, sample: int) -> list[int]:
    row = index[sample]
    return (row if flags is None else row[flags[sample]]).tolist()


@pytest.mark.parametrize(("masking", "grid"), [
    *((masking, grid) for masking in MASKINGS for grid in (None, (4, 4, 4))),
    *((CellMasking(ratio=ratio, cell=cell), (4, 4, 4)) for ratio in (0.5, 0.9) for cell in ((2, 2), (3, 2, 1)))])
@pytest.mark.parametrize("known", [False, True])
def test_visible_hidden_and_dropped_are_disjoint_and_cover_all(masking, known, grid):
    cut = patches(known)._replace(grid=grid)
    for step in range(8):
        mask = masking(cut, chance(step))
        for sample in range(6):
            seen = valid(mask.visible, mask.visible_valid, sample)
            asked = valid(mask.hidden, mask.hidden_valid, sample)
            assert len(set(seen)) == len(seen) and len(set(asked)) == len(asked)
            assert not set(seen) & set(asked)
            assert set(seen) | set(asked) <= set(range(cut.place.shape[1]))
            if cut.known is not None:
                usable = set(cut.usable()[sample].nonzero()[:, 0].tolist())
                assert set(seen) | set(asked) <= usable
                if masking.kind != "channels":
                    assert set(seen) | set(asked) == usable
            elif masking.kind != "channels":
                assert len(seen) + len(asked) == cut.place.shape[1]
            assert len(seen) >= 1


def test_the_number_seen_is_what_the_reference_counts():
    for count, ratio, expected in [(196, 0.75, 49), (196, 0.9, 19), (64, 0.6, 25), (49, 0.75, 12)]:
        place = torch.zeros(2, count, 2)
        mask = RandomMasking(ratio=ratio)(Patches(torch.zeros(2, count, 1), place), chance(batch=2))
        assert mask.visible.shape == (2, expected) and mask.hidden.shape == (2, count - expected)


def test_random_masking_hides_every_patch_equally_often():
    cut = Patches(torch.zeros(500, 16, 1), torch.zeros(500, 16, 2))
    counts = torch.zeros(16)
    for step in range(8):
        mask = RandomMasking(ratio=0.5)(cut, chance(step, 500))
        counts += torch.bincount(mask.hidden.flatten(), minlength=16)
    assert (counts / 4000 - 0.5).abs().max() < 0.04


def test_block_masking_hides_the_patches_nearest_to_one():
    cut = patches(known=False)
    mask = BlockMasking(ratio=0.6)(cut, chance())
    for sample in range(6):
        place = cut.place[sample]
        hidden = place[mask.hidden[sample]]
        seen = place[mask.visible[sample]]
        fits = [(hidden - c).norm(dim=1).max() <= (seen - c).norm(dim=1).min() + 1e-6 for c in hidden]
        assert any(fits)  # some hidden patch is the centre of a ball that holds exactly the hidden ones


def test_channel_masking_draws_the_number_of_channels_uniformly_and_equally_for_all_samples():
    cut = patches(known=False)
    counts = torch.zeros(5)
    for step in range(800):
        mask = ChannelMasking(ratio=0.5)(cut, chance(step))
        per_sample = [len(set(cut.place[0, both, 0].tolist()))
                      for both in torch.cat([mask.visible, mask.hidden], 1)]
        assert len(set(per_sample)) == 1
        counts[per_sample[0]] += 1
    assert counts[0] == 0 and (counts[1:] / 800 - 0.25).abs().max() < 0.06


def test_each_sample_chooses_its_own_channels_each_equally_often():
    cut = patches(known=False, batch=200)
    masking = ChannelMasking(ratio=0.5, min_channels=2, max_channels=2)
    mask = masking(cut, chance(batch=200))
    channels = torch.cat([mask.visible, mask.hidden], 1) // 16              # the 16 places of band 0, of band 1, ...
    kept = torch.stack([(channels == band).any(1) for band in range(4)], 1)
    assert (kept.sum(1) == 2).all() and len(kept.unique(dim=0)) == 6, "every pair of four"
    assert (kept.float().mean(0) - 0.5).abs().max() < 0.12


def test_a_band_that_a_sample_lacks_is_never_chosen():
    cut = patches(known=True)
    for step in range(20):
        mask = ChannelMasking(ratio=0.5)(cut, chance(step))
        seen = valid(mask.visible, mask.visible_valid, 0) + valid(mask.hidden, mask.hidden_valid, 0)
        assert 1 not in cut.place[0, seen, 0].tolist() and seen


@pytest.mark.parametrize("known", [False, True])
def test_a_consistent_mask_hides_the_same_positions_in_every_band(known):
    cut = patches(known)
    chosen = set()
    for step in range(8):
        mask = ConsistentMasking(ratio=0.75)(cut, chance(step))
        for sample in range(6):
            seen, asked = (sorted({tuple(cell) for cell in cut.place[sample, index, 1:].tolist()}) for index in (
                valid(mask.visible, mask.visible_valid, sample), valid(mask.hidden, mask.hidden_valid, sample)))
            assert not set(seen) & set(asked)
            usable = cut.place[sample] if cut.known is None else cut.place[sample, cut.usable()[sample]]
            positions = len({tuple(cell) for cell in usable[:, 1:].tolist()})
            assert len(seen) == max(int(positions * 0.25), 1) and len(seen) + len(asked) == positions
            chosen.add(tuple(seen))
    assert len(chosen) > 20


def test_a_consistent_mask_keeps_the_places_with_the_smallest_numbers():
    """The release's rule: one number per place, the smallest are kept in every group."""
    cut = patches(known=False)

    class Given:
        noise = torch.rand(6, 16)

        def uniform(self, n, stream):
            return self.noise[:, :n]

    mask = ConsistentMasking(ratio=0.7)(cut, Given())
    kept = Given.noise.argsort(1)[:, :4].sort(1).values                      # floor(16 * 0.3)
    expected = torch.cat([kept + 16 * band for band in range(4)], 1)
    assert torch.equal(mask.visible, expected) and mask.visible_valid is None


def test_a_mask_is_a_function_of_its_chance():
    cut = patches(known=False)
    one, same, other = (RandomMasking()(cut, chance(step)) for step in (3, 3, 4))
    assert torch.equal(one.visible, same.visible) and not torch.equal(one.visible, other.visible)


@pytest.mark.parametrize("ratio", [0.0, 1.0, 75])
def test_a_ratio_that_is_no_share_is_refused(ratio):
    with pytest.raises(ValueError, match="between 0 and 1"):
        RandomMasking(ratio=ratio)


@pytest.mark.parametrize("kind", [RandomMasking, BlockMasking])
@pytest.mark.parametrize(("count", "ratio", "up", "down"), [(64, 0.6, 39, 38), (16, 0.6, 10, 9), (10, 0.5, 5, 5),
                                                            (128, 0.6, 77, 76), (8, 0.1, 1, 1), (9, 0.99, 8, 8)])
def test_a_share_that_is_no_whole_number_is_rounded_as_asked(kind, count, ratio, up, down):
    for known in (None, torch.ones(2, count, 1, dtype=torch.bool)):
        cut = Patches(torch.zeros(2, count, 1), torch.rand(2, count, 3), known)
        for rounding, expected in (("up", up), ("down", down)):
            mask = kind(ratio=ratio, round_hidden=rounding)(cut, chance(batch=2))
            assert mask.hidden.shape == (2, expected) and mask.visible.shape == (2, count - expected)


def test_a_block_grows_from_any_patch_that_holds_data_equally_often():
    place = torch.arange(8.0)[None, :, None].expand(600, -1, -1)
    known = (torch.arange(8) >= 5)[None, :, None].expand(600, -1, -1)         # three patches at one end hold data
    cut = Patches(torch.zeros(600, 8, 1), place, known)
    mask = BlockMasking(ratio=0.34)(cut, chance(batch=600))
    centres = torch.bincount(mask.hidden[:, -1], minlength=8) / 600           # the last one is the centre
    assert not centres[:5].any() and (centres[5:] - 1 / 3).abs().max() < 0.07


@pytest.mark.parametrize("usable", [None, torch.ones(2, 1, dtype=torch.bool)])
def test_one_patch_is_refused_since_nothing_could_be_hidden(usable):
    with pytest.raises(ValueError, match="found 1 to choose from in a sample, expected at least two"):
        split_by_score(torch.zeros(2, 1), usable, 0.75)
