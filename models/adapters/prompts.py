"""Visual prompt tuning (Jia et al. 2022, "Visual Prompt Tuning", section 3.2): learnt tokens between class token and
patches, in front of the first block (shallow) or anew in front of every block (deep).

Legend: B batch, V visible patches, S class token (1 or 0), X prompts, E width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from models.adapters.seams import added
from models.encoder.transformer import Encoder


@dataclass(frozen=True)
class Prompts:
    """Learnt tokens that the blocks look at beside the patches."""

    kind: Literal["prompts"] = "prompts"
    num_prompts: int = 10
    """Tokens per block; the paper tries 1 to 200 and takes the best per data set."""
    deep: bool = False
    """New prompts take the place of the old before every block after the first; False: one set, in front of the first
    block, that the blocks then change like any token."""
    dropout: float = 0.0
    """Share of the prompts' numbers dropped while training."""

    def __post_init__(self) -> None:
        if self.num_prompts < 1:
            raise ValueError(f"num_prompts: found {self.num_prompts}, expected at least 1. Leave the adapter out to "
                             "have none.")


class PromptedBlock(nn.Module):
    """A block whose sequence holds prompts after the class token, and whose validity list knows nothing of them."""

    ADDED = ("prompts",)

    def __init__(self, wrapped: nn.Module, started: int, num_prompts: int, *, first: bool,
                 prompts: Tensor | None = None, dropout: float = 0.0,
                 more: Callable[[Tensor, Tensor | None], Tensor] | None = None) -> None:
        """more: (the block's input, its validity list) -> B X E or 1 X E, added to the prompts; None: nothing."""
        super().__init__()
        self.more = more
        self.wrapped = wrapped
        self.started, self.num_prompts, self.first = started, num_prompts, first
        self.prompts = None if prompts is None else nn.Parameter(prompts)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """x B S+V E for the first block, B S+X+V E for the others; valid B S+V -> B S+X+V E"""
        if self.prompts is not None:
            after = self.started if self.first else self.started + self.num_prompts
            held = self.drop(self.prompts.expand(len(x), -1, -1)).to(x.dtype)
            if self.more is not None:
                held = held + self.more(x, valid).to(x.dtype)
            x = torch.cat([x[:, :self.started], held, x[:, after:]], 1)
        if valid is not None:
            seen = valid.new_ones(len(valid), self.num_prompts)
            valid = torch.cat([valid[:, :self.started], seen, valid[:, self.started:]], 1)
        out: Tensor = self.wrapped(x, valid)
        return out


def add_prompts(encoder: Encoder, settings: Prompts) -> list[nn.Parameter]:
    """Put prompts into an encoder's blocks; nothing is frozen.

    Returns:
        The parameters that were added: X E each, one, or with `deep` one per block. They begin uniform within
        sqrt(6 / (values of a patch + E)), the release's rule.

    Raises:
        ValueError: the encoder has prompts already.
    """
    refuse_second_prompts(encoder)
    started = int(encoder.class_token is not None)
    for i, block in enumerate(encoder.blocks):
        prompts = first_prompts(encoder, settings.num_prompts) if i == 0 or settings.deep else None
        encoder.blocks[i] = PromptedBlock(block, started, settings.num_prompts, first=i == 0, prompts=prompts,
                                          dropout=settings.dropout).train(block.training)
    return [value for name, value in added(encoder) if name.endswith(".prompts")]


def refuse_second_prompts(encoder: Encoder) -> None:
    """Raises ValueError when the encoder has prompts."""
    if any(isinstance(block, PromptedBlock) for block in encoder.blocks):
        raise ValueError("this encoder has prompts already; expected one adapter with prompts at most. Ask for more "
                         "num_prompts instead.")


def first_prompts(encoder: Encoder, num_prompts: int) -> Tensor:
    """X E, drawn as the release draws them."""
    bound = math.sqrt(6 / (encoder.tokenizer.num_values + encoder.width))
    like = next(encoder.blocks.parameters())
    prompts = torch.empty(num_prompts, encoder.width, device=like.device, dtype=like.dtype)
    return nn.init.uniform_(prompts, -bound, bound)
