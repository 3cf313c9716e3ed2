"""Geometry-aware adapters (Tang et al. 2024, "Point-PEFT", section 3.3): behind every block, tokens are gathered in
neighbourhoods of space, look at each other there, are pooled, and are handed back to the tokens around.

Legend: B batch, V visible patches, G centres, K tokens of a neighbourhood, E width, A width of the
attention, R width of the bottleneck.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm, linear

from models.adapters.seams import Places, note_places
from models.adapters.surroundings import surround
from models.encoder.point_ops import farthest_point_sampling, nearest_neighbours
from models.encoder.tokenizers import GroupTokenizer
from models.encoder.transformer import Encoder, fused_attention

PROPAGATED = 3
"""A token is handed what the centres nearest to it say: three, as in PointNet++."""


@dataclass(frozen=True)
class Geometry:
    """x + up(act(down(norm(x + what the neighbourhood says)))) behind every block, with up = 0 at the start."""

    kind: Literal["geometry"] = "geometry"
    num_centres: int | None = None
    """G, farthest points among the centres of groups; null: half of the tokens."""
    neighbours: int = 16
    """K, tokens around each centre; of fewer, all."""
    attention_width: int = 18
    """A; one attention for all blocks."""
    width: int = 16
    """R."""
    centre_share: float = 0.3
    """How much of the centre's own token joins the pooled neighbourhood."""
    share: float = 0.3
    """How much of what is handed back joins a token before the bottleneck."""

    def __post_init__(self) -> None:
        if min(self.neighbours, self.attention_width, self.width, self.num_centres or 1) < 1:
            raise ValueError(f"found num_centres {self.num_centres}, neighbours {self.neighbours}, attention_width "
                             f"{self.attention_width}, width {self.width}, expected at least 1 each.")


class LocalAttention(nn.Module):
    """A neighbourhood looks at itself in few dimensions, and is pooled."""

    ADDED = ("to_qkv", "back")

    def __init__(self, like: Tensor, width: int, settings: Geometry) -> None:
        super().__init__()
        self.centre_share = settings.centre_share
        self.to_qkv = nn.Parameter(nn.init.xavier_uniform_(like.new_empty(3 * settings.attention_width, width)))
        self.back = nn.Parameter(nn.init.xavier_uniform_(like.new_empty(width, settings.attention_width)))

    def forward(self, near: Tensor, centre: Tensor, real: Tensor | None = None) -> Tensor:
        """near B G K E, centre B G E; real B K, which of a neighbourhood are no repetition, None for all -> B G E"""
        q, k, v = linear(layer_norm(near, near.shape[-1:]), self.to_qkv).chunk(3, -1)           # B G K A
        seen = near + linear(fused_attention(q, k, v, None if real is None else real[:, None, None]), self.back)
        pooled = gelu(layer_norm(seen.amax(2), near.shape[-1:]))
        return pooled + self.centre_share * centre


class Neighbourhood:
    """Who is near whom in the batch at hand. Tokens that are filler are nobody's neighbours, and a sample has as many
    centres and neighbours as it would have alone: what it is told does not depend on the batch that it is in."""

    def __init__(self, places: Places, attention: LocalAttention, num_centres: int | None, neighbours: int) -> None:
        self.places, self.attention = places, attention
        self.num_centres, self.neighbours = num_centres, neighbours
        self.centres = self.near = self.around = self.weights = torch.empty(0)
        self.real: Tensor | None = None

    def find(self, valid: Tensor | None) -> None:
        """valid B V"""
        place = self.places.place
        count = place.shape[1]
        num = min(self.num_centres or max(count // 2, 1), count)
        self.centres = farthest_point_sampling(place, num, usable=valid)                        # B G into V
        centre = place.gather(1, self.centres[..., None].expand(-1, -1, 3))
        self.near = nearest_neighbours(centre, place, min(self.neighbours, count), valid)       # B G K into V
        self.real = None
        gap = torch.cdist(place.float(), centre.float(), compute_mode="donot_use_mm_for_euclid_dist")
        if valid is not None:
            tokens = valid.sum(1, keepdim=True).clamp(min=1)                                    # B 1
            own = tokens.clamp(max=self.num_centres) if self.num_centres else (tokens // 2).clamp(min=1)
            gap = gap.masked_fill((torch.arange(num, device=gap.device) >= own)[:, None], torch.inf)
            self.real = torch.arange(self.near.shape[2], device=gap.device) < tokens            # B K
        nearest = gap.topk(min(PROPAGATED, num), dim=-1, largest=False)
        closeness = 1 / (nearest.values.square() + 1e-8)
        self.around = nearest.indices                                                           # B V 3 into G
        self.weights = closeness / closeness.sum(-1, keepdim=True)                              # B V 3

    def tell(self, tokens: Tensor) -> Tensor:
        """B V E -> B V E"""
        return self.hand_back(self.attention(_take(tokens, self.near), _take(tokens, self.centres), self.real))

    def hand_back(self, said: Tensor) -> Tensor:
        """said B G E -> B V E: the mean of the nearest centres by inverse squared distance"""
        return (_take(said, self.around) * self.weights[..., None].to(said.dtype)).sum(2)


def add_geometry(encoder: Encoder, settings: Geometry) -> list[nn.Parameter]:
    """Put a geometry-aware adapter behind every block; nothing is frozen.

    Returns:
        Weights and biases, four per block, and two of the attention.

    Raises:
        ValueError: the encoder's patches lie nowhere in space, or it has these adapters already.
    """
    if not isinstance(encoder.tokenizer, GroupTokenizer):
        raise ValueError(f"geometry: found a tokenizer {type(encoder.tokenizer).__name__}, expected groups of points, "
                         "which lie in space. Take bottleneck for images.")
    attention = LocalAttention(next(encoder.blocks.parameters()), encoder.width, settings)
    hood = Neighbourhood(note_places(encoder), attention, settings.num_centres, settings.neighbours)
    return surround(encoder, hood, settings.width, settings.share)


def _take(x: Tensor, index: Tensor) -> Tensor:
    """x B N E, index B ... into N -> B ... E"""
    flat = index.flatten(1)
    return x.gather(1, flat[..., None].expand(-1, -1, x.shape[-1])).reshape(*index.shape, x.shape[-1])
