import math

import pytest
import torch

from models.encoder.tokenizers import Grid
from models.encoder.transformer import Block, DropPath, Encoder, EncoderSettings, Shape, max_of_valid, mean_of_valid
from models.objectives.decoders import DecoderSettings, TransformerDecoder

TINY = EncoderSettings(tokenizer=Grid(patch=(4, 4)), size=Shape(24, 5, 2), drop_path=0.4)


def test_skipped_branches_are_whole_samples_and_the_others_are_scaled_so_that_the_mean_stays():
    torch.manual_seed(0)
    x = torch.rand(4000, 3, 2) + 1
    out = DropPath(0.25).train()(x)
    kept = out[:, 0, 0] != 0
    assert torch.equal(out[~kept], torch.zeros_like(out[~kept]))
    torch.testing.assert_close(out[kept], x[kept] / 0.75)
    assert kept.float().mean() == pytest.approx(0.75, abs=0.03)


def test_no_branch_is_skipped_outside_training():
    x = torch.randn(8, 3, 2)
    assert torch.equal(DropPath(0.9).eval()(x), x)
    assert torch.equal(DropPath(0.0).train()(x), x)


def test_the_share_of_skipped_branches_grows_in_a_straight_line_from_none_in_encoder_and_decoder():
    encoder = Encoder(TINY, 1)
    assert [block.drop_path.rate for block in encoder.blocks] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    decoder = TransformerDecoder(DecoderSettings(width=24, depth=3, num_heads=2, drop_path=0.2), encoder)
    assert [block.drop_path.rate for block in decoder.blocks] == pytest.approx([0, 0.1, 0.2])


def test_both_branches_of_a_block_are_skipped():
    torch.manual_seed(0)
    block, x = Block(24, 2, drop_path=1 - 1e-9).train(), torch.randn(5, 4, 24)
    assert torch.equal(block(x), x)
    assert not torch.equal(block.eval()(x), x)


def test_first_weights_are_xavier_s_and_tokens_are_small_and_not_0():
    torch.manual_seed(0)
    encoder = Encoder(EncoderSettings(tokenizer=Grid(patch=(4, 4)), size=Shape(96, 2, 2), class_position=True), 1)
    linears = [encoder.tokenizer.project, *(layer for layer in encoder.blocks.modules()
                                            if isinstance(layer, torch.nn.Linear))]
    for layer in linears:
        bound = math.sqrt(6 / (layer.in_features + layer.out_features))
        assert 0.97 * bound < float(layer.weight.detach().abs().max()) <= bound
        assert not layer.bias.any()
    for token in (encoder.class_token, encoder.class_position):
        assert float(token.detach().std()) == pytest.approx(0.02, rel=0.3)


def test_without_a_class_token_the_summary_is_the_mean_of_the_tokens_that_hold_data():
    torch.manual_seed(0)
    encoder = Encoder(EncoderSettings(tokenizer=Grid(patch=(4, 4)), size=Shape(24, 2, 2), class_token=False), 1).eval()
    x, known = torch.randn(2, 1, 8, 8), torch.ones(2, 1, 8, 8, dtype=torch.bool)
    known[0, ..., 4:] = False
    features = encoder(encoder.tokenizer.patchify(x * known, known))
    torch.testing.assert_close(features.summary[0], features.tokens[0, :2].mean(0))
    torch.testing.assert_close(features.summary[1], features.tokens[1].mean(0))


@pytest.mark.parametrize("last_norm", [True, False])
def test_tokens_leave_the_encoder_normalised_unless_it_was_asked_to_leave_them(last_norm):
    torch.manual_seed(0)
    settings = EncoderSettings(tokenizer=Grid(patch=(4, 4)), size=Shape(24, 2, 2), last_norm=last_norm)
    encoder = Encoder(settings, 1).eval()
    features = encoder(encoder.tokenizer.patchify(torch.randn(2, 1, 8, 8)), layers=(1,))
    last = features.layers[-1]
    expected = torch.nn.functional.layer_norm(last, (24,), eps=1e-6) if last_norm else last
    torch.testing.assert_close(features.tokens, expected[:, 1:])
    torch.testing.assert_close(features.summary, expected[:, 0])


def test_mean_and_maximum_leave_filler_out_and_are_0_of_nothing():
    tokens = torch.tensor([[[-1.0], [-3.0], [9.0]], [[1.0], [2.0], [6.0]], [[7.0], [7.0], [7.0]]])
    valid = torch.tensor([[True, True, False], [True, True, True], [False, False, False]])
    assert mean_of_valid(tokens, valid).flatten().tolist() == [-2, 3, 0]
    assert max_of_valid(tokens, valid).flatten().tolist() == [-1, 6, 0]


def test_numbers_that_are_added_to_logits_keep_their_digits_in_bfloat16_on_a_cpu():
    """A merged token counts as often as it stands for one, also where tokens are halves."""
    from models.encoder.transformer import fused_attention
    q = k = torch.zeros(1, 1, 2, 4, dtype=torch.bfloat16)
    v = torch.tensor([[1.0] * 4, [0.0] * 4], dtype=torch.bfloat16)[None, None]
    more = torch.tensor([3.0, 1.0]).log().to(torch.bfloat16)[None, None, None]
    out = fused_attention(q, k, v, more)
    assert out.dtype == torch.bfloat16 and out.flatten().float().tolist() == pytest.approx([0.75] * 8, abs=0.01)


@pytest.mark.parametrize("limit", [0, 2**30])
def test_attention_in_bfloat16_on_a_cpu_is_that_of_float64_with_and_without_the_matrix_in_memory(limit, monkeypatch):
    from models.encoder import transformer
    monkeypatch.setattr(transformer, "MAX_PRODUCT_BYTES", limit)
    q, k, v = (torch.randn(2, 3, tokens, 16, generator=torch.Generator().manual_seed(tokens + i)).bfloat16()
               .requires_grad_() for i, tokens in enumerate((7, 9, 9)))
    exact = [each.detach().double().requires_grad_() for each in (q, k, v)]
    expected = ((exact[0] @ exact[1].mT / 4).softmax(-1) @ exact[2])
    found = transformer.fused_attention(q, k, v, None)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), expected, atol=0.02, rtol=0.02)
    slope = torch.linspace(-1, 1, 16)
    (found.float() * slope).sum().backward()
    (expected * slope).sum().backward()
    for ours, theirs in zip((q, k, v), exact, strict=True):
        assert float((ours.grad.double() - theirs.grad).norm()) < 0.02 * float(theirs.grad.norm())


def test_attention_by_products_never_reads_the_memory_it_starts_from(monkeypatch):
    """The product starts from a number that nobody has written: a NaN there must not reach the result."""
    from models.encoder.transformer import attention_by_products
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda self, shape: self.new_full(shape, float("nan")))
    assert torch.isfinite(attention_by_products(*torch.randn(3, 2, 1, 5, 32).bfloat16())).all()
