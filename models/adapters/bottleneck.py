"""Bottleneck adapters (Houlsby et al. 2019; one per block, behind it, as in Pfeiffer et al. 2021, "AdapterFusion"):
down to a few numbers, a non-linearity, up again, added to what a block makes.

Legend: B batch, S sequence, E width, R width of the bottleneck.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm, linear

from models.encoder.transformer import Encoder


@dataclass(frozen=True)
class Bottleneck:
    """x + up(gelu(down(norm(x)))) behind every block, with up = 0 at the start."""

    kind: Literal["bottleneck"] = "bottleneck"
    width: int = 64
    """R, numbers in the middle."""
    scale: float = 1.0
    """What comes out is multiplied by this before it is added; AdaptFormer takes 0.1."""

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ValueError(f"width: found {self.width}, expected at least 1. Leave the adapter out to have none.")


class BottleneckBlock(nn.Module):
    """A block and a bottleneck behind it."""

    ADDED = ("down", "down_bias", "up", "up_bias")

    def __init__(self, wrapped: nn.Module, outer: int, settings: Bottleneck) -> None:
        super().__init__()
        self.wrapped, self.scale = wrapped, settings.scale
        like = next(wrapped.parameters())
        self.down = nn.Parameter(like.new_empty(settings.width, outer))
        self.down_bias = nn.Parameter(like.new_zeros(settings.width))
        self.up = nn.Parameter(like.new_zeros(outer, settings.width))
        self.up_bias = nn.Parameter(like.new_zeros(outer))
        nn.init.xavier_uniform_(self.down)

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """B S E -> B S E"""
        out: Tensor = self.wrapped(x, valid)
        few = gelu(linear(layer_norm(out, out.shape[-1:]), self.down, self.down_bias))  # B S R
        return out + self.scale * linear(few, self.up, self.up_bias)


def add_bottleneck(encoder: Encoder, settings: Bottleneck) -> list[nn.Parameter]:
    """Put a bottleneck behind every block; nothing is frozen.

    Returns:
        Weights and biases, four per block.
    """
    out: list[nn.Parameter] = []
    for i, block in enumerate(encoder.blocks):
        new = BottleneckBlock(block, encoder.width, settings).train(block.training)
        encoder.blocks[i] = new
        out += [new.down, new.down_bias, new.up, new.up_bias]
    return out
