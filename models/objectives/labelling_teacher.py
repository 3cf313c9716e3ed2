"""An averaged teacher whose sure answers are labels for its student (Tarvainen & Valpola 2017)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.heads.tuned import Tuned
from models.objectives.averaged_teacher import AveragedTeacher
from models.objectives.running_share import RunningShare


class LabellingTeacher(nn.Module):
    """A model that comes after its student, from when on its word counts, and how often it was sure of it."""

    updates: Tensor
    counts: Tensor
    """Scalar: 1 where the teacher's word counts, else 0."""

    def __init__(self, tuned: Tuned, momentum: float, begins: float) -> None:
        """momentum: share of the old weights in an update; smaller at first. begins: share of the steps before which
        the teacher's word does not count."""
        super().__init__()
        self.momentum, self.begins = momentum, begins
        self.average = AveragedTeacher(tuned=tuned)
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self.register_buffer("counts", torch.tensor(float(begins == 0)))
        self.sure = RunningShare(0.0)

    @property
    def model(self) -> Tuned:
        """The teacher itself: the result of the training."""
        averaged = self.average["tuned"]
        assert isinstance(averaged, Tuned)
        return averaged

    @torch.no_grad()
    def follow(self, tuned: Tuned, share: float) -> None:
        """After an update: the teacher comes after its student. share: of the steps that is done."""
        self.updates += 1
        momentum = min(self.momentum, 1 - 1 / (1 + float(self.updates)))
        self.average.follow(momentum, tuned=tuned)
        self.counts.fill_(float(share >= self.begins))
        self.sure.settle()

    def shown(self) -> dict[str, float]:
        """For curves: the share of the target's labels that the teacher is sure of."""
        return {"sure": float(self.sure.value)}
