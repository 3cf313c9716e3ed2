"""Saying where a patch belongs (DropPos, Wang et al. 2023): few patches are shown, most of them without their position,
and the model picks it out of all positions of the grid.

Legend: B batch, N patches, V shown, U shown without a position, L positions of the grid, E width of the encoder.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from models.encoder.chance import Chance
from models.encoder.mask_lists import check_ratio, marks_of, split_by_score
from models.encoder.masking import Masking, RandomMasking, check_masking
from models.encoder.patches import Mask, Patches, see_all, take
from models.encoder.positions import NoPositions
from models.encoder.tokenizers import Grid, Groups
from models.encoder.transformer import Block, Encoder, EncoderSettings, init_linear
from models.objectives.learnt_token import LearntToken
from models.objectives.masked_autoencoder import Reconstruction

_UNPLACED = 37  # stream of chance
_SHARP = 1e-6
"""Square of a smoothing so small that a target is its own position alone."""


@dataclass(frozen=True)
class DropPositionsSettings:
    """Show some patches, most without a position, classify it."""

    kind: Literal["drop_positions"] = "drop_positions"
    grid: tuple[int, ...] = (14, 14)
    """Patches along each axis, (y, x) or (z, y, x): the positions to choose from."""
    masking: Masking = field(default_factory=RandomMasking)
    """What is shown; what it hides is neither shown nor asked for, so that the task is no mere jigsaw."""
    drop: float = 0.75
    """Share of the shown patches whose position is dropped."""
    smoothing: float = 1.0
    """Positions near the true one count as right too, by a Gaussian of their distance in patches: its width at the
    beginning of the run. It shrinks to 0 in a straight line."""
    temperature: float = 0.1
    """Patches that look like the whole sample count more: by the softmax over this of their cosine with its summary,
    when all is shown. 0: all count alike, and the pass that shows all is saved."""
    width: int = 512
    """Numbers per token of the head."""
    depth: int = 2
    """Blocks of the head."""
    num_heads: int = 16
    """Attention heads of the head."""

    def __post_init__(self) -> None:
        check_ratio(self.drop)
        if len(self.grid) not in (2, 3) or min(self.grid) < 1 or self.width % self.num_heads:
            raise ValueError(f"drop_positions: found grid {list(self.grid)}, width {self.width} and num_heads "
                             f"{self.num_heads}, expected two or three sizes, and a width that is a multiple of the "
                             "heads.")
        if self.smoothing < 0 or self.temperature < 0:
            raise ValueError(f"drop_positions: found smoothing {self.smoothing} and temperature {self.temperature}, "
                             "expected numbers of at least 0.")

    def fits(self, encoder: EncoderSettings) -> None:
        """Raises ValueError for combinations that mean nothing."""
        tokenizer = encoder.tokenizer
        if isinstance(tokenizer, Groups):
            raise ValueError("objective drop_positions picks a position out of a list, and centres of points are no "
                             "list but coordinates, which differ from cloud to cloud. Take pcp_mae, which predicts "
                             "them.")
        if not isinstance(tokenizer, Grid):
            raise ValueError(f"objective drop_positions needs one token per place of one grid (tokenizer grid), found "
                             f"{tokenizer.kind}: another band of the same place would give it away.")
        if len(self.grid) != len(tokenizer.patch) or isinstance(encoder.positions, NoPositions):
            raise ValueError(f"objective drop_positions: found grid {list(self.grid)} with patch "
                             f"{list(tokenizer.patch)}, expected as many sizes, and an encoder that has positions.")
        check_masking(self.masking, tokenizer)


class Shown(NamedTuple):
    """What is put before the encoder."""

    seen: Mask
    """`visible`: the patches shown, B V into N."""
    split: Mask
    """Of these V: `visible` keep their position, `hidden` do not, B U into V."""


class DropPositions(nn.Module):
    """Patchify, choose, encode with dropped positions, classify."""

    done: Tensor

    def __init__(self, settings: DropPositionsSettings, encoder: Encoder) -> None:
        super().__init__()
        settings.fits(encoder.settings)
        self.settings = settings
        self.encoder = encoder
        self.no_place = LearntToken(encoder.width)
        self.head = PositionHead(settings, encoder.width)
        self.register_buffer("done", torch.zeros((), dtype=torch.float64))  # share of the run, kept with its state

    def forward(self, x: Tensor, known: Tensor | None, chance: Chance) -> dict[str, Tensor]:
        """x B C (D) H W, known likewise bool or None -> named losses, scalars."""
        patches = self.encoder.tokenizer.patchify(x, known)
        shown = self.choose(patches, chance)
        logits = self.classify(patches, shown)                               # B U L
        target = soft_positions(self.index(patches, shown), self.settings.grid,
                                self.settings.smoothing * (1 - self.done))   # B U L
        error = -(target.to(logits.dtype) * logits.log_softmax(-1)).sum(-1)  # B U
        return {"position": (error * self.weigh(patches, shown)).sum(1).mean()}

    def reconstruct(self, x: Tensor, known: Tensor | None, chance: Chance) -> Reconstruction:
        """Every dropped place filled with that patch, of those without a position, which claims it most."""
        patches = self.encoder.tokenizer.patchify(x, known)
        shown = self.choose(patches, chance)
        claims = self.classify(patches, shown).log_softmax(-1)               # B U L
        index = self.index(patches, shown)                                   # B U
        claims = claims.gather(2, index[:, None].expand(-1, index.shape[1], -1))                     # B U U: who, where
        if shown.split.hidden_valid is not None:
            claims = claims.masked_fill(~shown.split.hidden_valid[..., None], float("-inf"))
        placed, unplaced = (take(shown.seen.visible, part) for part in (shown.split.visible, shown.split.hidden))
        mask = Mask(placed, unplaced, shown.split.visible_valid, shown.split.hidden_valid)
        return Reconstruction(patches, mask, take(patches.values, unplaced.gather(1, claims.argmax(1))))

    def choose(self, patches: Patches, chance: Chance) -> Shown:
        """Which patches are shown, and which of these lose their position. Raises ValueError for another grid."""
        if patches.grid != self.settings.grid:
            raise ValueError(f"objective drop_positions: found {list(patches.grid or ())} patches, expected grid "
                             f"{list(self.settings.grid)}. Set objective.grid to what size and patch make.")
        seen = self.settings.masking(patches, chance)
        order = chance.uniform(seen.visible.shape[1], _UNPLACED)
        return Shown(seen, split_by_score(order, seen.visible_valid, self.settings.drop))

    def classify(self, patches: Patches, shown: Shown) -> Tensor:
        """-> B U L: logits of every position, for the patches that have none."""
        x, code = self.encoder.embed(patches, shown.seen.visible)            # B V E each
        dropped = marks_of(torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device), shown.split.hidden,
                           shown.split.hidden_valid)                         # B V
        code = torch.where(dropped[..., None], self.no_place(*dropped.shape).to(code.dtype), code)
        features = self.encoder.encode(x, code, shown.seen.visible_valid)
        logits: Tensor = self.head(features.tokens, shown.seen.visible_valid)
        return take(logits, shown.split.hidden)

    def index(self, patches: Patches, shown: Shown) -> Tensor:
        """-> B U int64: the true position of each patch that has lost it, counted with the last axis fastest."""
        place = take(take(patches.place, shown.seen.visible), shown.split.hidden).long()
        index = place[..., 0]
        for axis, size in enumerate(self.settings.grid[1:], start=1):
            index = index * size + place[..., axis]
        return index

    @torch.no_grad()
    def weigh(self, patches: Patches, shown: Shown) -> Tensor:
        """-> B U: how much each counts; they sum to 1 in a sample, so that a loss is a mean per sample."""
        valid = shown.split.hidden_valid
        if not self.settings.temperature:
            even = torch.ones(shown.split.hidden.shape, device=patches.values.device)
            even = even if valid is None else even * valid
            return even / even.sum(1, keepdim=True).clamp(min=1)
        everything = see_all(patches)
        features = self.encoder(patches, everything)
        alike = (normalize(features.tokens.float(), dim=-1) * normalize(features.summary.float(), dim=-1)[:, None]
                 ).sum(-1)                                                   # B N of those with data
        by_patch = torch.zeros(patches.place.shape[:2], device=alike.device).scatter(1, everything.visible, alike)
        alike = take(take(by_patch, shown.seen.visible), shown.split.hidden) / self.settings.temperature
        if valid is None:
            return alike.softmax(1)
        # A sample that shows one patch drops none: all its entries are filler, and its softmax would be of nothing
        return alike.masked_fill(~valid, torch.finfo(alike.dtype).min).softmax(1) * valid

    def after_step(self, done: float) -> None:
        """Remember the share of the run that is done: targets grow sharper with it."""
        self.done.fill_(done)


class PositionHead(nn.Module):
    """A few blocks, which know of no position, and a linear layer to the list of positions."""

    def __init__(self, settings: DropPositionsSettings, width: int) -> None:
        super().__init__()
        self.embed = nn.Linear(width, settings.width)
        self.blocks = nn.ModuleList(Block(settings.width, settings.num_heads) for _ in range(settings.depth))
        self.norm = nn.LayerNorm(settings.width, eps=1e-6)
        self.output = nn.Linear(settings.width, math.prod(settings.grid))
        self.apply(init_linear)

    def forward(self, tokens: Tensor, valid: Tensor | None) -> Tensor:
        """tokens B V E, valid B V bool -> B V L"""
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x, valid)
        return self.output(self.norm(x))


def soft_positions(index: Tensor, grid: tuple[int, ...], sigma: Tensor) -> Tensor:
    """Targets that forgive near misses: exp(-distance^2 / sigma^2), summing to 1 over the positions (section 3.2).

    Args:
        index: B U int64 positions, last axis fastest. sigma: scalar, in patches; 0 for the position alone.

    Returns:
        B U L.
    """
    axes = torch.meshgrid(*(torch.arange(n, device=index.device) for n in grid), indexing="ij")
    place = torch.stack([axis.flatten() for axis in axes], -1).to(sigma.dtype)                       # L K
    square = (place[index][:, :, None] - place).square().sum(-1)             # B U L
    weight = torch.exp(-square / sigma.square().clamp(min=_SHARP))
    return weight / weight.sum(-1, keepdim=True)
