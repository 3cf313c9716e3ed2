"""Embedding hidden groups and leaving them out changes batch statistics, and nothing else."""

import dataclasses

import pytest
import torch

from models.encoder.patches import Mask
from models.encoder.tokenizers import Groups
from models.encoder.transformer import Encoder, EncoderSettings, Shape

SETTINGS = EncoderSettings(tokenizer=Groups(num_groups=12, group_size=8, widths=(8, 16, 16)), size=Shape(24, 2, 2),
                           class_token=False, place_every_block=True, qkv_bias=False, norm_eps=1e-5)


@pytest.fixture
def pair():
    """An encoder that embeds what it sees, and its twin that embeds all."""
    torch.manual_seed(0)
    plain = Encoder(SETTINGS, 3)
    all_of_it = Encoder(dataclasses.replace(SETTINGS, embed_hidden=True), 3)
    all_of_it.load_state_dict(plain.state_dict())
    return plain, all_of_it


@pytest.fixture
def masked():
    points = torch.randn(3, 100, 3, generator=torch.Generator().manual_seed(1))
    order = torch.stack([torch.randperm(12, generator=torch.Generator().manual_seed(i)) for i in range(3)])
    return points, Mask(order[:, :5], order[:, 5:])


def test_features_are_the_same_in_eval_mode(pair, masked):
    points, mask = masked
    one, two = (encoder.eval()(encoder.tokenizer.patchify(points), mask) for encoder in pair)
    torch.testing.assert_close(one.tokens, two.tokens)


def test_statistics_of_the_tokenizer_are_those_of_all_groups(pair, masked):
    points, mask = masked
    plain, all_of_it = (encoder.train() for encoder in pair)
    patches = plain.tokenizer.patchify(points)
    first, norm, _ = all_of_it.tokenizer.point
    every = first(patches.values.reshape(-1, 3))
    plain(patches, mask)
    all_of_it(patches, mask)
    torch.testing.assert_close(norm.running_mean, 0.1 * every.mean(0))
    torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * every.var(0))
    assert not torch.allclose(plain.tokenizer.point[1].running_mean, norm.running_mean)
