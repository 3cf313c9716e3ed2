import pytest
import torch

from models.adapters.prompts import Prompts, add_prompts
from models.encoder.patches import Mask
from models.heads.predict_sample import PredictSample, SampleHead
from tests.models.adapters.encoders import DEPTH, WIDTH, make


@pytest.mark.parametrize("class_token", [True, False])
@pytest.mark.parametrize("deep", [True, False])
def test_prompts_stand_between_class_token_and_patches(class_token, deep):
    encoder, patches = make(class_token=class_token)
    added = add_prompts(encoder, Prompts(num_prompts=5, deep=deep))
    given = []
    encoder.blocks[0].wrapped.register_forward_pre_hook(lambda module, args: given.append(args[0]))
    features = encoder(patches)
    started = int(class_token)
    assert torch.equal(given[0][0, started:started + 5], added[0])
    assert features.tokens.shape == (2, 12, WIDTH)
    assert features.extra.shape == (2, 5, WIDTH)
    assert [tuple(value.shape) for value in added] == [(5, WIDTH)] * (DEPTH if deep else 1)


def test_deep_prompts_take_the_place_of_what_the_block_before_has_made_of_them():
    encoder, patches = make()
    added = add_prompts(encoder, Prompts(num_prompts=2, deep=True))
    given = []
    encoder.blocks[2].wrapped.register_forward_pre_hook(lambda module, args: given.append(args[0]))
    assert encoder(patches).extra.shape == (2, 2, WIDTH)
    assert torch.equal(given[0][1, 1:3], added[2])
    assert given[0].shape[1] == 1 + 2 + 12


@pytest.mark.parametrize("deep", [True, False])
def test_every_prompt_gets_a_gradient_and_nothing_is_frozen(deep):
    encoder, patches = make()
    added = add_prompts(encoder, Prompts(num_prompts=2, deep=deep))
    encoder(patches).tokens.square().sum().backward()
    assert all(value.grad.abs().sum(1).min() > 0 for value in added)
    assert all(value.requires_grad for value in encoder.parameters())


@pytest.mark.parametrize("deep", [True, False])
@pytest.mark.parametrize("pool", ["mean", "mean_with_prompts", "prompts"])
def test_filler_at_the_end_of_a_list_changes_nothing(deep, pool):
    encoder, patches = make()
    add_prompts(encoder, Prompts(num_prompts=3, deep=deep))
    head = PredictSample(SampleHead(pool=pool), WIDTH, 4).eval()
    plain = Mask(torch.arange(5).expand(2, -1), torch.arange(5, 12).expand(2, -1))
    padded = Mask(torch.cat([plain.visible, torch.zeros(2, 4, dtype=torch.int64)], 1), plain.hidden,
                  torch.arange(9).expand(2, -1) < 5)
    one, two = encoder(patches, plain), encoder(patches, padded)
    torch.testing.assert_close(two.tokens[:, :5], one.tokens)
    torch.testing.assert_close(two.extra, one.extra)
    torch.testing.assert_close(head(two, patches, patches.values), head(one, patches, patches.values))


@pytest.mark.parametrize("class_token", [True, False])
def test_prompts_have_no_position_where_positions_are_added_before_every_block(class_token):
    encoder, patches = make("points", place_every_block=True, class_token=class_token)
    before = encoder(patches).tokens
    added = add_prompts(encoder, Prompts(num_prompts=2))
    given = []
    encoder.blocks[1].register_forward_pre_hook(lambda module, args: given.append(args[0]))
    made = []
    encoder.blocks[0].register_forward_hook(lambda module, args, out: made.append(out))
    features = encoder(patches)
    started = int(class_token)
    assert torch.equal(given[0][:, :started + 2], made[0][:, :started + 2])
    assert not torch.equal(given[0][:, started + 2:], made[0][:, started + 2:])
    assert features.tokens.shape == before.shape
    assert added[0].shape == (2, WIDTH)


def test_pools_say_whether_prompts_are_in():
    encoder, patches = make()
    add_prompts(encoder, Prompts(num_prompts=3))
    features = encoder(patches)
    pooled = {pool: PredictSample(SampleHead(pool=pool), WIDTH, 2).pool(features)
              for pool in ("mean", "mean_with_prompts", "prompts")}
    torch.testing.assert_close(pooled["mean"], features.tokens.mean(1))
    torch.testing.assert_close(pooled["prompts"], features.extra.mean(1))
    torch.testing.assert_close(pooled["mean_with_prompts"], (12 * pooled["mean"] + 3 * pooled["prompts"]) / 15)


def test_a_head_on_prompts_refuses_an_encoder_without():
    encoder, patches = make()
    with pytest.raises(ValueError, match="found no prompts"):
        PredictSample(SampleHead(pool="prompts"), WIDTH, 2).pool(encoder(patches))


def test_the_start_is_uniform_within_the_releases_bound():
    encoder, _ = make()
    value, = add_prompts(encoder, Prompts(num_prompts=200))
    bound = (6 / (3 * 4 * 4 + WIDTH)) ** 0.5
    assert 0.98 * bound < value.abs().max() <= bound
    torch.testing.assert_close(value.std(), torch.tensor(bound / 3**0.5), rtol=0.05, atol=0)


def test_dropout_touches_prompts_alone_and_only_while_training():
    encoder, patches = make()
    value, = add_prompts(encoder, Prompts(num_prompts=4, dropout=0.5))
    given = []
    encoder.blocks[0].wrapped.register_forward_pre_hook(lambda module, args: given.append(args[0]))
    encoder(patches)
    encoder.train()(patches)
    assert torch.equal(given[0][0, 1:5], value)
    assert (given[1][:, 1:5] == 0).any()
    assert torch.equal(given[1][:, 5:], given[0][:, 5:])


def test_a_second_set_of_prompts_is_refused():
    encoder, _ = make()
    add_prompts(encoder, Prompts())
    with pytest.raises(ValueError, match="has prompts already"):
        add_prompts(encoder, Prompts(deep=True))
    with pytest.raises(ValueError, match="num_prompts: found 0"):
        Prompts(num_prompts=0)
