from dataclasses import replace

import pytest
import torch

from models.encoder.grid_2d_3d import Grid2D3D
from models.encoder.masking import ChannelMasking, RandomMasking
from models.encoder.tokenizers import Bands, Grid, Groups
from models.encoder.transformer import Encoder, EncoderSettings, Shape
from models.objectives.decoders import DecoderSettings
from models.objectives.dynamic_head import DynamicHead, DynamicHeadSettings
from tests.models.objectives.tiny import BATCH, chance, train, trainable

SETTINGS = DynamicHeadSettings(grid=(4, 4), num_tasks=3, decoder=DecoderSettings(width=16, depth=1, num_heads=2))
BY_BAND = ChannelMasking(ratio=0.5)
CASES = {"film": (Grid(patch=(4, 4)), (BATCH, 1, 16, 16), SETTINGS),
         "bands": (Bands(patch=(8, 8)), (BATCH, 3, 16, 16), replace(SETTINGS, grid=(3, 2, 2), masking=BY_BAND)),
         "volume": (Grid2D3D(cube=(4, 4, 4)), (BATCH, 1, 8, 8, 8), replace(SETTINGS, grid=(2, 2, 2)))}


def make(case="film", **changes):
    torch.manual_seed(0)
    tokenizer, shape, settings = CASES[case]
    encoder = Encoder(EncoderSettings(tokenizer=tokenizer, size=Shape(24, 2, 2)), shape[1])
    return DynamicHead(replace(settings, **changes), encoder), torch.randn(shape)


@pytest.mark.parametrize("case", CASES)
def test_the_loss_falls_on_one_batch_and_every_weight_gets_a_gradient(case):
    model, x = make(case)
    losses, touched = train(model, x, steps=40, rate=5e-3)
    assert sum(losses[-4:]) < 0.95 * sum(losses[:4])
    assert touched == {name for name in trainable(model) if "tokenizer.image" not in name}
    result = model.reconstruct(x, None, chance())
    assert result.predicted.shape[:2] == result.mask.hidden.shape


def test_predictions_are_mixed_by_weights_of_each_sample():
    model, x = make()
    model.eval()
    patches = model.encoder.tokenizer.patchify(x)
    mask = model.masking(patches, chance())
    mixed = model.mix(model.encoder(patches, mask), patches, mask)
    predicted = mixed.predicted()
    by_hand = sum(mixed.weights[1, 5, u] * mixed.single[1, u] for u in range(16)) + mixed.bias[1, 5]
    torch.testing.assert_close(predicted[1, 5], by_hand)
    assert not torch.allclose(mixed.weights[0], mixed.weights[1])


def test_the_task_changes_the_weights_and_nothing_else():
    model, x = make()
    model.eval()
    patches = model.encoder.tokenizer.patchify(x)
    mask = model.masking(patches, chance())
    features = model.encoder(patches, mask)
    one, two = (model.mix(features, patches, mask, torch.full((BATCH,), task)) for task in (0, 2))
    assert torch.equal(one.single, two.single) and not torch.allclose(one.weights, two.weights)
    assert torch.equal(model.mix(features, patches, mask).weights, one.weights), "task 0 is the default"


def test_only_the_released_quirk_clamps_what_the_decoder_gets():
    (plain, x), (quirk, _) = make(), make(released_relu=True)
    quirk.load_state_dict(plain.state_dict())
    patches = plain.encoder.tokenizer.patchify(x)
    mask = plain.masking(patches, chance())
    one, two = (model.eval().mix(model.encoder(patches, mask), patches, mask) for model in (plain, quirk))
    assert bool((one.start < 0).any())
    assert torch.equal(two.start, one.start.relu())
    assert torch.equal(one.weights, two.weights) and not torch.allclose(one.single, two.single)


def test_dropped_patches_are_mixed_into_nothing_and_never_scored():
    model, x = make()
    model.eval()
    known = torch.ones_like(x, dtype=torch.bool)
    known[0, :, :4] = False                                                  # four of sixteen patches
    known[1, :, 4:8, 4:8] = False
    x = x.masked_fill(~known, 0)
    patches = model.encoder.tokenizer.patchify(x, known)
    mask = model.masking(patches, chance())
    assert mask.hidden_valid is not None
    mixed = model.mix(model.encoder(patches, mask), patches, mask)
    assert not mixed.single[0, :4].any() and not mixed.start[0, 1:5].any() and bool(mixed.single[2, :4].any())
    before = model(x, known, chance())["reconstruction"]
    garbage = patches._replace(values=patches.values.masked_fill(~patches.known, 1e6))
    predicted = mixed.predicted().gather(1, mask.hidden[..., None].expand(-1, -1, 16))
    assert torch.equal(model.readout.score(predicted, garbage, mask), before)


def test_another_size_than_the_heads_own_is_refused():
    model, _ = make()
    with pytest.raises(ValueError, match=r"found 4 patches, expected 16: the head is made for objective.grid \[4, 4\]"):
        model(torch.randn(2, 1, 8, 8), None, chance(batch=2))


@pytest.mark.parametrize(("change", "said"), [
    ({"task": 3}, "expected 0 to 2"), ({"grid": ()}, "sizes of at least 1"),
    ({"decoder": DecoderSettings(place_every_block=True)}, "place_every_block")])
def test_settings_that_mean_nothing_are_refused(change, said):
    with pytest.raises(ValueError, match=said):
        replace(SETTINGS, **change)


def test_points_lie_on_no_grid():
    with pytest.raises(ValueError, match="groups of points lie on none"):
        replace(SETTINGS, masking=RandomMasking()).fits(EncoderSettings(tokenizer=Groups()))
