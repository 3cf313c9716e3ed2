"""Decoders: from the features of what is seen to a guess about what is hidden.

Legend: B batch, N patches, V visible, H hidden, E width of the encoder, D width of the decoder.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from models.encoder.patches import Features, Mask, Patches, take
from models.encoder.positions import PositionSettings
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
    project: bool = True
    """A linear layer from the encoder's width; Point-MAE has none, and one width for both."""
    drop_path: float = 0.0
    """Share of samples whose residual branch is skipped in the last block while training."""
    positions: PositionSettings | None = None
    """How places are coded; null: as the tokenizer does."""
    class_position: bool = False
    """Learn a position for the class token."""
    mlp_width: int | None = None
    """Hidden width of each block's MLP; null: four times the width."""
    qkv_bias: bool = True
    """Bias in the projection to queries, keys and values."""
    norm_eps: float = 1e-6
    """Added to the variance in every layer norm."""

    def __post_init__(self) -> None:
        if self.num_heads < 1 or self.width % self.num_heads:
            raise ValueError(f"width {self.width} is not a multiple of num_heads {self.num_heads}.")


class TransformerDecoder(nn.Module):
    """[class, visible, hidden] through a few blocks; attention does not care about order, so nothing is unshuffled,
    and the last norm runs on the hidden tokens only, unless a readout wants more: the loss is the same and the step is
    cheaper."""

    def __init__(self, settings: DecoderSettings, encoder: Encoder) -> None:
        super().__init__()
        self.settings = settings
        if not settings.project and settings.width != encoder.width:
            raise ValueError(f"decoder width: found {settings.width}, expected the encoder's {encoder.width}, since "
                             "`project` is false.")
        self.embed = nn.Linear(encoder.width, settings.width) if settings.project else nn.Identity()
        self.place_code = encoder.tokenizer.place_code(settings.width, settings.positions)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, settings.width))
        self.has_class_token = encoder.class_token is not None
        self.class_position = nn.Parameter(torch.zeros(1, 1, settings.width)) if settings.class_position else None
        rates = torch.linspace(0, settings.drop_path, settings.depth).tolist()
        self.blocks = nn.ModuleList(
            Block(settings.width, settings.num_heads, drop_path=rate, mlp_width=settings.mlp_width,
                  qkv_bias=settings.qkv_bias, norm_eps=settings.norm_eps) for rate in rates)
        self.norm = nn.LayerNorm(settings.width, eps=settings.norm_eps)
        self.blocks.apply(init_linear)
        self.embed.apply(init_linear)
        nn.init.normal_(self.mask_token, std=0.02)

    taps: tuple[int, ...] = ()
    """Blocks of the encoder whose output this decoder wants in Features.layers; none."""

    def forward(self, features: Features, patches: Patches, mask: Mask, everything: bool = False) -> Tensor:
        """-> B H D, one token per hidden patch; with `everything` B (1)+V+H D: class token, visible, hidden."""
        x = self.sequence(features, patches, mask)
        return self.norm(x if everything else x[:, -mask.hidden.shape[1]:])

    def sequence(self, features: Features, patches: Patches, mask: Mask) -> Tensor:
        """-> B (1)+V+H D before the last norm."""
        return self.run(*self.begin(features, patches, mask))

    def run(self, x: Tensor, code: Tensor, valid: Tensor | None) -> Tensor:
        """The blocks: tokens B S D and codes B S D, not added yet, valid B S -> B S D before the last norm."""
        if not self.settings.place_every_block:
            x = x + code
        for block in self.blocks:
            x = block(x + code if self.settings.place_every_block else x, valid)
        return x

    def begin(self, features: Features, patches: Patches, mask: Mask) -> tuple[Tensor, Tensor, Tensor | None]:
        """What the blocks are given: tokens B (1)+V+H D, their position codes, not added yet, and B (1)+V+H bool,
        which of them are real; None when all are."""
        batch, num_hidden = mask.hidden.shape
        every = take(patches.place, torch.cat([mask.visible, mask.hidden], 1))
        code = self.place_code(every, patches.grid)                         # B V+H D
        x = torch.cat([self.embed(features.tokens), self.mask_token.expand(batch, num_hidden, -1)], 1)
        valid = both_valid(mask)
        if self.has_class_token:
            x = torch.cat([self.embed(features.summary)[:, None], x], 1)     # B 1+V+H D
            code = (nn.functional.pad(code, (0, 0, 1, 0)) if self.class_position is None
                    else torch.cat([self.class_position.expand(batch, -1, -1), code], 1))
            valid = None if valid is None else nn.functional.pad(valid, (1, 0), value=True)
        return x, code, valid


def both_valid(mask: Mask) -> Tensor | None:
    """B V+H bool, or None when every token is real."""
    if mask.visible_valid is None and mask.hidden_valid is None:
        return None
    seen = torch.ones_like(mask.visible, dtype=torch.bool) if mask.visible_valid is None else mask.visible_valid
    asked = torch.ones_like(mask.hidden, dtype=torch.bool) if mask.hidden_valid is None else mask.hidden_valid
    return torch.cat([seen, asked], 1)
