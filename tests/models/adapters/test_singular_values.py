import pytest
import torch
from torch import nn

from models.adapters.adapter import merge_adapters
from models.adapters.seams import merged
from models.adapters.singular_values import SingularValues, SplitLinear, add_singular_values, split
from tests.models.adapters.encoders import DEPTH, make


@pytest.mark.parametrize("sides", [(6, 6), (7, 3), (3, 7), (13, 5)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_split_layer_computes_the_same_at_the_start_whatever_its_sides(sides, bias):
    torch.manual_seed(0)
    layer, x = nn.Linear(*sides, bias=bias), torch.randn(4, 5, sides[0])
    new = split(layer)
    torch.testing.assert_close(new(x), layer(x), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(merged(new).weight, layer.weight, rtol=1e-5, atol=1e-6)
    assert new.values.shape == (min(sides),)
    assert bool((new.values[:-1] >= new.values[1:]).all())


def test_vectors_and_values_are_those_in_double_precision_rounded_once():
    """Values alone are saved, so the vectors of nearly equal values must come out alike wherever they are loaded."""
    torch.manual_seed(0)
    layer = nn.Linear(24, 24)
    nn.init.orthogonal_(layer.weight)
    exact = torch.linalg.svd(layer.weight.detach().double(), full_matrices=False)
    new = split(layer)
    for own, part in zip((new.left, new.values, new.right), exact, strict=True):
        assert torch.equal(own, part.float())


def test_an_encoder_computes_the_same_at_the_start():
    encoder, patches = make()
    before = encoder(patches).tokens
    added = add_singular_values(encoder, SingularValues())
    torch.testing.assert_close(encoder(patches).tokens, before, rtol=1e-5, atol=1e-5)
    assert len(added) == DEPTH * 6                                          # query, key, value, output, two of the MLP
    encoder(patches).tokens.square().sum().backward()
    assert all(value.grad.abs().min() > 0 for value in added)
    assert all(value.requires_grad for value in encoder.parameters())


def test_only_the_layers_asked_for_are_split():
    encoder, patches = make()
    before, key = encoder(patches).tokens, encoder.blocks[0].attention.qkv.weight.detach().chunk(3)[1]
    add_singular_values(encoder, SingularValues(layers=("query", "value")))
    query, plain, value = encoder.blocks[0].attention.qkv.parts
    assert isinstance(query, SplitLinear) and isinstance(value, SplitLinear) and torch.equal(plain.weight, key)
    assert isinstance(encoder.blocks[0].mlp[0], nn.Linear)
    torch.testing.assert_close(encoder(patches).tokens, before, rtol=1e-5, atol=1e-5)


def test_training_the_largest_leaves_the_other_directions_alone():
    torch.manual_seed(0)
    layer = nn.Linear(6, 5)
    left, values, right = torch.linalg.svd(layer.weight.detach(), full_matrices=False)
    new = split(layer, trained=2)
    assert new.values.shape == (2,)
    with torch.no_grad():
        new.values.mul_(3.0)
    expected = left * torch.cat([3 * values[:2], values[2:]]) @ right
    torch.testing.assert_close(merged(new).weight, expected, rtol=1e-5, atol=1e-6)
    assert split(layer, trained=99).rest is None


def test_merging_keeps_what_was_learnt():
    encoder, patches = make()
    with torch.no_grad():
        for value in add_singular_values(encoder, SingularValues()):
            value.mul_(1.3)
    before = encoder(patches).tokens
    merge_adapters(encoder)
    torch.testing.assert_close(encoder(patches).tokens, before, rtol=1e-5, atol=1e-5)
    assert set(encoder.state_dict()) == set(make()[0].state_dict())


def test_splitting_twice_is_refused():
    encoder, _ = make()
    add_singular_values(encoder, SingularValues())
    with pytest.raises(ValueError, match="expected a plain one"):
        add_singular_values(encoder, SingularValues())
    with pytest.raises(ValueError, match="layers: found none"):
        SingularValues(layers=())
