import pytest
import torch

from models.adapters.adapter import merge_adapters
from models.adapters.gated_prompts import COOLEST, HOTTEST, GatedPrompts, TemperedQueries, add_gated_prompts
from models.adapters.prompts import Prompts, add_prompts
from models.encoder.transformer import Attention
from tests.models.adapters.encoders import DEPTH, WIDTH, everything, make

INFINITY = float("inf")


def with_gates(logit: float):
    encoder, patches = make()
    added = add_gated_prompts(encoder, GatedPrompts(num_prompts=3, gate_start=logit, num_gates=DEPTH))
    return encoder, patches, added


def test_open_gates_are_plain_shallow_prompts():
    gated, patches, added = with_gates(INFINITY)
    plain, _ = make()
    value, = add_prompts(plain, Prompts(num_prompts=3))
    with torch.no_grad():
        value.copy_(added[0])
    assert torch.equal(everything(gated(patches)), everything(plain(patches)))


def test_behind_shut_gates_prompts_stay_what_they_were_while_patches_pass():
    gated, patches, added = with_gates(-INFINITY)
    sequence, = gated(patches, layers=[DEPTH - 1]).layers
    assert torch.equal(sequence[0, 1:4], added[0])
    before, _ = make()
    assert not torch.allclose(sequence[:, 4:], before(patches, layers=[DEPTH - 1]).layers[0][:, 1:])


def test_half_a_gate_is_the_mean_of_both():
    encoder, patches, added = with_gates(0.0)
    inner, made = encoder.blocks[0].wrapped.wrapped, []
    inner.register_forward_hook(lambda module, args, out: made.append(out))
    sequence, = encoder(patches, layers=[0]).layers
    torch.testing.assert_close(sequence[:, 1:4], (made[0][:, 1:4] + added[0]) / 2)
    assert torch.equal(sequence[:, 4:], made[0][:, 4:])


def test_a_temperature_divides_attentions_logits_and_one_changes_nothing():
    torch.manual_seed(0)
    attention, x = Attention(WIDTH, 4), torch.randn(2, 7, WIDTH)
    plain = attention(x, None)
    q, k, v = attention.qkv(x).reshape(2, 7, 3, 4, 5).permute(2, 0, 3, 1, 4)
    attention.qkv = TemperedQueries(attention.qkv)
    assert torch.equal(attention(x, None), plain)
    for asked, used in ((0.3, 0.3), (1e-5, COOLEST), (99.0, HOTTEST)):
        with torch.no_grad():
            attention.qkv.temperature.fill_(asked)
        expected = ((q @ k.mT / 5**0.5 / used).softmax(-1) @ v).transpose(1, 2).flatten(2)
        torch.testing.assert_close(attention(x, None), attention.proj(expected))


def test_every_part_gets_a_gradient_and_the_defaults_are_the_releases():
    encoder, patches = make()
    added = add_gated_prompts(encoder, GatedPrompts(num_prompts=3))
    everything(encoder(patches)).square().sum().backward()
    assert all(value.grad.abs().sum() > 0 for value in added)
    assert [tuple(value.shape) for value in added].count((1,)) == (DEPTH - 1) + DEPTH
    gates = [value for name, value in encoder.named_parameters() if name.endswith("gate_logit")]
    assert all(abs(gate.sigmoid().item() - 0.0067) < 1e-4 for gate in gates)


def test_temperatures_are_folded_away_by_merging():
    encoder, patches = make()
    add_gated_prompts(encoder, GatedPrompts(num_prompts=3))
    with torch.no_grad():
        for name, value in encoder.named_parameters():
            if name.endswith("temperature"):
                value.fill_(0.4)
    before = everything(encoder(patches))
    merge_adapters(encoder)
    torch.testing.assert_close(everything(encoder(patches)), before, rtol=1e-5, atol=1e-5)
    assert not any(isinstance(module, TemperedQueries) for module in encoder.modules())


def test_what_does_not_fit_is_refused_and_changes_nothing():
    encoder, patches = make()
    before = encoder(patches).tokens
    with pytest.raises(ValueError, match="expected at most 3 each"):
        add_gated_prompts(encoder, GatedPrompts(num_gates=4))
    assert torch.equal(encoder(patches).tokens, before)
    add_prompts(encoder, Prompts())
    names = [name for name, _ in encoder.named_parameters()]
    with pytest.raises(ValueError, match="has prompts already"):
        add_gated_prompts(encoder, GatedPrompts())
    assert [name for name, _ in encoder.named_parameters()] == names
    with pytest.raises(ValueError, match="num_gates: found -1"):
        GatedPrompts(num_gates=-1)
