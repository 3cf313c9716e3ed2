"""One learnt vector that stands in for something that is not said: what a patch holds, or where it is.

Legend: B batch, n tokens, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LearntToken(nn.Module):
    """The same vector for every place. A module of its own, so that it is a part of its objective: parts are saved with
    a checkpoint, loose parameters are not."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        nn.init.normal_(self.token, std=0.02)

    def forward(self, batch: int, count: int) -> Tensor:
        """-> B n D"""
        return self.token.expand(batch, count, -1)
