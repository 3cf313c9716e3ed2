"""Masks go where augmentation takes the samples that they belong to.

Legend: B batch, C layers, one for each class, D H W voxels (D is absent for images).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from domains.sample import UNKNOWN_CLASS

Move = Callable[[Tensor, Tensor], tuple[Tensor, Tensor | None]]
"""(x B C (D) H W, known likewise) -> the same after the moves."""


def by_layers(classes: Tensor, num_classes: int, move: Move) -> Tensor:
    """Move a mask as an image of num_classes layers, in which a class is 1 in its own; then the strongest layer of a
    place is its class. So a mask is resampled by the very weights that its image is, and its borders stay where the
    image's are, to a part of a pixel.

    Args:
        classes: B (D) H W uint8, UNKNOWN_CLASS where unknown; what was moved in from unknown places is unknown too.

    Returns:
        B (D) H W uint8.
    """
    known = classes != UNKNOWN_CLASS
    each = torch.arange(num_classes, device=classes.device).view(-1, *(1,) * (classes.dim() - 1))          # C 1 1 (1)
    layers = (classes[:, None] == each).float()                             # B C (D) H W
    moved, sure = move(layers, known[:, None].expand_as(layers))
    assert sure is not None, "known was given"
    return moved.argmax(1).to(torch.uint8).masked_fill(~sure[:, 0], UNKNOWN_CLASS)
