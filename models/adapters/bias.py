"""Bias tuning (Ben Zaken et al. 2022, "BitFit"): of every block only the biases are trained.

The bias of a norm in front of a layer moves that layer's output by a constant, as the layer's own bias does; so a shift
behind every linear layer reaches all that biases of norms and layers could.

Legend: i inputs, o outputs of a layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from models.adapters.seams import LayerName, chosen_linears, inner_blocks, linear_of, merged, wrap_linear
from models.encoder.transformer import Encoder


@dataclass(frozen=True)
class Bias:
    """A learnt shift behind linear layers, 0 at the start."""

    kind: Literal["bias"] = "bias"
    layers: tuple[LayerName, ...] = ("query", "key", "value", "output", "mlp")
    """Which layers of every block; query, key and value are shifted together."""

    def __post_init__(self) -> None:
        if not self.layers:
            raise ValueError("layers: found none, expected at least one of query, key, value, output, mlp.")


class ShiftedLinear(nn.Module):
    """A layer and a shift."""

    ADDED = ("shift",)

    def __init__(self, wrapped: Any) -> None:
        super().__init__()
        self.wrapped = wrapped
        self.in_features: int = wrapped.in_features
        self.out_features: int = wrapped.out_features
        like = next(wrapped.parameters())
        self.shift = nn.Parameter(torch.zeros(self.out_features, device=like.device, dtype=like.dtype))

    def forward(self, x: Tensor) -> Tensor:
        """... i -> ... o"""
        out: Tensor = self.wrapped(x)
        return out + self.shift.to(out.dtype)

    def merged(self) -> nn.Linear:
        """The one layer that this equals, within rounding."""
        layer = merged(self.wrapped)
        shift = self.shift.detach()
        return linear_of(layer.weight, shift if layer.bias is None else layer.bias.detach() + shift)


def add_bias(encoder: Encoder, settings: Bias) -> list[nn.Parameter]:
    """Put a shift behind layers of every block; nothing is frozen.

    Returns:
        The shifts, o each.
    """
    out: list[nn.Parameter] = []
    for block in inner_blocks(encoder):
        for name in chosen_linears(settings.layers):
            new = wrap_linear(block, name, ShiftedLinear)
            assert isinstance(new, ShiftedLinear)
            out.append(new.shift)
    return out
