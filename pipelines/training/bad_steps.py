"""Updates whose loss or gradient is not finite: found on the device, left out by all ranks alike, and written down.

One norm over all gradients says whether an update is bad, on the device; after the reduction of gradients it says so on
every rank. A loss can be bad under good gradients (a `where` that masks them), so one number more is reduced: whether
some rank's loss was. Where an optimiser can skip by a number on the device (torch's fused AdamW, which does so for
torch's gradient scaler), the host reads the answer one step later, from a copy that does not wait for the queue.
Elsewhere (on a CPU, where reading is free, and with optimisers that cannot) it is read at once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pipelines.training.batches import Source, TrainingBatches

SHOWN = 16
"""Rows of the index that a sentence names."""


class NotFinite(RuntimeError):
    """Too many losses or gradients in a row were not finite, in the good states too. The text says which, and what to
    do."""

    exit_code = 5


@dataclass(frozen=True)
class SkippedStep:
    """An update that was left out: weights, optimiser, teacher and running statistics are those of the step before."""

    step: int
    """Number of the update, from 0."""
    what: str
    """What was not finite: loss, or gradient (of a finite loss)."""
    rows: tuple[int, ...]
    """Rows of the index in the global batch."""
    not_finite: tuple[int, ...]
    """Those of them whose own values are not finite."""
    back_to: int = -1
    """Updates done in the state that the training went back to after this step; -1: it did not."""

    def line(self) -> dict[str, Any]:
        """A line of skipped.csv."""
        return {"step": self.step, "what": self.what, "back_to": "" if self.back_to < 0 else self.back_to,
                "rows": " ".join(map(str, self.rows)), "not_finite": " ".join(map(str, self.not_finite))}


class Verdict:
    """Whether one update was bad, on its way from the device to the host.

    Args:
        bad: 2 bool, on the device: whether its loss, whether loss or gradient is not finite.
    """

    def __init__(self, step: int, bad: Tensor) -> None:
        self.step, self._ready = step, None
        if bad.is_cuda:
            self._host = torch.empty(2, dtype=torch.bool, pin_memory=True)
            self._host.copy_(bad, non_blocking=True)
            self._ready = torch.cuda.Event()
            self._ready.record()
        else:
            self._host = bad

    def read(self) -> tuple[bool, bool]:
        """(loss was bad, update was bad). Waits for this update alone, not for what was queued after it."""
        if self._ready is not None:
            self._ready.synchronize()
        loss, update = self._host.tolist()
        return loss, update


def is_bad(bad_loss: Tensor, parameters: Iterable[nn.Parameter]) -> Tensor:
    """Whether the loss, whether loss or gradient is not finite: 2 bool on the device, equal on all ranks.

    Args:
        bad_loss: bool, of this rank.
        parameters: with the reduced gradients.
    """
    norm = torch.nn.utils.get_total_norm([weight.grad for weight in parameters if weight.grad is not None])
    whole = getattr(norm, "full_tensor", None)  # sharded weights: each rank has seen its own share
    loss = bad_loss.float()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(loss, torch.distributed.ReduceOp.MAX)
    anywhere = loss > 0
    return torch.stack([anywhere, anywhere | ~torch.isfinite(norm if whole is None else whole())])


class Running:
    """Running statistics and other buffers of a model: a forward pass on bad numbers spoils them, without gradients."""

    def __init__(self, model: nn.Module) -> None:
        self._buffers = list(model.buffers())
        self._before = [buffer.clone() for buffer in self._buffers]

    @torch.no_grad()
    def keep(self) -> None:
        """Remember them; at the beginning of an update."""
        for before, buffer in zip(self._before, self._buffers, strict=True):
            before.copy_(buffer)

    @torch.no_grad()
    def undo(self, bad: Tensor) -> None:
        """Put back what was remembered where `bad` (one bool on the device) is true."""
        for before, buffer in zip(self._before, self._buffers, strict=True):
            buffer.copy_(torch.where(bad, before, buffer))


def skipped(step: int, what: str, source: Source, seed: int, batch_size: int) -> SkippedStep:
    """Name the samples of a bad update. They are read again: they are a function of (seed, step)."""
    raw = TrainingBatches(source, seed, batch_size, step + 1).batch(step, 0)
    x, _ = source.normalise(raw.raw)
    finite = torch.isfinite(x).flatten(1).all(1)
    return SkippedStep(step, what, tuple(raw.ids.tolist()), tuple(raw.ids[~finite].tolist()))


def sentence(step: SkippedStep) -> str:
    """For the log, once per skipped update."""
    own = f"; the values of rows {_listed(step.not_finite)} are not finite themselves" if step.not_finite else ""
    return f"update {step.step}: the {step.what} is not finite, so it is left out. Rows {_listed(step.rows)}{own}."


def _listed(rows: tuple[int, ...]) -> str:
    return ", ".join(map(str, rows[:SHOWN])) + (f" and {len(rows) - SHOWN} more" if len(rows) > SHOWN else "")
