import copy

import pytest
import torch
from torch import Tensor, nn

from models.adapters.gated_prompts import GatedPrompts, add_gated_prompts
from models.adapters.lora import Lora, add_lora
from models.adapters.prompts import Prompts, add_prompts
from models.adapters.token_merging import MergingBlock, merge_tokens, partners
from models.encoder.patches import Mask, Patches
from models.encoder.positions import NoPositions
from models.encoder.tokenizers import Grid
from models.encoder.transformer import Encoder, EncoderSettings, Shape, mean_of_valid
from tests.models.adapters.encoders import DEPTH, make

PATCHES = 12
"""Of `make`'s pictures."""


def mean(features) -> Tensor:
    return mean_of_valid(features.tokens, features.valid)


@torch.no_grad()
def test_with_none_to_merge_nothing_changes_by_a_bit():
    encoder, patches = make()
    before = encoder(patches)
    merge_tokens(encoder, 0)
    after = encoder(patches)
    assert torch.equal(before.tokens, after.tokens) and torch.equal(before.summary, after.summary)
    assert not any(isinstance(module, MergingBlock) for module in encoder.modules())


@torch.no_grad()
def test_a_merging_block_that_finds_nothing_to_merge_is_the_block():
    encoder, patches = make()
    alone = Patches(patches.values[:, :1], patches.place[:, :1], None, patches.grid)
    before = encoder(alone)
    merged = merge_tokens(encoder, 3)
    assert torch.equal(encoder(alone).tokens, before.tokens) and merged.counts == [2] * DEPTH


@torch.no_grad()
@pytest.mark.parametrize("class_token", [True, False])
@pytest.mark.parametrize(("per_block", "left"), [(1, [11, 10, 9]), (4, [8, 4, 2]), (99, [6, 3, 2])])
def test_every_block_leaves_so_many_fewer_and_sizes_count_all_tokens(class_token, per_block, left):
    encoder, patches = make(class_token=class_token)
    seen: list[int] = []
    for block in encoder.blocks:
        block.mlp.register_forward_hook(lambda _, given, __: seen.append(given[0].shape[1]))
    merged = merge_tokens(encoder, per_block)
    features = encoder(patches)
    assert merged.counts == seen == [count + class_token for count in left]
    assert (merged.sizes.sum(1) == PATCHES + class_token).all() and merged.sizes.min() >= 1
    assert features.tokens.shape[1] == PATCHES, "one for every patch, for whatever looks at patches"
    of_each = torch.zeros_like(merged.sizes).scatter_add(1, merged.where, torch.ones(merged.where.shape))
    assert torch.equal(of_each, merged.sizes)


@torch.no_grad()
def test_the_class_token_is_never_merged():
    encoder, patches = make()
    patches.values.zero_()                                                  # all patches alike, and the class token
    encoder.class_token.zero_()
    merged = merge_tokens(encoder, 99)
    encoder(patches)
    assert (merged.sizes[:, 0] == 1).all()
    assert (merged.where[:, 0] == 0).all() and (merged.where[:, 1:] > 0).all()


@torch.no_grad()
def test_the_mean_of_tokens_is_the_mean_of_the_merged_ones_by_size():
    encoder, patches = make()
    merged = merge_tokens(encoder, 3)
    tokens = encoder(patches).tokens
    own = torch.stack([tokens[b, torch.stack([(merged.where[b, 1:] == t).nonzero()[0, 0]
                                              for t in range(1, merged.sizes.shape[1])])] for b in range(len(tokens))])
    sizes = merged.sizes[:, 1:, None]
    torch.testing.assert_close(tokens.mean(1), (own * sizes).sum(1) / sizes.sum(1))


@torch.no_grad()
@pytest.mark.parametrize("class_token", [True, False])
def test_merging_identical_tokens_changes_nothing(class_token):
    """The first block merges patches that come twice, or one three times; the others have nothing left to merge."""
    torch.manual_seed(0)
    encoder = Encoder(EncoderSettings(tokenizer=Grid(patch=(4, 4)), size=Shape(24, 3, 2), positions=NoPositions(),
                                      class_token=class_token), 1).eval()
    once = encoder.tokenizer.patchify(torch.randn(2, 1, 16, 16))
    for index in (torch.arange(16).repeat_interleave(2), torch.tensor([0, 0, 1, 1, 0])):
        patches = Patches(once.values[:, index], once.place[:, index])
        plain = encoder(patches)
        edited = copy.deepcopy(encoder)
        merged = merge_tokens(edited, len(index) // 2)
        for block in edited.blocks[1:]:
            block.per_block = 0
        found = edited(patches)
        assert merged.counts == [len(index) - len(index) // 2 + class_token] * 3
        torch.testing.assert_close(found.tokens, plain.tokens, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.summary, plain.summary, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(mean(found), mean(plain), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_filler_is_merged_first_and_changes_nothing():
    encoder, patches = make()
    every = torch.arange(PATCHES).expand(2, -1)
    valid = torch.ones(2, PATCHES, dtype=torch.bool)
    valid[0, 8:] = False                                                    # four fillers, two of them look for others
    mask = Mask(every, every[:, :0], valid)
    plain = encoder(patches, mask)
    edited = copy.deepcopy(encoder)
    merged = merge_tokens(edited, 2)
    for block in edited.blocks[1:]:
        block.per_block = 0
    found = edited(patches, mask)
    torch.testing.assert_close(found.tokens[0, :8], plain.tokens[0, :8], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mean(found)[0], mean(plain)[0], rtol=1e-4, atol=1e-5)
    assert merged.sizes[0].sum() == 9 and merged.sizes[1].sum() == 13
    merge_all, _ = make()
    merge_tokens(merge_all, 99)
    assert torch.isfinite(merge_all(patches, mask).tokens).all()


def test_the_likest_become_one_and_the_order_of_the_others_stays():
    keys = torch.tensor([[[9.0, 9], [1, 0], [0, 1], [-1, 0.1], [0.1, 1], [-1, 0]]])      # one protected, a b a b a
    goes = partners(keys, torch.ones(1, 6), count=1, protected=1)
    # a: (1,0), (-1,.1), (-1,0); b: (0,1), (.1,1). The likest pair is (1,0) with (.1,1): it goes there
    assert goes.tolist() == [[0, 4, 3, 1, 4, 2]]


@torch.no_grad()
def test_tokens_are_alike_by_the_keys_of_their_block():
    encoder, patches = make()
    merged, given = merge_tokens(encoder, 4), []
    for block in encoder.blocks[1:]:
        block.per_block = 0
    encoder.blocks[0].register_forward_hook(lambda _, inputs, __: given.append(inputs[0]))
    encoder(patches)
    block = encoder.blocks[0].wrapped
    keys = block.attention.qkv(block.norm1(given[0])).chunk(3, -1)[1].unflatten(-1, (4, -1)).mean(2)
    assert torch.equal(merged.where, partners(keys, torch.ones(keys.shape[:2]), 4, protected=1))


@torch.no_grad()
@pytest.mark.parametrize("adapt", [
    lambda encoder: add_prompts(encoder, Prompts(num_prompts=3)),
    lambda encoder: add_prompts(encoder, Prompts(num_prompts=3, deep=True)),
    lambda encoder: add_gated_prompts(encoder, GatedPrompts(num_prompts=3)),
    lambda encoder: add_lora(encoder, Lora(rank=2))], ids=["prompts", "deep prompts", "gated prompts", "lora"])
def test_adapters_stay_and_prompts_are_never_merged(adapt):
    encoder, patches = make()
    adapt(encoder)
    plain = encoder(patches)
    merged = merge_tokens(encoder, 1)
    found = encoder(patches)
    added = 0 if plain.extra is None else 3
    assert merged.counts == [PATCHES + 1 + added - done for done in (1, 2, 3)]
    assert (merged.sizes[:, :1 + added] == 1).all()
    assert found.tokens.shape == plain.tokens.shape and (found.extra is None) == (plain.extra is None)
    assert 0 < float((found.tokens - plain.tokens).abs().mean()) < 0.5 * float(plain.tokens.abs().mean())


@torch.no_grad()
def test_layers_that_are_asked_for_have_every_token():
    encoder, patches = make()
    merge_tokens(encoder, 4)
    features = encoder(patches, layers=(0, 2))
    assert [layer.shape[1] for layer in features.layers] == [PATCHES + 1] * 2


def test_encoders_whose_tokens_cannot_be_merged_are_refused():
    with pytest.raises(ValueError, match="a merged token has several places"):
        merge_tokens(make("points", place_every_block=True)[0], 2)
    with pytest.raises(ValueError, match="found -1"):
        merge_tokens(make()[0], -1)
    encoder = make()[0]
    merge_tokens(encoder, 2)
    with pytest.raises(ValueError, match="merges tokens already"):
        merge_tokens(encoder, 2)
    with pytest.raises(ValueError, match="found an encoder of kind Linear"):
        merge_tokens(nn.Linear(2, 2), 2)
