"""Groups with features: seen by the embedding, passed on by patches, and no prediction of them is asked for."""

from __future__ import annotations

import pytest
import torch

from models.encoder.patches import Mask, see_all
from models.encoder.tokenizers import Groups, build_tokenizer
from models.encoder.transformer import Encoder, EncoderSettings, Shape
from models.objectives.readouts import ChamferReadout, build_readout

SETTINGS = Groups(num_groups=8, group_size=6, widths=(8, 16, 16))


def clouds(batch: int = 2, points: int = 64, extra: int = 4) -> torch.Tensor:
    return torch.randn(batch, points, 3 + extra, generator=torch.Generator().manual_seed(0))


def test_a_group_holds_relative_places_and_the_features_of_the_same_points() -> None:
    x = clouds()
    tokenizer = build_tokenizer(SETTINGS, 7, 24)
    patches = tokenizer.patchify(x)
    plain = build_tokenizer(SETTINGS, 3, 24).patchify(x[..., :3])
    assert torch.equal(patches.place, plain.place) and patches.known is None
    values = patches.values.reshape(2, 8, 6, 7)
    assert torch.equal(values[..., :3].flatten(2), plain.values)
    back = tokenizer.unpatchify(patches.values, patches.place)              # B G*k 7
    gap = (back[:, :, None, 3:] - x[:, None, :, 3:]).abs().sum(-1)
    same = gap.argmin(2)
    assert float(gap.amin(2).max()) == 0
    assert torch.allclose(back[..., :3], x.gather(1, same[..., None].expand(-1, -1, 7))[..., :3], atol=1e-6)


def test_the_embedding_sees_features_and_the_prediction_is_of_places_alone() -> None:
    encoder = Encoder(EncoderSettings(tokenizer=SETTINGS, size=Shape(24, 1, 2)), 7).eval()
    x = clouds()
    other = x.clone()
    other[..., 3:] += 1
    assert not torch.allclose(encoder(encoder.tokenizer.patchify(x)).tokens,
                              encoder(encoder.tokenizer.patchify(other)).tokens)
    readout = build_readout(ChamferReadout(), 16, encoder)
    patches, more = encoder.tokenizer.patchify(x), encoder.tokenizer.patchify(other)
    hidden = torch.arange(4).expand(2, 4)
    mask = Mask(hidden + 4, hidden)
    decoded = torch.randn(2, 4, 16)
    assert readout.predict(decoded, patches, mask).shape == (2, 4, 18)
    assert torch.equal(readout(decoded, x, patches, mask), readout(decoded, other, more, mask))


def test_missing_points_are_no_centre_and_no_neighbour_and_groups_without_points_are_dropped() -> None:
    x, known = clouds(extra=1), torch.ones(2, 64, 4, dtype=torch.bool)
    known[0, 5:], known[1, 20:] = False, False
    x = x.masked_fill(~known, 0.0)
    tokenizer = build_tokenizer(SETTINGS, 4, 24)
    patches = tokenizer.patchify(x, known)
    usable = patches.usable()
    assert usable is not None and usable.sum(1).tolist() == [5, 8]
    few = {tuple(row) for row in patches.place[0][usable[0]].tolist()}
    assert few == {tuple(row) for row in x[0, :5, :3].tolist()}              # every point once, and no other place
    members = tokenizer.unpatchify(patches.values, patches.place).reshape(2, 8, 6, 4)
    real = {round(value, 4) for value in x[0, :5, 3].tolist()}
    assert {round(value, 4) for value in members[0][usable[0]][..., 3].flatten().tolist()} <= real
    alone = tokenizer.patchify(x[1:, :20], None)                             # as if the cloud had no filler
    assert torch.equal(patches.values[1], alone.values[0]) and torch.equal(patches.place[1], alone.place[0])
    seen = see_all(patches)
    assert seen.visible_valid is not None and seen.visible_valid.sum(1).tolist() == [5, 8]


def test_a_feature_that_is_unknown_at_a_point_leaves_the_point_where_it_is() -> None:
    x, known = clouds(extra=1), torch.ones(2, 64, 4, dtype=torch.bool)
    known[:, ::2, 3] = False
    x = x.masked_fill(~known, 0.0)
    patches = build_tokenizer(SETTINGS, 4, 24).patchify(x, known)
    assert torch.equal(patches.place, build_tokenizer(SETTINGS, 3, 24).patchify(x[..., :3]).place)
    assert patches.usable().all() and not patches.known.all()


def test_a_sample_embeds_alike_beside_others_with_filler_and_without() -> None:
    encoder = Encoder(EncoderSettings(tokenizer=SETTINGS, size=Shape(24, 2, 2)), 3).eval()
    x, known = clouds(extra=0), torch.ones(2, 64, 3, dtype=torch.bool)
    known[0, 6:] = False
    x = x.masked_fill(~known, 0.0)
    mixed, alone = encoder(encoder.tokenizer.patchify(x, known)), encoder(encoder.tokenizer.patchify(x[1:]))
    torch.testing.assert_close(mixed.tokens[1:], alone.tokens)


def test_clouds_with_other_features_than_the_encoder_are_refused() -> None:
    with pytest.raises(ValueError, match="with 7 values, expected .* with 3 values"):
        build_tokenizer(SETTINGS, 3, 24).patchify(clouds())
