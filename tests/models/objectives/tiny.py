"""Encoders and samples of every kind that train in seconds, and what is asked of every objective."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from models.encoder.chance import Chance, chance_of
from models.encoder.patches import Mask
from models.encoder.tokenizers import Bands, Grid, Groups, TokenizerSettings
from models.encoder.transformer import Encoder, EncoderSettings, Shape

BATCH = 6
TOKENIZERS: dict[str, TokenizerSettings] = {
    "image": Grid(patch=(4, 4)), "volume": Grid(patch=(4, 4, 4)), "bands": Bands(patch=(4, 4)),
    "points": Groups(num_groups=12, group_size=8, widths=(16, 24, 32))}
SIZES = {"image": (1, 24, 24), "volume": (1, 16, 8, 8), "bands": (3, 16, 16), "points": (96, 3)}


def chance(step: int = 0, batch: int = BATCH) -> Chance:
    """The chance of the samples 0, 1, ... at a step."""
    return chance_of(0, step, 0, torch.arange(batch), torch.zeros(batch, dtype=torch.int64))


def encoder(case: str, **changes: Any) -> Encoder:
    """A tiny encoder, always with the same weights."""
    torch.manual_seed(0)
    settings = EncoderSettings(**{"tokenizer": TOKENIZERS[case], "size": Shape(24, 2, 2), **changes})
    return Encoder(settings, 3 if case == "points" else SIZES[case][0])


def samples(case: str) -> Tensor:
    """A batch of noise with something to learn: smooth along the last axis."""
    torch.manual_seed(1)
    x = torch.randn(BATCH, *SIZES[case])
    if case == "points":
        return x / x.norm(dim=-1, keepdim=True) * torch.tensor([1.0, 0.6, 0.3])
    return (x.cumsum(-1) - x.cumsum(-1).mean(-1, keepdim=True)) / 2


def partly_known(case: str, x: Tensor) -> Tensor:
    """Sample 0 lacks half of its area, sample 1 single values, the last bands case a whole band too."""
    known = torch.ones_like(x, dtype=torch.bool)
    known[0, ..., x.shape[-1] // 2:] = False
    known[1, ..., 3, 5] = False
    if case == "bands":
        known[2, 1] = False
    return known


def train(model: nn.Module, x: Tensor, steps: int = 60, rate: float = 3e-3) -> tuple[list[float], set[str]]:
    """Total losses on one batch, and the names of the weights that got a gradient. Calls after_step where there is one.
    """
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate)
    losses, touched = [], set()
    for step in range(steps):
        named = model(x, None, chance(step % 4, len(x)))
        assert all(loss.isfinite() and loss.dim() == 0 for loss in named.values())
        total = torch.stack(list(named.values())).sum()
        optimizer.zero_grad()
        total.backward()
        touched |= {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
        optimizer.step()
        if hasattr(model, "after_step"):
            model.after_step((step + 1) / steps)
        losses.append(float(total.detach()))
    return losses, touched


def split(seen: int, count: int, filler: int = 0) -> Mask:
    """The first patches seen, the others hidden; with so many entries behind either list that name patch 0 and count
    for nothing."""
    more = torch.zeros(BATCH, filler, dtype=torch.int64)
    lists = [torch.cat([torch.arange(*ends).expand(BATCH, -1), more], 1) for ends in ((0, seen), (seen, count))]
    if not filler:
        return Mask(*lists)
    return Mask(*lists, *(torch.arange(one.shape[1]).expand(BATCH, -1) < one.shape[1] - filler for one in lists))


def trainable(model: nn.Module) -> set[str]:
    """Names of the weights that are meant to be trained."""
    return {name for name, p in model.named_parameters() if p.requires_grad}


def with_hidden_overwritten(model: Any, x: Tensor, result: Any) -> Tensor:
    """The samples with 99 in every hidden patch of a reconstruction, for grids and bands."""
    changed = result.patches.values.clone()
    changed.scatter_(1, result.mask.hidden[..., None].expand(-1, -1, changed.shape[-1]), 99.0)
    other: Tensor = model.encoder.tokenizer.unpatchify(changed, x.shape[2:])
    return other
