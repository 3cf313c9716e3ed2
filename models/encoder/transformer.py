"""The plain transformer that every domain shares (ViT, Dosovitskiy et al. 2021; masked as in MAE).

Legend: B batch, N patches, V visible, P values per patch, K place coordinates, E width, h heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from models.encoder.patches import Features, Mask, Patches, see_all, take, take_patches
from models.encoder.positions import PositionSettings
from models.encoder.tokenizers import Grid, TokenizerSettings, build_tokenizer


@dataclass(frozen=True)
class Shape:
    """Width, depth and heads, when none of the named sizes is wanted."""

    width: int
    """Numbers per token."""
    depth: int
    """Transformer blocks."""
    num_heads: int
    """Attention heads; they share the width equally."""

    def __post_init__(self) -> None:
        if self.num_heads < 1 or self.width % self.num_heads:
            raise ValueError(f"width {self.width} is not a multiple of num_heads {self.num_heads}.")


SIZES = {"tiny": Shape(192, 12, 3), "small": Shape(384, 12, 6), "base": Shape(768, 12, 12),
         "large": Shape(1024, 24, 16)}


@dataclass(frozen=True)
class EncoderSettings:
    """An encoder, as far as it does not follow from the data."""

    kind: Literal["transformer"] = "transformer"
    tokenizer: TokenizerSettings = Grid()
    """How samples are cut into patches: grid, bands, band_groups, groups."""
    size: Literal["tiny", "small", "base", "large"] | Shape = "base"
    """A named size (192, 384, 768, 1024 wide) or {width, depth, num_heads}."""
    class_token: bool = True
    """Carry one extra token that gathers a summary."""
    place_every_block: bool = False
    """Add the position code before every block, not once (Point-MAE)."""
    drop_path: float = 0.0
    """Share of samples whose residual branch is skipped in the last block while training; grows linearly from 0
    (Huang et al. 2016)."""
    dropout: float = 0.0
    """Share of activations dropped after attention and in the MLP while training."""
    positions: PositionSettings | None = None
    """How places are coded; null: as the tokenizer does (sines and cosines on grids, a network for points)."""
    class_position: bool = False
    """Learn a position for the class token; False: it has none."""
    mlp_width: int | None = None
    """Hidden width of each block's MLP; null: four times the width."""
    qkv_bias: bool = True
    """Bias in the projection to queries, keys and values (Point-MAE and MONAI have none)."""
    norm_eps: float = 1e-6
    """Added to the variance in every layer norm (Point-MAE and MONAI: 1e-5)."""
    embed_hidden: bool = False
    """Embed hidden patches too, then leave them out: batch norms in the tokenizer see them (Point-MAE's release). It
    costs more; without batch norms it changes nothing."""
    last_norm: bool = True
    """Normalise after the last block. MAE's classifiers on the mean token do so after pooling, in the head."""

    @property
    def shape(self) -> Shape:
        """The size in numbers."""
        return SIZES[self.size] if isinstance(self.size, str) else self.size


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, width: int, num_heads: int, dropout: float = 0.0, qkv_bias: bool = True) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.proj = nn.Linear(width, width)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, valid: Tensor | None) -> Tensor:
        """x B V E, valid B V bool (which tokens may be looked at), or B V V (which by which, last axis looked at)
        -> B V E"""
        return self.attend(*self.queries_keys_values(x), valid)

    def queries_keys_values(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x B V E -> B h V E/h each"""
        q, k, v = self.qkv(x).reshape(*x.shape[:2], 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        return q, k, v

    def attend(self, q: Tensor, k: Tensor, v: Tensor, valid: Tensor | None) -> Tensor:
        """B h V E/h each, valid as in forward, or numbers that are added to the logits -> B V E"""
        looked_at = None if valid is None else valid[:, None, None] if valid.dim() == 2 else valid[:, None]  # B 1 1|V V
        y = fused_attention(q, k, v, looked_at)
        return self.drop(self.proj(y.transpose(1, 2).flatten(2)))


MAX_PRODUCT_BYTES = 2**25
"""Up to which size a CPU holds the B h V V matrix in bf16; beyond, the kernel that does without is as fast."""


def fused_attention(q: Tensor, k: Tensor, v: Tensor, looked_at: Tensor | None) -> Tensor:
    """Attention without the B h V V matrix in memory, unless that is small. q, k, v B h V E/h; looked_at: which tokens
    may be looked at, or numbers that are added to the logits, broadcast to B h V V -> B h V E/h"""
    if q.device.type != "cpu" or q.dtype != torch.bfloat16:
        return scaled_dot_product_attention(q, k, v, attn_mask=looked_at)
    # On CPUs torch's kernel takes up to four times as long in bf16 as two products, and its backward twice as long as
    # in float32 (docs/benchmarks.md).
    if looked_at is None and q.shape[:3].numel() * k.shape[2] * q.element_size() <= MAX_PRODUCT_BYTES:
        return attention_by_products(q, k, v)
    if looked_at is not None and looked_at.is_floating_point():
        looked_at = looked_at.float()
    with torch.autocast("cpu", enabled=False):
        return scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=looked_at).to(q.dtype)


def attention_by_products(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(E/h)) v (Vaswani et al. 2017, equation 1). q B h V E/h, k and v B h W E/h -> B h V E/h"""
    heads, width = q.shape[:2], q.shape[3]
    nothing = q.new_empty(()).expand(heads.numel(), q.shape[2], k.shape[2])  # not read: beta is 0
    logits = torch.baddbmm(nothing, q.flatten(0, 1), k.flatten(0, 1).mT, beta=0, alpha=width ** -0.5)
    return (logits.softmax(-1) @ v.flatten(0, 1)).unflatten(0, heads)


class DropPath(nn.Module):
    """Skip a residual branch for a random share of the samples while training."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """x B ... -> the same, some samples 0, the others scaled up so that the mean stays."""
        if not self.training or self.rate == 0:
            return x
        kept = torch.rand(len(x), *[1] * (x.dim() - 1), device=x.device) >= self.rate
        return x * kept / (1 - self.rate)


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, width: int, num_heads: int, dropout: float = 0.0, drop_path: float = 0.0, *,
                 mlp_width: int | None = None, qkv_bias: bool = True, norm_eps: float = 1e-6) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=norm_eps)
        self.attention = Attention(width, num_heads, dropout, qkv_bias)
        self.norm2 = nn.LayerNorm(width, eps=norm_eps)
        hidden = mlp_width or 4 * width
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Dropout(dropout),
                                 nn.Linear(hidden, width), nn.Dropout(dropout))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """B V E -> B V E"""
        x = x + self.drop_path(self.attention(self.norm1(x), valid))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class Encoder(nn.Module):
    """Embeds the visible patches only, adds where they are, and lets them look at each other."""

    def __init__(self, settings: EncoderSettings, num_channels: int) -> None:
        super().__init__()
        shape = settings.shape
        self.settings, self.num_channels, self.width = settings, num_channels, shape.width
        self.tokenizer = build_tokenizer(settings.tokenizer, num_channels, shape.width)
        self.place_code = self.tokenizer.place_code(shape.width, settings.positions)
        if settings.class_position and not settings.class_token:
            raise ValueError("class_position needs class_token: true.")
        self.class_token = nn.Parameter(torch.zeros(1, 1, shape.width)) if settings.class_token else None
        self.class_position = nn.Parameter(torch.zeros(1, 1, shape.width)) if settings.class_position else None
        rates = torch.linspace(0, settings.drop_path, shape.depth).tolist()
        self.blocks = nn.ModuleList(
            Block(shape.width, shape.num_heads, settings.dropout, rate, mlp_width=settings.mlp_width,
                  qkv_bias=settings.qkv_bias, norm_eps=settings.norm_eps) for rate in rates)
        self.norm = nn.LayerNorm(shape.width, eps=settings.norm_eps) if settings.last_norm else nn.Identity()
        self.blocks.apply(init_linear)
        for token in (self.class_token, self.class_position):
            if token is not None:
                nn.init.normal_(token, std=0.02)

    def forward(self, patches: Patches, mask: Mask | None = None, layers: Sequence[int] = ()) -> Features:
        """Features of the visible patches (of all that hold data when there is no mask).

        Args:
            layers: blocks whose output is wanted too, counted from 0.
        """
        mask = see_all(patches) if mask is None else mask
        x, code = self.embed(patches, mask.visible)
        return self.encode(x, code, mask.visible_valid, layers)

    def embed(self, patches: Patches, index: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens and position codes, not added yet, of the patches at `index` B V: B V E each."""
        seen = take_patches(patches, index)
        if self.settings.embed_hidden:
            x = take(self.tokenizer.embed(patches.values, patches.place), index)
        else:
            x = self.tokenizer.embed(seen.values, seen.place)               # B V E
        return x, self.place_code(seen.place, seen.grid)

    def encode(self, x: Tensor, code: Tensor, valid: Tensor | None = None, layers: Sequence[int] = ()) -> Features:
        """Features of tokens that are embedded already: the seam for objectives that put tokens of their own beside
        those of patches, or codes of their own in place of positions.

        Args:
            x: B V E, without a class token. code: B V E, not added yet.
            valid: B V bool, which tokens are real; None when all are.
        """
        count = x.shape[1]
        x, code, padded = self.with_class_token(x, code, valid)
        x, outputs = self.transform(x, code, padded, layers)
        first = x.shape[1] - count                                          # class token, and what adapters have added
        tokens = x[:, first:]                                               # B V E
        summary = x[:, 0] if self.class_token is not None else mean_of_valid(tokens, valid)
        started = int(self.class_token is not None)
        return Features(tokens, summary, outputs, valid, x[:, started:first] if first > started else None)

    def transform(self, x: Tensor, code: Tensor, valid: Tensor | None = None,
                  layers: Sequence[int] = ()) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Blocks and last norm. x B S E, code B S E, valid B S, or B S S (which token may look at which) -> B S E, and
        one B S E per block in `layers`."""
        if not self.settings.place_every_block:
            x = x + code
        taps = {}
        for i, block in enumerate(self.blocks):
            x = block(x + _with_room(code, x.shape[1], self.class_token is not None)
                      if self.settings.place_every_block else x, valid)
            if i in layers:
                taps[i] = x
        return self.norm(x), tuple(taps[i] for i in layers)

    def with_class_token(self, x: Tensor, code: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """x B V E, code B V E, valid B V -> the same with the class token in front. Without a position of its own, its
        code is 0, as in MAE."""
        if self.class_token is None:
            return x, code, valid
        x = torch.cat([self.class_token.expand(len(x), -1, -1).to(x.dtype), x], 1)
        if self.class_position is None:
            code = nn.functional.pad(code, (0, 0, 1, 0))
        else:
            code = torch.cat([self.class_position.expand(len(code), -1, -1).to(code.dtype), code], 1)
        return x, code, None if valid is None else nn.functional.pad(valid, (1, 0), value=True)


def _with_room(code: Tensor, count: int, class_token: bool) -> Tensor:
    """code B S E -> B count E: zeros for what adapters have put between class token and patches."""
    more = count - code.shape[1]
    if not more:
        return code
    started = int(class_token)
    return torch.cat([code[:, :started], code.new_zeros(len(code), more, code.shape[2]), code[:, started:]], 1)


def mean_of_valid(tokens: Tensor, valid: Tensor | None) -> Tensor:
    """tokens B V E, valid B V -> B E"""
    if valid is None:
        return tokens.mean(1)
    weight = valid[..., None].to(tokens.dtype)
    return (tokens * weight).sum(1) / weight.sum(1).clamp(min=1)


def max_of_valid(tokens: Tensor, valid: Tensor | None) -> Tensor:
    """tokens B V E, valid B V -> B E; 0 where a sample has none"""
    if valid is None:
        return tokens.amax(1)
    most = tokens.masked_fill(~valid[..., None], float("-inf")).amax(1)
    return most.masked_fill(~valid.any(1, keepdim=True), 0.0)


def init_linear(module: nn.Module) -> None:
    """Xavier for every Linear, as in MAE: with the usual small normal, deep masked encoders start too slowly."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
