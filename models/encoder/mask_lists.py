"""From scores to a mask's index lists.

Legend: B batch, N patches, V visible, H hidden.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from models.encoder.patches import Mask, take

Rounding = Literal["up", "down"]


def split_by_score(score: Tensor, usable: Tensor | None, ratio: float, round_hidden: Rounding = "up") -> Mask:
    """See the patches with the smallest scores, hide the largest `ratio` of them, drop those that are not usable.

    Args:
        score: B N.
        usable: B N bool, or None when all are.
        round_hidden: what becomes of the fraction of a patch that `ratio` leaves over.

    Raises:
        ValueError: there is one patch, or none: nothing could be hidden.
    """
    count = score.shape[1]
    if count < 2:
        raise ValueError(f"masking: found {count} to choose from in a sample, expected at least two patches (or cells "
                         "of patches): one to see, one to hide. Choose a smaller `patch` (or `cell`), or larger "
                         "samples.")
    if usable is None:
        seen = num_visible(count, ratio, round_hidden)
        order = score.argsort(dim=1, stable=True)
        return Mask(order[:, :seen], order[:, seen:])
    order = score.masked_fill(~usable, float("inf")).argsort(dim=1, stable=True)            # dropped ones at the end
    available = usable.sum(1)                                               # B
    seen_each = ((available.double() * (1 - ratio)).floor() if round_hidden == "up"
                 else available - (available.double() * ratio).floor().clamp(min=1)).long().clamp(min=1)
    seen_each = torch.minimum(seen_each, available)
    hidden_each = available - seen_each
    at = torch.arange(count, device=score.device)
    seen, hidden = max(int(seen_each.max()), 1), max(int(hidden_each.max()), 1)
    visible_valid = at[:seen] < seen_each[:, None]                          # B V
    hidden_at = (seen_each[:, None] + at[:hidden]).clamp(max=count - 1)     # B H
    hidden_valid = at[:hidden] < hidden_each[:, None]
    if bool(visible_valid.all()) and bool(hidden_valid.all()):
        return Mask(order[:, :seen], order.gather(1, hidden_at))
    return Mask(order[:, :seen], order.gather(1, hidden_at), visible_valid, hidden_valid)


def lists_of(seen: Tensor, asked: Tensor) -> Mask:
    """Index lists, in the order of the patches, of what is seen and of what is asked for.

    Args:
        seen, asked: B N bool, nowhere both.
    """
    (visible, visible_valid), (hidden, hidden_valid) = _list_of(seen), _list_of(asked)
    return Mask(visible, hidden, visible_valid, hidden_valid)


def _list_of(marked: Tensor) -> tuple[Tensor, Tensor | None]:
    """B N bool -> B L indices of the marked ones, and which are no filler; None where none is."""
    order = (~marked).to(torch.uint8).argsort(dim=1, stable=True)
    longest = max(int(marked.sum(1).max()), 1)
    valid = take(marked, order)[:, :longest]
    return order[:, :longest], None if bool(valid.all()) else valid


def split_cells(cell: Tensor, score: Tensor, usable: Tensor | None, ratio: float) -> Mask:
    """Split whole cells as `split_by_score` splits patches; a patch shares the fate of its cell, one that is not usable
    is dropped.

    Args:
        cell: B N int64, which of the L cells a patch lies in.
        score: B L.
        usable: B N bool, or None when all are.
        ratio: share hidden of the cells that hold a usable patch.
    """
    if usable is None:
        usable = torch.ones_like(cell, dtype=torch.bool)
    held = torch.zeros(score.shape, dtype=torch.bool, device=cell.device).scatter_reduce(1, cell, usable, reduce="amax")
    cells = split_by_score(score, held, ratio)
    return lists_of(take(marks_of(held, cells.visible, cells.visible_valid), cell) & usable,
                    take(marks_of(held, cells.hidden, cells.hidden_valid), cell) & usable)


def marks_of(like: Tensor, index: Tensor, valid: Tensor | None) -> Tensor:
    """B L bool of the shape of `like`: True at the valid entries of an index list."""
    on = torch.ones_like(index, dtype=torch.bool) if valid is None else valid
    return torch.zeros_like(like).scatter_reduce(1, index, on, reduce="amax")


def num_visible(count: int, ratio: float, round_hidden: Rounding = "up") -> int:
    """floor(count * (1 - ratio)) as MAE counts it, or all but floor(count * ratio) as Point-MAE does; at least one."""
    return max(int(count * (1 - ratio)) if round_hidden == "up" else count - max(int(count * ratio), 1), 1)


def check_ratio(ratio: float) -> None:
    """Raises ValueError for what is no share of the patches."""
    if not 0 < ratio < 1:
        raise ValueError(f"mask ratio: found {ratio}, expected a share between 0 and 1 (0.75 hides three quarters).")
