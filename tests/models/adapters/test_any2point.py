import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cosine_similarity, layer_norm

from models.adapters.adapter import adapter_state, add_adapter, load_adapter_state, trunk_hash
from models.adapters.any2point import Any2Point, CellAttention, Cells, add_any2point
from models.adapters.lora import Lora
from models.adapters.seams import Places
from models.encoder.carry import carry_to_points
from models.encoder.patches import Mask, Patches
from models.encoder.projections import VIEWS, project
from models.encoder.tokenizers import Grid, Groups
from models.encoder.transformer import Encoder, EncoderSettings, Shape
from models.heads.predict_sample import PredictSample, SampleHead
from models.heads.task_loss import TaskLoss
from models.heads.tuned import Tuned
from tests.models.adapters.encoders import everything, make

SMALL = Any2Point(num_cells=3, attention_width=5, width=4)
SHAPE = Shape(24, 2, 4)


def carried() -> tuple[Encoder, Patches]:
    torch.manual_seed(0)
    trunk = Encoder(EncoderSettings(tokenizer=Grid(patch=(4, 4)), size=SHAPE), 1).eval()
    asked = EncoderSettings(tokenizer=Groups(num_groups=8, group_size=4, widths=(8, 8, 8)), size=SHAPE)
    encoder = carry_to_points(trunk, asked, (16, 16), 3)
    return encoder, encoder.tokenizer.patchify(torch.randn(2, 32, 3, generator=torch.Generator().manual_seed(1)) / 2)


@pytest.mark.parametrize("real", [7, 5])
def test_tokens_share_a_cell_when_they_fall_into_the_same_one(real):
    torch.manual_seed(0)
    places = Places(nn.Identity())
    places.place = torch.rand(2, 7, 3) * 1.4 - 0.7
    cells = Cells(places, CellAttention(places.place, 6, SMALL), 3)
    valid = torch.arange(7) < real
    cells.find(None if real == 7 else valid.expand(2, -1))

    def cell(at: torch.Tensor) -> list[int]:
        return [min(int(one * 3), 2) for one in at.tolist()]

    flat = project(places.place)
    for b in range(2):
        for i in range(7):
            for j in range(7):
                both = i == j or bool(valid[i] and valid[j])
                for w in range(len(VIEWS)):
                    assert bool(cells.planes[b, w, i, j]) == (both and cell(flat[b, w, i]) == cell(flat[b, w, j]))
                in_space = [(places.place[b, k] + 1) / 2 for k in (i, j)]
                assert bool(cells.space[b, i, j]) == (both and cell(in_space[0]) == cell(in_space[1]))


def test_what_cells_say_is_attention_a_mean_and_a_trust_by_likeness_one_token_at_a_time():
    torch.manual_seed(0)
    module = CellAttention(torch.empty(0, dtype=torch.float64), 6, SMALL)
    tokens = torch.randn(1, 5, 6, dtype=torch.float64)
    planes = torch.rand(1, 2, 5, 5) < 0.4
    planes |= planes.transpose(-1, -2) | torch.eye(5, dtype=torch.bool)
    space = torch.eye(5, dtype=torch.bool)[None] | (torch.arange(5) < 2) & (torch.arange(5) < 2)[:, None]
    out = module(tokens, planes, space)[0]
    q, k, v = (layer_norm(tokens[0], (6,)) @ module.to_qkv.T).split(5, -1)

    def looked(w: int, i: int) -> torch.Tensor:
        near = [j for j in range(5) if planes[0, w, i, j]]
        weights = torch.stack([q[i] @ k[j] / math.sqrt(5) for j in near]).softmax(0)
        found = sum(weight * v[j] for weight, j in zip(weights, near, strict=True))
        return tokens[0, i] + module.back @ found

    for i in range(5):
        pooled = [torch.stack([looked(w, j) for j in range(5) if planes[0, w, i, j]]).mean(0) for w in range(2)]
        guide = torch.stack([tokens[0, j] for j in range(5) if space[0, i, j]]).mean(0)
        trust = torch.stack([cosine_similarity(one, guide, dim=0) for one in pooled]).softmax(0)
        torch.testing.assert_close(out[i], trust[0] * pooled[0] + trust[1] * pooled[1])


def test_nothing_changes_at_the_start_and_every_added_parameter_learns():
    encoder, patches = carried()
    before = encoder(patches).tokens
    new = add_any2point(encoder, SMALL)
    assert torch.equal(encoder(patches).tokens, before)
    own = {id(value) for value in encoder.tokenizer.parameters()}
    assert own < {id(value) for value in new} and len(new) == len(own) + 2 + 4 * SHAPE.depth
    with torch.no_grad():
        for value in new:
            value += 0.2 * torch.randn_like(value)
    encoder(patches).tokens.square().sum().backward()
    assert all(value.grad.abs().sum() > 0 for value in new)
    assert all(value.requires_grad for value in encoder.parameters())


def test_the_trunk_is_frozen_and_the_new_tokenizer_learns_with_its_batch_statistics():
    encoder, patches = carried()
    new = add_any2point(encoder, SMALL)
    model = Tuned(encoder, PredictSample(SampleHead(), 24, 2), TaskLoss("single_label", 2))
    model.freeze_trunk()
    trained = {id(value) for value in encoder.parameters() if value.requires_grad}
    assert trained == {id(value) for value in new}
    before = encoder.tokenizer.point[1].running_mean.clone()
    model.train()
    encoder(patches)
    assert not torch.equal(encoder.tokenizer.point[1].running_mean, before)


@pytest.mark.parametrize("others", [(), (Lora(rank=2),)], ids=["alone", "lora"])
def test_weights_and_batch_statistics_come_back_on_the_same_image_encoder(others):
    encoder, patches = carried()
    made_on = trunk_hash(encoder)
    for settings in (SMALL, *others):
        for value in add_adapter(encoder, settings):
            value.data += 0.1 * torch.randn_like(value)
    encoder.train()
    encoder(patches)
    encoder.eval()
    again, _ = carried()
    load_adapter_state(again, [SMALL, *others], adapter_state(encoder), made_on)
    torch.testing.assert_close(everything(again(patches)), everything(encoder(patches)), rtol=1e-5, atol=1e-6)


def test_filler_at_the_end_of_a_list_changes_nothing():
    encoder, patches = carried()
    with torch.no_grad():
        for value in add_any2point(encoder, SMALL):
            value += 0.2 * torch.randn_like(value)
    plain = Mask(torch.arange(6).expand(2, -1), torch.arange(6, 8).expand(2, -1))
    padded = Mask(torch.cat([plain.visible, torch.zeros(2, 4, dtype=torch.int64)], 1), plain.hidden,
                  torch.arange(10).expand(2, -1) < 6)
    torch.testing.assert_close(encoder(patches, padded).tokens[:, :6], encoder(patches, plain).tokens)


def test_images_a_second_time_and_no_cells_are_refused():
    with pytest.raises(ValueError, match="expected groups of points.*describe them"):
        add_any2point(make("image")[0], SMALL)
    encoder, _ = carried()
    add_any2point(encoder, SMALL)
    with pytest.raises(ValueError, match="expected them once"):
        add_any2point(encoder, SMALL)
    with pytest.raises(ValueError, match="num_cells 0"):
        Any2Point(num_cells=0)
