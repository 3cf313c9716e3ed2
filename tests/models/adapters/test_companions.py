"""What a sample is told depends neither on the batch that it is in nor on samples that hold nothing, whatever adapter
is on the encoder. The union of adapters is read from its settings, so that a new one joins by being added to it."""

import typing

import pytest
import torch

from models.adapters.adapter import AdapterSettings, add_adapter
from models.adapters.any2point import Any2Point
from models.adapters.geometry import Geometry
from models.adapters.prior_prompts import PriorPrompts, memories, prior_query
from models.encoder.transformer import Encoder
from models.heads.predict_sample import PredictSample, SampleHead
from models.heads.tuned import Tuned
from tests.models.adapters.encoders import WIDTH, make

SMALLER = {PriorPrompts: PriorPrompts(neighbours=2, memory=4, width=3, num_blocks=2)}
ON_POINTS_ALONE = (Geometry, Any2Point)
CASES = [(kind, where) for kind in typing.get_args(AdapterSettings) for where in ("points", "image")
         if where == "points" or kind not in ON_POINTS_ALONE]


def adapted(kind: type, where: str) -> Encoder:
    encoder, patches = make(where)
    new = add_adapter(encoder, SMALLER.get(kind, kind()))
    for memory in memories(encoder):
        memory.remember(torch.cat([prior_query(encoder, memory, patches)] * 2))
    with torch.no_grad():
        for value in new:
            value += 0.2 * torch.randn_like(value)
    return encoder.eval()


def samples(where: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Three samples, the second with less data than the others, and what is known of them."""
    torch.manual_seed(2)
    x = torch.randn(3, 32, 3) if where == "points" else torch.randn(3, 3, 12, 16)
    known = torch.ones_like(x, dtype=torch.bool)
    if where == "points":
        known[1, 5:] = False
    else:
        known[1, ..., 8:] = False
    return x * known, known


@pytest.mark.parametrize("pool", ["summary_max", "mean_max"])
@pytest.mark.parametrize(("kind", "where"), CASES, ids=lambda one: getattr(one, "__name__", one))
def test_a_sample_is_answered_alone_as_in_a_batch_and_one_without_data_is_a_number(kind, where, pool):
    encoder = adapted(kind, where)
    model = Tuned(encoder, PredictSample(SampleHead(pool=pool), WIDTH, 2), torch.nn.Module())
    x, known = samples(where)
    together = model.features(x, known)
    alone = torch.cat([model.features(x[i:i + 1], known[i:i + 1]) for i in range(3)])
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-5)
    known[2] = False
    without = model.features(x * known, known)
    assert without.isfinite().all()
    torch.testing.assert_close(without[:2], together[:2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("kind", "where"), [(kind, where) for kind, where in CASES
                                             if kind.__name__ not in ("Prompts", "GatedPrompts", "DynamicPrompts",
                                                                      "PriorPrompts")],
                         ids=lambda one: getattr(one, "__name__", one))
def test_adapters_without_prompts_add_nothing_at_the_start(kind, where):
    encoder, patches = make(where)
    before = encoder(patches).tokens
    add_adapter(encoder, kind())
    torch.testing.assert_close(encoder.eval()(patches).tokens, before, rtol=1e-4, atol=1e-5)
