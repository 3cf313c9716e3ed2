from itertools import permutations

import pytest
import torch
from torch import nn

from models.adapters.adapter import (
    AdapterSettings,
    adapter_state,
    add_adapter,
    load_adapter_state,
    merge_adapters,
    trunk_hash,
)
from models.adapters.bias import Bias, ShiftedLinear
from models.adapters.bottleneck import Bottleneck, BottleneckBlock
from models.adapters.dynamic_prompts import DynamicPrompts
from models.adapters.gated_prompts import GatedPrompts
from models.adapters.lora import Lora, LoraLinear
from models.adapters.prompts import Prompts
from models.adapters.seams import added
from models.adapters.singular_values import SingularValues
from pipelines.settings import build, plain
from tests.models.adapters.encoders import WIDTH, everything, make

ALL = (Prompts(num_prompts=8), Prompts(num_prompts=8, deep=True), GatedPrompts(num_prompts=8, dropout=0.0),
       SingularValues(), Lora(rank=2), Bias(), Bottleneck(width=4),
       DynamicPrompts(num_prompts=8, width=4, shared_by=2))
PAIRS = [pair for pair in permutations(ALL, 2) if sum("prompts" in one.kind for one in pair) < 2]


def named(pair) -> str:
    return "-".join(one.kind + ("_deep" if getattr(one, "deep", False) else "") for one in pair)


@pytest.mark.parametrize("pair", PAIRS, ids=named)
def test_two_adapters_add_up_and_neither_freezes(pair):
    encoder, patches = make()
    one, two = (add_adapter(encoder, settings) for settings in pair)
    assert not {id(value) for value in one} & {id(value) for value in two}
    state = adapter_state(encoder)
    assert len(state) == len(one) + len(two)
    with torch.no_grad():
        for value in (*one, *two):
            value += 0.05 * torch.randn_like(value)
    everything(encoder(patches)).square().sum().backward()
    assert all(value.grad.abs().sum() > 0 for value in (*one, *two))
    assert not [name for name, value in encoder.named_parameters() if not value.requires_grad or value.grad is None]


@pytest.mark.parametrize("pair", [(SingularValues(), Lora(rank=2)), (GatedPrompts(num_prompts=2), Lora(rank=2)),
                                  (GatedPrompts(num_prompts=2), SingularValues()), (Bias(), Lora(rank=2)),
                                  (Bias(), SingularValues()), (GatedPrompts(num_prompts=2), Bias()),
                                  (Prompts(num_prompts=2), Bottleneck(width=3))], ids=named)
def test_the_order_in_which_adapters_are_added_does_not_matter(pair):
    outputs = []
    for order in (pair, pair[::-1]):
        encoder, patches = make()
        for settings in order:
            add_adapter(encoder, settings)
        with torch.no_grad():
            for name, value in added(encoder):
                torch.manual_seed(len(name.replace("wrapped.", "")))
                value.copy_(0.3 + 0.1 * torch.randn(value.shape))
        outputs.append(everything(encoder(patches)))
    torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("settings", [Lora(), Bias(), Bottleneck(width=4)], ids=lambda one: one.kind)
def test_no_block_makes_anything_else_at_the_start_to_the_bit(settings):
    encoder, patches = make()
    before = encoder(patches, layers=(0, 1, 2)).layers
    add_adapter(encoder, settings)
    after = encoder(patches, layers=(0, 1, 2)).layers
    assert all(torch.equal(*both) for both in zip(before, after, strict=True))


@pytest.mark.parametrize("scale", [1.0, 0.1])
def test_a_bottleneck_adds_its_scaled_way_down_and_up_to_what_the_block_makes(scale):
    torch.manual_seed(0)
    block, x = nn.Linear(6, 6), torch.randn(2, 5, 6)
    new = BottleneckBlock(WithValid(block), 6, Bottleneck(width=3, scale=scale))
    with torch.no_grad():
        for name in new.ADDED:
            getattr(new, name).normal_()
    out = block(x).double()
    normed = (out - out.mean(-1, keepdim=True)) / (out.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    few = normed @ new.down.double().T + new.down_bias.double()
    few = few * 0.5 * (1 + torch.erf(few / 2 ** 0.5))
    expected = out + scale * (few @ new.up.double().T + new.up_bias.double())
    torch.testing.assert_close(new(x).double(), expected, rtol=1e-5, atol=1e-5)


class WithValid(nn.Module):
    """A layer that is called as a block is."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
        return self.layer(x)


@pytest.mark.parametrize("pair", PAIRS, ids=named)
def test_merging_leaves_plain_layers_that_compute_the_same(pair):
    encoder, patches = make()
    for settings in pair:
        for value in add_adapter(encoder, settings):
            value.data += 0.05 * torch.randn_like(value)
    before = everything(encoder(patches))
    merge_adapters(encoder)
    torch.testing.assert_close(everything(encoder(patches)), before, rtol=1e-4, atol=1e-5)
    assert {name.rpartition(".")[2] for name in adapter_state(encoder)} <= {
        "prompts", "gate_logit", "down", "down_bias", "up", "up_bias", "to_qkv", "gates"}
    assert not any(isinstance(module, LoraLinear | ShiftedLinear) for module in encoder.modules())


@pytest.mark.parametrize("pair", [(one,) for one in ALL] + PAIRS[:4], ids=named)
def test_weights_saved_alone_come_back_on_the_encoder_they_were_made_on(pair):
    encoder, patches = make()
    made_on = trunk_hash(encoder)
    for settings in pair:
        for value in add_adapter(encoder, settings):
            value.data += 0.1 * torch.randn_like(value)
    state = adapter_state(encoder)
    again, _ = make()
    load_adapter_state(again, pair, state, made_on)
    torch.testing.assert_close(everything(again(patches)), everything(encoder(patches)), rtol=1e-5, atol=1e-6)
    assert sum(value.numel() for value in state.values()) < sum(value.numel() for value in again.parameters()) / 2


def test_weights_saved_alone_are_refused_on_another_encoder_which_is_left_as_it_was():
    encoder, _ = make()
    made_on = trunk_hash(encoder)
    add_adapter(encoder, Lora())
    other, _ = make()
    with torch.no_grad():
        other.blocks[1].mlp[0].bias[0] += 1e-6
    with pytest.raises(ValueError, match="made on an encoder with the hash"):
        load_adapter_state(other, [Lora()], adapter_state(encoder), made_on)
    assert not adapter_state(other)
    with pytest.raises(ValueError, match="Take the hash before"):
        trunk_hash(encoder)


def test_weights_of_other_settings_are_refused():
    encoder, _ = make()
    add_adapter(encoder, Lora(rank=2))
    with pytest.raises(ValueError, match="other shape .*attention.qkv.down"):
        load_adapter_state(make()[0], [Lora(rank=3)], adapter_state(encoder), None)
    part = {name: value for name, value in adapter_state(encoder).items() if "blocks.1" not in name}
    with pytest.raises(ValueError, match="missing .*blocks.1.*not expected none, other shape none"):
        load_adapter_state(make()[0], [Lora(rank=2)], part, None)
    with pytest.raises(ValueError, match="missing .*blocks.0.prompts"):
        load_adapter_state(make()[0], [Prompts()], adapter_state(encoder), None)


@pytest.mark.parametrize("settings", ALL, ids=lambda one: named([one]))
def test_the_added_parameters_alone_learn_one_batch(settings):
    encoder, patches = make()
    new = add_adapter(encoder, settings)
    frozen = {name: value.clone() for name, value in encoder.state_dict().items() if name not in dict(added(encoder))}
    encoder.requires_grad_(False)
    for value in new:
        value.requires_grad_(True)
    target = torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(3))
    optimizer = torch.optim.AdamW(new, lr=0.03, weight_decay=0)
    losses = []
    for _ in range(30):
        loss = (encoder(patches).tokens.mean(1) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert all(torch.equal(encoder.state_dict()[name], value) for name, value in frozen.items())


def test_an_encoder_of_another_kind_is_refused():
    with pytest.raises(ValueError, match="expected a transformer"):
        add_adapter(nn.Identity(), Lora())


@pytest.mark.parametrize("settings", ALL, ids=lambda one: named([one]))
def test_settings_survive_being_saved(settings):
    assert build(AdapterSettings, plain(settings), "adapter") == settings
