"""What surrounds a token in space, told to it behind every block: the shape that geometry-aware adapters (Point-PEFT)
and guided ones (Any2Point) share. They differ in what surroundings are.

Legend: B batch, S sequence, V visible patches, E width, R width of the bottleneck.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, linear

from models.adapters.seams import Places, added
from models.encoder.transformer import Encoder


class Surroundings(Protocol):
    """Who is around whom in the batch at hand; the blocks of an encoder share it."""

    places: Places

    @property
    def attention(self) -> nn.Module:
        """What is trained in it, one for all blocks."""

    def find(self, valid: Tensor | None) -> None:
        """Look where the patches are. valid B V"""

    def tell(self, tokens: Tensor) -> Tensor:
        """B V E -> B V E"""


class Narrow(nn.Module):
    """up(QuickGELU(down(norm(x)))), with up = 0 at the start; the norm has no weights."""

    ADDED = ("down", "down_bias", "up", "up_bias")

    def __init__(self, like: Tensor, outer: int, width: int) -> None:
        super().__init__()
        self.down = nn.Parameter(nn.init.xavier_uniform_(like.new_empty(width, outer)))
        self.down_bias = nn.Parameter(like.new_zeros(width))
        self.up = nn.Parameter(like.new_zeros(outer, width))
        self.up_bias = nn.Parameter(like.new_zeros(outer))

    def forward(self, x: Tensor) -> Tensor:
        """... E -> ... E"""
        return linear(quick_gelu(linear(layer_norm(x, x.shape[-1:]), self.down, self.down_bias)), self.up, self.up_bias)


class SurroundedBlock(nn.Module):
    """A block, and behind it what surrounds each patch; class token and prompts pass."""

    def __init__(self, wrapped: nn.Module, around: Surroundings, outer: int, width: int, share: float, *,
                 first: bool) -> None:
        super().__init__()
        self.wrapped, self.around, self.share, self.first = wrapped, around, share, first
        self.narrow = Narrow(next(wrapped.parameters()), outer, width)

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """B S E -> B S E"""
        count = self.around.places.place.shape[1]
        if self.first:
            self.around.find(None if valid is None else valid[:, -count:])
        out: Tensor = self.wrapped(x, valid)
        tokens = out[:, -count:]
        told = tokens + self.share * self.around.tell(tokens)
        return torch.cat([out[:, :-count], tokens + self.narrow(told)], 1)


def surround(encoder: Encoder, around: Surroundings, width: int, share: float) -> list[nn.Parameter]:
    """Tell every block's tokens of their surroundings: x + up(act(down(norm(x + share * told)))). Nothing is frozen.

    Returns:
        The weights of the attention, and four per block.

    Raises:
        ValueError: they are told of such surroundings already.
    """
    if any(isinstance(module, SurroundedBlock) and type(module.around) is type(around) for module in encoder.modules()):
        raise ValueError("found these adapters on the encoder already, expected them once. Make them wider.")
    out = [value for _, value in added(around.attention)]
    for i, block in enumerate(encoder.blocks):
        new = SurroundedBlock(block, around, encoder.width, width, share, first=i == 0).train(block.training)
        encoder.blocks[i] = new
        out += [value for _, value in added(new.narrow)]
    encoder.blocks[0].add_module(f"{type(around).__name__.lower()}_attention", around.attention)
    return out


def quick_gelu(x: Tensor) -> Tensor:
    """x times the logistic function of 1.702 x"""
    return x * (1.702 * x).sigmoid()
