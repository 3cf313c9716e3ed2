import copy
import math

import pytest
import torch

from models.adapters.adapter import adapter_state, add_adapter
from models.adapters.dynamic_prompts import AskedTokens, DynamicPrompts, add_dynamic_prompts
from models.adapters.gated_prompts import GatedPrompts
from models.adapters.prompts import Prompts
from models.adapters.seams import added
from models.encoder.patches import Mask
from tests.models.adapters.encoders import DEPTH, WIDTH, everything, make

SMALL = DynamicPrompts(num_prompts=3, width=5, shared_by=2)


def stirred(**more):
    """An encoder whose gates are open."""
    encoder, patches = make(**more)
    new = add_dynamic_prompts(encoder, SMALL)
    with torch.no_grad():
        for value in new:
            value += 0.3 * torch.randn_like(value)
    return encoder, patches, new


@pytest.mark.parametrize("more", [{}, {"class_token": False}, {"place_every_block": True}],
                         ids=["plain", "no_class_token", "every_block"])
def test_at_the_start_they_are_shallow_prompts_to_the_bit(more):
    plain, patches = make(**more)
    torch.manual_seed(5)
    add_adapter(plain, Prompts(num_prompts=3))
    encoder, _ = make(**more)
    add_dynamic_prompts(encoder, SMALL)
    with torch.no_grad():
        encoder.blocks[0].prompts.copy_(plain.blocks[0].prompts)
    assert torch.equal(everything(encoder(patches)), everything(plain(patches)))


def test_what_prompts_find_is_attention_one_prompt_and_one_token_at_a_time():
    torch.manual_seed(0)
    asked = AskedTokens(torch.empty(0, dtype=torch.float64), WIDTH, 5)
    few, valid = torch.randn(2, 1 + 3 + 6, 5, dtype=torch.float64), torch.ones(2, 10, dtype=torch.bool)
    valid[1, 7:] = False
    found = asked.ask(few, slice(1, 4), valid)
    to_q, to_k, to_v = asked.to_qkv.split(5)
    for b in range(2):
        others = [i for i in (0, *range(4, 10)) if valid[b, i]]
        for x in range(3):
            query = to_q @ few[b, 1 + x]
            weights = [math.exp((query @ (to_k @ few[b, i])).item() / math.sqrt(5)) for i in others]
            mean = sum(weight * (to_v @ few[b, i]) for weight, i in zip(weights, others, strict=True)) / sum(weights)
            torch.testing.assert_close(found[b, x], mean)


def test_the_cross_attention_reaches_the_output_and_differs_by_sample():
    """In the release for plain transformers it is computed and dropped."""
    encoder, patches, _ = stirred()
    with torch.no_grad():
        for block in encoder.blocks:
            block.wrapped.shared[0].gates[0] = 0                           # what is left is what prompts have found
            block.wrapped.wrapped.attention.proj.weight.zero_()
    extra = encoder(patches).extra
    assert (extra[0] - extra[1]).abs().max() > 1e-3
    with torch.no_grad():
        for block in encoder.blocks:
            block.wrapped.shared[0].gates[1] = 0
    closed = encoder(patches).extra
    assert (closed[0] - closed[1]).abs().max() < 1e-6 and (closed - extra).abs().max() > 1e-3


def test_blocks_share_as_many_as_asked_for_and_all_learn():
    encoder, patches, new = stirred()
    assert len(new) == 1 + 6 * math.ceil(DEPTH / 2)
    assert {name for name, _ in added(encoder)} == set(adapter_state(encoder))
    assert len(adapter_state(encoder)) == len(new)
    encoder(patches).tokens.square().sum().backward()
    assert all(value.grad.abs().sum() > 0 for value in new)
    assert all(value.requires_grad for value in encoder.parameters())
    again = copy.deepcopy(encoder)
    assert again.blocks[2].wrapped.shared[0] is again.blocks[1].wrapped.asked
    torch.testing.assert_close(everything(again(patches)), everything(encoder(patches)))


def test_filler_at_the_end_of_a_list_changes_nothing():
    encoder, patches, _ = stirred()
    plain = Mask(torch.arange(5).expand(2, -1), torch.arange(5, 12).expand(2, -1))
    padded = Mask(torch.cat([plain.visible, torch.zeros(2, 4, dtype=torch.int64)], 1), plain.hidden,
                  torch.arange(9).expand(2, -1) < 5)
    one, two = encoder(patches, plain), encoder(patches, padded)
    torch.testing.assert_close(two.tokens[:, :5], one.tokens)
    torch.testing.assert_close(two.extra, one.extra)


def test_second_prompts_and_settings_that_mean_nothing_are_refused():
    encoder, _ = make()
    add_dynamic_prompts(encoder, SMALL)
    with pytest.raises(ValueError, match="prompts already"):
        add_adapter(encoder, GatedPrompts())
    before = len(list(encoder.modules()))
    with pytest.raises(ValueError, match="prompts already"):
        add_dynamic_prompts(encoder, SMALL)
    assert len(list(encoder.modules())) == before
    with pytest.raises(ValueError, match="width 0"):
        DynamicPrompts(width=0)
