"""The Swin encoder: MONAI's class in another dress, with the wiring of patch merging as a setting."""

from __future__ import annotations

import sys

import pytest
import torch
from monai.networks.nets import swin_unetr

from models.encoder.build import build_encoder, holds_what_is_asked
from models.encoder.patches import see_all
from models.encoder.swin import CORNERS, Merging, SwinEncoder, SwinSettings, normalised, stage_grid
from models.encoder.transformer import EncoderSettings

VOLUME = SwinSettings(feature_size=4, depths=(1, 2, 1, 3), num_heads=(2, 1, 4, 8), window=(2, 3, 4), mlp_ratio=2.0)
IMAGE = SwinSettings(patch=(3, 4), feature_size=4, depths=(2, 1, 1, 1), num_heads=(1, 2, 2, 4), window=(3, 2))


def encoder_of(settings: SwinSettings, num_channels: int = 1) -> SwinEncoder:
    torch.manual_seed(0)
    encoder = SwinEncoder(settings, num_channels).eval()
    for parameter in encoder.parameters():  # away from the zeros and ones that biases and norms begin with
        torch.nn.init.normal_(parameter, std=0.3)
    return encoder


@pytest.mark.parametrize(("settings", "size"), [(VOLUME, (20, 12, 28)), (IMAGE, (33, 40))], ids=["volume", "image"])
def test_every_map_is_the_one_that_monai_s_class_makes_at_sizes_that_windows_do_not_fill(settings, size):
    encoder = encoder_of(settings, num_channels=2)
    theirs = swin_unetr.SwinTransformer(
        in_chans=2, embed_dim=settings.feature_size, window_size=settings.window, patch_size=settings.patch,
        depths=settings.depths, num_heads=settings.num_heads, mlp_ratio=settings.mlp_ratio, spatial_dims=len(size))
    weights = {f"layers{int(name.split('.')[1]) + 1}.0.{name.split('.', 2)[2]}": value
               for name, value in encoder.state_dict().items() if name.startswith("blocks.")}
    kernel = encoder.tokenizer.project.weight.unflatten(1, (*settings.patch, 2)).movedim(-1, 1)
    weights |= {"patch_embed.proj.weight": kernel, "patch_embed.proj.bias": encoder.tokenizer.project.bias}
    left = theirs.load_state_dict(weights, strict=False)
    assert not left.unexpected_keys and all(name.endswith("_index") for name in left.missing_keys)
    x = torch.randn(2, 2, *size)
    patches = encoder.tokenizer.patchify(x)
    features = encoder(patches, layers=range(4))
    expected = theirs.eval()(x, normalize=False)
    for stage in range(4):
        grid = stage_grid(patches.grid, stage)
        ours = features.layers[stage].unflatten(1, grid).movedim(-1, 1)
        torch.testing.assert_close(ours, expected[stage + 1], rtol=1e-4, atol=1e-5)
    last = normalised(expected[-1].flatten(2).transpose(1, 2))
    torch.testing.assert_close(features.tokens, last, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(features.summary, features.tokens.mean(1))
    assert encoder.width == features.tokens.shape[-1] == 16 * settings.feature_size


@pytest.mark.parametrize(("order", "unseen"), [("legacy", {(1, 1, 0), (0, 1, 1)}), ("current", set())])
def test_legacy_merging_leaves_two_of_eight_neighbours_out_and_current_merging_none(order, unseen):
    merging = Merging(3, torch.nn.LayerNorm, 3, order)
    x = torch.randn(1, 4, 2, 6, 3, requires_grad=True)
    out = merging(x)
    assert out.shape == (1, 2, 1, 3, 6)
    out.square().sum().backward()
    silent = (x.grad[0].abs().sum(-1) == 0).nonzero().tolist()
    assert {tuple(n % 2 for n in place) for place in silent} == unseen
    assert len(silent) == len(unseen) * 6


def test_the_two_wirings_of_images_are_one():
    assert CORNERS["legacy"][2] == CORNERS["current"][2]


def test_cells_without_data_are_said_to_be_none_and_do_not_count_in_the_summary():
    encoder = encoder_of(VOLUME)
    x, known = torch.randn(2, 1, 32, 32, 72), torch.ones(2, 1, 32, 32, 72, dtype=torch.bool)
    known[1, ..., 32:] = False
    features = encoder(encoder.tokenizer.patchify(x * known, known))
    assert features.valid.tolist() == [[True, True, True], [True, False, False]]
    torch.testing.assert_close(features.summary[1], features.tokens[1, 0])
    assert encoder(encoder.tokenizer.patchify(x, torch.ones_like(known))).valid is None


def test_a_mask_that_hides_nothing_changes_nothing():
    encoder = encoder_of(VOLUME)
    patches = encoder.tokenizer.patchify(torch.randn(1, 1, 16, 16, 16))
    assert torch.equal(encoder(patches, see_all(patches)).tokens, encoder(patches).tokens)


def test_no_checkpoint_carries_what_follows_from_the_window():
    assert not [name for name in SwinEncoder(VOLUME, 1).state_dict() if name.endswith("index")]


def test_without_monai_the_extra_to_install_is_named(monkeypatch):
    for name in [name for name in sys.modules if name == "monai" or name.startswith("monai.")]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"lacuna\[medical\]"):
        build_encoder(VOLUME, 1)


@pytest.mark.parametrize(("changes", "said"), [
    ({"window": (7, 7)}, "expected 3 sizes"), ({"depths": (2, 2)}, "expected 4 numbers"),
    ({"num_heads": (3, 6, 12, 7)}, "not a multiple of its num_heads 7"), ({"patch": (2,)}, "two or three")])
def test_settings_that_mean_nothing_are_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        SwinSettings(**changes)


def test_a_checkpoint_is_what_was_asked_for_when_it_differs_in_what_is_random_while_training():
    held = SwinSettings()
    assert holds_what_is_asked(held, SwinSettings(drop_path=0.1, dropout=0.1))
    assert not holds_what_is_asked(held, SwinSettings(merging="legacy"))
    assert not holds_what_is_asked(held, EncoderSettings())
    assert not holds_what_is_asked(EncoderSettings(), held)
    assert holds_what_is_asked(EncoderSettings(), EncoderSettings(dropout=0.1))
