"""Token merging (ToMe, Bolya et al. 2023, "Token Merging: Your ViT But Faster", section 3): in every block, after
attention, the tokens that are most alike become one. Nothing is trained; it is for use, not for training.

Between blocks the sequence has its full length again: every token of it holds what the merged one has become. So
whatever looks at tokens (heads, layers asked for, other adapters) finds one per patch, and their mean is the mean of
the merged ones by size.

Legend: B batch, S tokens before any merging, T tokens now, E width, k width of a head, n those of T that may be merged,
a b every other one of n.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from models.adapters.prompts import PromptedBlock
from models.encoder.transformer import Block, Encoder


class Merged:
    """Which tokens of the batch at hand have become one; the blocks of an encoder share it."""

    def __init__(self) -> None:
        self.sizes = torch.empty(0)
        """B T float32: how many tokens each one stands for. 0: filler at the end of a sample's list."""
        self.where = torch.empty(0)
        """B S int64 into T: what each token has become part of."""
        self.counts: list[int] = []
        """T after each block."""
        self.as_they_came = True
        """Every token is real and alone: known without looking at sizes, which would wait for the device."""

    def begin(self, x: Tensor, valid: Tensor | None) -> None:
        """Every token alone. x B S E, valid B S bool."""
        self.sizes = (x.new_ones(x.shape[:2]) if valid is None else valid).float()
        self.where = torch.arange(x.shape[1], device=x.device).expand(x.shape[:2])
        self.counts, self.as_they_came = [], valid is None

    def shorten(self, x: Tensor) -> Tensor:
        """x B S E, equal where tokens are one -> B T E"""
        if x.shape[1] == self.sizes.shape[1]:
            return x
        places = torch.arange(x.shape[1], device=x.device).expand_as(self.where)
        first = torch.zeros_like(self.sizes, dtype=torch.int64).scatter_(1, self.where, places)     # any of its places
        return x.gather(1, first[..., None].expand(-1, -1, x.shape[2]))

    def lengthen(self, x: Tensor) -> Tensor:
        """x B T E -> B S E"""
        return x if x.shape[1] == self.where.shape[1] else x.gather(1, self.where[..., None].expand(-1, -1, x.shape[2]))

    def log_sizes(self, x: Tensor) -> Tensor | None:
        """B T in the type of x: added to the logits of attention, it makes a token count as often as it stands for one
        (section 3, "proportional attention"), and filler never. None when every token is real and alone."""
        if self.as_they_came:
            return None
        return self.sizes.log().clamp(min=torch.finfo(x.dtype).min).to(x.dtype)

    def merge(self, x: Tensor, keys: Tensor, count: int, protected: int) -> Tensor:
        """x B T E, keys B T k -> B T-count E: means by size."""
        count = min(count, (x.shape[1] - protected) // 2)
        if count > 0:
            goes = partners(keys, self.sizes, count, protected)             # B T into T-count
            total = self.sizes.new_zeros(len(x), x.shape[1] - count)
            sizes = total.scatter_add(1, goes, self.sizes)
            weighted = (x * self.sizes[..., None]).to(x.dtype)
            x = x.new_zeros(*sizes.shape, x.shape[2]).scatter_add(1, goes[..., None].expand_as(weighted), weighted)
            x = (x / sizes.clamp(min=1)[..., None]).to(x.dtype)
            self.sizes, self.where, self.as_they_came = sizes, goes.gather(1, self.where), False
        self.counts.append(x.shape[1])
        return x


class MergingBlock(nn.Module):
    """A block between whose halves tokens are merged."""

    def __init__(self, wrapped: Block, merged: Merged, per_block: int, protected: int, first: bool) -> None:
        super().__init__()
        self.wrapped, self.merged = wrapped, merged
        self.per_block, self.protected, self.first = per_block, protected, first

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """B S E -> B S E"""
        if self.first:
            self.merged.begin(x, valid)
        block = self.wrapped
        x = self.merged.shorten(x)                                          # B T E
        q, k, v = block.attention.queries_keys_values(block.norm1(x))
        x = x + block.drop_path(block.attention.attend(q, k, v, self.merged.log_sizes(q)))
        x = self.merged.merge(x, k.mean(1), self.per_block, self.protected)
        return self.merged.lengthen(x + block.drop_path(block.mlp(block.norm2(x))))


def merge_tokens(encoder: Encoder, per_block: int) -> Merged:
    """Edit an encoder so that every block leaves `per_block` tokens fewer, at most half of those there are. Class token
    and prompts are never merged. Its state no longer has the names of a checkpoint's: load first, add adapters, then
    merge.

    Returns:
        What was merged in the last batch, to be looked at. With 0 the encoder stays as it is.

    Raises:
        ValueError: a negative number, or an encoder whose tokens cannot be merged.
    """
    if per_block < 0:
        raise ValueError(f"tokens merged per block: found {per_block}, expected 0 for none, or more.")
    if not isinstance(encoder, Encoder):
        raise ValueError(f"found an encoder of kind {type(encoder).__name__}, expected a transformer: windows need "
                         "every token where it is. Predict without merging.")
    if encoder.settings.place_every_block:
        raise ValueError("found place_every_block, expected positions added once: a merged token has several places, "
                         "and would get them again in every block. Predict without merging.")
    if any(isinstance(module, MergingBlock) for module in encoder.modules()):
        raise ValueError("this encoder merges tokens already. Load it anew to merge another number.")
    merged = Merged()
    if per_block:
        prompts = max((one.num_prompts for one in encoder.modules() if isinstance(one, PromptedBlock)), default=0)
        protected = int(encoder.class_token is not None) + prompts
        for i in range(len(encoder.blocks)):
            _wrap_innermost(encoder.blocks, i, merged, per_block, protected)
    return merged


def partners(keys: Tensor, sizes: Tensor, count: int, protected: int) -> Tensor:
    """Bipartite soft matching (section 3, figure 1): every other token looks for the one among the rest that is most
    like it by the angle between keys, and the `count` likest pairs become one.

    Args:
        keys: B T k, the mean over heads.
        sizes: B T; tokens of size 0 go first, wherever they go, and nothing is merged into them.
        protected: tokens at the beginning that stay alone.

    Returns:
        B T int64: where each token is among the T - count that are left; protected ones in front.
    """
    keys, real = normalize(keys.float(), dim=-1)[:, protected:], sizes[:, protected:] > 0
    alike = keys[:, ::2] @ keys[:, 1::2].transpose(1, 2)                    # B a b
    alike = alike.masked_fill(~real[:, None, 1::2], -2).masked_fill(~real[:, ::2, None], 2)   # an angle is within -1, 1
    best, partner = alike.max(-1)                                           # B a each
    leaving = best.argsort(dim=1, descending=True, stable=True)[:, :count]
    stays = torch.ones_like(best, dtype=torch.bool).scatter(1, leaving, False)
    num_staying = best.shape[1] - count
    goes = torch.empty_like(real, dtype=torch.int64)                        # B n
    goes[:, ::2] = torch.where(stays, stays.cumsum(1) - 1, num_staying + partner)
    goes[:, 1::2] = num_staying + torch.arange(keys.shape[1] // 2, device=keys.device)
    front = torch.arange(protected, device=keys.device).expand(len(keys), -1)
    return torch.cat([front, protected + goes], 1)


def _wrap_innermost(blocks: nn.ModuleList, i: int, merged: Merged, per_block: int, protected: int) -> None:
    """Inside what adapters have put around a block: they add tokens to its sequence, and look for them after it."""
    holder: nn.Module | None = None
    block: Any = blocks[i]
    while hasattr(block, "wrapped"):
        holder, block = block, block.wrapped
    new = MergingBlock(block, merged, per_block, protected, first=i == 0).train(block.training)
    if holder is None:
        blocks[i] = new
    else:
        holder.wrapped = new
