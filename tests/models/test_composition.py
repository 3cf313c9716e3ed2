"""Parts compose by settings alone: every combination of tokenizer, masking, objective, decoder and readout either makes
a step or is refused while its settings are checked, with a reason. The unions are read from the settings themselves, so
that a new part joins by being added to its union."""

from __future__ import annotations

import dataclasses
import itertools
import typing
from typing import Any

import pytest
import torch

from models.encoder.build import build_encoder
from models.encoder.chance import chance_of
from models.encoder.masking import Masking
from models.encoder.tokenizers import BandGroups, Bands, Grid, Grid2D3D, Groups, TokenizerSettings
from models.encoder.transformer import EncoderSettings, Shape
from models.objectives.decoders import DecoderSettings
from models.objectives.hierarchical_decoder import HierarchicalDecoderSettings
from models.objectives.objective import ObjectiveSettings, build_objective, check_fit

TOKENIZERS: dict[str, tuple[Any, int, tuple[int, ...]]] = {
    "image": (Grid(patch=(4, 4)), 1, (1, 16, 16)),
    "volume": (Grid(patch=(4, 4, 4)), 1, (1, 8, 16, 16)),
    "bands": (Bands(patch=(4, 4)), 3, (3, 16, 16)),
    "band_groups": (BandGroups(patch=(4, 4), groups=((0, 2), (1,)), channel_dim=4), 3, (3, 16, 16)),
    "image_or_volume": (Grid2D3D(patch=(4, 4), cube=(4, 4, 4)), 1, (1, 16, 16)),
    "points": (Groups(num_groups=16, group_size=4, widths=(8, 8, 8)), 3, (64, 3)),
}
GRIDS = {"volume": (2, 4, 4), "bands": (3, 4, 4), "band_groups": (2, 4, 4)}
"""Patches along each axis of place, for objectives that are made for one grid; 4 by 4 for the others."""
NEEDS_MORE = {"swin_proxy_tasks", "distillation", "masked_distillation"}
"""Objectives that need another encoder or a teacher; their own tests make their steps."""
DECODERS = (DecoderSettings(width=24, depth=1, num_heads=2),
            HierarchicalDecoderSettings(width=24, depth=1, taps=(1, 0), num_heads=2))

MUST_WORK = {
    ("image", "random", "masked_autoencoder", "hierarchical", "pixels"),     # Hi-End-MAE's decoder on X-rays
    ("band_groups", "channels", "masked_autoencoder", "transformer", "group_pixels"),  # HCS under SatMAE's decoder
    ("bands", "random", "masked_autoencoder", "transformer", "gradients"),   # gradient maps of satellite bands
    ("image", "colour_noise", "masked_autoencoder", "transformer", "pixels"),
    ("points", "colour_noise", "masked_autoencoder", "transformer", "chamfer"),
    ("volume", "block", "masked_autoencoder", "hierarchical", "pixels"),
}
MUST_BE_REFUSED = {
    ("image", "random", "masked_autoencoder", "transformer", "chamfer"),
    ("points", "random", "masked_autoencoder", "transformer", "pixels"),
    ("points", "channels", "masked_autoencoder", "transformer", "chamfer"),
    ("image", "channels", "masked_autoencoder", "transformer", "pixels"),
}


def members(union: Any) -> list[Any]:
    """The dataclasses of a union, or the one that it is."""
    found = [member for member in typing.get_args(union) if dataclasses.is_dataclass(member)]
    return found or [union]


def variants(objective: Any, grid: tuple[int, ...]) -> list[Any]:
    """Objectives of one class with each masking, decoder and readout that its fields take, made for tiny samples."""
    hints = typing.get_type_hints(objective)
    choices: dict[str, list[Any]] = {}
    if "num_scales" in hints:
        choices["num_scales"] = [1]
    if "grid" in hints:
        choices["grid"] = [grid]
    for name, hint in hints.items():
        kinds = members(hint)
        if name == "masking":
            choices[name] = [kind() for kind in kinds]
        elif name == "readout":
            choices[name] = [kind() for kind in kinds]
        elif name in ("decoder", "second_decoder", "predictor"):
            fitting = [decoder for decoder in DECODERS if type(decoder) in kinds]
            choices[name] = fitting if name == "decoder" else fitting[:1]
    return [objective(**dict(zip(choices, values, strict=True))) for values in itertools.product(*choices.values())]


def name_of(where: str, settings: Any) -> tuple[str, ...]:
    parts = (getattr(settings, part, None) for part in ("masking", "decoder", "readout"))
    masking, decoder, readout = (getattr(part, "kind", "-") for part in parts)
    return where, masking, settings.kind, decoder, readout


OBJECTIVES = [kind for kind in members(ObjectiveSettings) if kind().kind not in NEEDS_MORE]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda kind: kind().kind)
@pytest.mark.parametrize("where", TOKENIZERS)
def test_every_combination_makes_a_step_or_is_refused_with_a_reason(where, objective):
    tokenizer, channels, shape = TOKENIZERS[where]
    ids = torch.arange(2)
    for settings in variants(objective, GRIDS.get(where, (4, 4))):
        name = name_of(where, settings)
        encoder = EncoderSettings(tokenizer=tokenizer, size=Shape(24, 2, 2))
        torch.manual_seed(0)
        try:
            check_fit(settings, encoder)
            model = build_objective(settings, build_encoder(encoder, channels))
            losses = model(torch.randn(2, *shape), None, chance_of(0, 0, 0, ids, 0 * ids))
        except ValueError as error:
            assert len(str(error)) > 40, f"{name} is refused without a reason: {error}"
            assert any(word in str(error).lower() for word in ("expected", "needs", "take")), f"no remedy: {error}"
            assert name not in MUST_WORK, f"{name} is refused: {error}"
            continue
        assert name not in MUST_BE_REFUSED, f"{name} was let through"
        total = sum(losses.values())
        assert isinstance(total, torch.Tensor) and total.isfinite(), name
        total.backward()
        reached = [parameter.grad is not None for parameter in model.encoder.blocks.parameters()]
        assert all(reached), f"{name}: blocks of the encoder get no gradient"


def test_every_tokenizer_and_masking_takes_part():
    assert {type(tokenizer) for tokenizer, _, _ in TOKENIZERS.values()} == set(members(TokenizerSettings))
    assert len(members(Masking)) >= 6
