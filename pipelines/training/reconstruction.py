"""Pictures of what a masked autoencoder sees and restores: numbers hide what pictures show.

Legend: B batch, N patches, H hidden, P values per patch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.encoder.tokenizers import GroupTokenizer
from models.objectives.masked_autoencoder import Reconstruction
from models.objectives.objective import Objective
from pipelines.training.batches import RawBatch, Source, on_device


@torch.no_grad()
def reconstruction_rows(objective: Objective, source: Source, rows: np.ndarray, seed: int,
                        device: torch.device) -> list[list[np.ndarray]]:
    """For each row of the index: [input, what was visible, visible and restored] as H W 3 uint8 pictures, and the whole
    at the input's own scale where the objective predicts that too."""
    raw, labels = source.read(rows, None)
    ids = torch.from_numpy(rows)
    batch, chance = on_device(source, RawBatch(raw, labels, ids, torch.zeros_like(ids), 0, 0), seed, None, device)
    result = objective.reconstruct(batch.x, batch.known, chance)
    if isinstance(objective.encoder.tokenizer, GroupTokenizer):
        return _point_rows(objective.encoder.tokenizer, batch.x, batch.known, result, source)
    if result.cut_from is None:
        return _grid_rows(objective.encoder.tokenizer, batch.x, batch.known, result, source)
    assert result.finest is not None, "what is cut from a smaller copy is predicted at the input's scale too"
    small = _grid_rows(objective.encoder.tokenizer, *result.cut_from, result, source)
    whole = [[_draw(source, image[i], None if batch.known is None else batch.known[i]) for image in (
        batch.x, result.finest)] for i in range(len(batch.x))]
    return [[before, *row[1:], after] for row, (before, after) in zip(small, whole, strict=True)]


def _grid_rows(tokenizer: Any, x: Tensor, known: Tensor | None, result: Reconstruction,
               source: Source) -> list[list[np.ndarray]]:
    values, mask = result.patches.values, result.mask
    size = x.shape[2:]
    seen = _marks(values, mask.visible, mask.visible_valid)                  # B N P
    asked = _marks(values, mask.hidden, mask.hidden_valid)
    restored = values.clone()
    keep = result.predicted if mask.hidden_valid is None else torch.where(
        mask.hidden_valid[..., None], result.predicted, values.gather(1, _wide(mask.hidden, values)))
    restored.scatter_(1, _wide(mask.hidden, values), keep.to(values.dtype))
    if result.patches.known is not None:
        seen, asked = seen & result.patches.known, asked
    shown = tokenizer.unpatchify(seen, size)
    complete = tokenizer.unpatchify(seen | asked, size)
    restored = tokenizer.unpatchify(restored, size)
    return [[_draw(source, x[i], None if known is None else known[i]), _draw(source, x[i], shown[i]),
             _draw(source, restored[i], complete[i])] for i in range(len(x))]


def _point_rows(tokenizer: GroupTokenizer, x: Tensor, known: Tensor | None, result: Reconstruction,
                source: Source) -> list[list[np.ndarray]]:
    """Places alone are restored, so places alone are shown of what was visible. Filler is not a number, and not drawn.
    """
    values, place, mask = result.patches.values, result.patches.place, result.mask
    seen, asked = (place.gather(1, _wide(index, place)) if valid is None else
                   place.gather(1, _wide(index, place)).masked_fill(~valid[..., None], torch.nan)
                   for index, valid in ((mask.visible, mask.visible_valid), (mask.hidden, mask.hidden_valid)))
    visible = tokenizer.unpatchify(values.gather(1, _wide(mask.visible, values)), seen)[..., :3]
    restored = torch.cat([visible, tokenizer.unpatchify(result.predicted, asked)], 1)
    x = x if known is None else x.masked_fill(~known, torch.nan)
    return [[_draw(source, cloud, None) for cloud in (x[i], visible[i], restored[i])] for i in range(len(x))]


def _marks(values: Tensor, index: Tensor, valid: Tensor | None) -> Tensor:
    """B N P bool: True on the patches listed."""
    marked = torch.zeros(values.shape[:2], dtype=torch.bool, device=values.device)
    on = torch.ones_like(index, dtype=torch.bool) if valid is None else valid
    marked = marked.scatter_reduce(1, index, on, reduce="amax")
    return marked[..., None].expand_as(values)


def _wide(index: Tensor, like: Tensor) -> Tensor:
    return index[..., None].expand(-1, -1, like.shape[-1])


def _draw(source: Source, x: Tensor, known: Tensor | None) -> np.ndarray:
    stored = source.code.dataset.denormalise(x[None].float(), source.contract)[0].cpu().numpy()
    picture: np.ndarray = source.code.picture.picture(stored, source.contract,
                                                      None if known is None else known.cpu().numpy())
    return picture
