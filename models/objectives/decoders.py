"""Decoders: from the features of what is seen to a guess about what is hidden.

Legend: B batch, N patches, V visible, H hidden, E width of the encoder, D width of the decoder.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from models.encoder.patches import Features, Mask, Patches, take
from models.encoder.transformer import Block, Encoder, init_linear


@dataclass(frozen=True)
class DecoderSettings:
    """The light transformer that MAE and Point-MAE put behind the encoder; it is thrown away after pretraining."""

    kind: Literal["transformer"] = "transformer"
    width: int = 512
    """Numbers per token."""
    depth: int = 8
    """Blocks. One is nearly as good for fine-tuning and much cheaper (MAE, table 1a)."""
    num_heads: int = 16
    """Attention heads."""
    place_every_block: bool = False
    """Add the position code before every block (Point-MAE)."""

    def __post_init__(self) -> None:
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} is not a multiple of num_heads {self.num_heads}.")


class TransformerDecoder(nn.Module):
    """[class, visible, hidden] through a few blocks; attention does not care about order, so nothing is unshuffled,
    and the last norm runs on the hidden tokens only: the loss is the same and the step is cheaper."""

    def __init__(self, settings: DecoderSettings, encoder: Encoder) -> None:
        super().__init__()
        self.settings = settings
        self.embed = nn.Linear(encoder.width, settings.width)
        self.place_code = encoder.tokenizer.place_code(settings.width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, settings.width))
        self.has_class_token = encoder.class_token is not None
        self.blocks = nn.ModuleList(Block(settings.width, settings.num_heads) for _ in range(settings.depth))
        self.norm = nn.LayerNorm(settings.width, eps=1e-6)
        self.blocks.apply(init_linear)
        init_linear(self.embed)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, features: Features, patches: Patches, mask: Mask) -> Tensor:
        """-> B H D, one token per hidden patch."""
        batch, num_hidden = mask.hidden.shape
        code = self.place_code(take(patches.place, torch.cat([mask.visible, mask.hidden], 1)))     # B V+H D
        x = torch.cat([self.embed(features.tokens), self.mask_token.expand(batch, num_hidden, -1)], 1)
        valid = _both_valid(mask)
        if self.has_class_token:
            x = torch.cat([self.embed(features.summary)[:, None], x], 1)     # B 1+V+H D
            code = nn.functional.pad(code, (0, 0, 1, 0))
            valid = None if valid is None else nn.functional.pad(valid, (1, 0), value=True)
        if not self.settings.place_every_block:
            x = x + code
        for block in self.blocks:
            x = block(x + code if self.settings.place_every_block else x, valid)
        return self.norm(x[:, -num_hidden:])


def _both_valid(mask: Mask) -> Tensor | None:
    """B V+H bool, or None when every token is real."""
    if mask.visible_valid is None and mask.hidden_valid is None:
        return None
    seen = torch.ones_like(mask.visible, dtype=torch.bool) if mask.visible_valid is None else mask.visible_valid
    asked = torch.ones_like(mask.hidden, dtype=torch.bool) if mask.hidden_valid is None else mask.hidden_valid
    return torch.cat([seen, asked], 1)
