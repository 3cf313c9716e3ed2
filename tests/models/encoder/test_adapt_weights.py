from typing import NamedTuple

import pytest
import torch
from torch.nn.functional import interpolate

from models.encoder.adapt_weights import (
    fit_channels,
    match_channels,
    resize_patch,
    resize_positions,
    set_channels,
)
from models.encoder.band_groups import BandGroups
from models.encoder.cutting import cut
from models.encoder.grid_2d_3d import Grid2D3D
from models.encoder.positions import GridAndGroup, ImageAndVolume, NoPositions, Table
from models.encoder.tokenizers import Bands, Grid, Groups
from models.encoder.transformer import Encoder, EncoderSettings, Shape


class Band(NamedTuple):
    name: str
    wavelength_nm: float | None = None


RGB = (Band("R", 640.0), Band("G", 550.0), Band("B", 460.0))
SENTINEL = tuple(Band(name, nm) for name, nm in (("B2", 492.4), ("B3", 559.8), ("B4", 664.6), ("B8", 832.8)))


def encoder_of(tokenizer, num_channels=3, positions=None) -> Encoder:
    torch.manual_seed(0)
    return Encoder(EncoderSettings(tokenizer=tokenizer, size=Shape(24, 2, 2), positions=positions), num_channels).eval()


def one_patch(tokenizer, x: torch.Tensor) -> torch.Tensor:
    """x 1 C *size, one patch large -> 1 1 E"""
    return tokenizer.embed(cut(x, (1,) * (x.dim() - 2), x.shape[2:]))


def same_after_rebuild(encoder: Encoder) -> bool:
    """What was edited is what its settings describe."""
    again = Encoder(encoder.settings, encoder.num_channels)
    again.load_state_dict(encoder.state_dict())
    size = {2: (48, 48), 3: (24, 24, 24)}[len(encoder.tokenizer.patch)]
    patches = encoder.tokenizer.patchify(torch.randn(2, encoder.num_channels, *size))
    return torch.equal(again.eval()(patches).tokens, encoder(patches).tokens)


@pytest.mark.parametrize(("old", "new", "mode"), [
    ((4, 4), (8, 8), "bilinear"), ((4, 6), (12, 6), "bilinear"), ((3, 3, 3), (4, 6, 8), "trilinear")])
def test_a_kernel_answers_of_an_enlarged_patch_what_it_answered_of_the_patch(old, new, mode):
    encoder = encoder_of(Grid(patch=old), 2)
    x = torch.randn(5, 2, *old)
    before = one_patch(encoder.tokenizer, x)
    said = resize_patch(encoder, new)
    after = one_patch(encoder.tokenizer, interpolate(x, size=new, mode=mode, align_corners=False))
    assert torch.allclose(before, after, atol=1e-5)
    assert encoder.settings.tokenizer.patch == encoder.tokenizer.stored == new
    assert said and str(new[0]) in said[0]
    assert same_after_rebuild(encoder)


def test_a_kernel_is_the_same_after_growing_and_shrinking_back():
    encoder = encoder_of(Grid(patch=(4, 4)), 1)
    before = encoder.tokenizer.project.weight.clone()
    resize_patch(encoder, (4, 4))
    assert torch.allclose(encoder.tokenizer.project.weight, before, atol=1e-6)
    resize_patch(encoder, (12, 12))
    assert encoder.tokenizer.project.weight.shape == (24, 144)


def test_kernels_of_bands_of_groups_of_bands_and_of_volumes_are_resized_too():
    for tokenizer, channels in ((Bands(patch=(4, 4)), 3), (BandGroups(groups=((0, 2), (1,)), patch=(4, 4)), 3)):
        encoder = encoder_of(tokenizer, channels)
        x = torch.randn(2, channels, 4, 4)
        before = encoder.tokenizer.patchify(x)
        tokens = encoder.tokenizer.embed(before.values, before.place)
        resize_patch(encoder, (8, 8))
        after = encoder.tokenizer.patchify(interpolate(x, size=(8, 8), mode="bilinear", align_corners=False))
        assert torch.allclose(tokens, encoder.tokenizer.embed(after.values, after.place), atol=1e-5), tokenizer
        assert same_after_rebuild(encoder)
    both = encoder_of(Grid2D3D(patch=(4, 4), cube=(4, 4, 4)), 1)
    image = both.tokenizer.image.weight.clone()
    x = torch.randn(2, 1, 4, 4, 4)
    before = both.tokenizer.embed(cut(x, (1, 1, 1), (4, 4, 4)), torch.zeros(2, 1, 3))
    resize_patch(both, (6, 8, 4))
    larger = interpolate(x, size=(6, 8, 4), mode="trilinear", align_corners=False)
    assert torch.allclose(before, both.tokenizer.embed(cut(larger, (1, 1, 1), (6, 8, 4)), torch.zeros(2, 1, 3)),
                          atol=1e-5)
    assert both.settings.tokenizer.cube == (6, 8, 4) and torch.equal(both.tokenizer.image.weight, image)


@pytest.mark.parametrize(("tokenizer", "patch", "said"), [
    (Groups(num_groups=4, group_size=4), (8, 8), "groups of points"), (Grid(patch=(4, 4)), (8, 8, 8), "expected 2"),
    (Grid(patch=(4, 4)), (8, 0), "at least 1")])
def test_a_patch_that_means_nothing_is_refused(tokenizer, patch, said):
    with pytest.raises(ValueError, match=said):
        resize_patch(encoder_of(tokenizer), patch)


@pytest.mark.parametrize("patch", [(4, 4), (4, 4, 4)])
def test_a_grey_channel_answers_as_if_it_were_repeated_in_each_colour(patch):
    encoder = encoder_of(Grid(patch=patch))
    grey = torch.randn(3, 1, *patch)
    before = one_patch(encoder.tokenizer, grey.expand(-1, 3, *patch))
    match = fit_channels(encoder, RGB, [Band("grey")])
    assert torch.allclose(before, one_patch(encoder.tokenizer, grey), atol=1e-5)
    assert encoder.num_channels == 1 and same_after_rebuild(encoder)
    assert "sum" in match.said[0] and not match.by_name


def test_colours_are_taken_by_name_in_any_order_and_bit_for_bit():
    encoder = encoder_of(Grid(patch=(4, 4)))
    x = torch.randn(2, 3, 4, 4)
    before = one_patch(encoder.tokenizer, x)
    match = fit_channels(encoder, RGB, [Band("blue"), Band("green"), Band("red")])
    assert match.sources == ((2,), (1,), (0,)) and match.by_name
    assert torch.allclose(one_patch(encoder.tokenizer, x.flip(1)), before, atol=1e-6)
    same = encoder_of(Grid(patch=(4, 4)))
    weight = same.tokenizer.project.weight.clone()
    fit_channels(same, RGB, RGB)
    assert torch.equal(same.tokenizer.project.weight, weight)


def test_bands_are_taken_by_wavelength_and_never_twice():
    encoder = encoder_of(Grid(patch=(4, 4)))
    x = torch.randn(2, 3, 4, 4)                                             # B2 B3 B4: blue, green, red
    before = one_patch(encoder.tokenizer, x.flip(1))
    match = fit_channels(encoder, RGB, SENTINEL[:3])
    assert match.sources == ((2,), (1,), (0,)) and len(match.said) == 3
    assert torch.allclose(one_patch(encoder.tokenizer, x), before, atol=1e-6)
    with pytest.raises(ValueError, match=r"B1 and B2, each within 35 nm of B .*--set channels"):
        match_channels(RGB, [Band("B1", 442.7), *SENTINEL])


def test_a_band_that_the_weights_do_not_know_is_refused_and_nothing_is_tiled():
    encoder = encoder_of(Grid(patch=(4, 4)))
    weight = encoder.tokenizer.project.weight.clone()
    with pytest.raises(ValueError, match=r"found B8, expected channels that the weights know \(R, G, B\)"):
        fit_channels(encoder, RGB, SENTINEL)
    with pytest.raises(ValueError, match="found VH"):
        fit_channels(encoder, RGB, [Band("VH")])
    assert torch.equal(encoder.tokenizer.project.weight, weight), "a refusal edits nothing"


def test_a_name_that_the_wavelength_contradicts_is_no_match():
    theirs = [Band("B4", 664.6), Band("B5", 704.1)]
    assert match_channels(theirs, [Band("B5", 864.7)]).sources == ((),)
    assert match_channels(theirs, [Band("B4", 655.0)]).sources == ((0,),)
    assert match_channels(theirs, [Band("B4")]).sources == ((0,),), "nobody says another wavelength"


def test_channels_that_are_not_in_the_data_count_as_their_mean():
    encoder = encoder_of(Grid(patch=(4, 4)))
    x = torch.randn(2, 2, 4, 4)
    before = one_patch(encoder.tokenizer, torch.cat([x[:, :1], torch.zeros(2, 1, 4, 4), x[:, 1:]], 1))
    match = fit_channels(encoder, RGB, [RGB[0], RGB[2]])
    assert torch.allclose(one_patch(encoder.tokenizer, x), before, atol=1e-6)
    assert any("not in the data: G" in sentence for sentence in match.said)


def test_one_channel_without_a_name_is_the_only_one_of_the_data():
    assert match_channels([Band("channel 0")], [Band("HU")]).sources == ((0,),)
    assert match_channels([Band("grey")], [Band("B8", 832.8)]).sources == ((),)
    assert match_channels([Band("channel 0"), Band("channel 1")], [Band("grey")]).sources == ((),)


def test_new_channels_begin_without_a_say_and_can_learn():
    encoder = encoder_of(Grid(patch=(4, 4)))
    x = torch.randn(2, 5, 4, 4)
    before = one_patch(encoder.tokenizer, x[:, :3])
    set_channels(encoder, [(0,), (1,), (2,), (), ()])
    after = one_patch(encoder.tokenizer, x)
    assert torch.allclose(after, before, atol=1e-6) and same_after_rebuild(encoder)
    after.square().sum().backward()
    assert bool((encoder.tokenizer.project.weight.grad.unflatten(1, (-1, 5))[..., 3:] != 0).any())
    with pytest.raises(ValueError, match="inside one token"):
        set_channels(encoder_of(Bands(patch=(4, 4))), [(0,), ()])


def test_images_and_volumes_share_their_channels():
    encoder = encoder_of(Grid2D3D(patch=(4, 4), cube=(2, 4, 4)), 3)
    image, volume = torch.randn(2, 1, 8, 8), torch.randn(2, 1, 4, 8, 8)
    patchify = encoder.tokenizer.patchify
    before = [encoder(patchify(x.expand(-1, 3, *x.shape[2:]))).tokens for x in (image, volume)]
    fit_channels(encoder, RGB, [Band("HU")])
    for x, tokens in zip((image, volume), before, strict=True):
        assert torch.allclose(encoder(encoder.tokenizer.patchify(x)).tokens, tokens, atol=1e-5)


@pytest.mark.parametrize(("tokenizer", "positions", "shape", "channels"), [
    (Grid(patch=(4, 4)), Table(grid=(5, 5), learnt=False), (12, 16), 1),
    (Grid(patch=(4, 4, 4)), Table(grid=(2, 3, 2)), (12, 8, 16), 1),
    (BandGroups(groups=((0,), (1, 2)), patch=(4, 4)), GridAndGroup(grid=Table(grid=(4, 4))), (12, 8), 3),
    (Grid2D3D(patch=(4, 4), cube=(2, 2, 2)), ImageAndVolume(image=Table(grid=(2, 2)), volume=NoPositions()), (12, 8),
     1)])
def test_a_table_resized_once_is_the_table_resized_in_every_step(tokenizer, positions, shape, channels):
    encoder = encoder_of(tokenizer, channels, positions)
    patches = encoder.tokenizer.patchify(torch.randn(2, channels, *shape))
    before = encoder(patches).tokens
    learnt = {name: value.requires_grad for name, value in encoder.named_parameters()}
    said = resize_positions(encoder, patches.grid[-len(shape):])
    assert torch.equal(encoder(patches).tokens, before) and len(said) == 1
    assert {name: value.requires_grad for name, value in encoder.named_parameters()} == learnt
    again = Encoder(encoder.settings, channels)
    again.load_state_dict(encoder.state_dict())
    assert torch.equal(again.eval()(patches).tokens, before)
    assert resize_positions(encoder, patches.grid[-len(shape):]) == []


def test_a_table_with_a_way_of_its_own_and_computed_positions_stay():
    for positions in (Table(grid=(4, 4), channelvit_resize=True), None):
        encoder = encoder_of(Bands(patch=(4, 4)), 2, positions)
        settings = encoder.settings
        assert resize_positions(encoder, (3, 5)) == [] and encoder.settings is settings


@torch.no_grad()
def test_a_kernel_that_shrinks_answers_of_smooth_patches_nearly_as_before():
    encoder = encoder_of(Grid(patch=(8, 8)), 1)
    ramp = torch.linspace(-1, 1, 8)
    x = (ramp[:, None] + ramp)[None, None]
    before = one_patch(encoder.tokenizer, x)
    resize_patch(encoder, (4, 4))
    small = interpolate(x, size=(4, 4), mode="bilinear", align_corners=False, antialias=True)
    error = (one_patch(encoder.tokenizer, small) - before).norm() / before.norm()
    assert error < 0.5
