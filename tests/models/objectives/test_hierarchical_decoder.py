import pytest
import torch

from models.encoder import transformer
from models.encoder.masking import ChannelMasking, RandomMasking
from models.encoder.tokenizers import Bands, Grid, Groups
from models.encoder.transformer import Encoder, EncoderSettings, Shape
from models.objectives.hierarchical_decoder import CrossAttention, HierarchicalDecoderSettings
from models.objectives.masked_autoencoder import MaskedAutoencoder, MaskedAutoencoderSettings
from models.objectives.readouts import ChamferReadout, PixelReadout
from tests.models.objectives.tiny import BATCH, chance, split, train, trainable

DECODER = HierarchicalDecoderSettings(width=16, depth=1, num_heads=2, taps=(1, 0))
LAYER_NORM = PixelReadout(normalise_patch=True, biased_variance=True)
CASES = {
    "volume": (Grid(patch=(4, 4, 4)), (BATCH, 1, 8, 8, 8), RandomMasking(), LAYER_NORM),
    "film": (Grid(patch=(4, 4)), (BATCH, 1, 16, 16), RandomMasking(), PixelReadout()),
    "bands": (Bands(patch=(8, 8)), (BATCH, 3, 16, 16), ChannelMasking(ratio=0.5), PixelReadout()),
    "points": (Groups(num_groups=8, group_size=8), (BATCH, 64, 3), RandomMasking(ratio=0.6), ChamferReadout()),
}


def make(case, decoder=DECODER):
    tokenizer, shape, masking, readout = CASES[case]
    torch.manual_seed(0)
    encoder = Encoder(EncoderSettings(tokenizer=tokenizer, size=Shape(24, 2, 2)), shape[1] if case != "points" else 3)
    settings = MaskedAutoencoderSettings(masking=masking, decoder=decoder, readout=readout)
    return MaskedAutoencoder(settings, encoder), torch.randn(shape)


@pytest.mark.parametrize("case", CASES)
def test_the_loss_falls_on_one_batch_and_every_weight_gets_a_gradient(case):
    model, x = make(case)
    losses, touched = train(model, x, steps=40, rate=5e-3)
    assert sum(losses[-4:]) < 0.9 * sum(losses[:4])
    assert touched == trainable(model)


def test_each_block_looks_at_its_own_layer_of_the_encoder():
    model, x = make("volume")
    model.eval()
    patches = model.encoder.tokenizer.patchify(x)
    mask = model.masking(patches, chance())
    features = model.encoder(patches, mask, model.decoder.taps)
    straight = model.decoder(features, patches, mask)
    crossed = model.decoder(features._replace(layers=features.layers[::-1]), patches, mask)
    assert not torch.allclose(straight, crossed)
    first, second = features.layers
    assert torch.equal(model.encoder.norm(first[:, 1:]), features.tokens), "taps are given in the order asked for"
    assert not torch.equal(first, second)


def test_attention_to_a_large_memory_is_computed_in_float32_on_a_cpu_like_every_other(monkeypatch):
    taken = []

    def attention(q, k, v, attn_mask=None):
        taken.append(q.dtype)
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)

    monkeypatch.setattr(transformer, "scaled_dot_product_attention", attention)
    monkeypatch.setattr(transformer, "MAX_PRODUCT_BYTES", 0)
    cross = CrossAttention(16, 2)
    with torch.autocast("cpu", torch.bfloat16):
        cross(torch.randn(2, 5, 16), torch.randn(2, 7, 16), None)
    assert taken == [torch.float32]


def test_filler_among_visible_and_hidden_patches_changes_nothing():
    model, x = make("film")
    model.eval()
    patches = model.encoder.tokenizer.patchify(x)
    plain, padded = split(4, 14), split(4, 14, filler=2)
    one, two = (model.decoder(model.encoder(patches, mask, model.decoder.taps), patches, mask)
                for mask in (plain, padded))
    torch.testing.assert_close(two[:, :10], one)
    losses = [model.readout(decoded, x, patches, mask) for decoded, mask in ((one, plain), (two, padded))]
    torch.testing.assert_close(losses[1], losses[0])


def test_everything_ends_with_what_is_asked_for():
    model, x = make("film")
    model.eval()
    patches = model.encoder.tokenizer.patchify(x)
    mask = model.masking(patches, chance())
    features = model.encoder(patches, mask, model.decoder.taps)
    hidden, everything = (model.decoder(features, patches, mask, flag) for flag in (False, True))
    assert everything.shape[1] == 1 + 16
    assert torch.equal(everything[:, -hidden.shape[1]:], hidden)


def test_without_self_attention_the_blocks_are_smaller():
    counts = [sum(p.numel() for p in make("film", HierarchicalDecoderSettings(
        width=16, depth=1, num_heads=2, taps=(1,), self_attention=flag))[0].parameters()) for flag in (True, False)]
    assert counts[0] - counts[1] == 2 * 16 + 4 * 16 * 16 + 4 * 16


def test_a_tap_beyond_the_encoder_is_refused_with_its_depth():
    with pytest.raises(ValueError, match=r"found \[9, 6, 3\], expected numbers from 0 to 1"):
        MaskedAutoencoderSettings(decoder=HierarchicalDecoderSettings()).fits(EncoderSettings(size=Shape(24, 2, 2)))
    with pytest.raises(ValueError, match="counted from 0"):
        HierarchicalDecoderSettings(taps=())


def test_targets_are_layer_normed_patches_when_the_variance_is_biased():
    model, x = make("volume")
    result = model.reconstruct(x, None, chance())
    target, known = model.readout.target(result.patches, result.mask)
    raw = result.patches.values.gather(1, result.mask.hidden[..., None].expand(-1, -1, 64))
    assert known is None
    torch.testing.assert_close(target, torch.nn.functional.layer_norm(raw, (64,), eps=1e-6))


def test_a_picture_can_be_drawn_of_every_kind_of_patch():
    for case in CASES:
        model, x = make(case)
        result = model.reconstruct(x, None, chance())
        assert result.predicted.shape[:2] == result.mask.hidden.shape
        assert bool(result.predicted.isfinite().all())
