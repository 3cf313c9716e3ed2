import pytest
import torch

from models.encoder.tokenizers import Bands, Grid, Groups, build_tokenizer


@pytest.mark.parametrize(("patch", "shape"), [
    ((4, 4), (2, 3, 12, 8)), ((2, 3), (1, 1, 4, 9)), ((2, 3, 4), (2, 2, 4, 6, 8))])
def test_grids_are_put_together_again_exactly(patch, shape):
    tokenizer = build_tokenizer(Grid(patch=patch), shape[1], 24)
    x = torch.randn(shape)
    assert torch.equal(tokenizer.unpatchify(tokenizer.patchify(x).values, shape[2:]), x)


def test_grid_values_are_in_row_column_channel_order_and_places_are_cells():
    x = torch.arange(2 * 4 * 6).float().reshape(1, 2, 4, 6)
    patches = build_tokenizer(Grid(patch=(2, 3)), 2, 24).patchify(x)
    assert patches.place[0].tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    expected = x[0, :, 2:4, 3:6].permute(1, 2, 0).flatten()
    assert torch.equal(patches.values[0, 3], expected)


def test_bands_are_put_together_again_and_say_which_band_they_are():
    tokenizer = build_tokenizer(Bands(patch=(4, 4)), 5, 24)
    x = torch.randn(2, 5, 8, 12)
    patches = tokenizer.patchify(x)
    assert torch.equal(tokenizer.unpatchify(patches.values, (8, 12)), x)
    assert patches.values.shape == (2, 5 * 6, 16)
    assert torch.equal(patches.values[1, 6 * 3 + 2].reshape(4, 4), x[1, 3, 0:4, 8:12])
    assert patches.place[1, 6 * 3 + 2].tolist() == [3, 0, 2]


def test_a_subset_of_bands_keeps_the_names_of_its_bands():
    tokenizer = build_tokenizer(Bands(patch=(4, 4)), 5, 24)
    tokenizer.read_channels([4, 1])
    patches = tokenizer.patchify(torch.randn(1, 2, 4, 4))
    assert patches.place[0, :, 0].tolist() == [4, 1]
    with pytest.raises(ValueError, match="expected 2"):
        tokenizer.patchify(torch.randn(1, 5, 4, 4))


def test_what_is_known_is_cut_like_the_values():
    x = torch.randn(1, 1, 4, 4)
    known = torch.ones_like(x, dtype=torch.bool)
    known[..., :2, :2] = False
    patches = build_tokenizer(Grid(patch=(2, 2)), 1, 24).patchify(x, known)
    assert patches.usable()[0].tolist() == [False, True, True, True]


def test_group_and_centre_are_points_of_the_cloud():
    points = torch.randn(2, 128, 3)
    tokenizer = build_tokenizer(Groups(num_groups=16, group_size=8), 3, 24)
    patches = tokenizer.patchify(points)
    back = tokenizer.unpatchify(patches.values, patches.place).reshape(2, -1, 3)
    for cloud, centres, members in zip(points, patches.place, back, strict=True):
        exact = "donot_use_mm_for_euclid_dist"  # the fast mode rounds
        assert torch.cdist(centres, cloud, compute_mode=exact).min(1).values.max() == 0
        assert torch.cdist(members, cloud, compute_mode=exact).min(1).values.max() < 1e-6


def test_a_group_holds_the_nearest_points_of_its_centre():
    points = torch.randn(1, 64, 3)
    patches = build_tokenizer(Groups(num_groups=4, group_size=8), 3, 24).patchify(points)
    for centre, values in zip(patches.place[0], patches.values[0].reshape(4, 8, 3), strict=True):
        expected = (points[0] - centre).norm(dim=1).sort().values[:8]
        assert torch.allclose(values.norm(dim=1).sort().values, expected, atol=1e-6)


def test_a_group_is_embedded_whatever_the_order_of_its_points():
    tokenizer = build_tokenizer(Groups(num_groups=4, group_size=8), 3, 24).eval()
    values = torch.randn(2, 4, 24)
    shuffled = values.reshape(2, 4, 8, 3)[:, :, torch.randperm(8)].flatten(2)
    assert torch.allclose(tokenizer.embed(values), tokenizer.embed(shuffled), atol=1e-5)


def test_a_patch_that_does_not_divide_the_size_is_refused_with_both():
    with pytest.raises(ValueError, match=r"patch \[16, 16\] does not divide the size \[100, 64\]"):
        build_tokenizer(Grid(), 1, 24).patchify(torch.zeros(1, 1, 100, 64))


def test_clouds_too_small_for_the_groups_are_refused():
    with pytest.raises(ValueError, match="at least num_groups 64"):
        build_tokenizer(Groups(), 3, 24).patchify(torch.zeros(1, 40, 3))
