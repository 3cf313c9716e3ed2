"""Guided adapters for an encoder of images that reads points (Tang et al. 2024, "Any2Point", section 3.3): in each
view, tokens that fall into one cell of its plane look at each other and are pooled; how far a view is trusted follows
from how like that is to what lies in the same cell of space. The tokenizer, which is new, is trained as well.

Legend: B batch, S sequence, V visible patches, W views, E width, A width of the attention, R width of the bottleneck.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, layer_norm, linear, scaled_dot_product_attention
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from models.adapters.seams import Places, added, note_places
from models.encoder.projections import project
from models.encoder.tokenizers import GroupTokenizer
from models.encoder.transformer import Encoder


@dataclass(frozen=True)
class Any2Point:
    """x + up(act(down(norm(x + what cells say)))) behind every block, with up = 0 at the start; and the tokenizer of
    points is trained."""

    kind: Literal["any2point"] = "any2point"
    num_cells: int = 8
    """Cells along each axis of a view's plane, and of space."""
    attention_width: int = 12
    """A; one attention for all blocks."""
    width: int = 16
    """R."""
    share: float = 0.3
    """How much of what cells say joins a token before the bottleneck."""

    def __post_init__(self) -> None:
        if min(self.num_cells, self.attention_width, self.width) < 1:
            raise ValueError(f"found num_cells {self.num_cells}, attention_width {self.attention_width}, width "
                             f"{self.width}, expected at least 1 each.")


class Cells:
    """Which tokens of the batch at hand share a cell; the blocks of an encoder share it. Filler shares none but its
    own."""

    def __init__(self, places: Places, num_cells: int) -> None:
        self.places, self.num_cells = places, num_cells
        self.planes = self.space = torch.empty(0)

    def find(self, valid: Tensor | None) -> None:
        """valid B V"""
        place = self.places.place
        self.planes = self._alike(project(place), None if valid is None else valid[:, None])    # B W V V
        self.space = self._alike((place.clamp(-1, 1) + 1) / 2, valid)                           # B V V

    def _alike(self, at: Tensor, valid: Tensor | None) -> Tensor:
        """at ... V k from 0 to 1 -> ... V V bool"""
        cell = (at * self.num_cells).floor().clamp(max=self.num_cells - 1)
        alike = (cell[..., :, None, :] == cell[..., None, :, :]).all(-1)
        itself = torch.eye(at.shape[-2], dtype=torch.bool, device=at.device)
        return alike if valid is None else alike & valid[..., None, :] & valid[..., :, None] | itself


class CellAttention(nn.Module):
    """Cells of each view look at themselves in few dimensions and are pooled; space says how far a view is trusted."""

    ADDED = ("to_qkv", "back")

    def __init__(self, like: Tensor, width: int, settings: Any2Point) -> None:
        super().__init__()
        self.to_qkv = nn.Parameter(nn.init.xavier_uniform_(like.new_empty(3 * settings.attention_width, width)))
        self.back = nn.Parameter(nn.init.xavier_uniform_(like.new_empty(width, settings.attention_width)))

    def forward(self, tokens: Tensor, planes: Tensor, space: Tensor) -> Tensor:
        """tokens B V E, planes B W V V, space B V V -> B V E"""
        every = linear(layer_norm(tokens, tokens.shape[-1:]), self.to_qkv)[:, None]              # B 1 V 3A
        q, k, v = every.expand(-1, planes.shape[1], -1, -1).chunk(3, -1)
        seen = scaled_dot_product_attention(q, k, v, attn_mask=planes)                          # B W V A
        pooled = mean_of(planes, tokens[:, None] + linear(seen, self.back))                     # B W V E
        trust = cosine_similarity(pooled, mean_of(space, tokens)[:, None], dim=-1).softmax(1)   # B W V
        return (trust[..., None] * pooled).sum(1)


class GuidedBlock(nn.Module):
    """A block and what cells say behind it; the class token passes."""

    ADDED = ("down", "down_bias", "up", "up_bias")

    def __init__(self, wrapped: nn.Module, cells: Cells, attention: list[CellAttention], settings: Any2Point,
                 width: int, *, first: bool) -> None:
        """attention: in a list, so that it belongs to the first block alone."""
        super().__init__()
        self.wrapped, self.cells, self.shared, self.first = wrapped, cells, attention, first
        self.share = settings.share
        like = next(wrapped.parameters())
        self.down = nn.Parameter(nn.init.xavier_uniform_(like.new_empty(settings.width, width)))
        self.down_bias = nn.Parameter(like.new_zeros(settings.width))
        self.up = nn.Parameter(like.new_zeros(width, settings.width))
        self.up_bias = nn.Parameter(like.new_zeros(width))

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """B S E -> B S E"""
        count = self.cells.places.place.shape[1]
        if self.first:
            self.cells.find(None if valid is None else valid[:, -count:])
        out: Tensor = self.wrapped(x, valid)
        tokens = out[:, -count:]
        told = tokens + self.share * self.shared[0](tokens, self.cells.planes, self.cells.space)
        few = linear(layer_norm(told, told.shape[-1:]), self.down, self.down_bias)              # B V R
        tokens = tokens + linear(few * (1.702 * few).sigmoid(), self.up, self.up_bias)
        return torch.cat([out[:, :-count], tokens], 1)


def add_any2point(encoder: Encoder, settings: Any2Point) -> list[nn.Parameter]:
    """Put a guided adapter behind every block and count the tokenizer among what is added; nothing is frozen.

    Returns:
        The tokenizer's weights, two of the attention, and four per block.

    Raises:
        ValueError: the encoder reads no points, or has these adapters already.
    """
    if not isinstance(encoder.tokenizer, GroupTokenizer):
        raise ValueError(f"any2point: found a tokenizer {type(encoder.tokenizer).__name__}, expected groups of points. "
                         "With a start made of images, describe them: encoder: {tokenizer: {kind: groups}, size: ...}.")
    if any(isinstance(module, GuidedBlock) for module in encoder.modules()):
        raise ValueError("any2point: found these adapters on the encoder already, expected them once. Make them wider.")
    _count_as_added(encoder.tokenizer)
    cells = Cells(note_places(encoder), settings.num_cells)
    attention = CellAttention(next(encoder.blocks.parameters()), encoder.width, settings)
    out = [*(value for _, value in added(encoder.tokenizer)), attention.to_qkv, attention.back]
    for i, block in enumerate(encoder.blocks):
        new = GuidedBlock(block, cells, [attention], settings, encoder.width, first=i == 0).train(block.training)
        encoder.blocks[i] = new
        out += [new.down, new.down_bias, new.up, new.up_bias]
    encoder.blocks[0].add_module("attention", attention)
    return out


def mean_of(alike: Tensor, x: Tensor) -> Tensor:
    """The mean over those alike: alike ... V V bool, x ... V E -> ... V E"""
    share = alike.to(x.dtype)
    return share @ x / share.sum(-1, keepdim=True)


def _count_as_added(tokenizer: nn.Module) -> None:
    """Weights are then trained and saved with adapters, batch statistics with them."""
    for module in tokenizer.modules():
        if names := tuple(name for name, _ in module.named_parameters(recurse=False)):
            module.ADDED = names  # type: ignore[assignment]
        if isinstance(module, BatchNorm):
            module.KEPT = ("running_mean", "running_var", "num_batches_tracked")  # type: ignore[assignment]
