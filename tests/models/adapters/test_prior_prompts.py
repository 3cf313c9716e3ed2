import copy

import pytest
import torch
from torch.nn.functional import normalize

from models.adapters.adapter import adapter_state, add_adapter, load_adapter_state, merge_adapters, trunk_hash
from models.adapters.bias import Bias
from models.adapters.bottleneck import Bottleneck
from models.adapters.geometry import Geometry
from models.adapters.lora import Lora
from models.adapters.prior_prompts import PriorPrompts, add_prior_prompts, memories, prior_query
from models.adapters.prompts import PromptedBlock, Prompts
from models.adapters.singular_values import SingularValues
from models.encoder.patches import Mask
from tests.models.adapters.encoders import DEPTH, WIDTH, everything, make

SMALL = PriorPrompts(num_blocks=2, neighbours=3, width=4, memory=16, dropout=0.0)
OTHERS = (Lora(rank=2), Bias(), Bottleneck(width=3), SingularValues(), Geometry(neighbours=4, width=3))


def filled(kind: str = "points", settings: PriorPrompts = SMALL, before=(), after=(), **more):
    """An encoder with a memory of twelve samples, patches for it, and the parameters that were added."""
    encoder, patches = make(kind, **more)
    for other in before:
        add_adapter(encoder, other)
    new = add_prior_prompts(encoder, settings)
    for other in after:
        add_adapter(encoder, other)
    fill(encoder)
    return encoder, patches, new


def fill(encoder) -> torch.Tensor:
    bank = torch.randn(12, WIDTH, generator=torch.Generator().manual_seed(5))
    for memory in memories(encoder):
        memory.remember(bank)
    return bank


@pytest.mark.parametrize("more", [{}, {"class_token": False}, {"place_every_block": True},
                                  {"place_every_block": True, "class_position": True}, {"last_norm": False}],
                         ids=["plain", "no_class_token", "every_block", "class_position", "no_last_norm"])
@pytest.mark.parametrize("kind", ["points", "image"])
def test_the_memory_is_asked_with_the_maximum_over_what_the_bare_encoder_says(kind, more):
    bare, patches = make(kind, **more)
    expected = bare(patches).tokens.amax(1)
    encoder, _, _ = filled(kind, **more)
    memory = next(memories(encoder))
    torch.testing.assert_close(prior_query(encoder, memory, patches), expected)
    asked = []
    memory.trunk.register_forward_hook(lambda module, args, out: asked.append(out))
    encoder(patches)
    assert len(asked) == 1
    torch.testing.assert_close(asked[0], expected)


@pytest.mark.parametrize("other", OTHERS, ids=lambda one: one.kind)
@pytest.mark.parametrize("first", [True, False])
def test_what_other_adapters_have_learnt_does_not_reach_the_question(other, first):
    bare, patches = make("points")
    encoder, _, new = filled(before=[other] if first else [], after=[] if first else [other])
    with torch.no_grad():
        for value in (*new, *adapter_state(encoder).values()):
            assert value.numel()
        for name, value in encoder.named_parameters():
            if "blocks" in name and "wrapped.weight" not in name:
                value += 0.1 * torch.randn_like(value)
    torch.testing.assert_close(prior_query(encoder, next(memories(encoder)), patches), bare(patches).tokens.amax(1),
                               rtol=1e-4, atol=1e-5)


def test_what_is_looked_up_is_what_a_search_one_by_one_finds():
    encoder, _, _ = filled()
    memory = next(memories(encoder))
    bank = fill(encoder).double()
    query = torch.randn(5, WIDTH)
    found = memory.look_up(query)
    assert found.shape == (5, SMALL.num_prompts, WIDTH)
    for one, asked in zip(found, query.double(), strict=True):
        likeness = torch.stack([normalize(asked, dim=0) @ normalize(row, dim=0) for row in bank])
        order = sorted(range(12), key=lambda i: -likeness[i])[:3]
        weights = torch.stack([likeness[i].exp() for i in order])
        blend = sum(weight / weights.sum() * bank[i] for weight, i in zip(weights, order, strict=True))
        torch.testing.assert_close(one.double(), torch.stack([asked, blend, *(bank[i] for i in order)]), rtol=1e-4,
                                   atol=1e-5)


def test_at_the_start_a_memory_changes_nothing_and_later_it_does():
    encoder, patches, _ = filled("image")
    before = everything(encoder(patches))
    memory = next(memories(encoder))
    memory.remember(torch.randn(12, WIDTH))
    torch.testing.assert_close(everything(encoder(patches)), before, rtol=0, atol=0)
    with torch.no_grad():
        memory.narrow.up.normal_()
    assert (everything(encoder(patches)) - before).abs().max() > 1e-3


def test_prompts_have_learnt_coordinates_among_points_and_none_on_a_grid():
    encoder, patches, _ = filled()
    memory = next(memories(encoder))
    before = everything(encoder(patches))
    with torch.no_grad():
        memory.coordinates.add_(1)
    assert not torch.equal(everything(encoder(patches)), before)
    assert next(memories(filled("image")[0])).coordinates is None


def test_every_added_parameter_learns_and_the_memory_does_not():
    encoder, patches, new = filled()
    assert len(new) == 2 + 5 and not {id(value) for value in new} & {id(value) for value in encoder.buffers()}
    with torch.no_grad():
        next(memories(encoder)).narrow.up.normal_()
    encoder(patches).tokens.square().sum().backward()
    assert all(value.grad.abs().sum() > 0 for value in new)
    assert all(value.requires_grad for value in encoder.parameters())
    assert {name.rpartition(".")[2] for name, _ in encoder.named_parameters() if "memory" in name} == {
        "down", "down_bias", "up", "up_bias", "coordinates"}, "the frozen trunk counts as no weights of the model"


def test_filler_at_the_end_of_a_list_changes_nothing():
    encoder, patches, _ = filled()
    with torch.no_grad():
        next(memories(encoder)).narrow.up.normal_()
    plain = Mask(torch.arange(5).expand(2, -1), torch.arange(5, 8).expand(2, -1))
    padded = Mask(torch.cat([plain.visible, torch.zeros(2, 4, dtype=torch.int64)], 1), plain.hidden,
                  torch.arange(9).expand(2, -1) < 5)
    torch.testing.assert_close(encoder(patches, padded).tokens[:, :5], encoder(patches, plain).tokens)


def test_an_empty_memory_a_small_one_and_second_prompts_are_refused():
    encoder, patches = make("points")
    add_prior_prompts(encoder, SMALL)
    with pytest.raises(ValueError, match="found an empty memory.*Fill it"):
        encoder(patches)
    with pytest.raises(ValueError, match="found 2 training samples, expected at least as many as neighbours, 3"):
        next(memories(encoder)).remember(torch.randn(2, WIDTH))
    with pytest.raises(ValueError, match="prompts already"):
        add_adapter(encoder, Prompts())
    with pytest.raises(ValueError, match="a memory of at least"):
        PriorPrompts(neighbours=8, memory=4)


def test_of_more_samples_than_rows_evenly_many_are_kept():
    encoder, _, _ = filled()
    memory = next(memories(encoder))
    memory.remember(torch.arange(40.0)[:, None].expand(-1, WIDTH))
    assert memory.bank[:, 0].tolist() == [i * 40 // 16 for i in range(16)] and int(memory.filled) == 16


@pytest.mark.parametrize("others", [(), *((one,) for one in OTHERS)], ids=lambda many: "-".join(o.kind for o in many))
def test_memory_and_weights_come_back_and_a_changed_memory_is_refused(others):
    bare, _ = make("points")
    made_on = trunk_hash(bare)
    encoder, patches, _ = filled(after=others)
    with torch.no_grad():
        for name, value in encoder.named_parameters():
            if name in adapter_state(encoder):
                value += 0.1 * torch.randn_like(value)
    state = adapter_state(encoder)
    assert {name.rpartition(".")[2] for name in state} >= {"bank", "filled", "digest"}
    again, _ = make("points")
    load_adapter_state(again, [SMALL, *others], state, made_on)
    expected = everything(encoder(patches))
    torch.testing.assert_close(everything(again(patches)), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(everything(copy.deepcopy(again)(patches)), expected, rtol=1e-5, atol=1e-6)
    merge_adapters(again)
    torch.testing.assert_close(everything(again(patches)), expected, rtol=1e-4, atol=1e-5)
    bank = next(name for name in state if name.endswith(".bank"))
    changed = {**state, bank: state[bank].clone()}
    changed[bank][0, 0] += 1e-6
    with pytest.raises(ValueError, match="the memory of training features has another hash"):
        load_adapter_state(make("points")[0], [SMALL, *others], changed, made_on)


def test_of_a_shallow_encoder_every_block_gets_prompts():
    encoder, patches, _ = filled(settings=PriorPrompts(neighbours=3, memory=12))
    assert sum(block.prompts is not None for block in encoder.blocks if isinstance(block, PromptedBlock)) == DEPTH
    assert encoder(patches).extra.shape == (2, 5, WIDTH)
