"""LoRA (Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", section 4): a low-rank change beside a
frozen weight.

Legend: i inputs, o outputs of a layer, r rank, G parts of a layer that are changed, n parts in all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from models.adapters.seams import LayerName, chosen_linears, inner_blocks, linear_of, merged, wrap_linear
from models.encoder.transformer import Encoder


@dataclass(frozen=True)
class Lora:
    """W x + (alpha / rank) B A x, with B = 0 at the start."""

    kind: Literal["lora"] = "lora"
    rank: int = 8
    """Rows of A and columns of B."""
    alpha: float = 16.0
    """The change is scaled by alpha / rank, so that another rank needs no other learning rate."""
    layers: tuple[LayerName, ...] = ("query", "value")
    """Which layers of every block are changed; the paper takes query and value."""
    dropout: float = 0.0
    """Share of the change's inputs dropped while training."""

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"rank: found {self.rank}, expected at least 1. Leave the adapter out to have none.")
        if not self.layers:
            raise ValueError("layers: found none, expected at least one of query, key, value, output, mlp.")


class LoraLinear(nn.Module):
    """A layer and its change. A layer that holds several (query, key, value) is changed in some of its parts, each with
    an A and a B of its own."""

    ADDED = ("down", "up")

    def __init__(self, wrapped: Any, rank: int, alpha: float, parts: Sequence[bool] = (True,),
                 dropout: float = 0.0) -> None:
        """parts: the layer's equal shares of outputs in order, and which of them are changed."""
        super().__init__()
        self.wrapped = wrapped
        self.in_features: int = wrapped.in_features
        self.out_features: int = wrapped.out_features
        self.rank, self.scale, self.parts = rank, alpha / rank, tuple(parts)
        assert self.out_features % len(parts) == 0 and any(parts), (self.out_features, parts)
        like = next(wrapped.parameters())
        self.down = nn.Parameter(torch.empty(sum(parts) * rank, self.in_features, device=like.device, dtype=like.dtype))
        share = self.out_features // len(parts)
        self.up = nn.Parameter(torch.zeros(sum(parts) * share, rank, device=like.device, dtype=like.dtype))
        self.drop = nn.Dropout(dropout)
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """... i -> ... o"""
        out: Tensor = self.wrapped(x)
        x = self.drop(x)
        changes = [None if pair is None else linear(linear(x, pair[0]), pair[1]) for pair in self._pairs()]
        shares = out.chunk(len(self.parts), -1)
        return torch.cat([share if change is None else share + self.scale * change
                          for share, change in zip(shares, changes, strict=True)], -1)

    def merged(self) -> nn.Linear:
        """The one layer that this equals, within rounding."""
        layer = merged(self.wrapped)
        shares = layer.weight.detach().chunk(len(self.parts))
        weight = torch.cat([share if pair is None else share + self.scale * (pair[1] @ pair[0])
                            for share, pair in zip(shares, self._pairs(), strict=True)])
        return linear_of(weight, layer.bias)

    def _pairs(self) -> list[tuple[Tensor, Tensor] | None]:
        """(A r i, B o/n r) of each part, None for those left as they are."""
        changed = sum(self.parts)
        pairs = iter(zip(self.down.chunk(changed), self.up.chunk(changed), strict=True))
        return [next(pairs) if part else None for part in self.parts]


def add_lora(encoder: Encoder, settings: Lora) -> list[nn.Parameter]:
    """Put a low-rank change beside layers of every block; nothing is frozen.

    Returns:
        A and B of every layer: G r i and G o/n r.
    """
    out: list[nn.Parameter] = []
    for block in inner_blocks(encoder):
        for name, parts in chosen_linears(settings.layers).items():
            new = wrap_linear(block, name, lambda layer, parts=parts: LoraLinear(  # type: ignore[misc]
                layer, settings.rank, settings.alpha, parts, settings.dropout))
            assert isinstance(new, LoraLinear)
            out += [new.down, new.up]
    return out
