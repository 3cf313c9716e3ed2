"""Groups of bands: each band in its own place, no padding in any statistic, bands by number and never by position."""

import pytest
import torch

from models.encoder.band_groups import BandGroups
from models.encoder.masking import ChannelMasking
from models.encoder.patches import Patches
from models.encoder.positions import GridAndGroup, NoPositions, SinCos, Table
from models.encoder.tokenizers import Grid, build_tokenizer
from models.encoder.transformer import Encoder, EncoderSettings, Shape
from tests.models.objectives.tiny import chance

GROUPS = ((0, 4, 2), (3,), (5, 1))


def tokenizer(groups=GROUPS, patch=(2, 4), width=24):
    return build_tokenizer(BandGroups(groups=groups, patch=patch), sum(map(len, groups)), width)


@pytest.mark.parametrize("groups", [GROUPS, ((1, 0), (2, 3)), ((0,), (1,)), ((2, 1, 0),)])
def test_bands_are_put_together_again_whatever_their_groups(groups):
    cut = tokenizer(groups)
    x = torch.randn(2, cut.num_channels, 6, 8)
    known = torch.rand(x.shape) > 0.3
    patches = cut.patchify(x, known)
    assert torch.equal(cut.unpatchify(patches.values, (6, 8)), x)
    assert torch.equal(cut.unpatchify(patches.known, (6, 8)), known)
    assert patches.grid == (len(groups), 3, 2)


def test_values_are_band_row_column_of_the_group_and_places_begin_with_the_group():
    x = torch.randn(1, 6, 6, 8)
    patches = tokenizer().patchify(x)
    assert patches.place[0, 6 * 2 + 3].tolist() == [2, 1, 1]
    assert torch.equal(patches.values[0, 6 * 2 + 3, :16].reshape(2, 2, 4), x[0, [5, 1], 2:4, 4:8])


def test_padding_is_marked_as_not_known_and_groups_of_equal_size_need_none():
    patches = tokenizer().patchify(torch.randn(1, 6, 6, 8))
    assert patches.known.sum(-1).unique_consecutive().tolist() == [24, 8, 16]
    assert bool(patches.usable().all()) and not patches.values[~patches.known].any()
    assert tokenizer(((1, 0), (2, 3))).patchify(torch.randn(1, 4, 6, 8)).known is None


def test_each_group_is_embedded_by_its_own_projection_of_its_own_bands():
    cut = tokenizer()
    x = torch.randn(2, 6, 6, 8)
    patches = cut.patchify(x)
    garbage = patches.values.masked_fill(~patches.known, 1e6)
    shuffled = torch.randperm(18)
    embedded = cut.embed(garbage[:, shuffled], patches.place[:, shuffled])[:, shuffled.argsort()]
    for i, group in enumerate(GROUPS):
        kernel = cut.project[i].weight.unflatten(1, (len(group), 2, 4))
        expected = torch.nn.functional.conv2d(x[:, list(group)], kernel, cut.project[i].bias, stride=(2, 4))
        torch.testing.assert_close(embedded[:, 6 * i:6 * (i + 1)], expected.flatten(2).transpose(1, 2))


def test_data_with_some_bands_in_any_order_is_read_by_their_numbers():
    cut = tokenizer()
    x = torch.randn(2, 6, 6, 8)
    whole = cut.patchify(x)
    cut.read_channels([4, 3, 0])
    some = cut.patchify(x[:, [4, 3, 0]])
    assert some.usable()[0].tolist() == [True] * 12 + [False] * 6
    assert torch.equal(some.values[some.known], whole.values[some.known])
    assert torch.equal(cut.unpatchify(some.values, (6, 8)), x[:, [4, 3, 0]])
    with pytest.raises(ValueError, match="expected 3"):
        cut.patchify(x)
    with pytest.raises(ValueError, match="each once"):
        cut.read_channels([0, 0])


def test_a_position_is_the_grid_beside_the_group():
    place = tokenizer().patchify(torch.randn(1, 6, 6, 8)).place
    code = tokenizer().place_code(24)(place, (3, 3, 2))
    assert code.shape == (1, 18, 24)
    by_group = code.unflatten(1, (3, 6))
    assert torch.equal(by_group[:, 0, :, :18], by_group[:, 2, :, :18])       # three quarters say where
    assert torch.equal(by_group[:, 1, 0, 18:], by_group[:, 1, 5, 18:])       # a quarter says which group
    assert not torch.allclose(by_group[:, 0, 0, 18:], by_group[:, 1, 0, 18:])
    half = tokenizer().place_code(24, GridAndGroup(grid=Table(grid=(3, 2)), channel_dim=12, learnt=True))
    assert half.rows.shape == (3, 12) and half.rows.requires_grad and half.grid.rows.shape == (6, 12)
    assert not any(p.requires_grad for p in tokenizer().place_code(24, SinCos()).parameters())
    assert not tokenizer().place_code(24, NoPositions())(place, None).any()


def test_what_is_no_division_of_the_bands_is_refused():
    for groups in ((), ((0, 1), ()), ((0, 1), (1, 2)), ((0,), (2,)), ((-1, 0),)):
        with pytest.raises(ValueError, match="every band once"):
            BandGroups(groups=groups)
    with pytest.raises(ValueError, match="groups name 6 bands, expected 7"):
        build_tokenizer(BandGroups(groups=GROUPS), 7, 24)
    with pytest.raises(ValueError, match="even number"):
        BandGroups(groups=GROUPS, channel_dim=5)
    with pytest.raises(ValueError, match="expected 2 to 20"):
        tokenizer().place_code(24, GridAndGroup(channel_dim=22))
    with pytest.raises(ValueError, match="found 5 bands, expected 6"):
        tokenizer().patchify(torch.zeros(1, 5, 6, 8))
    with pytest.raises(ValueError, match="for tokenizer band_groups"):
        Encoder(EncoderSettings(tokenizer=Grid(), positions=GridAndGroup(), size=Shape(24, 1, 2)), 3)


def test_channel_sampling_drops_whole_groups_and_their_bands_do_not_matter():
    encoder = Encoder(EncoderSettings(tokenizer=BandGroups(groups=GROUPS, patch=(2, 4)), size=Shape(24, 2, 2)), 6)
    x = torch.randn(6, 6, 6, 8)
    patches = encoder.tokenizer.patchify(x)
    mask = ChannelMasking(ratio=0.5, min_channels=1, max_channels=2)(patches, chance())
    for sample in range(6):
        named = torch.cat([mask.visible[sample], mask.hidden[sample]])
        kept = patches.place[sample, named, 0].long().unique().tolist()
        assert 1 <= len(kept) <= 2
        dropped = [band for i, group in enumerate(GROUPS) if i not in kept for band in group]
        x[sample, dropped] = 99.0
    changed: Patches = encoder.tokenizer.patchify(x)
    torch.testing.assert_close(encoder(changed, mask).tokens, encoder(patches, mask).tokens)
