import math
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import gelu, layer_norm

from models.adapters.adapter import adapter_state, add_adapter, load_adapter_state, trunk_hash
from models.adapters.geometry import Geometry, LocalAttention, Neighbourhood, add_geometry
from models.adapters.lora import Lora
from models.adapters.prompts import Prompts
from models.adapters.seams import Places
from models.adapters.surroundings import SurroundedBlock
from models.encoder.patches import Mask
from tests.models.adapters.encoders import DEPTH, WIDTH, everything, make

SMALL = Geometry(num_centres=3, neighbours=4, attention_width=5, width=4)


def farthest(points: list[torch.Tensor], num: int) -> list[int]:
    chosen = [0]
    while len(chosen) < num:
        gaps = [min(float((points[i] - points[j]).square().sum()) for j in chosen) for i in range(len(points))]
        chosen.append(max((i for i in range(len(points)) if i not in chosen), key=lambda i: gaps[i]))
    return chosen


@pytest.mark.parametrize("real", [9, 6])
def test_neighbourhoods_and_what_is_handed_back_are_those_of_a_search_one_by_one(real):
    torch.manual_seed(3)
    place, said = torch.randn(2, 9, 3, dtype=torch.float64), torch.randn(2, 3, WIDTH, dtype=torch.float64)
    places = Places(torch.nn.Identity())
    places.place = place
    hood = Neighbourhood(places, LocalAttention(place, WIDTH, SMALL), 3, 4)
    hood.find(None if real == 9 else (torch.arange(9) < real).expand(2, -1))
    back = hood.hand_back(said)
    for b in range(2):
        points = list(place[b])
        centres = farthest(points[:real], 3)
        assert hood.centres[b].tolist() == centres
        for g, centre in enumerate(centres):
            near = sorted(range(real), key=lambda i: math.dist(points[i], points[centre]))[:4]
            assert hood.near[b, g].tolist() == near
        for i in range(9):
            weights = [1 / (math.dist(points[i], points[centre]) ** 2 + 1e-8) for centre in centres]
            mean = sum(weight * one for weight, one in zip(weights, said[b], strict=True)) / sum(weights)
            torch.testing.assert_close(back[b, i], mean, rtol=1e-4, atol=1e-5)


def test_local_attention_is_attention_inside_each_neighbourhood():
    torch.manual_seed(0)
    module = LocalAttention(torch.empty(0, dtype=torch.float64), WIDTH, SMALL)
    near, centre = torch.randn(2, 3, 4, WIDTH, dtype=torch.float64), torch.randn(2, 3, WIDTH, dtype=torch.float64)
    out = module(near, centre)
    for b in range(2):
        for g in range(3):
            rows = near[b, g]
            q, k, v = (layer_norm(rows, (WIDTH,)) @ module.to_qkv.T).split(5, -1)
            weights = torch.stack([(torch.stack([q[i] @ k[j] for j in range(4)]) / math.sqrt(5)).softmax(0)
                                   for i in range(4)])
            seen = rows + weights @ v @ module.back.T
            expected = gelu(layer_norm(seen.max(0).values, (WIDTH,))) + 0.3 * centre[b, g]
            torch.testing.assert_close(out[b, g], expected)


def test_a_block_is_told_the_share_of_its_surroundings_and_centre_that_the_settings_say():
    encoder, patches = make("points", class_token=False)
    add_geometry(encoder, replace(SMALL, centre_share=0.6, share=0.8))
    block = encoder.blocks[1]
    with torch.no_grad():
        block.narrow.up += torch.randn_like(block.narrow.up)
        encoder(patches)  # finds who is near whom
        x = torch.randn(2, 8, WIDTH)
        near, centre = torch.randn(2, 3, 4, WIDTH), torch.randn(2, 3, WIDTH)
        plain = block.wrapped(x)
        expected = plain + block.narrow(plain + 0.8 * block.around.tell(plain))
        torch.testing.assert_close(block(x), expected)
        moved = block.around.attention(near, centre) - block.around.attention(near, torch.zeros_like(centre))
        torch.testing.assert_close(moved, 0.6 * centre)


@pytest.mark.parametrize("more", [{}, {"class_token": False, "place_every_block": True}], ids=["plain", "point_mae"])
def test_nothing_changes_at_the_start_and_neighbours_matter_later(more):
    encoder, patches = make("points", **more)
    before = encoder(patches).tokens
    new = add_geometry(encoder, SMALL)
    assert torch.equal(encoder(patches).tokens, before)
    assert len(new) == 4 * DEPTH + 2
    with torch.no_grad():
        for value in new:
            value += 0.3 * torch.randn_like(value)
    after = encoder(patches).tokens
    assert (after - before).abs().max() > 1e-3
    after.square().sum().backward()
    assert all(value.grad.abs().sum() > 0 for value in new)
    assert all(value.requires_grad for value in encoder.parameters())


def test_a_token_hears_of_tokens_near_it_through_the_adapter_alone():
    """With blocks that do nothing, only neighbourhoods carry anything from token to token."""
    encoder, patches = make("points", class_token=False)
    with torch.no_grad():
        for block in encoder.blocks:
            block.attention.proj.weight.zero_()
    far = patches._replace(place=patches.place.clone())
    far.place[:, :4] += 30
    new = add_geometry(encoder, Geometry(num_centres=8, neighbours=4, attention_width=5, width=4))
    with torch.no_grad():
        for value in new:
            value += 0.3 * torch.randn_like(value)
    before = encoder(far).tokens
    changed = far._replace(values=far.values.clone())
    changed.values[:, 0] += 1
    moved = (encoder(changed).tokens - before).abs().amax((0, 2)) > 1e-6
    assert moved[0] and moved[:4].sum() > 1 and not moved[4:].any()


def test_filler_at_the_end_of_a_list_changes_nothing():
    encoder, patches = make("points")
    with torch.no_grad():
        for value in add_geometry(encoder, SMALL):
            value += 0.3 * torch.randn_like(value)
    plain = Mask(torch.arange(6).expand(2, -1), torch.arange(6, 8).expand(2, -1))
    padded = Mask(torch.cat([plain.visible, torch.zeros(2, 4, dtype=torch.int64)], 1), plain.hidden,
                  torch.arange(10).expand(2, -1) < 6)
    torch.testing.assert_close(encoder(patches, padded).tokens[:, :6], encoder(patches, plain).tokens)


@pytest.mark.parametrize("other", [Prompts(num_prompts=2, deep=True), Lora(rank=2)], ids=lambda one: one.kind)
@pytest.mark.parametrize("first", [True, False])
def test_weights_saved_alone_come_back_beside_other_adapters(other, first):
    pair = (other, SMALL) if first else (SMALL, other)
    encoder, patches = make("points")
    made_on = trunk_hash(encoder)
    for settings in pair:
        for value in add_adapter(encoder, settings):
            value.data += 0.1 * torch.randn_like(value)
    again, _ = make("points")
    load_adapter_state(again, pair, adapter_state(encoder), made_on)
    torch.testing.assert_close(everything(again(patches)), everything(encoder(patches)), rtol=1e-5, atol=1e-6)


def test_images_a_second_time_and_no_neighbours_are_refused():
    with pytest.raises(ValueError, match="expected groups of points"):
        add_geometry(make("image")[0], SMALL)
    encoder, _ = make("points")
    add_geometry(encoder, SMALL)
    assert all(isinstance(block, SurroundedBlock) for block in encoder.blocks)
    with pytest.raises(ValueError, match="expected them once"):
        add_geometry(encoder, SMALL)
    with pytest.raises(ValueError, match="neighbours 0"):
        Geometry(neighbours=0)
