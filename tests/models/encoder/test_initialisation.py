import pytest
import torch
from torch import Tensor

from models.adapters.prompts import Prompts, add_prompts
from models.encoder.initialisation import mimetic_initialisation
from models.encoder.tokenizers import Grid
from models.encoder.transformer import Encoder, EncoderSettings, Shape

E = 192


def encoder(heads: int = 3, seed: int = 0, depth: int = 1, **changes: object) -> Encoder:
    torch.manual_seed(7)
    made = Encoder(EncoderSettings(tokenizer=Grid(patch=(4, 4)), size=Shape(E, depth, heads)), num_channels=1)
    mimetic_initialisation(made, torch.Generator().manual_seed(seed), **changes)
    return made


def products(block: torch.nn.Module) -> tuple[list[Tensor], Tensor]:
    """(how each head compares two tokens, what attention to one token adds to another), E E each, acting on rows."""
    attention = block.attention
    query, key, value = attention.qkv.weight.detach().double().chunk(3)
    heads = zip(query.chunk(attention.num_heads), key.chunk(attention.num_heads), strict=True)
    return [q.T @ k for q, k in heads], value.T @ attention.proj.weight.detach().double().T


def assert_noise_and_identity(product: Tensor, noise: float, identity: float) -> None:
    z = (product - identity * torch.eye(E)) / noise
    assert abs(float(z.mean())) < 0.05 / E ** 0.5
    assert float(z.std()) == pytest.approx(E ** -0.5, rel=0.02)
    assert float(product.diagonal().mean()) == pytest.approx(identity, abs=4 * noise / E)


def test_one_head_compares_by_noise_plus_the_identity():
    compares, _ = products(encoder(heads=1).blocks[0])
    assert_noise_and_identity(compares[0], 0.7, 0.7)


@pytest.mark.parametrize("heads", [1, 3, 12])
def test_attention_takes_away_from_a_token_what_it_is(heads):
    _, adds = products(encoder(heads).blocks[0])
    assert_noise_and_identity(adds, 0.4, -0.4)


def test_a_head_of_several_compares_by_the_nearest_matrix_of_its_rank():
    generator = torch.Generator().manual_seed(0)
    wanted = 0.7 * torch.randn(E, E, generator=generator).double() / E ** 0.5 + 0.7 * torch.eye(E).double()
    compares, _ = products(encoder(heads=3, seed=0).blocks[0])
    assert torch.linalg.matrix_rank(compares[0], rtol=1e-5) == E // 3
    beyond = torch.linalg.svdvals(wanted)[E // 3:].square().sum().sqrt()
    torch.testing.assert_close((compares[0] - wanted).norm(), beyond, rtol=1e-4, atol=0)
    assert all(float(head.diagonal().mean()) > 0.2 for head in compares)
    assert not torch.allclose(compares[0], compares[1], atol=0.1), "each head has noise of its own"


def test_both_factors_of_a_product_carry_the_same_weight():
    attention = encoder().blocks[0].attention
    query, key, value = attention.qkv.weight.detach().chunk(3)
    torch.testing.assert_close(query.norm(dim=1), key.norm(dim=1))
    torch.testing.assert_close(value.norm(dim=1), attention.proj.weight.detach().norm(dim=0))


def test_the_seed_alone_decides_and_blocks_differ():
    one, same, other = (encoder(depth=2, seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["blocks.0.attention.qkv.weight"], other["blocks.0.attention.qkv.weight"])
    assert not torch.equal(one["blocks.0.attention.qkv.weight"], one["blocks.1.attention.qkv.weight"])


def test_only_attention_weights_change_and_nothing_is_drawn_from_elsewhere():
    torch.manual_seed(7)
    plain = Encoder(EncoderSettings(tokenizer=Grid(patch=(4, 4)), size=Shape(E, 1, 3)), num_channels=1)
    after = torch.rand(1)
    mimetic = encoder()
    assert torch.equal(torch.rand(1), after)
    changed = {name for name, value in mimetic.state_dict().items() if not torch.equal(value, plain.state_dict()[name])}
    assert changed == {"blocks.0.attention.qkv.weight", "blocks.0.attention.proj.weight"}


def test_constants_can_be_given():
    compares, adds = products(encoder(heads=1, query_key=(0.2, 1.0), value_output=(0.1, 0.5)).blocks[0])
    assert_noise_and_identity(compares[0], 0.2, 1.0)
    assert_noise_and_identity(adds, 0.1, 0.5)


def test_an_encoder_with_adapters_is_refused():
    made = encoder()
    add_prompts(made, Prompts(num_prompts=2))
    with pytest.raises(ValueError, match="Initialise before adapters are added"):
        mimetic_initialisation(made, torch.Generator())
