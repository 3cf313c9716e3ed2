"""Dynamic visual prompt tuning (He et al. 2023, "DVPT: Dynamic Visual Prompt Tuning of Large Pre-trained Models for
Medical Image Analysis"): behind every block, tokens go through a small bottleneck, and prompts ask what it makes of the
sample's tokens, so that they differ from sample to sample.

Legend: B batch, V visible patches, S class token (1 or 0), X prompts, E width, R width of the bottleneck.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, linear

from models.adapters.prompts import Prompts, add_prompts, refuse_second_prompts
from models.adapters.seams import added
from models.adapters.surroundings import quick_gelu
from models.encoder.transformer import Encoder, fused_attention


@dataclass(frozen=True)
class DynamicPrompts:
    """Shallow prompts that ask the sample's tokens behind every block, and a bottleneck for all tokens; neither adds
    anything at the start."""

    kind: Literal["dynamic_prompts"] = "dynamic_prompts"
    num_prompts: int = 50
    """Tokens, inserted once."""
    width: int = 20
    """R, numbers in the middle."""
    shared_by: int = 3
    """How many blocks in a row, counted from the last, share one bottleneck with its attention. What prompts find
    behind the last block reaches only heads that pool prompts."""
    dropout: float = 0.0
    """Share of the prompts' numbers dropped while training."""

    def __post_init__(self) -> None:
        Prompts(num_prompts=self.num_prompts)
        if min(self.width, self.shared_by) < 1:
            raise ValueError(f"found width {self.width} and shared_by {self.shared_by}, expected at least 1 each.")


class AskedTokens(nn.Module):
    """Down, what prompts find by asking, and up again."""

    ADDED = ("down", "down_bias", "to_qkv", "up", "up_bias", "gates")

    def __init__(self, like: Tensor, outer: int, width: int) -> None:
        super().__init__()
        self.down = nn.Parameter(nn.init.xavier_uniform_(like.new_empty(width, outer)))
        self.down_bias = nn.Parameter(like.new_zeros(width))
        self.to_qkv = nn.Parameter(nn.init.xavier_uniform_(like.new_empty(3 * width, width)))
        self.up = nn.Parameter(nn.init.xavier_uniform_(like.new_empty(outer, width)))
        self.up_bias = nn.Parameter(like.new_zeros(outer))
        self.gates = nn.Parameter(like.new_zeros(2))

    def forward(self, tokens: Tensor, where: slice, valid: Tensor | None) -> Tensor:
        """tokens B S+X+V E, prompts at `where`; valid B S+X+V -> B S+X+V E: what is added to them"""
        few = quick_gelu(linear(layer_norm(tokens, tokens.shape[-1:]), self.down, self.down_bias))   # B S+X+V R
        up = linear(few, self.up, self.up_bias)
        found = linear(self.ask(few, where, valid), self.up, self.up_bias)  # B X E
        alone, asked = self.gates
        return torch.cat([alone * up[:, :where.start], alone * up[:, where] + asked * found,
                          alone * up[:, where.stop:]], 1)

    def ask(self, few: Tensor, where: slice, valid: Tensor | None) -> Tensor:
        """Prompts as queries, class token and patches as keys and values. few B S+X+V R -> B X R"""
        query, key, value = linear(few, self.to_qkv).chunk(3, -1)
        seen = None if valid is None else _without(valid, where)[:, None]   # B 1 S+V
        return fused_attention(query[:, where], _without(key, where), _without(value, where), seen)


class DynamicBlock(nn.Module):
    """A block whose tokens are asked behind it."""

    def __init__(self, wrapped: nn.Module, where: slice, asked: AskedTokens, *, owner: bool) -> None:
        """owner: of the blocks that share `asked`, the one that it belongs to."""
        super().__init__()
        self.wrapped, self.where = wrapped, where
        self.shared = [asked]
        if owner:
            self.asked = asked

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """B S+X+V E -> B S+X+V E"""
        out: Tensor = self.wrapped(x, valid)
        more: Tensor = self.shared[0](out, self.where, valid)
        return out + more


def add_dynamic_prompts(encoder: Encoder, settings: DynamicPrompts) -> list[nn.Parameter]:
    """Put prompts, bottlenecks and their attention into an encoder; nothing is frozen.

    Returns:
        The parameters that were added: prompts X E, and six for every `shared_by` blocks.

    Raises:
        ValueError: the encoder has prompts already.
    """
    refuse_second_prompts(encoder)
    started, new = int(encoder.class_token is not None), []
    where = slice(started, started + settings.num_prompts)
    for i, block in enumerate(encoder.blocks):
        if owner := i == 0 or (len(encoder.blocks) - i) % settings.shared_by == 0:
            asked = AskedTokens(next(encoder.blocks.parameters()), encoder.width, settings.width)
            new += [value for _, value in added(asked)]
        encoder.blocks[i] = DynamicBlock(block, where, asked, owner=owner).train(block.training)
    return [*add_prompts(encoder, Prompts(num_prompts=settings.num_prompts, dropout=settings.dropout)), *new]


def _without(x: Tensor, where: slice) -> Tensor:
    """B n ... -> B n-X ..."""
    return torch.cat([x[:, :where.start], x[:, where.stop:]], 1)
