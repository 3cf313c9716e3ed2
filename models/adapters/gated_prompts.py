"""Gated prompt tuning and adaptive attention shaping, the two parts of Yoo et al. 2023, "Improving Visual Prompt Tuning
for Self-supervised Vision Transformers": gates decide how much of what a block makes of the prompts is kept, and
attention is sharpened or softened by a temperature per block.

Legend: B batch, V visible patches, S class token (1 or 0), X prompts, E width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from models.adapters.prompts import PromptedBlock, Prompts, add_prompts
from models.adapters.seams import added, inner_blocks, linear_of, merged, wrap_linear
from models.encoder.transformer import Encoder

COOLEST, HOTTEST = 0.01, 10.0
"""Temperatures are kept within these, as in the release."""


@dataclass(frozen=True)
class GatedPrompts:
    """Shallow prompts with a gate after each block and a learnt temperature of attention."""

    kind: Literal["gated_prompts"] = "gated_prompts"
    num_prompts: int = 100
    """Tokens, inserted once."""
    num_gates: int | None = None
    """Blocks, counted from the first, with a gate behind them; null: all but the last."""
    gate_start: float = -5.0
    """A gate's logit at the start: at -5 a block passes 0.7 % of what it made of the prompts."""
    num_temperatures: int | None = None
    """Blocks, counted from the first, with a temperature of their own, 1 at the start; null: all."""
    dropout: float = 0.1
    """Share of the prompts' numbers dropped while training."""

    def __post_init__(self) -> None:
        Prompts(num_prompts=self.num_prompts)
        for name in ("num_gates", "num_temperatures"):
            if (count := getattr(self, name)) is not None and count < 0:
                raise ValueError(f"{name}: found {count}, expected at least 0, or null for the default.")


class GatedBlock(nn.Module):
    """A block after which prompts are a mixture of what it made of them and what they were; other tokens pass."""

    ADDED = ("gate_logit",)

    def __init__(self, wrapped: nn.Module, started: int, num_prompts: int, gate_logit: Tensor) -> None:
        super().__init__()
        self.wrapped = wrapped
        self.where = slice(started, started + num_prompts)
        self.gate_logit = nn.Parameter(gate_logit)

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """B S+X+V E -> B S+X+V E"""
        out: Tensor = self.wrapped(x, valid)
        gate = self.gate_logit.sigmoid().to(out.dtype)
        mixed = gate * out[:, self.where] + (1 - gate) * x[:, self.where]
        return torch.cat([out[:, :self.where.start], mixed, out[:, self.where.stop:]], 1)


class TemperedQueries(nn.Module):
    """The projection to queries, keys and values, with the queries divided by a temperature: so are attention's
    logits, whatever computes them."""

    ADDED = ("temperature",)

    def __init__(self, wrapped: nn.Module) -> None:
        super().__init__()
        self.wrapped = wrapped
        self.in_features, self.out_features = wrapped.in_features, wrapped.out_features
        like = next(wrapped.parameters())
        self.temperature = nn.Parameter(torch.ones(1, device=like.device, dtype=like.dtype))

    def forward(self, x: Tensor) -> Tensor:
        """... E -> ... 3E"""
        q, k, v = self.wrapped(x).chunk(3, -1)
        return torch.cat([q / self.temperature.clamp(COOLEST, HOTTEST).to(q.dtype), k, v], -1)

    def merged(self) -> nn.Linear:
        """The one layer that this equals, within rounding."""
        layer = merged(self.wrapped)
        scale = torch.ones(3, device=layer.weight.device, dtype=layer.weight.dtype)
        scale[0] /= self.temperature.detach()[0].clamp(COOLEST, HOTTEST)
        scale = scale.repeat_interleave(len(layer.weight) // 3)
        return linear_of(layer.weight * scale[:, None], None if layer.bias is None else layer.bias * scale)


def add_gated_prompts(encoder: Encoder, settings: GatedPrompts) -> list[nn.Parameter]:
    """Put prompts, gates and temperatures into an encoder; nothing is frozen.

    Returns:
        The parameters that were added: prompts X E; gates and temperatures of one number each.

    Raises:
        ValueError: the encoder has prompts already, or fewer blocks than gates or temperatures are asked for.
    """
    depth = len(encoder.blocks)
    num_gates = depth - 1 if settings.num_gates is None else settings.num_gates
    num_temperatures = depth if settings.num_temperatures is None else settings.num_temperatures
    if max(num_gates, num_temperatures) > depth:
        raise ValueError(f"found num_gates {num_gates} and num_temperatures {num_temperatures}, expected at most "
                         f"{depth} each, as the encoder has blocks. Lower them, or give null.")
    if not any(isinstance(block, PromptedBlock) for block in encoder.blocks):  # else add_prompts refuses, first of all
        started = int(encoder.class_token is not None)
        like = next(encoder.blocks.parameters())
        for i, block in enumerate(encoder.blocks[:num_gates]):
            logit = torch.full((1,), settings.gate_start, device=like.device, dtype=like.dtype)
            encoder.blocks[i] = GatedBlock(block, started, settings.num_prompts, logit).train(block.training)
        for inner in inner_blocks(encoder)[:num_temperatures]:
            wrap_linear(inner, "attention.qkv", TemperedQueries, outside=True)
    add_prompts(encoder, Prompts(num_prompts=settings.num_prompts, dropout=settings.dropout))
    return [value for name, value in added(encoder) if name.rpartition(".")[2] in _OWN]


_OWN = {*PromptedBlock.ADDED, *GatedBlock.ADDED, *TemperedQueries.ADDED}
