"""A teacher whose weights are an average of the student's over the last steps (Tarvainen & Valpola 2017)."""

from __future__ import annotations

import copy

import torch
from torch import nn


class AveragedTeacher(nn.Module):
    """Copies of some modules that follow them; never trained, always in eval mode.

    Its weights are in the state of the objective whose part it is, so a killed run goes on with the same teacher.
    """

    def __init__(self, **students: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({name: copy.deepcopy(student) for name, student in students.items()})
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> AveragedTeacher:
        """Stays in eval mode, whatever the objective around it does."""
        return super().train(False)

    def __getitem__(self, name: str) -> nn.Module:
        return self.parts[name]

    @torch.no_grad()
    def follow(self, momentum: float, **students: nn.Module) -> None:
        """Weights become momentum x old + (1 - momentum) x student's; buffers, such as batch statistics, are the
        student's own."""
        for name, student in students.items():
            own = self.parts[name]
            for weight, new in zip(own.parameters(), student.parameters(), strict=True):
                weight.lerp_(new, 1 - momentum)
            for buffer, value in zip(own.buffers(), student.buffers(), strict=True):
                buffer.copy_(value)
