"""Heads that say the class of every pixel: tokens lie where they were cut, and what has no data has no say."""

from __future__ import annotations

import pytest
import torch

from models.adapters.adapter import add_adapter
from models.adapters.prompts import Prompts
from models.encoder.build import build_encoder
from models.encoder.patches import see_all
from models.encoder.tokenizers import Bands, Grid
from models.encoder.transformer import EncoderSettings, Shape
from models.heads.segment_grid import SegmentHead, on_grid
from models.heads.tuned import Tuned, build_head, build_loss

SHAPE = Shape(width=24, depth=4, num_heads=2)


def tuned(tokenizer: Grid | Bands, channels: int = 1, **head: object) -> Tuned:
    torch.manual_seed(0)
    encoder = build_encoder(EncoderSettings(size=SHAPE, tokenizer=tokenizer), channels)
    settings = SegmentHead(width=8, **head)  # type: ignore[arg-type]
    return Tuned(encoder, build_head(settings, 24, 2, encoder=encoder), build_loss(settings, "segmentation", 2))


@pytest.mark.parametrize(("tokenizer", "size"), [
    (Grid(patch=(8, 8)), (32, 24)), (Grid(patch=(6, 6)), (24, 24)), (Grid(patch=(3, 5)), (12, 20)),
    (Grid(patch=(1, 1)), (4, 4)), (Grid(patch=(2, 8, 8)), (8, 16, 16)), (Bands(patch=(8, 8)), (16, 16))])
@pytest.mark.parametrize("design", ["pyramid", "linear"])
def test_it_answers_at_the_resolution_of_the_sample_for_any_patch(tokenizer, size, design):
    channels = 3 if isinstance(tokenizer, Bands) else 1
    model = tuned(tokenizer, channels, design=design)
    told = model(torch.randn(2, channels, *size))
    assert told.shape == (2, 3, *size)
    told.square().mean().backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in model.head.parameters())


@pytest.mark.parametrize("tokenizer", [Grid(patch=(2, 2)), Bands(patch=(2, 2))], ids=["grid", "bands"])
def test_tokens_lie_where_they_were_cut_and_what_is_unknown_has_none(tokenizer):
    model = tuned(tokenizer, 2)
    x = torch.arange(2 * 2 * 4 * 6, dtype=torch.float32).view(2, 2, 4, 6)
    known = torch.ones_like(x, dtype=torch.bool)
    known[0, :, :2, :2] = False   # a place without any band
    known[1, 0, 2:, 4:] = False   # and one that lacks the first band
    patches = model.encoder.tokenizer.patchify(x, known)
    mask = see_all(patches)
    tokens = patches.values.gather(1, mask.visible[..., None].expand(-1, -1, patches.values.shape[-1]))
    found = on_grid(tokens + 1000, patches, 2)                              # B P 2 3
    assert (found[0, :, 0, 0] == 0).all()
    cells = x.unfold(2, 2, 2).unfold(3, 2, 2).flatten(4)                    # B C 2 3 4
    if isinstance(tokenizer, Bands):
        expected = cells.mean(1) + 1000
        expected[1, 1, 2] = cells[1, 1, 1, 2] + 1000
        expected[0, 0, 0] = 0
        torch.testing.assert_close(found.movedim(1, -1), expected)
    else:
        inside = x[1, :, 2:, :2].permute(1, 2, 0).flatten() + 1000
        torch.testing.assert_close(found[1, :, 1, 0], inside)


def test_early_blocks_join_at_fine_resolutions_and_late_ones_at_coarse():
    """UNETR, figure 1."""
    model, x, seen = tuned(Grid(patch=(8, 8))).eval(), torch.randn(1, 1, 32, 32), []
    model.head.mix[2].register_forward_hook(lambda _, given, __: seen.append(given[0]))    # of 32
    patches = model.encoder.tokenizer.patchify(x)
    features = model.encode(patches)
    assert len(features.layers) == 2
    for changed in (None, 0, 1):
        layers = tuple(layer + (i == changed) for i, layer in enumerate(features.layers))
        model.head(features._replace(layers=layers), patches, x)
    assert seen[0].shape[2:] == (8, 8)
    assert torch.equal(seen[0], seen[1]) and not torch.equal(seen[0], seen[2])


def test_prompts_are_no_part_of_the_map():
    model = tuned(Grid(patch=(8, 8)))
    x = torch.randn(1, 1, 16, 16)
    add_adapter(model.encoder, Prompts(num_prompts=5, deep=True))
    assert model(x).shape == (1, 3, 16, 16)
    features = model.encoder(model.encoder.tokenizer.patchify(x), layers=(0,))
    assert features.layers[0].shape[1] == features.tokens.shape[1] + 5 + 1


def test_what_it_cannot_stand_on_is_refused():
    with pytest.raises(ValueError, match="expected a transformer with tokenizer grid, bands, band_groups or groups"):
        build_head(SegmentHead(), 24, 2)
    with pytest.raises(ValueError, match="found 3 channels, expected 1"):
        head = tuned(Grid(patch=(8, 8))).head
        model = tuned(Grid(patch=(8, 8)), 3)
        model.head = head
        model(torch.randn(1, 3, 16, 16))
    with pytest.raises(ValueError, match="a multiple of 8"):
        SegmentHead(width=12)
