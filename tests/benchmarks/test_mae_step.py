"""What is timed against each other computes the same, and what does not is never timed."""

from __future__ import annotations

import pytest
import torch

from benchmarks.mae_step import Pair, check, pair_of, steppers
from benchmarks.paired import Quartiles, agree, in_turns, quartiles, speedup, verdict
from models.encoder.transformer import Shape
from models.objectives.decoders import DecoderSettings

SIZES = {"images": ((32, 32), (8, 8)), "volumes": ((16, 16, 16), (8, 8, 8)), "bands": ((16, 16), (8, 8))}


def small(kind: str = "images") -> Pair:
    size, patch = SIZES[kind]
    return pair_of(Shape(48, 2, 3), size, patch, batch=3, decoder=DecoderSettings(width=32, depth=2, num_heads=4),
                   bands=kind == "bands")


@pytest.mark.parametrize("kind", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_loss_and_gradient_are_those_of_a_plain_masked_autoencoder(kind: str, dtype: torch.dtype) -> None:
    check(small(kind), dtype)


def test_an_opponent_that_computes_something_else_is_not_timed() -> None:
    pair = small()
    with torch.no_grad():
        pair.plain.blocks[0].fc1.weight.mul_(1.01)
    with pytest.raises(AssertionError, match="Nothing is timed before the results agree"):
        check(pair, torch.float32)


def test_every_variant_makes_its_steps_in_turns() -> None:
    variants = steppers(small(), (torch.float32, torch.bfloat16))
    seconds = in_turns(variants, rounds=2)
    assert list(seconds) == [f"{who} {dtype}" for dtype in ("float32", "bfloat16") for who in ("plain", "sdpa", "ours")]
    assert all(len(times) == 2 and min(times) > 0 for times in seconds.values())


def test_quartiles_that_straddle_one_give_no_verdict() -> None:
    assert verdict(Quartiles(0.9, 1.3, 1.5), 1.1).startswith("none")
    assert verdict(Quartiles(1.05, 1.12, 1.2), 1.1).startswith("met")
    assert verdict(Quartiles(1.01, 1.05, 1.2), 1.1).startswith("missed")
    assert speedup([2.0, 3.0, 4.0], [1.0, 1.0, 1.0]) == quartiles([2.0, 3.0, 4.0]) == (2.5, 3.0, 3.5)


def test_numbers_must_agree_in_both_directions_and_be_numbers() -> None:
    agree("loss", 1.00001, 1.0, 1e-4)
    for found in (1.01, 0.99, float("nan")):
        with pytest.raises(AssertionError, match="found"):
            agree("loss", found, 1.0, 1e-4)
