"""Guided adapters for an encoder of images that reads points (Tang et al. 2024, "Any2Point", section 3.3): in each
view, tokens that fall into one cell of its plane look at each other and are pooled; how far a view is trusted follows
from how like that is to what lies in the same cell of space. The tokenizer, which is new, is trained as well.

Legend: B batch, V visible patches, W views, E width, A width of the attention, R width of the bottleneck.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, layer_norm, linear
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from models.adapters.seams import Places, added, note_places
from models.adapters.surroundings import surround
from models.encoder.projections import project
from models.encoder.tokenizers import GroupTokenizer
from models.encoder.transformer import Encoder, fused_attention


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
        seen = fused_attention(q, k, v, planes)                          # B W V A
        pooled = mean_of(planes, tokens[:, None] + linear(seen, self.back))                     # B W V E
        trust = cosine_similarity(pooled, mean_of(space, tokens)[:, None], dim=-1).softmax(1)   # B W V
        return (trust[..., None] * pooled).sum(1)


class Cells:
    """Which tokens of the batch at hand share a cell. Filler shares none but its own."""

    def __init__(self, places: Places, attention: CellAttention, num_cells: int) -> None:
        self.places, self.attention, self.num_cells = places, attention, num_cells
        self.planes = self.space = torch.empty(0)

    def find(self, valid: Tensor | None) -> None:
        """valid B V"""
        place = self.places.place
        self.planes = self._alike(project(place), None if valid is None else valid[:, None])    # B W V V
        self.space = self._alike((place.clamp(-1, 1) + 1) / 2, valid)                           # B V V

    def tell(self, tokens: Tensor) -> Tensor:
        """B V E -> B V E"""
        said: Tensor = self.attention(tokens, self.planes, self.space)
        return said

    def _alike(self, at: Tensor, valid: Tensor | None) -> Tensor:
        """at ... V k from 0 to 1 -> ... V V bool"""
        cell = (at * self.num_cells).floor().clamp(max=self.num_cells - 1)
        alike = (cell[..., :, None, :] == cell[..., None, :, :]).all(-1)
        itself = torch.eye(at.shape[-2], dtype=torch.bool, device=at.device)
        return alike if valid is None else alike & valid[..., None, :] & valid[..., :, None] | itself


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
    attention = CellAttention(next(encoder.blocks.parameters()), encoder.width, settings)
    cells = Cells(note_places(encoder), attention, settings.num_cells)
    guided = surround(encoder, cells, settings.width, settings.share)
    _count_as_added(encoder.tokenizer)
    return [*(value for _, value in added(encoder.tokenizer)), *guided]


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
