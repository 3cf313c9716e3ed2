"""A share of samples, averaged over batches and processes: something that curves show and no loss depends on."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

_SLOWLY = 0.05
"""Share of a new batch in the average."""


class RunningShare(nn.Module):
    """The running average of a share in [0, 1]."""

    value: Tensor

    def __init__(self, first: float) -> None:
        """first: what it says before anything was noted."""
        super().__init__()
        self.register_buffer("value", torch.full((), first))

    @torch.no_grad()
    def note(self, true: Tensor) -> None:
        """Take in a batch: a bool for each of its samples or pixels."""
        self.value.lerp_(true.to(self.value.dtype).mean(), _SLOWLY)

    @torch.no_grad()
    def settle(self) -> None:
        """After an update, in every process: what each has seen counts alike."""
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(self.value)
            self.value.div_(dist.get_world_size())
