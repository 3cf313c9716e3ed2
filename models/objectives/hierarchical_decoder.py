"""A decoder that looks at several layers of the encoder (Hi-End-MAE, Tang et al. 2025): a few blocks as in MAE, then
blocks whose tokens also attend to the visible tokens as an inner block of the encoder left them, late blocks first.

Legend: B batch, N patches, V visible, H hidden, E width of the encoder, D width of the decoder, L length of a sequence,
S length of the sequence attended to, h heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn
from torch.nn.functional import pad

from models.encoder.patches import Features, Mask, Patches
from models.encoder.positions import PositionSettings
from models.encoder.transformer import Attention, Encoder, EncoderSettings, fused_attention, init_linear
from models.objectives.decoders import DecoderSettings, TransformerDecoder


@dataclass(frozen=True)
class HierarchicalDecoderSettings:
    """Hi-End-MAE's decoder (section 3.2), on patches of any kind."""

    kind: Literal["hierarchical"] = "hierarchical"
    width: int = 528
    """Numbers per token."""
    depth: int = 2
    """Blocks of plain self-attention before the first look into the encoder."""
    num_heads: int = 16
    """Attention heads."""
    taps: tuple[int, ...] = (9, 6, 3)
    """Blocks of the encoder that are looked into, counted from 0, in the order in which that happens: one block of the
    decoder for each. The default is the paper's, for encoders of twelve blocks."""
    self_attention: bool = True
    """Attend to the decoder's own tokens too in the blocks that look into the encoder."""
    positions: PositionSettings | None = None
    """How places are coded; null: as the tokenizer does."""
    class_position: bool = False
    """Learn a position for the class token."""
    mlp_width: int | None = None
    """Hidden width of each block's MLP; null: four times the width."""
    qkv_bias: bool = True
    """Bias in the projections to queries, keys and values."""
    norm_eps: float = 1e-6
    """Added to the variance in every layer norm."""

    def __post_init__(self) -> None:
        self.first()
        if not self.taps or min(self.taps) < 0:
            raise ValueError(f"taps: found {list(self.taps)}, expected numbers of encoder blocks, counted from 0.")

    def first(self) -> DecoderSettings:
        """The plain decoder that comes first."""
        return DecoderSettings(width=self.width, depth=self.depth, num_heads=self.num_heads, positions=self.positions,
                               class_position=self.class_position, mlp_width=self.mlp_width, qkv_bias=self.qkv_bias,
                               norm_eps=self.norm_eps)

    def fits(self, encoder: EncoderSettings) -> None:
        """Raises ValueError when a tap is no block of this encoder."""
        depth = encoder.shape.depth
        if max(self.taps) >= depth:
            raise ValueError(f"decoder.taps: found {list(self.taps)}, expected numbers from 0 to {depth - 1}: the "
                             f"encoder has {depth} blocks.")


class CrossAttention(nn.Module):
    """Multi-head attention from one sequence to another."""

    def __init__(self, width: int, num_heads: int, bias: bool = True) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(width, width, bias=bias)
        self.kv = nn.Linear(width, 2 * width, bias=bias)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, memory: Tensor, valid: Tensor | None) -> Tensor:
        """x B L D, memory B S D, valid B S bool (what may be looked at) -> B L D"""
        batch, count, width = x.shape
        q = self.q(x).reshape(batch, count, self.num_heads, -1).transpose(1, 2)                 # B h L D/h
        k, v = self.kv(memory).reshape(batch, memory.shape[1], 2, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        y = fused_attention(q, k, v, None if valid is None else valid[:, None, None])
        return self.proj(y.transpose(1, 2).reshape(batch, count, width))


class CrossBlock(nn.Module):
    """Pre-norm block: self-attention, attention to a memory that is taken as it is, MLP."""

    def __init__(self, settings: HierarchicalDecoderSettings) -> None:
        super().__init__()
        width, eps = settings.width, settings.norm_eps
        self.norm0 = nn.LayerNorm(width, eps=eps) if settings.self_attention else None
        self.attention = (Attention(width, settings.num_heads, qkv_bias=settings.qkv_bias)
                          if settings.self_attention else None)
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.cross = CrossAttention(width, settings.num_heads, settings.qkv_bias)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        hidden = settings.mlp_width or 4 * width
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x: Tensor, memory: Tensor, valid: Tensor | None, memory_valid: Tensor | None) -> Tensor:
        """x B L D, memory B S D; valid B L bool and memory_valid B S bool, None when all are -> B L D"""
        if self.attention is not None and self.norm0 is not None:
            x = x + self.attention(self.norm0(x), valid)
        x = x + self.cross(self.norm1(x), memory, memory_valid)
        return x + self.mlp(self.norm2(x))


class HierarchicalDecoder(nn.Module):
    """[class, visible, hidden] through plain blocks, then through one block per tap. A memory is what the encoder's
    block has left, class token included: projected, not normalised, with no position added again."""

    def __init__(self, settings: HierarchicalDecoderSettings, encoder: Encoder) -> None:
        super().__init__()
        settings.fits(encoder.settings)
        self.settings, self.taps = settings, settings.taps
        self.first = TransformerDecoder(settings.first(), encoder)
        self.project_taps = nn.ModuleList(nn.Linear(encoder.width, settings.width) for _ in settings.taps)
        self.cross_blocks = nn.ModuleList(CrossBlock(settings) for _ in settings.taps)
        self.project_taps.apply(init_linear)
        self.cross_blocks.apply(init_linear)

    def forward(self, features: Features, patches: Patches, mask: Mask, everything: bool = False) -> Tensor:
        """-> B H D, one token per hidden patch; with `everything` B (1)+V+H D: class token, visible, hidden.

        Args:
            features: with the blocks of `taps` in `layers`, in that order.
        """
        x, code, valid = self.first.begin(features, patches, mask)
        x = self.first.run(x, code, valid)
        for block, project, layer in zip(self.cross_blocks, self.project_taps, features.layers, strict=True):
            x = block(x, project(layer), valid, _whole_sequence_valid(features, layer))
        return self.first.norm(x if everything else x[:, -mask.hidden.shape[1]:])


def _whole_sequence_valid(features: Features, layer: Tensor) -> Tensor | None:
    """B S: whether each token of a layer's sequence is real; what stands before the patches always is."""
    if features.valid is None:
        return None
    return pad(features.valid, (layer.shape[1] - features.valid.shape[1], 0), value=True)
