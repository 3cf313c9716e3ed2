"""Classes of points: tokens are brought to points from the nearest centres; groups that are not there say nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.encoder.build import build_encoder
from models.encoder.tokenizers import Groups
from models.encoder.transformer import EncoderSettings, Shape
from models.heads.segment_grid import SegmentHead
from models.heads.segment_points import brought
from models.heads.tuned import Tuned, build_head, build_loss


def tuned(design: str, channels: int = 3) -> Tuned:
    torch.manual_seed(0)
    encoder = build_encoder(EncoderSettings(size=Shape(width=24, depth=4, num_heads=2),
                                            tokenizer=Groups(num_groups=8, group_size=8)), channels)
    settings = SegmentHead(width=8, design=design)  # type: ignore[arg-type]
    return Tuned(encoder, build_head(settings, 24, 2, encoder=encoder), build_loss(settings, "segmentation", 2))


def test_features_of_a_point_are_those_of_its_three_nearest_centres_by_inverse_squared_distance():
    generator = torch.Generator().manual_seed(0)
    tokens, centres = (torch.rand(2, 6, n, generator=generator, dtype=torch.float64) for n in (4, 3))
    places = torch.rand(2, 9, 3, generator=generator, dtype=torch.float64)
    valid = torch.ones(2, 6, dtype=torch.bool)
    valid[1, 3:] = False
    found = brought(tokens, centres, places, valid).numpy()
    for b, m in np.ndindex(2, 9):
        there = np.flatnonzero(valid[b].numpy())
        gone = ((places[b, m] - centres[b, there]) ** 2).sum(-1).numpy()
        nearest = np.argsort(gone)[:3]
        weight = 1 / gone[nearest]
        expected = (weight[:, None] * tokens[b, there[nearest]].numpy()).sum(0) / weight.sum()
        np.testing.assert_allclose(found[b, m], expected, rtol=1e-6)


@pytest.mark.parametrize("design", ["pyramid", "linear"])
@pytest.mark.parametrize("channels", [3, 5])
def test_it_answers_for_every_point_and_all_of_it_is_trained(design, channels):
    model = tuned(design, channels)
    told = model(torch.randn(3, 40, channels))
    assert told.shape == (3, 3, 40)
    told.square().mean().backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in model.head.parameters())


def test_points_that_are_not_there_change_no_answer_of_those_that_are():
    model = tuned("pyramid").eval()
    x = torch.randn(1, 40, 3)
    known = torch.ones_like(x, dtype=torch.bool)
    known[:, 30:] = False
    other = x.clone()
    other[:, 30:] = 7.0
    with torch.no_grad():
        one, two = (model(torch.where(known, cloud, 0.0), known)[..., :30] for cloud in (x, other))
    assert torch.equal(one, two) and one.isfinite().all()


@pytest.mark.parametrize("real", [0, 1, 2, 3])
def test_of_few_centres_each_counts_once_whether_filler_stands_beside_them_or_not(real):
    torch.manual_seed(0)
    tokens, centres, places = torch.randn(2, 4, 5), torch.randn(2, 4, 3), torch.randn(2, 9, 3)
    there = brought(tokens, centres, places, (torch.arange(4) < real).expand(2, -1))
    alone = brought(tokens[:, :real], centres[:, :real], places, None) if real else torch.zeros(2, 9, 5)
    torch.testing.assert_close(there, alone)
