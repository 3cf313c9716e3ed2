import pytest
import torch
from torch import nn

from models.adapters.adapter import merge_adapters
from models.adapters.lora import Lora, LoraLinear, add_lora
from tests.models.adapters.encoders import DEPTH, make

EVERY = ("query", "key", "value", "output", "mlp")


def stirred(added: list[nn.Parameter]) -> None:
    """Away from B = 0, which would hide mistakes."""
    torch.manual_seed(1)
    with torch.no_grad():
        for value in added:
            value += 0.2 * torch.randn_like(value)


@pytest.mark.parametrize("layers", [("query", "value"), ("key",), EVERY])
def test_it_has_no_effect_at_the_start_to_the_bit(layers):
    encoder, patches = make()
    before = encoder(patches).tokens
    added = add_lora(encoder, Lora(rank=2, layers=layers))
    assert torch.equal(encoder(patches).tokens, before)
    assert len(added) == 2 * DEPTH * (1 + 3 * ("mlp" in layers))
    assert all(value.requires_grad for value in encoder.parameters())


def test_queries_and_values_of_every_block_are_changed_unless_others_are_named():
    encoder, _ = make()
    before = [block.attention.qkv.weight.detach().clone() for block in encoder.blocks]
    stirred(add_lora(encoder, Lora(rank=2)))
    merge_adapters(encoder)
    for old, block in zip(before, encoder.blocks, strict=True):
        same = [torch.equal(*both) for both in zip(old.chunk(3), block.attention.qkv.weight.chunk(3), strict=True)]
        assert same == [False, True, False]


@pytest.mark.parametrize("layers", [("query", "value"), ("key",), EVERY])
def test_merged_weights_compute_the_same(layers):
    encoder, patches = make()
    plain = encoder(patches).tokens
    stirred(add_lora(encoder, Lora(rank=2, layers=layers)))
    before = encoder(patches).tokens
    assert not torch.allclose(before, plain)
    merge_adapters(encoder)
    torch.testing.assert_close(encoder(patches).tokens, before, rtol=1e-5, atol=1e-5)
    assert set(encoder.state_dict()) == set(make()[0].state_dict())


def test_the_change_is_alpha_over_rank_times_b_a():
    torch.manual_seed(0)
    layer = nn.Linear(6, 5)
    new = LoraLinear(layer, rank=2, alpha=8)
    stirred([new.down, new.up])
    torch.testing.assert_close(new.merged().weight, layer.weight + 4 * new.up @ new.down)


def test_parts_that_are_not_asked_for_stay_as_they_are():
    torch.manual_seed(0)
    layer, x = nn.Linear(6, 9, bias=False), torch.randn(2, 6)
    new = LoraLinear(layer, rank=2, alpha=2, parts=(True, False, True))
    stirred([new.down, new.up])
    assert new.down.shape == (4, 6) and new.up.shape == (6, 2)
    out, plain = new(x), layer(x)
    assert torch.equal(out[:, 3:6], plain[:, 3:6])
    torch.testing.assert_close(out[:, :3], plain[:, :3] + x @ new.down[:2].T @ new.up[:3].T)
    torch.testing.assert_close(out[:, 6:], plain[:, 6:] + x @ new.down[2:].T @ new.up[3:].T)


def test_every_part_of_the_change_learns_once_b_is_not_0():
    encoder, patches = make()
    added = add_lora(encoder, Lora(rank=2, layers=EVERY))
    stirred(added)
    encoder(patches).tokens.square().sum().backward()
    assert all(value.grad.abs().sum() > 0 for value in added)


def test_dropout_is_of_the_change_alone():
    encoder, patches = make()
    before = encoder(patches).tokens
    added = add_lora(encoder, Lora(rank=2, dropout=0.5))
    assert torch.equal(encoder.train()(patches).tokens, before)             # B = 0
    stirred(added)
    assert not torch.equal(encoder(patches).tokens, encoder(patches).tokens)
    assert torch.equal(encoder.eval()(patches).tokens, encoder(patches).tokens)


@pytest.mark.parametrize(("given", "said"), [({"rank": 0}, "rank: found 0"), ({"layers": ()}, "layers: found none")])
def test_settings_that_mean_nothing_are_refused(given, said):
    with pytest.raises(ValueError, match=said):
        Lora(**given)
